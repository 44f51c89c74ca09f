//! A text is spoken, and played as it comes.

use super::{Agent, Fault, Queue, Report, Scenario, candidate, id_of};
use crate::session::{AttemptId, Closed};
use crate::speech::speak::{Config, Effect, Input, Output, PACKET, SAMPLES_PER_MS, Speak, Speaker};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, DIAL, IDLE, PROGRESS_EVERY, SPEECH_LEAD, TABLE_DOWN};
use crate::wire::{
    Draining, ErrorCode, Grant, Phase, Progress, Sound, SpeakFrame, SpeechAccepted, SpeechDone,
    SpokenMark, WireError,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Duration;

const PRE_SKIP: u16 = 156;
const CHUNK_CHARS: u32 = 10;

enum Event {
    Request(AttemptId, u32, u32),
    Granted(AttemptId, Grant),
    ResetAtNode(AttemptId),
    Step(AttemptId),
    Beat(AttemptId),
    ToClient(AttemptId, SpeakFrame),
    Close(AttemptId, Closed),
    Fault(usize, Fault),
    Leave(usize),
    Going(usize),
    Play,
    Wake,
    Cancel,
}

/// What an agent speaks.
struct Job {
    node: usize,
    chunk: usize,
    packet: u64,
    at: u64,
    seq: u32,
    granted: u64,
    marked: bool,
    blocked: bool,
    last_sent: Mono,
    strike: Option<Fault>,
}

/// A packet that the caller has.
#[derive(Clone, Copy, Debug)]
struct Have {
    chunk: u8,
    packet: u16,
    start: u64,
}

/// The chunk that comes in.
#[derive(Default)]
struct Coming {
    start: u64,
    packets: u64,
    /// So many packets of it are there already.
    skip: u64,
}

struct World<'a> {
    scenario: &'a Scenario,
    rng: ChaCha8Rng,
    now: Mono,
    queue: Queue<Event>,
    agents: Vec<Agent>,
    speak: Speak,
    jobs: BTreeMap<AttemptId, Job>,
    /// The client's streams, and when their last frame arrives.
    links: BTreeMap<AttemptId, (usize, Mono)>,
    report: Report,
    have: Vec<Have>,
    coming: Coming,
    end: u64,
    played: u64,
    playing: bool,
    /// How often the player ran dry.
    dry: u64,
    starved_since: Mono,
    shift: Option<i64>,
    armed: Option<Mono>,
    terminal: bool,
}

