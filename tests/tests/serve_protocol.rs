//! Streams that are not a generation, members that may not, and bytes that are none of ours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use serve_support::{
    Answer, Caller, Mesh, PATIENCE, Server, attach, generate, open, request, signed,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::endpoint::CLOSE_NORMAL;
use unamesh_client::framing::{RecordReader, RecordWriter};
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{
    Advert, ErrorCode, GenerateRequest, Hardware, NodeState, PathKind, PeerGone, PeerUpdate, Probe,
    ProbeFor, ProbeReply, ProbedFor, Reach, Record, Role, SignedAdvert, SnapshotEnd, StreamHeader,
    StreamKind, VERSION, WireError, codec,
};
use unamesh_proto::{GenerationId, Mono, NodeId, limits};
use unamesh_tests::doubles::{EngineDouble, PathDouble, Script};
use unamesh_tests::impair::Way;

struct Setup {
    mesh: Mesh,
    server: Server,
    _caller: Caller,
    connection: quinn::Connection,
}

async fn setup(role: Role) -> Setup {
    let mesh = Mesh::new();
    let double = EngineDouble::new("e", Script::default());
    let server = Server::start(&mesh, &[&double], ServeConfig::default()).await;
    let caller = Caller::new(&mesh, role);
    let connection = caller.connect(&server).await;
    Setup {
        mesh,
        server,
        _caller: caller,
        connection,
    }
}

/// Sends `bytes` as the beginning of a stream.
async fn send(connection: &quinn::Connection, bytes: &[u8]) -> Answer {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    // The agent may refuse before everything is sent.
    let _ = send.write_all(bytes).await;
    Answer {
        writer: RecordWriter::new(send),
        reader: RecordReader::new(recv),
    }
}

fn header(version: u16, kind: StreamKind) -> Vec<u8> {
    codec::to_vec(&StreamHeader { version, kind }).unwrap()
}

async fn refusal(connection: &quinn::Connection, bytes: &[u8]) -> WireError {
    send(connection, bytes).await.error().await
}

async fn expect<R: Record>(stream: &mut Answer) -> R {
    timeout(PATIENCE, stream.reader.expect())
        .await
        .expect("it comes in time")
        .unwrap()
}

#[tokio::test]
async fn a_probe_is_answered() {
    let s = setup(Role::Client).await;
    for nonce in [1, u64::MAX] {
        let mut stream = open(
            &s.connection,
            StreamKind::Probe,
            &Probe { nonce, wall_ms: 0 },
        )
        .await;
        let reply: ProbeReply = expect(&mut stream).await;
        assert_eq!((reply.nonce, reply.state), (nonce, NodeState::Up));
        assert!(reply.wall_ms > 0);
    }
    s.server.shutdown().await;
}

#[tokio::test]
async fn agents_may_ask_about_others_and_clients_may_not() {
    let question = ProbeFor {
        nonce: 5,
        node: NodeId([9; 32]),
    };
    for role in [Role::Admin, Role::Agent, Role::Client] {
        let s = setup(role).await;
        let mut stream = open(&s.connection, StreamKind::Probe, &question).await;
        let asked = match role {
            Role::Client => {
                assert_eq!(stream.refused().await, ErrorCode::Forbidden);
                0
            }
            _ => {
                let answer: ProbedFor = expect(&mut stream).await;
                assert_eq!((answer.nonce, answer.reach), (5, Reach::Reached));
                1
            }
        };
        let questions = s.server.hooks.questions.lock().unwrap().clone();
        assert_eq!(questions.len(), asked, "{role}");
        s.server.shutdown().await;
    }
}

/// An agent of before the record skips it and finds nothing to answer: an error, which is no
/// answer, and no harm to the connection.
#[tokio::test]
async fn a_question_that_is_not_understood_is_refused() {
    let s = setup(Role::Agent).await;
    let mut bytes = header(VERSION, StreamKind::Probe);
    bytes.extend_from_slice(&[0x1f, 0x00, 2, 0, 0, 0, 1, 2]);
    let mut stream = send(&s.connection, &bytes).await;
    stream.writer.finish();
    assert_eq!(stream.refused().await, ErrorCode::Protocol);
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    let mut stream = open(&s.connection, StreamKind::Probe, &probe).await;
    assert_eq!(expect::<ProbeReply>(&mut stream).await.nonce, 1);
    s.server.shutdown().await;
}

#[tokio::test]
async fn an_exchange_hands_over_both_words() {
    let s = setup(Role::Agent).await;
    let mut stream = open(&s.connection, StreamKind::Exchange, &signed(3)).await;
    let ours: SignedAdvert = expect(&mut stream).await;
    assert_eq!(ours, signed(7));
    let received = s.server.hooks.received.lock().unwrap().clone();
    assert_eq!(received.len(), 1);
    assert_eq!(
        (received[0].0.role, &received[0].1),
        (Role::Agent, &signed(3))
    );
    s.server.shutdown().await;
}

