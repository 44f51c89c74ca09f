//! One spoken text as its frames, wherever they go.
//!
//! ```text
//!             ┌─────────────── the chunk is whole ───────────────┐
//!             ▼                                                  │
//!   between ──► waiting ──seated──► asking ──headers──► sounding ┤
//!      │ no chunk is left                                        │ engine fails
//!      └──────────────────────► ending ◄─────────────────────────┘
//! ```
//! [`Speaking::poll_next`] is the whole of it: it polls the engine's stream itself, in the task
//! of whoever wants the frames, and makes of it `SpeechAccepted`, for each chunk a `SpokenMark`
//! and its packets, one terminal frame, and a `Progress` whenever nothing went out for
//! [`unamesh_proto::timeouts::PROGRESS_EVERY`]. A stream over QUIC ([`super::stream`]) and one
//! of this agent itself ([`Service::speak_local`]) run the same code.
//!
//! **The lead.** The engine is never held up by the listener's grant in the middle of a chunk: it
//! would keep its slot, or give up. The next chunk is asked for as soon as one is whole, unless a
//! whole chunk is ready already of which nothing may go. So what is made in vain at a barge-in,
//! and what is held here, is the rest of one chunk and another one, as packets.
//!
//! **The first sound** waits until there is a little more of it where the listener is far away
//! ([`start`]).
//!
//! **The seat** is that of a chunk. Whoever has enough to play leaves the engine to others; for
//! its next chunk it is seated before all who have not begun.
//!
//! **Nothing is lost silently.** A chunk with words of which no sound came is the engine's
//! failure, and so is an end without `Done`. What was made of the chunk before goes as far as it
//! is granted, then the error. A chunk without words is a mark without packets.
//!
//! The engine's stream is dropped with the chunk, the failure, or the `Speaking`: that closes the
//! engine's connection and stops its work.

mod chunks;
mod engine;
mod meter;
mod start;
mod track;

pub(super) use chunks::Chunks;

use super::super::Service;
use super::super::admission::Seat;
use super::super::drills::Hang;
use super::super::leaving::Watcher;
use super::super::quiet::Quiet;
use super::super::service::Active;
use super::stream::Served;
use crate::engine::registry::PickedSpeech;
use engine::{Stage, failure};
use start::Start;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use track::Track;
use unamesh_client::transport::{LinkError, SpeakLink};
use unamesh_proto::speech::speak::SAMPLES_PER_MS;
use unamesh_proto::wire::{
    DecodeError, Draining, ErrorCode, Grant, Phase, Progress, Record, Residency, SpeakFrame,
    SpeakRequest, SpeechAccepted, WireError, codec,
};

/// So many portions are encoded before others get their turn, if nothing of them may go.
const BURST: usize = 4;

/// A text that is being spoken, or waits to be.
pub(in super::super) struct Speaking {
    service: Arc<Service>,
    request: Arc<SpeakRequest>,
    picked: PickedSpeech,
    chunks: Chunks,
    track: Track,
    announced: bool,
    stage: Stage,
    seat: Option<Seat>,
    /// The engine was asked for a chunk.
    begun: bool,
    /// The model is not in memory, as far as is known.
    cold: bool,
    /// Packets that begin before this sample of the stream may go.
    granted: u64,
    start: Start,
    /// Since when the listener has had all that was granted.
    held: Option<Instant>,
    quiet: Quiet,
    leaving: Watcher,
    hang: Hang,
    active: Option<Active>,
}

impl Speaking {
    /// The `chunks` of `request`, by the engine in `picked` at which it holds `seat`.
    ///
    /// # Errors
    /// There is no memory for a codec.
    pub(super) fn new(
        service: Arc<Service>,
        request: Arc<SpeakRequest>,
        chunks: Chunks,
        picked: PickedSpeech,
        seat: Seat,
        active: Active,
    ) -> Result<Self, WireError> {
        let track = Track::new().map_err(|e| failure(&picked, e))?;
        let residency = picked.engine.model.residency;
        Ok(Speaking {
            leaving: service.leaving().watch(),
            cold: !matches!(residency, Residency::Loaded | Residency::Pinned),
            granted: u64::from(request.grant_ms) * SAMPLES_PER_MS,
            service,
            request,
            picked,
            chunks,
            track,
            announced: false,
            stage: Stage::Between,
            seat: Some(seat),
            begun: false,
            start: Start::default(),
            held: None,
            quiet: Quiet::new(),
            hang: Hang::default(),
            active: Some(active),
        })
    }

    /// It is asked by another member, a round trip of `rtt` away.
    pub fn for_another(mut self, rtt: Duration) -> Self {
        self.hang = Hang::of(self.service.drills());
        self.start = Start::over(rtt);
        self
    }

    /// The listener may be given more.
    pub fn grant(&mut self, grant: Grant) {
        self.granted = self.granted.max(u64::from(grant.until_ms) * SAMPLES_PER_MS);
        self.held = None;
    }

