//! Gossip: how adverts reach the nodes that this one does not talk to directly.
//!
//! libp2p gossipsub over QUIC on a port of its own, one topic a mesh. What is wanted of the
//! swarm is told as a *state*, never as commands that could be lost: the newest own advert,
//! and the members that may connect ([`Swarm::set_members`]). The task behind it
//! ([`driver`]) makes the connections fit.
//!
//! **One gate.** The swarm's own TLS proves only that a peer holds the key of its PeerId.
//! Which PeerIds are members is decided by the data plane, which checks certificates: a
//! PeerId is derived from the same Ed25519 key as the [`NodeId`], and everybody who is not in
//! the member list is refused before a byte of gossip is read. In turn, each message must be
//! an advert that its node signed ([`Judge`]) before it is passed on.
//!
//! Who dials whom: of two members the one with the lower node id dials, so that the pair
//! never makes two connections; the other one steps in when nothing came for a while. In a
//! home everybody connects to everybody ([`neighbours`]); beyond that each node keeps
//! a logarithmic number of links.

mod behaviour;
mod driver;

use libp2p::identity;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_client::identity::NodeKey;
use unamesh_proto::wire::{Advert, SignedAdvert};
use unamesh_proto::{MeshId, NodeId};

/// Adverts that wait for the table. One that finds the queue full is dropped: the node's
/// next one replaces it anyway.
const INBOX: usize = 256;
/// Up to this many members everybody links to everybody.
const FULL_MESH: usize = 12;

/// Why there is no swarm. Nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The port could not be bound.
    #[error("cannot bind the gossip port (UDP {port}): {reason}; set [mesh] swarm_port to another")]
    Bind {
        /// 0 = any.
        port: u16,
        /// What the system said.
        reason: String,
    },
    /// libp2p refused the configuration or the key.
    #[error("gossip: {0}")]
    Config(String),
}

/// What a message is worth.
#[derive(Debug)]
pub enum Verdict {
    /// A valid advert: taken in and passed on.
    Accept(Box<(Advert, SignedAdvert)>),
    /// Valid, but older than what is known, or outside the clock's window: not passed on.
    Ignore,
    /// Not of this mesh, forged or malformed: not passed on, and held against the sender.
    Reject,
}

/// Judges what other members send. Called in the swarm's task for each new message.
pub trait Judge: Send + Sync + 'static {
    /// What `message` is worth.
    fn judge(&self, message: &[u8]) -> Verdict;
}

/// A handle to the swarm's task. Dropping it does not stop the task; the token does.
#[derive(Clone, Debug)]
pub struct Swarm {
    advert: watch::Sender<Vec<u8>>,
    members: watch::Sender<Arc<BTreeMap<NodeId, Vec<SocketAddr>>>>,
    port: u16,
}

impl Swarm {
    /// Opens the gossip port (`port`, 0 = any free one) and starts the task.
    /// Returns the handle and the adverts that others sent.
    ///
    /// # Errors
    /// The port is taken, or libp2p refuses.
    pub fn start(
        key: &NodeKey,
        mesh: &MeshId,
        port: u16,
        judge: Arc<dyn Judge>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(Swarm, mpsc::Receiver<(Advert, SignedAdvert)>), SwarmError> {
        let (advert, adverts) = watch::channel(Vec::new());
        let (members, wanted) = watch::channel(Arc::default());
        let (inbox, received) = mpsc::channel(INBOX);
        let (swarm, port) = behaviour::listen(key, mesh, port)?;
        let driver = driver::Driver::new(swarm, key.id(), mesh, judge, inbox);
        tasks.spawn(driver.run(adverts, wanted, stop));
        Ok((
            Swarm {
                advert,
                members,
                port,
            },
            received,
        ))
    }

    /// The UDP port, for the advert.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Publishes this node's newest advert (an encoded [`SignedAdvert`] record). Only the
    /// newest one counts: it replaces one that could not be sent yet.
    pub fn publish(&self, advert: Vec<u8>) {
        self.advert.send_replace(advert);
    }

    /// Says who may connect, and the swarm addresses where each can be dialed. Everybody else
    /// is refused, and disconnected if connected.
    pub fn set_members(&self, members: BTreeMap<NodeId, Vec<SocketAddr>>) {
        self.members.send_if_modified(|current| {
            let changed = **current != members;
            if changed {
                *current = Arc::new(members);
            }
            changed
        });
    }
}

/// The PeerId of a node: the same key in libp2p's clothes. `None` if the bytes are no point
/// on the curve (nobody can hold such a key).
pub fn peer_id(node: &NodeId) -> Option<libp2p::PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// The members that `me` keeps links to: all of them in a home; beyond [`FULL_MESH`] those
/// at distances 1, 2, 4, ... on both sides in the ring of sorted ids. Both ends of a link
/// compute the same, and any two nodes are a logarithmic number of hops apart.
fn neighbours<'a>(me: &NodeId, members: impl Iterator<Item = &'a NodeId>) -> Vec<NodeId> {
    let mut ring: Vec<NodeId> = members.copied().filter(|m| m != me).collect();
    if ring.len() <= FULL_MESH {
        return ring;
    }
    ring.push(*me);
    ring.sort_unstable();
    let len = ring.len();
    let Ok(at) = ring.binary_search(me) else {
        return Vec::new();
    };
    let steps = std::iter::successors(Some(1), |step| Some(step * 2)).take_while(|s| *s < len);
    let mut chosen: Vec<NodeId> = steps
        .flat_map(|step| [(at + step) % len, (at + len - step) % len])
        .filter_map(|i| ring.get(i).copied())
        .filter(|n| n != me)
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests;
