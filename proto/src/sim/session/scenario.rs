//! What a run is drawn from.

use super::text;
use crate::limits::HEDGE_BURST;
use crate::stalls::Bounds;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// What goes wrong at an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process is killed; `restart` starts a new one that knows nothing.
    Kill {
        /// After this time.
        restart: Option<Duration>,
    },
    /// The process stands still (SIGSTOP, sleep) for a while.
    Freeze(Duration),
    /// Nothing passes between it and the client for a while.
    Cut(Duration),
    /// The path in use dies for a while, and the process lives: a new connection takes another.
    PathDies(Duration),
    /// Its engine makes nothing for a while; the agent goes on saying so.
    Hang(Duration),
    /// The engine fails: an error frame.
    EngineFails,
    /// The stream ends without a terminal frame.
    EndsEarly,
    /// The agent skips a token: a bug that must be noticed.
    SkipsToken,
    /// It answers `busy` from now on.
    Busy,
    /// It says that it is draining and leaves after this time.
    Drain(Duration),
}

/// One agent and its path.
#[derive(Clone, Debug)]
pub struct Node {
    /// To the first token.
    pub ttft: Duration,
    /// Between tokens.
    pub itl: Duration,
    /// One way.
    pub delay: Duration,
    /// Added at random, order kept (QUIC retransmits in order).
    pub jitter: Duration,
    /// When and what.
    pub faults: Vec<(Duration, Fault)>,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Draws jitter and texts.
    pub seed: u64,
    /// In order of preference.
    pub nodes: Vec<Node>,
    /// Frames of the whole answer.
    pub frames: u32,
    /// Stop sequences of the request.
    pub stop: Vec<String>,
    /// All engines make the same text (temperature 0, same weights).
    pub deterministic: bool,
    /// May the answer be spliced.
    pub spliceable: bool,
    /// The caller cancels then.
    pub cancel_at: Option<Duration>,
    /// Hedges that the client may waste.
    pub hedges: u32,
    /// What the client has learned of every engine.
    pub learned: Bounds,
}

impl Scenario {
    /// Two to four agents and up to four faults; the last agent never fails unless `hopeless`.
    pub fn random(seed: u64, hopeless: bool) -> Scenario {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let ms = |rng: &mut ChaCha8Rng, lo: u64, hi: u64| {
            Duration::from_micros(rng.random_range(lo * 1000..=hi * 1000))
        };
        let count = rng.random_range(2..=4);
        let mut nodes: Vec<Node> = (0..count)
            .map(|_| Node {
                ttft: ms(&mut rng, 5, 120),
                itl: ms(&mut rng, 2, 40),
                delay: ms(&mut rng, 0, 6),
                jitter: ms(&mut rng, 0, 20),
                faults: Vec::new(),
            })
            .collect();
        let faulty = if hopeless { count } else { count - 1 };
        for _ in 0..rng.random_range(1..=4) {
            let (at, long) = (ms(&mut rng, 0, 1500), ms(&mut rng, 50, 7000));
            let restart = rng.random_bool(0.5).then_some(long);
            let fault = match rng.random_range(0..10) {
                0 => Fault::Kill { restart },
                1 => Fault::Freeze(long),
                2 => Fault::Cut(long),
                3 => Fault::Hang(long),
                4 => Fault::EngineFails,
                5 => Fault::EndsEarly,
                6 => Fault::SkipsToken,
                7 => Fault::Busy,
                8 => Fault::PathDies(long),
                _ => Fault::Drain(long),
            };
            let node = rng.random_range(0..faulty);
            nodes[node].faults.push((at, fault));
        }
        let mut scenario = Scenario {
            seed,
            nodes,
            frames: rng.random_range(1..=60),
            stop: Vec::new(),
            deterministic: rng.random_bool(0.7),
            spliceable: rng.random_bool(0.9),
            cancel_at: rng.random_bool(0.05).then(|| ms(&mut rng, 0, 800)),
            hedges: HEDGE_BURST,
            learned: Bounds {
                first: rng.random_bool(0.5).then(|| ms(&mut rng, 10, 1200)),
                gap: rng.random_bool(0.5).then(|| ms(&mut rng, 5, 1200)),
            },
        };
        // A piece of the text over two or three tokens, and one that never comes whole.
        let whole = scenario.answer();
        if rng.random_bool(0.4) && whole.len() > 12 {
            let at = rng.random_range(0..whole.len() - 10);
            let stop = &whole[at..at + rng.random_range(2..10)];
            scenario.stop = vec![stop.to_owned(), format!("{stop}#")];
        }
        scenario
    }

    /// What an uninterrupted run of engines that all make the same text delivers.
    pub fn answer(&self) -> String {
        let whole: String = (0..self.frames).map(|i| text(self.seed, i)).collect();
        let stops = self
            .stop
            .iter()
            .filter_map(|stop| whole.find(stop.as_str()));
        let end = stops.min().unwrap_or(whole.len());
        whole[..end].to_owned()
    }
}
