//! The only machine that has the model is reached over two paths; the one in use dies in the
//! middle of an answer. The same generation goes on over the other: the engine is asked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::StreamExt;
use serve_support::peers::{peer, table};
use serve_support::{Caller, Mesh, PATIENCE, Server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::activity::Activity;
use unamesh_client::client::{ClientError, Event, MeshClient, Request};
use unamesh_client::driver::Generation;
use unamesh_client::pool::{Pool, QuicTransport};
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::Role;
use unamesh_tests::doubles::{EngineDouble, PathDouble, Script};
use unamesh_tests::measure::Samples;

/// From the last token over the dead path to the first over the other.
const GAP: Duration = Duration::from_millis(450);
const ROUNDS: usize = 10;

/// One agent behind two relays, and a client.
struct Home {
    engine: EngineDouble,
    server: Server,
    /// In the order in which they are tried.
    paths: [PathDouble; 2],
    client: MeshClient,
    endpoint: quinn::Endpoint,
    activity: broadcast::Receiver<Activity>,
    table: watch::Sender<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Home {
    async fn start(config: ServeConfig) -> Self {
        let mesh = Mesh::new();
        let delay = Duration::from_millis(10);
        let script = Script {
            tokens: 60,
            delay,
            first_delay: delay,
            ..Script::default()
        };
        let engine = EngineDouble::new("e", script);
        let server = Server::start(&mesh, &[&engine], config).await;
        let paths = [
            PathDouble::to(server.addr).await,
            PathDouble::to(server.addr).await,
        ];
        let table = watch::Sender::new(only(&server, paths.each_ref().map(|p| p.addr)));
        let caller = Caller::new(&mesh, Role::Client);
        let endpoint = caller.endpoint.clone();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (reports, _) = mpsc::channel(1);
        let pool = Pool::new(
            caller.endpoint,
            Arc::new(caller.credentials),
            table.subscribe(),
            reports,
            tasks.clone(),
            stop.clone(),
        );
        let client = MeshClient::over(table.subscribe(), Arc::new(QuicTransport(pool)));
        Home {
            engine,
            server,
            paths,
            activity: client.activity(),
            client,
            endpoint,
            table,
            tasks,
            stop,
        }
    }

    fn ask(&self) -> Generation {
        self.client.generate(Request::chat("double", "[]"))
    }

    /// What the client did until now.
    fn did(&mut self) -> Vec<Activity> {
        std::iter::from_fn(|| self.activity.try_recv().ok()).collect()
    }

    async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait())
            .await
            .expect("the client's tasks end");
        self.server.shutdown().await;
    }
}

/// The table with this one peer at `addrs`.
fn only(server: &Server, addrs: [SocketAddr; 2]) -> Arc<Snapshot> {
    table(vec![peer(server, &addrs, Duration::from_millis(1))])
}

/// An answer as it arrived.
#[derive(Default)]
struct Got {
    text: String,
    frames: u32,
    /// The longest time between two tokens.
    gap: Duration,
    last: Option<Instant>,
    end: Option<Result<(), ClientError>>,
}

impl Got {
    /// Takes events until `frames` tokens are here or the end.
    async fn read(&mut self, generation: &mut Generation, frames: u32) {
        while self.frames < frames && self.end.is_none() {
            let next = timeout(PATIENCE, generation.next())
                .await
                .expect("an event comes in time");
            match next.expect("an end comes before the end") {
                Event::Token { index, text, .. } => {
                    assert_eq!(index, self.frames, "none lost, none doubled, in order");
                    self.frames += 1;
                    self.text.push_str(&text);
                    let waited = self.last.map_or(Duration::ZERO, |last| last.elapsed());
                    self.gap = self.gap.max(waited);
                    self.last = Some(Instant::now());
                }
                Event::PeerChanged { .. } => panic!("there is only one peer"),
                Event::Done { .. } => self.end = Some(Ok(())),
                Event::Failed(error) => self.end = Some(Err(error)),
                Event::Started { .. } | Event::Progress { .. } => {}
            }
        }
    }
}

fn reattached(did: &[Activity]) -> usize {
    let all = did.iter();
    all.filter(|a| matches!(a, Activity::Reattached { .. }))
        .count()
}

#[tokio::test]
async fn the_answer_goes_on_over_the_other_path() {
    let mut gaps = Samples::default();
    for _ in 0..ROUNDS {
        let mut home = Home::start(ServeConfig::default()).await;
        let mut generation = home.ask();
        let mut got = Got::default();
        got.read(&mut generation, 20).await;
        home.paths[0].cut();
        got.read(&mut generation, u32::MAX).await;
        assert!(matches!(got.end, Some(Ok(()))), "{:?}", got.end);
        assert_eq!(got.text, home.engine.expected());
        assert_eq!(home.engine.seen().asked, 1, "nothing was computed again");
        let did = home.did();
        assert_eq!(reattached(&did), 1, "{did:#?}");
        gaps.push(got.gap);
        home.shutdown().await;
    }
    println!("gap over a dead path to the only peer: {gaps}");
    assert!(gaps.percentile(0.95) <= GAP, "{gaps}");
}

#[tokio::test]
async fn without_another_path_the_error_says_what_was_delivered() {
    let config = ServeConfig {
        grace: Duration::from_millis(200),
        ..ServeConfig::default()
    };
    let mut home = Home::start(config).await;
    let mut generation = home.ask();
    let mut got = Got::default();
    got.read(&mut generation, 20).await;
    home.paths.iter().for_each(PathDouble::cut);
    // What the probes would find out by then: nobody is there to be asked again.
    home.table.send_replace(Arc::default());
    got.read(&mut generation, u32::MAX).await;
    match got.end.take() {
        Some(Err(ClientError::Interrupted {
            delivered, tokens, ..
        })) => assert_eq!((delivered, tokens), (got.text, got.frames)),
        other => panic!("{other:?}"),
    }
    let did = home.did();
    let interrupted = |a: &Activity| matches!(a, Activity::Interrupted { .. });
    assert_eq!(did.iter().filter(|a| interrupted(a)).count(), 1, "{did:#?}");
    home.shutdown().await;
}

/// The client's own address changes (it went from one network to another): QUIC moves the
/// connection, or the generation is attached to over a new one. Either way nothing is lost.
#[tokio::test]
async fn a_client_whose_address_changes_loses_nothing() {
    let mut home = Home::start(ServeConfig::default()).await;
    // Without a path of ours between, so that the agent sees the address.
    let direct = only(&home.server, [home.server.addr; 2]);
    home.table.send_replace(direct);
    let mut generation = home.ask();
    let mut got = Got::default();
    got.read(&mut generation, 20).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    home.endpoint.rebind(socket).unwrap();
    got.read(&mut generation, u32::MAX).await;
    assert!(matches!(got.end, Some(Ok(()))), "{:?}", got.end);
    assert_eq!(got.text, home.engine.expected());
    assert_eq!(home.engine.seen().asked, 1);
    println!(
        "gap when the client's address changes: {:?}, reattached {}",
        got.gap,
        reattached(&home.did())
    );
    assert!(got.gap <= GAP, "{:?}", got.gap);
    home.shutdown().await;
}
