use super::*;
use crate::test_ca::TestCa;
use crate::test_net::{PATIENCE, Seen, Server, bind, request, soon, table, whole_answer};
use crate::transport::{FrameStream, Open, Transport};
use std::future::poll_fn;
use std::net::UdpSocket;
use unamesh_proto::table::Peer;
use unamesh_proto::wire::{Attach, GenFrame};

/// A client with its own pool.
struct Client {
    pool: Arc<Pool>,
    table: watch::Sender<Arc<Snapshot>>,
    reports: mpsc::Receiver<PathReport>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Client {
    fn new(ca: &TestCa, peers: &[(NodeId, &[SocketAddr])]) -> Self {
        let credentials = ca.member(Role::Client);
        let (table, rx) = watch::channel(table(peers));
        let (tx, reports) = mpsc::channel(256);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let endpoint = bind(&credentials);
        let pool = Pool::new(
            endpoint,
            Arc::new(credentials),
            rx,
            tx,
            tasks.clone(),
            stop.clone(),
        );
        Client {
            pool,
            table,
            reports,
            stop,
            tasks,
        }
    }

    async fn report(&mut self, wanted: impl Fn(&PathReport) -> bool) -> PathReport {
        soon(async {
            loop {
                let report = self.reports.recv().await.unwrap();
                if wanted(&report) {
                    return report;
                }
            }
        })
        .await
    }

    async fn open(&self, node: NodeId, model: &str) -> Result<Box<dyn FrameStream>, LinkError> {
        let transport = QuicTransport(self.pool.clone());
        soon(transport.open(node, Open::Generate(Arc::new(request(model))))).await
    }
}

async fn frame(stream: &mut Box<dyn FrameStream>) -> Option<Result<GenFrame, LinkError>> {
    soon(poll_fn(|cx| stream.poll_frame(cx))).await
}

fn server(ca: &TestCa) -> Server {
    Server::start(ca.member(Role::Agent))
}

/// An address where packets vanish.
fn blackhole() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[tokio::test]
async fn a_request_goes_out_whole_and_its_frames_come_back() {
    let ca = TestCa::new();
    let mut server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut stream = client.open(server.node(), "finish").await.unwrap();
    let mut frames = Vec::new();
    while let Some(next) = frame(&mut stream).await {
        frames.push(next.unwrap());
    }
    assert_eq!(frames, whole_answer());
    assert_eq!(
        soon(server.seen.recv()).await,
        Some(Seen::Generate(Box::new(request("finish"))))
    );
    let attach = Attach {
        generation: unamesh_proto::GenerationId([3; 16]),
        have: 9,
    };
    let transport = QuicTransport(client.pool.clone());
    let _stream = soon(transport.open(server.node(), Open::Attach(attach)))
        .await
        .unwrap();
    assert_eq!(soon(server.seen.recv()).await, Some(Seen::Attach(attach)));
    assert_eq!(server.accepted(), 1, "one connection serves both");
}

#[tokio::test]
async fn a_stream_that_ends_early_just_ends() {
    let ca = TestCa::new();
    let server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut stream = client.open(server.node(), "stop").await.unwrap();
    assert!(matches!(
        frame(&mut stream).await,
        Some(Ok(GenFrame::Accepted(_)))
    ));
    assert!(frame(&mut stream).await.is_none());
    assert!(frame(&mut stream).await.is_none());
}

#[tokio::test]
async fn dropping_a_stream_reaches_the_peer() {
    let ca = TestCa::new();
    let mut server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut stream = client.open(server.node(), "hold").await.unwrap();
    assert!(matches!(
        frame(&mut stream).await,
        Some(Ok(GenFrame::Accepted(_)))
    ));
    assert!(matches!(
        soon(server.seen.recv()).await,
        Some(Seen::Generate(_))
    ));
    drop(stream);
    assert_eq!(soon(server.seen.recv()).await, Some(Seen::Cancelled));
}

#[tokio::test]
async fn the_reason_of_a_leaving_peer_reaches_the_stream() {
    let ca = TestCa::new();
    let server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut stream = client.open(server.node(), "leave").await.unwrap();
    let error = loop {
        match frame(&mut stream).await {
            Some(Ok(_)) => {}
            Some(Err(e)) => break e,
            None => panic!("the error was swallowed"),
        }
    };
    assert!(
        matches!(&error, LinkError::Refused(e) if e.code == ErrorCode::Draining),
        "{error}"
    );
}

#[tokio::test]
async fn many_requests_share_one_dial() {
    let ca = TestCa::new();
    let server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (pool, node) = (client.pool.clone(), server.node());
        requests.spawn(async move { pool.connection(node).await.unwrap().stable_id() });
    }
    let ids: HashSet<usize> = soon(requests.join_all()).await.into_iter().collect();
    assert_eq!(ids.len(), 1);
    assert!(client.pool.probe(server.node()).await.is_ok());
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_dead_path_costs_a_step_and_not_its_timeout() {
    let ca = TestCa::new();
    let server = server(&ca);
    let (_hole, dead) = blackhole();
    let mut client = Client::new(&ca, &[(server.node(), &[dead, server.addr])]);
    let start = Instant::now();
    let connection = client.pool.connection(server.node()).await.unwrap();
    let took = start.elapsed();
    assert_eq!(connection.remote_address(), server.addr);
    assert!(took < timeouts::DIAL / 2, "{took:?}");
    let ok = client.report(|r| matches!(r, PathReport::Ok { .. })).await;
    assert!(matches!(ok, PathReport::Ok { node, addr, .. }
        if node == server.node() && addr == server.addr));
}

#[tokio::test]
async fn an_address_learned_while_dialing_is_tried_at_once() {
    let ca = TestCa::new();
    let server = server(&ca);
    let (_silent, dead) = blackhole();
    let client = Client::new(&ca, &[(server.node(), &[dead])]);
    let start = Instant::now();
    let dialing = client.pool.connection(server.node());
    let learned = async {
        tokio::time::sleep(timeouts::RACE_STEP).await;
        let addrs: &[SocketAddr] = &[dead, server.addr];
        client.table.send_replace(table(&[(server.node(), addrs)]));
    };
    let (connection, ()) = soon(async { tokio::join!(dialing, learned) }).await;
    connection.unwrap();
    assert!(start.elapsed() < timeouts::DIAL, "{:?}", start.elapsed());
}

/// Which dial the next datagram at `socket` belongs to: its first connection id.
async fn dial_at(socket: &tokio::net::UdpSocket) -> Vec<u8> {
    let mut datagram = [0; 2048];
    socket.recv(&mut datagram).await.unwrap();
    let length = usize::from(datagram[5]);
    datagram[6..6 + length].to_vec()
}

#[tokio::test]
async fn a_peer_that_shows_life_anew_while_it_is_dialed_is_dialed_anew() {
    let ca = TestCa::new();
    let node = ca.member(Role::Agent).node();
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&ca, &[(node, &[silent.local_addr().unwrap()])]);
    let restarted = async {
        let first = dial_at(&silent).await;
        tokio::time::sleep(timeouts::INITIAL_RTT).await;
        let mut table = Snapshot::clone(&client.table.borrow());
        let mut peer = Peer::clone(&table.peers[0]);
        Arc::make_mut(&mut peer.advert).epoch += 1;
        table.peers = vec![Arc::new(peer)];
        client.table.send_replace(Arc::new(table));
        // Repetitions of the first dial carry its own connection id.
        while dial_at(&silent).await == first {}
    };
    tokio::select! {
        ended = client.pool.connection(node) => panic!("no second dial: {:?}", ended.err()),
        () = soon(restarted) => {}
    }
}

