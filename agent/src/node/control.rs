//! What the local mesh API (`GET /unamesh/v1/status` and the others) asks of the node.

use super::discovery::Sightings;
use super::events::Events;
use super::findings::Findings;
use super::presence::{Draining, Presence, Why, millis};
use super::publish::{Identity, version};
use super::table::TableHandle;
use super::verify::Verifier;
use crate::ca::Inviter;
use crate::engine::registry::Registry;
use crate::gateway::{Control, ControlError, Drain, DrillAsk, InviteOptions};
use crate::serve::Service;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::time::Instant;
use unamesh_client::client::MeshClient;
use unamesh_client::clock;
use unamesh_client::framing::open;
use unamesh_client::pool::Pool;
use unamesh_client::transport::LinkError;
use unamesh_proto::breaker::State;
use unamesh_proto::session::Reason;
use unamesh_proto::table::{Liveness, Peer};
use unamesh_proto::wire::{Addr, Drill, DrillStarted, Role, StreamKind};
use unamesh_proto::{NodeId, limits, timeouts};

/// Paths of one peer that are tried at the same time. Each may be a connection of its own, and
/// the peer lets us hold few of them, our ordinary one included.
const PATHS_AT_ONCE: usize = 3;
const _: () = assert!(PATHS_AT_ONCE * 2 < limits::MAX_CONNECTIONS_PER_PEER);

/// The node, as its local API sees it.
pub struct NodeControl {
    /// Who.
    pub identity: Arc<Identity>,
    /// When it started.
    pub started: Instant,
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// The gossip port.
    pub swarm_port: u16,
    /// The peers.
    pub table: TableHandle,
    /// Their connections.
    pub pool: Arc<Pool>,
    /// What was disbelieved.
    pub verifier: Arc<Verifier>,
    /// The engines.
    pub registry: Arc<Registry>,
    /// What runs.
    pub service: Arc<Service>,
    /// What happens.
    pub events: Events,
    /// How this node's own requests fare.
    pub client: MeshClient,
    /// What is wrong.
    pub findings: Findings,
    /// What was seen.
    pub sightings: Arc<Sightings>,
    /// Present where the CA is.
    pub inviter: Option<Inviter>,
    /// Whether it takes requests.
    pub presence: Arc<Presence>,
}

#[async_trait::async_trait]
impl Control for NodeControl {
    fn status(&self) -> Value {
        let credentials = &self.identity.credentials;
        let snapshot = Arc::clone(&self.table.snapshot().borrow());
        let me = self.identity.life.node;
        let others = || snapshot.peers.iter().filter(|p| p.advert.node != me);
        let count = |l: Liveness| others().filter(|p| p.liveness == l).count();
        let own = snapshot.get(&me).map(|p| p.advert.addrs.iter());
        let addrs: Vec<SocketAddr> = own.into_iter().flatten().map(Addr::socket).collect();
        let catalog = self.registry.catalog();
        let phase = self.presence.now();
        json!({
            "node": me,
            "name": self.identity.name,
            "version": version(),
            "role": credentials.role,
            "mesh": credentials.mesh.to_string(),
            "mesh_name": credentials.mesh_name,
            "state": phase.state,
            "draining": phase.drain.as_ref().map(Draining::json),
            "epoch": self.identity.life.epoch(),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "gateway": self.gateway,
            "quic": self.identity.listen,
            "swarm_port": self.swarm_port,
            "addrs": addrs,
            "can_invite": self.inviter.is_some(),
            "peers": {
                "alive": count(Liveness::Alive),
                "suspect": count(Liveness::Suspect),
                "down": count(Liveness::Down),
            },
            "engines": catalog.engines.len(),
            "models": catalog.models.len(),
            "active": self.service.active(),
            "hedges": self.hedges(),
            "breakers": self.breakers(),
            "adverts": {
                "merged": self.table.counters(),
                "disbelieved": self.verifier.disbelieved(),
            },
            "mdns": {
                "hints": self.sightings.hints(),
                "other_meshes": self.sightings.foreign(),
            },
            "findings": self.findings.list(),
        })
    }

