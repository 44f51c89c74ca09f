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
//! of this agent itself ([`super::super::Service::speak_local`]) run the same code.
//!
//! **The lead.** The engine is never held up by the listener's grant in the middle of a chunk: it
//! would keep its slot, or give up. The next chunk is asked for as soon as one is whole, unless a
//! whole chunk is ready already of which nothing may go. So what is made in vain at a barge-in,
//! and what is held here, is the rest of one chunk and another one, as packets.
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

use super::super::Service;
use super::super::admission::Seat;
use super::super::drills::Hang;
use super::super::leaving::Watcher;
use super::super::quiet::Quiet;
use super::super::service::Active;
use super::chunks::{Chunk, Chunks};
use super::meter::Meter;
use super::track::Track;
use crate::engine::EngineError;
use crate::engine::registry::{self, PickedSpeech};
use crate::engine::speech::{SpeechCall, SpeechEvent, SpeechStream};
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;
use unamesh_client::transport::{BoxFuture, LinkError, SpeakLink};
use unamesh_proto::speech::speak::{PACKET, SAMPLES_PER_MS};
use unamesh_proto::wire::{
    Draining, ErrorCode, Grant, Phase, Progress, Residency, SpeakFrame, SpeakRequest,
    SpeechAccepted, WireError,
};

/// So much of an engine's sound is encoded in one go: a tenth of a second, half a millisecond's
/// work.
const PORTIONS_PER_SECOND: u32 = 10;
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
    /// Since when the listener has had all that was granted.
    held: Option<Instant>,
    quiet: Quiet,
    leaving: Watcher,
    hang: Hang,
    active: Option<Active>,
}

enum Stage {
    /// The next chunk is yet to be begun.
    Between,
    /// For the engine.
    Waiting(Chunk),
    Asking(BoxFuture<Result<SpeechStream, EngineError>>, Meter),
    Sounding(Sounding),
    /// The engine is done with; the end is on the track.
    Ending,
    Over,
}

