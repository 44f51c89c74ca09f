//! What the faults do to the agents and their paths.

use super::{Event, Fault, World};
use crate::session::{AttemptId, Closed};
use crate::time::Mono;
use crate::timeouts::IDLE;
use crate::wire::{Draining, GenFrame};
use std::time::Duration;

impl World<'_> {
    pub(super) fn fault(&mut self, node: usize, fault: Fault) {
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
            Fault::PathDies(long) => {
                let until = now + long;
                self.agents[node].path = Some((until, long));
                for attempt in self.attempts_at(node) {
                    self.path_dies(node, attempt, until);
                }
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

    pub(super) fn kill(&mut self, node: usize, restart: Option<Duration>) {
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
    pub(super) fn silent_for(&mut self, node: usize, long: Duration) {
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

    /// The path of `attempt` is dead until then. If that is too long for its connection, both
    /// sides notice.
    pub(super) fn path_dies(&mut self, node: usize, attempt: AttemptId, until: Mono) {
        let long = until.since(self.now);
        self.dead_paths.insert(attempt, (until, long));
        if long > IDLE {
            let lost = Closed::Lost("idle".into());
            self.at(IDLE, Event::CloseAtClient(attempt, lost));
            self.at(IDLE, Event::Detach(node, attempt));
        }
    }

    pub(super) fn detach(&mut self, node: usize, attempt: AttemptId) {
        let now = self.now;
        for generation in self.agents[node].generations.values_mut() {
            if generation.attempt == Some(attempt) {
                generation.attempt = None;
                generation.detached_at = Some(now);
            }
        }
    }

    pub(super) fn lose(&mut self, node: usize, after: Duration) {
        for attempt in self.attempts_at(node) {
            self.at(
                after,
                Event::CloseAtClient(attempt, Closed::Lost("lost".into())),
            );
        }
    }

    pub(super) fn attempts_at(&self, node: usize) -> Vec<AttemptId> {
        self.links
            .iter()
            .filter(|(_, (n, _))| *n == node)
            .map(|(a, _)| *a)
            .collect()
    }
}
