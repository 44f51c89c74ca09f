//! A serving agent and its callers, over real QUIC on loopback: everything but the mesh.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod agents;
pub mod hearer;
pub mod listener;
pub mod mouth;
pub mod peers;
pub mod player;
pub mod speaker;
pub mod tap;
pub mod twins;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::ca::Ca;
use unamesh_agent::engine::Engine;
use unamesh_agent::engine::registry::Registry;
use unamesh_agent::serve::{Hooks, ServeConfig, Service};
use unamesh_agent::state::SpeedStore;
use unamesh_client::clock;
use unamesh_client::endpoint::bind;
use unamesh_client::framing::{self, RecordReader, RecordWriter};
use unamesh_client::identity::{Credentials, Member, NodeKey};
use unamesh_client::transport::BoxFuture;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::{
    Accepted, Attach, Done, ErrorCode, GenFrame, GenerateRequest, InputKind, NodeState, ProbeFor,
    ProbedFor, Reach, Record, Role, Sampling, SignedAdvert, StreamKind, Token, WireError,
};
use unamesh_proto::{GenerationId, NodeId};
use unamesh_tests::doubles::EngineDouble;

/// Nothing in these tests takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh's CA.
pub struct Mesh {
    _dir: TempDir,
    ca: Ca,
}

impl Mesh {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(&dir.path().join("ca"), clock::wall()).unwrap();
        Mesh { _dir: dir, ca }
    }

    pub fn member(&self, role: Role) -> Credentials {
        let key = NodeKey::generate();
        let certificate = self
            .ca
            .issue(key.id(), role, "test", clock::wall())
            .unwrap();
        let ca = self.ca.certificate().to_vec();
        Credentials::new(key, certificate, ca, "test".to_owned()).unwrap()
    }
}

/// Hooks that remember.
pub struct TestHooks {
    pub table: watch::Sender<Arc<Snapshot>>,
    pub advert: SignedAdvert,
    pub received: Mutex<Vec<(Member, SignedAdvert)>>,
    pub connected: watch::Sender<usize>,
    /// Kept, and so kept open, from [`Server::keep_connections`] on.
    connections: Mutex<Option<Vec<quinn::Connection>>>,
    pub revoked: Mutex<Vec<NodeId>>,
    pub questions: Mutex<Vec<(NodeId, ProbeFor)>>,
}

impl Hooks for TestHooks {
    fn connected(&self, _: Member, connection: quinn::Connection) {
        if let Some(kept) = self.connections.lock().unwrap().as_mut() {
            kept.retain(|c| c.close_reason().is_none());
            kept.push(connection);
        }
        self.connected.send_modify(|n| *n += 1);
    }

    fn advert(&self) -> Arc<SignedAdvert> {
        Arc::new(self.advert.clone())
    }

    fn received(&self, from: Member, signed: SignedAdvert, _: SocketAddr) {
        self.received.lock().unwrap().push((from, signed));
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.table.subscribe()
    }

    fn state(&self) -> NodeState {
        NodeState::Up
    }

    fn probe_for(
        &self,
        from: NodeId,
        question: ProbeFor,
    ) -> BoxFuture<Result<ProbedFor, WireError>> {
        self.questions.lock().unwrap().push((from, question));
        let ProbeFor { nonce, .. } = question;
        let (reach, rtt_us) = (Reach::Reached, 7);
        Box::pin(std::future::ready(Ok(ProbedFor {
            nonce,
            reach,
            rtt_us,
        })))
    }

    fn is_revoked(&self, node: &NodeId) -> bool {
        self.revoked.lock().unwrap().contains(node)
    }
}

/// An advert that nobody opens.
pub fn signed(mark: u8) -> SignedAdvert {
    SignedAdvert {
        certificate: vec![mark],
        payload: vec![mark; 3],
        signature: [mark; 64],
    }
}

/// A serving agent.
pub struct Server {
    pub node: NodeId,
    pub addr: SocketAddr,
    pub service: Arc<Service>,
    pub registry: Arc<Registry>,
    pub hooks: Arc<TestHooks>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    endpoint: quinn::Endpoint,
}

impl Server {
    /// Serves `engines` with `config`.
    pub async fn start(mesh: &Mesh, engines: &[&EngineDouble], config: ServeConfig) -> Self {
        Self::restart(mesh.member(Role::Agent), engines, config).await
    }

    /// The same as the member with these `credentials`, on a new port.
    pub async fn restart(
        credentials: Credentials,
        engines: &[&EngineDouble],
        config: ServeConfig,
    ) -> Self {
        let engines = engines
            .iter()
            .map(|&e| Arc::new(e.clone()) as Arc<dyn Engine>);
        Self::with(credentials, engines.collect(), config).await
    }

