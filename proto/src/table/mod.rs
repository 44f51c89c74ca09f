//! What this node believes of the others.
//!
//! One [`Table`] per process takes in adverts, probe results and the passing of time, and
//! publishes an immutable [`Snapshot`]. (Algorithm: see the functions of [`Table`].)

use crate::ids::NodeId;
use crate::time::Mono;
use crate::wire::{Advert, PathKind, SignedAdvert};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Whether a peer shows life, from authenticated signs only (never from mDNS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// Heard of within [`crate::timeouts::TABLE_SUSPECT`].
    Alive,
    /// Silent for longer; ranked last.
    Suspect,
    /// Silent for [`crate::timeouts::TABLE_DOWN`]; not chosen.
    Down,
}

/// One way to reach a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// The peer's data-plane address.
    pub addr: SocketAddr,
    /// Of what network.
    pub kind: PathKind,
    /// Smoothed round trip; `None` until a probe succeeded.
    pub rtt: Option<Duration>,
    /// When it last worked.
    pub ok_at: Option<Mono>,
}

/// One entry of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its word.
    pub advert: Arc<Advert>,
    /// The same as signed, to pass on.
    pub signed: Arc<SignedAdvert>,
    /// Whether it shows life.
    pub liveness: Liveness,
    /// Best (lowest round trip that works) first.
    pub paths: Vec<Path>,
    /// When it last gave a sign of life.
    pub heard: Mono,
}

/// A consistent, immutable view of the mesh. Contains this node itself, as it advertises.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Rises with every change.
    pub version: u64,
    /// This node, if it is an agent.
    pub me: Option<NodeId>,
    /// Sorted by node id.
    pub peers: Vec<Arc<Peer>>,
}

impl Snapshot {
    /// The entry of `node`.
    pub fn get(&self, node: &NodeId) -> Option<&Arc<Peer>> {
        let at = self.peers.binary_search_by(|p| p.advert.node.cmp(node)).ok()?;
        self.peers.get(at)
    }
}
