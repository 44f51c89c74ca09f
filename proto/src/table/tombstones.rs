//! Who left, so that late gossip cannot revive them.

use crate::ids::NodeId;
use crate::limits::{MAX_GOODBYES, MAX_TOMBSTONES};
use crate::time::Mono;
use crate::timeouts::TOMBSTONE;
use crate::wire::SignedAdvert;
use std::collections::BTreeMap;
use std::sync::Arc;

/// (epoch, seq) of the last advert that is buried; a goodbye buries its whole epoch.
type Mark = (u64, u64);

/// The marks of nodes that left or were forgotten.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    buried: BTreeMap<NodeId, (Mark, Mono)>,
    /// The signed goodbyes of some of them, the latest last.
    goodbyes: Vec<(NodeId, Arc<SignedAdvert>)>,
}

impl Tombstones {
    /// Buries everything of `node` up to `mark`, for [`TOMBSTONE`] from `now`. Over the limit
    /// the oldest goes: it has had the most time for its echoes to die away.
    pub fn bury(&mut self, node: NodeId, mark: Mark, now: Mono) {
        let until = now + TOMBSTONE;
        let (kept, at) = self.buried.entry(node).or_insert((mark, until));
        *kept = if now < *at { mark.max(*kept) } else { mark };
        *at = until;
        if self.buried.len() > MAX_TOMBSTONES {
            let others = self.buried.iter().filter(|(n, _)| **n != node);
            let oldest = others.min_by_key(|(_, (_, until))| *until).map(|(n, _)| *n);
            if let Some(oldest) = oldest {
                self.buried.remove(&oldest);
            }
        }
    }

    /// Keeps the goodbye of `node`, which is buried, for those who were not told.
    pub fn prove(&mut self, node: NodeId, signed: SignedAdvert) {
        self.goodbyes.retain(|(n, _)| *n != node);
        if self.goodbyes.len() >= MAX_GOODBYES {
            self.goodbyes.remove(0);
        }
        self.goodbyes.push((node, Arc::new(signed)));
    }

    /// The goodbyes that are kept.
    pub fn proofs(&self) -> Arc<[Arc<SignedAdvert>]> {
        self.goodbyes.iter().map(|(_, word)| word.clone()).collect()
    }

    /// Whether an advert of `node` with `mark` is buried at `now`.
    pub fn covers(&self, node: &NodeId, mark: Mark, now: Mono) -> bool {
        self.buried
            .get(node)
            .is_some_and(|(buried, until)| mark <= *buried && now < *until)
    }

    /// Something newer came: `node` is back.
    pub fn lift(&mut self, node: &NodeId) {
        self.buried.remove(node);
        self.goodbyes.retain(|(n, _)| n != node);
    }

    /// Drops what is over.
    pub fn expire(&mut self, now: Mono) {
        self.buried.retain(|_, (_, until)| now < *until);
        self.goodbyes.retain(|(n, _)| self.buried.contains_key(n));
    }

    /// When the next one is over.
    pub fn next(&self) -> Option<Mono> {
        self.buried.values().map(|(_, until)| *until).min()
    }

    pub fn len(&self) -> usize {
        self.buried.len()
    }
}
