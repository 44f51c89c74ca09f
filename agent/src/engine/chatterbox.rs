//! Chatterbox: `POST /tts`, a WAV or samples of 24 kHz that stream; `/api/model-info` tells
//! its health.

use super::http::Http;
use super::openai::advert;
use super::openai_speech::voices;
use super::refusal::{refusal, unreachable};
use super::request::Object;
use super::sounding::{Reader, run};
use super::speech::{SpeechCall, SpeechStream, Voice, check_voice, refused};
use super::{Engine, EngineError, EngineInfo, EngineStream, MAX_ERROR_BODY};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unamesh_client::audio::pcm::Format;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};

/// The name of a model that tells none.
pub const MODEL: &str = "chatterbox";
/// What it sends where it sends no header: the rate of its only codec.
const PCM: Format = Format::s16(24_000);
/// It holds its GPU for one synthesis at a time.
const SLOTS: u16 = 1;

/// An adapter to it.
pub struct Chatterbox {
    name: String,
    http: Http,
    slots: u16,
    voices: Mutex<Vec<Voice>>,
}

impl Chatterbox {
    /// An adapter named `name`.
    pub fn new(name: String, http: Http, slots: Option<u16>) -> Self {
        Chatterbox {
            name,
            http,
            slots: slots.unwrap_or(SLOTS),
            voices: Mutex::default(),
        }
    }

    /// As listed last: for a voice that it does not have it takes its default.
    fn known(&self) -> MutexGuard<'_, Vec<Voice>> {
        self.voices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Engine for Chatterbox {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Chatterbox
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let info = match self
            .http
            .get::<Value>("/api/model-info", ENGINE_HEALTH)
            .await
        {
            Ok(Ok(info)) => info,
            Ok(Err((status, body))) => return Err(refusal(&self.name, "", status, &body)),
            Err(error) => return Err(unreachable(&self.name, error)),
        };
        let loaded = ["loaded", "model_loaded"].iter().all(|k| info[*k] != false);
        let model = ["type", "model", "name"]
            .iter()
            .find_map(|k| info[*k].as_str());
        let listed = voices(&self.http).await;
        // A list that is late is the one from before.
        let voices = listed.unwrap_or_else(|_| self.known().clone());
        self.known().clone_from(&voices);
        Ok(EngineInfo {
            health: if loaded { Health::Ok } else { Health::Starting },
            slots: self.slots,
            models: vec![ModelAdvert {
                kind: ModelKind::Tts,
                ..advert(model.unwrap_or(MODEL).to_owned())
            }],
            voices,
            version: info["version"].as_str().unwrap_or_default().to_owned(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        call.check()?;
        check_voice(&self.name, &call.voice, &self.known())?;
        let mut body = Object::over(call.extra()?);
        body.set("text", &call.text)?;
        body.maybe("model", (!call.model.is_empty()).then_some(&call.model))?;
        body.maybe("voice", (!call.voice.is_empty()).then_some(&call.voice))?;
        body.maybe(
            "language",
            (!call.language.is_empty()).then_some(&call.language),
        )?;
        body.maybe("speed", call.speed)?;
        let reply = self.http.stream("/tts", body.body()?).await;
        let reply = reply.map_err(|error| unreachable(&self.name, error))?;
        if !reply.status.is_success() {
            let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
            return Err(refused(&self.name, &call, reply.status, &words));
        }
        Ok(run(reply.body, Reader::new(&self.name, &call, Some(PCM))))
    }
}
