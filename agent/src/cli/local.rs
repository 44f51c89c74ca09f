//! A client of the agent that runs on this machine: HTTP/1.1 over loopback to its mesh API.

use super::context::Context;
use super::error::{CliError, NO_AGENT};
use super::text::Read as _;
use crate::local_mesh::agent::Door;
use crate::state::{AdminToken, AgentInfo, StateDir};
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use unamesh_client::identity::Credentials;
use unamesh_proto::limits;
use unamesh_proto::wire::Role;

/// The code of the error on a machine that joined as a client: it needs no agent.
pub const CLIENT_ONLY: &str = "client_only";
/// A command asks the agent beside it: later than this it hangs.
const CONNECT: Duration = Duration::from_secs(2);
/// The longest answer that is no stream: a ping that waits for every path of a dead peer.
const ANSWER: Duration = Duration::from_secs(30);

/// What a request carries; an error in it breaks the request off.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A WebSocket to the agent.
pub type SocketStream = WebSocketStream<TcpStream>;

/// The running agent.
pub struct Local {
    context: Context,
    /// As it wrote when it started.
    pub info: AgentInfo,
    addr: SocketAddr,
    token: AdminToken,
}

impl Local {
    /// Finds the agent that runs with this state directory.
    ///
    /// # Errors
    /// None runs, or this user may not talk to it.
    pub fn find(context: &Context) -> Result<Self, CliError> {
        let path = context.state_path()?;
        if !path.is_dir() {
            return Err(no_agent(context, false));
        }
        let state = StateDir::open(&path)?;
        let member = state.file("mesh.json").exists();
        let (info, token) = match (AgentInfo::read(&state)?, AdminToken::load(&state)?) {
            // It died without a goodbye. Whoever has its port now must not get the token.
            (Some(_), _) if state.is_abandoned() => return Err(no_agent(context, true)),
            (Some(info), Some(token)) => (info, token),
            _ if state.is_locked() => return Err(unsaid(context, &state)),
            _ => return Err(no_agent(context, member)),
        };
        let addr = reachable(info.gateway);
        Ok(Local {
            context: context.clone(),
            info,
            addr,
            token,
        })
    }

    /// Its API, for those who ask it in their own way.
    pub fn door(&self) -> Door {
        Door {
            gateway: self.addr,
            token: self.token.reveal().to_owned(),
        }
    }

    /// `GET /unamesh/v1/{path}`.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.answer(Method::GET, path, None).await
    }

    /// `POST /unamesh/v1/{path}` with a JSON body.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        self.answer(Method::POST, path, Some(body)).await
    }

    /// `POST /unamesh/v1/{path}` whose answer is a stream of lines. Dropping it cancels.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn lines(&self, path: &str, body: &Value) -> Result<Lines, CliError> {
        self.exchange(path, json_body(Some(body))).await
    }

    /// The same with a body of any kind, which is sent as it comes while lines arrive already.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn exchange(&self, path: &str, body: Body) -> Result<Lines, CliError> {
        let (response, connection) = self.send(Method::POST, path, body).await?;
        Ok(Lines::of(response, connection))
    }

    /// `GET /unamesh/v1/{path}` whose answer is a stream of server-sent events.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn follow(&self, path: &str) -> Result<Lines, CliError> {
        let (response, connection) = self.send(Method::GET, path, json_body(None)).await?;
        Ok(Lines::of(response, connection))
    }

    /// `GET /unamesh/v1/{path}` as a WebSocket.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub async fn socket(&self, path: &str) -> Result<SocketStream, CliError> {
        let url = format!("ws://{}/unamesh/v1/{path}", self.addr);
        let bearer = format!("Bearer {}", self.token.reveal());
        let request = url.into_client_request().and_then(|mut request| {
            let bearer = HeaderValue::from_str(&bearer)?;
            request.headers_mut().insert(AUTHORIZATION, bearer);
            Ok(request)
        });
        let request = request.map_err(|e| CliError::new("request", e.to_string()))?;
        let stream = self.connect().await?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(refused)) => Err(self.refused(
                refused.status().as_u16(),
                refused.body().as_deref().unwrap_or_default(),
            )),
            Err(e) => Err(self.silent(&e.to_string())),
        }
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        let asked = async {
            let (response, _connection) = self.send(method, path, json_body(body)).await?;
            collect(response).await
        };
        let body = tokio::time::timeout(ANSWER, asked)
            .await
            .map_err(|_| self.silent(&format!("no answer within {} s", ANSWER.as_secs())))??;
        serde_json::from_slice(&body)
            .map_err(|e| self.silent(&format!("the answer is no JSON: {e}")))
    }

    /// Sends and checks the status. The set holds the connection's task.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<(Response<Incoming>, JoinSet<()>), CliError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/unamesh/v1/{path}"))
            .header("host", self.addr.to_string())
            .header("authorization", format!("Bearer {}", self.token.reveal()))
            .header("content-type", "application/json")
            .body(body)
            .map_err(|e| CliError::new("request", e.to_string()))?;
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.silent(&e.to_string()))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Its error shows in the response.
            let _ = connection.await;
        });
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.silent(&e.to_string()))?;
        if response.status().is_success() {
            return Ok((response, tasks));
        }
        let status = response.status();
        let body = collect(response).await?;
        Err(self.refused(status.as_u16(), &body))
    }

    async fn connect(&self) -> Result<TcpStream, CliError> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(self.addr))
            .await
            .map_err(|_| self.silent("connecting timed out"))?
            .map_err(|e| self.unreachable(&e))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// The agent's own words.
    fn refused(&self, status: u16, body: &[u8]) -> CliError {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = body.at("error");
        let message = match error.at("message").text() {
            "" => format!("the agent answered with status {status}"),
            text => text.to_owned(),
        };
        let code = match error.at("code").text() {
            "" => "refused",
            code => code,
        };
        let error = CliError::new(code, message);
        match code {
            "unknown_model" | "no_peer" | "model_not_found" => {
                error.next(self.context.command("models"))
            }
            // Another agent took the port after ours had died.
            "token_required" => error.next(self.context.command("doctor")),
            _ => error,
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let state = self
            .context
            .state_path()
            .and_then(|p| Ok(StateDir::open(&p)?));
        if state.is_ok_and(|state| !state.is_locked()) {
            // It died without a goodbye and left its file.
            return no_agent(&self.context, true);
        }
        self.silent(&error.to_string())
    }

    fn silent(&self, reason: &str) -> CliError {
        CliError::new(
            "agent_silent",
            format!(
                "the agent (process {}) does not answer at {}: {reason}",
                self.info.pid, self.addr
            ),
        )
        .exit(NO_AGENT)
        .next(self.context.command("doctor"))
    }
}

