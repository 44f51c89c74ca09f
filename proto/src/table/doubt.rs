//! Who is gone, who is only out of reach, and whether it is we who are cut off.
//!
//! Silence alone does not tell a dead peer from a bad minute of Wi-Fi, so a second opinion is
//! asked for before a peer goes down:
//!
//! - A peer that falls silent is **doubted**: [`TableEvent::Doubt`] asks the I/O shell to let
//!   others ([`Table::helpers`]) probe it, again every [`DOUBT_EVERY`] while nothing is decided.
//!   The answers come back through [`Table::indirect`]; none is no answer, and proves nothing.
//! - **Confirmed** (a helper could not reach it either), it is down after [`TABLE_DOWN`] of
//!   silence. **Vouched for**, it stays a suspect: ranked last, since we cannot reach it, but not
//!   evicted; the time to its end starts again with each vouch. With **nobody to ask**, or no
//!   answer, it is down after [`TABLE_DOWN_ALONE`].
//! - When all peers (two at least) fall silent together, **we are cut off**
//!   ([`TableEvent::CutOff`]): they stay suspects, since it says nothing of them. The first
//!   sign of life ends it ([`TableEvent::Online`]), and the others' silence counts from there.
//!   After [`TABLE_CUT_OFF`] they age as usual, so that callers learn soon that nobody is there.
//! - When **this machine woke** from sleep ([`Table::woke`]) nothing is known of those who were
//!   there before: they are suspects until they speak, and their silence counts from the wake.
//!
//! [`DOUBT_EVERY`]: crate::timeouts::DOUBT_EVERY
//! [`TABLE_DOWN`]: crate::timeouts::TABLE_DOWN
//! [`TABLE_DOWN_ALONE`]: crate::timeouts::TABLE_DOWN_ALONE

use super::{Table, TableEvent};
use crate::ids::NodeId;
use crate::limits::MAX_HELPERS;
use crate::time::Mono;
use crate::timeouts::{TABLE_CUT_OFF, TABLE_SUSPECT};
use std::time::Duration;

impl Table {
    /// What the helper `by` found out about `node`, which was doubted: whether its probe was
    /// answered. Returns whether that was of use; only a suspect's fate depends on it.
    pub fn indirect(&mut self, node: NodeId, by: NodeId, alive: bool, now: Mono) -> bool {
        self.settle(node, now);
        let Some(entry) = self.entries.get_mut(&node) else {
            return false;
        };
        let vouched = entry.is_vouched();
        let used = entry.indirect(by, alive, now);
        if entry.is_vouched() && !vouched {
            self.event(TableEvent::Vouched { node, by });
        }
        self.settle(node, now);
        self.doubt_suspects(now);
        used
    }

    /// Another finds that `node` fell silent: a suspect until its next sign of life, unless it
    /// gave one within [`crate::timeouts::PROBE_EVERY`]. No more than that: what holds for another's paths need
    /// not hold for ours, and only our own silence makes it down.
    pub fn hint_silent(&mut self, node: NodeId, now: Mono) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.hint_silent(now);
            self.settle(node, now);
            self.doubt_suspects(now);
        }
    }

    /// The peers to ask about `node`: those that are alive, nearest first, at most
    /// [`MAX_HELPERS`].
    pub fn helpers(&self, node: NodeId) -> Vec<NodeId> {
        let alive = self.entries.iter().filter(|(n, _)| **n != node);
        let mut alive: Vec<(Duration, NodeId)> = alive
            .filter(|(_, e)| e.helps())
            .map(|(n, e)| (e.rtt().unwrap_or(Duration::MAX), *n))
            .collect();
        alive.sort();
        alive.truncate(MAX_HELPERS);
        alive.into_iter().map(|(_, n)| n).collect()
    }

    /// Whether all peers fell silent together, so that it must be us.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.is_some()
    }

    /// This machine woke from sleep at `at`: who has not been heard since is a suspect until its
    /// next sign of life, and nobody is evicted because of the sleep.
    pub fn woke(&mut self, at: Mono, now: Mono) {
        // Whether we are cut off, too, has to show anew.
        self.cut_off = None;
        let mut unsure = Vec::new();
        for (node, entry) in &mut self.entries {
            if entry.is_awake() && entry.heard() < at {
                entry.woke(at);
                unsure.push(*node);
            }
        }
        for node in unsure {
            self.settle(node, now);
            // Only now: a new suspect would be asked about at once.
            if let Some(entry) = self.entries.get_mut(&node) {
                entry.spare_from(at);
            }
        }
        self.consult(now);
    }

    /// When it shows that we are cut off, if nobody speaks before.
    pub(super) fn cut_off_at(&self) -> Option<Mono> {
        let awake = self.entries.values().filter(|e| e.is_awake());
        let (count, latest) = awake.fold((0, Mono::ZERO), |(count, latest), e| {
            (count + 1, latest.max(e.silent_since()))
        });
        (count >= 2 && !self.is_cut_off()).then(|| latest + TABLE_SUSPECT)
    }

    /// Notices that everybody is silent.
    pub(super) fn notice_cut_off(&mut self, now: Mono) {
        if self.cut_off_at().is_some_and(|at| now >= at) {
            self.cut_off = Some(now);
            let mut peers = 0;
            for entry in self.entries.values_mut().filter(|e| e.is_awake()) {
                entry.spare_until(now + TABLE_CUT_OFF);
                peers += 1;
            }
            self.event(TableEvent::CutOff { peers });
        }
    }

    /// Somebody spoke: we are not, or no longer, cut off.
    pub(super) fn notice_online(&mut self, now: Mono) {
        if let Some(since) = self.cut_off.take() {
            for entry in self.entries.values_mut().filter(|e| e.is_awake()) {
                entry.spare_from(now);
            }
            let after = now.since(since);
            self.event(TableEvent::Online { after });
        }
    }

    /// Who came may be the helper that a suspect waited for, or, heard of long ago, the last of
    /// those who are silent: both are due at once.
    pub(super) fn consult(&mut self, now: Mono) {
        self.notice_cut_off(now);
        self.doubt_suspects(now);
    }

    /// When the next suspect is to be asked about.
    pub(super) fn next_doubt(&self) -> Option<Mono> {
        let askable = !self.is_cut_off() && self.entries.values().any(|e| e.helps());
        let doubts = self.entries.values().filter_map(|e| e.doubt_at());
        doubts.min().filter(|_| askable)
    }

    /// Asks about those suspects whose time has come.
    pub(super) fn doubt_suspects(&mut self, now: Mono) {
        if self.next_doubt().is_none_or(|at| now < at) {
            return;
        }
        let mut doubted = Vec::new();
        for (node, entry) in &mut self.entries {
            if entry.doubt_at().is_some_and(|at| now >= at) {
                entry.doubted(now);
                doubted.push(*node);
            }
        }
        for node in doubted {
            self.event(TableEvent::Doubt(node));
        }
    }
}
