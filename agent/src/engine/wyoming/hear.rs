//! A transcription: sound goes up as it comes, transcripts come down.

use super::format;
use super::frame::Frame;
use super::link::Link;
use crate::engine::EngineError;
use crate::engine::hearing::{HearEvent, HearStream, Sound, write};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use unamesh_proto::limits::MAX_ENGINE_BODY;

/// Goes on after `transcribe` and `audio-start`.
pub fn run(link: Link, sound: Sound, partials: bool) -> HearStream {
    let hearing = Hearing {
        link,
        sound: Some(sound),
        text: String::new(),
        partials,
        over: false,
    };
    stream::unfold(Box::new(hearing), |mut hearing| async move {
        let item = hearing.next().await?;
        Some((item, hearing))
    })
    .boxed()
}

/// A transcription that runs.
struct Hearing {
    link: Link,
    /// Gone once it has ended.
    sound: Option<Sound>,
    text: String,
    partials: bool,
    over: bool,
}

enum Heard {
    Sound(Option<Vec<i16>>),
    Frame(Result<Option<Frame>, EngineError>),
}

impl Hearing {
    async fn next(&mut self) -> Option<Result<HearEvent, EngineError>> {
        while !self.over {
            match self.step().await {
                Ok(Some(event)) => {
                    self.over = matches!(event, HearEvent::Final { .. });
                    return Some(Ok(event));
                }
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    async fn step(&mut self) -> Result<Option<HearEvent>, EngineError> {
        let heard = match &mut self.sound {
            Some(sound) => tokio::select! {
                samples = sound.recv() => Heard::Sound(samples),
                frame = self.link.next() => Heard::Frame(frame),
            },
            None => Heard::Frame(self.link.next().await),
        };
        match heard {
            Heard::Sound(Some(samples)) => {
                let mut chunk = Frame::new("audio-chunk", format());
                write(&samples, &mut chunk.payload);
                self.link.send(&[chunk]).await?;
                Ok(None)
            }
            Heard::Sound(None) => {
                self.sound = None;
                self.link
                    .send(&[Frame::new("audio-stop", Value::Null)])
                    .await?;
                Ok(Some(HearEvent::Progress))
            }
            Heard::Frame(frame) => {
                let early = || self.link.failed("closed without a transcript");
                let frame = frame?.ok_or_else(early)?;
                self.frame(&frame)
            }
        }
    }

    fn frame(&mut self, frame: &Frame) -> Result<Option<HearEvent>, EngineError> {
        match frame.kind.as_str() {
            // The words of what it has not heard would be missing.
            "transcript" if self.sound.is_some() => Err(self
                .link
                .failed("sent its transcript before the sound had ended")),
            "transcript" => {
                let mut event = HearEvent::bare(frame.text("text"));
                if let HearEvent::Final { language, .. } = &mut event {
                    frame.text("language").clone_into(language);
                }
                Ok(Some(event))
            }
            "transcript-chunk" => {
                self.text.push_str(frame.text("text"));
                if self.text.len() > MAX_ENGINE_BODY {
                    return Err(self.link.failed("its transcript has no end"));
                }
                let text = self.text.trim().to_owned();
                Ok(self.partials.then_some(HearEvent::Partial { text }))
            }
            "error" => Err(self.link.complaint(frame, "")),
            _ => Ok(None),
        }
    }
}
