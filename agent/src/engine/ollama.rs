//! Ollama's own API.
//!
//! Chats go to `/api/chat`, raw prompts to `/api/generate`; both stream newline-delimited JSON
//! with a final object. A delivered prefix is a trailing assistant message, which Ollama's
//! templates continue ([`super::resume`]; a model whose template does not is seen to begin anew
//! and is not asked so again). It gives no token ids, so that a seam is never exact. Requests
//! for more than text go through Ollama's OpenAI endpoint, which takes their fields as they are.
//!
//! Ollama sends its headers with the first token, so that a cold model looks like silence. While
//! they are late, `/api/ps` says whether the model is in memory yet, and the stream tells.

mod api;
mod chat;

use super::http::{Http, HttpError, Reply};
use super::openai;
use super::refusal::{refusal, unreachable};
use super::request::{Budget, Object, budget, extra, has_media, is_structured, messages};
use super::resume::{Open, Seen, Start, resume};
use super::stream::{Out, run};
use super::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream, MAX_ERROR_BODY};
use api::{Loaded, Ps, Show, Tags, Version};
use bytes::Bytes;
use chat::ChatLines;
use futures_util::{FutureExt, StreamExt, stream};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use unamesh_proto::timeouts::{
    ENGINE_HEADERS, ENGINE_HEALTH, ENGINE_KEEP_ALIVE, ENGINE_LOADING_POLL,
};
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, InputKind, Phase};

/// Requests that Ollama runs at the same time when nobody says (`OLLAMA_NUM_PARALLEL` is 1 by
/// default since 0.12, and it queues the rest itself).
const SLOTS: u16 = 1;

/// An adapter to an Ollama server.
pub struct Ollama {
    name: String,
    http: Http,
    slots: u16,
    /// `/api/show` of each model by digest: it never changes for one digest.
    shown: Mutex<BTreeMap<String, Show>>,
    seen: Arc<Seen>,
}

impl Ollama {
    /// An adapter named `name`; `slots` `None` = one.
    pub fn new(name: String, http: Http, slots: Option<u16>) -> Self {
        let slots = slots.unwrap_or(SLOTS);
        Ollama {
            name,
            http,
            slots,
            shown: Mutex::new(BTreeMap::new()),
            seen: Arc::default(),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        match self.http.get(path, ENGINE_HEALTH).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }

    /// What `/api/show` says of a model, asked once.
    async fn show(&self, model: &api::Model) -> Show {
        let known = self.shown().get(&model.digest).cloned();
        if let Some(show) = known {
            return show;
        }
        let mut body = Object::default();
        let asked = match body.set("model", &model.name).and_then(|()| body.body()) {
            Ok(body) => {
                self.http
                    .post::<Show>("/api/show", body, ENGINE_HEALTH)
                    .await
            }
            Err(_) => return Show::default(),
        };
        // Without an answer the model is advertised with what the list says, and asked again.
        let Ok(Ok(show)) = asked else {
            return Show::default();
        };
        self.shown().insert(model.digest.clone(), show.clone());
        show
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Show>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Engine for Ollama {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Ollama
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let version: Version = self.ask("/api/version").await?;
        let tags: Tags = self.ask("/api/tags").await?;
        let loaded = Loaded::of(self.ask::<Ps>("/api/ps").await?);
        let mut models = Vec::with_capacity(tags.models.len());
        for model in tags.models {
            let show = self.show(&model).await;
            models.push(model.advert(&show, &loaded));
        }
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models,
            version: version.version,
            voices: Vec::new(),
        })
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        let is_chat = request.kind != InputKind::Text;
        if is_chat && (is_structured(&extra(&request)?) || has_media(&request.input)) {
            let (kind, http) = (EngineKind::Ollama, &self.http);
            return openai::chat(&self.name, kind, http, &request, &self.seen).await;
        }
        if let Some(end) = openai::spent(&request) {
            return Ok(end);
        }
        let call = Call {
            engine: self.name.clone(),
            model: request.model.clone(),
            http: self.http.clone(),
        };
        let asked = Arc::clone(&request);
        let open: Open =
            Box::new(move |start| Box::pin(call.clone().open(Arc::clone(&asked), start)));
        let start = Start::smooth(&request.prefix, &request.sampling);
        resume(&self.name, &request, start, Arc::clone(&self.seen), open).await
    }
}

