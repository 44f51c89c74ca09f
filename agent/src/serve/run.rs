//! One generation as its frames, wherever they go.
//!
//! ```text
//!   waiting ──seated──► opening ──headers──► streaming ──► over
//!      │ (queue)           │ (engine refuses)    │ Done, error, early end, stop
//!      └───────────────────┴─────────────────────┘
//! ```
//! [`Run::poll_frame`] is the whole of it: it polls the engine's stream itself, in the task of
//! whoever wants the frames, and makes of it `Accepted`, `Token`s with their index, one
//! terminal frame, and a `Progress` whenever nothing went out for
//! [`unamesh_proto::timeouts::PROGRESS_EVERY`]. A request over QUIC ([`super::generation`]) and one of this
//! agent itself ([`super::Service::open_local`]) run the same code.
//!
//! `Accepted` comes before anything is known of the engine, so that the client can reattach
//! from the first moment; its `exact` is then a forecast. Should the engine say otherwise, a
//! second `Accepted` corrects it, before the first token.
//!
//! Stop sequences are looked for here as well, since one that straddles a seam is seen by no
//! engine ([`unamesh_proto::stops`]).
//!
//! The engine's stream and the seat are dropped with the terminal frame, or with the `Run`:
//! that closes the engine's connection and stops its work.

use super::Service;
use super::admission::Seat;
use super::drills::Hang;
use super::leaving::Watcher;
use super::meter::Meter;
use super::quiet::Quiet;
use super::service::Active;
use crate::engine::registry::{self, Picked};
use crate::engine::{EngineError, EngineEvent, EngineStream};
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use unamesh_client::transport::{BoxFuture, FrameStream, LinkError};
use unamesh_proto::stops::{Piece, Stops};
use unamesh_proto::wire::{
    Accepted, Chunk, Done, Draining, ErrorCode, FinishReason, GenFrame, GenerateRequest, Phase,
    Progress, Residency, Token, Usage, WireError,
};
use unamesh_proto::{GenerationId, limits};

/// Bytes of a token record beside its texts and ids: index, lengths, counts.
const TOKEN_OVERHEAD: usize = 64;
/// The most that a token id takes on the wire.
const ID_BYTES: usize = 5;

/// A generation that runs, or waits to.
pub(super) struct Run {
    service: Arc<Service>,
    request: Arc<GenerateRequest>,
    picked: Picked,
    id: GenerationId,
    exact: bool,
    announced: bool,
    stage: Stage,
    seat: Option<Seat>,
    /// The index of the next token frame.
    next: u32,
    stops: Stops,
    /// Surely part of the answer, and not yet made a frame.
    ready: VecDeque<Piece>,
    /// What a silent moment says.
    doing: Progress,
    quiet: Quiet,
    leaving: Watcher,
    meter: Meter,
    active: Option<Active>,
    hang: Hang,
}

enum Stage {
    Waiting,
    Opening(BoxFuture<Result<EngineStream, EngineError>>),
    Streaming(EngineStream),
    /// The engine is done with; what is ready comes before this end.
    Ending(FinishReason, Usage),
    Over,
}

impl Run {
    /// A generation that holds `seat` at the engine in `picked`.
    pub fn new(
        service: Arc<Service>,
        request: Arc<GenerateRequest>,
        picked: Picked,
        seat: Seat,
        active: Active,
    ) -> Self {
        let whole_ids = request
            .prefix
            .iter()
            .all(|c| c.text.is_empty() || !c.ids.is_empty());
        Run {
            id: GenerationId(rand::random()),
            exact: picked.model.token_ids && whole_ids,
            announced: false,
            stage: Stage::Waiting,
            seat: Some(seat),
            next: u32::try_from(request.prefix.len()).unwrap_or(u32::MAX),
            stops: Stops::new(&request.sampling.stop, &request.prefix),
            ready: VecDeque::new(),
            doing: Progress {
                phase: opening_phase(picked.model.residency),
                done: 0,
                total: 0,
            },
            quiet: Quiet::new(),
            leaving: service.leaving().watch(),
            meter: Meter::new(&request, picked.model.residency),
            active: Some(active),
            hang: Hang::default(),
            service,
            request,
            picked,
        }
    }