    fn engines(&self) -> Value {
        let catalog = self.registry.catalog();
        let loads = self.service.load();
        let engines = catalog.engines.iter().enumerate().map(|(at, engine)| {
            let models = catalog
                .models
                .iter()
                .filter(|m| usize::from(m.engine) == at);
            let load = loads.get(at).copied().unwrap_or_default();
            json!({
                "name": engine.name,
                "kind": engine.kind,
                "health": engine.health,
                "slots": engine.slots,
                "busy": load.busy,
                "queue": load.queue,
                "models": models.map(|m| json!({
                    "name": m.name,
                    "kind": m.kind,
                    "residency": m.residency,
                    "context": m.context,
                    "token_ids": m.token_ids,
                    "stats": m.stats,
                })).collect::<Vec<_>>(),
            })
        });
        engines.collect()
    }

    fn events(&self) -> broadcast::Receiver<Arc<Value>> {
        self.events.listen()
    }

    async fn ping(&self, node: Option<String>) -> Result<Value, ControlError> {
        let snapshot = Arc::clone(&self.table.snapshot().borrow());
        let me = self.identity.life.node;
        let others = snapshot.peers.iter().filter(|p| p.advert.node != me);
        let asked: Vec<&Arc<Peer>> = match &node {
            None => others.collect(),
            Some(wanted) => others
                .filter(|p| is_named(&p.advert.node, &p.advert.name, wanted))
                .collect(),
        };
        if let (Some(wanted), true) = (&node, asked.is_empty()) {
            let names: Vec<&str> = snapshot
                .peers
                .iter()
                .map(|p| p.advert.name.as_str())
                .collect();
            let text = format!(
                "no peer is called {wanted:?}; there are: {}",
                names.join(", ")
            );
            return Err(ControlError::not_found(text));
        }
        let peers = join_all(asked.into_iter().map(|peer| self.ping_peer(peer))).await;
        Ok(Value::Array(peers))
    }

    async fn invite(&self, options: InviteOptions) -> Result<Value, ControlError> {
        let inviter = self.inviter.as_ref().ok_or_else(|| {
            ControlError::conflict(
                "this node cannot invite: only the one that ran `unamesh init` holds the CA of \
                 the mesh. Run `unamesh invite` there",
            )
        })?;
        if matches!(options.role, Role::Unknown(_)) {
            return Err(ControlError::conflict(
                "the role must be admin, agent or client",
            ));
        }
        let invite = inviter
            .invite(options.role, options.valid_for, options.uses)
            .map_err(|e| ControlError::conflict(e.to_string()))?;
        self.events.emit(
            "invited",
            json!({ "role": options.role, "uses": options.uses }),
        );
        Ok(json!({
            "link": invite.to_string(),
            "role": options.role,
            "uses": options.uses,
            "expires_ms": invite.expires.as_millis(),
            "addrs": invite.addrs,
        }))
    }

    async fn drain(&self, drain: Drain) -> Result<Value, ControlError> {
        let leaving = || ControlError::conflict("this agent is leaving already");
        match drain {
            Drain::Leave(deadline) if !self.presence.leave(Why::Asked, deadline) => {
                return Err(leaving());
            }
            Drain::Pause(_) if self.presence.now().is_for_good() => return Err(leaving()),
            Drain::Pause(long) => self.presence.pause(Why::Asked, Some(long)),
            Drain::Stop if !self.presence.resume(Why::Asked) => {
                return Err(ControlError::conflict(
                    "nobody asked this agent to pause: there is nothing to stop",
                ));
            }
            Drain::Leave(_) | Drain::Stop => {}
        }
        let phase = self.presence.now();
        Ok(json!({
            "state": phase.state,
            "draining": phase.drain.as_ref().map(Draining::json),
            "active": self.service.active(),
        }))
    }

