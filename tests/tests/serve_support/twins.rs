//! Two serving agents that answer alike, and a client with its session machine.

use super::peers::{peer, table, transport};
use super::{Mesh, PATIENCE, Server};
use futures_util::StreamExt;
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
use unamesh_tests::doubles::{EngineDouble, PathDouble, Script};

/// Tokens of a whole answer.
const TOKENS: u32 = 60;

/// Two twins, of which the first is the better one, and a client.
pub struct Twins {
    pub engines: [EngineDouble; 2],
    pub servers: [Server; 2],
    /// The only path to the first server.
    pub path: PathDouble,
    pub client: MeshClient,
    pub table: watch::Sender<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What both do.
pub fn script() -> Script {
    let delay = Duration::from_millis(10);
    Script {
        tokens: TOKENS,
        delay,
        first_delay: delay,
        ..Script::default()
    }
}

impl Twins {
    pub async fn start() -> Self {
        let mesh = Mesh::new();
        let engines = ["first", "second"].map(|name| EngineDouble::new(name, script()));
        let config = ServeConfig::default();
        let servers = [
            Server::start(&mesh, &[&engines[0]], config).await,
            Server::start(&mesh, &[&engines[1]], config).await,
        ];
        let path = PathDouble::to(servers[0].addr).await;
        let near = peer(&servers[0], &[path.addr], Duration::from_millis(1));
        let far = peer(&servers[1], &[servers[1].addr], Duration::from_millis(80));
        let table = watch::Sender::new(table(vec![near, far]));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = transport(&mesh, &table, &tasks, &stop);
        let client = MeshClient::over(table.subscribe(), transport);
        Twins {
            engines,
            servers,
            path,
            client,
            table,
            tasks,
            stop,
        }
    }

    pub fn ask(&self) -> Generation {
        self.client.generate(Request::chat("double", "[]"))
    }

    pub async fn shutdown(self) {
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
pub struct Got {
    pub text: String,
    pub frames: u32,
    pub changes: Vec<(Seam, String)>,
    pub end: Option<Result<(), ClientError>>,
}

impl Got {
    /// Takes events until `frames` tokens are here or the end.
    pub async fn read(&mut self, generation: &mut Generation, frames: u32) {
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
    pub async fn whole(mut self, mut generation: Generation, engine: &EngineDouble) -> Self {
        self.read(&mut generation, u32::MAX).await;
        assert!(matches!(self.end, Some(Ok(()))), "{:?}", self.end);
        assert_eq!(self.text, engine.expected());
        self
    }
}
