//! The Wyoming protocol over TCP: speech (`synthesize`) and transcription (`transcribe`).
//!
//! A connection serves one request and is dropped; that stops the engine's work. `describe`
//! tells what a server does; it is asked on a connection of its own.
//!
//! ```text
//! speech:      synthesize                             -> audio-start audio-chunk* audio-stop
//!   streaming: synthesize-start -chunk -stop          -> the same, once or for each sentence,
//!                                                        then synthesize-stopped
//! hearing:     transcribe audio-start audio-chunk* audio-stop
//!                      -> (transcript-start transcript-chunk*) transcript (transcript-stop)
//! ```

#[cfg(test)]
mod faults;
mod frame;
mod hear;
mod link;

use super::hearing::{HearCall, HearStream, RATE, Sound};
use super::http::{HttpError, UrlError};
use super::openai::advert;
use super::refusal::unreachable;
use super::sounding::{Out, Reader, Source, run};
use super::speech::{SpeechCall, SpeechStream, Voice, check_voice};
use super::{Engine, EngineError, EngineInfo, EngineStream};
use frame::Frame;
use link::{At, Link};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use unamesh_client::audio::pcm::{Encoding, Format};
use unamesh_proto::limits::MAX_VOICES;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};
use url::Url;

/// How many requests such a server runs at the same time when nobody says.
const SLOTS: u16 = 1;

/// An adapter to a Wyoming server.
pub struct Wyoming {
    name: String,
    at: At,
    slots: u16,
    known: Mutex<Known>,
}

/// What `describe` told last.
#[derive(Clone, Default)]
struct Known {
    voices: Vec<Voice>,
    models: Vec<ModelAdvert>,
    version: String,
    /// Speech by `synthesize-start` and so on.
    streams: bool,
}

