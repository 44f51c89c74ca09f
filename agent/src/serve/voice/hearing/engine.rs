//! The engine's side of a hearing: when it listens, when it is asked, and what its words mean.
//! [`super`] has the diagram.

use super::call::Call;
use super::{Hearing, Work, no_codec, no_speech};
use crate::engine::EngineError;
use crate::engine::hearing::{HearCall, HearEvent};
use crate::engine::registry::{self, Picked, Sample};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::audio::opus::CodecError;
use unamesh_proto::limits::{MAX_TRANSCRIPT, MAX_WORDS};
use unamesh_proto::timeouts::{AUDIO_FRAME, PREROLL, QUICK_RECOGNIZER};
use unamesh_proto::wire::{
    EngineKind, ErrorCode, HearFrame, Partial, Residency, Transcript, WireError, Word,
};

/// Engines of this kind work on the sound as it comes. Others are sent it as a whole, or keep it
/// until they are told that this was all.
pub(in super::super) fn works_live(kind: EngineKind) -> bool {
    kind == EngineKind::GlmAsr
}

/// Steps in one go, of an engine that has always something to say.
const STEPS: usize = 64;

impl Hearing {
    /// Lets the engine work until there is something to tell.
    pub(super) fn work_on(&mut self, cx: &mut Context<'_>) {
        for _ in 0..STEPS {
            if self.poll_work(cx).is_pending() || self.fault.is_some() || !self.out.is_empty() {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    /// One step; pending if there is none to be made now.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let played = ready!(self.hang.poll(cx));
        if !played.is_zero() {
            self.heard = Instant::now();
        }
        let over = self.end.filter(|end| self.ear.at() >= *end);
        match (std::mem::replace(&mut self.work, Work::Idle), over) {
            (Work::Idle, _) => self.poll_open(cx),
            // The engine has heard less, and not all since then is known to be silence.
            (Work::Asking(_, at) | Work::Answered(_, at), Some(end))
                if at < end && !self.ear.heard_since(at) =>
            {
                self.let_go();
                Poll::Ready(())
            }
            (Work::Listening(call), Some(end)) => {
                self.work = Work::Asking(call, end);
                Poll::Ready(())
            }
            (Work::Listening(mut call), None) => {
                let fed = call.poll_feed(&self.jitter, self.jitter.frames(), cx);
                let event = self.fed(fed, &mut call, cx);
                self.work = Work::Listening(call);
                self.event(ready!(event), None)
            }
            (Work::Asking(mut call, at), _) => {
                let mut fed = call.poll_feed(&self.jitter, at, cx);
                if let Poll::Ready(Ok(())) = fed
                    && call.asked().is_none()
                {
                    match self.poll_seat(over.is_some(), cx) {
                        Poll::Ready(Ok(true)) => call.ask(),
                        Poll::Ready(Ok(false)) => {
                            self.work = Work::Listening(call);
                            return Poll::Ready(());
                        }
                        Poll::Ready(Err(error)) => {
                            self.fault = Some(error);
                            return Poll::Pending;
                        }
                        Poll::Pending => fed = Poll::Pending,
                    }
                }
                let event = self.fed(fed, &mut call, cx);
                self.work = Work::Asking(call, at);
                self.event(ready!(event), Some(at))
            }
            (Work::Answered(transcript, _), Some(frames)) => {
                let transcript = Transcript {
                    frames,
                    ..transcript
                };
                self.out.push_back(HearFrame::Final(transcript));
                self.work = Work::Over;
                Poll::Pending
            }
            (waiting, _) => {
                self.work = waiting;
                Poll::Pending
            }
        }
    }

    /// Has the engine listen, once there is something to hear.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.request.vad_ms > 0 && self.began.is_none() && self.end.is_none() {
            return Poll::Pending;
        }
        if works_live(self.picked.engine.kind()) {
            match ready!(self.poll_seat(true, cx)) {
                Ok(_) => {}
                Err(error) => {
                    self.fault = Some(error);
                    return Poll::Pending;
                }
            }
        }
        let preroll = u32::try_from(PREROLL.as_millis() / AUDIO_FRAME.as_millis()).unwrap_or(0);
        let from = match (self.request.vad_ms, self.began) {
            (1.., Some(began)) => began.saturating_sub(preroll),
            _ => 0,
        };
        let call = HearCall {
            model: self.picked.model.name.clone(),
            language: self.request.language.clone(),
            prompt: self.request.prompt.clone(),
            partials: self.request.partials,
            extra: String::new(),
        };
        match Call::new(Arc::clone(&self.picked.engine), call, from) {
            Ok(call) => self.work = Work::Listening(call),
            Err(error) => self.fault = Some(no_codec(&error)),
        }
        Poll::Ready(())
    }

    /// Ready with true once the engine's slot is ours. `sure`: it is worth waiting for; else
    /// ready with false where it is not free now.
    fn poll_seat(&mut self, sure: bool, cx: &mut Context<'_>) -> Poll<Result<bool, WireError>> {
        if self.seat.is_none() {
            match self.service.admission().enter(self.picked.index) {
                Ok(seat) => self.seat = Some(seat),
                Err(error) if sure => return Poll::Ready(Err(error)),
                Err(_) => return Poll::Ready(Ok(false)),
            }
        }
        let taken = self.seat.as_mut().map(|seat| seat.poll_taken(cx));
        if taken.is_some_and(|taken| taken.is_ready()) {
            return Poll::Ready(Ok(true));
        }
        if sure {
            return Poll::Pending;
        }
        self.seat = None;
        Poll::Ready(Ok(false))
    }

