//! OpenAI-style servers: LM Studio, vLLM, and any other that has `/v1/models` and
//! `/v1/chat/completions`.
//!
//! A delivered prefix goes in as a trailing assistant message that the server continues
//! ([`super::resume`]); vLLM wants to be told so. Token ids are not available, so that a seam is
//! never exact. Whether a server does continue it is not known from its API: before the first
//! continuation of a model it is tried out on a half-made count, and a server that does not go
//! on with the comma declines from then on. The chat stream's reader ([`ChatStream`]) serves
//! llama.cpp and Ollama too, where a request asks for more than text.

mod deltas;
mod models;
pub(super) use models::advert;

pub use deltas::ChatStream;

use super::hearing::{HearCall, HearStream, Sound};
use super::http::Http;
use super::openai_speech::{self, Asked};
use super::refusal::{refusal, unreachable};
use super::request::{Budget, Object, budget, extra, messages};
use super::resume::{Open, Seen, Start, declined, resume};
use super::speech::{SpeechCall, SpeechStream};
use super::stream::{Out, ready, run};
use super::transcribe::{self, Api};
use super::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream};
use futures_util::StreamExt;
use models::{List, LmList, LmModel, Model};
use serde::Deserialize;
use std::sync::Arc;
use unamesh_proto::timeouts::{ENGINE_HEALTH, ENGINE_PREPARE};
use unamesh_proto::wire::{
    Chunk, EngineKind, FinishReason, GenerateRequest, Health, InputKind, ModelAdvert, Sampling,
    Usage,
};

/// How many requests such a server runs at the same time when nobody says: LM Studio and small
/// servers work on one, vLLM batches.
const SLOTS: u16 = 1;
const VLLM_SLOTS: u16 = 16;

/// What a server is tried out on: who goes on writes a comma, who begins anew never does.
const TRIAL: &str = r#"[{"role":"user","content":"Count from 1 to 20, with commas."}]"#;
const TRIAL_BEGUN: &str = "1, 2, 3, 4, 5, 6";
const TRIAL_TOKENS: u32 = 4;

/// An adapter to an OpenAI-style server.
pub struct OpenAi {
    name: String,
    kind: EngineKind,
    http: Http,
    slots: u16,
    seen: Arc<Seen>,
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
            seen: Arc::default(),
        }
    }

    /// Whether the server goes on after what an assistant message begins.
    async fn goes_on(&self, model: &str) -> Result<bool, EngineError> {
        if let Some(seen) = self.seen.of(model) {
            return Ok(seen);
        }
        let begun = Chunk {
            text: TRIAL_BEGUN.to_owned(),
            ids: Vec::new(),
            tokens: 1,
        };
        let request = Arc::new(GenerateRequest {
            model: model.to_owned(),
            engine: 0,
            kind: InputKind::Chat,
            input: TRIAL.to_owned(),
            sampling: Sampling {
                temperature: Some(0.0),
                max_tokens: Some(begun.tokens + TRIAL_TOKENS),
                ..Sampling::default()
            },
            extra: String::new(),
            prefix: vec![begun],
            session: 0,
        });
        let open = chat_opener(&self.name, self.kind, &self.http, &request);
        let trial = async { first_words(open(Start::exact(&request.prefix)).await?).await };
        // One that is late or fails is tried again the next time: that says nothing.
        let words = match tokio::time::timeout(ENGINE_PREPARE, trial).await {
            Ok(words) => words?,
            Err(_) => {
                return Err(EngineError::Failed {
                    engine: self.name.clone(),
                    reason: "did not answer a trial in time".to_owned(),
                });
            }
        };
        let goes_on = words.starts_with(',');
        tracing::info!(engine = self.name, model, goes_on, "tried a continuation");
        self.seen.note(model, goes_on);
        Ok(goes_on)
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
            voices: Vec::new(),
        })
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        if request.kind == InputKind::Text {
            return text(&self.name, &self.http, &request, &self.seen).await;
        }
        if !request.prefix.is_empty() && !self.goes_on(&request.model).await? {
            return Err(declined(&self.name));
        }
        chat(&self.name, self.kind, &self.http, &request, &self.seen).await
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        openai_speech::speak(&self.name, &self.http, &call, Asked::Wav).await
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        transcribe::hear(&self.name, &self.http, Api::OpenAi, call, sound)
    }
}

/// The text up to the first that is no white space.
async fn first_words(mut stream: EngineStream) -> Result<String, EngineError> {
    let mut words = String::new();
    while words.trim().is_empty()
        && let Some(event) = stream.next().await
    {
        match event? {
            EngineEvent::Chunk { chunk, .. } => words.push_str(&chunk.text),
            EngineEvent::Done { .. } => break,
            _ => {}
        }
    }
    Ok(words)
}

