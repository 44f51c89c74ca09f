//! The agents: generations, journals, progress, in-order links.

use super::{Event, Fault, Generation, World, chunk, text};
use crate::ids::GenerationId;
use crate::session::{AttemptId, Closed, How};
use crate::stops::Stops;
use crate::time::Mono;
use crate::timeouts::{GRACE, IDLE, PROGRESS_EVERY};
use crate::wire::{
    Accepted, Chunk, Done, ErrorCode, FinishReason, GenFrame, Phase, Progress, Token, Usage,
    WireError,
};
use rand::Rng;
use std::collections::VecDeque;
use std::time::Duration;

impl World<'_> {
    pub(super) fn open_at_node(&mut self, node: usize, attempt: AttemptId, how: How) {
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
            How::Attach(attach) | How::Reattach { attach, .. } => {
                self.attach(node, attempt, attach.generation, attach.have)
            }
        }
    }

    pub(super) fn start(&mut self, node: usize, attempt: AttemptId, prefix: Vec<Chunk>) {
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
        // A piece without ids was cut before a stop sequence: its token is made again, and what
        // it still has comes first.
        let cut = prefix.last().filter(|c| c.ids.is_empty());
        let stop = self.scenario.stop.as_slice();
        let generation = Generation {
            id: GenerationId(bytes),
            base,
            made: base - u32::from(cut.is_some()),
            cut: cut.map_or(0, |c| c.text.len()),
            skipped: 0,
            frames: Vec::new(),
            stops: Stops::new(stop, &prefix),
            attempt: Some(attempt),
            detached_at: None,
            done: false,
            last_sent: self.now,
            prefix,
            strike: None,
        };
        let ttft = self.first_token(node, &generation.prefix);
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
        self.report.generations += 1;
        self.send(node, attempt, GenFrame::Accepted(accepted));
        self.at(ttft, Event::Step(node, key));
        self.at(PROGRESS_EVERY, Event::Beat(node, key));
    }

    /// The time to the first token: of a prompt that the KV cache holds only what is new is
    /// read, eight tokens in the time of one, and then one is made.
    fn first_token(&self, node: usize, prefix: &[Chunk]) -> Duration {
        let model = &self.scenario.nodes[node];
        let Some(cache) = &self.agents[node].cache else {
            return model.ttft;
        };
        let known = prefix.iter().zip(cache).take_while(|(a, b)| a == b).count();
        let new = u32::try_from(prefix.len() - known).unwrap_or(u32::MAX);
        (model.itl + model.itl * new / 8).min(model.ttft)
    }

    pub(super) fn attach(&mut self, node: usize, attempt: AttemptId, id: GenerationId, have: u32) {
        let found = self.agents[node]
            .generations
            .iter_mut()
            .find(|(_, g)| g.id == id);
        let Some((key, generation)) = found.filter(|(_, g)| have >= g.base && have <= g.next())
        else {
            let error = WireError::new(ErrorCode::UnknownGeneration, "gone");
            return self.send(node, attempt, GenFrame::Error(error));
        };
        let superseded = generation.attempt.replace(attempt);
        generation.detached_at = None;
        let (key, next, done) = (*key, generation.next(), generation.done);
        let later = |t: &&Token| t.index >= have;
        let missing: Vec<Token> = generation.frames.iter().filter(later).cloned().collect();
        if let Some(old) = superseded.filter(|old| *old != attempt)
            && self.passes(old).is_some()
        {
            let at = self.arrival(node, old);
            let lost = Closed::Lost("superseded".into());
            self.at_time(at, Event::CloseAtClient(old, lost));
        }
        for token in missing {
            self.send(node, attempt, GenFrame::Token(token));
        }
        if done {
            self.send_done(node, attempt, next);
        }
        self.at(PROGRESS_EVERY, Event::Beat(node, key));
    }

    pub(super) fn token(&self, node: usize, index: u32) -> Chunk {
        let seed = self.scenario.seed;
        let seed = if self.scenario.deterministic {
            seed
        } else {
            seed + 1 + node as u64
        };
        chunk(text(seed, index), index)
    }

    /// The engine makes its next token.
    pub(super) fn step(&mut self, node: usize, key: u64) {
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
            // Behind the last token there is nothing to skip.
            (Some(Fault::SkipsToken), _) if generation.made < frames => {
                generation.made += 1;
                generation.skipped += 1;
            }
            _ => {}
        }
        let made = generation.made;
        let token = (made < frames).then(|| self.token(node, made));
        let Some(generation) = self.agents[node].generations.get_mut(&key) else {
            return;
        };
        let read = std::mem::take(&mut generation.prefix);
        let mut out = VecDeque::new();
        match token.clone() {
            Some(mut chunk) => {
                generation.made += 1;
                chunk.text.drain(..std::mem::take(&mut generation.cut));
                generation.done = generation.stops.push(chunk, String::new(), &mut out);
            }
            None => {
                generation.stops.end(&mut out);
                generation.done = true;
            }
        }
        let fresh = generation.keep(out);
        if !fresh.is_empty() {
            generation.last_sent = now;
        }
        let (next, done) = (generation.next(), generation.done);
        if let Some(made) = token {
            let cache = &mut self.agents[node].cache;
            let first = cache.is_none() || !read.is_empty();
            let mut known = if first { Some(read) } else { cache.take() };
            known.get_or_insert_default().push(made);
            *cache = known;
        }
        if let Some(attempt) = attempt {
            for token in fresh {
                self.send(node, attempt, GenFrame::Token(token));
            }
            if done {
                self.send_done(node, attempt, next);
            }
        }
        if !done {
            self.at(itl, Event::Step(node, key));
        }
    }

    pub(super) fn send_done(&mut self, node: usize, attempt: AttemptId, frames: u32) {
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
    pub(super) fn beat(&mut self, node: usize, key: u64) {
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
    pub(super) fn arrival(&mut self, node: usize, attempt: AttemptId) -> Mono {
        let model = &self.scenario.nodes[node];
        let jitter = model.jitter.mul_f64(self.rng.random::<f64>());
        let passes = self.passes(attempt).unwrap_or(self.now);
        let sent = passes.max(self.agents[node].cut_until) + model.delay + jitter;
        match self.links.get_mut(&attempt) {
            Some((_, horizon)) => {
                *horizon = sent.max(*horizon + Duration::from_micros(1));
                *horizon
            }
            None => sent,
        }
    }

    pub(super) fn send(&mut self, node: usize, attempt: AttemptId, frame: GenFrame) {
        let cut = &self.agents[node];
        if cut.cut_until > self.now && cut.cut_until.since(cut.cut_since) > IDLE {
            return; // The connection will have timed out before it heals.
        }
        if self.passes(attempt).is_none() {
            return;
        }
        let at = self.arrival(node, attempt);
        let life = self.agents[node].life;
        self.at_time(at, Event::ToClient(attempt, frame, life));
    }
}
