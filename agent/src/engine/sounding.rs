//! From the bytes of an engine that speaks to speech events: one reader for all APIs.
//!
//! What comes is believed rather than what was asked for or announced: Piper sends WAV as
//! `text/html`, others send errors in words with status 200 or WAV where raw samples were asked
//! for. So the first bytes decide ([`MARK`]). The rate and the format come from the WAV's header,
//! or from whoever knows what the raw samples are. Samples are handed out as they come.
//!
//! An end without sound, a WAV that is cut off, silence where there are words to say and speech
//! that never ends are errors; what was handed out before stays good.

use super::http::Body;
use super::speech::{SpeechCall, SpeechEvent, SpeechStream, blames_voice, unknown_voice};
use super::{EngineError, MAX_ERROR_BODY};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use std::collections::VecDeque;
use unamesh_client::audio::pcm::{Bytes, Format, to_s16};
use unamesh_client::audio::wav::Parser;
use unamesh_proto::limits::{MAX_SPEECH_SECONDS, MAX_SPEECH_SECONDS_PER_CHAR};

/// No voice is as quiet as this all the time; dither and a filter's ringing are.
const SILENT: u16 = 32;
/// Bytes by which an answer is told apart. So many of raw speech are never all printable: eight
/// samples, each louder than a quarter of what there is.
const MARK: usize = 16;
/// What was mistaken for samples would be noise in somebody's ear.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"ID3", "MP3"),
    (b"OggS", "Ogg"),
    (b"fLaC", "FLAC"),
    (b"\x1aE\xdf\xa3", "WebM"),
];

/// Events made by some bytes, in order.
pub type Out = VecDeque<SpeechEvent>;

/// Bytes in, events out; knows of no socket.
pub struct Reader {
    engine: String,
    voice: String,
    model: String,
    /// There is something to say: only silence would be wrong.
    audible: bool,
    /// Seconds, after which it is no speech of this text any more.
    longest: u64,
    state: State,
    /// Told in [`SpeechEvent::Format`]; 0 = not yet.
    rate: u32,
    samples: u64,
    peak: u16,
    buffer: Vec<f32>,
}

enum State {
    /// The first bytes are awaited; what raw samples would be.
    Start(Vec<u8>, Option<Format>),
    Wav(Box<Parser>),
    Raw(Bytes),
    /// Words instead of sound.
    Words(Vec<u8>),
}

impl Reader {
    /// For the answer to `call`. `raw`: what samples without a header are; `None` = the answer
    /// must be a WAV.
    pub fn new(engine: &str, call: &SpeechCall, raw: Option<Format>) -> Reader {
        let chars = call.text.chars().count() as u64;
        Reader {
            engine: engine.to_owned(),
            voice: call.voice.clone(),
            model: call.model.clone(),
            audible: call.audible(),
            longest: MAX_SPEECH_SECONDS + MAX_SPEECH_SECONDS_PER_CHAR * chars,
            state: State::Start(Vec::new(), raw),
            rate: 0,
            samples: 0,
            peak: 0,
            buffer: Vec::new(),
        }
    }

