//! Engines: what computes. One trait, an adapter per API.
//!
//! - [`llamacpp`], [`ollama`], [`openai`]: the adapters; [`auto`] finds out which one fits,
//!   [`configured`] makes them from the configuration.
//! - [`registry`]: asks all engines how they are, publishes the catalog, picks one.
//! - [`managed`]: engines that the agent itself starts, watches and stops.
//! - [`detect`]: which API answers where.
//! - [`resume`]: going on after a delivered text.
//! - [`speech`], [`hearing`]: what goes to engines that speak and hear, and what comes back.
//!   [`sounding`] reads the sound of all that speak. The adapters: [`openai_speech`],
//!   [`transcribe`] (uploads to all OpenAI-style servers), [`piper`], [`chatterbox`],
//!   [`wyoming`], [`glm_asr`], [`system`].
//! - [`http`], [`lines`], [`stream`], [`request`], [`refusal`]: what the adapters share.

pub mod auto;
pub mod chatterbox;
pub mod configured;
pub mod detect;
pub mod glm_asr;
pub mod hearing;
pub mod http;
pub mod lines;
pub mod llamacpp;
pub mod managed;
pub mod ollama;
pub mod openai;
pub mod openai_speech;
pub mod piper;
pub mod refusal;
pub mod registry;
pub mod request;
pub mod resume;
pub mod sounding;
pub mod speech;
pub mod stream;
pub mod system;
pub mod transcribe;
pub mod wyoming;

use futures_util::stream::BoxStream;
use hearing::{HearCall, HearStream, Sound};
use http::{Http, UrlError};
use speech::{SpeechCall, SpeechStream, Voice};
use std::sync::Arc;
use unamesh_proto::wire::{
    Chunk, EngineKind, FinishReason, GenerateRequest, Health, ModelAdvert, Phase, Usage,
};

/// What an engine said of itself when last asked.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineInfo {
    /// How it fares.
    pub health: Health,
    /// Requests that it runs at the same time.
    pub slots: u16,
    /// Its models (`engine` and `stats` are filled in by the registry).
    pub models: Vec<ModelAdvert>,
    /// Its voices, if it speaks.
    pub voices: Vec<Voice>,
    /// Its version, empty if it tells none.
    pub version: String,
}

/// What comes out of a running generation.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// The engine took the request. `exact`: a replayed prefix went in as token ids.
    Started {
        /// Whether the seam is exact.
        exact: bool,
    },
    /// Alive, nothing to deliver.
    Progress {
        /// Doing what.
        phase: Phase,
        /// Of `total`.
        done: u32,
        /// 0 = unknown.
        total: u32,
    },
    /// The next piece.
    Chunk {
        /// Text and token ids.
        chunk: Chunk,
        /// JSON of other delta fields, empty = none.
        extra: String,
    },
    /// The end. Nothing follows.
    Done {
        /// Why.
        finish: FinishReason,
        /// Tokens counted by the engine, of this engine's own part alone.
        usage: Usage,
    },
}

/// Why an engine did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Not reachable: connection refused, no route, time-out while connecting. Nothing was done.
    #[error("{engine} is not reachable: {reason}")]
    Down {
        /// The engine's name.
        engine: String,
        /// What the connection said.
        reason: String,
    },
    /// It refused the request as wrong. It would be wrong everywhere.
    #[error("{message}")]
    Invalid {
        /// The engine's words.
        message: String,
        /// The field to blame, if it named one.
        field: Option<String>,
    },
    /// It has no such model.
    #[error("{engine} has no model {model:?}")]
    UnknownModel {
        /// The engine's name.
        engine: String,
        /// What was asked for.
        model: String,
    },
    /// It has no such voice. It was not spoken in another one.
    #[error("{engine} has no voice {voice:?}")]
    UnknownVoice {
        /// The engine's name.
        engine: String,
        /// What was asked for.
        voice: String,
    },
    /// The prompt is larger than the model's context.
    #[error("the prompt of {tokens} tokens exceeds the context of {context}")]
    ContextExceeded {
        /// Tokens of the prompt; 0 = unknown.
        tokens: u32,
        /// Tokens of the context; 0 = unknown.
        context: u32,
    },
    /// All its slots are taken (HTTP 429/503 with that meaning). Busy is not dead.
    #[error("{engine} is busy")]
    Busy {
        /// The engine's name.
        engine: String,
    },
    /// It failed in the middle: closed early, sent rubbish, said 5xx. What was delivered stays
    /// valid.
    #[error("{engine} failed: {reason}")]
    Failed {
        /// The engine's name.
        engine: String,
        /// What it did.
        reason: String,
    },
    /// It cannot do that at all.
    #[error("{engine} does not support {what}")]
    Unsupported {
        /// The engine's name.
        engine: String,
        /// What was asked.
        what: String,
    },
}

