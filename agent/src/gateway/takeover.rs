//! A connection that stops being HTTP: a WebSocket.
//!
//! Its session runs in the connection's own task once HTTP is done, so that it is owned, counted
//! and awaited as every connection is ([`super::server`]).

use super::error::{ApiError, INVALID};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use unamesh_proto::limits;

/// A WebSocket whose other end is a client.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Where a request leaves what shall run on its connection.
#[derive(Clone, Default)]
pub struct Takeover(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Takeover {
    /// Runs what was left, if anything was.
    pub async fn run(self) {
        let session = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = session {
            session.await;
        }
    }
}

/// Accepts a WebSocket; `session` gets it when the client has the answer.
///
/// # Errors
/// 400: the request does not ask for one. 426: another version.
pub fn websocket<S, F>(mut request: Request, session: S) -> Result<Response, ApiError>
where
    S: FnOnce(Socket) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let accept = accept_key(request.headers())?;
    let upgrade = hyper::upgrade::on(&mut request);
    let takeover = request.extensions().get::<Takeover>().cloned();
    let Some(takeover) = takeover else {
        return Err(wanted("this connection cannot become a WebSocket"));
    };
    let run = async move {
        match upgrade.await {
            Ok(io) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(limits::MAX_SOCKET_MESSAGE))
                    .max_frame_size(Some(limits::MAX_SOCKET_MESSAGE));
                let io = TokioIo::new(io);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config));
                session(socket.await).await;
            }
            // The client went before it had the answer.
            Err(error) => tracing::debug!(%error, "no WebSocket came of a request"),
        }
    };
    *takeover.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(run));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

/// The answer to the client's key (RFC 6455, 4.2).
fn accept_key(headers: &HeaderMap) -> Result<String, ApiError> {
    let has = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Err(wanted("this path speaks WebSocket only"));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        let message = "version 13 of WebSocket is spoken here";
        return Err(ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            INVALID,
            "websocket_version",
            message,
        ));
    }
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) => Ok(derive_accept_key(key.as_bytes())),
        None => Err(wanted("the request has no Sec-WebSocket-Key")),
    }
}

fn wanted(message: &str) -> ApiError {
    ApiError::invalid("websocket_wanted", message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_answer_to_the_example_of_the_rfc() {
        let asked = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        assert_eq!(accept_key(&asked).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_is_no_websocket_is_refused_in_words() {
        let plain = accept_key(&headers(&[])).unwrap_err();
        assert_eq!(plain.code, "websocket_wanted");
        let old = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "8"),
        ]);
        assert_eq!(accept_key(&old).unwrap_err().status.as_u16(), 426);
    }
}