#[tokio::test]
async fn an_unreachable_peer_names_each_path() {
    let ca = TestCa::new();
    let node = ca.member(Role::Agent).node();
    let (_hole, dead) = blackhole();
    let mut client = Client::new(&ca, &[(node, &[dead])]);
    let error = client.pool.connection(node).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{dead}: ")), "{error}");
    assert!(matches!(error, LinkError::Unreachable { .. }));
    client
        .report(|r| *r == PathReport::Failed { node, addr: dead })
        .await;
    let stranger = ca.member(Role::Agent).node();
    let error = client.pool.connection(stranger).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
}

#[tokio::test]
async fn another_node_at_the_address_is_refused() {
    let ca = TestCa::new();
    let server = server(&ca);
    let impostor = ca.member(Role::Agent).node();
    let client = Client::new(&ca, &[(impostor, &[server.addr])]);
    let error = client.pool.connection(impostor).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(e) if e.code == ErrorCode::Forbidden),
        "{error}"
    );
}

#[tokio::test]
async fn a_seed_is_dialed_by_its_role() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let client = Client::new(&ca, &[]);
    for role in [Role::Admin, Role::Agent] {
        let server = Server::start(ca.member(role));
        let (member, _) = client.pool.dial_seed(server.addr).await.unwrap();
        assert_eq!((member.node, member.role), (server.node(), role));
        // The connection is the peer's now, although the table knows no address of it.
        assert!(client.pool.probe(server.node()).await.is_ok());
    }
    let stranger = Server::start(other.member(Role::Admin));
    assert!(matches!(
        client.pool.dial_seed(stranger.addr).await,
        Err(LinkError::Refused(_))
    ));
    // A client of the mesh is no seed.
    let phone = Server::start(ca.member(Role::Client));
    assert!(matches!(
        client.pool.dial_seed(phone.addr).await,
        Err(LinkError::Refused(_))
    ));
}

