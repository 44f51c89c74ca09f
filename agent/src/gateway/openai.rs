//! The OpenAI endpoints.

use super::GatewayState;
use super::collect;
use super::error::{ApiError, INVALID};
use super::headers::{self, NODE, PEER, SEAM, WHY, insert};
use super::request::{self, Api, Parsed};
use super::source::{ClientError, Event, PeerRef, near_names};
use super::sse::{self, Answer, ChunkWriter, SseBody, Trailers};
use super::view;
use crate::engine::detect::GATEWAY_MARK;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use unamesh_client::clock;
use unamesh_proto::{limits, timeouts};

/// Says of a proxy between us and the client that it must not collect the events.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// `POST /v1/chat/completions`.
pub async fn chat(State(state): State<GatewayState>, request: Request) -> Reply {
    answer(&state, Api::Chat, request).await
}

/// `POST /v1/completions`.
pub async fn completion(State(state): State<GatewayState>, request: Request) -> Reply {
    answer(&state, Api::Completion, request).await
}

/// A response, or an error in OpenAI's shape.
pub type Reply = Result<axum::response::Response, ApiError>;

/// `GET /v1/models`: every model of the mesh once.
pub async fn models(State(state): State<GatewayState>) -> Reply {
    let all: Vec<Value> = view::openai_models(&state.source.peers()).collect();
    Ok(json_reply(
        json!({
            "object": "list",
            "data": all,
            GATEWAY_MARK: {"version": env!("CARGO_PKG_VERSION")},
        })
        .to_string(),
    ))
}

/// `GET /v1/models/{id}`; an id may contain slashes.
pub async fn model(State(state): State<GatewayState>, Path(id): Path<String>) -> Reply {
    let peers = state.source.peers();
    match view::openai_models(&peers).find(|model| model["id"] == id.as_str()) {
        Some(model) => Ok(json_reply(model.to_string())),
        None => {
            let near = near_names(&peers, &id);
            Err(ClientError::UnknownModel { model: id, near }.into())
        }
    }
}

/// `GET /health`: answers without asking anybody, so that it stays quick under load.
pub async fn health(State(state): State<GatewayState>) -> Reply {
    let peers = state.source.peers();
    let models = view::openai_models(&peers).count();
    let body = json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "peers": view::serving(&peers).count(),
        "models": models,
    });
    Ok(json_reply(body.to_string()))
}

/// `GET /`: what this is.
pub async fn root() -> &'static str {
    concat!(
        "UnaMesh ",
        env!("CARGO_PKG_VERSION"),
        " is running.\n\n",
        "OpenAI API: POST /v1/chat/completions, POST /v1/completions, GET /v1/models\n",
        "Health:     GET /health\n",
        "Mesh API:   /unamesh/v1/ (bearer token; used by the unamesh command)\n"
    )
}

/// Every path that does not exist.
pub async fn not_found(request: Request) -> ApiError {
    let message = format!(
        "no such path: {} {}; this server has /v1/chat/completions, /v1/completions, /v1/models and /health",
        request.method(),
        request.uri().path()
    );
    ApiError::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
}

/// A known path with another method.
pub async fn wrong_method(request: Request) -> ApiError {
    let message = format!(
        "{} is not allowed on {}",
        request.method(),
        request.uri().path()
    );
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        INVALID,
        "method_not_allowed",
        message,
    )
}

async fn answer(state: &GatewayState, api: Api, request: Request) -> Reply {
    let other_model = headers::other_model(request.headers())?;
    let takes_trailers = headers::takes_trailers(request.headers());
    let body = read_body(request).await?;
    let Parsed {
        mut request,
        stream,
        include_usage,
    } = request::parse(api, &body)?;
    drop(body);
    request.other_model = other_model;
    let answer = Answer {
        api,
        id: answer_id(api),
        created: clock::wall().as_millis() / 1000,
        model: request.model.clone(),
    };
    if stream {
        let (events, begin) = begin(state.source.generate(request)).await?;
        let writer = ChunkWriter::new(&answer, include_usage);
        let peer = begin.started.as_ref().map(|(at, _)| sse::plain(&at.name));
        let trailers = takes_trailers.then(|| Trailers::new(peer.unwrap_or_default()));
        let mut response = streamed(SseBody::new(events, begin.first, writer, trailers));
        name(response.headers_mut(), begin.started);
        return Ok(response);
    }
    let whole = collect::whole(&answer, &*state.source, request).await?;
    let mut response = json_reply(whole.json);
    if !whole.seams.is_empty() {
        insert(response.headers_mut(), SEAM, &whole.seams.join(", "));
    }
    name(response.headers_mut(), whole.started);
    Ok(response)
}

/// Says who answers, and why.
fn name(headers: &mut HeaderMap, started: Option<(PeerRef, String)>) {
    if let Some((at, why)) = started {
        insert(headers, PEER, &sse::plain(&at.name));
        insert(headers, NODE, &at.node.to_string());
        insert(headers, WHY, &why);
    }
}

fn streamed(body: SseBody) -> axum::response::Response {
    let trailers = body.has_trailers();
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    let mut say = |name, value| headers.insert(name, HeaderValue::from_static(value));
    say(header::CONTENT_TYPE, "text/event-stream");
    say(header::CACHE_CONTROL, "no-cache");
    say(BUFFERING, "no");
    if trailers {
        say(header::TRAILER, "x-unamesh-peer, x-unamesh-seam");
    }
    response
}

/// What is known before the first byte goes out.
struct Begin {
    started: Option<(PeerRef, String)>,
    /// Taken from the stream, but part of the answer.
    first: Option<Event>,
}

/// Waits until a peer took the request, so that a failure before that is an HTTP status and
/// the headers can name the peer.
async fn begin(
    mut events: BoxStream<'static, Event>,
) -> Result<(BoxStream<'static, Event>, Begin), ApiError> {
    loop {
        match events.next().await {
            Some(Event::Progress { .. }) => {}
            Some(Event::Started { peer, why }) => {
                return Ok((
                    events,
                    Begin {
                        started: Some((peer, why)),
                        first: None,
                    },
                ));
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            first => {
                return Ok((
                    events,
                    Begin {
                        started: None,
                        first,
                    },
                ));
            }
        }
    }
}

/// Reads a request's body within its bounds.
///
/// # Errors
/// 413 too large, 408 too slow, 400 broken off.
pub async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body exceeds {} bytes", limits::MAX_HTTP_BODY);
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            "body_too_large",
            message,
        )
    };
    let body = request.into_body();
    if hyper::body::Body::size_hint(&body).lower() > limits::MAX_HTTP_BODY as u64 {
        return Err(too_large());
    }
    let read = Limited::new(body, limits::MAX_HTTP_BODY).collect();
    match tokio::time::timeout(timeouts::HTTP_BODY, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::invalid(
            "body_broken",
            format!("the body broke off: {e}"),
        )),
        Err(_) => {
            let seconds = timeouts::HTTP_BODY.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                INVALID,
                "body_timeout",
                message,
            ))
        }
    }
}

/// A 200 with a JSON body.
pub fn json_reply(json: String) -> axum::response::Response {
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        json,
    )
        .into_response()
}

fn answer_id(api: Api) -> String {
    let prefix = match api {
        Api::Chat => "chatcmpl",
        Api::Completion => "cmpl",
    };
    format!("{prefix}-{:032x}", rand::random::<u128>())
}