/// Runs `scenario` to its end (or 300 virtual seconds) and checks the rules on the way.
pub fn run(scenario: &Scenario) -> Report {
    let text = "wordy text".repeat(scenario.chunks.len());
    let config = Config {
        other_voice: scenario.other_voice,
        ..Config::new(text)
    };
    let mut world = World {
        scenario,
        rng: ChaCha8Rng::seed_from_u64(scenario.seed ^ 0x5eed),
        now: Mono::ZERO,
        queue: Queue::new(),
        agents: scenario.nodes.iter().map(|_| Agent::default()).collect(),
        speak: Speak::new(config, Mono::ZERO),
        jobs: BTreeMap::new(),
        links: BTreeMap::new(),
        report: Report::default(),
        have: Vec::new(),
        coming: Coming::default(),
        end: 0,
        played: 0,
        playing: false,
        dry: 0,
        starved_since: Mono::ZERO,
        shift: None,
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
    world.after(AUDIO_FRAME, Event::Play);
    world.drain();
    while let Some((at, event)) = world.queue.pop() {
        if world.terminal || at > Mono::ZERO + Duration::from_secs(300) {
            break;
        }
        world.now = at;
        world.handle(event);
    }
    world.finish()
}

impl World<'_> {
    fn after(&mut self, after: Duration, event: Event) {
        self.queue.at(self.now + after, event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request(attempt, from, grant_ms) => self.request(attempt, from, grant_ms),
            Event::Granted(attempt, grant) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.granted = u64::from(grant.until_ms) * SAMPLES_PER_MS;
                    if std::mem::take(&mut job.blocked) {
                        self.after(Duration::ZERO, Event::Step(attempt));
                    }
                }
            }
            Event::ResetAtNode(attempt) => {
                self.jobs.remove(&attempt);
            }
            Event::Step(attempt) => self.step(attempt),
            Event::Beat(attempt) => self.beat(attempt),
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
            Event::Play => self.play(),
            Event::Wake => self.input(Input::Wake),
            Event::Cancel => self.input(Input::Cancel),
        }
    }

    // ----- the client -------------------------------------------------------------------

    fn input(&mut self, input: Input) {
        self.speak.handle(input, self.now);
        self.drain();
        if let Some(shift) = self.shift.take() {
            self.speak.handle(Input::Joined { shift }, self.now);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.speak.poll() {
            match effect {
                Effect::Rank => self.rank(),
                Effect::Hedge if self.scenario.hedges => {
                    self.speak.handle(Input::Hedge, self.now);
                }
                Effect::Open {
                    attempt,
                    node,
                    from,
                    grant_ms,
                    ..
                } => self.open(attempt, node.0[0].into(), from, grant_ms),
                Effect::Grant(attempt, grant) => {
                    let lead = u64::from(grant.until_ms - grant.played_ms) * SAMPLES_PER_MS;
                    if lead > 24 * SPEECH_LEAD.as_millis() as u64 * 2 {
                        self.report.violate(format!("a lead of {lead} samples"));
                    }
                    self.travel(attempt, Event::Granted(attempt, grant));
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
        if let Some(at) = self.speak.next_wake()
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
        let speakers = self.agents.iter().enumerate();
        let speakers = speakers.filter(|(_, a)| !known_down(a)).map(|(n, agent)| {
            let model = &self.scenario.nodes[n];
            Speaker {
                candidate: candidate(n, model, agent),
                voice: "v".into(),
                same: model.same_voice,
            }
        });
        let speakers = speakers.collect();
        self.speak.handle(Input::Candidates(speakers), now);
    }

    fn open(&mut self, attempt: AttemptId, node: usize, from: u32, grant_ms: u32) {
        self.report.attempts += 1;
        self.links.insert(attempt, (node, self.now));
        if self.agents[node].dead_since.is_some() {
            let closed = Closed::Unreachable("dead".into());
            return self.after(DIAL, Event::Close(attempt, closed));
        }
        self.travel(attempt, Event::Request(attempt, from, grant_ms));
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
            Output::Chunk { start, .. } => {
                let end = self.end;
                // A caller hears of a shift only after the events that were made with it.
                let off = match self.report.joins {
                    0 => 0,
                    _ => self.scenario.shift.unsigned_abs(),
                };
                if start.abs_diff(end) > off {
                    self.report
                        .violate(format!("a chunk at {start}, not {end}"));
                }
                self.coming = Coming {
                    start: self.end,
                    packets: 0,
                    skip: 0,
                };
            }
            Output::Join {
                start, keep_until, ..
            } => {
                self.report.joins += 1;
                if keep_until != self.end || start > self.played + 3 * PACKET {
                    self.report.violate("a joint at the wrong place".into());
                }
                let shift = match self.scenario.shift {
                    0 => 0,
                    most => self.rng.random_range(-most..=most),
                };
                self.shift = Some(shift);
                let last = self.have.last().map(|h| h.chunk);
                let there = self.have.iter().filter(|h| Some(h.chunk) == last);
                self.coming = Coming {
                    start: start.saturating_add_signed(shift),
                    packets: 0,
                    skip: there.count() as u64,
                };
            }
            Output::Sound(opus) => self.sound(&opus),
            Output::Whole { samples } => {
                self.end = (self.coming.start + samples).max(self.played);
            }
            Output::Cut { at } => {
                if at < self.played {
                    self.report
                        .violate(format!("cut at {at}, played {}", self.played));
                }
                self.have.retain(|h| h.start < at);
                self.end = at;
            }
            Output::PeerChanged {
                same_voice, reason, ..
            } => {
                self.report.changes.push(reason);
                if !same_voice && !self.scenario.other_voice {
                    self.report.violate("another voice".into());
                }
            }
            Output::Done { samples } => {
                let whole: u64 = self.scenario.chunks.iter().sum();
                let shifts = self.report.joins > 0 && self.scenario.shift > 0;
                // A player that ran dry has played what filled the last packet.
                let filling = PACKET * self.dry;
                if !(whole..=whole + filling).contains(&samples) && !shifts {
                    self.report.violate(format!("{samples} of {whole} samples"));
                }
                (self.terminal, self.report.done) = (true, true);
                self.report.end = "done".into();
            }
            Output::Failed { failure, whole } => {
                self.terminal = true;
                self.report.end = format!("{failure:?} at {whole}");
            }
            Output::Started { .. } | Output::Progress(_) => {}
        }
    }

    fn sound(&mut self, opus: &[u8]) {
        let &[chunk, low, high] = opus else {
            return self.report.violate("an unknown packet".into());
        };
        let begins = (self.coming.packets * PACKET).saturating_sub(PRE_SKIP.into());
        self.coming.packets += 1;
        let ends = (self.coming.packets * PACKET).saturating_sub(PRE_SKIP.into());
        let (start, end) = (self.coming.start + begins, self.coming.start + ends);
        // What was kept of a joined chunk is not taken again.
        if self.coming.packets > self.coming.skip {
            let packet = u16::from_le_bytes([low, high]);
            self.have.push(Have {
                chunk,
                packet,
                start,
            });
        }
        self.end = self.end.max(end);
    }

    /// Twenty milliseconds pass at the ear.
    fn play(&mut self) {
        let buffered = self.end.saturating_sub(self.played);
        let waited = self.now.since(self.starved_since);
        if !self.playing && buffered >= 4 * PACKET {
            self.playing = true;
            self.waited(waited);
        }
        if self.playing {
            let step = buffered.min(PACKET);
            self.played += step;
            if step == 0 {
                (self.playing, self.starved_since) = (false, self.now);
                self.dry += 1;
            }
            self.input(Input::Played(self.played));
        }
        self.after(AUDIO_FRAME, Event::Play);
    }

    fn waited(&mut self, waited: Duration) {
        let which = match self.played {
            0 => &mut self.report.first_wait,
            _ => &mut self.report.longest_wait,
        };
        *which = waited.max(*which);
    }

    fn finish(mut self) -> Report {
        if !self.terminal {
            self.report.violate("no terminal event".into());
        }
        if !self.playing {
            self.waited(self.now.since(self.starved_since));
        }
        // Packet after packet, chunk after chunk.
        let (mut chunk, mut packet) = (0, 0);
        for have in &self.have {
            let whole = packets(self.scenario.chunks[usize::from(chunk)]);
            if have.chunk == chunk + 1 && packet == whole {
                (chunk, packet) = (chunk + 1, 0);
            }
            if have.chunk != chunk || u64::from(have.packet) != packet {
                let rule = format!("{have:?} where {chunk}/{packet} of {whole} should be");
                self.report.violate(rule);
                break;
            }
            packet += 1;
        }
        let last = self.scenario.chunks.len() - 1;
        let complete = usize::from(chunk) == last && packet == packets(self.scenario.chunks[last]);
        if self.report.done && !complete {
            self.report.violate("the end is missing".into());
        }
        let chars = self.speak.spoken_until(u64::MAX);
        if self.report.done && chars as usize != CHUNK_CHARS as usize * (last + 1) {
            self.report
                .violate(format!("{chars} characters were spoken"));
        }
        self.report
    }

    // ----- the agents -------------------------------------------------------------------

    fn request(&mut self, attempt: AttemptId, from: u32, grant_ms: u32) {
        let Some((node, _)) = self.links.get(&attempt).copied() else {
            return;
        };
        let agent = &self.agents[node];
        if agent.dead_since.is_some() {
            return;
        }
        if agent.frozen_until > self.now {
            let at = agent.frozen_until;
            return self.queue.at(at, Event::Request(attempt, from, grant_ms));
        }
        if agent.busy || agent.draining {
            let code = match agent.busy {
                true => ErrorCode::Busy,
                false => ErrorCode::Draining,
            };
            return self.send(attempt, node, SpeakFrame::Error(WireError::new(code, "no")));
        }
        let accepted = SpeechAccepted {
            engine: 0,
            voice: "v".into(),
            same_voice: self.scenario.nodes[node].same_voice,
            pre_skip: PRE_SKIP,
        };
        self.send(attempt, node, SpeakFrame::Accepted(accepted));
        let job = Job {
            node,
            chunk: (from / CHUNK_CHARS) as usize,
            packet: 0,
            at: 0,
            seq: 0,
            granted: u64::from(grant_ms) * SAMPLES_PER_MS,
            marked: false,
            blocked: false,
            last_sent: self.now,
            strike: None,
        };
        self.jobs.insert(attempt, job);
        self.after(Duration::ZERO, Event::Step(attempt));
        self.after(PROGRESS_EVERY, Event::Beat(attempt));
    }

    fn step(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get_mut(&attempt) else {
            return;
        };
        let (node, agent) = (job.node, &self.agents[job.node]);
        if agent.dead_since.is_some() {
            return;
        }
        if agent.ready() > self.now {
            return self.queue.at(agent.ready(), Event::Step(attempt));
        }
        let model = &self.scenario.nodes[node];
        match job.strike.take() {
            Some(Fault::EngineFails) => {
                self.jobs.remove(&attempt);
                let error = WireError::new(ErrorCode::EngineFailed, "failed");
                return self.send(attempt, node, SpeakFrame::Error(error));
            }
            Some(Fault::EndsEarly) => {
                self.jobs.remove(&attempt);
                let at = self.arrival(attempt, node);
                return self.queue.at(at, Event::Close(attempt, Closed::Ended));
            }
            Some(_) => (job.packet, job.seq) = (job.packet + 1, job.seq + 1),
            None => {}
        }
        let Some(samples) = self.scenario.chunks.get(job.chunk).copied() else {
            let (frames, samples) = (job.seq, job.at);
            self.jobs.remove(&attempt);
            return self.send(
                attempt,
                node,
                SpeakFrame::Done(SpeechDone { frames, samples }),
            );
        };
        if !job.marked {
            job.marked = true;
            let from = job.chunk as u32 * CHUNK_CHARS;
            let (to, at) = (from + CHUNK_CHARS, job.at);
            self.send(attempt, node, SpeakFrame::Mark(SpokenMark { from, to, at }));
            return self.after(model.first, Event::Step(attempt));
        }
        if job.packet >= packets(samples) {
            (job.at, job.chunk) = (job.at + samples, job.chunk + 1);
            (job.packet, job.marked) = (0, false);
            return self.after(Duration::ZERO, Event::Step(attempt));
        }
        let begins = job.at + (job.packet * PACKET).saturating_sub(PRE_SKIP.into());
        if begins >= job.granted {
            job.blocked = true;
            return;
        }
        let [low, high] = (job.packet as u16).to_le_bytes();
        let opus = vec![job.chunk as u8, low, high];
        let seq = job.seq;
        (job.seq, job.packet) = (job.seq + 1, job.packet + 1);
        self.send(attempt, node, SpeakFrame::Sound(Sound { seq, opus }));
        self.after(AUDIO_FRAME.div_f64(model.speed), Event::Step(attempt));
    }

    /// Progress while nothing else was sent.
    fn beat(&mut self, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let (node, last_sent) = (job.node, job.last_sent);
        let agent = &self.agents[node];
        if agent.dead_since.is_some() {
            return;
        }
        if agent.frozen_until > self.now {
            return self.queue.at(agent.frozen_until, Event::Beat(attempt));
        }
        if self.now.since(last_sent) >= PROGRESS_EVERY {
            let progress = Progress {
                phase: Phase::Generating,
                done: 0,
                total: 0,
            };
            self.send(attempt, node, SpeakFrame::Progress(progress));
        }
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

    fn send(&mut self, attempt: AttemptId, node: usize, frame: SpeakFrame) {
        if let Some(job) = self.jobs.get_mut(&attempt) {
            job.last_sent = self.now;
        }
        let at = self.arrival(attempt, node);
        self.queue.at(at, Event::ToClient(attempt, frame));
    }

    fn fault(&mut self, node: usize, fault: Fault) {
        let until = |long| self.now + long;
        match fault {
            Fault::Kill => self.kill(node),
            Fault::Freeze(long) => {
                self.agents[node].frozen_until = until(long);
                if long > IDLE {
                    self.lose(node, IDLE);
                }
            }
            Fault::Hang(long) => self.agents[node].hung_until = until(long),
            Fault::Busy => self.agents[node].busy = true,
            Fault::Drain(long) => {
                self.agents[node].draining = true;
                let deadline_ms = long.as_millis() as u32;
                for attempt in self.at_node(node) {
                    let draining = Draining { deadline_ms };
                    self.send(attempt, node, SpeakFrame::Draining(draining));
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
        self.lose(node, IDLE);
    }

    fn lose(&mut self, node: usize, after: Duration) {
        for attempt in self.at_node(node) {
            let lost = Closed::Lost("lost".into());
            self.after(after, Event::Close(attempt, lost));
        }
    }

    fn at_node(&self, node: usize) -> Vec<AttemptId> {
        let links = self.links.iter().filter(|(_, (n, _))| *n == node);
        links.map(|(attempt, _)| *attempt).collect()
    }
}

fn packets(samples: u64) -> u64 {
    (samples + u64::from(PRE_SKIP)).div_ceil(PACKET)
}
