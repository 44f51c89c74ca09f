//! An utterance that is being transcribed: performs what `unamesh_proto::speech::hear` decides.
//!
//! What is pushed is encoded at once and kept until the transcript is there, so that another peer
//! can hear all of it. Live frames leave with the push; everything else with the next poll.

use super::client_error;
use super::hear::{Hear, HearEvent};
use crate::activity::{Activity, RequestId};
use crate::audio::opus::{CodecError, Encoder, Profile};
use crate::audio::pcm::from_s16;
use crate::client::ClientError;
use crate::clock;
use crate::memory::Shared;
use crate::outside::{Going, Happening, Outside, going};
use crate::transport::HearLink;
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use unamesh_proto::rank::Candidate;
use unamesh_proto::session::AttemptId;
use unamesh_proto::speech::Failure;
use unamesh_proto::speech::hear::{Config, Effect, Hear as Machine, Input, Output};
use unamesh_proto::table::Snapshot;
use unamesh_proto::timeouts::AUDIO_FRAME;
use unamesh_proto::wire::{ErrorCode, HearFrame, HearRequest, ModelKind, Transcript, WireError};
use unamesh_proto::{Mono, NodeId};

/// An utterance that is being transcribed: a stream of [`HearEvent`]s.
///
/// It holds at most [`MAX_UTTERANCE_FRAMES`](unamesh_proto::limits::MAX_UTTERANCE_FRAMES)
/// (fifteen minutes); then it ends by itself, which [`HearEvent::Full`] tells.
pub struct Hearing {
    shared: Arc<Shared>,
    id: RequestId,
    hear: Hear,
    utterance: u32,
    machine: Machine,
    outside: Outside<dyn HearLink>,
    /// `None` once the utterance is over.
    encoder: Option<Encoder>,
    /// Of what was pushed, for the encoder.
    samples: Vec<f32>,
    datagram: Vec<u8>,
    events: VecDeque<HearEvent>,
    /// Frames that the transcript is of.
    heard: Option<u32>,
}

impl Hearing {
    pub(crate) fn new(shared: Arc<Shared>, hear: Hear) -> Self {
        let utterance = shared.next_utterance();
        let config = Config {
            utterance,
            agent_ends: hear.vad_ms > 0,
            silence: shared.begin(),
        };
        let id = RequestId::random();
        let mut hearing = Hearing {
            outside: Outside::new(id, &shared),
            machine: Machine::new(config, clock::mono()),
            id,
            hear,
            utterance,
            encoder: None,
            samples: Vec::new(),
            datagram: Vec::new(),
            events: VecDeque::new(),
            heard: None,
            shared,
        };
        let encoder = Encoder::new(Profile::Up).map_err(|e| broken(&e));
        match hearing.request(0, String::new()).check().and(encoder) {
            Ok(encoder) => {
                hearing.encoder = Some(encoder);
                hearing.perform();
            }
            Err(error) => hearing.refuse(error),
        }
        hearing
    }

    /// Names this request in logs and [`Activity`].
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Takes in sound: mono, 16 kHz, of any length. Does not block. What comes after the end is
    /// ignored.
    pub fn push(&mut self, pcm: &[i16]) {
        self.samples.clear();
        self.samples.extend(pcm.iter().copied().map(from_s16));
        let Some(encoder) = &mut self.encoder else {
            return;
        };
        let mut frames = Vec::new();
        match encoder.push(&self.samples, |frame| frames.push(frame.to_vec())) {
            Ok(()) => self.record(frames),
            Err(error) => self.refuse(broken(&error)),
        }
    }

    /// The utterance is over: the transcript follows. Does not block.
    pub fn end(&mut self) {
        let Some(mut encoder) = self.encoder.take() else {
            return;
        };
        let mut frames = Vec::new();
        match encoder.finish(|frame| frames.push(frame.to_vec())) {
            Ok(_) => {
                self.record(frames);
                self.input(Input::End);
            }
            Err(error) => self.refuse(broken(&error)),
        }
    }

    /// Stops at once, down to the engine. The terminal event is [`ClientError::Cancelled`].
    pub fn cancel(&mut self) {
        self.input(Input::Cancel);
    }

    /// So much of the sound the transcript is of, once it is there: an agent that ends utterances
    /// itself leaves the rest to the next one.
    pub fn heard(&self) -> Option<Duration> {
        self.heard.map(|frames| AUDIO_FRAME * frames)
    }

    /// The caller took something then and does not look before the next poll.
    pub(crate) fn left(&mut self, then: Mono) {
        self.outside.left(then);
    }

    fn record(&mut self, frames: Vec<Vec<u8>>) {
        for frame in frames {
            self.input(Input::Sound(frame));
        }
    }

    fn refuse(&mut self, error: WireError) {
        self.encoder = None;
        self.machine.handle(Input::Cancel, clock::mono());
        while self.machine.poll().is_some() {}
        self.outside = Outside::new(self.id, &self.shared);
        self.events.push_back(HearEvent::Failed {
            error: ClientError::from(error),
            partial: String::new(),
        });
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(input, clock::mono());
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(effect) = self.machine.poll() {
            let now = clock::mono();
            match effect {
                Effect::Rank => {
                    let listeners = self.listeners();
                    self.machine.handle(Input::Candidates(listeners), now);
                }
                Effect::Hedge => {
                    if self.shared.may_hedge() {
                        self.machine.handle(Input::Hedge, now);
                    }
                }
                Effect::Open {
                    attempt,
                    node,
                    engine,
                    model,
                } => {
                    self.shared.dispatched(node, engine, now);
                    let request = self.request(engine, model);
                    let dial = self.shared.transport.hear(node, request);
                    self.outside.dial(attempt, node, dial);
                }
                Effect::Send(attempt, frames) => self.send(attempt, frames),
                Effect::Live(attempt, frame) => {
                    self.machine.sound().datagram(frame, &mut self.datagram);
                    if let Some(link) = self.outside.link(attempt) {
                        link.live(&self.datagram);
                    }
                }
                Effect::End(attempt, frames) => {
                    if let Some(link) = self.outside.link(attempt) {
                        link.end(frames);
                    }
                }
                Effect::Reset(attempt) => self.outside.reset(attempt),
                Effect::Emit(output) => self.emit(output),
                Effect::Note(note) => self.shared.note(self.id, &note, now),
            }
        }
    }

