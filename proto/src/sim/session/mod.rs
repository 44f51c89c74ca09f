//! One client, a few agents, and everything that can go wrong between them.
//!
//! The world is a queue of events ordered by virtual time. The client is the real
//! [`Session`]; agents are modelled: they journal, keep generations for a grace time, send
//! progress while silent, and can be killed, restarted, frozen, cut off, hung, drained, or
//! made to lie. A [`Scenario`] is drawn from a seed, so a failing seed is a test case.

mod agent;
mod client;
mod fault;
mod scenario;

pub use scenario::{Fault, Node, Scenario};

use crate::hedge::Hedges;
use crate::ids::{GenerationId, NodeId};
use crate::session::{AttemptId, Closed, Config, How, Input, Output, Session};
use crate::stops::{Piece, Stops};
use crate::time::Mono;
use crate::wire::{Chunk, GenFrame, Token};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// What the caller saw.
#[derive(Debug, Default)]
pub struct Report {
    /// In order, with the time.
    pub outputs: Vec<(Mono, Output)>,
    /// The text of all tokens.
    pub text: String,
    /// The longest time without a token or terminal event.
    pub longest_wait: Duration,
    /// Attempts that were opened.
    pub attempts: u32,
    /// Generations that agents began.
    pub generations: u32,
    /// Of the attempts, those that stood by for a peer in trouble.
    pub backups: u32,
    /// A rule that the run broke, if any.
    pub violation: Option<String>,
}

/// The text of frame `index`; every seventh or so is empty (half a character).
pub fn text(seed: u64, index: u32) -> String {
    let text = piece(seed, index);
    match seed & WHOLE {
        0 => text,
        _ if text.is_empty() => "- ".into(),
        _ => text,
    }
}

/// Seeds with this bit make no half characters.
pub const WHOLE: u64 = 1 << 62;

fn piece(seed: u64, index: u32) -> String {
    let x = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(index) * 0x85eb_ca6b);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    if x % 7 == 3 {
        String::new()
    } else {
        format!("{:03x} ", (x >> 20) & 0xfff)
    }
}

#[derive(Debug)]
enum Event {
    ToNode(usize, AttemptId, How),
    ResetAtNode(usize, AttemptId),
    Step(usize, u64),
    Beat(usize, u64),
    ToClient(AttemptId, GenFrame, u64),
    CloseAtClient(AttemptId, Closed),
    Fault(usize, Fault),
    Restart(usize),
    /// A new connection to a node is there, or not.
    Dialed(usize, AttemptId, How),
    /// The agent notices that an attempt's connection is lost.
    Detach(usize, AttemptId),
    Leave(usize),
    PeerGoing(usize),
    Peers,
    Wake,
    Cancel,
}

#[derive(Debug)]
struct Generation {
    id: GenerationId,
    base: u32,
    /// The engine's next token.
    made: u32,
    /// Bytes of it that the prefix has already.
    cut: usize,
    /// Tokens that the agent lost.
    skipped: u32,
    /// What went out, for whoever reattaches.
    frames: Vec<Token>,
    stops: Stops,
    attempt: Option<AttemptId>,
    detached_at: Option<Mono>,
    done: bool,
    last_sent: Mono,
    /// What it was asked to continue, until the engine has read it.
    prefix: Vec<Chunk>,
    /// A fault that strikes at the next step.
    strike: Option<Fault>,
}

impl Generation {
    /// The index of the next frame.
    fn next(&self) -> u32 {
        let frames = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        self.base + frames + self.skipped
    }

    /// Makes frames of the pieces.
    fn keep(&mut self, pieces: VecDeque<Piece>) -> Vec<Token> {
        let from = self.frames.len();
        for (chunk, extra) in pieces {
            let index = self.next();
            self.frames.push(Token {
                index,
                chunk,
                extra,
            });
        }
        self.frames[from..].to_vec()
    }
}

#[derive(Debug, Default)]
struct Agent {
    /// Rises with every restart; events of an older life are void.
    life: u64,
    dead: bool,
    frozen_until: Mono,
    cut_until: Mono,
    cut_since: Mono,
    /// The client's connection is on a path that is dead until then, and for how long in all.
    path: Option<(Mono, Duration)>,
    hung_until: Mono,
    busy: bool,
    draining: bool,
    down_since: Option<Mono>,
    generations: BTreeMap<u64, Generation>,
    /// What the engine's KV cache holds: the last prompt that it has read and what it made.
    cache: Option<Vec<Chunk>>,
}

struct World<'a> {
    scenario: &'a Scenario,
    rng: ChaCha8Rng,
    now: Mono,
    order: u64,
    queue: BinaryHeap<Reverse<(Mono, u64, usize)>>,
    events: Vec<Option<Event>>,
    agents: Vec<Agent>,
    session: Session,
    hedges: Hedges,
    /// Attempt -> (node, in-order delivery horizon, connection generation).
    links: BTreeMap<AttemptId, (usize, Mono)>,
    /// Attempts on a path that is dead until then, and for how long in all.
    dead_paths: BTreeMap<AttemptId, (Mono, Duration)>,
    /// What each node was asked last to continue.
    prefixes: BTreeMap<usize, Vec<Chunk>>,
    next_generation: u64,
    wake_at: Option<Mono>,
    report: Report,
    delivered: Vec<Chunk>,
    last_output: Mono,
}

