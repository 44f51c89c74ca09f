//! OpenAI-style servers: LM Studio, vLLM, and any other that has `/v1/models` and
//! `/v1/chat/completions`.
//!
//! A delivered prefix goes in as a trailing assistant message that the server continues; vLLM
//! wants to be told so. Token ids are not available, so that a seam is never exact. The chat
//! stream's reader ([`ChatStream`]) serves llama.cpp and Ollama too, where a request asks for
//! more than text.

mod deltas;
mod models;

pub use deltas::ChatStream;

use super::http::Http;
use super::refusal::{refusal, unreachable};
use super::request::{Budget, Object, budget, extra, messages, prefix_text};
use super::stream::{Out, ready, run};
use super::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream};
use models::{List, LmList, LmModel, Model};
use serde::Deserialize;
use std::sync::Arc;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{
    EngineKind, FinishReason, GenerateRequest, Health, InputKind, ModelAdvert, Usage,
};

/// How many requests such a server runs at the same time when nobody says: LM Studio and small
/// servers work on one, vLLM batches.
const SLOTS: u16 = 1;
const VLLM_SLOTS: u16 = 16;

/// An adapter to an OpenAI-style server.
pub struct OpenAi {
    name: String,
    kind: EngineKind,
    http: Http,
    slots: u16,
}

impl OpenAi {
    /// An adapter named `name`; `slots` `None` = this kind's default.
    pub fn new(name: String, kind: EngineKind, http: Http, slots: Option<u16>) -> Self {
        let usual = if kind == EngineKind::Vllm {
            VLLM_SLOTS
        } else {
            SLOTS
        };
        OpenAi {
            name,
            kind,
            http,
            slots: slots.unwrap_or(usual),
        }
    }

    async fn models(&self) -> Result<Vec<ModelAdvert>, EngineError> {
        if self.kind == EngineKind::LmStudio
            && let Ok(Ok(list)) = self
                .http
                .get::<LmList>("/api/v0/models", ENGINE_HEALTH)
                .await
        {
            return Ok(list.data.into_iter().map(LmModel::advert).collect());
        }
        match self.http.get::<List>("/v1/models", ENGINE_HEALTH).await {
            Ok(Ok(list)) => Ok(list.data.into_iter().map(Model::advert).collect()),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }
}

#[async_trait::async_trait]
impl Engine for OpenAi {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let models = self.models().await?;
        let version = match self.kind {
            EngineKind::Vllm => match self.http.get::<Version>("/version", ENGINE_HEALTH).await {
                Ok(Ok(version)) => version.version,
                _ => String::new(),
            },
            _ => String::new(),
        };
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models,
            version,
        })
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        match request.kind {
            InputKind::Text => text(&self.name, &self.http, &request).await,
            _ => chat(&self.name, self.kind, &self.http, &request).await,
        }
    }
}

/// Runs a chat request at `/v1/chat/completions`.
///
/// # Errors
/// See [`EngineError`]; nothing was delivered.
pub async fn chat(
    engine: &str,
    kind: EngineKind,
    http: &Http,
    request: &GenerateRequest,
) -> Result<EngineStream, EngineError> {
    let mut body = Object::over(extra(request)?);
    body.set("messages", messages(request)?)?;
    if kind == EngineKind::Vllm && !request.prefix.is_empty() {
        body.set("continue_final_message", true)?;
        body.set("add_generation_prompt", false)?;
    }
    start(engine, kind, http, request, body, "/v1/chat/completions").await
}

/// Runs a completion request at `/v1/completions`.
async fn text(
    engine: &str,
    http: &Http,
    request: &GenerateRequest,
) -> Result<EngineStream, EngineError> {
    let mut body = Object::over(extra(request)?);
    body.set(
        "prompt",
        format!("{}{}", request.input, prefix_text(&request.prefix)),
    )?;
    start(
        engine,
        EngineKind::OpenAi,
        http,
        request,
        body,
        "/v1/completions",
    )
    .await
}

async fn start(
    engine: &str,
    kind: EngineKind,
    http: &Http,
    request: &GenerateRequest,
    mut body: Object,
    path: &str,
) -> Result<EngineStream, EngineError> {
    // A seam with nothing before it has nothing to be inexact about.
    let started = EngineEvent::Started {
        exact: request.prefix.is_empty(),
    };
    match budget(request) {
        Budget::Open => {}
        Budget::Left(tokens) => body.set("max_tokens", tokens)?,
        Budget::Spent => return Ok(ready(vec![started, spent()])),
    }
    body.set("model", &request.model)?;
    body.set("stream", true)?;
    body.set("stream_options", serde_json::json!({"include_usage": true}))?;
    let penalty = if kind == EngineKind::Vllm {
        "repetition_penalty"
    } else {
        "repeat_penalty"
    };
    body.sampling(&request.sampling, penalty)?;
    let reply = http
        .stream(path, body.body()?)
        .await
        .map_err(|error| unreachable(engine, error))?;
    if !reply.status.is_success() {
        let words = reply
            .body
            .collect(super::MAX_ERROR_BODY)
            .await
            .unwrap_or_default();
        return Err(refusal(engine, &request.model, reply.status, &words));
    }
    let protocol = ChatStream::new(engine, &request.model);
    Ok(run(
        engine.to_owned(),
        Out::from([started]),
        reply.body,
        protocol,
    ))
}

/// The end of a generation whose delivered prefix already used up `max_tokens`.
pub fn spent() -> EngineEvent {
    EngineEvent::Done {
        finish: FinishReason::Length,
        usage: Usage::default(),
    }
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    version: String,
}
