//! The machine: one `match` on the input; what it calls stands below it.

use super::super::Failure;
use super::super::crew::Crew;
use super::super::uplink::Outgoing;
use super::{Config, Effect, Input, Output};
use crate::ids::NodeId;
use crate::limits::{MAX_RESENT_FRAMES, MAX_TRANSCRIPT, MAX_WORDS, TAIL_FRAMES};
use crate::rank::Candidate;
use crate::session::{AttemptId, Reason};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, SPECULATE};
use crate::wire::{HearFrame, Missing, Phase, Transcript, WireError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// An attempt's work.
#[derive(Debug, Default)]
pub(super) struct Listener {
    /// Its request is on its way: it can be sent frames.
    open: bool,
    /// It takes datagrams: until then all goes on its stream.
    accepted: bool,
    /// Frames that it asked for again.
    resent: u32,
}

/// One utterance; see the module's documentation.
#[derive(Debug)]
pub struct Hear {
    config: Config,
    crew: Crew<Listener, Effect>,
    frames: Outgoing,
    /// No frame follows.
    complete: bool,
    /// The frame in which somebody began to speak, where an agent listens for that.
    began: Option<u32>,
    /// The one in which somebody began last, as the caller was told.
    told: Option<u32>,
    /// The latest of each attempt that runs.
    partials: BTreeMap<AttemptId, String>,
    /// The longest of those that are gone.
    lost: String,
    ended: bool,
}

impl Hear {
    /// A machine that asks for a ranking first.
    pub fn new(config: Config, now: Mono) -> Self {
        Hear {
            crew: Crew::new(config.silence.clone(), now),
            frames: Outgoing::new(config.utterance),
            config,
            complete: false,
            began: None,
            told: None,
            partials: BTreeMap::new(),
            lost: String::new(),
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
            Input::Candidates(candidates) => self.candidates(&candidates),
            Input::Sound(opus) => self.record(&opus),
            Input::End => self.complete(),
            Input::Opened(id) => self.opened(id),
            Input::Frame(id, frame) => self.frame(id, frame),
            Input::Closed(id, closed) => self.crew.closed(id, closed),
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

    /// The frames, for what [`Effect::Send`] and [`Effect::Live`] name. After the end too: what
    /// an agent that found the end itself did not hear belongs to the next utterance.
    pub fn sound(&self) -> &Outgoing {
        &self.frames
    }

    /// The peers of the running attempts.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.crew.members.iter().map(|m| m.base.node())
    }

    // ----- sound ------------------------------------------------------------------------

    fn record(&mut self, opus: &[u8]) {
        let taken = match self.complete {
            true => return,
            false => self.frames.push(opus),
        };
        let Ok(frame) = taken else {
            return self.emit(Output::Full);
        };
        for m in self.crew.members.iter().filter(|m| m.work.open) {
            let id = m.base.id;
            self.crew.effects.push_back(match m.work.accepted {
                true => Effect::Live(id, frame),
                false => Effect::Send(id, frame..frame + 1),
            });
        }
    }

    fn complete(&mut self) {
        if std::mem::replace(&mut self.complete, true) {
            return;
        }
        let frames = self.frames.frames();
        for m in self.crew.members.iter_mut().filter(|m| m.work.open) {
            let id = m.base.id;
            m.base.advanced = self.crew.now;
            // Before it accepted, all went on its stream.
            if m.work.accepted && frames > 0 {
                let tail = frames.saturating_sub(TAIL_FRAMES)..frames;
                self.crew.effects.push_back(Effect::Send(id, tail));
            }
            self.crew.effects.push_back(Effect::End(id, frames));
        }
    }

    fn opened(&mut self, id: AttemptId) {
        self.crew.opened(id);
        let now = self.crew.now;
        let Some(m) = self.crew.find(id) else { return };
        if std::mem::replace(&mut m.work.open, true) {
            return;
        }
        m.base.advanced = now;
        let frames = self.frames.frames();
        if frames > 0 {
            self.crew.effects.push_back(Effect::Send(id, 0..frames));
        }
        if self.complete {
            self.crew.effects.push_back(Effect::End(id, frames));
        }
    }

    /// The peer asks for lost frames. What it never can have missed is a wrong question.
    fn resend(&mut self, id: AttemptId, missing: Missing) {
        let frames = self.frames.frames();
        let Some(m) = self.crew.find(id) else { return };
        let wanted: Range<u32> = missing.from..missing.to;
        m.work.resent = m.work.resent.saturating_add(wanted.len() as u32);
        let known = m.work.open && !wanted.is_empty() && wanted.end <= frames;
        if !known || m.work.resent > MAX_RESENT_FRAMES {
            return self.crew.fail(id, Reason::Protocol);
        }
        self.crew.effects.push_back(Effect::Send(id, wanted));
    }

    // ----- peers ------------------------------------------------------------------------

    fn candidates(&mut self, candidates: &[Candidate]) {
        if !self.crew.welcomes() {
            return;
        }
        let Some(candidate) = self.crew.best(candidates, |c| c) else {
            return self.crew.nobody();
        };
        let (node, engine) = (candidate.node, candidate.engine);
        let model = candidate.model.clone();
        if let Some(attempt) = self.crew.enlist(candidate, Listener::default()) {
            self.crew.effects.push_back(Effect::Open {
                attempt,
                node,
                engine,
                model,
            });
        }
    }

    fn frame(&mut self, id: AttemptId, frame: HearFrame) {
        self.crew.hear(id);
        let now = self.crew.now;
        let Some(m) = self.crew.find(id) else { return };
        match frame {
            HearFrame::Accepted(_) => {
                m.work.accepted = true;
                let (node, why) = (m.base.node(), m.base.candidate.reason.clone());
                // What was said to one that is lost is worth waiting for another.
                if !std::mem::replace(&mut self.crew.begun, true) {
                    self.crew.current = Some(id);
                    self.emit(Output::Started { node, why });
                } else if self.crew.current.is_none() {
                    self.take_over(id);
                }
            }
            HearFrame::Progress(p) => {
                m.base.progress(p.phase, p.done, now);
                if !self.has_understood() {
                    self.emit(Output::Progress(p.phase));
                }
            }
            HearFrame::Partial(partial) if partial.text.len() > MAX_TRANSCRIPT => {
                self.crew.fail(id, Reason::Protocol);
            }
            HearFrame::Partial(partial) => {
                m.base.advanced = now;
                self.understood(id, partial.text);
            }
            HearFrame::Began(began) => {
                if self.leads(id) {
                    self.began(began.frame);
                }
            }
            HearFrame::Silence(silence) => {
                if self.leads(id) {
                    let silent = Duration::from_millis(silence.ms.into());
                    self.emit(Output::Silence(silent));
                }
            }
            HearFrame::Missing(missing) => self.resend(id, missing),
            HearFrame::Final(transcript) => self.transcribed(id, transcript),
            HearFrame::Draining(_) => self.crew.leaving(id),
            HearFrame::Error(error) => self.refused(id, error),
        }
    }

    /// Somebody began to speak. A backup that is told all anew hears what was heard before, if not
    /// in the very same frame; what begins anew does so behind a pause.
    fn began(&mut self, frame: u32) {
        self.began.get_or_insert(frame);
        let pause = u32::try_from(SPECULATE.as_millis() / AUDIO_FRAME.as_millis()).unwrap_or(0);
        if self.told.is_none_or(|told| frame > told + pause) {
            self.told = Some(frame);
            self.emit(Output::Began(frame));
        }
    }

    /// Nothing was understood yet, and nobody else would take it: the caller hears so at once.
    fn refused(&mut self, id: AttemptId, error: WireError) {
        if !error.code.elsewhere() && !self.has_understood() {
            self.crew.over = Some(Failure::Refused(error));
        } else {
            self.crew.refused(id, error);
        }
    }

    fn has_understood(&self) -> bool {
        !(self.partials.is_empty() && self.lost.is_empty())
    }

    /// A partial came.
    fn understood(&mut self, id: AttemptId, text: String) {
        if text.is_empty() {
            return;
        }
        self.partials.insert(id, text.clone());
        if !self.leads(id) {
            return;
        }
        if self.crew.current == Some(id) {
            self.crew.produces(id);
        } else {
            self.take_over(id);
        }
        self.emit(Output::Partial(text));
    }

    /// What this peer says is shown: it is the one that was shown last, or that one is gone or in
    /// doubt.
    fn leads(&self, id: AttemptId) -> bool {
        let producer = self.crew.producer();
        producer.is_none_or(|m| m.base.id == id || m.base.suspect.is_some())
    }

    fn transcribed(&mut self, id: AttemptId, transcript: Transcript) {
        let frames = self.frames.frames();
        let whole = match self.config.agent_ends {
            true => transcript.frames <= frames,
            false => self.complete && transcript.frames == frames,
        };
        let fits = transcript.text.len() <= MAX_TRANSCRIPT && transcript.words.len() <= MAX_WORDS;
        let Some(m) = self.crew.find(id) else { return };
        if !whole || !fits || !m.work.open {
            return self.crew.fail(id, Reason::Protocol);
        }
        let node = m.base.node();
        if self.crew.current != Some(id) {
            self.take_over(id);
        }
        self.crew.succeeded(id);
        self.end(Output::Final { node, transcript });
    }

    fn take_over(&mut self, id: AttemptId) {
        let followed = self.crew.take_over(id);
        let to = self.crew.find(id).map(|m| m.base.node());
        if let (Some(loss), Some(to)) = (followed, to) {
            self.emit(Output::PeerChanged {
                from: loss.from,
                to,
                reason: loss.reason,
            });
        }
    }

    // ----- after every input ------------------------------------------------------------

    fn settle(&mut self) {
        if self.ended {
            return;
        }
        // Half of what was said; and while it is being said, for ever, unless the engine works.
        let said = self.frames.frames();
        let said = said.saturating_sub(self.began.unwrap_or(0));
        for m in &mut self.crew.members {
            let works = matches!(m.base.phase, Some((Phase::Loading | Phase::Generating, _)));
            m.base.patience = match self.complete || works {
                true => AUDIO_FRAME * said / 2,
                false => Duration::MAX,
            };
        }
        let members = &self.crew.members;
        let gone = |id: &AttemptId, _: &mut String| members.iter().all(|m| m.base.id != *id);
        for (_, partial) in self.partials.extract_if(.., gone) {
            self.lost = longer(std::mem::take(&mut self.lost), partial);
        }
        if let Some(failure) = self.crew.over.take() {
            let partials = std::mem::take(&mut self.partials).into_values();
            let partial = partials.fold(std::mem::take(&mut self.lost), longer);
            self.end(Output::Failed { failure, partial });
        }
    }

    fn emit(&mut self, output: Output) {
        self.crew.effects.push_back(Effect::Emit(output));
    }

    fn end(&mut self, output: Output) {
        self.crew.end();
        self.emit(output);
        self.ended = true;
    }
}

fn longer(a: String, b: String) -> String {
    if b.len() > a.len() { b } else { a }
}
