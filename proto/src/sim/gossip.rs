//! Many nodes that gossip adverts over lossy links, on a virtual clock.
//!
//! What is real: each node runs a [`Table`], and forwards what its table took as new. What is
//! modelled: gossipsub as the swarm configures it. Every node has a few dozen links; of these
//! about [`Config::degree`] form its mesh, along which a message is pushed at once; to some of
//! the others it tells, at each heartbeat, which messages it has (IHAVE), and who lacks one
//! asks for it (IWANT). Links are QUIC streams: a lost datagram is sent again after a probe
//! time-out that doubles, so loss shows as delay. A message is lost altogether only if a
//! queue overflows ([`Config::dropped`]) or its receiver is dead ([`Config::dead`]); lazy
//! gossip repairs the former.
//!
//! Flood publishing, which gossipsub does for its own messages, is left out: the figures are
//! those of the slower way. Everything follows from the seed.

use crate::table::{Merged, Snapshot, Table};
use crate::testing::{WALL_MS, advert_of, node, unsigned};
use crate::time::{Mono, Wall};
use crate::wire::Advert;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The least that a QUIC sender waits before it takes a datagram for lost: 3 round trips on a
/// quiet path would be less than the receiver's own delay before it acknowledges (25 ms).
const MIN_PTO: Duration = Duration::from_millis(30);
/// A resend is tried this often before the link is broken in reality.
const MAX_RESENDS: u32 = 10;

/// The network to simulate.
#[derive(Clone, Debug)]
pub struct Config {
    /// Nodes.
    pub nodes: usize,
    /// Connections that each node opens (it has about twice as many).
    pub links: usize,
    /// Mesh peers that each node grafts at least (gossipsub's `mesh_n_low`).
    pub degree: usize,
    /// Peers outside the mesh that hear of messages at a heartbeat (`gossip_lazy`).
    pub lazy: usize,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// One-way delay of a link, drawn once for each.
    pub delay: Range<Duration>,
    /// Extra delay of a datagram, drawn for each: a quarter of the link's delay at most, plus
    /// this.
    pub jitter: Duration,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of messages that never arrive.
    pub dropped: f64,
    /// Share of nodes that died without a word, although others still push to them.
    pub dead: f64,
}

impl Default for Config {
    /// A thousand nodes over Wi-Fi and tunnels.
    fn default() -> Self {
        Config {
            nodes: 1000,
            links: 8,
            degree: 5,
            lazy: 6,
            heartbeat: Duration::from_secs(2),
            delay: Duration::from_millis(1)..Duration::from_millis(40),
            jitter: Duration::from_millis(10),
            loss: 0.05,
            dropped: 0.0,
            dead: 0.0,
        }
    }
}

/// A number of a message, of all that were published.
type Message = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The message itself, from a peer.
    Push(Message),
    /// The peer has the message.
    Have(Message),
    /// The peer wants it.
    Want(Message),
    /// The node's own timer.
    Heartbeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Mono,
    /// Keeps the order of equal times, so that a run follows from its seed alone.
    number: u64,
    to: usize,
    from: usize,
    what: What,
}

struct Node {
    table: Table,
    mesh: Vec<usize>,
    others: Vec<usize>,
    seen: HashSet<Message>,
    /// When each message was first here, for the caller's figures.
    first: Vec<(Message, Mono)>,
    dead: bool,
}

/// A network of nodes.
pub struct Gossip {
    config: Config,
    rng: ChaCha8Rng,
    nodes: Vec<Node>,
    /// One-way delay by (lower, higher) node.
    delays: std::collections::HashMap<(usize, usize), Duration>,
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
    now: Mono,
    messages: Vec<Advert>,
    sent: u64,
}

impl Gossip {
    /// A network without messages, at time zero.
    pub fn new(config: Config, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let nodes = (0..config.nodes).map(|n| Node {
            table: Table::new(Some(id(n))),
            mesh: Vec::new(),
            others: Vec::new(),
            seen: HashSet::new(),
            first: Vec::new(),
            dead: false,
        });
        let mut net = Gossip {
            nodes: nodes.collect(),
            delays: Default::default(),
            events: BinaryHeap::new(),
            number: 0,
            now: Mono::ZERO,
            messages: Vec::new(),
            sent: 0,
            rng: ChaCha8Rng::seed_from_u64(rng.random()),
            config,
        };
        net.connect();
        for n in 0..net.nodes.len() {
            // The first node publishes in the tests; it lives.
            net.nodes[n].dead = n > 0 && net.rng.random_bool(net.config.dead);
            let phase = net.config.heartbeat.mul_f64(net.rng.random());
            net.schedule(phase, n, n, What::Heartbeat);
        }
        net
    }

    /// The virtual time.
    pub fn now(&self) -> Mono {
        self.now
    }

    /// Messages handed to links so far, pushes and control alike.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// An advert of node `n` with the given number, ready for [`Gossip::publish`].
    pub fn advert(&self, n: usize, epoch: u64, seq: u64) -> Advert {
        advert_of(id(n), epoch, seq)
    }

    /// Node `n` publishes `advert` of its own now; returns the message's number.
    pub fn publish(&mut self, n: usize, advert: Advert) -> Message {
        let message = self.messages.len();
        self.messages.push(advert.clone());
        let now = self.now;
        let node = &mut self.nodes[n];
        node.table.publish(advert, unsigned(), now);
        node.seen.insert(message);
        node.first.push((message, now));
        self.push(n, n, message);
        message
    }

