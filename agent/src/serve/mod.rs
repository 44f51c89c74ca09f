//! Serving: what other members ask of this agent over QUIC, and what it asks of itself.
//!
//! ```text
//!   endpoint ─► listener ─► streams ─┬─► probe, exchange: answered at once
//!              (bounds,   (header,   ├─► probe for another: the node's hooks
//!               member)    gate)     ├─► watch: the peer table as it changes
//!                                    ├─► attach ──────────────► the generation's task
//!                                    ├─► generate ─► admission ─► generation (run, journal,
//!                                    │                   │                    client)
//!                                    ├─► speak, transcribe ─► voice (speaking, hearing)
//!                                    └─► warm ──────────────► leases
//!   this agent ──────────► open_local, speak_local ──────┴─────► run, speaking
//! ```
//! - [`listener`]: the accept loop and its bounds; one check of membership a connection.
//! - [`gate`]: the one table of who may open what.
//! - [`streams`]: a stream's header, and where it goes.
//! - [`admission`]: slots, the queue, `busy`; the loads that adverts carry.
//! - [`run`]: one generation as its frames: the engine's stream, polled where it is needed.
//! - [`generation`]: a run with a journal and a client elsewhere, in one task.
//! - [`voice`]: texts that are spoken, and speech that is heard here.
//! - [`leases`]: models that conversations keep warm.
//! - [`watch`]: the peer table for those who do not gossip.
//! - [`drills`]: faults that are played on purpose.
//!
//! Every task is on the tracker that [`Service::new`] got and ends when the token is
//! cancelled: running streams end with a typed error, then their tasks return. Whoever stops
//! the service cancels the token, waits for the tracker ([`unamesh_proto::timeouts::SHUTDOWN`]
//! at most), and only then closes the endpoint.

mod admission;
mod client;
mod drills;
mod encoder;
mod gate;
mod generation;
mod generations;
mod handshakes;
mod journals;
mod leases;
mod leaving;
mod listener;
mod meter;
mod quiet;
mod run;
mod service;
mod streams;
mod validate;
mod voice;
mod watch;

pub use admission::EngineLoad;
pub use service::{ServeConfig, Service};

use std::net::SocketAddr;
use std::sync::Arc;
use unamesh_client::identity::Member;
use unamesh_client::transport::BoxFuture;
use unamesh_proto::NodeId;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::{NodeState, ProbeFor, ProbedFor, SignedAdvert, WireError};

/// What serving needs from the rest of the agent. All of it is called from serving tasks and
/// must not block.
pub trait Hooks: Send + Sync + 'static {
    /// A member's connection was accepted; it stays open while the member wants it.
    fn connected(&self, member: Member, connection: quinn::Connection);

    /// This node's own word, as it goes out in an exchange.
    fn advert(&self) -> Arc<SignedAdvert>;

    /// A member handed over its word. Neither signature nor content was checked.
    fn received(&self, from: Member, signed: SignedAdvert, remote: SocketAddr);

    /// The peer table.
    fn snapshot(&self) -> tokio::sync::watch::Receiver<Arc<Snapshot>>;

    /// What a probe is told.
    fn state(&self) -> NodeState;

    /// Takes nothing new for `long`, lets what runs move, and then comes back by itself. False
    /// where that is not possible, or not now.
    fn pause(&self, _long: std::time::Duration) -> bool {
        false
    }

    /// The agent `from` cannot reach a node and asks whether this one can.
    ///
    /// # Errors
    /// Too many ask already; nobody was probed.
    fn probe_for(
        &self,
        from: NodeId,
        question: ProbeFor,
    ) -> BoxFuture<Result<ProbedFor, WireError>>;

    /// Whether `node` was removed from the mesh although its certificate is still valid.
    fn is_revoked(&self, node: &NodeId) -> bool;
}

impl Service {
    /// Serves what arrives at `endpoint` from members whose certificates `ca` (DER) issued.
    /// Returns when the service's token is cancelled or the endpoint closes; connections and
    /// streams are tasks of their own on the service's tracker.
    pub async fn serve_endpoint(
        self: Arc<Self>,
        endpoint: quinn::Endpoint,
        ca: Vec<u8>,
        hooks: Arc<dyn Hooks>,
    ) {
        listener::Listener::new(self, ca, hooks)
            .listen(endpoint)
            .await;
    }
}
