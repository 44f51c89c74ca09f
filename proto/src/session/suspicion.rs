//! What silence, stalls and farewells do: a backup beside the original.

use super::attempt::{Attempt, AttemptId};
use super::machine::{NEVER, Session};
use super::{Effect, Note, Reason};
use crate::ids::NodeId;
use crate::time::Mono;

impl Session {
    pub(super) fn peer_going(&mut self, node: NodeId, now: Mono) {
        let leaving = self
            .attempts
            .iter()
            .find(|a| a.node() == node)
            .map(|a| a.id);
        if let Some(id) = leaving {
            self.leaving(id, now);
        }
    }

    /// The peer says that it leaves: make before break.
    pub(super) fn leaving(&mut self, id: AttemptId, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        if !std::mem::replace(&mut attempt.draining, true) {
            self.note_suspect(id, Reason::Draining, now);
            self.seek_backup();
        }
    }

    /// Silent or stalled: seeks a backup and keeps the original, since the first to produce
    /// goes on. An answer that must not be spliced gets none once it has begun.
    pub(super) fn suspect(&mut self, id: AttemptId, reason: Reason, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        attempt.suspect = Some(reason.clone());
        self.note_suspect(id, reason, now);
        if let [a, b] = self.attempts.as_slice()
            && a.needs_backup()
            && b.needs_backup()
        {
            // Two in trouble stand in each other's way: the longer silent one makes room.
            let silent = |x: &Attempt| if x.suspect.is_some() { x.heard } else { NEVER };
            let (worse, why) = if silent(a) <= silent(b) {
                (a.id, a.trouble())
            } else {
                (b.id, b.trouble())
            };
            return self.fail(worse, why);
        }
        self.seek_backup();
    }

    pub(super) fn seek_backup(&mut self) {
        if self.wants_backup() {
            self.rank();
        }
    }

    pub(super) fn note_suspect(&mut self, id: AttemptId, reason: Reason, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        let (node, silent) = (attempt.node(), now.since(attempt.heard));
        self.effects.push_back(Effect::Note(Note::Suspect {
            node,
            reason: reason.clone(),
            silent,
        }));
        self.last_reason = Some(reason);
    }

    pub(super) fn wake(&mut self, now: Mono) {
        let ids: Vec<AttemptId> = self.attempts.iter().map(|a| a.id).collect();
        for id in ids {
            let Some(attempt) = self.find(id) else {
                continue;
            };
            let (give_up, reason) = attempt.give_up_at();
            if now >= give_up {
                self.fail(id, reason);
                continue;
            }
            let (at, reason) = attempt.suspect_at();
            if now >= at && attempt.suspect.is_none() {
                self.suspect(id, reason, now);
            }
        }
        match self.waiting_until {
            Some(until) if self.attempts.is_empty() && now >= until => self.give_up(),
            Some(_) => self.rank(),
            None => {}
        }
    }
}