/// Runs `scenario` to its end (or 120 virtual seconds) and checks the rules on the way.
pub fn run(scenario: &Scenario) -> Report {
    let config = Config {
        spliceable: scenario.spliceable,
        ..Config::default()
    };
    let mut world = World {
        scenario,
        rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x5eed),
        now: Mono::ZERO,
        order: 0,
        queue: BinaryHeap::new(),
        events: Vec::new(),
        agents: scenario.nodes.iter().map(|_| Agent::default()).collect(),
        session: Session::new(config, Mono::ZERO),
        hedges: Hedges::new(scenario.hedges),
        links: BTreeMap::new(),
        dead_paths: BTreeMap::new(),
        prefixes: BTreeMap::new(),
        next_generation: 1,
        wake_at: None,
        report: Report::default(),
        delivered: Vec::new(),
        last_output: Mono::ZERO,
    };
    for (node, model) in scenario.nodes.iter().enumerate() {
        for (at, fault) in &model.faults {
            world.at(*at, Event::Fault(node, *fault));
        }
    }
    if let Some(at) = scenario.cancel_at {
        world.at(at, Event::Cancel);
    }
    world.drain();
    while let Some(Reverse((at, _, slot))) = world.queue.pop() {
        if world.session.is_ended() || at > Mono::ZERO + Duration::from_secs(120) {
            break;
        }
        world.now = at;
        if let Some(event) = world.events[slot].take() {
            world.handle(event);
        }
    }
    world.finish()
}

impl World<'_> {
    fn at(&mut self, after: Duration, event: Event) {
        self.at_time(self.now + after, event);
    }

    fn at_time(&mut self, at: Mono, event: Event) {
        self.order += 1;
        self.events.push(Some(event));
        self.queue
            .push(Reverse((at, self.order, self.events.len() - 1)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ToNode(node, attempt, how) => self.open_at_node(node, attempt, how),
            Event::ResetAtNode(node, attempt) => {
                self.agents[node]
                    .generations
                    .retain(|_, g| g.attempt != Some(attempt));
            }
            Event::Step(node, generation) => self.step(node, generation),
            Event::Beat(node, generation) => self.beat(node, generation),
            Event::ToClient(attempt, frame, life) => {
                if let Some((node, _)) = self.links.get(&attempt).copied()
                    && self.agents[node].life == life
                {
                    self.input(Input::Frame(attempt, frame));
                }
            }
            Event::Dialed(node, attempt, how) => self.dialed(node, attempt, how),
            Event::Detach(node, attempt) => self.detach(node, attempt),
            Event::CloseAtClient(attempt, closed) => self.input(Input::Closed(attempt, closed)),
            Event::Fault(node, fault) => self.fault(node, fault),
            Event::Restart(node) => {
                let agent = &mut self.agents[node];
                *agent = Agent {
                    life: agent.life + 1,
                    ..Agent::default()
                };
                self.lose(node, Duration::from_millis(250));
                self.at(Duration::from_millis(300), Event::Peers);
            }
            Event::Leave(node) => self.kill(node, None),
            Event::PeerGoing(node) => self.input(Input::PeerGoing(id_of(node))),
            Event::Peers => {
                if self.session.is_waiting() {
                    self.rank();
                }
            }
            Event::Wake => {
                if self.wake_at.is_some_and(|at| at <= self.now) {
                    self.wake_at = None;
                    self.input(Input::Wake);
                }
            }
            Event::Cancel => self.input(Input::Cancel),
        }
    }

    fn finish(mut self) -> Report {
        let Some((_, last)) = self.report.outputs.last().cloned() else {
            self.violate("no event at all".into());
            return self.report;
        };
        if !terminal(&last) {
            self.violate(format!("no terminal event; the last is {last:?}"));
        }
        let is_done = matches!(last, Output::Done { .. });
        let frames = self.scenario.frames as usize;
        if is_done && self.scenario.stop.is_empty() && self.delivered.len() != frames {
            let got = self.delivered.len();
            self.violate(format!("done with {got} of {frames} frames"));
        }
        if self.scenario.deterministic {
            let whole = self.scenario.answer();
            let got = &self.report.text;
            if if is_done {
                whole != *got
            } else {
                !whole.starts_with(got)
            } {
                self.violate("the text differs from an uninterrupted run".into());
            }
        }
        let shown = |stop: &String| self.report.text.contains(stop);
        if self.scenario.stop.iter().any(shown) {
            self.violate("a stop sequence is shown".into());
        }
        self.report
    }
}

fn chunk(text: String, index: u32) -> Chunk {
    Chunk {
        text,
        ids: vec![index],
        tokens: 1,
    }
}

fn terminal(output: &Output) -> bool {
    matches!(output, Output::Done { .. } | Output::Failed(_))
}

/// Whether `prefix` has the same texts as the beginning of `whole`, piece by piece.
fn begins(whole: &[Chunk], prefix: &[Chunk]) -> bool {
    let same = |(a, b): (&Chunk, &Chunk)| a.text == b.text;
    prefix.len() <= whole.len() && whole.iter().zip(prefix).all(same)
}

/// The node id of the `node`th agent.
pub fn id_of(node: usize) -> NodeId {
    let mut id = [0; 32];
    id[0] = u8::try_from(node).unwrap_or(u8::MAX);
    NodeId(id)
}
