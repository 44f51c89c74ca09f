//! What this node believes of the others.
//!
//! One [`Table`] per process takes in adverts, probe results and the passing of time, and
//! publishes an immutable [`Snapshot`]. The rules:
//!
//! - **Newest wins.** An advert replaces a node's earlier one if its (epoch, seq) is larger.
//! - **Presence comes from authenticated signs of life**: an advert that came over the node's
//!   own connection, or an answered probe. A relayed advert updates what we know *of* a node
//!   and never makes it look alive; a node known from relays alone is suspect until a probe
//!   of ours succeeds. Addresses from mDNS are hints.
//! - **Silence ages** a peer: suspect, down, forgotten (see [`crate::timeouts`]); before it is
//!   down others are asked, and if all are silent it is us (`ageing.rs`, `doubt.rs`). Down peers stay in
//!   the snapshot, so that whoever probes keeps trying them.
//! - **No ghost comes back.** Who says goodbye is remembered by its epoch, who is forgotten by
//!   its (epoch, seq), as a tombstone; only something newer lifts it.
//! - **Our own entry** is what we publish ([`Table::publish`]) and never ages. If the network
//!   brings a newer word of ours than we ever said, a twin runs with our key.
//!
//! ```text
//!   hint -> (stranger) --advert--> Suspect <--------> Alive     direct advert, probe_ok
//!                                     |  ^               |
//!                              silence|  +----silence----+
//!                                     v
//!   goodbye -> tombstone          Down --forget--> tombstone
//! ```
//!
//! Small changes (a sign of life, a round trip that moved a little) alone do not make a new
//! snapshot; they are gathered for [`REFRESH`].

mod ageing;
mod doubt;
mod entry;
mod paths;
#[cfg(test)]
mod tests;
mod tombstones;
mod types;

pub use types::{Counters, Liveness, Merged, Path, Peer, Snapshot, TableEvent, Verdict};

use crate::ids::NodeId;
use crate::limits;
use crate::time::{Mono, Wall};
use crate::timeouts::{self, ADVERT_WINDOW};
use crate::wire::{Advert, NodeState, SignedAdvert};
use entry::{Entry, Sign};
use paths::Paths;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tombstones::Tombstones;

/// How long small changes are gathered before they make a new snapshot.
pub const REFRESH: Duration = timeouts::PROBE_EVERY;

/// The peers of this node. See the module for the rules.
#[derive(Debug)]
pub struct Table {
    me: Option<NodeId>,
    entries: BTreeMap<NodeId, Entry>,
    /// Addresses of nodes that have said nothing yet, and when they were last named.
    strangers: BTreeMap<NodeId, (Mono, Paths)>,
    tombstones: Tombstones,
    events: VecDeque<TableEvent>,
    counters: Counters,
    published: Arc<Snapshot>,
    /// The published snapshot is wrong in something that matters.
    dirty: bool,
    /// When small changes are to be published, if there are any.
    refresh_at: Option<Mono>,
    /// Since when all peers are silent, if they are.
    cut_off: Option<Mono>,
}

impl Table {
    /// An empty table of the node `me`, or of a client that is no member of the gossip.
    pub fn new(me: Option<NodeId>) -> Self {
        Table {
            me,
            entries: BTreeMap::new(),
            strangers: BTreeMap::new(),
            tombstones: Tombstones::default(),
            events: VecDeque::new(),
            counters: Counters::default(),
            published: Arc::new(Snapshot {
                me,
                ..Snapshot::default()
            }),
            dirty: false,
            refresh_at: None,
            cut_off: None,
        }
    }

    /// Puts this node's own word into the table. It never ages and needs no probe.
    pub fn publish(&mut self, advert: Advert, signed: SignedAdvert, now: Mono) {
        let node = advert.node;
        let entry = self.entries.entry(node).or_insert_with(|| Entry::own(now));
        entry.replace(advert, signed);
        self.dirty = true;
    }

    /// Takes in an advert that was opened and whose certificate was verified. `direct`: it
    /// came over the node's own connection, which is a sign of life (even if it is an old one).
    /// Own words go through [`Table::publish`] instead.
    pub fn merge(
        &mut self,
        advert: Advert,
        signed: SignedAdvert,
        direct: bool,
        now: Mono,
        wall: Wall,
    ) -> Merged {
        let merged = self.judge(advert, signed, direct, now, wall);
        let c = &mut self.counters;
        *match merged {
            Merged::New => &mut c.new,
            Merged::Updated => &mut c.updated,
            Merged::Unchanged => &mut c.unchanged,
            Merged::Stale => &mut c.stale,
            Merged::Tombstoned => &mut c.tombstoned,
            Merged::OutsideWindow => &mut c.outside_window,
            Merged::Full => &mut c.full,
            Merged::Twin => &mut c.twin,
        } += 1;
        self.consult(now);
        merged
    }