    /// The engine itself says what the samples are; it may say so again, but not otherwise.
    ///
    /// # Errors
    /// The format is none of speech, or is another one than before.
    pub fn announce(&mut self, format: Format) -> Result<(), EngineError> {
        match &self.state {
            State::Raw(bytes) if bytes.format() == format => Ok(()),
            State::Raw(_) => Err(self.failed("the format of its sound changes in the middle")),
            _ => {
                let bytes = Bytes::new(format).map_err(|e| self.failed(e))?;
                self.state = State::Raw(bytes);
                Ok(())
            }
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are no sound, or go on for too long.
    pub fn push(&mut self, bytes: &[u8], out: &mut Out) -> Result<(), EngineError> {
        match &mut self.state {
            State::Start(head, raw) => {
                head.extend_from_slice(bytes);
                if head.len() < MARK {
                    return Ok(());
                }
                let (head, raw) = (std::mem::take(head), *raw);
                return self.begin(&head, raw, out);
            }
            State::Words(words) => {
                let room = MAX_ERROR_BODY.saturating_sub(words.len());
                words.extend_from_slice(&bytes[..bytes.len().min(room)]);
                return Ok(());
            }
            State::Raw(raw) => raw.push(bytes, &mut self.buffer),
            State::Wav(parser) => {
                let pushed = parser.push(bytes, &mut self.buffer);
                // Samples before the fault are good.
                if let Err(error) = pushed {
                    self.hand_out(out)?;
                    return Err(self.failed(error));
                }
            }
        }
        self.hand_out(out)
    }

    /// The engine has ended: the last events.
    ///
    /// # Errors
    /// Too early, or without having said anything.
    pub fn finish(&mut self, out: &mut Out) -> Result<(), EngineError> {
        if let State::Start(head, raw) = &mut self.state {
            let (head, raw) = (std::mem::take(head), *raw);
            if head.is_empty() {
                return Err(self.failed("no audio came"));
            }
            self.begin(&head, raw, out)?;
        }
        match &self.state {
            State::Start(..) => Err(self.failed("no audio came")),
            State::Words(words) => Err(self.complaint(words)),
            State::Wav(parser) => parser.finish().map_err(|e| self.failed(e)),
            State::Raw(_) if self.samples == 0 => Err(self.failed("no audio came")),
            State::Raw(raw) if raw.partial() > 0 => {
                Err(self.failed("the audio ends within a sample"))
            }
            State::Raw(_) => Ok(()),
        }?;
        if self.audible && self.peak < SILENT {
            return Err(self.failed("only silence came"));
        }
        out.push_back(SpeechEvent::Done {
            samples: self.samples,
        });
        Ok(())
    }

    /// The first bytes are here, or all that there are.
    fn begin(
        &mut self,
        head: &[u8],
        raw: Option<Format>,
        out: &mut Out,
    ) -> Result<(), EngineError> {
        self.state = self.decide(head, raw)?;
        self.push(head, out)
    }

    fn decide(&self, head: &[u8], raw: Option<Format>) -> Result<State, EngineError> {
        if head.starts_with(b"RIFF") {
            return Ok(State::Wav(Box::default()));
        }
        if let Some((_, name)) = COMPRESSED.iter().find(|(mark, _)| head.starts_with(mark)) {
            return Err(self.failed(format!("sent {name}; WAV or PCM was asked for")));
        }
        let words = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r');
        match raw {
            _ if head.iter().take(MARK).all(words) => Ok(State::Words(Vec::new())),
            Some(format) => Bytes::new(format)
                .map(State::Raw)
                .map_err(|e| self.failed(e)),
            None => Ok(State::Wav(Box::default())),
        }
    }

    fn hand_out(&mut self, out: &mut Out) -> Result<(), EngineError> {
        let format = match &self.state {
            State::Wav(parser) => parser.format(),
            State::Raw(raw) => Some(raw.format()),
            _ => None,
        };
        let Some(format) = format else {
            return Ok(());
        };
        if self.rate == 0 {
            self.rate = format.rate;
            out.push_back(SpeechEvent::Format { rate: self.rate });
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let pcm: Vec<i16> = self.buffer.drain(..).map(to_s16).collect();
        let loudest = pcm.iter().map(|s| s.unsigned_abs()).max();
        self.peak = self.peak.max(loudest.unwrap_or(0));
        self.samples += pcm.len() as u64;
        out.push_back(SpeechEvent::Pcm(pcm));
        if self.samples > self.longest * u64::from(self.rate) {
            return Err(self.failed(format!(
                "goes on for more than {} s, longer than this text can take",
                self.longest
            )));
        }
        Ok(())
    }

    /// What words instead of sound mean.
    fn complaint(&self, words: &[u8]) -> EngineError {
        let Ok(value) = serde_json::from_slice::<Value>(words) else {
            return self.failed("sent words instead of sound");
        };
        let error = value.get("error").or_else(|| value.get("detail"));
        let error = error.unwrap_or(&value);
        if blames_voice(&error.to_string().to_ascii_lowercase(), &self.voice) {
            return unknown_voice(&self.engine, &self.voice);
        }
        super::refusal::complaint(&self.engine, &self.model, error)
    }

    /// The error of an engine that did not do as it should.
    pub fn failed(&self, reason: impl ToString) -> EngineError {
        EngineError::Failed {
            engine: self.engine.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Speech from wherever bytes come in pieces.
pub trait Source: Send + 'static {
    /// Reads on: puts what came into `reader`. `false` = that was all.
    ///
    /// # Errors
    /// It broke, or `reader` declined.
    fn more(
        &mut self,
        reader: &mut Reader,
        out: &mut Out,
    ) -> impl Future<Output = Result<bool, EngineError>> + Send;
}

impl Source for Body {
    async fn more(&mut self, reader: &mut Reader, out: &mut Out) -> Result<bool, EngineError> {
        match self.next().await {
            Ok(Some(bytes)) => reader.push(&bytes, out).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(reader.failed(error)),
        }
    }
}

/// Reads `source` to its end.
pub fn run(source: impl Source, reader: Reader) -> SpeechStream {
    let running = Running {
        source,
        reader,
        out: Out::new(),
        end: None,
        read: false,
        over: false,
    };
    stream::unfold(Box::new(running), |mut running| async move {
        let item = running.next().await?;
        Some((item, running))
    })
    .boxed()
}

struct Running<S> {
    source: S,
    reader: Reader,
    out: Out,
    /// What comes after all that is in `out`.
    end: Option<EngineError>,
    /// The source has no more.
    read: bool,
    over: bool,
}

impl<S: Source> Running<S> {
    async fn next(&mut self) -> Option<Result<SpeechEvent, EngineError>> {
        while !self.over {
            if let Some(event) = self.out.pop_front() {
                return Some(Ok(event));
            }
            if self.read || self.end.is_some() {
                self.over = true;
                return self.end.take().map(Err);
            }
            let more = match self.source.more(&mut self.reader, &mut self.out).await {
                Ok(false) => {
                    self.read = true;
                    self.reader.finish(&mut self.out)
                }
                more => more.map(drop),
            };
            self.end = more.err();
        }
        None
    }
}
