//! A text is spoken, and played as it comes.

use super::net::{Net, Said, Side, run as drive};
use super::player::{PRE_SKIP, Player, packets};
use super::{Fault, Report, Scenario};
use crate::session::AttemptId;
use crate::speech::speak::{Config, Effect, Input, Output, PACKET, SAMPLES_PER_MS, Speak, Speaker};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, PROGRESS_EVERY, SPEECH_LEAD};
use crate::wire::{
    Draining, ErrorCode, Grant, Phase, Progress, Sound, SpeakFrame, SpeechAccepted, SpeechDone,
    SpokenMark, WireError,
};
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

const CHUNK_CHARS: u32 = 10;

enum Own {
    Request(AttemptId, u32, u32),
    Granted(AttemptId, Grant),
    Step(AttemptId),
    Beat(AttemptId),
    Play,
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

struct World {
    speak: Speak,
    jobs: BTreeMap<AttemptId, Job>,
    player: Player,
    shift: Option<i64>,
}

/// Runs `scenario` to its end (or 300 virtual seconds) and checks the rules on the way.
pub fn run(scenario: &Scenario) -> Report {
    let text = "wordy text".repeat(scenario.chunks.len());
    let config = Config {
        other_voice: scenario.other_voice,
        ..Config::new(text)
    };
    let mut net = Net::new(scenario, 0x5eed);
    let mut world = World {
        speak: Speak::new(config, Mono::ZERO),
        jobs: BTreeMap::new(),
        player: Player::default(),
        shift: None,
    };
    net.soon(AUDIO_FRAME, Own::Play);
    world.drain(&mut net);
    drive(&mut net, &mut world, Duration::from_secs(300));
    world.finish(net)
}

impl Side for World {
    type Frame = SpeakFrame;
    type Own = Own;

    fn told(&mut self, net: &mut Net<'_, Self>, said: Said<SpeakFrame>) {
        let input = match said {
            Said::Frame(attempt, frame) => Input::Frame(attempt, frame),
            Said::Closed(attempt, closed) => Input::Closed(attempt, closed),
            Said::Going(node) => Input::PeerGoing(node),
            Said::Late(late) => Input::Late(late),
            Said::Wake => Input::Wake,
            Said::Cancel => Input::Cancel,
            Said::Leave => Input::Leave,
        };
        self.input(net, input);
    }

    fn own(&mut self, net: &mut Net<'_, Self>, own: Own) {
        match own {
            Own::Request(attempt, from, grant_ms) => self.request(net, attempt, from, grant_ms),
            Own::Granted(attempt, grant) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.granted = u64::from(grant.until_ms) * SAMPLES_PER_MS;
                    if std::mem::take(&mut job.blocked) {
                        net.soon(Duration::ZERO, Own::Step(attempt));
                    }
                }
            }
            Own::Step(attempt) => self.step(net, attempt),
            Own::Beat(attempt) => self.beat(net, attempt),
            Own::Play => self.play(net),
        }
    }

    fn is_callers(own: &Own) -> bool {
        matches!(own, Own::Play)
    }

    fn draining(draining: Draining) -> SpeakFrame {
        SpeakFrame::Draining(draining)
    }

    fn reset(&mut self, attempt: AttemptId) {
        self.jobs.remove(&attempt);
    }

    fn lose_work(&mut self, node: usize) {
        self.jobs.retain(|_, job| job.node != node);
    }

    fn strike(&mut self, node: usize, fault: Fault) {
        let jobs = self.jobs.values_mut().filter(|j| j.node == node);
        jobs.for_each(|j| j.strike = Some(fault));
    }
}

impl World {
    // ----- the client -------------------------------------------------------------------

    fn input(&mut self, net: &mut Net<'_, Self>, input: Input) {
        self.speak.handle(input, net.now);
        self.drain(net);
        if let Some(shift) = self.shift.take() {
            self.speak.handle(Input::Joined { shift }, net.now);
            self.drain(net);
        }
    }

