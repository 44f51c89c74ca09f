//! A gateway on a free port above a scripted mesh, and a plain HTTP client.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code, shared by several test programs"
)]

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request as HttpRequest, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use unamesh_agent::gateway::source::{Event, PeerRef, Ranking, Request};
use unamesh_agent::gateway::{
    self, Control, ControlError, Drain, GatewayState, Generate, InviteOptions,
};
use unamesh_agent::state::{AdminToken, StateDir};
use unamesh_client::client::MeshClient;
use unamesh_client::transport::{BoxFuture, FrameStream, LinkError, Open, Transport};
use unamesh_proto::table::{Liveness, Peer, Snapshot};
use unamesh_proto::wire::{
    Advert, EngineAdvert, EngineKind, FinishReason, Hardware, Health, ModelAdvert, ModelKind,
    NodeState, Residency, Role, SignedAdvert, Stats, Usage,
};
use unamesh_proto::{Mono, NodeId};

/// Nothing here may take longer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a scripted answer does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Yields an event.
    Say(Event),
    /// Never goes on.
    Hang,
}

/// A stand-in for the mesh client that follows a script. It routes nothing and asks nobody.
pub struct ScriptedGenerate {
    script: Mutex<Vec<Step>>,
    /// What is played in place of `script` when a request is made again; then the next.
    pub again: Mutex<Vec<Vec<Step>>>,
    requests: Mutex<Vec<Request>>,
    /// Answers that are running.
    running: watch::Sender<usize>,
}

impl ScriptedGenerate {
    /// The last request.
    pub fn last(&self) -> Request {
        self.requests
            .lock()
            .unwrap()
            .last()
            .expect("no request arrived")
            .clone()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Waits until `count` answers run.
    pub async fn until_running(&self, count: usize) {
        let mut running = self.running.subscribe();
        let waited = running.wait_for(|now| *now == count);
        tokio::time::timeout(PATIENCE, waited)
            .await
            .expect("answers still run")
            .unwrap();
    }
}

struct Scripted {
    steps: VecDeque<Step>,
    running: watch::Sender<usize>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.running.send_modify(|count| *count -= 1);
    }
}

impl stream::Stream for Scripted {
    type Item = Event;
    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Event>> {
        match self.steps.pop_front() {
            Some(Step::Say(event)) => Poll::Ready(Some(event)),
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}

impl Generate for ScriptedGenerate {
    fn generate(&self, request: Request) -> BoxStream<'static, Event> {
        self.requests.lock().unwrap().push(request);
        self.running.send_modify(|count| *count += 1);
        let steps = self.script.lock().unwrap().clone().into();
        Scripted {
            steps,
            running: self.running.clone(),
        }
        .boxed()
    }

    fn generate_again(&self, request: Request, _: u32, again: u32) -> BoxStream<'static, Event> {
        let taken = self.again.lock().unwrap().clone();
        if let Some(script) = taken.get(again as usize - 1) {
            self.script.lock().unwrap().clone_from(script);
        }
        self.generate(request)
    }

    fn peers(&self) -> Arc<Snapshot> {
        let peers = vec![
            peer(1, "desk", &["smollm2", "org/tiny:q4"]),
            peer(2, "laptop", &["smollm2"]),
        ];
        Arc::new(Snapshot {
            version: 1,
            me: Some(node(1)),
            peers,
            ..Snapshot::default()
        })
    }

    fn why(&self, _: &str, _: u32) -> Ranking {
        Ranking::default()
    }
}

/// A stand-in for the agent that returns what it was asked.
pub struct EchoControl(pub broadcast::Sender<Arc<Value>>);

#[async_trait::async_trait]
impl Control for EchoControl {
    fn status(&self) -> Value {
        json!({"name": "desk"})
    }
    fn engines(&self) -> Value {
        json!([])
    }
    fn events(&self) -> broadcast::Receiver<Arc<Value>> {
        self.0.subscribe()
    }
    async fn ping(&self, node: Option<String>) -> Result<Value, ControlError> {
        match node.as_deref() {
            Some("nobody") => Err(ControlError::not_found("no peer is called \"nobody\"")),
            node => Ok(json!([{"name": node}])),
        }
    }
    async fn invite(&self, invite: InviteOptions) -> Result<Value, ControlError> {
        let seconds = invite.valid_for.as_secs();
        Ok(json!({"role": invite.role, "uses": invite.uses, "valid_for_s": seconds}))
    }
    async fn drain(&self, drain: Drain) -> Result<Value, ControlError> {
        Ok(match drain {
            Drain::Leave(deadline) => json!({"deadline_ms": deadline.as_millis() as u64}),
            Drain::Pause(long) => json!({"for_ms": long.as_millis() as u64}),
            Drain::Stop => json!({"stop": true}),
        })
    }
}

/// Nobody can be reached over it.
struct NoTransport;

impl Transport for NoTransport {
    fn open(&self, node: NodeId, _: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let reason = "there is no network".to_owned();
        Box::pin(std::future::ready(Err(LinkError::Unreachable {
            node,
            reason,
        })))
    }
    fn warm(&self, _: &[NodeId]) {}
}

