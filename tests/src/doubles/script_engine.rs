//! An engine with a script, behind HTTP: an OpenAI-style server whose answer is always `w0 w1 w2 …`. Given a
//! beginning of that answer it goes on from there, as a deterministic engine would, so the
//! whole text proves that no token was lost or doubled on the way. Asked to go on with a count
//! instead (an agent tries out whether it can), it goes on with a comma. Agents that run as
//! processes of their own front this one; those inside a test take [`super::EngineDouble`].

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Body};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What the engine does.
#[derive(Clone, Debug)]
pub struct Script {
    /// The one model it has.
    pub model: String,
    /// Tokens of a whole answer.
    pub tokens: usize,
    /// From one token to the next.
    pub pace: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            model: "script".into(),
            tokens: 60,
            pace: Duration::from_millis(10),
        }
    }
}

impl Script {
    /// The `index`-th token of every answer.
    #[must_use]
    pub fn token(index: usize) -> String {
        if index == 0 {
            "w0".into()
        } else {
            format!(" w{index}")
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(&self) -> String {
        (0..self.tokens).map(Self::token).collect()
    }
}

/// A running engine; it ends when dropped.
pub struct ScriptEngine {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    /// Ends the server when dropped.
    _tasks: JoinSet<()>,
}

struct Shared {
    script: Mutex<Script>,
    asked: Mutex<Vec<Instant>>,
}

impl ScriptEngine {
    /// Starts one on a free loopback port.
    pub async fn start(script: Script) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, script)
    }

    /// Starts one on a listener, which may come from another network namespace.
    #[must_use]
    pub fn serve(listener: tokio::net::TcpListener, script: Script) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            asked: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::clone(&shared));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Ends with the set; an error would show as an engine that does not answer.
            axum::serve(listener, router).await.ok();
        });
        Self {
            addr,
            shared,
            _tasks: tasks,
        }
    }

    /// When generations were asked for, oldest first.
    #[must_use]
    pub fn asked(&self) -> Vec<Instant> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// The generations that begin from now on follow this script. The model stays.
    pub fn play(&self, script: &Script) {
        let mut now = self.shared.script.lock().unwrap();
        assert_eq!(now.model, script.model, "agents have been told the model");
        now.clone_from(script);
    }
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [
        {"id": shared.script.lock().unwrap().model, "object": "model", "created": 0, "owned_by": "script"}
    ]}))
}

async fn chat(State(shared): State<Arc<Shared>>, Json(request): Json<Value>) -> Response {
    shared.asked.lock().unwrap().push(Instant::now());
    let script = shared.script.lock().unwrap().clone();
    if request["model"] != script.model.as_str() {
        let message = format!("no model {}", request["model"]);
        return (
            StatusCode::NOT_FOUND,
            Json(json!({"error": {"message": message}})),
        )
            .into_response();
    }
    let first = delivered(&request);
    let allowed = ["max_tokens", "max_completion_tokens"]
        .iter()
        .find_map(|field| request[field].as_u64())
        .map_or(script.tokens, |n| first + n as usize);
    let last = script.tokens.min(allowed);
    let finish = if last < script.tokens {
        "length"
    } else {
        "stop"
    };
    if is_count(&request) {
        return stream(Script::default(), 0, 0, "stop", Some(","));
    }
    if request["stream"] == true {
        stream(script, first, last, finish, None)
    } else {
        whole(&script, first, last, finish).await
    }
}

/// Whether it is to go on with a count, which is no part of the script.
fn is_count(request: &Value) -> bool {
    let last = request["messages"].as_array().and_then(|m| m.last());
    let begun = last.filter(|message| message["role"] == "assistant");
    begun.is_some_and(|message| message["content"].as_str().unwrap_or("").contains(','))
}

/// Tokens of the answer that the request already holds as an assistant message at its end.
fn delivered(request: &Value) -> usize {
    let last = request["messages"]
        .as_array()
        .and_then(|messages| messages.last());
    match last {
        Some(message) if message["role"] == "assistant" => message["content"]
            .as_str()
            .unwrap_or("")
            .split_whitespace()
            .count(),
        _ => 0,
    }
}

fn stream(
    script: Script,
    first: usize,
    last: usize,
    finish: &'static str,
    before: Option<&'static str>,
) -> Response {
    let chunk = |delta: Value, finish: Option<&str>| {
        json!({"id": "script", "object": "chat.completion.chunk", "created": 0,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    };
    let pieces = (first..=last).map(move |index| {
        if index < last {
            let delta = chunk(json!({"content": Script::token(index)}), None);
            format!("data: {delta}\n\n")
        } else {
            let mut end = chunk(json!({}), Some(finish));
            end["usage"] = usage(first, last);
            format!("data: {end}\n\ndata: [DONE]\n\n")
        }
    });
    let before = before.map(|text| format!("data: {}\n\n", chunk(json!({"content": text}), None)));
    let pieces = before.into_iter().chain(pieces);
    let paced = futures_util::stream::iter(pieces.enumerate()).then(move |(n, piece)| async move {
        if n > 0 {
            tokio::time::sleep(script.pace).await;
        }
        Ok::<_, std::convert::Infallible>(Bytes::from(piece))
    });
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(paced),
    )
        .into_response()
}

async fn whole(script: &Script, first: usize, last: usize, finish: &str) -> Response {
    tokio::time::sleep(script.pace * (last - first) as u32).await;
    let content: String = (first..last).map(Script::token).collect();
    Json(
        json!({"id": "script", "object": "chat.completion", "created": 0,
        "choices": [{"index": 0, "finish_reason": finish,
            "message": {"role": "assistant", "content": content}}],
        "usage": usage(first, last)}),
    )
    .into_response()
}

fn usage(first: usize, last: usize) -> Value {
    let made = last - first;
    json!({"prompt_tokens": 8 + first, "completion_tokens": made, "total_tokens": 8 + first + made})
}
