//! The peers that work on one piece of speech: who is asked, suspected, given up.
//!
//! What [`crate::session`] does for text, for both directions of speech: at most two attempts at
//! a time, the one that produces (*current*) and a backup; the same bounds on silence and stalls
//! (its own [`Attempt`] measures them), the same engines left out ([`Tried`]), the same budget
//! for backups on suspicion. What an attempt's work is and when another may go on with it is the
//! business of the machine above, which reads [`Crew::current`] and [`Crew::lost`] after each
//! input. An attempt is never reattached to: what is lost with it is at most one chunk's speech,
//! or a transcript of sound that is kept.

use super::Failure;
use crate::ids::NodeId;
use crate::limits::{MAX_ATTEMPTS, MAX_PARALLEL_ATTEMPTS};
use crate::rank::Candidate;
use crate::session::attempt::{Attempt, Stage};
use crate::session::tried::{NEVER, Tried};
use crate::session::{AttemptId, Closed, Note, Reason, Silence};
use crate::time::Mono;
use crate::timeouts::{HEDGE_RETRY, SILENCE_SURE, WAIT_FOR_PEER};
use crate::wire::WireError;
use std::collections::VecDeque;

/// What the crew itself asks of the driver; a part of each machine's effects.
pub(super) enum Act {
    Rank,
    Hedge,
    Reset(AttemptId),
    Note(Note),
}

/// An attempt, and what the machine above knows of its work.
#[derive(Debug)]
pub(super) struct Member<W> {
    pub(super) base: Attempt,
    pub(super) work: W,
}

/// The producer that was lost or left, until somebody goes on.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) from: NodeId,
    pub(super) reason: Reason,
}

/// See the module's documentation. `W` is an attempt's work, `E` the machine's effects.
#[derive(Debug)]
pub(super) struct Crew<W, E> {
    pub(super) members: Vec<Member<W>>,
    /// Whoever produced last.
    pub(super) current: Option<AttemptId>,
    /// The current one is gone, and nobody went on yet.
    pub(super) lost: Option<Loss>,
    /// Something was delivered: it is worth waiting for a peer that goes on.
    pub(super) begun: bool,
    /// The work cannot be done: the machine ends with this.
    pub(super) over: Option<Failure>,
    pub(super) effects: VecDeque<E>,
    pub(super) now: Mono,
    silence: Vec<(NodeId, Silence)>,
    next_id: u32,
    tried: Tried,
    last_reason: Option<Reason>,
    last_refusal: Option<WireError>,
    /// A ranking was asked for.
    ranking: bool,
    last_rank: Mono,
    /// Nobody can go on at the moment; until when to wait.
    waiting_until: Option<Mono>,
    /// A hedge is paid for and not dispatched yet.
    granted: bool,
    /// When a hedge was asked for, while the answer is not yes.
    asked: Option<Mono>,
}

impl<W, E: From<Act>> Crew<W, E> {
    /// A crew that asks for a ranking first.
    pub(super) fn new(silence: Vec<(NodeId, Silence)>, now: Mono) -> Self {
        Crew {
            members: Vec::with_capacity(MAX_PARALLEL_ATTEMPTS),
            current: None,
            lost: None,
            begun: false,
            over: None,
            effects: VecDeque::from([Act::Rank.into()]),
            now,
            silence,
            next_id: 0,
            tried: Tried::default(),
            last_reason: None,
            last_refusal: None,
            ranking: true,
            last_rank: now,
            waiting_until: None,
            granted: false,
            asked: None,
        }
    }

    pub(super) fn find(&mut self, id: AttemptId) -> Option<&mut Member<W>> {
        self.members.iter_mut().find(|m| m.base.id == id)
    }

    /// The current one, if it still runs.
    pub(super) fn producer(&self) -> Option<&Member<W>> {
        self.members
            .iter()
            .find(|m| Some(m.base.id) == self.current)
    }

    // ----- candidates -------------------------------------------------------------------

    /// A ranking came; whether one more is of use.
    pub(super) fn welcomes(&mut self) -> bool {
        self.last_rank = self.now;
        let welcome = std::mem::take(&mut self.ranking) || self.is_waiting();
        welcome && self.members.len() < MAX_PARALLEL_ATTEMPTS
    }

