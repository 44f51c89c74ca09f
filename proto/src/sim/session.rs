//! One client, a few agents, and everything that can go wrong between them.
//!
//! The world is a queue of events ordered by virtual time. The client is the real
//! [`Session`]; agents are modelled: they journal, keep generations for a grace time, send
//! progress while silent, and can be killed, restarted, frozen, cut off, hung, drained, or
//! made to lie. A [`Scenario`] is drawn from a seed, so a failing seed is a test case.

use crate::ids::{GenerationId, NodeId};
use crate::rank::{Candidate, Cost};
use crate::session::{AttemptId, Closed, Config, Effect, How, Input, Output, Session};
use crate::time::Mono;
use crate::timeouts::{GRACE, IDLE, PROGRESS_EVERY, TABLE_DOWN};
use crate::wire::{
    Accepted, Chunk, Done, Draining, ErrorCode, FinishReason, GenFrame, Phase, Progress, Token,
    Usage, WireError,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
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
    /// All engines make the same text (temperature 0, same weights).
    pub deterministic: bool,
    /// May the answer be spliced.
    pub spliceable: bool,
    /// The caller cancels then.
    pub cancel_at: Option<Duration>,
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
            let fault = match rng.random_range(0..9) {
                0 => Fault::Kill { restart },
                1 => Fault::Freeze(long),
                2 => Fault::Cut(long),
                3 => Fault::Hang(long),
                4 => Fault::EngineFails,
                5 => Fault::EndsEarly,
                6 => Fault::SkipsToken,
                7 => Fault::Busy,
                _ => Fault::Drain(long),
            };
            let node = rng.random_range(0..faulty);
            nodes[node].faults.push((at, fault));
        }
        Scenario {
            seed,
            nodes,
            frames: rng.random_range(1..=60),
            deterministic: rng.random_bool(0.7),
            spliceable: rng.random_bool(0.9),
            cancel_at: rng.random_bool(0.05).then(|| ms(&mut rng, 0, 800)),
        }
    }
}

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
    /// A rule that the run broke, if any.
    pub violation: Option<String>,
}

/// The text of frame `index`; every seventh or so is empty (half a character).
pub fn text(seed: u64, index: u32) -> String {
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
    next: u32,
    attempt: Option<AttemptId>,
    detached_at: Option<Mono>,
    done: bool,
    last_sent: Mono,
    /// A fault that strikes at the next step.
    strike: Option<Fault>,
}

#[derive(Debug, Default)]
struct Agent {
    /// Rises with every restart; events of an older life are void.
    life: u64,
    dead: bool,
    frozen_until: Mono,
    cut_until: Mono,
    cut_since: Mono,
    hung_until: Mono,
    busy: bool,
    draining: bool,
    down_since: Option<Mono>,
    generations: BTreeMap<u64, Generation>,
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
    /// Attempt -> (node, in-order delivery horizon, connection generation).
    links: BTreeMap<AttemptId, (usize, Mono)>,
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
        silence: Vec::new(),
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
        links: BTreeMap::new(),
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

    // ----- the client -------------------------------------------------------------------

    fn input(&mut self, input: Input) {
        self.session.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.session.poll() {
            match effect {
                Effect::Rank => self.rank(),
                Effect::Open {
                    attempt, node, how, ..
                } => self.open(attempt, node, how),
                Effect::Reset(attempt) => {
                    if let Some((node, _)) = self.links.remove(&attempt) {
                        let delay = self.scenario.nodes[node].delay;
                        self.at(delay, Event::ResetAtNode(node, attempt));
                    }
                }
                Effect::Emit(output) => self.emit(output),
                Effect::Note(_) => {}
            }
        }
        if let Some(at) = self.session.next_wake()
            && self
                .wake_at
                .is_none_or(|armed| at < armed || armed <= self.now)
        {
            self.wake_at = Some(at);
            let at = at.max(self.now + Duration::from_micros(1));
            self.at_time(at, Event::Wake);
        }
    }

