//! Puts the agent together and owns every task of it.
//!
//! ```text
//!            mDNS, seeds, last-good            engines     machine
//!                     │                            │          │
//!                discovery ──dials──┐          registry    sampler
//!                     │ hints       │              │          │
//!  swarm ──adverts──► table ◄──┐    ▼              ▼          ▼
//!    ▲                  │      └─ links ◄────── publisher ────┴──► swarm, own entry
//!    └──members─────────┤          ▲  exchange, goodbye
//!                       ▼          │
//!                 Arc<Snapshot> ─► pool ─► MeshClient ─► gateway
//!                                          service ◄── data plane (hooks)
//! ```
//! - [`table`]: the one task that owns the peer table; everybody else sends it inputs and
//!   reads its snapshots.
//! - [`verify`]: what an advert must prove before it gets there.
//! - [`discovery`]: who may be where; [`links`]: adverts over connections; [`probe`]: second
//!   opinions on silent peers, asked for and given.
//! - [`publish`]: this node's own advert, from its first word to its goodbye; [`life`]: its
//!   epochs; [`presence`]: whether it takes requests, and why not; [`sleep`]: what it does
//!   before and after the machine sleeps.
//! - [`start`] opens what can fail, [`wiring`] connects the parts, [`background`] has the small
//!   tasks.
//! - [`hooks`], [`local`], [`control`]: the node as its service, its own client and its local
//!   API see it.
//!
//! **Start** ([`Agent::start`]) opens the sockets, so that a taken port is an error and not a
//! log line, and starts everything else side by side: nothing waits for an engine, a peer or
//! multicast. **End** ([`Agent::shutdown`]): draining (clients move their streams, answers
//! to own applications end), the goodbye to every peer, then the tasks, then the sockets.

mod addrs;
mod background;
pub mod control;
pub mod discovery;
pub mod events;
pub mod findings;
pub mod hooks;
pub mod life;
pub mod links;
pub mod local;
pub mod presence;
pub mod probe;
pub mod publish;
mod sleep;
mod start;
pub mod table;
mod tell;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
pub mod verify;
mod wiring;

pub use start::StartError;

use crate::config::Config;
use crate::engine::Engine;
use crate::serve::Service;
use crate::state::{AgentInfo, StateDir, StateLock};
use control::NodeControl;
use presence::{Presence, Why};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use unamesh_client::client::MeshClient;
use unamesh_client::pool::Pool;
use unamesh_proto::NodeId;
use unamesh_proto::timeouts::{PROBE_TIMEOUT, SHUTDOWN};
use unamesh_proto::wire::ErrorCode;

/// How long the sockets may take to send what is left.
const CLOSING: Duration = Duration::from_millis(200);

/// A running agent. Dropping it stops its tasks without a goodbye; call
/// [`Agent::shutdown`].
pub struct Agent {
    node: NodeId,
    client: MeshClient,
    control: Arc<NodeControl>,
    presence: Arc<Presence>,
    service: Arc<Service>,
    pool: Arc<Pool>,
    endpoint: quinn::Endpoint,
    gateway: SocketAddr,
    state: StateDir,
    _lock: Option<StateLock>,
    /// Ends the publisher with its goodbye.
    leave: CancellationToken,
    publisher: TaskTracker,
    /// Ends everything else.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Agent {
    /// Starts an agent with the engines of `config`. Returns when its sockets are open; it
    /// finds engines and peers from then on.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start(config: Config, state: StateDir) -> Result<Agent, StartError> {
        start::start(config, state, Vec::new()).await
    }

    /// As [`Agent::start`], with `engines` besides those of `config`: for programs that bring
    /// an engine of their own, and tests.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start_with(
        config: Config,
        state: StateDir,
        engines: Vec<Arc<dyn Engine>>,
    ) -> Result<Agent, StartError> {
        start::start(config, state, engines).await
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A client that routes from here. Cheap to clone.
    pub fn client(&self) -> MeshClient {
        self.client.clone()
    }

    /// Where the gateway listens (TCP).
    pub fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// Where the data plane listens (UDP).
    pub fn quic(&self) -> SocketAddr {
        self.control.identity.listen
    }

    /// The node as its local API sees it.
    pub fn control(&self) -> Arc<NodeControl> {
        Arc::clone(&self.control)
    }

    /// Resolves when the agent was told to leave by its API (`unamesh drain`) and what it was
    /// doing has ended. [`Agent::shutdown`] is due then.
    pub async fn drained(&self) {
        let mut phase = self.presence.phase();
        if phase.wait_for(|p| p.is_for_good()).await.is_ok() {
            self.answers_end().await;
        }
    }

    /// Resolves when no answer is computed here any more and none given out here, whoever
    /// computes it; or at the deadline of the leave.
    async fn answers_end(&self) {
        self.service.drained_and(self.client.idle()).await;
    }

    /// Leaves the mesh and ends. Answers that run here get `drain` to move to another agent or
    /// to end, those for applications of this machine to end; what is left of the latter then
    /// ends with an error. Every peer is told, and every task is waited for ([`SHUTDOWN`] at
    /// most).
    pub async fn shutdown(self, drain: Duration) {
        self.presence.leave(Why::Signal, drain);
        self.answers_end().await;
        self.client.leave();
        // From here on nobody chooses this node: its goodbye reaches every peer directly.
        self.leave.cancel();
        self.publisher.close();
        if tokio::time::timeout(PROBE_TIMEOUT, self.publisher.wait())
            .await
            .is_err()
        {
            warn!("not every peer has heard the goodbye");
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait())
            .await
            .is_err()
        {
            warn!(tasks = self.tasks.len(), "tasks did not end in time");
        }
        self.pool
            .close_all(ErrorCode::Draining, "this agent has left");
        self.endpoint.close(0u32.into(), b"this agent has left");
        // Best effort: peers that miss the closing packet notice by themselves.
        let _ = tokio::time::timeout(CLOSING, self.endpoint.wait_idle()).await;
        if let Err(error) = AgentInfo::remove(&self.state) {
            warn!(%error, "other commands may still think that the agent runs");
        }
        info!("stopped");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
