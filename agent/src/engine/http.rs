//! A lean HTTP/1.1 client for engines: one exchange at a time on a connection, no task of its
//! own.
//!
//! The time to the first token runs through here, so the connection is driven *inline*: whoever
//! awaits the answer or reads the body polls the socket in the same task, without a hop to a
//! background task. Two properties follow:
//!
//! - Dropping a [`Body`] before its end drops the socket with it. The engine sees the connection
//!   close at once and stops its work; there is nothing to cancel.
//! - An idle connection costs a socket and no task. That it was closed meanwhile is seen when it
//!   is taken out of the pool; if the engine closes it in the very moment of a request, the
//!   request is sent once more on a fresh connection (an engine's answers have no side effect).
//!
//! Engines stand on the same machine or the LAN and speak plain HTTP; `https` is refused with
//! a typed error.

mod link;

pub use link::Body;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use link::Link;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use unamesh_proto::limits::{MAX_ENGINE_BODY, MAX_ENGINE_IDLE};
use unamesh_proto::timeouts::ENGINE_CONNECT;
use url::Url;

/// Why an exchange failed. Nothing of it says anything about the request itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No connection; nothing was sent.
    #[error("{0}")]
    Connect(String),
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The answer exceeds its limit, in bytes.
    #[error("the answer exceeds {0} bytes")]
    TooLarge(usize),
    /// No answer within this time.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// The answer is not the JSON that this API gives.
    #[error("the answer is not of this API: {0}")]
    Rubbish(String),
}

/// The URL of an engine cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It holds a name or a password, which would be shown wherever the URL is. (Not told here:
    /// this text goes to the log.)
    #[error(
        "it holds a user name or password; engines are given keys instead: put it into a \
         variable of the environment and name that as api_key_env"
    )]
    Credentials,
    /// Only `http` is spoken.
    #[error("{0}: only http:// engines are supported; put a TLS engine behind a local proxy")]
    Scheme(Url),
    /// It names no host.
    #[error("{0}: names no host")]
    NoHost(Url),
    /// The API key holds characters that no header may.
    #[error("the API key of {0} is not a valid header value")]
    Key(Url),
}

/// `url` as people may see it, be it a URL or not: what stands before its last `@`, where a name
/// and a password would be, is left out.
pub(crate) fn shown(url: &str) -> Cow<'_, str> {
    let Some((hidden, rest)) = url.rsplit_once('@') else {
        return url.into();
    };
    let scheme = hidden.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some(scheme) => format!("{scheme}://...@{rest}").into(),
        None => format!("...@{rest}").into(),
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A client of one engine. Cheap to clone; clones share the idle connections.
#[derive(Clone)]
pub struct Http {
    inner: Arc<Inner>,
}

struct Inner {
    host: String,
    port: u16,
    authority: HeaderValue,
    /// Before each path; no slash at its end.
    prefix: String,
    key: Option<HeaderValue>,
    max_idle: usize,
    /// Last in, first out: the warmest connection first.
    idle: Mutex<Vec<Link>>,
}

impl Http {
    /// A client of the engine at `url`; a path in it comes before every request's path, and
    /// `key` is sent as a bearer token.
    ///
    /// # Errors
    /// The URL or the key cannot be used.
    pub fn new(url: &Url, key: Option<&str>) -> Result<Http, UrlError> {
        Http::with_idle(url, key, MAX_ENGINE_IDLE)
    }

    /// The same, with at most `max_idle` idle connections.
    ///
    /// # Errors
    /// The URL or the key cannot be used.
    pub fn with_idle(url: &Url, key: Option<&str>, max_idle: usize) -> Result<Http, UrlError> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        if url.scheme() != "http" {
            return Err(UrlError::Scheme(url.clone()));
        }
        let host = url
            .host_str()
            .ok_or_else(|| UrlError::NoHost(url.clone()))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let authority = HeaderValue::from_str(&format!("{host}:{port}"))
            .map_err(|_| UrlError::NoHost(url.clone()))?;
        let key = match key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                    .map_err(|_| UrlError::Key(url.clone()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Http {
            inner: Arc::new(Inner {
                host: host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned(),
                port,
                authority,
                prefix: url.path().trim_end_matches('/').to_owned(),
                key,
                max_idle,
                idle: Mutex::new(Vec::new()),
            }),
        })
    }

    /// The port, if the host is this machine by its loopback address.
    pub fn local_port(&self) -> Option<u16> {
        let host = self.inner.host.as_str();
        let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        local.then_some(self.inner.port)
    }