/// A chunk of which the engine makes sound.
struct Sounding {
    stream: SpeechStream,
    meter: Meter,
    /// The engine's, once it has told.
    rate: Option<u32>,
    /// Samples that came, and how many of them are on the track.
    pcm: Vec<i16>,
    taken: usize,
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
            held: None,
            quiet: Quiet::new(),
            hang: Hang::default(),
            active: Some(active),
        })
    }

    /// It is asked by another member.
    pub fn for_another(mut self) -> Self {
        self.hang = Hang::of(self.service.drills());
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
            if !hung && let Some(frame) = self.track.pop(self.granted) {
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
        if !long.is_zero()
            && let Stage::Asking(_, meter) | Stage::Sounding(Sounding { meter, .. }) =
                &mut self.stage
        {
            meter.void();
        }
        Poll::Ready(())
    }

    // ----- the engine -------------------------------------------------------------------

    /// One step; pending if there is none to be made now.
    fn poll_stage(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stage {
            Stage::Ending | Stage::Over => return Poll::Pending,
            // Looked at again after each frame that goes.
            Stage::Between if self.track.is_ahead() => {
                self.seat = None;
                return Poll::Pending;
            }
            Stage::Between => self.next_chunk(),
            Stage::Waiting(_) => {
                if let Some(seat) = &mut self.seat {
                    ready!(seat.poll_taken(cx));
                }
                self.ask();
            }
            Stage::Asking(asking, _) => match ready!(asking.as_mut().poll(cx)) {
                Ok(stream) => self.sounds(stream),
                Err(error) => self.failed(registry::wire_error(&error)),
            },
            Stage::Sounding(sounding) => {
                if let Some(portion) = sounding.portion() {
                    if let Err(error) = self.track.push(portion) {
                        self.failed(failure(&self.picked, error));
                    }
                    return Poll::Ready(());
                }
                let event = ready!(Pin::new(&mut sounding.stream).poll_next(cx));
                if let Err(error) = self.event(event) {
                    self.failed(error);
                }
            }
        }
        Poll::Ready(())
    }

    /// Begins the next chunk, or the end.
    fn next_chunk(&mut self) {
        let Some(chunk) = self.chunks.next() else {
            self.track.end();
            self.seat = None;
            self.stage = Stage::Ending;
            return;
        };
        if chunk.spoken.is_empty() {
            self.track.begin(&chunk.range);
            return;
        }
        let index = self.picked.engine.index;
        match &mut self.seat {
            Some(seat) if self.begun => seat.again(),
            Some(_) => self.begun = true,
            None => match self.service.admission().enter_again(index) {
                Ok(seat) => self.seat = Some(seat),
                Err(error) => return self.failed(error),
            },
        }
        self.stage = Stage::Waiting(chunk);
    }

    fn ask(&mut self) {
        let Stage::Waiting(chunk) = std::mem::replace(&mut self.stage, Stage::Between) else {
            return;
        };
        self.track.begin(&chunk.range);
        let meter = Meter::new(&chunk.spoken, self.cold);
        let request = &self.request;
        let percent = Some(request.speed_percent).filter(|percent| *percent > 0);
        let call = SpeechCall {
            model: self.picked.engine.model.name.clone(),
            voice: self.picked.voice.clone(),
            language: request.language.clone(),
            text: chunk.spoken,
            speed: percent.map(|percent| f32::from(percent) / 100.0),
            extra: request.extra.clone(),
        };
        let engine = Arc::clone(&self.picked.engine.engine);
        let asking = Box::pin(async move { engine.speak(call).await });
        self.stage = Stage::Asking(asking, meter);
    }

    fn sounds(&mut self, stream: SpeechStream) {
        if let Stage::Asking(_, meter) = std::mem::replace(&mut self.stage, Stage::Between) {
            self.stage = Stage::Sounding(Sounding {
                stream,
                meter,
                rate: None,
                pcm: Vec::new(),
                taken: 0,
            });
        }
    }

    /// # Errors
    /// It is none that may come now, or the engine's own.
    fn event(&mut self, event: Option<Result<SpeechEvent, EngineError>>) -> Result<(), WireError> {
        let Stage::Sounding(sounding) = &mut self.stage else {
            return Ok(());
        };
        let picked = &self.picked;
        match event {
            Some(Ok(SpeechEvent::Format { rate })) => match sounding.rate.replace(rate) {
                Some(other) if other != rate => {
                    Err(failure(picked, "its rate changed within a chunk"))
                }
                _ => self.track.set_rate(rate).map_err(|e| failure(picked, e)),
            },
            Some(Ok(SpeechEvent::Pcm(_))) if sounding.rate.is_none() => {
                Err(failure(picked, "sound came before its rate"))
            }
            Some(Ok(SpeechEvent::Pcm(pcm))) => {
                if !pcm.is_empty() {
                    sounding.meter.sound();
                    self.cold = false;
                }
                (sounding.pcm, sounding.taken) = (pcm, 0);
                Ok(())
            }
            // Marks tell places by chunks: finer ones have no record yet.
            Some(Ok(SpeechEvent::Timing { .. })) => Ok(()),
            Some(Ok(SpeechEvent::Done { .. })) => self.whole(),
            Some(Err(error)) => Err(registry::wire_error(&error)),
            None => Err(failure(picked, "closed its answer without an end")),
        }
    }

    /// The engine is done with a chunk.
    fn whole(&mut self) -> Result<(), WireError> {
        let first = self.track.is_first();
        let samples = self.track.finish().map_err(|e| failure(&self.picked, e))?;
        if samples == 0 {
            return Err(failure(&self.picked, "no sound came of a text with words"));
        }
        // The first sound is what the ranking predicts, and others are to hear of each text once.
        if first
            && let Stage::Sounding(sounding) = &self.stage
            && let Some(sample) = sounding.meter.sample(samples.div_ceil(PACKET))
        {
            let engine = &self.picked.engine;
            self.service
                .registry()
                .observe(engine.index, &engine.model.name, sample);
        }
        self.stage = Stage::Between;
        Ok(())
    }

    fn failed(&mut self, error: WireError) {
        self.track.fail(error, self.granted);
        self.seat = None;
        self.stage = Stage::Ending;
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
            (Stage::Asking(..), _) | (Stage::Sounding(Sounding { rate: None, .. }), _)
                if !self.track.is_held() =>
            {
                let opening = if self.cold {
                    Phase::Loading
                } else {
                    Phase::Prefilling
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

impl Sounding {
    /// The next samples for the track.
    fn portion(&mut self) -> Option<&[i16]> {
        let rest = self.pcm.get(self.taken..).filter(|rest| !rest.is_empty())?;
        let most = self.rate? / PORTIONS_PER_SECOND;
        let portion = &rest[..rest.len().min(most.max(1) as usize)];
        self.taken += portion.len();
        Some(portion)
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

/// The engine's failure.
fn failure(picked: &PickedSpeech, reason: impl std::fmt::Display) -> WireError {
    let engine = picked.engine.engine.name();
    WireError::new(
        ErrorCode::EngineFailed,
        format!("{engine} failed: {reason}"),
    )
}
