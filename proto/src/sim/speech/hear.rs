//! An utterance is spoken into a microphone, and transcribed.
//!
//! The transcript of the model's recognizer is the count of frames that it heard, so that what is
//! lost shows.

use super::net::{Net, Said, Side, run as play};
use super::{Fault, Report, Scenario};
use crate::session::AttemptId;
use crate::speech::hear::{Config, Effect, Hear, Input, Output};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, PROGRESS_EVERY};
use crate::wire::{
    Draining, ErrorCode, HearAccepted, HearFrame, Missing, Partial, Phase, Progress, Transcript,
    WireError,
};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

enum Own {
    Speak(u32),
    Request(AttemptId),
    Frames(AttemptId, Vec<u32>),
    EndAtNode(AttemptId, u32),
    Beat(AttemptId),
    Transcribe(AttemptId),
}

struct Job {
    node: usize,
    heard: BTreeSet<u32>,
    end: Option<u32>,
    strike: Option<Fault>,
}

struct World {
    hear: Hear,
    jobs: BTreeMap<AttemptId, Job>,
    frames: u32,
    ended_at: Mono,
}

/// Runs `scenario` to its end (or 120 virtual seconds) and checks the rules on the way.
pub fn run(scenario: &Scenario) -> Report {
    let mut net = Net::new(scenario, 0xea5);
    let mut world = World {
        hear: Hear::new(Config::default(), Mono::ZERO),
        jobs: BTreeMap::new(),
        frames: u32::try_from(scenario.chunks[0] / 200).unwrap_or(u32::MAX),
        ended_at: Mono::ZERO,
    };
    net.soon(AUDIO_FRAME, Own::Speak(0));
    world.drain(&mut net);
    play(&mut net, &mut world, Duration::from_secs(120));
    net.report.first_wait = net.now.since(world.ended_at);
    net.report
}

impl Side for World {
    type Frame = HearFrame;
    type Own = Own;

    fn told(&mut self, net: &mut Net<'_, Self>, said: Said<HearFrame>) {
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
            Own::Speak(n) if n < self.frames => {
                self.input(net, Input::Sound(vec![1 + (n % 250) as u8; 40]));
                self.ended_at = net.now;
                net.soon(AUDIO_FRAME, Own::Speak(n + 1));
            }
            Own::Speak(_) => {
                self.ended_at = net.now;
                self.input(net, Input::End);
            }
            Own::Request(attempt) => self.request(net, attempt),
            Own::Frames(attempt, frames) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.heard.extend(frames);
                    self.check(net, attempt);
                }
            }
            Own::EndAtNode(attempt, frames) => {
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.end = Some(frames);
                    self.check(net, attempt);
                }
            }
            Own::Beat(attempt) => self.beat(net, attempt),
            Own::Transcribe(attempt) => self.transcribe(net, attempt),
        }
    }

    fn is_callers(own: &Own) -> bool {
        matches!(own, Own::Speak(_))
    }

    fn draining(draining: Draining) -> HearFrame {
        HearFrame::Draining(draining)
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
        self.hear.handle(input, net.now);
        self.drain(net);
    }

    fn drain(&mut self, net: &mut Net<'_, Self>) {
        while let Some(effect) = self.hear.poll() {
            match effect {
                Effect::Rank => {
                    let all = net.candidates().map(|(_, candidate)| candidate).collect();
                    self.hear.handle(Input::Candidates(all), net.now);
                }
                Effect::Hedge if net.scenario.hedges => {
                    self.hear.handle(Input::Hedge, net.now);
                }
                Effect::Open { attempt, node, .. } => {
                    if net.open(attempt, node.0[0].into()) {
                        net.travel(attempt, Own::Request(attempt));
                        self.hear.handle(Input::Opened(attempt), net.now);
                    }
                }
                Effect::Send(attempt, frames) => {
                    let all = frames.clone().all(|n| self.hear.sound().frame(n).is_some());
                    if !all {
                        net.report.violate(format!("{frames:?} are not there"));
                    }
                    net.travel(attempt, Own::Frames(attempt, frames.collect()));
                }
                Effect::Live(attempt, newest) => {
                    if net.rng.random_range(0..100) >= net.scenario.loss {
                        let both = [newest.checked_sub(2), Some(newest)];
                        let both = both.into_iter().flatten().collect();
                        net.travel(attempt, Own::Frames(attempt, both));
                    }
                }
                Effect::End(attempt, frames) => {
                    net.travel(attempt, Own::EndAtNode(attempt, frames));
                }
                Effect::Reset(attempt) => net.reset(attempt),
                Effect::Emit(output) => self.emit(net, output),
                Effect::Note(note) => net.report.note(&note),
                Effect::Hedge => {}
            }
        }
        net.arm(self.hear.next_wake());
    }

    fn emit(&mut self, net: &mut Net<'_, Self>, output: Output) {
        net.emitted(&output);
        match output {
            Output::Started { .. } => net.begun = true,
            Output::PeerChanged { reason, .. } => net.report.changes.push(reason),
            Output::Final { transcript, .. } => {
                net.done();
                if transcript.text != self.frames.to_string() {
                    let rule = format!("{} of {} frames", transcript.text, self.frames);
                    net.report.violate(rule);
                }
            }
            Output::Failed { failure, .. } => net.failed(&failure, ""),
            _ => {}
        }
    }

    // ----- the agents -------------------------------------------------------------------

    fn request(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(node) = net.node(attempt) else {
            return;
        };
        if net.agents[node].dead_since.is_some() {
            return;
        }
        if let Some(error) = net.refusal(node) {
            return net.send(attempt, node, HearFrame::Error(error));
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
        net.send(attempt, node, HearFrame::Accepted(accepted));
        net.soon(PROGRESS_EVERY, Own::Beat(attempt));
    }

    /// Asks for what is missing, or transcribes.
    fn check(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let Some(end) = job.end else { return };
        let (node, lost) = (job.node, (0..end).find(|n| !job.heard.contains(n)));
        match lost {
            Some(from) => {
                let missing = Missing { from, to: from + 1 };
                net.send(attempt, node, HearFrame::Missing(missing));
            }
            None => net.soon(net.scenario.nodes[node].first, Own::Transcribe(attempt)),
        }
    }

    fn transcribe(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(job) = self.jobs.get_mut(&attempt) else {
            return;
        };
        let (node, ready) = (job.node, net.agents[job.node].ready());
        if ready > net.now {
            return net.at(ready, Own::Transcribe(attempt));
        }
        let frames = job.heard.len() as u32;
        let strike = job.strike.take();
        self.jobs.remove(&attempt);
        let frame = match strike {
            Some(Fault::EngineFails) => {
                HearFrame::Error(WireError::new(ErrorCode::EngineFailed, "failed"))
            }
            Some(Fault::EndsEarly) => return net.end_early(attempt, node),
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
        net.send(attempt, node, frame);
    }

    /// Progress, and now and then a partial.
    fn beat(&mut self, net: &mut Net<'_, Self>, attempt: AttemptId) {
        let Some(job) = self.jobs.get(&attempt) else {
            return;
        };
        let (node, heard, asked) = (job.node, job.heard.len(), job.end.is_some());
        let (ready, frozen_until) = (net.agents[node].ready(), net.agents[node].frozen_until);
        if frozen_until > net.now {
            return net.at(frozen_until, Own::Beat(attempt));
        }
        let partial = ready <= net.now && heard > 50 && net.rng.random_bool(0.2);
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
        net.send(attempt, node, frame);
        net.soon(PROGRESS_EVERY, Own::Beat(attempt));
    }
}