#[tokio::test]
async fn warm_peers_are_probed_and_lost_ones_found_again() {
    let ca = TestCa::new();
    let server = server(&ca);
    let node = server.node();
    let mut client = Client::new(&ca, &[(node, &[server.addr])]);
    client.pool.warm_all(true);
    let ok = |r: &PathReport| matches!(r, PathReport::Ok { .. });
    client.report(ok).await;
    // The connection breaks: noticed at once, and dialed anew.
    let connection = client.pool.connection(node).await.unwrap();
    connection.close(crate::endpoint::CLOSE_NORMAL, b"test");
    client
        .report(|r| matches!(r, PathReport::Failed { .. }))
        .await;
    client.report(ok).await;
    assert_ne!(
        client.pool.connection(node).await.unwrap().stable_id(),
        connection.stable_id()
    );
}

#[tokio::test]
async fn a_wake_takes_new_connections_and_lets_streams_end_on_the_old() {
    let ca = TestCa::new();
    let mut server = server(&ca);
    let client = Client::new(&ca, &[(server.node(), &[server.addr])]);
    let mut stream = client.open(server.node(), "hold").await.unwrap();
    assert!(matches!(
        frame(&mut stream).await,
        Some(Ok(GenFrame::Accepted(_)))
    ));
    assert!(matches!(
        soon(server.seen.recv()).await,
        Some(Seen::Generate(_))
    ));
    client.pool.reconnect();
    let mut other = client.open(server.node(), "finish").await.unwrap();
    while frame(&mut other).await.is_some() {}
    assert_eq!(server.accepted(), 2, "a new connection");
    assert!(matches!(
        soon(server.seen.recv()).await,
        Some(Seen::Generate(_))
    ));
    assert!(frame(&mut stream).now_or_never().is_none(), "it goes on");
    assert!(server.seen.try_recv().is_err(), "and nobody cancelled it");
}

/// Forwards datagrams to `target` until it is stopped: a path that dies with its connection up.
async fn proxy(target: SocketAddr) -> (SocketAddr, tokio::task::JoinSet<()>) {
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(target).await.unwrap();
    let addr = front.local_addr().unwrap();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        let (mut there, mut here) = ([0; 2048], [0; 2048]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((n, from)) = front.recv_from(&mut there) => {
                    client = Some(from);
                    let _ = back.send(&there[..n]).await;
                }
                Ok(n) = back.recv(&mut here) => {
                    if let Some(to) = client {
                        let _ = front.send_to(&here[..n], to).await;
                    }
                }
            }
        }
    });
    (addr, task)
}

