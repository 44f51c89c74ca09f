//! Piper's own HTTP server: `POST /synthesize` with JSON, `GET /voices`.
//!
//! It answers 500 without the JSON content type and for a text in which there is nothing to say,
//! and calls its WAV `text/html`. The WAV comes as a whole, so that chunks of text are kept short elsewhere.

use super::http::Http;
use super::openai::advert;
use super::refusal::{refusal, unreachable};
use super::request::Object;
use super::sounding::{Reader, run};
use super::speech::{SpeechCall, SpeechStream, Voice, check_voice, refused};
use super::{Engine, EngineError, EngineInfo, EngineStream, MAX_ERROR_BODY};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unamesh_proto::limits::MAX_VOICES;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};

/// The name of its only model.
pub const MODEL: &str = "piper";
/// It synthesizes with one session a voice, a thread for each request.
const SLOTS: u16 = 2;
/// `length_scale` is the inverse of a speed; beyond these it is no speech.
const SPEEDS: std::ops::RangeInclusive<f32> = 0.25..=4.0;

/// An adapter to it.
pub struct Piper {
    name: String,
    http: Http,
    slots: u16,
    voices: Mutex<Vec<Voice>>,
}

impl Piper {
    /// An adapter named `name`.
    pub fn new(name: String, http: Http, slots: Option<u16>) -> Self {
        Piper {
            name,
            http,
            slots: slots.unwrap_or(SLOTS),
            voices: Mutex::default(),
        }
    }

    /// As listed last. A voice that it does not have it replaces by another without a word, so
    /// that it must be asked before the first speech.
    async fn voices(&self) -> Result<Vec<Voice>, EngineError> {
        let known = self.known().clone();
        match known.is_empty() {
            true => self.list().await,
            false => Ok(known),
        }
    }

    async fn list(&self) -> Result<Vec<Voice>, EngineError> {
        let voices = match self.http.get::<Value>("/voices", ENGINE_HEALTH).await {
            Ok(Ok(list)) => voices(&list),
            Ok(Err((status, body))) => return Err(refusal(&self.name, "", status, &body)),
            Err(error) => return Err(unreachable(&self.name, error)),
        };
        self.known().clone_from(&voices);
        Ok(voices)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Voice>> {
        self.voices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `list` is what its `/voices` says: an object with an entry for each voice.
pub fn is_list(list: &Value) -> bool {
    let known = |voice: &Value| {
        ["audio", "espeak", "language"]
            .iter()
            .any(|k| voice[*k].is_object())
    };
    list.as_object().is_some_and(|l| l.values().any(known))
}

fn voices(list: &Value) -> Vec<Voice> {
    let all = list.as_object().into_iter().flatten();
    let one = |(name, voice): (&String, &Value)| match voice["language"]["code"].as_str() {
        Some(code) => Voice::new(name, code),
        None => Voice::named(name),
    };
    all.map(one).take(MAX_VOICES).collect()
}

#[async_trait::async_trait]
impl Engine for Piper {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Piper
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let voices = self.list().await?;
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models: vec![ModelAdvert {
                kind: ModelKind::Tts,
                ..advert(MODEL.to_owned())
            }],
            voices,
            version: String::new(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        call.check()?;
        if !call.voice.is_empty() {
            check_voice(&self.name, &call.voice, &self.voices().await?)?;
        }
        let mut body = Object::over(call.extra()?);
        body.set("text", &call.text)?;
        body.maybe("voice", (!call.voice.is_empty()).then_some(&call.voice))?;
        let scale = call.speed.filter(|s| SPEEDS.contains(s)).map(f32::recip);
        body.maybe("length_scale", scale)?;
        let reply = self.http.stream("/synthesize", body.body()?).await;
        let reply = reply.map_err(|error| unreachable(&self.name, error))?;
        if !reply.status.is_success() {
            if !call.audible() {
                return Err(super::speech::nothing_to_say());
            }
            let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
            return Err(refused(&self.name, &call, reply.status, &words));
        }
        Ok(run(reply.body, Reader::new(&self.name, &call, None)))
    }
}
