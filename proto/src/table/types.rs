//! What the table hands out.

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
    /// Silent for longer, or known from relays alone; ranked last.
    Suspect,
    /// Silent for [`crate::timeouts::TABLE_DOWN`], and others cannot reach it either; not chosen.
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
    /// The signed goodbyes of those who left of late and did not come back: the proof of it for
    /// whoever was not told. At most [`crate::limits::MAX_GOODBYES`].
    pub left: Arc<[Arc<SignedAdvert>]>,
}

impl Snapshot {
    /// The entry of `node`.
    pub fn get(&self, node: &NodeId) -> Option<&Arc<Peer>> {
        let at = self
            .peers
            .binary_search_by(|p| p.advert.node.cmp(node))
            .ok()?;
        self.peers.get(at)
    }
}

/// What became of an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Merged {
    /// Of a node that was not in the table.
    New,
    /// Newer than what was known; a goodbye counts as this too.
    Updated,
    /// What was known already.
    Unchanged,
    /// Older than what is known. Dropped.
    Stale,
    /// Of a node that left or was forgotten, and not newer than that. Dropped.
    Tombstoned,
    /// The sender's clock is off by more than [`crate::timeouts::ADVERT_WINDOW`]. Dropped.
    OutsideWindow,
    /// The table is full of peers that are not down. Dropped.
    Full,
    /// Of this very node, and newer than all it ever published: another process runs with the
    /// same key. Dropped; the owner must give one of them its own key.
    Twin,
}

/// What others had to say of a peer that went down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// These could not reach it either. At most [`crate::limits::MAX_HELPERS`].
    Confirmed(Vec<NodeId>),
    /// Others were asked, and none knew.
    NoAnswer,
    /// There was nobody to ask: no other peer, or this node itself is cut off.
    NobodyToAsk,
}

/// A change worth a log line or an event for people, with its reason and timing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TableEvent {
    /// Showed life for the first time.
    Joined(NodeId),
    /// Said goodbye.
    Left(NodeId),
    /// Was alive and fell silent, or no path to it works.
    Suspect {
        /// Who.
        node: NodeId,
        /// For how long already.
        silent: Duration,
    },
    /// A suspect, but another reaches it. Told once a suspicion.
    Vouched {
        /// Who.
        node: NodeId,
        /// Who says so.
        by: NodeId,
    },
    /// Was alive once and is taken for gone.
    Down {
        /// Who.
        node: NodeId,
        /// For how long it was silent.
        silent: Duration,
        /// What others said.
        verdict: Verdict,
    },
    /// Alive again after suspicion or worse.
    Back {
        /// Who.
        node: NodeId,
        /// How long it was silent.
        after: Duration,
    },
    /// Was down for so long that it left the table.
    Forgotten(NodeId),
    /// See [`Merged::Twin`].
    Twin(NodeId),
    /// Silent, and not known whether for all: let [`super::Table::helpers`] probe it and hand
    /// in [`super::Table::indirect`].
    Doubt(NodeId),
    /// All peers fell silent together: it is this node that is cut off.
    CutOff {
        /// So many.
        peers: usize,
    },
    /// A peer spoke again after that.
    Online {
        /// How long after.
        after: Duration,
    },
}

/// How many adverts came to what end, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// New nodes.
    pub new: u64,
    /// Newer words.
    pub updated: u64,
    /// Repetitions.
    pub unchanged: u64,
    /// Dropped: older than known.
    pub stale: u64,
    /// Dropped: the node left.
    pub tombstoned: u64,
    /// Dropped: clock too far off.
    pub outside_window: u64,
    /// Dropped: no room.
    pub full: u64,
    /// Dropped: our own key.
    pub twin: u64,
}