/// An agent runs, and could not write down where: it is just starting, or the disk is full.
fn unsaid(context: &Context, state: &StateDir) -> CliError {
    let message = format!(
        "an agent runs with {}, and has not said there where it listens: it is just starting, or \
         it cannot write there",
        state.path().display()
    );
    CliError::new("agent_unknown", message)
        .exit(NO_AGENT)
        .next(context.command("doctor"))
}

fn no_agent(context: &Context, member: bool) -> CliError {
    if !member {
        return CliError::new(
            "not_paired",
            "this machine is in no mesh, and no agent runs on it",
        )
        .exit(NO_AGENT)
        .next(format!(
            "{} && {}",
            context.command("init"),
            context.command("up")
        ))
        .next(context.command("join LINK"));
    }
    if is_client(context) {
        return CliError::new(
            CLIENT_ONLY,
            "this machine is a client of the mesh: it asks, and runs no agent",
        )
        .exit(NO_AGENT)
        .next(context.command("chat"))
        .next(context.command("peers"));
    }
    CliError::new("no_agent", "no agent runs on this machine")
        .exit(NO_AGENT)
        .next(context.command("up"))
}

/// Whether this machine joined to ask alone.
fn is_client(context: &Context) -> bool {
    context
        .state_path()
        .ok()
        .and_then(|dir| Credentials::load(&dir).ok())
        .is_some_and(|credentials| credentials.role == Role::Client)
}

/// Where to dial a listener: one on every address is on loopback too.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn json_body(body: Option<&Value>) -> Body {
    let body = body.map(Value::to_string).unwrap_or_default();
    Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync()
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, CliError> {
    match Limited::new(response.into_body(), limits::MAX_ENGINE_BODY)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(CliError::new(
            "answer_too_large",
            "the agent's answer is too large",
        )),
        Err(e) => Err(CliError::new(
            "agent_silent",
            format!("the agent's answer broke off: {e}"),
        )),
    }
}

/// A streamed answer, line by line: JSON, or the data of server-sent events.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    _connection: JoinSet<()>,
}

impl Lines {
    fn of(response: Response<Incoming>, connection: JoinSet<()>) -> Self {
        Lines {
            body: response.into_body(),
            buffer: BytesMut::new(),
            _connection: connection,
        }
    }

    /// The next line as JSON; `None` after the last.
    ///
    /// # Errors
    /// The agent went away, or a line is no JSON or longer than [`limits::MAX_ENGINE_LINE`].
    pub async fn next(&mut self) -> Result<Option<Value>, CliError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                // No JSON begins with a colon, as a comment between server-sent events does.
                if line.trim_ascii().is_empty() || line.starts_with(b":") {
                    continue;
                }
                let json = line.strip_prefix(b"data: ").unwrap_or(&line);
                return serde_json::from_slice(json)
                    .map(Some)
                    .map_err(|e| CliError::new("protocol", format!("a line is no JSON: {e}")));
            }
            if self.buffer.len() > limits::MAX_ENGINE_LINE {
                return Err(CliError::new(
                    "protocol",
                    "a line of the answer is too long",
                ));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => {
                    return Err(CliError::new(
                        "agent_lost",
                        format!("the agent on this machine went away: {e}"),
                    ));
                }
            }
        }
    }
}
