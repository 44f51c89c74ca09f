//! Real QUIC on loopback for tests.

use crate::endpoint;
use crate::framing::{RecordReader, RecordWriter};
use crate::identity::Credentials;
use crate::test_ca::TestCa;
use quinn::{Connection, Endpoint};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use unamesh_proto::NodeId;
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{
    Accepted, Addr, Advert, Attach, Chunk, ErrorCode, GenFrame, GenerateRequest, Hardware,
    NodeState, Probe, ProbeReply, Progress, Role, SignedAdvert, StreamHeader, StreamKind, Token,
};

/// The longest that a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn bind(credentials: &Credentials) -> Endpoint {
    endpoint::bind(credentials, loopback()).unwrap()
}

/// Awaits what must happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen within {PATIENCE:?}"),
    }
}

/// Two members of one mesh, connected: (dialer, acceptor).
pub async fn pair() -> (Connection, Connection, [Endpoint; 2]) {
    let ca = TestCa::new();
    let (a, b) = (ca.member(Role::Client), ca.member(Role::Agent));
    let (dialer, acceptor) = (bind(&a), bind(&b));
    let addr = acceptor.local_addr().unwrap();
    let dial = async {
        dialer
            .connect(addr, &b.node().dns_name())
            .unwrap()
            .await
            .unwrap()
    };
    let accept = async { acceptor.accept().await.unwrap().await.unwrap() };
    let (out, into) = soon(async { tokio::join!(dial, accept) }).await;
    (out, into, [dialer, acceptor])
}

/// What a test server saw.
#[derive(Debug, PartialEq)]
pub enum Seen {
    Generate(Box<GenerateRequest>),
    Attach(Attach),
    /// Both directions of a generate stream were given up by the client.
    Cancelled,
}

/// A member that answers probes, and generate requests according to their model's name:
/// `hold` (accepted, then nothing), `finish` (three tokens and the end), `leave` (closes the
/// connection as a draining agent), `stop` (ends without a terminal frame).
pub struct Server {
    pub credentials: Credentials,
    pub addr: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    pub seen: mpsc::Receiver<Seen>,
    tasks: JoinSet<()>,
}

impl Server {
    pub fn start(credentials: Credentials) -> Self {
        Self::start_at(credentials, loopback()).unwrap()
    }

