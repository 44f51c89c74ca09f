//! llama.cpp's HTTP server: exact continuation by token ids.
//!
//! Plain text goes the low road. The chat is rendered by the server itself (`/apply-template`)
//! and run as a raw completion (`/completion`, `return_tokens`), so that every piece comes with
//! its token ids. To go on after a delivered prefix, the prompt is the rendered text followed by
//! those ids in one mixed array, `["<rendered>", 31, 7, ...]`: the model sees what it would have
//! seen had it never been interrupted, and with temperature 0 and a micro-batch of 32 it says
//! the same (a larger one takes other kernels for the prompt than for single tokens).
//!
//! A character that takes several tokens is streamed with the id of its last token alone; that
//! is seen by the count of predicted tokens. On replay such a piece is tokenized; if the result
//! has as many tokens and ends as it should, it is exact too, else its text goes in and the seam
//! is no longer called exact ([`super::resume`] then sees to its end).
//!
//! Ids are checked before they are used: they may come from an engine with another vocabulary,
//! or from one that counts them wrongly. The server has to read out of them what was delivered,
//! else the text goes in.
//!
//! Requests for more than text (tools, output formats, probabilities, pictures) and models with
//! a reasoning template go through `/v1/chat/completions`, which parses what they need.

mod api;
mod completion;
mod replay;

use super::http::Http;
use super::openai::{chat, spent};
use super::refusal::{refusal, unreachable};
use super::request::{
    Budget, Extra, Object, budget, extra, has_media, is_structured, messages, prefix_text,
};
use super::resume::{Open, Seen, Start, resume};
use super::stream::{Out, run};
use super::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream, MAX_ERROR_BODY};
use api::{Models, Props, Slots};
use bytes::Bytes;
use completion::Completion;
use hyper::StatusCode;
use replay::Piece;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use unamesh_proto::timeouts::{ENGINE_HEALTH, ENGINE_PREPARE};
use unamesh_proto::wire::{Chunk, EngineKind, GenerateRequest, Health, InputKind, ModelAdvert};

/// Different characters of one prefix that are tokenized, a round trip each. More of them cost
/// more time than an exact seam is worth; their text goes in.
const MAX_QUESTIONS: usize = 32;

/// An adapter to a llama.cpp server.
pub struct LlamaCpp {
    name: String,
    http: Http,
    slots: Option<u16>,
    /// Its model, as read when it was first seen: the meta data change with the process only.
    known: Mutex<Option<(Props, ModelAdvert)>>,
    /// The template makes reasoning, which only the chat endpoint tells from the answer.
    reasons: AtomicBool,
    seen: Arc<Seen>,
}

impl LlamaCpp {
    /// An adapter named `name`; `slots` `None` = as many as the server has.
    pub fn new(name: String, http: Http, slots: Option<u16>) -> Self {
        LlamaCpp {
            name,
            http,
            slots,
            known: Mutex::new(None),
            reasons: AtomicBool::new(false),
            seen: Arc::default(),
        }
    }

    /// Asks for `path`. `Ok(None)`: the server is still loading its model.
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineError> {
        match self.http.get(path, ENGINE_HEALTH).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err((StatusCode::SERVICE_UNAVAILABLE, _))) => Ok(None),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, EngineError> {
        match self.http.post(path, body, limit).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }

