//! One table from what went wrong to what an HTTP client is told.
//!
//! Errors have OpenAI's shape, `{"error":{"message","type","param","code"}}`, with a stable
//! `code` for scripts and the offending request field in `param`.

use super::control::ControlError;
use super::source::ClientError;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;
use unamesh_proto::timeouts;
use unamesh_proto::wire::{ErrorCode, WireError};

/// What an HTTP client gets instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status, where headers are not out yet.
    pub status: StatusCode,
    /// For people: what is wrong and the way out. Never a prompt.
    pub message: String,
    /// OpenAI's coarse class.
    pub kind: &'static str,
    /// The request field to blame, `messages[2].role`.
    pub param: Option<String>,
    /// For scripts, snake_case.
    pub code: &'static str,
    /// When a retry makes sense.
    pub retry_after: Option<Duration>,
    /// Tokens that were delivered before an answer broke off.
    pub delivered_tokens: Option<u32>,
}

/// As it stands in JSON.
#[derive(Serialize)]
struct Shape<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_tokens: Option<u32>,
}

impl ApiError {
    /// An error of the given status, class and code.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        ApiError {
            status,
            message: message.into(),
            kind,
            param: None,
            code,
            retry_after: None,
            delivered_tokens: None,
        }
    }

    /// The request is wrong (400).
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// Field `param` is wrong (400).
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).param(param)
    }

    /// Names the field to blame.
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The `{"error":{...}}` object on one line.
    pub fn json(&self) -> String {
        let shape = Shape {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.code,
            delivered_tokens: self.delivered_tokens,
        };
        // Strings and numbers always serialize; the fallback keeps the promise of a valid body.
        let body = serde_json::to_string(&shape);
        format!("{{\"error\":{}}}", body.as_deref().unwrap_or("{}"))
    }
}

/// OpenAI's `type` of a wrong request.
pub const INVALID: &str = "invalid_request_error";
/// OpenAI's `type` of a failure that is not the caller's.
pub const SERVER: &str = "server_error";

impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(after) = self.retry_after {
            // Whole seconds by RFC 9110; the OpenAI clients read the finer header first.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, number(seconds));
            headers.insert(
                HeaderName::from_static("retry-after-ms"),
                number(after.as_millis()),
            );
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn number(value: u128) -> HeaderValue {
    HeaderValue::from(u64::try_from(value).unwrap_or(u64::MAX))
}

/// The table from the mesh client's errors to HTTP.
impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoPeer { model, near } => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                "no_peer",
                no_peer(&model, &near),
            ),
            ClientError::UnknownModel { model, near } => ApiError::new(
                StatusCode::NOT_FOUND,
                INVALID,
                "model_not_found",
                unknown_model(&model, &near),
            )
            .param("model"),
            ClientError::Busy { retry_after } => busy(retry_after),
            ClientError::Invalid { field, message } => {
                let error = ApiError::invalid("invalid_value", message);
                ApiError {
                    param: field,
                    ..error
                }
            }
            ClientError::ContextExceeded { message } => {
                ApiError::invalid("context_length_exceeded", message).param("messages")
            }
            ClientError::Interrupted { tokens, reason, .. } => ApiError {
                delivered_tokens: Some(tokens),
                ..broken(
                    "interrupted",
                    format!("the answer broke off and no other machine could go on: {reason}"),
                )
            },
            ClientError::Incomplete { tokens, reason, .. } => ApiError {
                delivered_tokens: Some(tokens),
                ..broken(
                    "incomplete",
                    format!(
                        "the answer broke off, and structured output or a tool call is never \
                         spliced; ask again: {reason}"
                    ),
                )
            },
            ClientError::Left { tokens, .. } => ApiError {
                delivered_tokens: Some(tokens),
                ..broken(
                    "interrupted",
                    "the answer broke off because this machine left the mesh, and it is done \
                     nowhere else; `serve.drain_ms` in the configuration, or `unamesh drain \
                     --deadline TIME`, gives its last answers more time",
                )
            },
            error @ ClientError::NoVoice { .. } => ApiError::new(
                StatusCode::NOT_FOUND,
                INVALID,
                "voice_not_found",
                error.to_string(),
            )
            .param("voice"),
            error @ ClientError::BrokenOff { .. } => broken("interrupted", error.to_string()),
            ClientError::Cancelled => broken("cancelled", "the request was cancelled".to_owned()),
            ClientError::Refused(error) => refused(error),
            ClientError::NotPaired(reason) => unavailable(
                "not_paired",
                format!(
                    "this machine is in no mesh yet ({reason}); run `unamesh init`, or `unamesh \
                     join LINK` with a link from `unamesh invite`"
                ),
            ),
            ClientError::Offline(reason) => unavailable(
                "offline",
                format!("the network cannot be opened ({reason}); `unamesh doctor` says why"),
            ),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = if status.is_server_error() {
            SERVER
        } else {
            INVALID
        };
        ApiError::new(status, kind, error.code, error.message)
    }
}

/// What every candidate refused for a reason of its own.
fn refused(error: WireError) -> ApiError {
    let WireError {
        code,
        message,
        field,
        retry_after_ms,
    } = error;
    let (status, kind) = match code {
        ErrorCode::UnknownModel => (StatusCode::NOT_FOUND, INVALID),
        ErrorCode::Forbidden => (StatusCode::FORBIDDEN, INVALID),
        ErrorCode::Unsupported => (StatusCode::BAD_REQUEST, INVALID),
        ErrorCode::Limit | ErrorCode::Busy => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
        ErrorCode::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER),
        _ => (StatusCode::BAD_GATEWAY, SERVER),
    };
    let after = Duration::from_millis(retry_after_ms.into());
    ApiError {
        param: field,
        retry_after: (!after.is_zero()).then_some(after),
        ..ApiError::new(status, kind, code.name(), message)
    }
}

fn unavailable(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message)
}

fn broken(code: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, SERVER, code, message)
}

fn busy(retry_after: Duration) -> ApiError {
    let after = if retry_after.is_zero() {
        timeouts::BUSY_RETRY
    } else {
        retry_after
    };
    ApiError {
        retry_after: Some(after),
        ..ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "busy",
            format!(
                "every engine with this model is busy; try again in {} ms",
                after.as_millis()
            ),
        )
    }
}

fn no_peer(model: &str, near: &[(String, Vec<String>)]) -> String {
    if near.is_empty() {
        return format!(
            "no machine of the mesh serves a model now. Start an engine on any of them: install \
             Ollama (https://ollama.com/download) and run `ollama pull {model}`, or let `unamesh \
             demo` install the starter engine; `unamesh engines` shows what an agent finds"
        );
    }
    format!(
        "no machine with {model:?} can be reached now; {}",
        others(near)
    )
}

fn unknown_model(model: &str, near: &[(String, Vec<String>)]) -> String {
    if near.is_empty() {
        return format!("no machine of the mesh has the model {model:?}; GET /v1/models lists all");
    }
    format!(
        "no machine of the mesh has the model {model:?}; {}",
        others(near)
    )
}

/// `near: "a" on desk, laptop; "b" on desk`.
fn others(near: &[(String, Vec<String>)]) -> String {
    let mut text = String::from("near: ");
    for (at, (name, nodes)) in near.iter().enumerate() {
        let separator = if at == 0 { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{name:?} on {}", nodes.join(", "));
    }
    text
}
