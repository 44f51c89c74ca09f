//! The engine's side of a text that is spoken: when it is asked for a chunk, and what becomes of
//! its sound. [`super`] has the diagram.

use super::Speaking;
use super::chunks::Chunk;
use super::meter::Meter;
use crate::engine::EngineError;
use crate::engine::registry::{self, PickedSpeech};
use crate::engine::speech::{SpeechCall, SpeechEvent, SpeechStream};
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use unamesh_client::transport::BoxFuture;
use unamesh_proto::speech::speak::PACKET;
use unamesh_proto::wire::{ErrorCode, WireError};

/// So much of an engine's sound is encoded in one go: a tenth of a second, half a millisecond's
/// work.
const PORTIONS_PER_SECOND: u32 = 10;

/// How far the engine is.
pub(super) enum Stage {
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

impl Stage {
    /// Something else than the engine took its time.
    pub fn void(&mut self) {
        if let Stage::Asking(_, meter) | Stage::Sounding(Sounding { meter, .. }) = self {
            meter.void();
        }
    }

    /// The engine was asked, and has told nothing of its sound yet.
    pub fn is_opening(&self) -> bool {
        matches!(
            self,
            Stage::Asking(..) | Stage::Sounding(Sounding { rate: None, .. })
        )
    }
}

/// A chunk of which the engine makes sound.
pub(super) struct Sounding {
    stream: SpeechStream,
    meter: Meter,
    /// The engine's, once it has told.
    rate: Option<u32>,
    /// Samples that came, and how many of them are on the track.
    pcm: Vec<i16>,
    taken: usize,
}

impl Speaking {
    /// One step; pending if there is none to be made now.
    pub(super) fn poll_stage(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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

/// The engine's failure.
pub(super) fn failure(picked: &PickedSpeech, reason: impl std::fmt::Display) -> WireError {
    let engine = picked.engine.engine.name();
    WireError::new(
        ErrorCode::EngineFailed,
        format!("{engine} failed: {reason}"),
    )
}
