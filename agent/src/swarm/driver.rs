//! The swarm's task: makes connections fit the member list, sends the newest advert,
//! judges what comes in.
//!
//! A member's [`Link`] is connected, or has a time at which it is dialed next. The lower node
//! id dials at once and again after [`REDIAL_MIN`], doubling to [`REDIAL_MAX`]; the higher
//! one waits [`STEP_IN`] for the other to come.

use super::behaviour::{Behaviour, BehaviourEvent, multiaddr, topic};
use super::{Judge, Verdict, neighbours, peer_id};
use futures_util::StreamExt;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, PublishError};
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};
use unamesh_proto::wire::{Advert, SignedAdvert};
use unamesh_proto::{MeshId, NodeId};

/// A refused dial is tried again after this: the other side may be about to learn of us.
const REDIAL_MIN: Duration = Duration::from_millis(250);
/// A member that cannot be reached is dialed this often at least.
const REDIAL_MAX: Duration = Duration::from_secs(15);
/// The higher node id dials if the lower one has not come by then.
const STEP_IN: Duration = Duration::from_secs(3);

struct Link {
    addrs: Vec<Multiaddr>,
    connected: bool,
    /// Whether this node keeps a link to it at all.
    wanted: bool,
    /// Whether it is on us to dial.
    ours: bool,
    dial_at: Instant,
    backoff: Duration,
}

pub(super) struct Driver {
    swarm: libp2p::Swarm<Behaviour>,
    me: NodeId,
    topic: IdentTopic,
    judge: Arc<dyn Judge>,
    inbox: mpsc::Sender<(Advert, SignedAdvert)>,
    links: HashMap<PeerId, Link>,
    /// The newest own advert, while nobody was there to take it.
    unsent: Option<Vec<u8>>,
}

impl Driver {
    pub(super) fn new(
        swarm: libp2p::Swarm<Behaviour>,
        me: NodeId,
        mesh: &MeshId,
        judge: Arc<dyn Judge>,
        inbox: mpsc::Sender<(Advert, SignedAdvert)>,
    ) -> Driver {
        let (links, unsent) = (HashMap::new(), None);
        Driver {
            swarm,
            me,
            topic: topic(mesh),
            judge,
            inbox,
            links,
            unsent,
        }
    }

    pub(super) async fn run(
        mut self,
        mut adverts: watch::Receiver<Vec<u8>>,
        mut wanted: watch::Receiver<Arc<BTreeMap<NodeId, Vec<SocketAddr>>>>,
        stop: CancellationToken,
    ) {
        loop {
            let dial_at = self.next_dial();
            let dial = async {
                match dial_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.handle(event),
                Ok(()) = wanted.changed() => {
                    let members = Arc::clone(&wanted.borrow_and_update());
                    self.reconcile(&members);
                }
                Ok(()) = adverts.changed() => {
                    let advert = adverts.borrow_and_update().clone();
                    self.publish(advert);
                }
                () = dial => self.dial_due(Instant::now()),
            }
        }
    }

    fn reconcile(&mut self, members: &BTreeMap<NodeId, Vec<SocketAddr>>) {
        let near: HashSet<NodeId> = neighbours(&self.me, members.keys()).into_iter().collect();
        let now = Instant::now();
        let mut present = HashSet::new();
        for (node, addrs) in members.iter().filter(|(node, _)| **node != self.me) {
            let Some(peer) = peer_id(node) else { continue };
            present.insert(peer);
            self.swarm.behaviour_mut().gate.allow_peer(peer);
            let addrs: Vec<Multiaddr> = addrs
                .iter()
                .filter(|a| dialable(a))
                .map(|a| multiaddr(*a))
                .collect();
            let ours = self.me < *node;
            let link = self.links.entry(peer).or_insert_with(|| Link {
                addrs: Vec::new(),
                connected: false,
                wanted: false,
                ours,
                dial_at: now,
                backoff: REDIAL_MIN,
            });
            link.wanted = near.contains(node);
            if link.addrs != addrs {
                link.addrs = addrs;
                link.backoff = REDIAL_MIN;
                link.dial_at = if ours { now } else { now + STEP_IN };
            }
        }
        self.links.retain(|peer, _| {
            let keep = present.contains(peer);
            if !keep {
                self.swarm.behaviour_mut().gate.disallow_peer(*peer);
            }
            keep
        });
    }

    fn next_dial(&self) -> Option<Instant> {
        self.links
            .values()
            .filter(|l| l.needs_dial())
            .map(|l| l.dial_at)
            .min()
    }

    fn dial_due(&mut self, now: Instant) {
        for (peer, link) in &mut self.links {
            if !link.needs_dial() || link.dial_at > now {
                continue;
            }
            link.dial_at = now + link.backoff;
            link.backoff = (link.backoff * 2).min(REDIAL_MAX);
            let options = DialOpts::peer_id(*peer)
                .addresses(link.addrs.clone())
                .build();
            if let Err(e) = self.swarm.dial(options) {
                trace!(%peer, error = %e, "no gossip dial");
            }
        }
    }

    fn publish(&mut self, advert: Vec<u8>) {
        let sent = self
            .swarm
            .behaviour_mut()
            .gossip
            .publish(self.topic.clone(), advert.clone());
        self.unsent = match sent {
            Ok(_) | Err(PublishError::Duplicate) => None,
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                Some(advert)
            }
            Err(e) => {
                warn!(error = %e, bytes = advert.len(), "gossip did not take the advert");
                None
            }
        };
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => {
                let acceptance = self.take(&message.data);
                self.swarm
                    .behaviour_mut()
                    .gossip
                    .report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed {
                ..
            })) => {
                if let Some(advert) = self.unsent.take() {
                    self.publish(advert);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                debug!(peer = %peer_id, "gossip link up");
                if let Some(link) = self.links.get_mut(&peer_id) {
                    link.connected = true;
                    link.backoff = REDIAL_MIN;
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                cause,
                ..
            } => {
                debug!(peer = %peer_id, ?cause, "gossip link down");
                if let Some(link) = self.links.get_mut(&peer_id) {
                    link.connected = false;
                    link.dial_at = Instant::now() + if link.ours { REDIAL_MIN } else { STEP_IN };
                }
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                debug!(%error, "gossip connection refused");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                trace!(?peer_id, %error, "gossip dial failed");
            }
            _ => {}
        }
    }

    fn take(&mut self, message: &[u8]) -> MessageAcceptance {
        match self.judge.judge(message) {
            Verdict::Accept(advert) => {
                if self.inbox.try_send(*advert).is_err() {
                    debug!("the table is behind: an advert was dropped, its next one will do");
                }
                MessageAcceptance::Accept
            }
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        }
    }
}

impl Link {
    fn needs_dial(&self) -> bool {
        self.wanted && !self.connected && !self.addrs.is_empty()
    }
}

/// libp2p's QUIC cannot carry an IPv6 scope; such peers have other addresses as well.
fn dialable(addr: &SocketAddr) -> bool {
    match addr {
        SocketAddr::V4(v4) => v4.port() != 0,
        SocketAddr::V6(v6) => v6.port() != 0 && !v6.ip().is_unicast_link_local(),
    }
}
