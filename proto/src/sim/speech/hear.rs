//! An utterance is spoken into a microphone, and transcribed.
//!
//! The transcript of the model's recognizer is the count of frames that it heard, so that what is
//! lost shows.

use super::{Agent, Fault, Queue, Report, Scenario, candidate, id_of};
use crate::session::{AttemptId, Closed};
use crate::speech::hear::{Config, Effect, Hear, Input, Output};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, DIAL, IDLE, PROGRESS_EVERY, TABLE_DOWN};
use crate::wire::{
    Draining, ErrorCode, HearAccepted, HearFrame, Missing, Partial, Phase, Progress, Transcript,
    WireError,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

enum Event {
    Speak(u32),
    Request(AttemptId),
    Frames(AttemptId, Vec<u32>),
    EndAtNode(AttemptId, u32),
    ResetAtNode(AttemptId),
    Beat(AttemptId),
    Transcribe(AttemptId),
    ToClient(AttemptId, HearFrame),
    Close(AttemptId, Closed),
    Fault(usize, Fault),
    Leave(usize),
    Going(usize),
    Wake,
    Cancel,
}

struct Job {
    node: usize,
    heard: BTreeSet<u32>,
    end: Option<u32>,
    strike: Option<Fault>,
}

struct World<'a> {
    scenario: &'a Scenario,
    rng: ChaCha8Rng,
    now: Mono,
    queue: Queue<Event>,
    agents: Vec<Agent>,
    hear: Hear,
    jobs: BTreeMap<AttemptId, Job>,
    links: BTreeMap<AttemptId, (usize, Mono)>,
    report: Report,
    frames: u32,
    ended_at: Mono,
    armed: Option<Mono>,
    terminal: bool,
}

/// Runs `scenario` to its end (or 120 virtual seconds) and checks the rules on the way.
pub fn run(scenario: &Scenario) -> Report {
    let frames = u32::try_from(scenario.chunks[0] / 200).unwrap_or(u32::MAX);
    let mut world = World {
        scenario,
        rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ 0xea5),
        now: Mono::ZERO,
        queue: Queue::new(),
        agents: scenario.nodes.iter().map(|_| Agent::default()).collect(),
        hear: Hear::new(Config::default(), Mono::ZERO),
        jobs: BTreeMap::new(),
        links: BTreeMap::new(),
        report: Report::default(),
        frames,
        ended_at: Mono::ZERO,
        armed: None,
        terminal: false,
    };
    for (node, model) in scenario.nodes.iter().enumerate() {
        for (at, fault) in &model.faults {
            world.after(*at, Event::Fault(node, *fault));
        }
    }
    if let Some(at) = scenario.cancel_at {
        world.after(at, Event::Cancel);
    }
    world.after(AUDIO_FRAME, Event::Speak(0));
    world.drain();
    while let Some((at, event)) = world.queue.pop() {
        if world.terminal || at > Mono::ZERO + Duration::from_secs(120) {
            break;
        }
        world.now = at;
        world.handle(event);
    }
    if !world.terminal {
        world.report.violate("no terminal event".into());
    }
    world.report.first_wait = world.now.since(world.ended_at);
    world.report
}