    /// The engine's next event, after it was given what there is.
    fn fed(
        &mut self,
        fed: Poll<Result<(), (u32, CodecError)>>,
        call: &mut Call,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HearEvent, EngineError>>> {
        if let Poll::Ready(Err((frame, error))) = fed {
            self.fault = Some(no_speech(frame, &error));
            return Poll::Pending;
        }
        call.poll_event(cx)
    }

    /// Takes in an event of the engine, which was asked about the frames before `at`.
    fn event(
        &mut self,
        event: Option<Result<HearEvent, EngineError>>,
        at: Option<u32>,
    ) -> Poll<()> {
        self.signs = self.signs.saturating_add(1);
        match event {
            Some(Ok(HearEvent::Progress)) => {}
            Some(Ok(HearEvent::Partial { text })) => self.tell(text),
            Some(Ok(HearEvent::Final {
                text,
                language,
                words,
                confidence,
            })) => {
                let transcript = Transcript {
                    text,
                    language,
                    words: self.shifted(words),
                    confidence,
                    frames: 0,
                };
                self.transcribed(transcript, at);
            }
            Some(Err(error)) => self.broke(registry::wire_error(&error), at),
            None => {
                let message = "closed its answer without a transcript";
                self.broke(failure(&self.picked, message), at);
            }
        }
        Poll::Ready(())
    }

    fn transcribed(&mut self, transcript: Transcript, at: Option<u32>) {
        let asked = match &self.work {
            Work::Listening(call) | Work::Asking(call, _) => call.asked(),
            _ => None,
        };
        let (Some(asked), Some(at)) = (asked, at) else {
            let message = "ended before the utterance did";
            self.fault = Some(failure(&self.picked, message));
            return;
        };
        if transcript.text.len() > MAX_TRANSCRIPT {
            let message = format!("sent a transcript of {} bytes", transcript.text.len());
            self.fault = Some(failure(&self.picked, message));
            return;
        }
        self.observe(asked);
        if self.end.is_none() {
            self.tell(transcript.text.clone());
        }
        self.let_go();
        self.work = Work::Answered(transcript, at);
    }

    /// The engine failed. A guess that fails is none; the end shows whether it was a whim.
    fn broke(&mut self, error: WireError, at: Option<u32>) {
        if at.is_some() && self.end.is_none() {
            tracing::debug!(engine = self.picked.engine.name(), %error, "no speculation");
            self.let_go();
        } else {
            self.fault = Some(error);
        }
    }

    /// Tells what is understood so far.
    fn tell(&mut self, text: String) {
        if text.len() > MAX_TRANSCRIPT {
            let message = format!("sent a partial transcript of {} bytes", text.len());
            self.fault = Some(failure(&self.picked, message));
        } else if self.request.partials && !text.is_empty() && text != self.partial {
            self.partial.clone_from(&text);
            self.out.push_back(HearFrame::Partial(Partial { text }));
        }
    }

    /// The engine's words with their times in the whole utterance.
    fn shifted(&self, words: Vec<crate::engine::hearing::Word>) -> Vec<Word> {
        let from = match &self.work {
            Work::Listening(call) | Work::Asking(call, _) => call.from(),
            _ => 0,
        };
        let late = AUDIO_FRAME * from;
        let late = u32::try_from(late.as_millis()).unwrap_or(u32::MAX);
        let word = |word: crate::engine::hearing::Word| Word {
            text: word.text,
            start_ms: word.start_ms.saturating_add(late),
            end_ms: word.end_ms.saturating_add(late),
        };
        words.into_iter().take(MAX_WORDS).map(word).collect()
    }

    /// What the engine took from being asked; a frame counts as a token of a prompt.
    fn observe(&self, asked: Instant) {
        let (Work::Asking(call, _), Picked { index, model, .. }) = (&self.work, &self.picked)
        else {
            return;
        };
        let (took, cold) = (asked.elapsed(), self.is_cold());
        let sample = Sample {
            prompt_tokens: call.frames(),
            ttft: (!cold).then_some(took),
            load: cold.then_some(took),
            itl: None,
        };
        self.service.registry().observe(*index, &model.name, sample);
    }

    /// It was seen to transcribe within [`QUICK_RECOGNIZER`].
    pub(super) fn is_quick(&self) -> bool {
        let stats = self.picked.model.stats;
        let typical = Duration::try_from_secs_f32(stats.ttft_ms / 1000.0);
        stats.samples > 0 && typical.is_ok_and(|typical| typical <= QUICK_RECOGNIZER)
    }

    pub(super) fn is_cold(&self) -> bool {
        let residency = self.picked.model.residency;
        self.signs == 0 && !matches!(residency, Residency::Loaded | Residency::Pinned)
    }
}

fn failure(picked: &Picked, reason: impl std::fmt::Display) -> WireError {
    let message = format!("{} {reason}", picked.engine.name());
    WireError::new(ErrorCode::EngineFailed, message)
}
