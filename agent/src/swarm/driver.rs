//! The swarm's task: makes connections fit the member list, sends the newest advert,
//! judges what comes in.
//!
//! A member's [`Link`] is connected, or has a time at which it is dialed next. The lower node
//! id dials at once and again after [`REDIAL_MIN`], doubling to [`REDIAL_MAX`]; the higher
//! one waits [`STEP_IN`] for the other to come.
//!
//! An advert is taken in at once and passed on [`PASS_ON_AFTER`] later. By then the others
//! have said that they have it (gossipsub's IDONTWANT), and in a home, where everybody got it
//! from its author, nothing is passed on at all: that halves the traffic of an idle mesh.

use super::behaviour::{Behaviour, BehaviourEvent, multiaddr, topic};
use super::{Judge, Verdict, neighbours, peer_id};
use futures_util::StreamExt;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, MessageId, PublishError};
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
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

/// How long a message waits before it is passed on: the round trip of a slow Wi-Fi.
const PASS_ON_AFTER: Duration = Duration::from_millis(25);
/// Messages that may wait; beyond it the oldest is passed on early.
const MAX_WAITING: usize = 256;

/// A valid message on its way to others.
struct Waiting {
    due: Instant,
    id: MessageId,
    from: PeerId,
}

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
    /// Valid messages, oldest first.
    waiting: VecDeque<Waiting>,
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
        let (links, waiting, unsent) = (HashMap::new(), VecDeque::new(), None);
        Driver {
            swarm,
            me,
            topic: topic(mesh),
            judge,
            inbox,
            links,
            waiting,
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
            let wake_at = self.next_wake();
            let wake = async {
                match wake_at {
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
                () = wake => {
                    let now = Instant::now();
                    self.dial_due(now);
                    self.pass_on(now);
                }
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

    fn next_wake(&self) -> Option<Instant> {
        let dials = self.links.values().filter(|l| l.needs_dial());
        let pass_on = self.waiting.front().map(|w| w.due);
        dials.map(|l| l.dial_at).chain(pass_on).min()
    }

    fn pass_on(&mut self, now: Instant) {
        while let Some(waiting) = self.waiting.front() {
            if waiting.due > now && self.waiting.len() <= MAX_WAITING {
                return;
            }
            if let Some(Waiting { id, from, .. }) = self.waiting.pop_front() {
                self.report(&id, &from, MessageAcceptance::Accept);
            }
        }
    }

    fn report(&mut self, id: &MessageId, from: &PeerId, acceptance: MessageAcceptance) {
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, from, acceptance);
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
            })) => match self.take(&message.data) {
                MessageAcceptance::Accept => {
                    let due = Instant::now() + PASS_ON_AFTER;
                    let (id, from) = (message_id, propagation_source);
                    self.waiting.push_back(Waiting { due, id, from });
                    self.pass_on(Instant::now());
                }
                refusal => self.report(&message_id, &propagation_source, refusal),
            },
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed {
                ..
            })) => {
                if let Some(advert) = self.unsent.take() {
                    self.publish(advert);
                }
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                let dialed = endpoint.is_dialer();
                debug!(peer = %peer_id, dialed, "gossip link up");
                let Some(link) = self.links.get_mut(&peer_id) else {
                    return;
                };
                link.connected = true;
                link.backoff = REDIAL_MIN;
                // A second connection only costs keep-alives. One side decides, so that the
                // two never close one each.
                if link.ours && num_established.get() > 1 {
                    self.swarm.close_connection(connection_id);
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
