//! One utterance as its frames, wherever they go.
//!
//! ```text
//!   sound, datagrams ─► Jitter ─┬─ live order, lost frames concealed ─► Ear ─► began, silent
//!                               └─ whole and in order ─► Call ─► the engine      │
//!                                                                                │
//!   idle ──► listening ──┬── silent for SPECULATE ──► asking ──► answered ◄──────┤
//!    ▲  (somebody spoke, │                            │ (seat)   │ Partial       │
//!    │   or no VAD)      │◄── speech goes on ─────────┴──────────┤               │
//!    │                   └── the end ──► asking ──► answered ────┴─ the end ──► Final
//! ```
//! [`Hearing::poll_next`] is the whole of it: it polls the engine's stream itself, in the task of
//! whoever wants the frames. A stream over QUIC ([`stream`]) and one of this agent itself
//! ([`Service::hear_local`]) run the same code.
//!
//! **Two orders.** The ear needs to know *now* whether somebody speaks, so it hears lost frames
//! concealed. The engine hears the utterance as it was said: a gap is asked for ([`repairs`]) and
//! waited for, so that the transcript is that of a path without loss. It costs a round trip, and
//! only where both copies of a frame are lost.
//!
//! **The end** is the client's word, or with `vad_ms` so much silence after speech; what comes
//! behind that belongs to the next utterance. With `vad_ms`, what goes before the first speech is
//! left out: a recognizer makes up words for a minute of nothing.
//!
//! **Speculation** ([`live`]). In a pause of [`unamesh_proto::timeouts::SPECULATE`] the engine is asked for what
//! it has: most engines transcribe only when they are told that this was all. One that is known to
//! be quick is asked sooner ([`unamesh_proto::timeouts::SPECULATE_QUICK`]), so that its words are there when the
//! pause is told. Its transcript goes out as a partial one. If speech goes on it is dropped, and
//! the engine is given everything again; if the end comes first it is the final one, without a
//! second call, provided that every frame since then was really heard to be silent. Beyond
//! [`unamesh_proto::timeouts::SPECULATE_MAX`] only a quick one is asked. An engine that gives
//! partial transcripts without being asked is not asked, and nobody waits for a seat to speculate.
//!
//! **The seat** is taken when the engine is asked, since an engine that is sent a whole utterance
//! is free until then; one that works while it listens needs its seat before.

mod call;
mod ear;
mod engine;
mod live;
mod mics;
mod repairs;
mod stream;
mod vad;

pub(super) use engine::works_live;
pub(in super::super) use mics::{Mic, Mics};

use super::super::Service;
use super::super::admission::Seat;
use super::super::drills::Hang;
use super::super::leaving::Watcher;
use super::super::quiet::Quiet;
use super::super::service::Active;
use crate::engine::registry::Picked;
use call::Call;
use ear::Ear;
use repairs::Repairs;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use unamesh_client::audio::opus::CodecError;
use unamesh_client::clock;
use unamesh_client::transport::{HearLink, LinkError};
use unamesh_proto::jitter::{Inserted, Jitter};
use unamesh_proto::limits::{MAX_AUDIO_FRAME, MAX_UTTERANCE_FRAMES};
use unamesh_proto::speech::uplink::Datagram;
use unamesh_proto::timeouts::{NO_SOUND, REPAIR};
use unamesh_proto::wire::{
    Draining, ErrorCode, HearAccepted, HearFrame, HearRequest, Phase, Progress, Transcript,
    WireError,
};

/// An utterance that is being heard.
pub(in super::super) struct Hearing {
    service: Arc<Service>,
    request: HearRequest,
    picked: Picked,
    jitter: Jitter,
    repairs: Repairs,
    ear: Ear,
    work: Work,
    seat: Option<Seat>,
    announced: bool,
    /// To be told, in this order.
    out: VecDeque<HearFrame>,
    /// It cannot be gone on with.
    fault: Option<WireError>,
    /// The frame in which somebody began to speak first.
    began: Option<u32>,
    /// Silence that was told in this pause.
    told: Duration,
    /// The engine was asked in this pause, or could not be.
    guessed: bool,
    /// Frames of the utterance, once that is known.
    end: Option<u32>,
    /// What was told last.
    partial: String,
    /// Signs of life of the engine.
    signs: u32,
    /// When sound came last.
    heard: Instant,
    alarm: Pin<Box<Sleep>>,
    quiet: Quiet,
    leaving: Watcher,
    hang: Hang,
    active: Option<Active>,
    waker: Option<Waker>,
}