    fn judge(
        &mut self,
        advert: Advert,
        signed: SignedAdvert,
        direct: bool,
        now: Mono,
        wall: Wall,
    ) -> Merged {
        let (node, mark) = (advert.node, (advert.epoch, advert.seq));
        if wall.abs_diff(Wall::from_millis(advert.wall_ms)) > ADVERT_WINDOW {
            return Merged::OutsideWindow;
        }
        if self.me == Some(node) {
            return self.own_word_returned(node, mark);
        }
        if self.tombstones.covers(&node, mark, now) {
            return Merged::Tombstoned;
        }
        let known = self.entries.get(&node).map(Entry::mark);
        if advert.state == NodeState::Left {
            // A goodbye ends its whole epoch, whatever its number.
            if known.is_some_and(|(epoch, _)| epoch > advert.epoch) {
                return Merged::Stale;
            }
            self.goodbye(node, advert.epoch, now);
            self.tombstones.prove(node, signed);
            return Merged::Updated;
        }
        let Some(known) = known else {
            return self.add(advert, signed, direct, now);
        };
        let Some(entry) = self.entries.get_mut(&node) else {
            return Merged::Stale;
        };
        let merged = match mark.cmp(&known) {
            std::cmp::Ordering::Less => Merged::Stale,
            std::cmp::Ordering::Equal => Merged::Unchanged,
            std::cmp::Ordering::Greater => {
                entry.replace(advert, signed);
                self.dirty = true;
                Merged::Updated
            }
        };
        if direct {
            self.sign_of_life(node, Sign::Advert, now);
        }
        merged
    }

    /// A candidate address (mDNS, a seed, what a peer saw): proves nothing, is worth a try.
    pub fn hint(&mut self, node: NodeId, addr: SocketAddr, now: Mono) {
        if self.me == Some(node) || !paths::is_dialable(&addr) {
            return;
        }
        match self.entries.get_mut(&node) {
            Some(entry) => self.dirty |= entry.hint(addr),
            None => {
                self.stranger(node, now).hint(addr);
            }
        }
    }

    /// A probe was answered over `addr` after `rtt`: the node lives, the path works.
    pub fn probe_ok(&mut self, node: NodeId, addr: SocketAddr, rtt: Duration, now: Mono) {
        if self.me == Some(node) {
            return;
        }
        if self.entries.contains_key(&node) {
            self.sign_of_life(node, Sign::Probe(addr, rtt), now);
        } else {
            self.stranger(node, now).ok(addr, rtt, now);
        }
        self.consult(now);
    }

    /// A probe over `addr` was not answered. If no other path is known to work, the peer is
    /// suspect at once; down it is only by silence.
    pub fn probe_failed(&mut self, node: NodeId, addr: SocketAddr, now: Mono) {
        if let Some(entry) = self.entries.get_mut(&node) {
            self.dirty |= entry.probe_failed(addr, now);
            self.settle(node, now);
            self.doubt_suspects(now);
        } else if let Some((_, paths)) = self.strangers.get_mut(&node) {
            paths.failed(addr, now);
        }
    }

    /// `node` said goodbye over its own connection: everything of `epoch` and before is over.
    pub fn goodbye(&mut self, node: NodeId, epoch: u64, now: Mono) {
        if self.me == Some(node) {
            return;
        }
        if self.entries.get(&node).is_some_and(|e| e.mark().0 > epoch) {
            return; // it has started again since
        }
        self.tombstones.bury(node, (epoch, u64::MAX), now);
        self.strangers.remove(&node);
        if let Some(entry) = self.entries.remove(&node) {
            self.dirty = true;
            if entry.was_alive() {
                self.event(TableEvent::Left(node));
            }
            self.notice_cut_off(now);
        }
    }