    fn drain(&mut self, net: &mut Net<'_, Self>) {
        while let Some(effect) = self.speak.poll() {
            match effect {
                Effect::Rank => self.rank(net),
                Effect::Hedge if net.scenario.hedges => {
                    self.speak.handle(Input::Hedge, net.now);
                }
                Effect::Open {
                    attempt,
                    node,
                    from,
                    grant_ms,
                    ..
                } => {
                    if net.open(attempt, node.0[0].into()) {
                        net.travel(attempt, Own::Request(attempt, from, grant_ms));
                    }
                }
                Effect::Grant(attempt, grant) => {
                    let lead = u64::from(grant.until_ms - grant.played_ms) * SAMPLES_PER_MS;
                    if lead > 24 * SPEECH_LEAD.as_millis() as u64 * 2 {
                        net.report.violate(format!("a lead of {lead} samples"));
                    }
                    net.travel(attempt, Own::Granted(attempt, grant));
                }
                Effect::Reset(attempt) => net.reset(attempt),
                Effect::Emit(output) => self.emit(net, output),
                Effect::Note(note) => net.report.note(&note),
                Effect::Hedge => {}
            }
        }
        net.arm(self.speak.next_wake());
    }

    fn rank(&mut self, net: &Net<'_, Self>) {
        let speakers = net.candidates().map(|(model, candidate)| Speaker {
            candidate,
            voice: "v".into(),
            same: model.same_voice,
        });
        let speakers = speakers.collect();
        self.speak.handle(Input::Candidates(speakers), net.now);
    }

    fn emit(&mut self, net: &mut Net<'_, Self>, output: Output) {
        net.emitted(&output);
        match output {
            Output::Chunk { start, .. } => {
                let end = self.player.end;
                // A caller hears of a shift only after the events that were made with it.
                let off = match net.report.joins {
                    0 => 0,
                    _ => net.scenario.shift.unsigned_abs(),
                };
                if start.abs_diff(end) > off {
                    net.report.violate(format!("a chunk at {start}, not {end}"));
                }
                self.player.begin();
            }
            Output::Join {
                start, keep_until, ..
            } => {
                net.report.joins += 1;
                if keep_until != self.player.end || start > self.player.played + 3 * PACKET {
                    net.report.violate("a joint at the wrong place".into());
                }
                let shift = match net.scenario.shift {
                    0 => 0,
                    most => net.rng.random_range(-most..=most),
                };
                self.shift = Some(shift);
                self.player.begin_anew(start.saturating_add_signed(shift));
            }
            Output::Sound(opus) => {
                net.begun = true;
                if !self.player.sound(&opus) {
                    net.report.violate("an unknown packet".into());
                }
            }
            Output::Whole { samples } => self.player.whole(samples),
            Output::Cut { at } => {
                let played = self.player.played;
                if at < played {
                    net.report.violate(format!("cut at {at}, played {played}"));
                }
                self.player.cut(at);
            }
            Output::PeerChanged {
                same_voice, reason, ..
            } => {
                net.report.changes.push(reason);
                if !same_voice && !net.scenario.other_voice {
                    net.report.violate("another voice".into());
                }
            }
            Output::Done { samples } => {
                let whole: u64 = net.scenario.chunks.iter().sum();
                let shifts = net.report.joins > 0 && net.scenario.shift > 0;
                // A player that ran dry has played what filled the last packet.
                let filling = PACKET * self.player.dry;
                if !(whole..=whole + filling).contains(&samples) && !shifts {
                    net.report.violate(format!("{samples} of {whole} samples"));
                }
                net.done();
            }
            Output::Failed { failure, whole } => {
                let heard = self.speak.spoken_until(self.player.end);
                if heard < whole {
                    net.report
                        .violate(format!("{whole} said, {heard} delivered"));
                }
                net.failed(&failure, &format!("at {whole}"));
            }
            Output::Started { .. } | Output::Progress(_) => {}
        }
    }

    /// Twenty milliseconds pass at the ear.
    fn play(&mut self, net: &mut Net<'_, Self>) {
        if self.player.play(&mut net.report, net.now) {
            self.input(net, Input::Played(self.player.played));
        }
        net.soon(AUDIO_FRAME, Own::Play);
    }

    fn finish(self, mut net: Net<'_, Self>) -> Report {
        self.player.waited(&mut net.report, net.now);
        let complete = self.player.check(&mut net.report, net.scenario);
        if net.report.done && !complete {
            net.report.violate("the end is missing".into());
        }
        let all = CHUNK_CHARS as usize * net.scenario.chunks.len();
        let chars = self.speak.spoken_until(u64::MAX);
        if net.report.done && chars as usize != all {
            net.report
                .violate(format!("{chars} characters were spoken"));
        }
        net.report
    }

