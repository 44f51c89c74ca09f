//! Some agents with an engine each, a client, and a path to each agent that can be cut.

use super::peers::{peer, table, transport};
use super::{Mesh, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::engine::Engine;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::client::MeshClient;
use unamesh_client::pool::QuicTransport;
use unamesh_client::transport::Transport;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::Role;
use unamesh_tests::doubles::PathDouble;

/// The first is asked first, and so on: so much further away is each next.
const FURTHER: Duration = Duration::from_millis(80);

/// See the module's documentation.
pub struct Agents {
    servers: Vec<Option<Server>>,
    /// The only path to each.
    pub paths: Vec<PathDouble>,
    pub client: MeshClient,
    killed: JoinSet<()>,
    _table: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
}

impl Agents {
    /// An agent for each of `engines`.
    pub async fn start(engines: Vec<Arc<dyn Engine>>) -> Self {
        Self::over(engines, |quic| quic).await
    }

    /// The same; what the client does goes through what `around` makes of its transport.
    pub async fn over(
        engines: Vec<Arc<dyn Engine>>,
        around: impl FnOnce(Arc<QuicTransport>) -> Arc<dyn Transport>,
    ) -> Self {
        let mesh = Mesh::new();
        let (mut servers, mut paths, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for (at, engine) in (0u32..).zip(engines) {
            let (config, member) = (ServeConfig::default(), mesh.member(Role::Agent));
            let server = Server::with(member, vec![engine], config).await;
            let path = PathDouble::to(server.addr).await;
            let rtt = Duration::from_millis(1) + FURTHER * at;
            peers.push(peer(&server, &[path.addr], rtt));
            servers.push(Some(server));
            paths.push(path);
        }
        let table = watch::Sender::new(table(peers));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = around(transport(&mesh, &table, &tasks, &stop));
        Agents {
            servers,
            paths,
            client: MeshClient::over(table.subscribe(), transport),
            killed: JoinSet::new(),
            _table: table,
            stop,
        }
    }

    /// Kills one, without waiting for its end. Once.
    pub fn kill(&mut self, at: usize) {
        if let Some(server) = self.servers[at].take() {
            self.killed.spawn(server.crash());
        }
    }

    pub async fn shutdown(self) {
        self.stop.cancel();
        self.killed.join_all().await;
        for server in self.servers.into_iter().flatten() {
            server.shutdown().await;
        }
    }
}