enum Work {
    /// The engine has no call: nobody spoke yet, or it is to hear everything anew.
    Idle,
    /// It is given what comes.
    Listening(Call),
    /// It is to transcribe the frames before this one.
    Asking(Call, u32),
    /// It has.
    Answered(Transcript, u32),
    /// The last frame waits to be told, or is out.
    Over,
}

impl Hearing {
    /// The utterance of `request`, by the engine in `picked`; `seat` if it must have one before
    /// it listens.
    ///
    /// # Errors
    /// There is no memory for a codec.
    pub fn new(
        service: Arc<Service>,
        request: HearRequest,
        picked: Picked,
        seat: Option<Seat>,
        active: Active,
    ) -> Result<Self, WireError> {
        Ok(Hearing {
            jitter: Jitter::new(),
            repairs: Repairs::default(),
            ear: Ear::new().map_err(|e| no_codec(&e))?,
            work: Work::Idle,
            seat,
            announced: false,
            out: VecDeque::new(),
            fault: None,
            began: None,
            told: Duration::ZERO,
            guessed: false,
            end: None,
            partial: String::new(),
            signs: 0,
            heard: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            quiet: Quiet::new(),
            leaving: service.leaving().watch(),
            hang: Hang::default(),
            active: Some(active),
            waker: None,
            service,
            request,
            picked,
        })
    }

    // ----- sound ------------------------------------------------------------------------

    /// A frame that came reliably.
    pub fn sound(&mut self, seq: u32, opus: &[u8]) {
        match self.jitter.insert(seq, opus, clock::mono()) {
            Inserted::Refused => self.fault = Some(self.refused(seq, opus)),
            Inserted::Copy => {}
            Inserted::New | Inserted::Late => self.came(seq),
        }
        self.wake();
    }

    /// A datagram came. What is malformed or out of bounds is dropped: the frames it should have
    /// carried are asked for.
    pub fn live(&mut self, datagram: &[u8]) {
        let Ok(datagram) = Datagram::parse(datagram) else {
            return;
        };
        let now = clock::mono();
        for (seq, opus) in datagram.frames() {
            self.repairs.live(seq);
            if let Inserted::New | Inserted::Late = self.jitter.insert(seq, opus, now) {
                self.came(seq);
            }
        }
        self.wake();
    }

    /// The client says that the utterance has `frames` frames.
    pub fn end(&mut self, frames: u32) {
        match self.jitter.end(frames, clock::mono()) {
            Ok(()) => {
                self.end.get_or_insert(frames);
                self.heard = Instant::now();
            }
            Err(e) => self.fault = Some(WireError::new(ErrorCode::Protocol, e.to_string())),
        }
        self.wake();
    }

