//! The client's session machine against serving agents: an answer that survives its path, its
//! peer, its engine and a planned leave. Twins answer alike, so every token is checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::StreamExt;
use serve_support::peers::{peer, table, transport};
use serve_support::{Mesh, PATIENCE, Server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::client::{ClientError, Event, MeshClient, Request};
use unamesh_client::driver::Generation;
use unamesh_proto::session::Seam;
use unamesh_proto::table::Snapshot;
use unamesh_tests::doubles::{EngineDouble, Failure, PathDouble, Script};

const TOKENS: u32 = 60;

/// Two twins, of which the first is the better one, and a client.
struct Twins {
    engines: [EngineDouble; 2],
    servers: [Server; 2],
    /// The only path to the first server.
    relay: PathDouble,
    client: MeshClient,
    table: watch::Sender<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn script() -> Script {
    let delay = Duration::from_millis(10);
    Script {
        tokens: TOKENS,
        delay,
        first_delay: delay,
        ..Script::default()
    }
}

impl Twins {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let engines = ["first", "second"].map(|name| EngineDouble::new(name, script()));
        let config = ServeConfig::default();
        let servers = [
            Server::start(&mesh, &[&engines[0]], config).await,
            Server::start(&mesh, &[&engines[1]], config).await,
        ];
        let relay = PathDouble::to(servers[0].addr).await;
        let near = peer(&servers[0], &[relay.addr], Duration::from_millis(1));
        let far = peer(&servers[1], &[servers[1].addr], Duration::from_millis(80));
        let table = watch::Sender::new(table(vec![near, far]));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = transport(&mesh, &table, &tasks, &stop);
        let client = MeshClient::over(table.subscribe(), transport);
        Twins {
            engines,
            servers,
            relay,
            client,
            table,
            tasks,
            stop,
        }
    }

    fn ask(&self) -> Generation {
        self.client.generate(Request::chat("double", "[]"))
    }

    async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait())
            .await
            .expect("the client's tasks end");
        for server in self.servers {
            server.shutdown().await;
        }
    }
}

/// An answer as it arrived.
#[derive(Default)]
struct Got {
    text: String,
    frames: u32,
    changes: Vec<(Seam, String)>,
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
                }
                Event::PeerChanged { seam, reason, .. } => self.changes.push((seam, reason)),
                Event::Done { .. } => self.end = Some(Ok(())),
                Event::Failed(error) => self.end = Some(Err(error)),
                Event::Started { .. } | Event::Progress { .. } => {}
            }
        }
    }

    /// Reads to the end, which must be a good one with the text of `engine`.
    async fn whole(mut self, mut generation: Generation, engine: &EngineDouble) -> Self {
        self.read(&mut generation, u32::MAX).await;
        assert!(matches!(self.end, Some(Ok(()))), "{:?}", self.end);
        assert_eq!(self.text, engine.expected());
        self
    }
}

#[tokio::test]
async fn a_dead_path_is_survived_exactly() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 20).await;
    twins.relay.cut();
    let got = got.whole(generation, &twins.engines[0]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    let resumed = twins.engines[1].last_request().expect("the twin went on");
    assert!(resumed.prefix.len() >= 20);
    twins.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_fails_is_replaced() {
    let twins = Twins::start().await;
    twins.engines[0].change(|script| script.fail_at = Some((10, Failure::EndEarly)));
    let got = Got::default().whole(twins.ask(), &twins.engines[1]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    twins
        .engines
        .iter()
        .for_each(|engine| assert_eq!(engine.seen().running, 0));
    twins.shutdown().await;
}

#[tokio::test]
async fn a_planned_leave_is_not_felt() {
    let twins = Twins::start().await;
    // The one that stays catches up with the one that leaves, and overtakes it.
    twins.engines[0].change(|script| script.delay *= 5);
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 15).await;
    twins.servers[0].service.drain(Duration::from_secs(30));
    let got = got.whole(generation, &twins.engines[0]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert!(got.changes[0].1.contains("leaving"), "{:?}", got.changes);
    timeout(PATIENCE, twins.servers[0].service.drained())
        .await
        .expect("it may leave at once");
    timeout(PATIENCE, twins.engines[0].until(|seen| seen.running == 0))
        .await
        .expect("released");
    twins.shutdown().await;
}

#[tokio::test]
async fn a_leave_comes_true_before_the_end() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 15).await;
    // Equally fast, the twin is a few tokens behind when the first one goes.
    let service = &twins.servers[0].service;
    service.drain(Duration::from_millis(150));
    let leave = async {
        service.drained().await;
        twins.servers[0].stop.cancel();
    };
    let (got, ()) = tokio::join!(got.whole(generation, &twins.engines[0]), leave);
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    twins.shutdown().await;
}

#[tokio::test]
async fn alone_it_comes_back_over_another_path() {
    let twins = Twins::start().await;
    let slow = Script {
        delay: Duration::from_millis(100),
        ..script()
    };
    twins.engines[0].change(|script| *script = slow);
    let addrs = [twins.relay.addr, twins.servers[0].addr];
    let only = |addrs: &[SocketAddr]| {
        table(vec![peer(
            &twins.servers[0],
            addrs,
            Duration::from_millis(1),
        )])
    };
    twins.table.send_replace(only(&addrs[..1]));
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 5).await;
    twins.table.send_replace(only(&addrs));
    twins.relay.cut();
    got.whole(generation, &twins.engines[0]).await;
    assert_eq!(
        twins.engines[0].seen().asked,
        1,
        "nothing was computed again"
    );
    twins.shutdown().await;
}

#[tokio::test]
async fn a_cancel_reaches_every_engine() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 5).await;
    drop(generation);
    timeout(PATIENCE, twins.engines[0].until(|seen| seen.dropped == 1))
        .await
        .expect("stopped");
    assert_eq!(twins.engines[1].seen().asked, 0);
    twins.shutdown().await;
}
