//! The client's side: the real session, and the rules that its outputs must keep.

use super::{Agent, Event, World, begins, chunk, id_of, terminal};
use crate::ids::NodeId;
use crate::rank::{Candidate, Cost};
use crate::session::{AttemptId, Closed, Effect, How, Input, Note, Output};
use crate::time::Mono;
use crate::timeouts::{DIAL, IDLE, TABLE_DOWN};
use std::time::Duration;

impl World<'_> {
    pub(super) fn input(&mut self, input: Input) {
        self.session.handle(input, self.now);
        self.drain();
    }

    pub(super) fn drain(&mut self) {
        while let Some(effect) = self.session.poll() {
            match effect {
                Effect::Rank => self.rank(),
                Effect::Open {
                    attempt, node, how, ..
                } => self.open(attempt, node, how),
                Effect::Reset(attempt) => {
                    if let Some((node, _)) = self.links.remove(&attempt) {
                        self.travel(node, attempt, Event::ResetAtNode(node, attempt));
                    }
                }
                Effect::Emit(output) => self.emit(output),
                Effect::Hedge => {
                    if self.hedges.take() {
                        self.session.handle(Input::Hedge, self.now);
                    }
                }
                Effect::Note(note) => {
                    self.hedges.note(&note);
                    self.report.backups += u32::from(matches!(note, Note::Backup { .. }));
                }
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

    pub(super) fn rank(&mut self) {
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
                learned: self.scenario.learned,
                draining: agent.draining,
                reason: String::new(),
            });
        let candidates = candidates.collect();
        self.session.handle(Input::Candidates(candidates), now);
    }

    pub(super) fn open(&mut self, attempt: AttemptId, node: NodeId, how: How) {
        self.report.attempts += 1;
        let node = usize::from(node.0[0]);
        if let How::Generate(prefix) = &how {
            // In a handover it is what was delivered and what surely will be.
            if !begins(prefix, &self.delivered) {
                self.violate(format!(
                    "the prefix for {attempt:?} is not what was delivered"
                ));
            }
            self.prefixes.insert(node, prefix.clone());
        }
        self.links.insert(attempt, (node, self.now));
        if let How::Reattach { attach, .. } = how {
            let round_trip = self.scenario.nodes[node].delay * 2;
            return self.at(
                round_trip,
                Event::Dialed(node, attempt, How::Attach(attach)),
            );
        }
        if let Some((until, _)) = self.agents[node]
            .path
            .filter(|(until, _)| *until > self.now)
        {
            self.path_dies(node, attempt, until);
        }
        self.session.handle(Input::Opened(attempt), self.now);
        // A process that is gone is noticed by the connection's idle time-out, or at once by
        // a fresh dial.
        if self.agents[node].dead {
            self.at(
                IDLE,
                Event::CloseAtClient(attempt, Closed::Lost("idle".into())),
            );
        }
        self.travel(node, attempt, Event::ToNode(node, attempt, how));
    }

    /// A fresh connection to `node` is there, and is the one in use from now on; or nobody
    /// answered.
    pub(super) fn dialed(&mut self, node: usize, attempt: AttemptId, how: How) {
        if !self.links.contains_key(&attempt) {
            return;
        }
        let agent = &mut self.agents[node];
        if agent.dead || agent.cut_until.max(agent.frozen_until) > self.now {
            let closed = Closed::Unreachable("no answer".into());
            return self.at(DIAL, Event::CloseAtClient(attempt, closed));
        }
        agent.path = None;
        self.input(Input::Opened(attempt));
        self.travel(node, attempt, Event::ToNode(node, attempt, how));
    }

    /// Sends something to a node: later or never if its path is dead.
    pub(super) fn travel(&mut self, node: usize, attempt: AttemptId, event: Event) {
        let delay = self.scenario.nodes[node].delay;
        if let Some(at) = self.passes(attempt) {
            self.at_time(at + delay, event);
        }
    }

    /// From when on something passes on the path of `attempt`; `None` if it is lost before.
    pub(super) fn passes(&self, attempt: AttemptId) -> Option<Mono> {
        match self.dead_paths.get(&attempt) {
            Some((until, long)) if *until > self.now => (*long <= IDLE).then_some(*until),
            _ => Some(self.now),
        }
    }

    pub(super) fn emit(&mut self, output: Output) {
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
        if let Output::PeerChanged { to, .. } = &output
            && let Some(prefix) = self.prefixes.get(&usize::from(to.0[0]))
            && !begins(&self.delivered, prefix)
        {
            self.violate(format!("{to:?} goes on after something else"));
        }
        if terminal(&output) || matches!(output, Output::Token { .. }) {
            let wait = self.now.since(self.last_output);
            self.report.longest_wait = self.report.longest_wait.max(wait);
            self.last_output = self.now;
        }
        self.report.outputs.push((self.now, output));
    }

    pub(super) fn violate(&mut self, what: String) {
        self.report.violation.get_or_insert(what);
    }
}