    // ----- the agents -------------------------------------------------------------------

    fn request(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId, from: u32, grant_ms: u32) {
        let Some(node) = net.node(attempt) else {
            return;
        };
        if net.agents[node].dead_since.is_some() {
            return;
        }
        if net.agents[node].frozen_until > net.now {
            let at = net.agents[node].frozen_until;
            return net.at(at, Own::Request(attempt, from, grant_ms));
        }
        if let Some(error) = net.refusal(node) {
            return net.send(attempt, node, SpeakFrame::Error(error));
        }
        let accepted = SpeechAccepted {
            engine: 0,
            voice: "v".into(),
            same_voice: net.scenario.nodes[node].same_voice,
            pre_skip: PRE_SKIP,
        };
        net.send(attempt, node, SpeakFrame::Accepted(accepted));
        let job = Job {
            node,
            chunk: (from / CHUNK_CHARS) as usize,
            packet: 0,
            at: 0,
            seq: 0,
            granted: u64::from(grant_ms) * SAMPLES_PER_MS,
            marked: false,
            blocked: false,
            last_sent: net.now,
            strike: None,
        };
        self.jobs.insert(attempt, job);
        net.soon(Duration::ZERO, Own::Step(attempt));
        net.soon(PROGRESS_EVERY, Own::Beat(attempt));
    }

    fn step(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(job) = self.jobs.get_mut(&attempt) else {
            return;
        };
        let (node, ready) = (job.node, net.agents[job.node].ready());
        if ready > net.now {
            return net.at(ready, Own::Step(attempt));
        }
        let model = &net.scenario.nodes[node];
        match job.strike.take() {
            Some(Fault::EngineFails) => {
                self.jobs.remove(&attempt);
                let error = WireError::new(ErrorCode::EngineFailed, "failed");
                return net.send(attempt, node, SpeakFrame::Error(error));
            }
            Some(Fault::EndsEarly) => {
                self.jobs.remove(&attempt);
                return net.end_early(attempt, node);
            }
            Some(_) => (job.packet, job.seq) = (job.packet + 1, job.seq + 1),
            None => {}
        }
        let Some(samples) = net.scenario.chunks.get(job.chunk).copied() else {
            let (frames, samples) = (job.seq, job.at);
            self.jobs.remove(&attempt);
            let done = SpeechDone { frames, samples };
            return net.send(attempt, node, SpeakFrame::Done(done));
        };
        if !job.marked {
            job.marked = true;
            let from = job.chunk as u32 * CHUNK_CHARS;
            let (to, at) = (from + CHUNK_CHARS, job.at);
            self.send(net, attempt, SpeakFrame::Mark(SpokenMark { from, to, at }));
            return net.soon(model.first, Own::Step(attempt));
        }
        if job.packet >= packets(samples) {
            (job.at, job.chunk) = (job.at + samples, job.chunk + 1);
            (job.packet, job.marked) = (0, false);
            return net.soon(Duration::ZERO, Own::Step(attempt));
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
        self.send(net, attempt, SpeakFrame::Sound(Sound { seq, opus }));
        net.soon(AUDIO_FRAME.div_f64(model.speed), Own::Step(attempt));
    }

    /// Progress while nothing else was sent.
    fn beat(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let (node, last_sent) = (job.node, job.last_sent);
        let frozen_until = net.agents[node].frozen_until;
        if frozen_until > net.now {
            return net.at(frozen_until, Own::Beat(attempt));
        }
        if net.now.since(last_sent) >= PROGRESS_EVERY {
            let progress = Progress {
                phase: Phase::Generating,
                done: 0,
                total: 0,
            };
            self.send(net, attempt, SpeakFrame::Progress(progress));
        }
        net.soon(PROGRESS_EVERY, Own::Beat(attempt));
    }

    /// Of what an agent works on.
    fn send(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId, frame: SpeakFrame) {
        if let Some(job) = self.jobs.get_mut(&attempt) {
            job.last_sent = net.now;
            net.send(attempt, job.node, frame);
        }
    }
}