    fn send(&mut self, attempt: AttemptId, frames: std::ops::Range<u32>) {
        let Some(link) = self.outside.link(attempt) else {
            return;
        };
        for seq in frames {
            if let Some(opus) = self.machine.sound().frame(seq) {
                link.sound(seq, opus);
            }
        }
    }

    fn request(&self, engine: u16, model: String) -> HearRequest {
        HearRequest {
            model,
            engine,
            language: self.hear.language.clone(),
            prompt: self.hear.prompt.clone(),
            session: self.hear.session,
            utterance: self.utterance,
            partials: self.hear.partials,
            vad_ms: self.hear.vad_ms,
        }
    }

    fn listeners(&self) -> Vec<Candidate> {
        let sticky = self.shared.at_work(self.hear.session, ModelKind::Stt);
        self.shared
            .listeners(&self.hear.model, sticky, clock::mono())
    }

    fn emit(&mut self, output: Output) {
        let event = match output {
            Output::Started { node, why } => {
                self.stick(node);
                let peer = self.shared.peer(node);
                HearEvent::Started { peer, why }
            }
            Output::Progress(phase) => HearEvent::Progress { phase },
            Output::Partial(text) => HearEvent::Partial { text },
            Output::Began(frame) => HearEvent::Began {
                at_ms: millis(AUDIO_FRAME * frame),
            },
            Output::Silence(silence) => HearEvent::Silence {
                ms: millis(silence),
            },
            Output::Full => return self.full(),
            Output::PeerChanged { from, to, reason } => {
                self.stick(to);
                let (from, to) = (self.shared.peer(from), self.shared.peer(to));
                self.shared.tell(Activity::ListenerChanged {
                    request: self.id,
                    from: from.clone(),
                    to: to.clone(),
                    reason: reason.clone(),
                });
                let reason = reason.to_string();
                HearEvent::PeerChanged { from, to, reason }
            }
            Output::Final { node, transcript } => self.transcribed(node, transcript),
            Output::Failed { failure, partial } => self.failed(failure, partial),
        };
        if matches!(event, HearEvent::Final { .. } | HearEvent::Failed { .. }) {
            self.outside.over();
        }
        self.events.push_back(event);
    }

    fn stick(&self, node: NodeId) {
        self.shared
            .stick(self.hear.session, ModelKind::Stt, (node, u16::MAX));
    }

    /// The utterance is as long as one may be.
    fn full(&mut self) {
        if self.encoder.take().is_some() {
            let at_ms = millis(AUDIO_FRAME * self.machine.sound().frames());
            self.events.push_back(HearEvent::Full { at_ms });
            self.machine.handle(Input::End, clock::mono());
        }
    }

    fn transcribed(&mut self, node: NodeId, transcript: Transcript) -> HearEvent {
        self.encoder = None;
        self.heard = Some(transcript.frames);
        HearEvent::Final {
            text: transcript.text,
            language: transcript.language,
            words: transcript.words,
            confidence: transcript.confidence,
            peer: self.shared.peer(node),
        }
    }

    fn failed(&mut self, failure: Failure, partial: String) -> HearEvent {
        self.encoder = None;
        let (shared, model) = (&self.shared, &self.hear.model);
        let error = client_error(shared, failure, ModelKind::Stt, model, "", &partial);
        HearEvent::Failed { error, partial }
    }

    fn table(&mut self, snapshot: &Snapshot) {
        for (node, going) in going(snapshot, self.machine.peers()) {
            self.input(match going {
                Going::Leaves => Input::PeerGoing(node),
                Going::Down => Input::PeerDown(node),
            });
        }
        if self.machine.is_waiting() {
            let listeners = self.listeners();
            self.input(Input::Candidates(listeners));
        }
    }

    fn happened(&mut self, happening: Happening<HearFrame>) {
        match happening {
            Happening::Opened(attempt) => self.input(Input::Opened(attempt)),
            Happening::Frame(attempt, _, frame) => self.input(Input::Frame(attempt, frame)),
            Happening::Closed(attempt, closed) => self.input(Input::Closed(attempt, closed)),
            Happening::Late(late) => self.input(Input::Late(late)),
            Happening::Table(snapshot) => self.table(&snapshot),
            Happening::Time => self.input(Input::Wake),
            Happening::Leave => self.input(Input::Leave),
        }
    }
}

impl Drop for Hearing {
    /// What an utterance that nobody wants any more has learned and spent is told all the same.
    fn drop(&mut self) {
        self.cancel();
    }
}

fn broken(error: &CodecError) -> WireError {
    WireError::new(ErrorCode::EngineFailed, error.to_string())
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl Stream for Hearing {
    type Item = HearEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<HearEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.left(clock::mono());
                return Poll::Ready(Some(event));
            }
            if self.machine.is_ended() {
                return Poll::Ready(None);
            }
            let due = self.machine.next_wake();
            let happening = ready!(self.outside.poll(due, cx, |link, cx| link.poll_frame(cx)));
            self.happened(happening);
        }
    }
}