/// A running generation. Dropping it closes the engine's connection, which stops its work.
pub type EngineStream = BoxStream<'static, Result<EngineEvent, EngineError>>;

/// An adapter to one engine. Cheap to share; keeps its own connection pool.
#[async_trait::async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Its name in configuration and adverts.
    fn name(&self) -> &str;

    /// What API it speaks.
    fn kind(&self) -> EngineKind;

    /// Asks it for health and models, within [`unamesh_proto::timeouts::ENGINE_HEALTH`].
    /// An engine that is merely busy answers `Ok` with [`Health::Busy`].
    ///
    /// # Errors
    /// [`EngineError::Down`] if nobody answers, [`EngineError::Busy`] if the connection is taken
    /// and no answer comes in time (the registry knows whether that means busy or dead),
    /// [`EngineError::Failed`] if the answer is not of this API.
    async fn describe(&self) -> Result<EngineInfo, EngineError>;

    /// Starts a generation after `request.prefix`. Resolves when the engine answered with its
    /// headers; the first token may come much later.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing was delivered.
    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError>;

    /// Speaks a text. Resolves when the engine answered; the sound comes as it is made.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing was delivered. [`EngineError::Unsupported`] if it does not
    /// speak.
    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        let _ = call;
        Err(self.cannot("speech"))
    }

    /// Transcribes one utterance, of which the sound may still be coming.
    ///
    /// # Errors
    /// See [`EngineError`]; [`EngineError::Unsupported`] if it does not transcribe.
    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        let _ = (call, sound);
        Err(self.cannot("transcription"))
    }

    /// The error of an engine that does not do `what`.
    fn cannot(&self, what: &str) -> EngineError {
        EngineError::Unsupported {
            engine: self.name().to_owned(),
            what: what.to_owned(),
        }
    }

    /// The port of this machine where it answers, so that detection does not find it again.
    fn local_port(&self) -> Option<u16> {
        None
    }

    /// It takes connections and has answered nothing for
    /// [`unamesh_proto::timeouts::ENGINE_WEDGED`]. Whoever can restart it does.
    fn wedged(&self) {}
}

/// The words of an error are read up to this many bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// llama.cpp's server has a small pool of threads and blocks one for each idle connection.
const LLAMA_CPP_IDLE: usize = 1;

/// Where an engine is and how to talk to it.
#[derive(Clone)]
pub struct EngineSpec {
    /// Its name in adverts.
    pub name: String,
    /// `None`: find out.
    pub kind: Option<EngineKind>,
    /// Where it answers; plain HTTP.
    pub url: url::Url,
    /// Requests at the same time; `None` = as the engine says, or its kind's default.
    pub slots: Option<u16>,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
}

impl std::fmt::Debug for EngineSpec {
    /// Without the key, or a password in the URL.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineSpec")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("url", &http::shown(self.url.as_str()))
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// The adapter for `spec`. Connects to nothing yet.
///
/// # Errors
/// The URL or the key cannot be used.
pub fn adapter(spec: &EngineSpec) -> Result<Arc<dyn Engine>, UrlError> {
    let key = spec.api_key.as_deref();
    let (name, slots) = (spec.name.clone(), spec.slots);
    let Some(kind) = spec.kind else {
        return Ok(Arc::new(auto::Auto::new(spec.clone())?));
    };
    Ok(match kind {
        EngineKind::LlamaCpp => {
            let http = Http::with_idle(&spec.url, key, LLAMA_CPP_IDLE)?;
            Arc::new(llamacpp::LlamaCpp::new(name, http, slots))
        }
        EngineKind::Ollama => {
            Arc::new(ollama::Ollama::new(name, Http::new(&spec.url, key)?, slots))
        }
        EngineKind::OpenAiSpeech | EngineKind::Whisper => {
            let http = Http::new(&spec.url, key)?;
            Arc::new(openai_speech::OpenAiSpeech::new(name, kind, http, slots))
        }
        EngineKind::Piper => Arc::new(piper::Piper::new(name, Http::new(&spec.url, key)?, slots)),
        EngineKind::Chatterbox => {
            let http = Http::new(&spec.url, key)?;
            Arc::new(chatterbox::Chatterbox::new(name, http, slots))
        }
        EngineKind::Wyoming => Arc::new(wyoming::Wyoming::new(name, &spec.url, slots)?),
        EngineKind::GlmAsr => Arc::new(glm_asr::GlmAsr::new(name, &spec.url, key, slots)?),
        EngineKind::System => Arc::new(system::System::of_this_machine(name, slots)),
        kind => Arc::new(openai::OpenAi::new(
            name,
            kind,
            Http::new(&spec.url, key)?,
            slots,
        )),
    })
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod hearing_faults;
#[cfg(test)]
mod speech_faults;
