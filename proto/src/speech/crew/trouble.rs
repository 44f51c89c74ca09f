//! What failure, silence, stalls and farewells do.

use super::{Act, Crew, Loss, Member};
use crate::ids::NodeId;
use crate::session::attempt::{Attempt, Stage};
use crate::session::tried::NEVER;
use crate::session::{AttemptId, Closed, Note, Reason};
use crate::speech::Failure;
use crate::time::Mono;
use crate::timeouts::{HEDGE_RETRY, SILENCE_SURE};
use crate::wire::WireError;

impl<W, E: From<Act>> Crew<W, E> {
    // ----- failure ----------------------------------------------------------------------

    pub(in crate::speech) fn closed(&mut self, id: AttemptId, closed: Closed) {
        match closed.reason() {
            Ok(reason) => self.fail(id, reason),
            // The path or the connection was refused, not the request: others may take it.
            Err(error) => self.refused_here(id, error),
        }
    }

    /// The engine's answer is an error. One that every engine would give ends the work, unless
    /// something was delivered, or another attempt shows that this one asks too much.
    pub(in crate::speech) fn refused(&mut self, id: AttemptId, error: WireError) {
        let alone = self.members.iter().all(|m| m.base.id == id);
        if !error.code.elsewhere() && alone && !self.begun {
            self.over = Some(Failure::Refused(error));
            return;
        }
        self.refused_here(id, error);
    }

    /// It refused, and others may not.
    fn refused_here(&mut self, id: AttemptId, error: WireError) {
        let (now, begun) = (self.now, self.begun);
        let Some(m) = self.find(id) else { return };
        let engine = (m.base.node(), m.base.candidate.engine);
        self.tried.refused(engine, &error, begun, false, now);
        let reason = Reason::Refused(error.code);
        self.last_refusal = Some(error);
        self.fail(id, reason);
    }

    /// It is not what is wanted, through no fault of its own, and is not asked again.
    pub(in crate::speech) fn dismiss(&mut self, id: AttemptId, error: WireError) {
        if let Some(m) = self.find(id) {
            let engine = (m.base.node(), m.base.candidate.engine);
            self.tried.rule_out(engine);
            self.fail(id, Reason::Refused(error.code));
        }
    }

    /// It is over. The other goes on, or the next is sought.
    pub(in crate::speech) fn fail(&mut self, id: AttemptId, reason: Reason) {
        let Some(at) = self.members.iter().position(|m| m.base.id == id) else {
            return;
        };
        self.learn(id);
        let failed = self.members.remove(at).base;
        let (node, engine) = (failed.node(), failed.candidate.engine);
        if !matches!(&reason, Reason::Refused(code) if !code.is_failure()) {
            self.tried.failed((node, engine), &reason, self.now);
        }
        self.effects.push_back(Act::Reset(id).into());
        if !failed.hedge
            && let Some(hedge) = self.members.iter().find(|m| m.base.hedge)
        {
            // It works alone now, and cost nothing.
            self.hedge_took_over(hedge.base.id);
        }
        if self.current == Some(id) {
            self.current = None;
            let reason = reason.clone();
            self.lost.get_or_insert(Loss { from: node, reason });
        }
        self.note(Note::AttemptFailed {
            node,
            engine,
            reason: reason.clone(),
        });
        self.last_reason = Some(reason);
        if !self.members.is_empty() {
            // A suspect that lost its backup gets another, in place of the one paid for.
            self.granted |= failed.hedge;
            return self.seek_backup();
        }
        self.in_vain(&failed);
        self.rank();
    }

    /// Ends with the failure that tells the caller most.
    pub(in crate::speech) fn give_up(&mut self) {
        let reason = self.last_reason.clone().unwrap_or(Reason::Unreachable);
        self.over = Some(if self.begun {
            Failure::Interrupted { reason }
        } else if let Some(retry_after) = self.tried.busy {
            Failure::Busy { retry_after }
        } else if let Some(refusal) = self.last_refusal.take() {
            Failure::Refused(refusal)
        } else {
            Failure::NoPeer
        });
    }

    // ----- suspicion --------------------------------------------------------------------

    pub(in crate::speech) fn peer_going(&mut self, node: NodeId) {
        let there = self.members.iter().filter(|m| m.base.node() == node);
        for id in there.map(|m| m.base.id).collect::<Vec<_>>() {
            self.leaving(id);
        }
    }