    /// The best one that is not at work, not out, and has failed least.
    pub(super) fn best<C>(&self, all: &[C], of: impl Fn(&C) -> &Candidate) -> Option<C>
    where
        C: Clone,
    {
        let free =
            |c: &Candidate| !c.draining && self.members.iter().all(|m| m.base.node() != c.node);
        all.iter()
            .filter(|c| free(of(c)))
            .filter_map(|c| Some((self.tried.failures(of(c), self.begun, self.now)?, c)))
            // Stable: among equals the ranking's order stands.
            .min_by_key(|(failures, _)| *failures)
            .map(|(_, c)| c.clone())
    }

    /// Takes one more in; `None` if there were too many over the work's life.
    pub(super) fn enlist(&mut self, candidate: Candidate, work: W) -> Option<AttemptId> {
        if self.next_id >= MAX_ATTEMPTS {
            if self.members.is_empty() {
                self.give_up();
            }
            return None;
        }
        self.waiting_until = None;
        let mut base = self.attempt(candidate);
        let id = base.id;
        base.hedge = std::mem::take(&mut self.granted);
        if let Some(original) = self.members.first() {
            let note = Note::Backup {
                node: base.node(),
                after: self.now.since(original.base.heard),
                hedge: base.hedge,
            };
            self.note(note);
        }
        self.members.push(Member { base, work });
        Some(id)
    }

    fn attempt(&mut self, candidate: Candidate) -> Attempt {
        let learned = self.silence.iter().find(|(n, _)| *n == candidate.node);
        let silence = learned.map_or_else(Silence::default, |(_, s)| *s);
        let id = AttemptId(self.next_id);
        self.next_id += 1;
        Attempt::new(id, candidate, 0, self.now, silence)
    }

    /// The same peer begins anew with other work, and pays for no hedge again; `None` if there
    /// were too many attempts.
    pub(super) fn renew(&mut self, id: AttemptId, work: W) -> Option<AttemptId> {
        let at = self.members.iter().position(|m| m.base.id == id)?;
        if self.next_id >= MAX_ATTEMPTS {
            return None;
        }
        self.learn(id);
        let old = self.members.remove(at).base;
        self.effects.push_back(Act::Reset(id).into());
        let mut base = self.attempt(old.candidate);
        (base.hedge, base.draining) = (old.hedge, old.draining);
        let id = base.id;
        self.members.push(Member { base, work });
        Some(id)
    }

    /// There is nobody (else) to ask.
    pub(super) fn nobody(&mut self) {
        if !self.members.is_empty() {
            return;
        }
        if !self.begun {
            return self.give_up();
        }
        let until = *self.waiting_until.get_or_insert(self.now + WAIT_FOR_PEER);
        if self.now >= until {
            self.give_up();
        }
    }

    /// Nobody can go on or back up at the moment: news of the peer table are welcome.
    pub(super) fn is_waiting(&self) -> bool {
        let wants_backup = self.wants_backup() && (self.granted || !self.would_hedge());
        self.over.is_none() && (self.waiting_until.is_some() || wants_backup)
    }

    pub(super) fn rank(&mut self) {
        if !std::mem::replace(&mut self.ranking, true) {
            self.effects.push_back(Act::Rank.into());
        }
    }

    // ----- life -------------------------------------------------------------------------

    pub(super) fn opened(&mut self, id: AttemptId) {
        let now = self.now;
        if let Some(m) = self.find(id) {
            (m.base.stage, m.base.heard) = (Stage::Waiting, now);
        }
    }

    /// A frame came: it lives. A suspicion of silence is lifted, so that it can arise anew.
    pub(super) fn hear(&mut self, id: AttemptId) {
        let now = self.now;
        let Some(m) = self.find(id) else { return };
        m.base.hear(now);
        if matches!(m.base.suspect, Some(Reason::Silence | Reason::DialSlow)) {
            m.base.suspect = None;
            self.return_hedge();
        }
    }