    fn rank(&mut self) {
        let now = self.now;
        let known_down = |a: &Agent| a.down_since.is_some_and(|t| now.since(t) > TABLE_DOWN);
        let candidates = self
            .agents
            .iter()
            .enumerate()
            .filter(|(_, a)| !known_down(a))
            .map(|(node, agent)| Candidate {
                node: id_of(node),
                engine: 0,
                model: "m".into(),
                digest: if self.scenario.deterministic {
                    "d".into()
                } else {
                    String::new()
                },
                token_ids: true,
                cost: Cost::default(),
                expected_ttft: self.scenario.nodes[node].ttft,
                expected_itl: self.scenario.nodes[node].itl,
                draining: agent.draining,
                reason: String::new(),
            });
        let candidates = candidates.collect();
        self.session.handle(Input::Candidates(candidates), now);
    }

    fn open(&mut self, attempt: AttemptId, node: NodeId, how: How) {
        self.report.attempts += 1;
        let node = usize::from(node.0[0]);
        if let How::Generate(prefix) = &how
            && *prefix != self.delivered
        {
            self.violate(format!(
                "the prefix for {attempt:?} is not what was delivered"
            ));
        }
        self.links.insert(attempt, (node, self.now));
        let model = &self.scenario.nodes[node];
        self.session.handle(Input::Opened(attempt), self.now);
        // A process that is gone is noticed by the connection's idle time-out, or at once by
        // a fresh dial.
        if self.agents[node].dead {
            self.at(
                IDLE,
                Event::CloseAtClient(attempt, Closed::Lost("idle".into())),
            );
        }
        self.at(model.delay, Event::ToNode(node, attempt, how));
    }

    fn emit(&mut self, output: Output) {
        if self.report.outputs.last().is_some_and(|(_, o)| terminal(o)) {
            self.violate("an event after the terminal one".into());
        }
        if let Output::Token { index, text, .. } = &output {
            if *index as usize != self.delivered.len() {
                self.violate(format!("token {index} after {}", self.delivered.len()));
            }
            self.report.text.push_str(text);
            self.delivered.push(chunk(text.clone(), *index));
        }
        if terminal(&output) || matches!(output, Output::Token { .. }) {
            let wait = self.now.since(self.last_output);
            self.report.longest_wait = self.report.longest_wait.max(wait);
            self.last_output = self.now;
        }
        self.report.outputs.push((self.now, output));
    }

    fn violate(&mut self, what: String) {
        self.report.violation.get_or_insert(what);
    }

    // ----- the agents -------------------------------------------------------------------

    fn open_at_node(&mut self, node: usize, attempt: AttemptId, how: How) {
        let agent = &self.agents[node];
        let ready = agent.frozen_until.max(agent.cut_until);
        if agent.dead {
            return;
        }
        if ready > self.now {
            return self.at_time(ready, Event::ToNode(node, attempt, how));
        }
        if !self.links.contains_key(&attempt) {
            return;
        }
        match how {
            How::Generate(prefix) => self.start(node, attempt, prefix),
            How::Attach(attach) => self.attach(node, attempt, attach.generation, attach.have),
        }
    }