    /// It is asked by another member.
    pub fn for_another(mut self) -> Self {
        self.hang = Hang::of(self.service.drills());
        self
    }

    /// What a client names to reattach.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// The next frame; `None` after the terminal one.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<GenFrame>> {
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

    /// Tells that the frames' reader, and not the engine, took `long`.
    pub fn held_up(&mut self, long: Duration) {
        self.meter.exclude(long);
    }

    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<GenFrame> {
        if !self.announced {
            self.announced = true;
            return Poll::Ready(self.accepted());
        }
        // An engine that delivers comes first, since nothing else is worth its cost then; one
        // that was not asked yet is not asked any more by an agent that stops.
        let delivers = matches!(self.stage, Stage::Streaming(_) | Stage::Ending(..));
        if delivers && let Poll::Ready(frame) = self.poll_stage(cx) {
            return Poll::Ready(frame);
        }
        if self.leaving.poll_stopped(cx).is_ready() {
            let message = "this agent has stopped: ask another";
            return Poll::Ready(failed(ErrorCode::Draining, message));
        }
        if !delivers && let Poll::Ready(frame) = self.poll_stage(cx) {
            return Poll::Ready(frame);
        }
        if let Poll::Ready(left) = self.leaving.poll_draining(cx) {
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            return Poll::Ready(GenFrame::Draining(Draining { deadline_ms }));
        }
        ready!(self.quiet.poll(cx));
        Poll::Ready(GenFrame::Progress(self.progress()))
    }