    /// Asks for `path` and reads the whole answer as JSON, all within `limit`.
    ///
    /// # Errors
    /// See [`HttpError`]. A status other than 2xx is no error here: `Ok(Err(..))` carries it.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<Result<T, (StatusCode, Bytes)>, HttpError> {
        within(limit, self.json(Method::GET, path, Bytes::new())).await
    }

    /// Posts JSON to `path` and reads the whole answer as JSON, all within `limit`.
    ///
    /// # Errors
    /// As for [`Http::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Result<T, (StatusCode, Bytes)>, HttpError> {
        within(limit, self.json(Method::POST, path, body)).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Result<T, (StatusCode, Bytes)>, HttpError> {
        let reply = self.send(method, path, body).await?;
        let status = reply.status;
        let bytes = reply.body.collect(MAX_ENGINE_BODY).await?;
        if !status.is_success() {
            return Ok(Err((status, bytes)));
        }
        serde_json::from_slice(&bytes)
            .map(Ok)
            .map_err(|e| HttpError::Rubbish(e.to_string()))
    }

    /// Posts JSON to `path`; resolves with the answer's head. Waits as long as it takes: the
    /// engine may be reading a prompt or loading a model.
    ///
    /// # Errors
    /// [`HttpError::Connect`] or [`HttpError::Broken`].
    pub async fn stream(&self, path: &str, body: Bytes) -> Result<Reply, HttpError> {
        self.send(Method::POST, path, body).await
    }

    /// The same with a body of another type than JSON.
    ///
    /// # Errors
    /// As for [`Http::stream`].
    pub async fn upload(
        &self,
        path: &str,
        kind: HeaderValue,
        body: Bytes,
    ) -> Result<Reply, HttpError> {
        self.send_as(Method::POST, path, kind, body).await
    }

    /// The status of `GET path`, all within `limit`; the body is left.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn status(&self, path: &str, limit: Duration) -> Result<StatusCode, HttpError> {
        let reply = within(limit, self.send(Method::GET, path, Bytes::new())).await?;
        Ok(reply.status)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, HttpError> {
        self.send_as(method, path, JSON, body).await
    }

    async fn send_as(
        &self,
        method: Method,
        path: &str,
        kind: HeaderValue,
        body: Bytes,
    ) -> Result<Reply, HttpError> {
        if let Some(mut link) = self.idle().await {
            // A failure here means that the engine closed an idle connection under our hands.
            if let Ok(answer) = link
                .exchange(self.request(&method, path, kind.clone(), body.clone())?)
                .await
            {
                return Ok(self.reply(answer, link));
            }
        }
        let mut link = self.connect().await?;
        let answer = link
            .exchange(self.request(&method, path, kind, body)?)
            .await?;
        Ok(self.reply(answer, link))
    }

    fn reply(&self, answer: Response<Incoming>, link: Link) -> Reply {
        let (head, incoming) = answer.into_parts();
        let body = Body::new(incoming, link, self.inner.clone());
        let content_type = head.headers.get(header::CONTENT_TYPE);
        Reply {
            status: head.status,
            content_type: content_type
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned),
            whole: head.headers.contains_key(header::CONTENT_LENGTH),
            body,
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        kind: HeaderValue,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.inner.prefix))
            .header(header::HOST, self.inner.authority.clone());
        if method == Method::POST {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(key) = &self.inner.key {
            request = request.header(header::AUTHORIZATION, key.clone());
        }
        request
            .body(Full::new(body))
            .map_err(|e| HttpError::Broken(e.to_string()))
    }

    /// An idle connection that still lives.
    async fn idle(&self) -> Option<Link> {
        loop {
            let mut link = lock(&self.inner.idle).pop()?;
            if poll_fn(|cx| Poll::Ready(link.is_usable(cx))).await {
                return Some(link);
            }
        }
    }

    async fn connect(&self) -> Result<Link, HttpError> {
        let (host, port) = (self.inner.host.as_str(), self.inner.port);
        let dial = async {
            match host.parse::<IpAddr>() {
                Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
                Err(_) => TcpStream::connect((host, port)).await,
            }
        };
        let socket = tokio::time::timeout(ENGINE_CONNECT, dial)
            .await
            .map_err(|_| HttpError::Connect(format!("{host}:{port} does not answer")))?
            .map_err(|e| HttpError::Connect(format!("{host}:{port}: {e}")))?;
        socket
            .set_nodelay(true)
            .map_err(|e| HttpError::Connect(e.to_string()))?;
        let (sender, io) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|e| HttpError::Connect(e.to_string()))?;
        Ok(Link::new(sender, io))
    }
}

/// The head of an answer, and its body to read.
pub struct Reply {
    /// As the engine said.
    pub status: StatusCode,
    /// What it says the body is; not all engines say the truth.
    pub content_type: Option<String>,
    /// The body's length was known before it was sent: it was made as a whole.
    pub whole: bool,
    /// What follows.
    pub body: Body,
}

/// `work`, or [`HttpError::Late`] after `limit`.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(HttpError::Late(limit)))
}

/// A poisoned pool is still a pool: nothing in it is half-made.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
