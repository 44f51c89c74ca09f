//! Ollama's API in front of a real llama.cpp server: our reading of its wire rules
//! (newline-delimited JSON, a final object with counts), since no package carries the real one.

use crate::http::{Net, Reply, Server};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Body};
use futures_util::stream;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::JoinSet;

/// A running one; it ends when dropped.
pub struct OllamaOverLlama {
    /// Where it listens.
    pub addr: SocketAddr,
    _tasks: JoinSet<()>,
}

struct Shared {
    llama: Server,
    model: String,
}

impl OllamaOverLlama {
    /// Starts one that calls the model of the server at `llama` by the name `model:latest`.
    pub async fn start(llama: SocketAddr, model: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            llama: Server {
                net: Net::Host,
                addr: llama,
                token: None,
            },
            model: format!("{model}:latest"),
        });
        let router = Router::new()
            .route(
                "/api/version",
                get(async || Json(json!({"version": "0.12.0"}))),
            )
            .route("/api/tags", get(tags))
            .route("/api/ps", get(tags))
            .route("/api/show", post(show))
            .route("/api/chat", post(chat))
            .route("/api/generate", post(generate))
            .with_state(shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Ends with the set; an error would show as an engine that does not answer.
            axum::serve(listener, router).await.ok();
        });
        Self {
            addr,
            _tasks: tasks,
        }
    }
}

/// `/api/tags`, and `/api/ps`: the model is always in memory.
async fn tags(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"models": [{
        "name": shared.model, "digest": "0123456789ab", "size": 98_362_432,
        "details": {"family": "llama", "quantization_level": "Q4_1"},
        "expires_at": "2318-01-01T00:00:00Z", "context_length": 2048,
    }]}))
}

async fn show() -> Json<Value> {
    Json(json!({"capabilities": ["completion"], "model_info": {"llama.context_length": 8192}}))
}

async fn chat(State(shared): State<Arc<Shared>>, Json(request): Json<Value>) -> Response {
    // Its templates leave the last message open if that is the assistant's, as this one does.
    let body = json!({"messages": request["messages"]});
    let rendered = shared.llama.json("/apply-template", Some(&body)).await;
    let prompt = rendered.unwrap()["prompt"].clone();
    answer(
        &shared,
        &request,
        prompt,
        |text| json!({"message": {"role": "assistant", "content": text}}),
    )
    .await
}

async fn generate(State(shared): State<Arc<Shared>>, Json(request): Json<Value>) -> Response {
    assert_eq!(request["raw"], true, "only raw prompts are asked for");
    let prompt = request["prompt"].clone();
    answer(&shared, &request, prompt, |text| json!({"response": text})).await
}

async fn answer(
    shared: &Shared,
    request: &Value,
    prompt: Value,
    wrap: fn(&str) -> Value,
) -> Response {
    let mut body = json!({"prompt": prompt, "stream": true, "cache_prompt": true});
    for (name, value) in request["options"].as_object().unwrap_or(&Map::new()) {
        let name = match name.as_str() {
            "num_predict" => "n_predict",
            name => name,
        };
        body[name] = value.clone();
    }
    let reply = shared.llama.send("/completion", Some(&body)).await.unwrap();
    let lines = stream::unfold((reply, false), move |(mut reply, over)| async move {
        if over {
            return None;
        }
        let (line, over) = next(&mut reply, wrap).await?;
        Some((Ok::<_, std::io::Error>(line), (reply, over)))
    });
    let kind = [("content-type", "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

/// The next line with text, or the final one.
async fn next(reply: &mut Reply, wrap: fn(&str) -> Value) -> Option<(String, bool)> {
    loop {
        let line = reply.line().await.ok()??;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let event: Value = serde_json::from_str(data).unwrap();
        let text = event["content"].as_str().unwrap_or("");
        let over = event["stop"] == true;
        if text.is_empty() && !over {
            continue;
        }
        let mut line = wrap(text);
        line["done"] = over.into();
        if over {
            let limit = event["stop_type"] == "limit";
            line["done_reason"] = if limit { "length" } else { "stop" }.into();
            line["prompt_eval_count"] = event["tokens_evaluated"].clone();
            line["eval_count"] = event["tokens_predicted"].clone();
        }
        return Some((format!("{line}\n"), over));
    }
}