#[tokio::test]
async fn a_client_may_not_gossip() {
    let s = setup(Role::Client).await;
    let mut stream = open(&s.connection, StreamKind::Exchange, &signed(3)).await;
    assert_eq!(stream.refused().await, ErrorCode::Forbidden);
    assert!(s.server.hooks.received.lock().unwrap().is_empty());
    s.server.shutdown().await;
}

#[tokio::test]
async fn versions_and_kinds_of_another_time_are_refused() {
    let s = setup(Role::Admin).await;
    for version in [0, VERSION + 1, u16::MAX] {
        let error = refusal(&s.connection, &header(version, StreamKind::Probe)).await;
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("update"), "{error}");
    }
    for kind in [
        StreamKind::Embed,
        StreamKind::Tunnel,
        StreamKind::Unknown(77),
    ] {
        let error = refusal(&s.connection, &header(VERSION, kind)).await;
        assert_eq!(error.code, ErrorCode::Unsupported, "{kind}");
    }
    s.server.shutdown().await;
}

#[tokio::test]
async fn oversize_and_malformed_records_end_their_stream_only() {
    let s = setup(Role::Client).await;
    let claim = |kind: u16, len: usize| {
        let mut bytes = header(VERSION, StreamKind::Generate);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(len).unwrap().to_le_bytes());
        bytes
    };
    let large = claim(GenerateRequest::KIND, limits::MAX_RECORD + 1);
    let huge = claim(GenerateRequest::KIND, u32::MAX as usize);
    let wrong = claim(Probe::KIND, 4);
    let mut rubbish = claim(GenerateRequest::KIND, 64);
    rubbish.extend([0xff; 64]);
    let long_header = {
        let mut bytes = StreamHeader::KIND.to_le_bytes().to_vec();
        bytes.extend(1_000_000u32.to_le_bytes());
        bytes
    };
    for bytes in [large, huge, wrong, rubbish, long_header, vec![0xff; 64]] {
        assert_eq!(
            refusal(&s.connection, &bytes).await.code,
            ErrorCode::Protocol
        );
    }
    // A stream that ends in the middle of its request.
    let mut cut = send(&s.connection, &header(VERSION, StreamKind::Generate)).await;
    cut.writer.finish();
    assert_eq!(cut.refused().await, ErrorCode::Protocol);
    let mut whole = generate(&s.connection, &request()).await;
    whole.accepted().await;
    whole.rest(0).await;
    s.server.shutdown().await;
}

#[tokio::test]
async fn bad_requests_name_their_field() {
    let s = setup(Role::Client).await;
    let mut unknown = request();
    unknown.model = "dubble".to_owned();
    let error = generate(&s.connection, &unknown).await.error().await;
    assert_eq!(error.code, ErrorCode::UnknownModel);
    let mut hot = request();
    hot.sampling.top_p = Some(3.0);
    let error = generate(&s.connection, &hot).await.error().await;
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::Invalid, Some("top_p"))
    );
    let mut nobody = attach(&s.connection, GenerationId([9; 16]), 0).await;
    assert_eq!(nobody.refused().await, ErrorCode::UnknownGeneration);
    s.server.shutdown().await;
}

