//! What both directions have in common: the time, the client's streams, the agents and their
//! faults, and a caller that looks away.
//!
//! A direction is a [`Side`]: its client's machine, what its agents do, and what its caller must
//! see. [`run`] plays a [`Scenario`] with it.

use super::{Agent, Fault, Node, Queue, Report, Scenario, id_of};
use crate::ids::NodeId;
use crate::rank::{Candidate, Cost};
use crate::session::{AttemptId, Closed};
use crate::speech::Failure;
use crate::time::Mono;
use crate::timeouts::{DIAL, IDLE, TABLE_DOWN};
use crate::wire::{Draining, ErrorCode, WireError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Duration;

/// The least time.
const TICK: Duration = Duration::from_micros(1);

/// One direction of speech.
pub(super) trait Side: Sized {
    /// What its agents send.
    type Frame;
    /// What happens in it alone.
    type Own;

    /// Hands the client's machine what happened, and does what it wants.
    fn told(&mut self, net: &mut Net<'_, Self>, said: Said<Self::Frame>);

    /// Something happens in it alone.
    fn own(&mut self, net: &mut Net<'_, Self>, own: Self::Own);

    /// The caller does it, and not while it looks away.
    fn is_callers(own: &Self::Own) -> bool;

    /// The frame of an agent that leaves.
    fn draining(draining: Draining) -> Self::Frame;

    /// The agent of this attempt drops its work.
    fn reset(&mut self, attempt: AttemptId);

    /// This agent loses all its work.
    fn lose_work(&mut self, node: usize);

    /// This agent's engine fails so at the next step of all its work.
    fn strike(&mut self, node: usize, fault: Fault);
}

/// What a client's machine hears of.
pub(super) enum Said<F> {
    Frame(AttemptId, F),
    Closed(AttemptId, Closed),
    Going(NodeId),
    Late(bool),
    Wake,
    Cancel,
    Leave,
}

enum Event<F, O> {
    Own(O),
    ToClient(AttemptId, F),
    Close(AttemptId, Closed),
    ResetAtNode(AttemptId),
    Fault(usize, Fault),
    /// The agent is gone.
    Gone(usize),
    /// The client hears that it goes.
    Going(usize),
    Wake,
    Cancel,
    Leave,
    /// The caller does not look for so long; it looks again; it has read all that came meanwhile.
    Away(Duration),
    Back,
    CaughtUp,
}

/// All but the direction.
pub(super) struct Net<'a, S: Side> {
    pub scenario: &'a Scenario,
    pub rng: ChaCha8Rng,
    pub now: Mono,
    pub agents: Vec<Agent>,
    pub report: Report,
    /// Something was delivered.
    pub begun: bool,
    queue: Queue<Event<S::Frame, S::Own>>,
    /// The client's streams, and when their last frame arrives.
    links: BTreeMap<AttemptId, (usize, Mono)>,
    armed: Option<Mono>,
    away_until: Mono,
    left: bool,
    terminal: bool,
}

impl<'a, S: Side> Net<'a, S> {
    /// Before anything happens; `salt` tells the directions of one scenario apart.
    pub fn new(scenario: &'a Scenario, salt: u64) -> Self {
        let mut net = Net {
            scenario,
            rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ salt),
            now: Mono::ZERO,
            agents: scenario.nodes.iter().map(|_| Agent::default()).collect(),
            report: Report::default(),
            begun: false,
            queue: Queue::new(),
            links: BTreeMap::new(),
            armed: None,
            away_until: Mono::ZERO,
            left: false,
            terminal: false,
        };
        for (node, model) in scenario.nodes.iter().enumerate() {
            for (at, fault) in &model.faults {
                net.after(*at, Event::Fault(node, *fault));
            }
        }
        if let Some(at) = scenario.cancel_at {
            net.after(at, Event::Cancel);
        }
        if let Some(at) = scenario.leave_at {
            net.after(at, Event::Leave);
        }
        for (at, long) in &scenario.pauses {
            net.after(*at, Event::Away(*long));
        }
        net
    }

    fn after(&mut self, after: Duration, event: Event<S::Frame, S::Own>) {
        self.queue.at(self.now + after, event);
    }

    /// It happens after so long.
    pub fn soon(&mut self, after: Duration, own: S::Own) {
        self.after(after, Event::Own(own));
    }

    /// It happens then.
    pub fn at(&mut self, at: Mono, own: S::Own) {
        self.queue.at(at, Event::Own(own));
    }

    // ----- the client's streams ---------------------------------------------------------

    /// The client opens a stream; whether anybody is there.
    pub fn open(&mut self, attempt: AttemptId, node: usize) -> bool {
        self.report.attempts += 1;
        self.links.insert(attempt, (node, self.now));
        let alive = self.agents[node].dead_since.is_none();
        if !alive {
            let closed = Closed::Unreachable("dead".into());
            self.after(DIAL, Event::Close(attempt, closed));
        }
        alive
    }

    /// It happens at the attempt's agent, a way from here.
    pub fn travel(&mut self, attempt: AttemptId, own: S::Own) {
        self.travels(attempt, Event::Own(own));
    }

    /// The client resets a stream.
    pub fn reset(&mut self, attempt: AttemptId) {
        self.travels(attempt, Event::ResetAtNode(attempt));
        self.links.remove(&attempt);
    }

    fn travels(&mut self, attempt: AttemptId, event: Event<S::Frame, S::Own>) {
        if let Some(node) = self.node(attempt) {
            self.after(self.scenario.nodes[node].delay, event);
        }
    }

    /// The agent of a stream.
    pub fn node(&self, attempt: AttemptId) -> Option<usize> {
        self.links.get(&attempt).map(|(node, _)| *node)
    }

    /// An agent sends a frame.
    pub fn send(&mut self, attempt: AttemptId, node: usize, frame: S::Frame) {
        let at = self.arrival(attempt, node);
        self.queue.at(at, Event::ToClient(attempt, frame));
    }

    /// An agent ends a stream without a last frame.
    pub fn end_early(&mut self, attempt: AttemptId, node: usize) {
        let at = self.arrival(attempt, node);
        self.queue.at(at, Event::Close(attempt, Closed::Ended));
    }

    fn arrival(&mut self, attempt: AttemptId, node: usize) -> Mono {
        let model = &self.scenario.nodes[node];
        let late = model.jitter.mul_f64(self.rng.random::<f64>());
        let at = self.now + model.delay + late;
        match self.links.get_mut(&attempt) {
            Some((_, last)) => {
                *last = at.max(*last + TICK);
                *last
            }
            None => at,
        }
    }

    /// The machine wants to be woken then.
    pub fn arm(&mut self, wake: Option<Mono>) {
        let armed = self.armed.filter(|at| *at > self.now);
        if let Some(at) = wake
            && armed.is_none_or(|armed| at < armed)
        {
            let at = at.max(self.now + TICK);
            self.armed = Some(at);
            self.queue.at(at, Event::Wake);
        }
    }

    /// The agents that the peer table does not know to be down, in order.
    pub fn candidates(&self) -> impl Iterator<Item = (&Node, Candidate)> {
        let down = |a: &Agent| a.dead_since.is_some_and(|t| self.now.since(t) > TABLE_DOWN);
        let all = self.scenario.nodes.iter().zip(&self.agents).enumerate();
        let all = all.filter(move |(_, (_, agent))| !down(agent));
        all.map(|(n, (model, agent))| (model, candidate(n, model, agent)))
    }

    /// What an agent answers that takes nothing.
    pub fn refusal(&self, node: usize) -> Option<WireError> {
        let agent = &self.agents[node];
        let code = match (agent.busy, agent.draining) {
            (true, _) => ErrorCode::Busy,
            (_, true) => ErrorCode::Draining,
            _ => return None,
        };
        Some(WireError::new(code, "no"))
    }

    // ----- the end ----------------------------------------------------------------------

    /// The caller was told something: not after the end.
    pub fn emitted(&mut self, output: &impl std::fmt::Debug) {
        if self.terminal {
            self.report.violate(format!("{output:?} after the end"));
        }
    }

    /// It was completed.
    pub fn done(&mut self) {
        (self.terminal, self.report.done) = (true, true);
        self.report.end = "done".into();
    }

    /// It was not; `rest` is for people.
    pub fn failed(&mut self, failure: &Failure, rest: &str) {
        self.terminal = true;
        self.report.end = format!("{failure:?} {rest}");
        self.report.failed(failure, self.left, self.begun);
    }

    // ----- faults -----------------------------------------------------------------------

    fn fault(&mut self, side: &mut S, node: usize, fault: Fault) {
        let until = |long| self.now + long;
        match fault {
            Fault::Kill => self.kill(side, node),
            Fault::Freeze(long) => {
                self.agents[node].frozen_until = until(long);
                if long > IDLE {
                    self.lose(node);
                }
            }
            Fault::Hang(long) => self.agents[node].hung_until = until(long),
            Fault::Busy => self.agents[node].busy = true,
            Fault::Drain(long) => {
                self.agents[node].draining = true;
                let deadline_ms = long.as_millis() as u32;
                for attempt in self.at_node(node) {
                    self.send(attempt, node, S::draining(Draining { deadline_ms }));
                }
                self.after(Duration::from_millis(30), Event::Going(node));
                self.after(long, Event::Gone(node));
            }
            Fault::EngineFails | Fault::EndsEarly | Fault::Skips => side.strike(node, fault),
        }
    }

    fn kill(&mut self, side: &mut S, node: usize) {
        self.agents[node].dead_since.get_or_insert(self.now);
        side.lose_work(node);
        self.lose(node);
    }

    fn lose(&mut self, node: usize) {
        for attempt in self.at_node(node) {
            let lost = Closed::Lost("lost".into());
            self.after(IDLE, Event::Close(attempt, lost));
        }
    }

    fn at_node(&self, node: usize) -> Vec<AttemptId> {
        let links = self.links.iter().filter(|(_, (n, _))| *n == node);
        links.map(|(attempt, _)| *attempt).collect()
    }
}

/// Plays the scenario to its end, or for so long.
pub(super) fn run<S: Side>(net: &mut Net<'_, S>, side: &mut S, limit: Duration) {
    while let Some((at, event)) = net.queue.pop() {
        if net.terminal || at > Mono::ZERO + limit {
            break;
        }
        net.now = at;
        happens(net, side, event);
    }
    if !net.terminal {
        net.report.violate("no terminal event".into());
    }
}

fn happens<S: Side>(net: &mut Net<'_, S>, side: &mut S, event: Event<S::Frame, S::Own>) {
    if net.now < net.away_until {
        match &event {
            Event::ToClient(..) | Event::Close(..) | Event::Going(_) => {
                return net.queue.at(net.away_until, event);
            }
            Event::Own(own) if S::is_callers(own) => return net.queue.at(net.away_until, event),
            // What came is read before the clock is looked at.
            Event::Wake => return net.queue.at(net.away_until + TICK * 2, event),
            _ => {}
        }
    }
    let said = match event {
        Event::Own(own) => return side.own(net, own),
        Event::ResetAtNode(attempt) => return side.reset(attempt),
        Event::Fault(node, fault) => return net.fault(side, node, fault),
        Event::Gone(node) => return net.kill(side, node),
        Event::Away(long) => {
            net.away_until = net.now + long;
            net.queue.at(net.away_until, Event::Back);
            return net.queue.at(net.away_until + TICK, Event::CaughtUp);
        }
        Event::ToClient(attempt, _) | Event::Close(attempt, _) if net.node(attempt).is_none() => {
            return;
        }
        Event::ToClient(attempt, frame) => Said::Frame(attempt, frame),
        Event::Close(attempt, closed) => Said::Closed(attempt, closed),
        Event::Going(node) => Said::Going(id_of(node)),
        Event::Wake => Said::Wake,
        Event::Cancel => Said::Cancel,
        Event::Leave => {
            net.left = true;
            Said::Leave
        }
        Event::Back => Said::Late(true),
        Event::CaughtUp => Said::Late(false),
    };
    side.told(net, said);
}

fn candidate(node: usize, model: &Node, agent: &Agent) -> Candidate {
    Candidate {
        node: id_of(node),
        engine: 0,
        model: "m".into(),
        digest: String::new(),
        token_ids: false,
        cost: Cost::default(),
        expected_ttft: model.first,
        expected_itl: Duration::from_millis(20).div_f64(model.speed),
        learned: Default::default(),
        draining: agent.draining,
        reason: String::new(),
    }
}
