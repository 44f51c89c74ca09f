//! What silence, stalls and farewells do: a backup beside the original.

use super::attempt::{Attempt, AttemptId, Stage};
use super::machine::Session;
use super::tried::NEVER;
use super::{Effect, Note, Reason};
use crate::ids::NodeId;
use crate::time::Mono;
use crate::timeouts::{HEDGE_RETRY, SILENCE_SURE};

impl Session {
    pub(super) fn peer_going(&mut self, node: NodeId, now: Mono) {
        let there = self.attempts.iter().filter(|a| a.node() == node);
        for id in there.map(|a| a.id).collect::<Vec<_>>() {
            self.leaving(id, now);
        }
    }

    /// The peer table cannot reach the peer. A stream that lives knows better, and its own
    /// silence decides; one that has given no sign of life yet needs a backup now. Where nobody
    /// else may go on, silence and the table together are the end: the caller can ask again.
    pub(super) fn peer_down(&mut self, node: NodeId, now: Mono) {
        if let Some((id, reason)) = self.gone(node) {
            return self.fail(id, reason);
        }
        let doubtful = |a: &&Attempt| a.node() == node && !a.alive && a.suspect.is_none();
        if let Some(attempt) = self.attempts.iter().find(doubtful) {
            let reason = match attempt.stage {
                Stage::Dialing => Reason::DialSlow,
                _ => Reason::Silence,
            };
            self.suspect(attempt.id, reason, now);
        }
    }

    /// The producer at a peer that is down, if waiting for it is all that is left and in vain.
    /// Over a fresh connection that has opened, the peer answers after all.
    fn gone(&self, node: NodeId) -> Option<(AttemptId, Reason)> {
        let there = self.attempts.iter().find(|a| a.node() == node)?;
        let reason = match there.stage {
            Stage::Dialing if there.reattaches() => Reason::Unreachable,
            _ if there.suspect == Some(Reason::Silence) => Reason::Silence,
            _ => return None,
        };
        let in_vain = !self.may_go_on() && !self.is_attaching(there.id);
        in_vain.then_some((there.id, reason))
    }

    /// The peer says that it leaves: make before break.
    pub(super) fn leaving(&mut self, id: AttemptId, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        if !std::mem::replace(&mut attempt.draining, true) {
            self.note_suspect(id, Reason::Draining, now);
            // Two engines of the machine that leaves: neither is the other's backup.
            if let [a, b] = self.attempts.as_slice()
                && (a.node(), a.draining) == (b.node(), b.draining)
            {
                return self.make_room();
            }
            self.seek_backup();
        }
    }

    /// Silent or stalled: seeks a backup and keeps the original, since the first to produce
    /// goes on. An answer that must not be spliced gets none once it has begun.
    pub(super) fn suspect(&mut self, id: AttemptId, reason: Reason, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        attempt.suspect = Some(reason.clone());
        self.note_suspect(id, reason, now);
        if self.attempts.len() > 1 && self.attempts.iter().all(Attempt::needs_backup) {
            return self.make_room();
        }
        self.seek_backup();
        self.try_fresh_path(now);
    }

    /// Two in trouble stand in each other's way: the longer silent one makes room.
    fn make_room(&mut self) {
        let silent = |x: &&Attempt| if x.suspect.is_some() { x.heard } else { NEVER };
        if let Some(worse) = self.attempts.iter().min_by_key(silent) {
            let (id, why) = (worse.id, worse.trouble());
            self.fail(id, why);
        }
    }

    /// Seeks a backup if one is wanted: at once where it is no hedge or is paid for, else after
    /// the owner of the budget has said yes. No hedge uses up what is kept for failures.
    pub(super) fn seek_backup(&mut self) {
        if !self.wants_backup() {
            return;
        }
        let spare = self.can_spare_one();
        if !self.would_hedge() || (self.granted && spare) {
            self.asked = None;
            return self.rank();
        }
        self.asked = Some(self.now);
        if spare {
            self.effects.push_back(Effect::Hedge);
        } else {
            self.return_hedge();
        }
    }

    /// A backup now would work beside an engine that may only look hung. One beside a peer that
    /// leaves, is dialed, is reattached to or has been silent for [`SILENCE_SURE`] would not.
    pub(super) fn would_hedge(&self) -> bool {
        self.attempts.iter().any(|a| {
            let looks_hung = match a.suspect {
                Some(Reason::Silence) => self.now.since(a.heard) < SILENCE_SURE,
                Some(Reason::Stall) => true,
                _ => false,
            };
            looks_hung && !a.reattaches() && !a.draining
        })
    }

    /// When to ask for a hedge again, or to go without, if one was refused.
    pub(super) fn next_hedge(&self) -> Option<Mono> {
        let refused = self.asked.filter(|_| self.wants_backup() && !self.granted);
        refused.map(|asked| asked + HEDGE_RETRY)
    }

    /// The hedge that was asked for is paid for.
    pub(super) fn may_hedge(&mut self) {
        (self.granted, self.asked) = (true, None);
        if self.wants_backup() {
            self.rank();
        } else {
            self.return_hedge();
        }
    }

    /// Gives back what was paid for and not needed after all.
    pub(super) fn return_hedge(&mut self) {
        if std::mem::take(&mut self.granted) {
            self.effects.push_back(Effect::Note(Note::HedgeRefund));
        }
    }

    /// The hedge did the work that its original did not: it cost nothing.
    pub(super) fn hedge_took_over(&mut self, id: AttemptId) {
        if self.find(id).is_some_and(|a| std::mem::take(&mut a.hedge)) {
            self.effects.push_back(Effect::Note(Note::HedgeRefund));
        }
    }

    /// `attempt` is over and did not take over: if it was a hedge, it was in vain.
    pub(super) fn in_vain(&mut self, attempt: &Attempt) {
        if attempt.hedge {
            let node = attempt.node();
            let note = Note::HedgeInVain { node };
            self.effects.push_back(Effect::Note(note));
        }
    }

    /// The original failed: the hedge beside it works alone, and cost nothing.
    pub(super) fn hedge_was_right(&mut self) {
        if let Some(hedge) = self.attempts.iter().find(|a| a.hedge).map(|a| a.id) {
            self.hedge_took_over(hedge);
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
        self.wake_fresh_path(now);
        self.release(now);
        self.hand_over(now);
        if self.next_hedge().is_some_and(|at| now >= at) {
            self.seek_backup();
        }
        match self.waiting_until {
            Some(until) if self.attempts.is_empty() && now >= until => self.give_up(),
            Some(_) => self.rank(),
            None if self.is_waiting() && self.next_retry().is_some_and(|at| now >= at) => {
                self.rank();
            }
            None => {}
        }
    }
}