    pub fn start_at(
        credentials: Credentials,
        addr: SocketAddr,
    ) -> Result<Self, endpoint::EndpointError> {
        let endpoint = endpoint::bind(&credentials, addr)?;
        let addr = endpoint.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (tx, seen) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        let count = accepted.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                let (tx, count) = (tx.clone(), count.clone());
                connections.spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                    serve(connection, tx).await;
                });
            }
        });
        Ok(Server {
            credentials,
            addr,
            accepted,
            seen,
            tasks,
        })
    }

    pub fn node(&self) -> NodeId {
        self.credentials.node()
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Runs until the runtime ends.
    pub async fn run(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn serve(connection: Connection, seen: mpsc::Sender<Seen>) {
    let mut streams = JoinSet::new();
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (connection, seen) = (connection.clone(), seen.clone());
        let (writer, reader) = (RecordWriter::new(send), RecordReader::new(recv));
        streams.spawn(async move { answer(connection, writer, reader, seen).await });
    }
}

async fn answer(
    connection: Connection,
    mut writer: RecordWriter,
    mut reader: RecordReader,
    seen: mpsc::Sender<Seen>,
) {
    let header: StreamHeader = reader.expect().await.unwrap();
    match header.kind {
        StreamKind::Probe => {
            let probe: Probe = reader.expect().await.unwrap();
            let wall_ms = crate::clock::wall().as_millis();
            let reply = ProbeReply {
                nonce: probe.nonce,
                wall_ms,
                state: NodeState::Up,
            };
            let _ = writer.write(&reply).await;
            writer.finish();
        }
        StreamKind::Attach => {
            let attach: Attach = reader.expect().await.unwrap();
            seen.send(Seen::Attach(attach)).await.unwrap();
        }
        _ => {
            let request: GenerateRequest = reader.expect().await.unwrap();
            let model = request.model.clone();
            seen.send(Seen::Generate(Box::new(request))).await.unwrap();
            generate(connection, &model, writer, reader, seen).await;
        }
    }
}

async fn generate(
    connection: Connection,
    model: &str,
    mut writer: RecordWriter,
    mut reader: RecordReader,
    seen: mpsc::Sender<Seen>,
) {
    writer.write(&accepted()).await.unwrap();
    match model {
        "hold" => {
            writer.stopped().await;
            assert!(reader.ended().await.is_err());
            let _ = seen.send(Seen::Cancelled).await;
        }
        "finish" => {
            for index in 0..3 {
                writer.push(&token(index)).unwrap();
            }
            writer.write(&done(3)).await.unwrap();
            writer.finish();
        }
        "leave" => connection.close(endpoint::close_code(ErrorCode::Draining), b"leaving"),
        _ => writer.finish(),
    }
}

pub fn accepted() -> Accepted {
    Accepted {
        generation: unamesh_proto::GenerationId([7; 16]),
        engine: 0,
        digest: String::new(),
        exact: true,
    }
}

pub fn token(index: u32) -> Token {
    let chunk = Chunk {
        text: format!("token {index}"),
        ids: vec![index],
        tokens: 1,
    };
    Token {
        index,
        chunk,
        extra: String::new(),
    }
}

pub fn done(frames: u32) -> unamesh_proto::wire::Done {
    let finish = unamesh_proto::wire::FinishReason::Stop;
    unamesh_proto::wire::Done {
        finish,
        usage: Default::default(),
        frames,
    }
}

pub fn progress() -> Progress {
    Progress {
        phase: unamesh_proto::wire::Phase::Prefilling,
        done: 1,
        total: 2,
    }
}

/// A request for `model`.
pub fn request(model: &str) -> GenerateRequest {
    GenerateRequest {
        model: model.into(),
        engine: u16::MAX,
        kind: unamesh_proto::wire::InputKind::Text,
        input: "Once upon a time".into(),
        sampling: Default::default(),
        extra: String::new(),
        prefix: Vec::new(),
        session: 0,
    }
}

/// What a generate stream of `frames` ought to be.
pub fn whole_answer() -> Vec<GenFrame> {
    let tokens = (0..3).map(|i| GenFrame::Token(token(i)));
    std::iter::once(GenFrame::Accepted(accepted()))
        .chain(tokens)
        .chain([GenFrame::Done(done(3))])
        .collect()
}

/// A table in which each node has the given paths.
pub fn table(peers: &[(NodeId, &[SocketAddr])]) -> Arc<Snapshot> {
    let mut peers: Vec<Arc<Peer>> = peers
        .iter()
        .map(|(node, addrs)| Arc::new(peer(*node, addrs)))
        .collect();
    peers.sort_by_key(|p| p.advert.node);
    Arc::new(Snapshot {
        version: 1,
        peers,
        ..Snapshot::default()
    })
}

fn peer(node: NodeId, addrs: &[SocketAddr]) -> Peer {
    let advert = Advert {
        node,
        name: "n".into(),
        version: "0".into(),
        epoch: 1,
        seq: 1,
        wall_ms: 0,
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: Vec::new(),
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: Vec::new(),
        models: Vec::new(),
        voices: Vec::new(),
    };
    let signed = SignedAdvert {
        certificate: Vec::new(),
        payload: Vec::new(),
        signature: [0; 64],
    };
    let path = |addr: &SocketAddr| Path {
        addr: *addr,
        kind: Addr::new(*addr).kind,
        rtt: None,
        ok_at: None,
    };
    Peer {
        advert: Arc::new(advert),
        signed: Arc::new(signed),
        liveness: Liveness::Alive,
        paths: addrs.iter().map(path).collect(),
        heard: crate::clock::mono(),
    }
}
