//! The client's side: the real session, and the rules that its outputs must keep.

use super::{Agent, Event, World, chunk, id_of, terminal};
use crate::ids::NodeId;
use crate::rank::{Candidate, Cost};
use crate::session::{AttemptId, Closed, Effect, How, Input, Note, Output};
use crate::timeouts::{IDLE, TABLE_DOWN};
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
                        let delay = self.scenario.nodes[node].delay;
                        self.at(delay, Event::ResetAtNode(node, attempt));
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
            if !prefix.starts_with(&self.delivered) {
                self.violate(format!(
                    "the prefix for {attempt:?} is not what was delivered"
                ));
            }
            self.prefixes.insert(node, prefix.clone());
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
            && !self.delivered.starts_with(prefix)
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