impl Wyoming {
    /// An adapter to `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// The URL names no host or no port.
    pub fn new(name: String, url: &Url, slots: Option<u16>) -> Result<Self, UrlError> {
        Ok(Wyoming {
            name,
            at: At::new(url)?,
            slots: slots.unwrap_or(SLOTS),
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Link, EngineError> {
        let link = self.at.connect(&self.name).await;
        link.map_err(|error| unreachable(&self.name, error))
    }

    /// Whether it does what models of `kind` do, as far as is known.
    fn has(&self, kind: ModelKind) -> bool {
        let known = self.known();
        known.models.is_empty() || known.models.iter().any(|m| m.kind == kind)
    }
}

/// Whether a Wyoming server answers at `url` within `limit`.
pub async fn answers(url: &Url, limit: Duration) -> bool {
    let ask = async {
        describe(At::new(url).ok()?.connect("").await.ok()?)
            .await
            .ok()
    };
    matches!(tokio::time::timeout(limit, ask).await, Ok(Some(_)))
}

async fn describe(mut link: Link) -> Result<Known, EngineError> {
    link.send(&[Frame::new("describe", Value::Null)]).await?;
    loop {
        match link.next().await? {
            Some(info) if info.kind == "info" => return Ok(Known::read(&info)),
            Some(_) => {}
            None => return Err(link.failed("closed without an answer")),
        }
    }
}

impl Known {
    fn read(info: &Frame) -> Known {
        let mut known = Known::default();
        let programs = |what: &str| installed(info.data.get(what)).collect::<Vec<_>>();
        for program in programs("tts") {
            known.streams |= program["supports_synthesize_streaming"] == true;
            known.take(program, ModelKind::Tts, program["name"].as_str());
            for voice in installed(program.get("voices")) {
                let language = voice["languages"][0].as_str().unwrap_or_default();
                if let Some(name) = voice["name"].as_str() {
                    known.voices.push(Voice::new(name, language));
                }
            }
        }
        known.voices.truncate(MAX_VOICES);
        for program in programs("asr") {
            for model in installed(program.get("models")) {
                // Started with a model's folder, wyoming-faster-whisper calls it by the whole path.
                let name = model["name"]
                    .as_str()
                    .map(|name| match name.strip_prefix('/') {
                        Some(path) => path.rsplit('/').next().unwrap_or(path),
                        None => name,
                    });
                known.take(program, ModelKind::Stt, name);
            }
        }
        known
    }

    fn take(&mut self, program: &Value, kind: ModelKind, name: Option<&str>) {
        let version = program["version"].as_str().unwrap_or_default();
        version.clone_into(&mut self.version);
        if let Some(name) = name {
            self.models.push(ModelAdvert {
                kind,
                ..advert(name.to_owned())
            });
        }
    }
}

/// The entries of a list, less those that say of themselves that they are not here.
fn installed(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter(|entry| entry["installed"] != false)
}

#[async_trait::async_trait]
impl Engine for Wyoming {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Wyoming
    }

    fn local_port(&self) -> Option<u16> {
        self.at.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let ask = async { describe(self.connect().await?).await };
        let known = tokio::time::timeout(ENGINE_HEALTH, ask).await;
        let late = |_| unreachable(&self.name, HttpError::Late(ENGINE_HEALTH));
        let known = known.map_err(late)??;
        self.known().clone_from(&known);
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models: known.models,
            voices: known.voices,
            version: known.version,
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        call.check()?;
        if !self.has(ModelKind::Tts) {
            return Err(self.cannot("speech"));
        }
        let streams = {
            let known = self.known();
            check_voice(&self.name, &call.voice, &known.voices)?;
            known.streams
        };
        let mut voice = serde_json::Map::new();
        for (name, value) in [("name", &call.voice), ("language", &call.language)] {
            if !value.is_empty() {
                voice.insert(name.to_owned(), value.as_str().into());
            }
        }
        let mut whole = json!({"text": call.text});
        let mut start = json!({});
        if !voice.is_empty() {
            whole["voice"] = voice.clone().into();
            start["voice"] = voice.into();
        }
        let frames = match streams {
            true => vec![
                Frame::new("synthesize-start", start),
                Frame::new("synthesize-chunk", json!({"text": call.text})),
                // For servers that do not stream after all; the others pass it over.
                Frame::new("synthesize", whole),
                Frame::new("synthesize-stop", Value::Null),
            ],
            false => vec![Frame::new("synthesize", whole)],
        };
        let mut link = self.connect().await?;
        link.send(&frames).await?;
        let last = if streams {
            "synthesize-stopped"
        } else {
            "audio-stop"
        };
        let voice = call.voice.clone();
        let reader = Reader::new(&self.name, &call, None);
        Ok(run(Speaking { link, last, voice }, reader))
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        if !self.has(ModelKind::Stt) {
            return Err(self.cannot("transcription"));
        }
        let mut ask = json!({});
        for (name, value) in [
            ("name", call.model.as_str()),
            ("language", call.bare_language()),
        ] {
            if !value.is_empty() {
                ask[name] = value.into();
            }
        }
        let mut link = self.connect().await?;
        let frames = [
            Frame::new("transcribe", ask),
            Frame::new("audio-start", format()),
        ];
        link.send(&frames).await?;
        Ok(hear::run(link, sound, call.partials))
    }
}

/// What the sound that we send is.
fn format() -> Value {
    json!({"rate": RATE, "width": 2, "channels": 1})
}

/// What the sound that comes is.
fn format_of(frame: &Frame) -> Option<Format> {
    let number = |name| frame.data.get(name).and_then(Value::as_u64);
    Some(Format {
        encoding: match number("width")? {
            1 => Encoding::U8,
            2 => Encoding::S16,
            3 => Encoding::S24,
            4 => Encoding::S32,
            _ => return None,
        },
        channels: number("channels")?.try_into().ok()?,
        rate: number("rate")?.try_into().ok()?,
    })
}

/// Speech that comes in.
struct Speaking {
    link: Link,
    /// The event after which nothing follows.
    last: &'static str,
    voice: String,
}

impl Source for Speaking {
    async fn more(&mut self, reader: &mut Reader, out: &mut Out) -> Result<bool, EngineError> {
        let Some(frame) = self.link.next().await? else {
            return Err(reader.failed("closed before its speech ended"));
        };
        match frame.kind.as_str() {
            "audio-start" | "audio-chunk" => {
                let format = format_of(&frame);
                let format = format.ok_or_else(|| reader.failed("tells no format of its sound"))?;
                reader.announce(format)?;
                reader.push(&frame.payload, out)?;
            }
            "error" => return Err(self.link.complaint(&frame, &self.voice)),
            kind if kind == self.last => return Ok(false),
            _ => {}
        }
        Ok(true)
    }
}