    /// Lets time pass: ages peers, forgets, publishes small changes. Call it at
    /// [`Table::next_wakeup`]; calling it more often does no harm.
    pub fn tick(&mut self, now: Mono) {
        self.notice_cut_off(now);
        let nodes: Vec<NodeId> = self
            .entries
            .iter()
            .filter(|(_, e)| e.next_change() <= now)
            .map(|(n, _)| *n)
            .collect();
        for node in nodes {
            self.settle(node, now);
            if self.entries.get(&node).is_some_and(|e| e.is_forgotten(now)) {
                self.forget(node, now);
            }
        }
        self.doubt_suspects(now);
        self.tombstones.expire(now);
        self.strangers
            .retain(|_, (named, _)| now.since(*named) < timeouts::TABLE_FORGET);
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            self.dirty = true;
        }
    }

    /// When [`Table::tick`] has something to do; `None` while nothing ages.
    pub fn next_wakeup(&self) -> Option<Mono> {
        let ageing = self.entries.values().map(Entry::next_change).min();
        let named = self.strangers.values().map(|(named, _)| *named).min();
        let strangers = named.map(|at| at + timeouts::TABLE_FORGET);
        [
            ageing.filter(|at| *at != entry::NEVER),
            strangers,
            self.tombstones.next(),
            self.refresh_at,
            self.cut_off_at(),
            self.next_doubt(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next event, oldest first. At most [`limits::MAX_TABLE_EVENTS`] wait; then the
    /// oldest go.
    pub fn poll(&mut self) -> Option<TableEvent> {
        self.events.pop_front()
    }

    /// A new snapshot, if anything that matters changed since the last call.
    pub fn changed(&mut self) -> Option<Arc<Snapshot>> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.refresh_at = None;
        let peers = self
            .entries
            .values_mut()
            .filter_map(Entry::publish)
            .collect();
        let version = self.published.version + 1;
        self.published = Arc::new(Snapshot {
            version,
            me: self.me,
            peers,
            left: self.tombstones.proofs(),
        });
        Some(self.published.clone())
    }

    /// The snapshot that [`Table::changed`] gave last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.clone()
    }

    /// How many adverts came to what end.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Nodes of which only addresses are known, each with them, best first: worth dialing.
    pub fn strangers(&self) -> impl Iterator<Item = (NodeId, Vec<SocketAddr>)> {
        self.strangers
            .iter()
            .map(|(node, (_, paths))| (*node, paths.addrs()))
    }

    /// Tombstones held, for tests and `doctor`.
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    fn own_word_returned(&mut self, node: NodeId, mark: (u64, u64)) -> Merged {
        match self.entries.get(&node).map(|own| mark.cmp(&own.mark())) {
            Some(std::cmp::Ordering::Less) => Merged::Stale,
            Some(std::cmp::Ordering::Equal) => Merged::Unchanged,
            // Before the first `publish` it may be an echo of our last life.
            None => Merged::Stale,
            Some(std::cmp::Ordering::Greater) => {
                self.event(TableEvent::Twin(node));
                Merged::Twin
            }
        }
    }

    fn add(&mut self, advert: Advert, signed: SignedAdvert, direct: bool, now: Mono) -> Merged {
        let node = advert.node;
        if self.entries.len() >= limits::MAX_PEERS && !self.make_room(now) {
            return Merged::Full;
        }
        self.tombstones.lift(&node);
        let paths = self
            .strangers
            .remove(&node)
            .map(|(_, paths)| paths)
            .unwrap_or_default();
        let probed = paths
            .last_ok()
            .filter(|at| now.since(*at) < timeouts::TABLE_SUSPECT);
        let proven = if direct { Some(now) } else { probed };
        let mut entry = Entry::other(paths, now);
        entry.replace(advert, signed);
        self.entries.insert(node, entry);
        self.dirty = true;
        if let Some(at) = proven {
            self.sign_of_life(node, Sign::Advert, at);
        }
        Merged::New
    }

    fn stranger(&mut self, node: NodeId, now: Mono) -> &mut Paths {
        if self.strangers.len() >= limits::MAX_STRANGERS && !self.strangers.contains_key(&node) {
            // Hints are not authenticated: whoever floods us displaces the oldest only.
            let oldest = self
                .strangers
                .iter()
                .min_by_key(|(_, (at, _))| *at)
                .map(|(n, _)| *n);
            if let Some(oldest) = oldest {
                self.strangers.remove(&oldest);
            }
        }
        let (named, paths) = self.strangers.entry(node).or_default();
        *named = now;
        paths
    }

    fn event(&mut self, event: TableEvent) {
        if self.events.len() >= limits::MAX_TABLE_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}