    /// The peer table cannot reach the peer. A stream that lives knows better, and its own
    /// silence decides; one that has given no sign of life yet needs a backup now.
    pub(in crate::speech) fn peer_down(&mut self, node: NodeId) {
        let doubtful =
            |m: &&Member<W>| m.base.node() == node && !m.base.alive && m.base.suspect.is_none();
        if let Some(Member { base, .. }) = self.members.iter().find(doubtful) {
            let reason = match base.stage {
                Stage::Dialing => Reason::DialSlow,
                _ => Reason::Silence,
            };
            self.suspect(base.id, reason);
        }
    }

    /// It says that it leaves: make before break.
    pub(in crate::speech) fn leaving(&mut self, id: AttemptId) {
        let Some(m) = self.find(id) else { return };
        if !std::mem::replace(&mut m.base.draining, true) {
            self.note_suspect(id, Reason::Draining);
            // Two engines of the machine that leaves: neither is the other's backup.
            if let [a, b] = self.members.as_slice()
                && (a.base.node(), a.base.draining) == (b.base.node(), b.base.draining)
            {
                return self.make_room();
            }
            self.seek_backup();
        }
    }

    pub(super) fn suspect(&mut self, id: AttemptId, reason: Reason) {
        let Some(m) = self.find(id) else { return };
        m.base.suspect = Some(reason.clone());
        self.note_suspect(id, reason);
        if self.members.len() > 1 && self.members.iter().all(|m| m.base.needs_backup()) {
            return self.make_room();
        }
        self.seek_backup();
    }

    /// Two in trouble stand in each other's way: the longer silent one makes room.
    fn make_room(&mut self) {
        let silent = |x: &&Attempt| if x.suspect.is_some() { x.heard } else { NEVER };
        if let Some(worse) = self.members.iter().map(|m| &m.base).min_by_key(silent) {
            let (id, why) = (worse.id, worse.trouble());
            self.fail(id, why);
        }
    }

    pub(super) fn wants_backup(&self) -> bool {
        matches!(self.members.as_slice(), [only] if only.base.needs_backup())
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
            self.effects.push_back(Act::Hedge.into());
        } else {
            self.return_hedge();
        }
    }

    /// A backup now would work beside an engine that may only look hung.
    pub(super) fn would_hedge(&self) -> bool {
        self.members.iter().any(|m| {
            let looks_hung = match m.base.suspect {
                Some(Reason::Silence) => self.now.since(m.base.heard) < SILENCE_SURE,
                Some(Reason::Stall) => true,
                _ => false,
            };
            looks_hung && !m.base.draining
        })
    }

    /// The hedge that was asked for is paid for.
    pub(in crate::speech) fn may_hedge(&mut self) {
        (self.granted, self.asked) = (true, None);
        if self.wants_backup() {
            self.rank();
        } else {
            self.return_hedge();
        }
    }

    // ----- time -------------------------------------------------------------------------

    pub(in crate::speech) fn next_wake(&self) -> Option<Mono> {
        let members = self.members.iter().map(|m| {
            let give_up = m.base.give_up_at().0;
            match m.base.suspect {
                Some(_) => give_up,
                None => give_up.min(m.base.suspect_at().0),
            }
        });
        members
            .chain(self.waiting_until)
            .chain(self.next_retry())
            .chain(self.next_hedge())
            .min()
    }

    pub(in crate::speech) fn wake(&mut self) {
        let now = self.now;
        let ids: Vec<AttemptId> = self.members.iter().map(|m| m.base.id).collect();
        for id in ids {
            let Some(m) = self.find(id) else { continue };
            let (give_up, reason) = m.base.give_up_at();
            if now >= give_up {
                self.fail(id, reason);
                continue;
            }
            let (at, reason) = m.base.suspect_at();
            if now >= at && m.base.suspect.is_none() {
                self.suspect(id, reason);
            }
        }
        if self.next_hedge().is_some_and(|at| now >= at) {
            self.seek_backup();
        }
        match self.waiting_until {
            Some(until) if now >= until => self.give_up(),
            Some(_) => self.rank(),
            None if self.next_retry().is_some_and(|at| now >= at) => self.rank(),
            None => {}
        }
    }

    pub(super) fn next_retry(&self) -> Option<Mono> {
        let retry = self.tried.next_retry(self.last_rank);
        retry.filter(|_| self.is_waiting())
    }

    pub(super) fn next_hedge(&self) -> Option<Mono> {
        let refused = self.asked.filter(|_| self.wants_backup() && !self.granted);
        refused.map(|asked| asked + HEDGE_RETRY)
    }
}
