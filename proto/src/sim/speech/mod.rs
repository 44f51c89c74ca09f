//! Speech between one client and a few agents, and what can go wrong there.
//!
//! As in [`super::session`]: the client is the real machine, agents are modelled, time is virtual
//! and a [`Scenario`] is drawn from a seed. [`speak::run`] speaks a text and plays it; [`hear::run`]
//! has an utterance transcribed; [`turn::run`] holds a conversation. All check on the way what must
//! always hold.

pub mod hear;
mod net;
mod player;
pub mod speak;
pub mod turn;

use crate::ids::NodeId;
use crate::session::{Note, Reason};
use crate::speech::Failure;
use crate::time::Mono;
use crate::wire::ErrorCode;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Duration;

/// What goes wrong at an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process is killed; its connections are noticed as lost after a while.
    Kill,
    /// The process stands still for a while.
    Freeze(Duration),
    /// Its engine makes nothing for a while; the agent goes on saying so.
    Hang(Duration),
    /// The engine fails: an error frame.
    EngineFails,
    /// The stream ends without a terminal frame.
    EndsEarly,
    /// The agent skips a packet, or transcribes half: a bug that must be noticed.
    Skips,
    /// It answers `busy` from now on.
    Busy,
    /// It says that it is draining and leaves after this time.
    Drain(Duration),
}

/// One agent and its path.
#[derive(Clone, Debug)]
pub struct Node {
    /// From a text to its first sound; from an utterance's end to its transcript.
    pub first: Duration,
    /// How much faster than the ear its engine is.
    pub speed: f64,
    /// One way.
    pub delay: Duration,
    /// Added at random, order kept.
    pub jitter: Duration,
    /// Has the voice that is asked for.
    pub same_voice: bool,
    /// When and what.
    pub faults: Vec<(Duration, Fault)>,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Draws jitter.
    pub seed: u64,
    /// In order of preference.
    pub nodes: Vec<Node>,
    /// Samples (24 kHz) of each chunk of ten characters; or the frames of an utterance.
    pub chunks: Vec<u64>,
    /// Another voice is welcome.
    pub other_voice: bool,
    /// The caller cancels then.
    pub cancel_at: Option<Duration>,
    /// The program that asks leaves the mesh then.
    pub leave_at: Option<Duration>,
    /// The caller does not look then, for so long.
    pub pauses: Vec<(Duration, Duration)>,
    /// Hedges are granted.
    pub hedges: bool,
    /// Of datagrams that are lost, in percent.
    pub loss: u32,
    /// How far the places of joints are from where they are expected, in samples at most.
    pub shift: i64,
}

impl Scenario {
    /// Two to four agents and up to four faults; the last agent is slow but has the voice and
    /// never fails, unless `hopeless`.
    pub fn random(seed: u64, hopeless: bool) -> Scenario {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count = rng.random_range(2..=4);
        let ms = |rng: &mut ChaCha8Rng, lo: u64, hi: u64| {
            Duration::from_millis(rng.random_range(lo..=hi))
        };
        let mut nodes: Vec<Node> = (0..count)
            .map(|_| Node {
                first: ms(&mut rng, 20, 400),
                speed: match rng.random_bool(0.7) {
                    true => rng.random_range(1.1..3.0),
                    false => rng.random_range(3.0..30.0),
                },
                delay: Duration::from_micros(rng.random_range(100..20_000)),
                jitter: ms(&mut rng, 0, 30),
                same_voice: rng.random_bool(0.8),
                faults: Vec::new(),
            })
            .collect();
        if let Some(last) = nodes.last_mut() {
            last.same_voice = true;
        }
        for _ in 0..rng.random_range(1..=4) {
            let open = if hopeless { count } else { count - 1 };
            // Most strike who is asked first.
            let node = match rng.random_bool(0.6) {
                true => 0,
                false => rng.random_range(0..open),
            };
            let long = ms(&mut rng, 50, 5000);
            let fault = match rng.random_range(0..10) {
                0..=2 => Fault::Kill,
                3 => Fault::Freeze(long),
                4 => Fault::Hang(long),
                5 => Fault::EngineFails,
                6 => Fault::EndsEarly,
                7 => Fault::Skips,
                8 => Fault::Busy,
                _ => Fault::Drain(long),
            };
            nodes[node].faults.push((ms(&mut rng, 0, 6000), fault));
        }
        let chunks = rng.random_range(1..=8);
        Scenario {
            seed,
            nodes,
            chunks: (0..chunks)
                .map(|_| rng.random_range(4_000..60_000))
                .collect(),
            other_voice: rng.random_bool(0.3),
            cancel_at: rng.random_bool(0.1).then(|| ms(&mut rng, 0, 8000)),
            leave_at: None,
            pauses: Vec::new(),
            hedges: rng.random_bool(0.7),
            loss: rng.random_range(0..10),
            shift: rng.random_range(0..500),
        }
    }
}

/// What the caller saw, and what its client learned.
#[derive(Debug, Default)]
pub struct Report {
    /// How it ended.
    pub end: String,
    /// It was completed.
    pub done: bool,
    /// Until the player began; or from the utterance's end to its transcript.
    pub first_wait: Duration,
    /// The longest time after that in which the player had nothing.
    pub longest_wait: Duration,
    /// Attempts that were opened.
    pub attempts: u32,
    /// Another peer went on, for these reasons.
    pub changes: Vec<Reason>,
    /// Chunks that were joined while they were played.
    pub joins: u32,
    /// Hedges whose original went on.
    pub in_vain: u32,
    /// The longest silence that a peer may now show before it is suspected.
    pub patience: Duration,
    /// The longest that an engine is now known to take, for a first output or between two.
    pub slowest: Duration,
    /// A rule that the run broke, if any.
    pub violation: Option<String>,
}

impl Report {
    fn violate(&mut self, rule: String) {
        self.violation.get_or_insert(rule);
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::HedgeInVain { .. } => self.in_vain += 1,
            Note::Learned { silence, .. } => self.patience = self.patience.max(silence.bound()),
            Note::Observed { observed, .. } => {
                let gap = observed.gaps.quantile(1.0, 1);
                let shown = [Some(self.slowest), observed.first.quantile(1.0, 1), gap];
                self.slowest = shown.into_iter().flatten().max().unwrap_or_default();
            }
            _ => {}
        }
    }

    /// It failed: as who leaves does, if the caller's program left. `begun`: something came of it.
    fn failed(&mut self, failure: &Failure, left: bool, begun: bool) {
        let leaving = match failure {
            Failure::Interrupted { reason } => begun && *reason == Reason::Leaving,
            Failure::Refused(error) => !begun && error.code == ErrorCode::Draining,
            _ => false,
        };
        if left && !leaving {
            self.violate(format!("{failure:?} of one who left"));
        }
    }
}

/// Events in the order of their time.
struct Queue<E> {
    events: BTreeMap<(Mono, u64), E>,
    order: u64,
}

impl<E> Queue<E> {
    fn new() -> Self {
        Queue {
            events: BTreeMap::new(),
            order: 0,
        }
    }

    fn at(&mut self, at: Mono, event: E) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    fn pop(&mut self) -> Option<(Mono, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

/// An agent's process and engine.
#[derive(Debug, Default)]
struct Agent {
    dead_since: Option<Mono>,
    frozen_until: Mono,
    hung_until: Mono,
    busy: bool,
    draining: bool,
}

impl Agent {
    /// When it does what its engine wants now.
    fn ready(&self) -> Mono {
        self.frozen_until.max(self.hung_until)
    }
}

fn id_of(node: usize) -> NodeId {
    NodeId([node as u8; 32])
}
