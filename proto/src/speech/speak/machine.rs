//! The machine: one `match` on the input; what it calls stands below it.

use super::super::Failure;
use super::super::crew::{Crew, Member};
use super::stream::{Piece, Stream};
use super::timeline::Timeline;
use super::{Config, Effect, Input, Output, SAMPLES_PER_MS, Speaker, duration, millis, samples};
use crate::ids::NodeId;
use crate::session::{AttemptId, Reason};
use crate::time::Mono;
use crate::timeouts::{GRANT_STEP, SPOKEN_CHARACTER};
use crate::wire::{ErrorCode, Grant, SpeakFrame, SpeechAccepted, WireError};
use std::time::Duration;

/// One spoken text; see the module's documentation.
#[derive(Debug)]
pub struct Speak {
    config: Config,
    text: Vec<char>,
    pub(super) crew: Crew<Stream, Effect>,
    pub(super) timeline: Timeline,
    /// The next chunk that is given out is joined to what there is of it.
    pub(super) joining: bool,
    /// Of whoever spoke last.
    pub(super) voice: Option<String>,
    pub(super) last_sound: Mono,
    /// Somebody was left out for another voice.
    voiceless: bool,
    ended: bool,
}

impl Speak {
    /// A machine that asks for a ranking first.
    pub fn new(config: Config, now: Mono) -> Self {
        Speak {
            text: config.text.chars().collect(),
            crew: Crew::new(config.silence.clone(), now),
            config,
            timeline: Timeline::default(),
            joining: false,
            voice: None,
            last_sound: now,
            voiceless: false,
            ended: false,
        }
    }

    /// Takes in what happened. Inputs of attempts that were reset, and everything after the
    /// terminal event, are ignored.
    pub fn handle(&mut self, input: Input, now: Mono) {
        if self.ended {
            return;
        }
        self.crew.now = now;
        match input {
            Input::Candidates(speakers) => self.candidates(&speakers),
            Input::Opened(id) => self.crew.opened(id),
            Input::Frame(id, frame) => self.frame(id, frame),
            Input::Closed(id, closed) => self.crew.closed(id, closed),
            Input::Played(sample) => {
                let played = sample.min(self.timeline.end);
                self.timeline.played = self.timeline.played.max(played);
            }
            Input::Joined { shift } => self.timeline.shift(shift),
            Input::PeerGoing(node) => self.crew.peer_going(node),
            Input::PeerDown(node) => self.crew.peer_down(node),
            Input::Hedge => self.crew.may_hedge(),
            Input::Late(late) => self.crew.late = late,
            Input::Wake => self.crew.wake(),
            Input::Cancel => self.crew.over = Some(Failure::Cancelled),
            Input::Leave => self.crew.leave(),
        }
        self.settle();
    }

    /// The next effect; to be drained after every input.
    pub fn poll(&mut self) -> Option<Effect> {
        self.crew.effects.pop_front()
    }

    /// When [`Input::Wake`] is due; `None` once the machine has ended.
    pub fn next_wake(&self) -> Option<Mono> {
        self.crew.next_wake().filter(|_| !self.ended)
    }

    /// Nobody can go on or back up at the moment: news of the peer table are welcome.
    pub fn is_waiting(&self) -> bool {
        !self.ended && self.crew.is_waiting()
    }

    /// The terminal event has been emitted.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The voice that spoke, as its engine calls it: a backup should have the same.
    pub fn voice(&self) -> Option<&str> {
        self.voice.as_deref()
    }

    /// The character up to which the text was said if so many samples of it were played, in
    /// whole words: what counts after a barge-in. Within a chunk it is an estimate.
    pub fn spoken_until(&self, played: u64) -> u32 {
        self.timeline.spoken(played, &self.text)
    }