    fn start(&mut self, node: usize, attempt: AttemptId, prefix: Vec<Chunk>) {
        let agent = &self.agents[node];
        if agent.busy || agent.draining {
            let code = if agent.busy {
                ErrorCode::Busy
            } else {
                ErrorCode::Draining
            };
            return self.send(node, attempt, GenFrame::Error(WireError::new(code, "no")));
        }
        let key = self.next_generation;
        self.next_generation += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&key.to_le_bytes());
        let base = u32::try_from(prefix.len()).unwrap_or(u32::MAX);
        let generation = Generation {
            id: GenerationId(bytes),
            base,
            next: base,
            attempt: Some(attempt),
            detached_at: None,
            done: false,
            last_sent: self.now,
            strike: None,
        };
        let digest = if self.scenario.deterministic {
            "d".into()
        } else {
            String::new()
        };
        let accepted = Accepted {
            generation: generation.id,
            engine: 0,
            digest,
            exact: true,
        };
        self.agents[node].generations.insert(key, generation);
        self.send(node, attempt, GenFrame::Accepted(accepted));
        self.at(self.scenario.nodes[node].ttft, Event::Step(node, key));
        self.at(PROGRESS_EVERY, Event::Beat(node, key));
    }

    fn attach(&mut self, node: usize, attempt: AttemptId, id: GenerationId, have: u32) {
        let found = self.agents[node]
            .generations
            .iter_mut()
            .find(|(_, g)| g.id == id);
        let Some((key, generation)) = found.filter(|(_, g)| have >= g.base && have <= g.next)
        else {
            let error = WireError::new(ErrorCode::UnknownGeneration, "gone");
            return self.send(node, attempt, GenFrame::Error(error));
        };
        generation.attempt = Some(attempt);
        generation.detached_at = None;
        let (key, next, done) = (*key, generation.next, generation.done);
        for index in have..next {
            let frame = self.token(node, index);
            self.send(node, attempt, frame);
        }
        if done {
            self.send_done(node, attempt, next);
        }
        self.at(PROGRESS_EVERY, Event::Beat(node, key));
    }

    fn token(&self, node: usize, index: u32) -> GenFrame {
        let seed = self.scenario.seed;
        let seed = if self.scenario.deterministic {
            seed
        } else {
            seed + 1 + node as u64
        };
        GenFrame::Token(Token {
            index,
            chunk: chunk(text(seed, index), index),
            extra: String::new(),
        })
    }

    /// The engine makes its next token.
    fn step(&mut self, node: usize, key: u64) {
        let agent = &self.agents[node];
        let ready = agent.frozen_until.max(agent.hung_until);
        if agent.dead || !agent.generations.contains_key(&key) {
            return;
        }
        if ready > self.now {
            return self.at_time(ready, Event::Step(node, key));
        }
        let (itl, frames) = (self.scenario.nodes[node].itl, self.scenario.frames);
        let now = self.now;
        let Some(generation) = self.agents[node].generations.get_mut(&key) else {
            return;
        };
        if generation.detached_at.is_some_and(|t| now.since(t) > GRACE) {
            self.agents[node].generations.remove(&key);
            return;
        }
        let strike = generation.strike.take();
        let attempt = generation.attempt;
        match (strike, attempt) {
            (Some(Fault::EngineFails), Some(attempt)) => {
                self.agents[node].generations.remove(&key);
                let error = WireError::new(ErrorCode::EngineFailed, "failed");
                return self.send(node, attempt, GenFrame::Error(error));
            }
            (Some(Fault::EndsEarly), Some(attempt)) => {
                self.agents[node].generations.remove(&key);
                let at = self.arrival(node, attempt);
                return self.at_time(at, Event::CloseAtClient(attempt, Closed::Ended));
            }
            (Some(Fault::SkipsToken), _) => generation.next += 1,
            _ => {}
        }
        let Some(generation) = self.agents[node].generations.get_mut(&key) else {
            return;
        };
        let index = generation.next;
        if index >= frames {
            generation.done = true;
            if let Some(attempt) = attempt {
                self.send_done(node, attempt, index);
            }
            return;
        }
        generation.next += 1;
        generation.last_sent = now;
        if let Some(attempt) = attempt {
            let frame = self.token(node, index);
            self.send(node, attempt, frame);
        }
        self.at(itl, Event::Step(node, key));
    }

    fn send_done(&mut self, node: usize, attempt: AttemptId, frames: u32) {
        let usage = Usage {
            prompt_tokens: 1,
            completion_tokens: frames,
        };
        self.send(
            node,
            attempt,
            GenFrame::Done(Done {
                finish: FinishReason::Stop,
                usage,
                frames,
            }),
        );
    }

    /// Progress while nothing else was sent.
    fn beat(&mut self, node: usize, key: u64) {
        let agent = &self.agents[node];
        if agent.frozen_until > self.now {
            let at = agent.frozen_until;
            return self.at_time(at, Event::Beat(node, key));
        }
        let Some(generation) = agent.generations.get(&key).filter(|_| !agent.dead) else {
            return;
        };
        let (Some(attempt), false) = (generation.attempt, generation.done) else {
            return;
        };
        if self.now.since(generation.last_sent) >= PROGRESS_EVERY {
            let phase = Phase::Generating;
            self.send(
                node,
                attempt,
                GenFrame::Progress(Progress {
                    phase,
                    done: 0,
                    total: 0,
                }),
            );
        }
        self.at(PROGRESS_EVERY, Event::Beat(node, key));
    }

    /// When something that is sent now arrives: in order, late by jitter, and held while the
    /// path is cut.
    fn arrival(&mut self, node: usize, attempt: AttemptId) -> Mono {
        let model = &self.scenario.nodes[node];
        let jitter = model.jitter.mul_f64(self.rng.random::<f64>());
        let sent = self.now.max(self.agents[node].cut_until) + model.delay + jitter;
        match self.links.get_mut(&attempt) {
            Some((_, horizon)) => {
                *horizon = sent.max(*horizon + Duration::from_micros(1));
                *horizon
            }
            None => sent,
        }
    }

    fn send(&mut self, node: usize, attempt: AttemptId, frame: GenFrame) {
        let cut = &self.agents[node];
        if cut.cut_until > self.now && cut.cut_until.since(cut.cut_since) > IDLE {
            return; // The connection will have timed out before it heals.
        }
        let at = self.arrival(node, attempt);
        let life = self.agents[node].life;
        self.at_time(at, Event::ToClient(attempt, frame, life));
    }

    // ----- faults -----------------------------------------------------------------------

    fn fault(&mut self, node: usize, fault: Fault) {
        let now = self.now;
        match fault {
            Fault::Kill { restart } => self.kill(node, restart),
            Fault::Freeze(long) => {
                let agent = &mut self.agents[node];
                agent.frozen_until = agent.frozen_until.max(now + long);
                self.silent_for(node, long);
            }
            Fault::Cut(long) => {
                let agent = &mut self.agents[node];
                agent.cut_until = agent.cut_until.max(now + long);
                agent.cut_since = now;
                self.silent_for(node, long);
            }
            Fault::Hang(long) => {
                let agent = &mut self.agents[node];
                agent.hung_until = agent.hung_until.max(now + long);
            }
            Fault::Busy => self.agents[node].busy = true,
            Fault::EngineFails | Fault::EndsEarly | Fault::SkipsToken => {
                for generation in self.agents[node].generations.values_mut() {
                    generation.strike = Some(fault);
                }
            }
            Fault::Drain(long) => {
                self.agents[node].draining = true;
                let deadline_ms = u32::try_from(long.as_millis()).unwrap_or(u32::MAX);
                for attempt in self.attempts_at(node) {
                    self.send(node, attempt, GenFrame::Draining(Draining { deadline_ms }));
                }
                self.at(self.scenario.nodes[node].delay, Event::PeerGoing(node));
                self.at(long, Event::Leave(node));
            }
        }
    }

    fn kill(&mut self, node: usize, restart: Option<Duration>) {
        let now = self.now;
        let agent = &mut self.agents[node];
        agent.dead = true;
        agent.down_since.get_or_insert(now);
        agent.generations.clear();
        match restart {
            Some(after) => self.at(after, Event::Restart(node)),
            None => self.lose(node, IDLE),
        }
    }

    /// Its connections time out if the silence is longer than that; what runs there goes on,
    /// detached.
    fn silent_for(&mut self, node: usize, long: Duration) {
        if long <= IDLE {
            return;
        }
        let now = self.now;
        self.lose(node, IDLE);
        for generation in self.agents[node].generations.values_mut() {
            generation.attempt = None;
            generation.detached_at = Some(now);
        }
    }

    fn lose(&mut self, node: usize, after: Duration) {
        for attempt in self.attempts_at(node) {
            self.at(
                after,
                Event::CloseAtClient(attempt, Closed::Lost("lost".into())),
            );
        }
    }

    fn attempts_at(&self, node: usize) -> Vec<AttemptId> {
        self.links
            .iter()
            .filter(|(_, (n, _))| *n == node)
            .map(|(a, _)| *a)
            .collect()
    }

    fn finish(mut self) -> Report {
        let Some((_, last)) = self.report.outputs.last().cloned() else {
            self.violate("no event at all".into());
            return self.report;
        };
        if !terminal(&last) {
            self.violate(format!("no terminal event; the last is {last:?}"));
        }
        if matches!(last, Output::Done { .. }) {
            let frames = self.scenario.frames as usize;
            if self.delivered.len() != frames {
                let got = self.delivered.len();
                self.violate(format!("done with {got} of {frames} frames"));
            }
        }
        if self.scenario.deterministic {
            let count = u32::try_from(self.delivered.len()).unwrap_or(u32::MAX);
            let expected: String = (0..count).map(|i| text(self.scenario.seed, i)).collect();
            if expected != self.report.text {
                self.violate("the text differs from an uninterrupted run".into());
            }
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

/// The node id of the `node`th agent.
pub fn id_of(node: usize) -> NodeId {
    let mut id = [0; 32];
    id[0] = u8::try_from(node).unwrap_or(u8::MAX);
    NodeId(id)
}
