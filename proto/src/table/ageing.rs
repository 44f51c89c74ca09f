//! Signs of life, silence, and what becomes of who is silent for long.

use super::entry::Sign;
use super::{Liveness, REFRESH, Table, TableEvent};
use crate::ids::NodeId;
use crate::time::Mono;

impl Table {
    /// Forgets the peer that has been down longest; false if none is down.
    pub(super) fn make_room(&mut self, now: Mono) -> bool {
        let down = self
            .entries
            .iter()
            .filter(|(_, e)| e.liveness(now) == Liveness::Down);
        let oldest = down.min_by_key(|(_, e)| e.heard()).map(|(node, _)| *node);
        if let Some(node) = oldest {
            self.forget(node, now);
        }
        oldest.is_some()
    }

    pub(super) fn forget(&mut self, node: NodeId, now: Mono) {
        if let Some(entry) = self.entries.remove(&node) {
            self.tombstones.bury(node, entry.mark(), now);
            self.dirty = true;
            if entry.was_alive() {
                self.event(TableEvent::Forgotten(node));
            }
        }
    }

    pub(super) fn sign_of_life(&mut self, node: NodeId, sign: Sign, now: Mono) {
        let Some(entry) = self.entries.get_mut(&node) else {
            return;
        };
        let first = !entry.was_alive();
        if entry.sign_of_life(sign, now) {
            self.dirty = true;
        } else {
            self.refresh_at.get_or_insert(now + REFRESH);
        }
        let helped = entry.helps();
        if first {
            self.dirty = true;
            entry.settle(now);
            self.event(TableEvent::Joined(node));
        } else {
            self.settle(node, now);
        }
        self.notice_online(now);
        if !helped {
            // Now there is somebody to ask about the others.
            self.doubt_suspects(now);
        }
    }

    /// Brings the stored liveness of `node` up to `now` and tells what changed.
    pub(super) fn settle(&mut self, node: NodeId, now: Mono) {
        let Some(entry) = self.entries.get_mut(&node) else {
            return;
        };
        let Some(change) = entry.settle(now) else {
            return;
        };
        let told = entry.was_alive();
        let (silent, after, verdict) = (now.since(entry.heard()), entry.away(), entry.verdict());
        self.dirty = true;
        match change {
            (Liveness::Alive, _) if told => self.event(TableEvent::Back { node, after }),
            (Liveness::Suspect, Liveness::Alive) => {
                self.event(TableEvent::Suspect { node, silent });
            }
            (Liveness::Down, _) if told => self.event(TableEvent::Down {
                node,
                silent,
                verdict,
            }),
            _ => {}
        }
    }
}