    fn poll_stage(&mut self, cx: &mut Context<'_>) -> Poll<GenFrame> {
        loop {
            // It was no slowness of the engine.
            self.meter.exclude(ready!(self.hang.poll(cx)));
            if let Some((chunk, extra)) = self.ready.pop_front() {
                return Poll::Ready(self.token(chunk, extra));
            }
            let event = match &mut self.stage {
                Stage::Over => return Poll::Pending,
                Stage::Ending(finish, usage) => {
                    let (finish, usage) = (*finish, *usage);
                    return Poll::Ready(self.done(finish, usage));
                }
                Stage::Waiting => {
                    if let Some(seat) = &mut self.seat {
                        ready!(seat.poll_taken(cx));
                    }
                    self.open();
                    continue;
                }
                Stage::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(stream) => {
                        self.stage = Stage::Streaming(stream);
                        continue;
                    }
                    Err(e) => return Poll::Ready(GenFrame::Error(registry::wire_error(&e))),
                },
                Stage::Streaming(stream) => ready!(Pin::new(stream).poll_next(cx)),
            };
            let frame = match event {
                Some(Ok(event)) => self.event(event),
                Some(Err(e)) => Some(GenFrame::Error(registry::wire_error(&e))),
                None => Some(self.ended_early()),
            };
            if let Some(frame) = frame {
                return Poll::Ready(frame);
            }
        }
    }

    fn open(&mut self) {
        self.meter.opened();
        let (engine, request) = (Arc::clone(&self.picked.engine), Arc::clone(&self.request));
        self.stage = Stage::Opening(Box::pin(async move { engine.generate(request).await }));
    }

    fn event(&mut self, event: EngineEvent) -> Option<GenFrame> {
        match event {
            EngineEvent::Started { exact } => {
                let news = exact != self.exact && !self.request.prefix.is_empty();
                self.exact = exact;
                news.then(|| self.accepted())
            }
            EngineEvent::Progress { phase, done, total } => {
                // A change of phase is told at once, a count when something is due anyway: an
                // engine that counts fast must not flood the stream.
                let news = phase != self.doing.phase;
                self.doing = Progress { phase, done, total };
                news.then_some(GenFrame::Progress(self.doing))
            }
            EngineEvent::Chunk { chunk, extra } => {
                self.made(chunk, extra);
                None
            }
            EngineEvent::Done { finish, usage } => {
                self.stops.end(&mut self.ready);
                self.stage = Stage::Ending(finish, usage);
                None
            }
        }
    }

    /// The engine made a piece; a stop sequence that is now complete ends its work.
    fn made(&mut self, chunk: Chunk, extra: String) {
        self.meter.token(chunk.tokens);
        self.doing = Progress {
            phase: Phase::Generating,
            done: self.meter.tokens(),
            total: 0,
        };
        if self.stops.push(chunk, extra, &mut self.ready) {
            self.stage = Stage::Ending(FinishReason::Stop, Usage::default());
        }
    }

    fn token(&mut self, chunk: Chunk, extra: String) -> GenFrame {
        let size = chunk.text.len() + extra.len() + chunk.ids.len() * ID_BYTES + TOKEN_OVERHEAD;
        if size > limits::MAX_MEDIUM_RECORD {
            let message = format!(
                "{} sent a piece of {size} bytes, at most {} are allowed",
                self.picked.engine.name(),
                limits::MAX_MEDIUM_RECORD
            );
            return failed(ErrorCode::EngineFailed, message);
        }
        if self.next >= limits::MAX_TOKENS {
            let message = format!(
                "{} made more than {} pieces without an end",
                self.picked.engine.name(),
                limits::MAX_TOKENS
            );
            return failed(ErrorCode::EngineFailed, message);
        }
        let index = self.next;
        self.next += 1;
        GenFrame::Token(Token {
            index,
            chunk,
            extra,
        })
    }

    fn done(&mut self, finish: FinishReason, mut usage: Usage) -> GenFrame {
        self.meter.prompt(usage.prompt_tokens);
        if usage.completion_tokens == 0 {
            usage.completion_tokens = self.meter.tokens();
        }
        let replayed = self.request.prefix.iter().map(|chunk| chunk.tokens);
        usage.completion_tokens = replayed.fold(usage.completion_tokens, u32::saturating_add);
        GenFrame::Done(Done {
            finish,
            usage,
            frames: self.next,
        })
    }

    fn ended_early(&self) -> GenFrame {
        let message = format!(
            "{} closed its answer after {} tokens, without an end",
            self.picked.engine.name(),
            self.meter.tokens()
        );
        failed(ErrorCode::EngineFailed, message)
    }

    fn accepted(&self) -> GenFrame {
        GenFrame::Accepted(Accepted {
            generation: self.id,
            engine: self.picked.index,
            digest: self.picked.model.digest.clone(),
            exact: self.exact,
        })
    }

    fn progress(&self) -> Progress {
        match (&self.stage, &self.seat) {
            (Stage::Waiting, Some(seat)) => {
                let (done, total) = seat.ahead();
                Progress {
                    phase: Phase::Queued,
                    done,
                    total,
                }
            }
            _ => self.doing,
        }
    }

    fn note(&self, end: &GenFrame) {
        let (engine, model) = (self.picked.engine.name(), &self.picked.model.name);
        match end {
            GenFrame::Error(error) if error.code.is_failure() => {
                tracing::warn!(engine, model, tokens = self.meter.tokens(), %error, "failed");
            }
            _ => tracing::debug!(engine, model, tokens = self.meter.tokens(), "ended"),
        }
    }

    /// Lets the engine and its seat go, and reports what was measured.
    fn close(&mut self) {
        self.stage = Stage::Over;
        self.seat = None;
        self.active = None;
        if let Some(sample) = self.meter.sample() {
            let Picked { index, model, .. } = &self.picked;
            self.service.registry().observe(*index, &model.name, sample);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A cancelled generation was measured too: barge-ins cancel most answers.
        if !matches!(self.stage, Stage::Over) {
            self.close();
        }
    }
}

impl FrameStream for Run {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        Run::poll_frame(self, cx).map(|frame| frame.map(Ok))
    }
}

/// What an engine does between the request and its first word.
fn opening_phase(residency: Residency) -> Phase {
    match residency {
        Residency::Loaded | Residency::Pinned => Phase::Prefilling,
        _ => Phase::Loading,
    }
}

fn failed(code: ErrorCode, message: impl Into<String>) -> GenFrame {
    GenFrame::Error(WireError::new(code, message))
}