    /// Serves engines of any kind.
    pub async fn with(
        credentials: Credentials,
        engines: Vec<Arc<dyn Engine>>,
        config: ServeConfig,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let wanted = engines.len();
        let speeds = SpeedStore::in_memory();
        let registry = Registry::start(engines, false, speeds, tasks.clone(), stop.clone());
        let mut catalog = registry.changes();
        let known = catalog.wait_for(|c| c.engines.len() == wanted && c.models.len() >= wanted);
        timeout(PATIENCE, known)
            .await
            .expect("the engines are described")
            .unwrap();
        let service = Service::new(Arc::clone(&registry), config, tasks.clone(), stop.clone());
        let hooks = Arc::new(TestHooks {
            table: watch::Sender::default(),
            advert: signed(7),
            received: Mutex::default(),
            connected: watch::Sender::default(),
            connections: Mutex::default(),
            revoked: Mutex::default(),
            questions: Mutex::default(),
        });
        let endpoint = bind(&credentials, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        tasks.spawn(Arc::clone(&service).serve_endpoint(
            endpoint.clone(),
            credentials.ca.clone(),
            Arc::clone(&hooks) as Arc<dyn Hooks>,
        ));
        Server {
            node: credentials.node(),
            addr: endpoint.local_addr().unwrap(),
            service,
            registry,
            hooks,
            tasks,
            stop,
            endpoint,
        }
    }

    /// Ends as a process that is killed: its endpoint first, in the middle of everything.
    pub async fn crash(self) {
        self.endpoint.close(0u32.into(), b"");
        self.shutdown().await;
    }

    /// From now on connections can be closed from this side.
    pub fn keep_connections(&self) {
        *self.hooks.connections.lock().unwrap() = Some(Vec::new());
    }

    /// Closes every connection that was kept, with the streams on it.
    pub fn hang_up(&self) {
        let mut kept = self.hooks.connections.lock().unwrap();
        for connection in kept.iter_mut().flat_map(|kept| kept.drain(..)) {
            connection.close(0u32.into(), b"");
        }
    }

    /// Stops, and checks that every task ends.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait())
            .await
            .expect("every task ends");
        self.endpoint.close(0u32.into(), b"");
        assert_eq!(self.service.active(), 0);
    }
}

/// A member that asks.
pub struct Caller {
    pub credentials: Credentials,
    pub endpoint: quinn::Endpoint,
}

impl Caller {
    pub fn new(mesh: &Mesh, role: Role) -> Self {
        Self::with(mesh.member(role))
    }

    pub fn with(credentials: Credentials) -> Self {
        let endpoint = bind(&credentials, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Caller {
            credentials,
            endpoint,
        }
    }

    pub async fn connect(&self, server: &Server) -> quinn::Connection {
        self.dial(server.node, server.addr).await.unwrap()
    }

    /// Begins to dial, and does not wait for the outcome.
    pub fn knock(&self, node: NodeId, addr: SocketAddr) -> quinn::Connecting {
        self.endpoint.connect(addr, &node.dns_name()).unwrap()
    }

    pub async fn dial(
        &self,
        node: NodeId,
        addr: SocketAddr,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        timeout(PATIENCE, self.knock(node, addr))
            .await
            .expect("connects or fails")
    }
}

/// A request for text of the double's model.
pub fn request() -> GenerateRequest {
    GenerateRequest {
        model: "double".to_owned(),
        engine: u16::MAX,
        kind: InputKind::Text,
        input: "Once upon a time".to_owned(),
        sampling: Sampling::default(),
        extra: String::new(),
        prefix: Vec::new(),
        session: 0,
    }
}

/// The caller's end of a stream.
pub struct Answer {
    pub writer: RecordWriter,
    pub reader: RecordReader,
}

/// Opens a generation.
pub async fn generate(connection: &quinn::Connection, request: &GenerateRequest) -> Answer {
    open(connection, StreamKind::Generate, request).await
}

/// Goes on with one.
pub async fn attach(connection: &quinn::Connection, id: GenerationId, have: u32) -> Answer {
    open(
        connection,
        StreamKind::Attach,
        &Attach {
            generation: id,
            have,
        },
    )
    .await
}

/// Opens a stream of any kind.
pub async fn open<R: Record>(
    connection: &quinn::Connection,
    kind: StreamKind,
    first: &R,
) -> Answer {
    let opened = framing::open(connection, kind, first);
    let (writer, reader) = timeout(PATIENCE, opened).await.expect("opens").unwrap();
    Answer { writer, reader }
}

impl Answer {
    /// The next frame; `None` at the end of the stream.
    pub async fn frame(&mut self) -> Option<GenFrame> {
        let next = timeout(PATIENCE, self.reader.next())
            .await
            .expect("a frame comes in time");
        let (kind, body) = next.expect("the stream is in order")?;
        Some(
            GenFrame::decode(kind, &body)
                .expect("it decodes")
                .expect("its kind is known"),
        )
    }

    /// The next frame that is no `Progress`.
    pub async fn news(&mut self) -> GenFrame {
        loop {
            match self.frame().await {
                Some(GenFrame::Progress(_)) => {}
                Some(frame) => return frame,
                None => panic!("the stream ended without a terminal frame"),
            }
        }
    }

    pub async fn accepted(&mut self) -> Accepted {
        match self.news().await {
            GenFrame::Accepted(accepted) => accepted,
            other => panic!("expected Accepted, got {other:?}"),
        }
    }

    pub async fn token(&mut self) -> Token {
        match self.news().await {
            GenFrame::Token(token) => token,
            other => panic!("expected Token, got {other:?}"),
        }
    }

    pub async fn error(&mut self) -> WireError {
        match self.news().await {
            GenFrame::Error(error) => error,
            other => panic!("expected Error, got {other:?}"),
        }
    }

    pub async fn refused(&mut self) -> ErrorCode {
        self.error().await.code
    }

    /// Tokens up to the end: their text, which must be numbered from `first` without a gap.
    pub async fn rest(&mut self, first: u32) -> (String, Done) {
        let (mut text, mut next) = (String::new(), first);
        loop {
            match self.news().await {
                GenFrame::Token(token) => {
                    assert_eq!(
                        token.index, next,
                        "no token is lost, doubled or out of order"
                    );
                    next += 1;
                    text.push_str(&token.chunk.text);
                }
                GenFrame::Done(done) => {
                    assert_eq!(done.frames, next, "as many as were sent");
                    assert!(self.frame().await.is_none(), "nothing follows the end");
                    return (text, done);
                }
                other => panic!("expected Token or Done, got {other:?}"),
            }
        }
    }

    /// Wants no more.
    pub fn cancel(mut self) {
        self.writer.cancel();
    }
}