/// Runs a chat request at `/v1/chat/completions`.
///
/// # Errors
/// See [`EngineError`]; nothing was delivered.
pub async fn chat(
    engine: &str,
    kind: EngineKind,
    http: &Http,
    request: &Arc<GenerateRequest>,
    seen: &Arc<Seen>,
) -> Result<EngineStream, EngineError> {
    if let Some(end) = spent(request) {
        return Ok(end);
    }
    let open = chat_opener(engine, kind, http, request);
    let start = Start::smooth(&request.prefix, &request.sampling);
    resume(engine, request, start, Arc::clone(seen), open).await
}

fn chat_opener(
    engine: &str,
    kind: EngineKind,
    http: &Http,
    request: &Arc<GenerateRequest>,
) -> Open {
    let server = Server {
        engine: engine.to_owned(),
        kind,
        http: http.clone(),
        path: "/v1/chat/completions",
    };
    let request = Arc::clone(request);
    Box::new(move |start| {
        let (server, request) = (server.clone(), Arc::clone(&request));
        Box::pin(async move {
            let mut body = Object::over(extra(&request)?);
            body.set("messages", messages(&request.input, &start.sent)?)?;
            if kind == EngineKind::Vllm && !start.sent.is_empty() {
                body.set("continue_final_message", true)?;
                body.set("add_generation_prompt", false)?;
            }
            server.start(&request, body, &start).await
        })
    })
}

/// Runs a completion request at `/v1/completions`: any server goes on after a raw prompt.
async fn text(
    engine: &str,
    http: &Http,
    request: &Arc<GenerateRequest>,
    seen: &Arc<Seen>,
) -> Result<EngineStream, EngineError> {
    if let Some(end) = spent(request) {
        return Ok(end);
    }
    let server = Server {
        engine: engine.to_owned(),
        kind: EngineKind::OpenAi,
        http: http.clone(),
        path: "/v1/completions",
    };
    let asked = Arc::clone(request);
    let open: Open = Box::new(move |start| {
        let (server, request) = (server.clone(), Arc::clone(&asked));
        Box::pin(async move {
            let mut body = Object::over(extra(&request)?);
            body.set("prompt", format!("{}{}", request.input, start.sent))?;
            server.start(&request, body, &start).await
        })
    });
    let start = Start::smooth(&request.prefix, &request.sampling);
    resume(engine, request, start, Arc::clone(seen), open).await
}

/// An endpoint of a server.
#[derive(Clone)]
struct Server {
    engine: String,
    kind: EngineKind,
    http: Http,
    path: &'static str,
}

impl Server {
    async fn start(
        &self,
        request: &GenerateRequest,
        mut body: Object,
        start: &Start,
    ) -> Result<EngineStream, EngineError> {
        if let Budget::Left(tokens) = budget(request) {
            body.set("max_tokens", tokens.saturating_add(start.again_tokens))?;
        }
        body.set("model", &request.model)?;
        body.set("stream", true)?;
        body.set("stream_options", serde_json::json!({"include_usage": true}))?;
        let penalty = if self.kind == EngineKind::Vllm {
            "repetition_penalty"
        } else {
            "repeat_penalty"
        };
        body.sampling(&request.sampling, penalty)?;
        let engine = self.engine.as_str();
        let reply = self
            .http
            .stream(self.path, body.body()?)
            .await
            .map_err(|error| unreachable(engine, error))?;
        if !reply.status.is_success() {
            let words = reply.body.collect(super::MAX_ERROR_BODY).await;
            let words = words.unwrap_or_default();
            return Err(refusal(engine, &request.model, reply.status, &words));
        }
        let protocol = ChatStream::new(engine, &request.model, start.sent_tokens);
        // A seam with nothing before it has nothing to be inexact about.
        let exact = request.prefix.is_empty();
        let first = Out::from([EngineEvent::Started { exact }]);
        Ok(run(engine.to_owned(), first, reply.body, protocol))
    }
}

/// The end of a generation whose delivered prefix already used up `max_tokens`, if it did: no
/// engine need be asked.
pub fn spent(request: &GenerateRequest) -> Option<EngineStream> {
    let end = EngineEvent::Done {
        finish: FinishReason::Length,
        usage: Usage::default(),
    };
    let is_spent = budget(request) == Budget::Spent;
    is_spent.then(|| ready(vec![EngineEvent::Started { exact: true }, end]))
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    version: String,
}