    /// The current one produces: whoever doubted it was wrong, and it goes on alone unless it
    /// leaves.
    pub(super) fn produces(&mut self, id: AttemptId) {
        let Some(m) = self.find(id) else { return };
        m.base.suspect = None;
        if !m.base.draining {
            self.return_hedge();
            self.reset_others(id);
        }
    }

    /// It goes on in place of the current one, which is reset: whom it follows, and why.
    pub(super) fn take_over(&mut self, id: AttemptId) -> Option<Loss> {
        let followed = self.producer().map(|m| Loss {
            from: m.base.node(),
            reason: m.base.trouble(),
        });
        self.current = Some(id);
        self.reset_others(id);
        self.hedge_took_over(id);
        self.lost.take().or(followed)
    }

    /// It did its work to the end.
    pub(super) fn succeeded(&mut self, id: AttemptId) {
        self.learn(id);
        let done = self.members.iter().position(|m| m.base.id == id);
        if let Some(m) = done.map(|at| self.members.remove(at)) {
            let (node, engine) = (m.base.node(), m.base.candidate.engine);
            self.hedge_right(&m.base);
            self.note(Note::Succeeded { node, engine });
        }
    }

    /// The work is over, whatever runs.
    pub(super) fn end(&mut self) {
        self.return_hedge();
        while let Some(id) = self.members.first().map(|m| m.base.id) {
            self.learn(id);
            let m = self.members.remove(0);
            self.effects.push_back(Act::Reset(id).into());
            self.in_vain(&m.base);
        }
    }

    // ----- failure ----------------------------------------------------------------------

    pub(super) fn closed(&mut self, id: AttemptId, closed: Closed) {
        match closed.reason() {
            Ok(reason) => self.fail(id, reason),
            Err(error) => self.refused(id, error),
        }
    }

    pub(super) fn refused(&mut self, id: AttemptId, error: WireError) {
        let (now, begun) = (self.now, self.begun);
        let Some(m) = self.find(id) else { return };
        let engine = (m.base.node(), m.base.candidate.engine);
        if !error.code.elsewhere() && !begun {
            self.over = Some(Failure::Refused(error));
            return;
        }
        self.tried.refused(engine, &error, begun, false, now);
        let reason = Reason::Refused(error.code);
        self.last_refusal = Some(error);
        self.fail(id, reason);
    }

    /// It is not what is wanted, through no fault of its own, and is not asked again.
    pub(super) fn dismiss(&mut self, id: AttemptId, error: WireError) {
        if let Some(m) = self.find(id) {
            let engine = (m.base.node(), m.base.candidate.engine);
            self.tried.rule_out(engine);
            self.fail(id, Reason::Refused(error.code));
        }
    }