    /// A frame is new, which counts as long as it is of this utterance.
    fn came(&mut self, seq: u32) {
        if self.end.is_none_or(|end| seq < end) {
            self.heard = Instant::now();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn refused(&self, seq: u32, opus: &[u8]) -> WireError {
        let sized = (1..=MAX_AUDIO_FRAME).contains(&opus.len());
        let full = seq >= MAX_UTTERANCE_FRAMES || (sized && seq <= self.jitter.frames());
        let (code, why) = match full && self.end.is_none() {
            true => (
                ErrorCode::Limit,
                "the utterance is too long: end it, begin another",
            ),
            false => (
                ErrorCode::Protocol,
                "it is far ahead, behind the end, or has no such size",
            ),
        };
        let message = format!("frame {seq} of {} bytes was not taken: {why}", opus.len());
        WireError::new(code, message).field("seq")
    }

    // ----- frames -----------------------------------------------------------------------

    /// The next frame; `None` after the terminal one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<HearFrame>> {
        if self.active.is_none() {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = self.poll_any(cx) else {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        self.quiet.broken();
        if frame.is_terminal() {
            self.note(&frame);
            self.close();
        }
        Poll::Ready(Some(frame))
    }

    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<HearFrame> {
        if !self.announced {
            self.announced = true;
            return Poll::Ready(self.accepted());
        }
        if let Poll::Ready(frame) = self.poll_out() {
            return Poll::Ready(frame);
        }
        // An agent that stops asks no engine any more.
        if self.leaving.poll_stopped(cx).is_ready() {
            let message = "this agent has stopped: ask another";
            return Poll::Ready(failed(ErrorCode::Draining, message));
        }
        self.listen(cx);
        self.work_on(cx);
        if let Poll::Ready(frame) = self.poll_out() {
            return Poll::Ready(frame);
        }
        if let Poll::Ready(left) = self.leaving.poll_draining(cx) {
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            return Poll::Ready(HearFrame::Draining(Draining { deadline_ms }));
        }
        ready!(self.quiet.poll(cx));
        // The clock is read only when the quiet rings: these end a little late.
        Poll::Ready(self.overdue().unwrap_or_else(|| self.progress()))
    }

    /// What is to be told: faults first, since nothing else counts then.
    fn poll_out(&mut self) -> Poll<HearFrame> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(HearFrame::Error(fault));
        }
        self.out.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    // ----- what is told -----------------------------------------------------------------

    fn accepted(&self) -> HearFrame {
        HearFrame::Accepted(HearAccepted {
            engine: self.picked.index,
            digest: self.picked.model.digest.clone(),
        })
    }

    fn progress(&self) -> HearFrame {
        let phase = |phase, done, total| HearFrame::Progress(Progress { phase, done, total });
        match (&self.work, &self.seat) {
            (Work::Asking(call, _), _) if call.asked().is_some() => match self.is_cold() {
                true => phase(Phase::Loading, 0, 0),
                false => phase(Phase::Generating, self.signs, 0),
            },
            (Work::Asking(..) | Work::Idle, Some(seat)) => {
                let (done, total) = seat.ahead();
                phase(Phase::Queued, done, total)
            }
            _ => phase(Phase::Prefilling, self.ear.at(), 0),
        }
    }

    /// What has been waited for too long.
    fn overdue(&self) -> Option<HearFrame> {
        let silent = self.heard.elapsed();
        match (self.end, &self.work) {
            (Some(end), Work::Listening(_) | Work::Asking(..)) if silent >= REPAIR => {
                let missing = self.jitter.missing().find(|missing| missing.start < end)?;
                let message = format!("frame {} was asked for and did not come", missing.start);
                Some(failed(ErrorCode::Protocol, message))
            }
            (None, _) if silent >= NO_SOUND => {
                let message = format!("no sound came for {NO_SOUND:?}: ask again to go on");
                Some(failed(ErrorCode::Limit, message))
            }
            _ => None,
        }
    }

    /// Without what was said.
    fn note(&self, end: &HearFrame) {
        let (engine, model) = (self.picked.engine.name(), &self.picked.model.name);
        let (frames, stats) = (self.jitter.frames(), self.jitter.stats());
        let (concealed, late) = (stats.concealed, stats.late);
        match end {
            HearFrame::Error(error) if error.code.is_failure() => {
                tracing::warn!(engine, model, frames, concealed, late, %error, "hearing failed");
            }
            _ => tracing::debug!(engine, model, frames, concealed, late, "hearing ended"),
        }
    }

    /// Lets the engine and its seat go.
    fn close(&mut self) {
        self.work = Work::Over;
        self.seat = None;
        self.active = None;
    }
}

impl HearLink for Hearing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HearFrame, LinkError>>> {
        self.poll_next(cx).map(|frame| frame.map(Ok))
    }

    fn sound(&mut self, seq: u32, opus: &[u8]) {
        Hearing::sound(self, seq, opus);
    }

    fn live(&mut self, datagram: &[u8]) {
        Hearing::live(self, datagram);
    }

    fn end(&mut self, frames: u32) {
        Hearing::end(self, frames);
    }
}

fn no_speech(frame: u32, error: &CodecError) -> WireError {
    WireError::new(ErrorCode::Invalid, format!("frame {frame}: {error}")).field("opus")
}

fn no_codec(error: &CodecError) -> WireError {
    WireError::new(
        ErrorCode::Limit,
        format!("this agent cannot decode now: {error}"),
    )
}

fn failed(code: ErrorCode, message: impl Into<String>) -> HearFrame {
    HearFrame::Error(WireError::new(code, message))
}