#[tokio::test]
async fn another_mesh_and_removed_members_stay_outside() {
    let s = setup(Role::Client).await;
    let stranger = Caller::new(&Mesh::new(), Role::Admin);
    let outcome = match stranger.dial(s.server.node, s.server.addr).await {
        Ok(connection) => timeout(PATIENCE, connection.closed())
            .await
            .expect("it is closed"),
        Err(error) => error,
    };
    assert!(
        !matches!(outcome, quinn::ConnectionError::TimedOut),
        "{outcome}"
    );

    let removed = Caller::new(&s.mesh, Role::Agent);
    s.server
        .hooks
        .revoked
        .lock()
        .unwrap()
        .push(removed.credentials.node());
    let connection = removed.connect(&s.server).await;
    let outcome = timeout(PATIENCE, connection.closed())
        .await
        .expect("it is closed");
    let quinn::ConnectionError::ApplicationClosed(close) = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(
        close.error_code,
        u32::from(ErrorCode::Forbidden.code()).into()
    );
    assert_eq!(
        *s.server.hooks.connected.borrow(),
        1,
        "only the one of the set-up"
    );
    s.server.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_does_not_hold_up_the_end() {
    let s = setup(Role::Client).await;
    let (mut send, _recv) = s.connection.open_bi().await.unwrap();
    send.write_all(&[0]).await.unwrap();
    // The probe behind it is answered, so that the other one has arrived too.
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    let probed = unamesh_client::framing::open(&s.connection, StreamKind::Probe, &probe);
    let (_writer, mut reader) = probed.await.unwrap();
    reader.expect::<ProbeReply>().await.unwrap();
    timeout(unamesh_proto::timeouts::SHUTDOWN, s.server.shutdown())
        .await
        .expect("it ends in time");
}

#[tokio::test]
async fn one_peer_holds_a_few_connections() {
    let s = setup(Role::Client).await;
    let caller = Caller::new(&s.mesh, Role::Client);
    let mut open = Vec::new();
    let mut connected = s.server.hooks.connected.subscribe();
    for n in 1..=limits::MAX_CONNECTIONS_PER_PEER {
        open.push(caller.connect(&s.server).await);
        // The one of the set-up counts too.
        timeout(PATIENCE, connected.wait_for(|c| *c > n))
            .await
            .expect("admitted")
            .unwrap();
    }
    // One more is let in: the newest counts, whatever an earlier life has left behind.
    let newest = caller.connect(&s.server).await;
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    let opened = unamesh_client::framing::open(&newest, StreamKind::Probe, &probe);
    let (_writer, mut reader) = opened.await.unwrap();
    reader.expect::<ProbeReply>().await.unwrap();

    let outcome = timeout(PATIENCE, open[0].closed())
        .await
        .expect("the oldest is closed");
    let quinn::ConnectionError::ApplicationClosed(close) = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(close.error_code, CLOSE_NORMAL, "put away, nothing is wrong");
    assert!(open[1..].iter().all(|c| c.close_reason().is_none()));
    s.server.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_handshakes_makes_addresses_prove_themselves() {
    let s = setup(Role::Client).await;
    // Dialers that never hear an answer, as forged addresses never do.
    let dead_end = PathDouble::to(s.server.addr).await;
    dead_end.blackhole(Way::In, true);
    let flood = Caller::new(&s.mesh, Role::Client);
    let knock = || flood.knock(s.server.node, dead_end.addr);
    let knocking: Vec<_> = (0..2 * limits::MAX_UNPROVEN_HANDSHAKES)
        .map(|_| knock())
        .collect();
    let asked = async {
        loop {
            let path = PathDouble::to(s.server.addr).await;
            let honest = Caller::new(&s.mesh, Role::Client);
            honest
                .dial(s.server.node, path.addr)
                .await
                .expect("gets in all the same");
            if path.retries() > 0 {
                return;
            }
        }
    };
    timeout(PATIENCE, asked).await.expect("a Retry is sent");
    drop(knocking);
    s.server.shutdown().await;
}

fn peer(id: u8, seq: u64, liveness: Liveness, rtt_ms: u64) -> Arc<Peer> {
    let advert = Advert {
        node: NodeId([id; 32]),
        name: format!("peer {id}"),
        version: "1".to_owned(),
        epoch: 1,
        seq,
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
    let mut word = signed(id);
    word.payload = seq.to_le_bytes().to_vec();
    Arc::new(Peer {
        advert: Arc::new(advert),
        signed: Arc::new(word),
        liveness,
        paths: vec![Path {
            addr: "127.0.0.1:1".parse().unwrap(),
            kind: PathKind::Loopback,
            rtt: Some(Duration::from_millis(rtt_ms)),
            ok_at: None,
        }],
        heard: Mono::ZERO,
    })
}

fn table(version: u64, peers: Vec<Arc<Peer>>) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        version,
        peers,
        ..Snapshot::default()
    })
}

#[tokio::test]
async fn the_table_is_watched() {
    let s = setup(Role::Client).await;
    let tables = &s.server.hooks.table;
    let alive = Liveness::Alive;
    tables.send_replace(table(
        1,
        vec![
            peer(1, 1, alive, 10),
            peer(2, 1, alive, 10),
            peer(3, 1, Liveness::Down, 10),
        ],
    ));
    let watch = header(VERSION, StreamKind::Watch);
    let mut stream = send(&s.connection, &watch).await;
    for id in [1, 2] {
        let update: PeerUpdate = expect(&mut stream).await;
        assert_eq!((update.advert.certificate[0], update.rtt_us), (id, 10_000));
    }
    assert_eq!(expect::<SnapshotEnd>(&mut stream).await.peers, 2);

    // A round trip that hardly differs is no news; a new advert is, and so is a farewell.
    tables.send_replace(table(2, vec![peer(1, 1, alive, 11), peer(2, 2, alive, 10)]));
    let update: PeerUpdate = expect(&mut stream).await;
    assert_eq!(update.advert.payload, 2u64.to_le_bytes());
    tables.send_replace(Arc::new(Snapshot {
        left: Arc::new([Arc::new(signed(77))]),
        ..(*table(3, vec![peer(2, 2, alive, 10)])).clone()
    }));
    let goodbye: PeerUpdate = expect(&mut stream).await;
    assert_eq!(goodbye.advert, signed(77), "the proof comes first");
    let gone: PeerGone = expect(&mut stream).await;
    assert_eq!(
        gone,
        PeerGone {
            node: NodeId([1; 32]),
            left: true
        }
    );
    tables.send_replace(table(4, vec![peer(2, 2, Liveness::Down, 10)]));
    let gone: PeerGone = expect(&mut stream).await;
    assert_eq!(
        gone,
        PeerGone {
            node: NodeId([2; 32]),
            left: false
        }
    );
    tables.send_replace(table(5, vec![peer(2, 2, alive, 90)]));
    assert_eq!(expect::<PeerUpdate>(&mut stream).await.rtt_us, 90_000);
    s.server.shutdown().await;
    assert!(
        timeout(PATIENCE, stream.reader.next())
            .await
            .expect("it ends")
            .unwrap()
            .is_none()
    );
}
