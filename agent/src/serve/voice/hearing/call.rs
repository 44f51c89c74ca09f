//! An engine's work on one utterance: the sound goes in, transcripts come out.
//!
//! **The engine hears an undisturbed utterance, always.** It gets each frame once, in order, and
//! a gap is waited for until its repair is here: concealed sound would make another transcript,
//! and the same words must come out whatever was lost on the way. What went before the engine
//! was asked is given to it as fast as it takes it; frames are decoded when it takes them, so
//! that what is kept of an utterance is its packets.

use crate::engine::hearing::{HearCall, HearEvent, HearStream};
use crate::engine::{Engine, EngineError};
use futures_util::StreamExt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::PollSender;
use unamesh_client::audio::opus::{CodecError, Decoder, Profile};
use unamesh_client::audio::pcm::to_s16;
use unamesh_client::transport::BoxFuture;
use unamesh_proto::jitter::Jitter;

/// Frames that go to the engine in one piece when many are here: half a second.
const PIECE: u32 = 25;
/// Pieces that may wait for the engine.
const PIECES: usize = 8;

/// One call of an engine.
pub(super) struct Call {
    stage: Stage,
    /// Gone once the engine was told that this was all, or wants no more.
    sound: Option<PollSender<Vec<i16>>>,
    decoder: Decoder,
    /// The first frame that goes in.
    from: u32,
    /// The next.
    next: u32,
    /// When it was told that this was all.
    asked: Option<Instant>,
    /// It gives partial transcripts without being asked.
    tells: bool,
}

enum Stage {
    Opening(BoxFuture<Result<HearStream, EngineError>>),
    Running(HearStream),
}

impl Call {
    /// Has `engine` listen from frame `from` on.
    ///
    /// # Errors
    /// libopus has no memory.
    pub fn new(engine: Arc<dyn Engine>, call: HearCall, from: u32) -> Result<Self, CodecError> {
        let (sender, sound) = mpsc::channel(PIECES);
        let opening = Box::pin(async move { engine.hear(call, sound).await });
        Ok(Call {
            stage: Stage::Opening(opening),
            sound: Some(PollSender::new(sender)),
            decoder: Decoder::new(Profile::Up, 0)?,
            from,
            next: from,
            asked: None,
            tells: false,
        })
    }

    /// Gives the engine what is here of the frames before `until`. Ready when it has them all;
    /// pending until more is here or it takes more, of which the second wakes.
    ///
    /// # Errors
    /// A frame is none of speech.
    pub fn poll_feed(
        &mut self,
        jitter: &Jitter,
        until: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (u32, CodecError)>> {
        while self.next < until {
            if jitter.frame(self.next).is_none() {
                return Poll::Pending;
            }
            let Some(sound) = &mut self.sound else {
                break;
            };
            if ready!(sound.poll_reserve(cx)).is_err() {
                // It wants no more, and its stream says why.
                self.sound = None;
                break;
            }
            let piece = self.piece(jitter, until)?;
            let sent = self.sound.as_mut().map(|sound| sound.send_item(piece));
            if sent.is_some_and(|sent| sent.is_err()) {
                self.sound = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next frames, as far as they are here.
    fn piece(&mut self, jitter: &Jitter, until: u32) -> Result<Vec<i16>, (u32, CodecError)> {
        let end = until.min(self.next + PIECE);
        let mut piece = Vec::with_capacity((end - self.next) as usize * Profile::Up.frame());
        while self.next < end
            && let Some(frame) = jitter.frame(self.next)
        {
            let sound = self.decoder.decode(frame).map_err(|e| (self.next, e))?;
            piece.extend(sound.iter().copied().map(to_s16));
            self.next += 1;
        }
        Ok(piece)
    }

    /// Tells the engine that this was all.
    pub fn ask(&mut self) {
        self.sound = None;
        self.asked.get_or_insert_with(Instant::now);
    }

    /// What the engine says next; `None` if its stream ended.
    pub fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HearEvent, EngineError>>> {
        if let Stage::Opening(opening) = &mut self.stage {
            match ready!(opening.as_mut().poll(cx)) {
                Ok(stream) => self.stage = Stage::Running(stream),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let Stage::Running(stream) = &mut self.stage else {
            return Poll::Pending;
        };
        let event = ready!(stream.poll_next_unpin(cx));
        let partial = matches!(event, Some(Ok(HearEvent::Partial { .. })));
        self.tells |= partial && self.asked.is_none();
        Poll::Ready(event)
    }

    /// The first frame of its sound.
    pub fn from(&self) -> u32 {
        self.from
    }

    /// Frames that went in.
    pub fn frames(&self) -> u32 {
        self.next - self.from
    }

    /// When the engine was told that this was all.
    pub fn asked(&self) -> Option<Instant> {
        self.asked
    }

    /// It gives partial transcripts without being asked.
    pub fn tells(&self) -> bool {
        self.tells
    }
}