    /// The next frame; `None` after the terminal one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SpeakFrame>> {
        if matches!(self.stage, Stage::Over) {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_any(cx));
        self.quiet.broken();
        if frame.is_terminal() {
            self.note(&frame);
            self.close();
        }
        Poll::Ready(Some(frame))
    }

    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<SpeakFrame> {
        if !self.announced {
            self.announced = true;
            return Poll::Ready(self.accepted());
        }
        let hung = self.poll_hung(cx).is_pending();
        for _ in 0..BURST {
            if !hung
                && self.poll_start(cx).is_ready()
                && let Some(frame) = self.track.pop(self.granted)
            {
                return Poll::Ready(frame);
            }
            // An agent that stops asks no engine any more.
            if self.leaving.poll_stopped(cx).is_ready() {
                let error =
                    WireError::new(ErrorCode::Draining, "this agent has stopped: ask another");
                return Poll::Ready(SpeakFrame::Error(error));
            }
            if hung || self.poll_stage(cx).is_pending() {
                return self.poll_aside(cx);
            }
        }
        cx.waker().wake_by_ref();
        self.poll_aside(cx)
    }

    /// Ready once the first sound may go: there is enough of it, or there will be no more of its
    /// chunk.
    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.track.is_first() || matches!(self.stage, Stage::Ending) {
            return Poll::Ready(());
        }
        self.start.poll(self.track.made(), self.granted, cx)
    }

    /// What goes out while there is no sound that may.
    fn poll_aside(&mut self, cx: &mut Context<'_>) -> Poll<SpeakFrame> {
        if let Poll::Ready(left) = self.leaving.poll_draining(cx) {
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            return Poll::Ready(SpeakFrame::Draining(Draining { deadline_ms }));
        }
        self.held = self
            .track
            .is_held()
            .then(|| self.held.unwrap_or_else(Instant::now));
        ready!(self.quiet.poll(cx));
        // Looked at only when the quiet rings: a pause ends a little late.
        let pause = self.service.config().listener_pause;
        if self.held.is_some_and(|since| since.elapsed() >= pause) {
            let message = format!("nothing was played for {pause:?}: ask again to go on");
            let error = WireError::new(ErrorCode::Limit, message);
            return Poll::Ready(SpeakFrame::Error(error));
        }
        Poll::Ready(SpeakFrame::Progress(self.progress()))
    }

    /// Pending while a drill has the engine play dead.
    fn poll_hung(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let long = ready!(self.hang.poll(cx));
        if !long.is_zero() {
            self.stage.void();
        }
        Poll::Ready(())
    }

    // ----- what is told -----------------------------------------------------------------

    fn accepted(&self) -> SpeakFrame {
        SpeakFrame::Accepted(SpeechAccepted {
            engine: self.picked.engine.index,
            voice: self.picked.voice.clone(),
            // Nobody is given another one: who has not the voice asked for refuses.
            same_voice: true,
            pre_skip: self.track.pre_skip(),
        })
    }

    fn progress(&self) -> Progress {
        let phase = |phase, done, total| Progress { phase, done, total };
        match (&self.stage, &self.seat) {
            (Stage::Waiting(_), Some(seat)) if !self.track.is_held() => {
                let (done, total) = seat.ahead();
                phase(Phase::Queued, done, total)
            }
            (stage, _) if stage.is_opening() && !self.track.is_held() => {
                let opening = match self.cold {
                    true => Phase::Loading,
                    false => Phase::Prefilling,
                };
                phase(opening, 0, 0)
            }
            _ => phase(Phase::Generating, self.track.sent(), 0),
        }
    }

    /// Without what was said.
    fn note(&self, end: &SpeakFrame) {
        let engine = self.picked.engine.engine.name();
        let (model, packets) = (&self.picked.engine.model.name, self.track.sent());
        match end {
            SpeakFrame::Error(error) if error.code.is_failure() => {
                tracing::warn!(engine, model, packets, %error, "speech failed");
            }
            _ => tracing::debug!(engine, model, packets, "speech ended"),
        }
    }

    /// Lets the engine and its seat go.
    fn close(&mut self) {
        self.stage = Stage::Over;
        self.seat = None;
        self.active = None;
    }
}

impl SpeakLink for Speaking {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>> {
        self.poll_next(cx).map(|frame| frame.map(Ok))
    }

    fn grant(&mut self, grant: Grant) {
        Speaking::grant(self, grant);
    }
}

impl Served for Speaking {
    type Frame = SpeakFrame;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SpeakFrame>> {
        Speaking::poll_next(self, cx)
    }

    fn said(&mut self, kind: u16, body: &[u8]) -> Result<(), DecodeError> {
        match kind {
            Grant::KIND => self.grant(codec::body(body)?),
            kind => {
                let expected = Grant::NAME;
                return Err(DecodeError::Unexpected { expected, kind });
            }
        }
        Ok(())
    }
}