/// What `/api/chat` or `/api/generate` is sent.
fn body(request: &GenerateRequest, start: &Start) -> Result<Object, EngineError> {
    let mut body = Object::over(extra(request)?);
    body.set("model", &request.model)?;
    body.set("stream", true)?;
    body.set("keep_alive", format!("{}s", ENGINE_KEEP_ALIVE.as_secs()))?;
    let mut options = Object::default();
    if let Budget::Left(tokens) = budget(request) {
        options.set("num_predict", tokens.saturating_add(start.again_tokens))?;
    }
    options.sampling(&request.sampling, "repeat_penalty")?;
    body.set("options", options)?;
    if request.kind == InputKind::Text {
        body.set("prompt", format!("{}{}", request.input, start.sent))?;
        body.set("raw", true)?;
    } else {
        let messages = messages(&request.input, &start.sent)?;
        body.set("messages", api::plain_messages(&messages)?)?;
    }
    Ok(body)
}

/// One request in work.
#[derive(Clone)]
struct Call {
    engine: String,
    model: String,
    http: Http,
}

type Answer = futures_util::future::BoxFuture<'static, Result<Reply, EngineError>>;

impl Call {
    async fn open(
        self,
        request: Arc<GenerateRequest>,
        start: Start,
    ) -> Result<EngineStream, EngineError> {
        let path = match request.kind {
            InputKind::Text => "/api/generate",
            _ => "/api/chat",
        };
        let body = body(&request, &start)?.body()?;
        let exact = request.prefix.is_empty();
        let started = EngineEvent::Started { exact };
        let replayed = start.sent_tokens;
        let mut answer = self.clone().send(path, body).boxed();
        match tokio::time::timeout(ENGINE_HEADERS, &mut answer).await {
            Ok(reply) => Ok(self.read(reply?, Out::from([started]), replayed)),
            Err(_) => Ok(self.wait(answer, started, replayed)),
        }
    }

    async fn send(self, path: &'static str, body: Bytes) -> Result<Reply, EngineError> {
        let sent: Result<Reply, HttpError> = self.http.stream(path, body).await;
        let reply = sent.map_err(|error| unreachable(&self.engine, error))?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        let status = reply.status;
        let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
        Err(refusal(&self.engine, &self.model, status, &words))
    }

    fn read(self, reply: Reply, first: Out, replayed: u32) -> EngineStream {
        let protocol = ChatLines::new(&self.engine, &self.model, replayed);
        run(self.engine, first, reply.body, protocol)
    }

    /// The stream of an answer whose head has not come: progress until it does.
    fn wait(self, answer: Answer, started: EngineEvent, replayed: u32) -> EngineStream {
        let waiting = stream::unfold(Wait::Head(self, answer), move |wait| async move {
            match wait {
                Wait::Head(call, mut answer) => {
                    let phase = call.phase();
                    tokio::select! {
                        reply = &mut answer => match reply {
                            Ok(reply) => {
                                let mut body = call.read(reply, Out::new(), replayed);
                                let item = body.next().await?;
                                Some((item, Wait::Body(body)))
                            }
                            Err(error) => Some((Err(error), Wait::Over)),
                        },
                        phase = phase => {
                            let event = EngineEvent::Progress { phase, done: 0, total: 0 };
                            Some((Ok(event), Wait::Head(call, answer)))
                        }
                    }
                }
                Wait::Body(mut body) => body.next().await.map(|item| (item, Wait::Body(body))),
                Wait::Over => None,
            }
        });
        stream::iter([Ok(started)]).chain(waiting).boxed()
    }

    /// What the engine is doing, after a while.
    fn phase(&self) -> impl Future<Output = Phase> + Send + 'static {
        let (http, model) = (self.http.clone(), self.model.clone());
        async move {
            tokio::time::sleep(ENGINE_LOADING_POLL).await;
            match http.get::<Ps>("/api/ps", ENGINE_HEALTH).await {
                Ok(Ok(ps)) => match Loaded::of(ps).has(&model) {
                    true => Phase::Prefilling,
                    false => Phase::Loading,
                },
                // Too busy to say: it is at work.
                _ => Phase::Prefilling,
            }
        }
    }
}

enum Wait {
    Head(Call, Answer),
    Body(EngineStream),
    Over,
}