impl World<'_> {
    fn after(&mut self, after: Duration, event: Event) {
        self.queue.at(self.now + after, event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Speak(n) if n < self.frames => {
                self.input(Input::Sound(vec![1 + (n % 250) as u8; 40]));
                self.ended_at = self.now;
                self.after(AUDIO_FRAME, Event::Speak(n + 1));
            }
            Event::Speak(_) => {
                self.ended_at = self.now;
                self.input(Input::End);
            }
            Event::Request(attempt) => self.request(attempt),
            Event::Frames(attempt, frames) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.heard.extend(frames);
                    self.check(attempt);
                }
            }
            Event::EndAtNode(attempt, frames) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.end = Some(frames);
                    self.check(attempt);
                }
            }
            Event::ResetAtNode(attempt) => {
                self.jobs.remove(&attempt);
            }
            Event::Beat(attempt) => self.beat(attempt),
            Event::Transcribe(attempt) => self.transcribe(attempt),
            Event::ToClient(attempt, frame) => {
                if self.links.contains_key(&attempt) {
                    self.input(Input::Frame(attempt, frame));
                }
            }
            Event::Close(attempt, closed) => {
                if self.links.contains_key(&attempt) {
                    self.input(Input::Closed(attempt, closed));
                }
            }
            Event::Fault(node, fault) => self.fault(node, fault),
            Event::Leave(node) => self.kill(node),
            Event::Going(node) => self.input(Input::PeerGoing(id_of(node))),
            Event::Wake => self.input(Input::Wake),
            Event::Cancel => self.input(Input::Cancel),
        }
    }

    // ----- the client -------------------------------------------------------------------

    fn input(&mut self, input: Input) {
        self.hear.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.hear.poll() {
            match effect {
                Effect::Rank => self.rank(),
                Effect::Hedge if self.scenario.hedges => {
                    self.hear.handle(Input::Hedge, self.now);
                }
                Effect::Open { attempt, node, .. } => self.open(attempt, node.0[0].into()),
                Effect::Send(attempt, frames) => {
                    let all = frames.clone().all(|n| self.hear.sound().frame(n).is_some());
                    if !all {
                        self.report.violate(format!("{frames:?} are not there"));
                    }
                    self.travel(attempt, Event::Frames(attempt, frames.collect()));
                }
                Effect::Live(attempt, newest) => {
                    if self.rng.random_range(0..100) >= self.scenario.loss {
                        let both = [newest.checked_sub(2), Some(newest)];
                        let both = both.into_iter().flatten().collect();
                        self.travel(attempt, Event::Frames(attempt, both));
                    }
                }
                Effect::End(attempt, frames) => {
                    self.travel(attempt, Event::EndAtNode(attempt, frames));
                }
                Effect::Reset(attempt) => {
                    self.travel(attempt, Event::ResetAtNode(attempt));
                    self.links.remove(&attempt);
                }
                Effect::Emit(output) => self.emit(output),
                Effect::Hedge | Effect::Note(_) => {}
            }
        }
        let armed = self.armed.filter(|at| *at > self.now);
        if let Some(at) = self.hear.next_wake()
            && armed.is_none_or(|armed| at < armed)
        {
            let at = at.max(self.now + Duration::from_micros(1));
            self.armed = Some(at);
            self.queue.at(at, Event::Wake);
        }
    }

    fn rank(&mut self) {
        let now = self.now;
        let known_down = |a: &Agent| a.dead_since.is_some_and(|t| now.since(t) > TABLE_DOWN);
        let all = self.agents.iter().enumerate();
        let all = all.filter(|(_, a)| !known_down(a));
        let all = all.map(|(n, agent)| candidate(n, &self.scenario.nodes[n], agent));
        let all = all.collect();
        self.hear.handle(Input::Candidates(all), now);
    }

    fn open(&mut self, attempt: AttemptId, node: usize) {
        self.report.attempts += 1;
        self.links.insert(attempt, (node, self.now));
        if self.agents[node].dead_since.is_some() {
            let closed = Closed::Unreachable("dead".into());
            return self.after(DIAL, Event::Close(attempt, closed));
        }
        self.travel(attempt, Event::Request(attempt));
        self.hear.handle(Input::Opened(attempt), self.now);
    }

    fn travel(&mut self, attempt: AttemptId, event: Event) {
        if let Some((node, _)) = self.links.get(&attempt) {
            let delay = self.scenario.nodes[*node].delay;
            self.after(delay, event);
        }
    }

    fn emit(&mut self, output: Output) {
        if self.terminal {
            self.report.violate(format!("{output:?} after the end"));
        }
        match output {
            Output::PeerChanged { reason, .. } => self.report.changes.push(reason),
            Output::Final { transcript, .. } => {
                (self.terminal, self.report.done) = (true, true);
                self.report.end = "done".into();
                if transcript.text != self.frames.to_string() {
                    let rule = format!("{} of {} frames", transcript.text, self.frames);
                    self.report.violate(rule);
                }
            }
            Output::Failed { failure, .. } => {
                self.terminal = true;
                self.report.end = format!("{failure:?} ");
            }
            _ => {}
        }
    }

    // ----- the agents -------------------------------------------------------------------

    fn request(&mut self, attempt: AttemptId) {
        let Some((node, _)) = self.links.get(&attempt).copied() else {
            return;
        };
        let agent = &self.agents[node];
        if agent.dead_since.is_some() {
            return;
        }
        if agent.busy || agent.draining {
            let code = match agent.busy {
                true => ErrorCode::Busy,
                false => ErrorCode::Draining,
            };
            return self.send(attempt, node, HearFrame::Error(WireError::new(code, "no")));
        }
        let job = Job {
            node,
            heard: BTreeSet::new(),
            end: None,
            strike: None,
        };
        self.jobs.insert(attempt, job);
        let accepted = HearAccepted {
            engine: 0,
            digest: String::new(),
        };
        self.send(attempt, node, HearFrame::Accepted(accepted));
        self.after(PROGRESS_EVERY, Event::Beat(attempt));
    }

    /// Asks for what is missing, or transcribes.
    fn check(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let Some(end) = job.end else { return };
        let (node, lost) = (job.node, (0..end).find(|n| !job.heard.contains(n)));
        match lost {
            Some(from) => {
                let missing = Missing { from, to: from + 1 };
                self.send(attempt, node, HearFrame::Missing(missing));
            }
            None => self.after(self.scenario.nodes[node].first, Event::Transcribe(attempt)),
        }
    }

    fn transcribe(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get_mut(&attempt) else {
            return;
        };
        let (node, ready) = (job.node, self.agents[job.node].ready());
        if ready > self.now {
            return self.queue.at(ready, Event::Transcribe(attempt));
        }
        let frames = job.heard.len() as u32;
        let strike = job.strike.take();
        self.jobs.remove(&attempt);
        let frame = match strike {
            Some(Fault::EngineFails) => {
                HearFrame::Error(WireError::new(ErrorCode::EngineFailed, "failed"))
            }
            Some(Fault::EndsEarly) => {
                let at = self.arrival(attempt, node);
                return self.queue.at(at, Event::Close(attempt, Closed::Ended));
            }
            other => {
                let frames = frames - u32::from(other.is_some());
                HearFrame::Final(Transcript {
                    text: frames.to_string(),
                    language: String::new(),
                    words: Vec::new(),
                    confidence: None,
                    frames,
                })
            }
        };
        self.send(attempt, node, frame);
    }

    /// Progress, and now and then a partial.
    fn beat(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let (node, heard, asked) = (job.node, job.heard.len(), job.end.is_some());
        let agent = &self.agents[node];
        if agent.dead_since.is_some() {
            return;
        }
        if agent.frozen_until > self.now {
            return self.queue.at(agent.frozen_until, Event::Beat(attempt));
        }
        let partial = agent.ready() <= self.now && heard > 50 && self.rng.random_bool(0.2);
        let frame = match partial {
            true => HearFrame::Partial(Partial {
                text: heard.to_string(),
            }),
            false => HearFrame::Progress(Progress {
                phase: match asked {
                    true => Phase::Generating,
                    false => Phase::Prefilling,
                },
                done: 0,
                total: 0,
            }),
        };
        self.send(attempt, node, frame);
        self.after(PROGRESS_EVERY, Event::Beat(attempt));
    }

    fn arrival(&mut self, attempt: AttemptId, node: usize) -> Mono {
        let model = &self.scenario.nodes[node];
        let late = model.jitter.mul_f64(self.rng.random::<f64>());
        let at = self.now + model.delay + late;
        match self.links.get_mut(&attempt) {
            Some((_, last)) => {
                *last = at.max(*last + Duration::from_micros(1));
                *last
            }
            None => at,
        }
    }

    fn send(&mut self, attempt: AttemptId, node: usize, frame: HearFrame) {
        let at = self.arrival(attempt, node);
        self.queue.at(at, Event::ToClient(attempt, frame));
    }

    fn fault(&mut self, node: usize, fault: Fault) {
        match fault {
            Fault::Kill => self.kill(node),
            Fault::Freeze(long) => {
                self.agents[node].frozen_until = self.now + long;
                if long > IDLE {
                    self.lose(node);
                }
            }
            Fault::Hang(long) => self.agents[node].hung_until = self.now + long,
            Fault::Busy => self.agents[node].busy = true,
            Fault::Drain(long) => {
                self.agents[node].draining = true;
                let deadline_ms = long.as_millis() as u32;
                for attempt in self.at_node(node) {
                    let draining = Draining { deadline_ms };
                    self.send(attempt, node, HearFrame::Draining(draining));
                }
                self.after(Duration::from_millis(30), Event::Going(node));
                self.after(long, Event::Leave(node));
            }
            Fault::EngineFails | Fault::EndsEarly | Fault::Skips => {
                let jobs = self.jobs.values_mut().filter(|j| j.node == node);
                jobs.for_each(|j| j.strike = Some(fault));
            }
        }
    }

    fn kill(&mut self, node: usize) {
        self.agents[node].dead_since.get_or_insert(self.now);
        self.jobs.retain(|_, job| job.node != node);
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