    /// Lets `span` pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(Reverse(event)) = self.events.peek().copied().filter(|e| e.0.at <= end) {
            self.events.pop();
            self.now = event.at;
            if !self.nodes[event.to].dead {
                self.handle(event);
            }
        }
        self.now = end;
    }

    /// When `message` reached each living node first; `None` for those that it did not reach.
    pub fn arrivals(&self, message: Message) -> Vec<Option<Mono>> {
        let living = self.nodes.iter().filter(|n| !n.dead);
        living
            .map(|n| {
                n.first
                    .iter()
                    .find(|(m, _)| *m == message)
                    .map(|(_, at)| *at)
            })
            .collect()
    }

    /// What node `n` believes now.
    pub fn snapshot(&mut self, n: usize) -> Arc<Snapshot> {
        let table = &mut self.nodes[n].table;
        table.tick(self.now);
        table.changed();
        table.snapshot()
    }

    /// The nodes that live.
    pub fn living(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|n| !self.nodes[*n].dead)
            .collect()
    }

    /// Links at random, a ring among them so that no part is cut off; then grafts the mesh:
    /// each node takes links until it has its degree.
    fn connect(&mut self) {
        let count = self.nodes.len();
        for n in 0..count {
            self.link(n, (n + 1) % count);
            for _ in 1..self.config.links {
                let other = self.rng.random_range(0..count);
                self.link(n, other);
            }
        }
        for n in 0..count {
            while self.nodes[n].mesh.len() < self.config.degree && !self.nodes[n].others.is_empty()
            {
                let at = self.rng.random_range(0..self.nodes[n].others.len());
                let other = self.nodes[n].others.swap_remove(at);
                self.nodes[n].mesh.push(other);
                self.nodes[other].others.retain(|o| *o != n);
                self.nodes[other].mesh.push(n);
            }
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        if a == b || self.delays.contains_key(&pair) {
            return;
        }
        let delay = self.rng.random_range(self.config.delay.clone());
        self.delays.insert(pair, delay);
        self.nodes[a].others.push(b);
        self.nodes[b].others.push(a);
    }

    fn handle(&mut self, event: Event) {
        let Event { to, from, what, .. } = event;
        match what {
            What::Push(message) => {
                if self.nodes[to].seen.insert(message) && self.take(to, message) {
                    self.push(to, from, message);
                }
            }
            What::Have(message) => {
                if !self.nodes[to].seen.contains(&message) {
                    self.send(to, from, What::Want(message));
                }
            }
            What::Want(message) => self.send(to, from, What::Push(message)),
            What::Heartbeat => {
                self.heartbeat(to);
                self.schedule(self.config.heartbeat, to, to, What::Heartbeat);
            }
        }
    }

    /// Gives `message` to the node's table; whether to pass it on.
    fn take(&mut self, n: usize, message: Message) -> bool {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.first.push((message, now));
        let advert = self.messages[message].clone();
        let wall = Wall::from_millis(WALL_MS + now.as_micros() / 1000);
        let merged = node.table.merge(advert, unsigned(), false, now, wall);
        matches!(merged, Merged::New | Merged::Updated)
    }

    fn push(&mut self, n: usize, except: usize, message: Message) {
        for peer in self.nodes[n].mesh.clone() {
            if peer != except {
                self.send(n, peer, What::Push(message));
            }
        }
    }

    /// Tells some peers outside the mesh what came within the last three heartbeats.
    fn heartbeat(&mut self, n: usize) {
        let since = self.now - self.config.heartbeat * 3;
        let recent: Vec<Message> = {
            let first = &self.nodes[n].first;
            first
                .iter()
                .rev()
                .take_while(|(_, at)| *at >= since)
                .map(|(m, _)| *m)
                .collect()
        };
        if recent.is_empty() {
            return;
        }
        for _ in 0..self.config.lazy.min(self.nodes[n].others.len()) {
            let at = self.rng.random_range(0..self.nodes[n].others.len());
            let peer = self.nodes[n].others[at];
            for message in &recent {
                self.send(n, peer, What::Have(*message));
            }
        }
    }

    /// Sends over a link: its delay, jitter, and a probe time-out for each loss.
    fn send(&mut self, from: usize, to: usize, what: What) {
        self.sent += 1;
        if self.config.dropped > 0.0 && self.rng.random_bool(self.config.dropped) {
            return;
        }
        let link = self
            .delays
            .get(&(from.min(to), from.max(to)))
            .copied()
            .unwrap_or_default();
        let mut pto = (link * 6).max(MIN_PTO);
        let mut after = link + (link / 4 + self.config.jitter).mul_f64(self.rng.random());
        for _ in 0..MAX_RESENDS {
            if !self.rng.random_bool(self.config.loss) {
                break;
            }
            after += pto;
            pto *= 2;
        }
        self.schedule(after, to, from, what);
    }

    fn schedule(&mut self, after: Duration, to: usize, from: usize, what: What) {
        self.number += 1;
        let event = Event {
            at: self.now + after,
            number: self.number,
            to,
            from,
            what,
        };
        self.events.push(Reverse(event));
    }
}

fn id(n: usize) -> crate::NodeId {
    node(u32::try_from(n).unwrap_or(u32::MAX))
}
