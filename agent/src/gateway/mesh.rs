//! The mesh API under `/unamesh/v1/`: what the command line asks a running agent.
//! [`super::guard`] has checked the bearer token before a request arrives here.

use super::GatewayState;
use super::control::{Drain, DrillAsk, InviteOptions};
use super::error::ApiError;
use super::headers;
use super::openai::{Reply, json_reply, read_body};
use super::request::{self, Api, Parsed};
use super::source::{ClientError, Event, PeerRef, near_names};
use super::{view, voice};
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, Response, header};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use unamesh_client::clock;
use unamesh_proto::NodeId;
use unamesh_proto::wire::{Fault, Role};

/// The routes, relative to `/unamesh/v1`.
pub fn routes() -> Router<GatewayState> {
    Router::new()
        .route("/status", get(status))
        .route("/peers", get(peers))
        .route("/models", get(models))
        .route("/engines", get(engines))
        .route("/why", get(why))
        .route("/events", get(events))
        .route("/ping", post(ping))
        .route("/invite", post(invite))
        .route("/drain", post(drain))
        .route("/drill", post(drill))
        .route("/generate", post(generate))
        .merge(voice::routes())
}

async fn status(State(state): State<GatewayState>) -> Reply {
    Ok(json_reply(state.control.status().to_string()))
}

async fn engines(State(state): State<GatewayState>) -> Reply {
    Ok(json_reply(state.control.engines().to_string()))
}

async fn peers(State(state): State<GatewayState>) -> Reply {
    Ok(json_reply(
        view::peers(&state.source.peers(), clock::mono()).to_string(),
    ))
}

async fn models(State(state): State<GatewayState>) -> Reply {
    Ok(json_reply(view::models(&state.source.peers()).to_string()))
}

#[derive(Deserialize)]
struct WhyQuery {
    model: String,
    #[serde(default)]
    prompt_tokens: u32,
}

async fn why(
    State(state): State<GatewayState>,
    query: Result<Query<WhyQuery>, axum::extract::rejection::QueryRejection>,
) -> Reply {
    let Query(WhyQuery {
        model,
        prompt_tokens,
    }) = query.map_err(|e| ApiError::field("model", e.body_text()))?;
    let ranking = state.source.why(&model, prompt_tokens);
    let peers = state.source.peers();
    let near = if ranking.ranked.is_empty() {
        near_names(&peers, &model)
    } else {
        Vec::new()
    };
    Ok(json_reply(
        view::why(&model, &ranking, &near, &peers).to_string(),
    ))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PingBody {
    /// Name or node id; absent = every peer.
    node: Option<String>,
}

async fn ping(State(state): State<GatewayState>, request: Request) -> Reply {
    let PingBody { node } = options(request).await?;
    Ok(json_reply(state.control.ping(node).await?.to_string()))
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct InviteBody {
    role: String,
    /// Seconds.
    valid_for_s: u64,
    uses: u32,
}

impl Default for InviteBody {
    fn default() -> Self {
        InviteBody {
            role: "agent".to_owned(),
            valid_for_s: 600,
            uses: 1,
        }
    }
}

async fn invite(State(state): State<GatewayState>, request: Request) -> Reply {
    let InviteBody {
        role,
        valid_for_s,
        uses,
    } = options(request).await?;
    let Some(role) = Role::KNOWN.iter().copied().find(|r| r.name() == role) else {
        return Err(ApiError::field(
            "role",
            format!("role must be admin, agent or client, got {role:?}"),
        ));
    };
    if uses == 0 {
        return Err(ApiError::field("uses", "uses must be at least 1"));
    }
    let invite = InviteOptions {
        role,
        valid_for: Duration::from_secs(valid_for_s),
        uses,
    };
    Ok(json_reply(state.control.invite(invite).await?.to_string()))
}

/// At most one of them.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DrainBody {
    /// Leave within this.
    deadline_ms: Option<u64>,
    /// Pause for this long.
    for_ms: Option<u64>,
    /// End a pause.
    stop: bool,
}

/// What an empty body means.
const DRAIN: Duration = Duration::from_secs(30);

async fn drain(State(state): State<GatewayState>, request: Request) -> Reply {
    let body: DrainBody = options(request).await?;
    let drain = match (body.deadline_ms, body.for_ms, body.stop) {
        (None, None, false) => Drain::Leave(DRAIN),
        (Some(ms), None, false) => Drain::Leave(Duration::from_millis(ms)),
        (None, Some(ms), false) => Drain::Pause(Duration::from_millis(ms)),
        (None, None, true) => Drain::Stop,
        _ => {
            let message = "deadline_ms (leave), for_ms (pause) and stop exclude each other";
            return Err(ApiError::field("for_ms", message));
        }
    };
    Ok(json_reply(state.control.drain(drain).await?.to_string()))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DrillBody {
    /// Name or node id.
    node: String,
    fault: String,
    for_ms: u64,
}

async fn drill(State(state): State<GatewayState>, request: Request) -> Reply {
    let DrillBody {
        node,
        fault,
        for_ms,
    } = options(request).await?;
    let Some(fault) = Fault::KNOWN.iter().copied().find(|f| f.name() == fault) else {
        let names: Vec<&str> = Fault::KNOWN.iter().map(|f| f.name()).collect();
        let message = format!("fault must be one of {}, got {fault:?}", names.join(", "));
        return Err(ApiError::field("fault", message));
    };
    let long = Duration::from_millis(for_ms);
    let ask = DrillAsk { node, fault, long };
    Ok(json_reply(state.control.drill(ask).await?.to_string()))
}

/// A small body of options; an empty one means the defaults.
async fn options<T: Default + serde::de::DeserializeOwned>(
    request: Request,
) -> Result<T, ApiError> {
    let body = read_body(request).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|e| ApiError::invalid("invalid_json", e.to_string()))
}

/// `GET events`: server-sent events, one JSON object each, until the agent stops.
async fn events(State(state): State<GatewayState>) -> Reply {
    let stop = state.stop.clone();
    let receiver = state.control.events();
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let event = match receiver.recv().await {
            Ok(event) => event.to_string(),
            Err(RecvError::Lagged(missed)) => {
                json!({"event": "lagged", "missed": missed}).to_string()
            }
            Err(RecvError::Closed) => return None,
        };
        Some((
            Ok::<_, Infallible>(Bytes::from(format!("data: {event}\n\n"))),
            receiver,
        ))
    });
    // A first comment, so that the client has its headers before the first event.
    let hello = stream::iter([Ok(Bytes::from_static(b": unamesh events\n\n"))]);
    let body = Body::from_stream(hello.chain(lines).take_until(stop.cancelled_owned()));
    Ok(stream_reply("text/event-stream", body))
}

