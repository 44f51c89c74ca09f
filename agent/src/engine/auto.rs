//! An engine whose API is found out when it first answers.

use super::hearing::{HearCall, HearStream, Sound};
use super::http::{Http, UrlError};
use super::speech::{SpeechCall, SpeechStream};
use super::{Engine, EngineError, EngineInfo, EngineSpec, EngineStream, adapter, detect};
use std::sync::{Arc, OnceLock};
use unamesh_proto::wire::{EngineKind, GenerateRequest};

/// Asks on every description until something answers; an adapter of the right kind from then on.
pub struct Auto {
    spec: EngineSpec,
    http: Http,
    found: OnceLock<Arc<dyn Engine>>,
}

impl Auto {
    /// For `spec`, whose kind is open.
    ///
    /// # Errors
    /// The URL or the key cannot be used.
    pub fn new(spec: EngineSpec) -> Result<Auto, UrlError> {
        let http = Http::with_idle(&spec.url, spec.api_key.as_deref(), 1)?;
        Ok(Auto {
            spec,
            http,
            found: OnceLock::new(),
        })
    }

    async fn find(&self) -> Result<&Arc<dyn Engine>, EngineError> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let engine = self.spec.name.clone();
        let Some(kind) = detect::identify(&self.http).await else {
            let reason = format!("no engine of a known kind answers at {}", self.spec.url);
            return Err(EngineError::Down { engine, reason });
        };
        let spec = EngineSpec {
            kind: Some(kind),
            ..self.spec.clone()
        };
        let found = adapter(&spec).map_err(|error| EngineError::Failed {
            engine,
            reason: error.to_string(),
        })?;
        Ok(self.found.get_or_init(|| found))
    }
}

#[async_trait::async_trait]
impl Engine for Auto {
    fn name(&self) -> &str {
        &self.spec.name
    }

    /// OpenAI-style until it is known better.
    fn kind(&self) -> EngineKind {
        self.found
            .get()
            .map_or(EngineKind::OpenAi, |found| found.kind())
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.find().await?.describe().await
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        self.find().await?.generate(request).await
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        self.find().await?.speak(call).await
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        self.find().await?.hear(call, sound).await
    }
}
