//! OpenAI-style servers: LM Studio, vLLM, and any other that has `/v1/models` and
//! `/v1/chat/completions`.
//!
//! A delivered prefix goes in as a trailing assistant message that the server continues; vLLM
//! wants to be told so. Token ids are not available, so that a seam is never exact. The chat
//! stream's reader ([`ChatStream`]) serves llama.cpp and Ollama too, where a request asks for
//! more than text.

use super::http::Http;
use super::refusal::{complaint, refusal, rubbish, unreachable};
use super::request::{Budget, Object, budget, extra, messages, prefix_text};
use super::stream::{Out, Protocol, ended_early, ready, run};
use super::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{
    Chunk, EngineKind, FinishReason, GenerateRequest, Health, InputKind, ModelAdvert, ModelKind,
    Residency, Stats, Usage,
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

/// Reads the event stream of `/v1/chat/completions` and `/v1/completions`.
///
/// A delta's text becomes a chunk of one token (these servers send a token a delta); its other
/// fields go on as JSON. The answer is complete with a finish reason; usage may follow it, then
/// `[DONE]`.
pub struct ChatStream {
    engine: String,
    model: String,
    finish: Option<FinishReason>,
    usage: Usage,
    tokens: u32,
    done: bool,
}

impl ChatStream {
    /// A reader for an answer of `model` on `engine`.
    pub fn new(engine: &str, model: &str) -> Self {
        ChatStream {
            engine: engine.to_owned(),
            model: model.to_owned(),
            finish: None,
            usage: Usage::default(),
            tokens: 0,
            done: false,
        }
    }

    fn event(&mut self, data: &str, out: &mut Out) -> Result<(), EngineError> {
        let event: Event = serde_json::from_str(data).map_err(|e| rubbish(&self.engine, &e))?;
        if let Some(error) = event.error {
            return Err(complaint(&self.engine, &self.model, &error));
        }
        if let Some(usage) = event.usage {
            self.usage.prompt_tokens = usage.prompt_tokens;
            self.usage.completion_tokens = usage.completion_tokens;
        }
        // A request has one answer (`n` is not passed on): other indexes do not occur.
        let Some(choice) = event.choices.into_iter().flatten().next() else {
            return Ok(());
        };
        if let Some(reason) = &choice.finish_reason {
            self.finish = Some(finish(reason));
        }
        let (text, extra) = choice.piece();
        if text.is_empty() && extra.is_empty() {
            return Ok(());
        }
        self.tokens = self.tokens.saturating_add(1);
        let chunk = Chunk {
            text,
            ids: Vec::new(),
            tokens: 1,
        };
        out.push_back(EngineEvent::Chunk { chunk, extra });
        Ok(())
    }

    fn finished(&mut self, finish: FinishReason, out: &mut Out) {
        self.done = true;
        if self.usage.completion_tokens == 0 {
            self.usage.completion_tokens = self.tokens;
        }
        out.push_back(EngineEvent::Done {
            finish,
            usage: self.usage,
        });
    }
}

impl Protocol for ChatStream {
    fn line(&mut self, line: &str, out: &mut Out) -> Result<(), EngineError> {
        use super::lines::{Sse, sse};
        match sse(line) {
            Sse::Data(data) if data.trim() == "[DONE]" => {
                // `[DONE]` itself says that nothing is missing.
                let finish = self.finish.unwrap_or(FinishReason::Stop);
                self.finished(finish, out);
                Ok(())
            }
            Sse::Data(data) => self.event(data, out),
            Sse::Error(error) => {
                let error = serde_json::from_str(error).unwrap_or_else(|_| Value::from(error));
                Err(complaint(&self.engine, &self.model, &error))
            }
            // Not an event stream at all: an error object with status 200, or rubbish.
            Sse::Other if line.starts_with('{') => self.event(line, out),
            Sse::Other => Ok(()),
        }
    }

    fn end(&mut self, out: &mut Out) -> Result<(), EngineError> {
        match self.finish {
            Some(finish) => {
                self.finished(finish, out);
                Ok(())
            }
            None => Err(ended_early(&self.engine)),
        }
    }
}

/// OpenAI's word for an end.
pub fn finish(reason: &str) -> FinishReason {
    match reason {
        "length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    }
}

#[derive(Deserialize)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    /// Of `/v1/completions`.
    text: Option<String>,
    logprobs: Option<Value>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Choice {
    /// The text, and the other fields as JSON (empty if there are none).
    fn piece(self) -> (String, String) {
        let mut other = Map::new();
        let mut text = self.text.unwrap_or_default();
        if let Some(delta) = self.delta {
            if let Some(content) = delta.content {
                text = content;
            }
            let carries = |(name, value): &(String, Value)| name != "role" && !value.is_null();
            other.extend(delta.other.into_iter().filter(carries));
        }
        if let Some(logprobs) = self.logprobs {
            other.insert("logprobs".to_owned(), logprobs);
        }
        let extra = if other.is_empty() {
            String::new()
        } else {
            Value::Object(other).to_string()
        };
        (text, extra)
    }
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    version: String,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    /// vLLM's.
    max_model_len: Option<u32>,
}

impl Model {
    fn advert(self) -> ModelAdvert {
        let context = self.max_model_len.unwrap_or(0);
        ModelAdvert {
            context,
            ..advert(self.id)
        }
    }
}

/// LM Studio's own list says more than `/v1/models`.
#[derive(Deserialize)]
struct LmList {
    data: Vec<LmModel>,
}

#[derive(Deserialize)]
struct LmModel {
    id: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    quantization: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    max_context_length: u32,
    loaded_context_length: Option<u32>,
}

impl LmModel {
    fn advert(self) -> ModelAdvert {
        let loaded = self.state == "loaded";
        ModelAdvert {
            family: self.arch,
            quantization: self.quantization,
            context: self
                .loaded_context_length
                .unwrap_or(self.max_context_length),
            kind: if self.kind == "embeddings" {
                ModelKind::Embed
            } else {
                ModelKind::Llm
            },
            residency: if loaded {
                Residency::Loaded
            } else {
                Residency::OnDisk
            },
            ..advert(self.id)
        }
    }
}

/// What a name alone tells. Servers that list a model and say no more have it in memory.
fn advert(name: String) -> ModelAdvert {
    let lower = name.to_ascii_lowercase();
    let has = |word: &str| lower.contains(word);
    let kind = match () {
        () if has("embed") => ModelKind::Embed,
        () if has("whisper") || has("-asr") => ModelKind::Stt,
        () if has("tts") => ModelKind::Tts,
        () => ModelKind::Llm,
    };
    ModelAdvert {
        engine: 0,
        name,
        digest: String::new(),
        family: String::new(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: false,
        stats: Stats::default(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feed(lines: &[&str]) -> (Vec<EngineEvent>, Result<(), EngineError>) {
        let mut stream = ChatStream::new("e", "m");
        let mut out = Out::new();
        let result = lines
            .iter()
            .try_for_each(|line| stream.line(line, &mut out));
        let result = match (result, stream.done) {
            (Ok(()), false) => stream.end(&mut out),
            (result, _) => result,
        };
        (out.into(), result)
    }

    fn piece(text: &str, extra: &str) -> EngineEvent {
        let chunk = Chunk {
            text: text.into(),
            ids: Vec::new(),
            tokens: 1,
        };
        EngineEvent::Chunk {
            chunk,
            extra: extra.into(),
        }
    }

    fn done(finish: FinishReason, prompt_tokens: u32, completion_tokens: u32) -> EngineEvent {
        EngineEvent::Done {
            finish,
            usage: Usage {
                prompt_tokens,
                completion_tokens,
            },
        }
    }

    #[test]
    fn a_chat_stream() {
        let (events, result) = feed(&[
            r#"data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{"content":"Hi \"you\""}}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
            "data: [DONE]",
        ]);
        result.unwrap();
        assert_eq!(
            events,
            [piece("Hi \"you\"", ""), done(FinishReason::Length, 3, 1)]
        );
    }

    #[test]
    fn other_fields_go_on_as_json() {
        let (events, _) = feed(&[
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x"}],"content":null}}]}"#,
            r#"data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content":[]}}]}"#,
            r#"data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
        ]);
        assert_eq!(
            events,
            [
                piece("", r#"{"tool_calls":[{"id":"x","index":0}]}"#),
                piece("a", r#"{"logprobs":{"content":[]}}"#),
                done(FinishReason::ToolCalls, 0, 2),
            ]
        );
    }

    #[test]
    fn completions_have_text() {
        let (events, _) = feed(&[
            r#"data: {"choices":[{"text":"-","index":0,"logprobs":null,"finish_reason":null}]}"#,
            r#"data: {"choices":[{"text":"","finish_reason":"stop"}]}"#,
        ]);
        assert_eq!(events, [piece("-", ""), done(FinishReason::Stop, 0, 1)]);
    }

    #[test]
    fn an_early_end_is_a_failure() {
        let (events, result) = feed(&[r#"data: {"choices":[{"delta":{"content":"a"}}]}"#]);
        assert_eq!(events.len(), 1);
        assert_eq!(result, Err(ended_early("e")));
    }

    #[test]
    fn errors_within_the_stream() {
        for line in [
            r#"data: {"error":{"message":"out of memory","code":500}}"#,
            r#"{"error":{"message":"out of memory","code":500}}"#,
            r#"error: {"message":"out of memory","code":500}"#,
            r#"data: {"choices":[{"delta":{"cont"#,
            "data: rubbish",
        ] {
            let (_, result) = feed(&[line]);
            assert!(
                matches!(result, Err(EngineError::Failed { .. })),
                "{line}: {result:?}"
            );
        }
    }
}