#[derive(Deserialize)]
struct GenerateQuery {
    /// Who is to begin the answer, if it can.
    first: Option<NodeId>,
}

/// `POST generate`: an OpenAI body (`messages` or `prompt`); the mesh events as NDJSON.
async fn generate(
    State(state): State<GatewayState>,
    query: Result<Query<GenerateQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Reply {
    let Query(GenerateQuery { first }) =
        query.map_err(|e| ApiError::field("first", e.body_text()))?;
    let other_model = headers::other_model(request.headers())?;
    let body = read_body(request).await?;
    let api = match request::parse(Api::Chat, &body) {
        Err(e)
            if e.param.as_deref() == Some("messages") && e.code == "missing_required_parameter" =>
        {
            Api::Completion
        }
        _ => Api::Chat,
    };
    let Parsed { mut request, .. } = request::parse(api, &body)?;
    request.other_model = other_model;
    request.first = first;
    let events = state.source.generate(request);
    let lines = ndjson(events.map(|event| event_json(&event)));
    Ok(stream_reply(
        "application/x-ndjson",
        Body::from_stream(lines),
    ))
}

/// One JSON object a line.
pub(super) fn ndjson(
    events: impl Stream<Item = Value>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    events.map(|event| {
        let mut line = event.to_string();
        line.push('\n');
        Ok(Bytes::from(line))
    })
}

/// A 200 whose body is made while it is sent.
pub(super) fn stream_reply(kind: &'static str, body: Body) -> axum::response::Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// An event as scripts read it: `{"event":"token","index":0,"text":"..."}`.
pub fn event_json(event: &Event) -> Value {
    match event {
        Event::Started { peer, why } => {
            json!({"event": "started", "peer": peer_json(peer), "why": why})
        }
        Event::Progress { phase, done, total } => {
            json!({"event": "progress", "phase": phase.name(), "done": done, "total": total})
        }
        Event::Token {
            index,
            text,
            tokens,
            extra,
        } => {
            // Null where there is none or a peer sent no JSON.
            let extra: Value = serde_json::from_str(extra).unwrap_or_default();
            json!({"event": "token", "index": index, "text": text, "tokens": tokens, "extra": extra})
        }
        Event::PeerChanged {
            from,
            to,
            seam,
            gap,
            backup_ttft,
            reason,
        } => json!({
            "event": "peer_changed",
            "from": peer_json(from),
            "to": peer_json(to),
            "seam": seam.name(),
            "gap_ms": view::ms(*gap),
            "backup_ttft_ms": view::ms(*backup_ttft),
            "reason": reason,
        }),
        Event::Done { finish, usage } => json!({
            "event": "done",
            "finish": finish.name(),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
            },
        }),
        Event::Failed(error) => failed_json(error),
    }
}

/// The last event of what failed.
pub(super) fn failed_json(error: &ClientError) -> Value {
    let api = ApiError::from(error.clone());
    json!({
        "event": "failed",
        "error": {
            "message": api.message,
            "type": api.kind,
            "param": api.param,
            "code": api.code,
            "status": api.status.as_u16(),
            "retry_after_ms": api.retry_after.map(|d| d.as_millis() as u64),
            "delivered_tokens": api.delivered_tokens,
        },
    })
}

/// A peer as scripts know it.
pub(super) fn peer_json(peer: &PeerRef) -> Value {
    json!({"node": peer.node, "name": peer.name})
}
