//! A client's side without a mesh: a peer table by hand, and the way to the peers in it.

use super::{Caller, Mesh, Server, signed};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_client::client::MeshClient;
use unamesh_client::clock;
use unamesh_client::pool::{Pool, QuicTransport};
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{Addr, Advert, Hardware, NodeState, PathKind, Role};
use unamesh_tests::doubles::PathDouble;
use unamesh_tests::impair::Impairment;

/// `server` in a peer table, reached by `addrs`.
pub fn peer(server: &Server, addrs: &[SocketAddr], rtt: Duration) -> Arc<Peer> {
    let catalog = server.registry.catalog();
    let advert = Advert {
        node: server.node,
        name: "twin".to_owned(),
        version: "1".to_owned(),
        epoch: 1,
        seq: 1,
        wall_ms: clock::wall().as_millis(),
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: addrs.iter().map(|&addr| Addr::new(addr)).collect(),
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: catalog.engines.clone(),
        models: catalog.models.clone(),
        voices: catalog.voices.clone(),
    };
    let now = clock::mono();
    let path = |&addr: &SocketAddr| Path {
        addr,
        kind: PathKind::Loopback,
        rtt: Some(rtt),
        ok_at: Some(now),
    };
    Arc::new(Peer {
        advert: Arc::new(advert),
        signed: Arc::new(signed(1)),
        liveness: Liveness::Alive,
        paths: addrs.iter().map(path).collect(),
        heard: now,
    })
}

/// A peer table.
pub fn table(mut peers: Vec<Arc<Peer>>) -> Arc<Snapshot> {
    peers.sort_by_key(|peer| peer.advert.node);
    Arc::new(Snapshot {
        version: 1,
        peers,
        ..Snapshot::default()
    })
}

/// A new member's connections to the peers of `table`; `tasks` and `stop` are its.
pub fn transport(
    mesh: &Mesh,
    table: &watch::Sender<Arc<Snapshot>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<QuicTransport> {
    let caller = Caller::new(mesh, Role::Client);
    let (reports, _) = mpsc::channel(1);
    let pool = Pool::new(
        caller.endpoint,
        Arc::new(caller.credentials),
        table.subscribe(),
        reports,
        tasks.clone(),
        stop.clone(),
    );
    Arc::new(QuicTransport(pool))
}

/// A client and its path to one server.
pub struct Client {
    pub transport: Arc<QuicTransport>,
    pub path: PathDouble,
    table: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
}

impl Client {
    /// A new member, whose path to `server` is impaired both ways with the luck of `seed`.
    pub async fn new(mesh: &Mesh, server: &Server, impairment: Impairment, seed: u64) -> Self {
        let path = PathDouble::with(server.addr, impairment, seed).await;
        let peers = vec![peer(server, &[path.addr], Duration::from_millis(1))];
        let table = watch::Sender::new(table(peers));
        let stop = CancellationToken::new();
        Client {
            transport: transport(mesh, &table, &TaskTracker::new(), &stop),
            path,
            table,
            stop,
        }
    }

    /// What an application uses.
    pub fn mesh(&self) -> MeshClient {
        MeshClient::over(self.table.subscribe(), self.transport.clone())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