#[tokio::test]
async fn a_doubted_connection_is_replaced_while_its_streams_go_on() {
    let ca = TestCa::new();
    let server = server(&ca);
    let node = server.node();
    let (path, forwarder) = proxy(server.addr).await;
    let mut client = Client::new(&ca, &[(node, &[path])]);
    let first = client.pool.connection(node).await.unwrap();
    assert_eq!(first.remote_address(), path);
    let _ = client.table.send(table(&[(node, &[path, server.addr])]));
    drop(forwarder);
    assert!(client.pool.probe(node).await.is_err());
    client
        .report(|r| *r == PathReport::Failed { node, addr: path })
        .await;
    client
        .report(|r| matches!(r, PathReport::Ok { addr, .. } if *addr == server.addr))
        .await;
    let second = client.pool.connection(node).await.unwrap();
    assert_eq!(second.remote_address(), server.addr);
    assert!(first.close_reason().is_none(), "kept for what runs over it");
    assert!(client.pool.probe(node).await.is_ok());
}

#[tokio::test]
async fn unused_connections_are_put_away_and_warm_ones_kept() {
    let ca = TestCa::new();
    let (idle, warm) = (server(&ca), server(&ca));
    let peers: &[(NodeId, &[SocketAddr])] =
        &[(idle.node(), &[idle.addr]), (warm.node(), &[warm.addr])];
    let client = Client::new(&ca, peers);
    let first = client.pool.connection(idle.node()).await.unwrap();
    let second = client.pool.connection(warm.node()).await.unwrap();
    let wanted = HashSet::from([warm.node()]);
    let now = clock::mono();
    keep::sweep(&client.pool, &wanted, now + timeouts::POOL_IDLE / 2);
    assert!(first.close_reason().is_none());
    keep::sweep(&client.pool, &wanted, now + timeouts::POOL_IDLE * 2);
    assert!(first.close_reason().is_some());
    assert!(second.close_reason().is_none());
}

#[tokio::test]
async fn stopping_ends_every_task_and_every_wait() {
    let ca = TestCa::new();
    let node = ca.member(Role::Agent).node();
    let (_hole, dead) = blackhole();
    let client = Client::new(&ca, &[(node, &[dead])]);
    client.pool.warm_all(true);
    let waiting = client.pool.connection(node);
    let stop = async { client.stop.cancel() };
    let (waited, ()) = soon(async { tokio::join!(waiting, stop) }).await;
    assert!(matches!(waited, Err(LinkError::Lost(_))));
    client.tasks.close();
    soon(client.tasks.wait()).await;
}

/// Runs a server on a runtime of its own, so that it can vanish like a killed process:
/// without a word to its peers.
struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    fn start(credentials: Credentials, addr: SocketAddr) -> (Self, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let start = Instant::now();
        let server = loop {
            let _inside = runtime.enter();
            match Server::start_at(credentials.clone(), addr) {
                Ok(server) => break server,
                // The port of the process before is free when its last task is gone.
                Err(e) => assert!(start.elapsed() < PATIENCE, "{e}"),
            }
            std::thread::yield_now();
        };
        let addr = server.addr;
        runtime.spawn(server.run());
        (Process(Some(runtime)), addr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_restarted_on_its_port_is_noticed_at_once() {
    let ca = TestCa::new();
    let credentials = ca.member(Role::Agent);
    let node = credentials.node();
    let (mut process, addr) = Process::start(credentials.clone(), crate::test_net::loopback());
    let client = Client::new(&ca, &[(node, &[addr])]);
    let mut best = Duration::MAX;
    // A machine that is busy with other things gets three tries.
    for _ in 0..3 {
        let mut stream = client.open(node, "hold").await.unwrap();
        let first = frame(&mut stream).await;
        assert!(matches!(first, Some(Ok(GenFrame::Accepted(_)))));
        drop(process);
        (process, _) = Process::start(credentials.clone(), addr);
        let start = Instant::now();
        // Whatever is sent next is answered with a reset; the waiting stream learns of it too.
        let probed = client.pool.probe(node).await;
        best = best.min(start.elapsed());
        assert!(matches!(&probed, Err(LinkError::Lost(_))), "{probed:?}");
        let lost = frame(&mut stream).await;
        assert!(
            matches!(&lost, Some(Err(LinkError::Lost(e))) if e.contains("restarted")),
            "{lost:?}"
        );
        assert!(
            client.pool.probe(node).await.is_ok(),
            "and a new connection was made"
        );
        if best < Duration::from_millis(300) {
            return;
        }
    }
    panic!("noticed after {best:?} at best");
}