    /// It is over. The other goes on, or the next is sought.
    pub(super) fn fail(&mut self, id: AttemptId, reason: Reason) {
        let Some(at) = self.members.iter().position(|m| m.base.id == id) else {
            return;
        };
        self.learn(id);
        let failed = self.members.remove(at).base;
        let (node, engine) = (failed.node(), failed.candidate.engine);
        if !matches!(&reason, Reason::Refused(code) if !code.is_failure()) {
            self.tried.failed((node, engine), self.now);
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
    pub(super) fn give_up(&mut self) {
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

    pub(super) fn peer_going(&mut self, node: NodeId) {
        let leaving = self.members.iter().find(|m| m.base.node() == node);
        if let Some(id) = leaving.map(|m| m.base.id) {
            self.leaving(id);
        }
    }

    /// It says that it leaves: make before break.
    pub(super) fn leaving(&mut self, id: AttemptId) {
        let Some(m) = self.find(id) else { return };
        if !std::mem::replace(&mut m.base.draining, true) {
            self.note_suspect(id, Reason::Draining);
            self.seek_backup();
        }
    }

    fn suspect(&mut self, id: AttemptId, reason: Reason) {
        let Some(m) = self.find(id) else { return };
        m.base.suspect = Some(reason.clone());
        self.note_suspect(id, reason);
        if let [a, b] = self.members.as_slice()
            && a.base.needs_backup()
            && b.base.needs_backup()
        {
            // Two in trouble stand in each other's way: the longer silent one makes room.
            let silent = |x: &Attempt| if x.suspect.is_some() { x.heard } else { NEVER };
            let worse = if silent(&a.base) <= silent(&b.base) {
                a
            } else {
                b
            };
            let (worse, why) = (worse.base.id, worse.base.trouble());
            return self.fail(worse, why);
        }
        self.seek_backup();
    }

    fn wants_backup(&self) -> bool {
        matches!(self.members.as_slice(), [only] if only.base.needs_backup())
    }

    /// Seeks a backup if one is wanted: at once where it is no hedge or is paid for, else after
    /// the owner of the budget has said yes.
    fn seek_backup(&mut self) {
        if !self.wants_backup() {
            return;
        }
        if self.granted || !self.would_hedge() {
            self.asked = None;
            return self.rank();
        }
        self.asked = Some(self.now);
        self.effects.push_back(Act::Hedge.into());
    }

    /// A backup now would work beside an engine that may only look hung.
    fn would_hedge(&self) -> bool {
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
    pub(super) fn may_hedge(&mut self) {
        (self.granted, self.asked) = (true, None);
        if self.wants_backup() {
            self.rank();
        } else {
            self.return_hedge();
        }
    }

    // ----- time -------------------------------------------------------------------------

    pub(super) fn next_wake(&self) -> Option<Mono> {
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

    pub(super) fn wake(&mut self) {
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

    fn next_retry(&self) -> Option<Mono> {
        let retry = self.tried.next_retry(self.last_rank);
        retry.filter(|_| self.is_waiting())
    }

    fn next_hedge(&self) -> Option<Mono> {
        let refused = self.asked.filter(|_| self.wants_backup() && !self.granted);
        refused.map(|asked| asked + HEDGE_RETRY)
    }

    // ----- small parts ------------------------------------------------------------------

    fn reset_others(&mut self, keep: AttemptId) {
        while let Some(at) = self.members.iter().position(|m| m.base.id != keep) {
            self.learn(self.members[at].base.id);
            let other = self.members.remove(at).base;
            self.effects.push_back(Act::Reset(other.id).into());
            self.in_vain(&other);
            if let Some(reason) = other.suspect {
                // It let the caller wait until somebody else went on.
                self.note(Note::AttemptFailed {
                    node: other.candidate.node,
                    engine: other.candidate.engine,
                    reason,
                });
            }
        }
    }

    fn return_hedge(&mut self) {
        if std::mem::take(&mut self.granted) {
            self.note(Note::HedgeRefund);
        }
    }

    /// The hedge did the work that its original did not: it cost nothing.
    fn hedge_took_over(&mut self, id: AttemptId) {
        if self
            .find(id)
            .is_some_and(|m| std::mem::take(&mut m.base.hedge))
        {
            self.note(Note::HedgeRefund);
        }
    }

    fn hedge_right(&mut self, attempt: &Attempt) {
        if attempt.hedge {
            self.note(Note::HedgeRefund);
        }
    }

    fn in_vain(&mut self, attempt: &Attempt) {
        if attempt.hedge {
            let node = attempt.node();
            self.note(Note::HedgeInVain { node });
        }
    }

    /// Tells what an attempt that ends has shown of its path and its engine.
    fn learn(&mut self, id: AttemptId) {
        let ended = self.members.iter().find(|m| m.base.id == id);
        let Some(a) = ended.map(|m| &m.base).filter(|a| a.alive) else {
            return;
        };
        let (node, silence) = (a.node(), a.silence);
        let observed = a.observed(self.now).map(|observed| Note::Observed {
            node,
            model: a.candidate.model.clone(),
            observed: Box::new(observed),
        });
        let notes = [Some(Note::Learned { node, silence }), observed];
        notes.into_iter().flatten().for_each(|note| self.note(note));
    }

    fn note_suspect(&mut self, id: AttemptId, reason: Reason) {
        let now = self.now;
        let Some(m) = self.find(id) else { return };
        let (node, silent) = (m.base.node(), now.since(m.base.heard));
        self.last_reason = Some(reason.clone());
        self.note(Note::Suspect {
            node,
            reason,
            silent,
        });
    }

    fn note(&mut self, note: Note) {
        self.effects.push_back(Act::Note(note).into());
    }
}