    async fn drill(&self, ask: DrillAsk) -> Result<Value, ControlError> {
        let snapshot = Arc::clone(&self.table.snapshot().borrow());
        let me = self.identity.life.node;
        let mut others = snapshot.peers.iter().filter(|p| p.advert.node != me);
        let peer = others.find(|p| is_named(&p.advert.node, &p.advert.name, &ask.node));
        let peer = peer.ok_or_else(|| {
            ControlError::not_found(format!("no other machine is called {:?}", ask.node))
        })?;
        let drill = Drill {
            fault: ask.fault,
            for_ms: u32::try_from(ask.long.as_millis()).unwrap_or(u32::MAX),
        };
        let asked = async {
            let connection = self.pool.connection(peer.advert.node).await?;
            let (_writer, mut reader) = open(&connection, StreamKind::Admin, &drill).await?;
            Ok::<_, LinkError>(reader.expect::<DrillStarted>().await?)
        };
        let name = &peer.advert.name;
        match tokio::time::timeout(timeouts::OPENING, asked).await {
            Ok(Ok(started)) => Ok(json!({
                "node": peer.advert.node,
                "name": name,
                "fault": ask.fault.name(),
                "for_ms": started.for_ms,
            })),
            Ok(Err(LinkError::Refused(error))) => Err(ControlError::refused(format!(
                "{name} refuses: {}",
                error.message
            ))),
            Ok(Err(error)) => Err(ControlError::failed(format!("{name}: {error}"))),
            Err(_) => Err(ControlError::failed(format!("{name} does not answer"))),
        }
    }
}

impl NodeControl {
    /// What hedges cost: `share` of the requests had one, `wasted_share` one in vain.
    fn hedges(&self) -> Value {
        let (counts, left) = self.client.hedges();
        let share = |n: u64| n as f64 / counts.requests.max(1) as f64;
        json!({
            "requests": counts.requests,
            "started": counts.started,
            "refunded": counts.refunded,
            "in_vain": counts.in_vain,
            "share": share(counts.started),
            "wasted_share": share(counts.in_vain),
            "left": left,
        })
    }

    /// The engines that failed lately.
    fn breakers(&self) -> Vec<Value> {
        let breakers = self.client.breakers().into_iter();
        let shown = breakers.map(|(peer, engine, standing)| {
            let open = match standing.state {
                State::Open(left) => Some(millis(left)),
                _ => None,
            };
            json!({
                "node": peer.node,
                "name": peer.name,
                "engine": engine,
                "state": standing.state.name(),
                "open_ms": open,
                "failed_ms_ago": millis(standing.ago),
                "cause": standing.reason.as_ref().map(Reason::name),
                "reason": standing.reason.as_ref().map(Reason::to_string),
            })
        });
        shown.collect()
    }

    async fn ping_peer(&self, peer: &Peer) -> Value {
        let node = peer.advert.node;
        let tried = peer.paths.iter().map(|path| async move {
            let probed = self.pool.probe_path(node, path.addr).await;
            let sent = clock::wall();
            let (rtt, skew, error) = match probed {
                Ok((rtt, reply)) => {
                    let theirs = i128::from(reply.wall_ms);
                    let half = i128::try_from(rtt.as_millis() / 2).unwrap_or(0);
                    let skew = theirs - (i128::from(sent.as_millis()) - half);
                    (Some(rtt), i64::try_from(skew).ok(), None)
                }
                Err(e) => (None, None, Some(e.to_string())),
            };
            let path = json!({
                "addr": path.addr,
                "kind": path.kind,
                "rtt_ms": rtt.map(|r| (r.as_secs_f64() * 1e6).round() / 1e3),
                "error": error,
            });
            (path, skew)
        });
        // Collected, so that the stream borrows from nothing that moves.
        let tried: Vec<_> = tried.collect();
        let paths: Vec<_> = stream::iter(tried).buffered(PATHS_AT_ONCE).collect().await;
        let skew = paths.iter().find_map(|(_, skew)| *skew);
        json!({
            "node": node,
            "name": peer.advert.name,
            "liveness": liveness(peer.liveness),
            "clock_skew_ms": skew,
            "paths": paths.into_iter().map(|(path, _)| path).collect::<Vec<_>>(),
        })
    }
}

fn is_named(node: &NodeId, name: &str, wanted: &str) -> bool {
    name == wanted || (wanted.len() >= 4 && node.to_string().starts_with(&wanted.to_lowercase()))
}

fn liveness(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Down => "down",
    }
}