/// A running gateway. Dropping it stops it.
pub struct TestGateway {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The mesh below it.
    pub source: Arc<ScriptedGenerate>,
    /// Sends events.
    pub events: broadcast::Sender<Arc<Value>>,
    token: AdminToken,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

impl TestGateway {
    /// Starts one that answers every request with `script`.
    pub async fn start(script: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let source = Arc::new(ScriptedGenerate {
            script: Mutex::new(script),
            again: Mutex::default(),
            requests: Mutex::default(),
            running: watch::Sender::new(0),
        });
        let events = broadcast::Sender::new(4);
        let stop = CancellationToken::new();
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let (token, _) = AdminToken::load_or_create(&state_dir).unwrap();
        let table = watch::channel(source.peers()).1;
        let state = GatewayState {
            source: source.clone(),
            client: MeshClient::over(table, Arc::new(NoTransport)),
            control: Arc::new(EchoControl(events.clone())),
            token: token.clone(),
            open: false,
            listen: addr,
            stop: stop.clone(),
        };
        let task = tokio::spawn(gateway::serve(listener, state));
        TestGateway {
            addr,
            source,
            events,
            token,
            stop,
            task,
        }
    }

    /// What opens the mesh API.
    pub fn token(&self) -> &str {
        self.token.reveal()
    }

    /// Stops it and waits for the end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .expect("it did not stop")
            .unwrap();
    }

    /// Sends a request and reads the whole reply.
    pub async fn send(&self, request: HttpRequest<Full<Bytes>>) -> Reply {
        let exchange = async {
            let (mut sender, _connection) = connect(self.addr).await;
            let response = sender.send_request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.expect("the body broke off").to_bytes();
            Reply {
                status: parts.status,
                headers: parts.headers,
                body,
            }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("no reply in time")
    }

    /// A `GET` without a token.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path).body(Full::default()).unwrap())
            .await
    }

    /// A `POST` without a token.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(
            self.request("POST", path)
                .body(Full::new(body.into()))
                .unwrap(),
        )
        .await
    }

    /// A request to the mesh API, with the token.
    pub async fn mesh(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Reply {
        let request = self.request(method, &format!("/unamesh/v1/{path}"));
        let request = request.header("authorization", format!("Bearer {}", self.token()));
        self.send(request.body(Full::new(body.into())).unwrap())
            .await
    }

    /// A request with the right `Host`.
    pub fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        HttpRequest::builder()
            .method(method)
            .uri(path)
            .header("host", self.addr.to_string())
    }
}

/// A connection; its task ends with the sender.
pub async fn connect(
    addr: SocketAddr,
) -> (
    hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    tokio::task::JoinHandle<()>,
) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, task)
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}"))
            .to_str()
            .unwrap()
    }

    /// The error object; checks its shape.
    pub fn error(&self) -> (u16, Value) {
        let error = self.json()["error"].clone();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{key} is missing in {error}");
        }
        (self.status.as_u16(), error)
    }

    /// The records of an event stream: `data` payloads, and comments as they are.
    pub fn records(&self) -> Vec<String> {
        let text = self.text();
        assert!(
            text.ends_with("\n\n"),
            "the last record is not complete: {text:?}"
        );
        let records = text.split_terminator("\n\n");
        records
            .map(|r| r.strip_prefix("data: ").unwrap_or(r).to_owned())
            .collect()
    }
}

/// A peer.
pub fn peer_ref(seed: u8, name: &str) -> PeerRef {
    PeerRef {
        node: node(seed),
        name: name.to_owned(),
    }
}

/// A node id.
pub fn node(seed: u8) -> NodeId {
    NodeId([seed; 32])
}

/// `Started`.
pub fn started() -> Step {
    let why = "shortest predicted time to first token: 12 ms".to_owned();
    Step::Say(Event::Started {
        peer: peer_ref(1, "my desk"),
        why,
    })
}

/// `Token`.
pub fn token(index: u32, text: &str) -> Step {
    Step::Say(Event::Token {
        index,
        text: text.to_owned(),
        tokens: 1,
        extra: String::new(),
    })
}

/// `Token` with other fields.
pub fn token_extra(index: u32, text: &str, extra: Value) -> Step {
    let extra = extra.to_string();
    Step::Say(Event::Token {
        index,
        text: text.to_owned(),
        tokens: 1,
        extra,
    })
}

/// `Done`.
pub fn done() -> Step {
    let usage = Usage {
        prompt_tokens: 7,
        completion_tokens: 2,
    };
    Step::Say(Event::Done {
        finish: FinishReason::Stop,
        usage,
    })
}

/// A short answer.
pub fn hello() -> Vec<Step> {
    vec![started(), token(0, "Hel"), token(1, "lo"), done()]
}

fn peer(seed: u8, name: &str, models: &[&str]) -> Arc<Peer> {
    let engine = EngineAdvert {
        name: "starter".to_owned(),
        kind: EngineKind::LlamaCpp,
        health: Health::Ok,
        slots: 1,
        busy: 0,
        queue: 0,
    };
    let model = |name: &&str| ModelAdvert {
        engine: 0,
        name: (*name).to_owned(),
        digest: String::new(),
        family: "llama".to_owned(),
        quantization: String::new(),
        size: 0,
        context: 2048,
        kind: ModelKind::Llm,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: true,
        stats: Stats::default(),
    };
    let advert = Advert {
        node: node(seed),
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        epoch: 1_700_000_000_000,
        seq: 1,
        wall_ms: 1_700_000_000_000,
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: Vec::new(),
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: vec![engine],
        models: models.iter().map(model).collect(),
        voices: Vec::new(),
    };
    let signed = SignedAdvert {
        certificate: Vec::new(),
        payload: Vec::new(),
        signature: [0; 64],
    };
    Arc::new(Peer {
        advert: Arc::new(advert),
        signed: Arc::new(signed),
        liveness: Liveness::Alive,
        paths: Vec::new(),
        heard: Mono::ZERO,
    })
}