    /// The peers of the running attempts.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.crew.members.iter().map(|m| m.base.node())
    }

    // ----- candidates -------------------------------------------------------------------

    fn candidates(&mut self, speakers: &[Speaker]) {
        if !self.crew.welcomes() {
            return;
        }
        let (same, others): (Vec<_>, Vec<_>) = speakers.iter().cloned().partition(|s| s.same);
        let mut best = self.crew.best(&same, |s| &s.candidate);
        // Somebody of the right voice who is in doubt may go on yet; who drains speaks on.
        let fine = |m: &Member<Stream>| m.base.suspect.is_none();
        if best.is_none() && !self.crew.members.iter().any(fine) {
            let other = self.crew.best(&others, |s| &s.candidate);
            match self.config.other_voice {
                true => best = other,
                false => self.voiceless |= other.is_some(),
            }
        }
        match best {
            Some(speaker) => {
                self.voiceless = false;
                self.open(speaker);
            }
            None => self.crew.nobody(),
        }
    }

    /// A backup of a peer that leaves begins behind the chunk that this one is in.
    fn open(&mut self, speaker: Speaker) {
        let healthy = self.crew.producer().filter(|m| m.base.suspect.is_none());
        let next = self.timeline.begun();
        let from = match healthy {
            Some(_) if (next as usize) < self.text.len() => next,
            _ => self.timeline.resume(),
        };
        let (engine, model) = (speaker.candidate.engine, speaker.candidate.model.clone());
        let node = speaker.candidate.node;
        let stream = self.stream(speaker.voice.clone(), speaker.same, from);
        let granted = stream.granted;
        if let Some(attempt) = self.crew.enlist(speaker.candidate, stream) {
            self.crew.effects.push_back(Effect::Open {
                attempt,
                node,
                engine,
                model,
                voice: speaker.voice,
                from,
                grant_ms: millis(granted),
            });
        }
    }

    /// The work of an attempt from this character on.
    pub(super) fn stream(&self, voice: String, same: bool, from: u32) -> Stream {
        let chars = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let base = self.timeline.start_of(from).unwrap_or(self.timeline.end);
        let mut stream = Stream::new(voice, same, from, chars, base);
        stream.granted = self.allowed(stream.base);
        stream
    }

    // ----- frames -----------------------------------------------------------------------

    fn frame(&mut self, id: AttemptId, frame: SpeakFrame) {
        self.crew.hear(id);
        let now = self.crew.now;
        let Some(member) = self.crew.find(id) else {
            return;
        };
        let (base, work) = (&mut member.base, &mut member.work);
        if work.is_full() {
            // What passes while it may send nothing is the ear's time.
            base.advanced = now;
        }
        let taken = match frame {
            SpeakFrame::Accepted(accepted) => return self.accepted(id, accepted),
            SpeakFrame::Progress(p) => {
                base.progress(p.phase, p.done, now);
                if self.voice.is_none() {
                    self.emit(Output::Progress(p.phase));
                }
                return;
            }
            SpeakFrame::Draining(_) => return self.crew.leaving(id),
            SpeakFrame::Error(error) => return self.crew.refused(id, error),
            SpeakFrame::Mark(mark) => {
                // The engine is asked anew: what is known of first sounds bounds this one too.
                base.asked(SPOKEN_CHARACTER * mark.to.saturating_sub(mark.from), now);
                work.mark(mark)
            }
            SpeakFrame::Sound(sound) => {
                base.token(1, now);
                work.sound(sound)
            }
            SpeakFrame::Done(done) => work.done(done),
        };
        match taken {
            Err(_) => self.crew.fail(id, Reason::Protocol),
            Ok(()) if self.crew.current == Some(id) => {
                self.crew.produces(id);
                self.give_out(id);
            }
            // `settle` looks whether it may take over.
            Ok(()) => {}
        }
    }

    fn accepted(&mut self, id: AttemptId, accepted: SpeechAccepted) {
        let other = !accepted.same_voice && !self.config.other_voice;
        let taken = self.crew.find(id).map(|m| m.work.accepted(accepted));
        if matches!(taken, Some(Err(_))) {
            self.crew.fail(id, Reason::Protocol);
        } else if other {
            self.voiceless = true;
            let error = WireError::new(ErrorCode::UnknownModel, "another voice");
            self.crew.dismiss(id, error);
        }
    }

    /// Hands the caller what the current one sent.
    pub(super) fn give_out(&mut self, id: AttemptId) {
        while let Some(member) = self.crew.find(id) {
            let pre_skip = member.work.pre_skip;
            match member.work.held.pop_front() {
                None => return,
                Some(Piece::Begin { from, to, at }) => {
                    let begun = self.begin(from, to, pre_skip);
                    let base = i64::try_from(begun).unwrap_or(i64::MAX);
                    let base = base.saturating_sub_unsigned(at);
                    if let Some(member) = self.crew.find(id) {
                        member.work.base = base;
                    }
                }
                Some(Piece::Sound(opus)) => {
                    self.timeline.sound();
                    self.last_sound = self.crew.now;
                    self.crew.begun = true;
                    self.emit(Output::Sound(opus));
                }
                Some(Piece::Whole { samples }) => {
                    self.timeline.whole(samples);
                    self.emit(Output::Whole { samples });
                }
                Some(Piece::End) => {
                    self.crew.succeeded(id);
                    let samples = self.timeline.end;
                    return self.end(Output::Done { samples });
                }
            }
        }
    }

    fn begin(&mut self, from: u32, to: u32, pre_skip: u16) -> u64 {
        if std::mem::take(&mut self.joining) {
            let (start, keep_until) = self.timeline.join(to, pre_skip);
            self.emit(Output::Join {
                from,
                to,
                start,
                keep_until,
                pre_skip,
            });
            return start;
        }
        let start = self.timeline.begin(from, to, pre_skip);
        self.emit(Output::Chunk {
            from,
            to,
            start,
            pre_skip,
        });
        start
    }

    // ----- after every input ------------------------------------------------------------

    fn settle(&mut self) {
        if self.ended {
            return;
        }
        if self.crew.over.is_none() {
            self.switch();
        }
        if !self.ended {
            self.grant();
        }
        if let Some(failure) = self.crew.over.take() {
            let failure = match failure {
                Failure::Interrupted {
                    reason: Reason::Leaving,
                } => failure,
                Failure::NoPeer | Failure::Interrupted { .. } if self.voiceless => Failure::NoVoice,
                failure => failure,
            };
            let whole = self.timeline.resume();
            self.end(Output::Failed { failure, whole });
        }
    }

    /// Lets the peers go on as far as the ear has come. One that has used its lead up is not
    /// stalled.
    fn grant(&mut self) {
        let (now, played) = (self.crew.now, self.timeline.played);
        // Half of a short lead: the other half is played meanwhile.
        let step = samples(GRANT_STEP.min(self.config.lead / 2));
        for at in 0..self.crew.members.len() {
            let allowed = self.allowed(self.crew.members[at].work.base);
            let member = &mut self.crew.members[at];
            let work = &mut member.work;
            if allowed >= work.granted.saturating_add(step) {
                work.granted = allowed;
                let heard = i64::try_from(played).unwrap_or(i64::MAX);
                let heard = u64::try_from(heard.saturating_sub(work.base)).unwrap_or(0);
                let grant = Grant {
                    until_ms: millis(allowed),
                    played_ms: millis(heard),
                };
                let effect = Effect::Grant(member.base.id, grant);
                self.crew.effects.push_back(effect);
            }
            let idle = work.is_full();
            if !idle && member.base.patience > Duration::ZERO {
                member.base.advanced = now;
            }
            member.base.patience = match idle {
                true => Duration::MAX,
                false => Duration::ZERO,
            };
        }
    }

    /// The sample up to which a stream that begins at `base` may be sent, in whole milliseconds.
    fn allowed(&self, base: i64) -> u64 {
        let until = self
            .timeline
            .played
            .saturating_add(samples(self.config.lead));
        let until = i64::try_from(until).unwrap_or(i64::MAX);
        let allowed = u64::try_from(until.saturating_sub(base)).unwrap_or(0);
        allowed - allowed % SAMPLES_PER_MS
    }

    /// Sound that was not played yet.
    pub(super) fn lead(&self) -> Duration {
        duration(self.timeline.end.saturating_sub(self.timeline.played))
    }

    pub(super) fn emit(&mut self, output: Output) {
        self.crew.effects.push_back(Effect::Emit(output));
    }

    fn end(&mut self, output: Output) {
        self.crew.end();
        self.emit(output);
        self.ended = true;
    }
}