    /// The model behind `props`.
    async fn model(&self, props: &Props) -> Result<Option<ModelAdvert>, EngineError> {
        let known = self.known().clone();
        if let Some((seen, model)) = known
            && seen == *props
        {
            return Ok(Some(model));
        }
        let Some(models) = self.ask::<Models>("/v1/models").await? else {
            return Ok(None);
        };
        let Some(model) = api::advert(props, models) else {
            let reason = "lists no model".to_owned();
            return Err(EngineError::Failed {
                engine: self.name.clone(),
                reason,
            });
        };
        self.reasons.store(props.reasons(), Ordering::Relaxed);
        *self.known() = Some((props.clone(), model.clone()));
        Ok(Some(model))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<(Props, ModelAdvert)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all slots are taken, by whomever. The answer waits for the batch in work, so
    /// that a late one means busy as well.
    async fn is_full(&self) -> bool {
        match self.ask::<Slots>("/slots").await {
            Ok(Some(slots)) => !slots.0.is_empty() && slots.0.iter().all(|s| s.is_processing),
            Err(EngineError::Busy { .. }) => true,
            // Switched off (`--no-slots`), or an older one: nothing is known.
            _ => false,
        }
    }

    async fn complete(
        &self,
        request: &Arc<GenerateRequest>,
        extra: Extra,
    ) -> Result<EngineStream, EngineError> {
        if let Some(end) = spent(request) {
            return Ok(end);
        }
        let (rendered, pieces) =
            tokio::try_join!(self.render(request), self.replay(&request.prefix))?;
        let prompt = replay::Prompt::new(rendered, pieces);
        let exact = Start::exact(&request.prefix);
        let completing = Completing {
            engine: self.name.clone(),
            http: self.http.clone(),
            request: Arc::clone(request),
            extra: Arc::new(extra),
            prompt: prompt.clone(),
        };
        if prompt.is_exact() {
            return completing.open(exact).await;
        }
        let smooth = Start::smooth(&request.prefix, &request.sampling);
        let start = match prompt.without(&smooth.again) {
            Some(_) => smooth,
            None => exact,
        };
        let open: Open = Box::new(move |start| Box::pin(completing.clone().open(start)));
        resume(&self.name, request, start, Arc::clone(&self.seen), open).await
    }
}

/// A request to `/completion`.
#[derive(Clone)]
struct Completing {
    engine: String,
    http: Http,
    request: Arc<GenerateRequest>,
    extra: Arc<Extra>,
    /// With all that was delivered.
    prompt: replay::Prompt,
}

impl Completing {
    async fn open(self, start: Start) -> Result<EngineStream, EngineError> {
        let Completing { engine, prompt, .. } = self;
        let mut body = Object::over(Extra::clone(&self.extra));
        if let Budget::Left(tokens) = budget(&self.request) {
            body.set("n_predict", tokens.saturating_add(start.again_tokens))?;
        }
        body.set(
            "prompt",
            prompt.without(&start.again).as_ref().unwrap_or(&prompt),
        )?;
        body.set("stream", true)?;
        body.set("return_tokens", true)?;
        body.set("return_progress", true)?;
        body.set("cache_prompt", true)?;
        body.sampling(&self.request.sampling, "repeat_penalty")?;
        let reply = self
            .http
            .stream("/completion", body.body()?)
            .await
            .map_err(|error| unreachable(&engine, error))?;
        let model = self.request.model.as_str();
        if !reply.status.is_success() {
            let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
            return Err(refusal(&engine, model, reply.status, &words));
        }
        let exact = prompt.is_exact();
        let started = Out::from([EngineEvent::Started { exact }]);
        let protocol = Completion::new(&engine, model, start.sent_tokens);
        Ok(run(engine, started, reply.body, protocol))
    }
}

#[async_trait::async_trait]
impl Engine for LlamaCpp {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::LlamaCpp
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let loading = EngineInfo {
            health: Health::Starting,
            slots: self.slots.unwrap_or(1),
            models: Vec::new(),
            version: String::new(),
            voices: Vec::new(),
        };
        let Some(props) = self.ask::<Props>("/props").await? else {
            return Ok(loading);
        };
        let Some(model) = self.model(&props).await? else {
            return Ok(loading);
        };
        let health = if self.is_full().await {
            Health::Busy
        } else {
            Health::Ok
        };
        Ok(EngineInfo {
            health,
            slots: self.slots.unwrap_or(props.total_slots.max(1)),
            models: vec![model],
            version: props.build_info,
            voices: Vec::new(),
        })
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        let extra = extra(&request)?;
        let is_chat = request.kind != InputKind::Text;
        let parsed = is_structured(&extra)
            || has_media(&request.input)
            || self.reasons.load(Ordering::Relaxed);
        if is_chat && parsed {
            let (kind, http) = (EngineKind::LlamaCpp, &self.http);
            return chat(&self.name, kind, http, &request, &self.seen).await;
        }
        self.complete(&request, extra).await
    }
}

impl LlamaCpp {
    /// The prompt as the model reads it.
    async fn render(&self, request: &GenerateRequest) -> Result<String, EngineError> {
        if request.kind == InputKind::Text {
            return Ok(request.input.clone());
        }
        let mut body = Object::default();
        body.set("messages", messages(&request.input, "")?)?;
        let rendered: api::Rendered = self
            .post("/apply-template", body.body()?, ENGINE_PREPARE)
            .await?;
        Ok(rendered.prompt)
    }

    /// The delivered pieces as the server takes them.
    async fn replay(&self, prefix: &[Chunk]) -> Result<Vec<Piece>, EngineError> {
        let mut asked: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let mut pieces = Vec::with_capacity(prefix.len());
        for chunk in prefix {
            if let Some(piece) = replay::whole(chunk) {
                pieces.push(piece);
                continue;
            }
            if !asked.contains_key(chunk.text.as_str()) && asked.len() < MAX_QUESTIONS {
                asked.insert(&chunk.text, self.tokenize(&chunk.text).await?);
            }
            let tokens = asked
                .get(chunk.text.as_str())
                .map_or(&[][..], Vec::as_slice);
            pieces.push(replay::completed(chunk, tokens));
        }
        if self.says(&pieces, prefix).await {
            return Ok(pieces);
        }
        let engine = self.name.as_str();
        tracing::warn!(engine, "the token ids say something else: the text goes in");
        Ok(vec![Piece::Text(prefix_text(prefix))])
    }

    /// Whether the ids mean to this server what was delivered.
    async fn says(&self, pieces: &[Piece], prefix: &[Chunk]) -> bool {
        let (mut ids, mut text) = (Vec::new(), String::new());
        for (piece, chunk) in pieces.iter().zip(prefix) {
            if let Piece::Ids(more) = piece {
                ids.extend_from_slice(more);
                text.push_str(&chunk.text);
            }
        }
        if ids.is_empty() {
            return true;
        }
        let mut body = Object::default();
        let Ok(body) = body.set("tokens", ids).and_then(|()| body.body()) else {
            return false;
        };
        let said = self.post::<api::Content>("/detokenize", body, ENGINE_PREPARE);
        said.await.is_ok_and(|said| said.content == text)
    }

    async fn tokenize(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut body = Object::default();
        body.set("content", text)?;
        let answer: api::Tokens = self.post("/tokenize", body.body()?, ENGINE_PREPARE).await?;
        Ok(answer.tokens)
    }
}
