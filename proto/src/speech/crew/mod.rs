//! The peers that work on one piece of speech: who is asked, suspected, given up.
//!
//! What [`crate::session`] does for text, for both directions of speech: at most two attempts at
//! a time, the one that produces (*current*) and a backup; the same bounds on silence and stalls
//! (its own [`Attempt`] measures them), the same engines left out ([`Tried`]), the same budget
//! for backups on suspicion, the same count of attempts (one whose original went on took none), the
//! same blindness while the caller does not look ([`Crew::late`]). What an attempt's work is and when another may go on with it is the
//! business of the machine above, which reads [`Crew::current`] and [`Crew::lost`] after each
//! input. An attempt is never reattached to: what is lost with it is at most one chunk's speech,
//! or a transcript of sound that is kept. What failure, silence and farewells do is `trouble.rs`.

mod trouble;

use super::Failure;
use crate::ids::NodeId;
use crate::limits::{MAX_ATTEMPTS, MAX_PARALLEL_ATTEMPTS, MIN_ATTEMPTS_LEFT};
use crate::rank::Candidate;
use crate::session::attempt::{Attempt, Stage};
use crate::session::tried::Tried;
use crate::session::{AttemptId, Note, Reason, Silence};
use crate::time::Mono;
use crate::timeouts::WAIT_FOR_PEER;
use crate::wire::{ErrorCode, WireError};
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
    /// What comes has lain unread, because the caller did not look: it teaches nothing.
    pub(super) late: bool,
    silence: Vec<(NodeId, Silence)>,
    next_id: u32,
    /// Attempts that count against [`MAX_ATTEMPTS`].
    spent: u32,
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
            late: false,
            silence,
            next_id: 0,
            spent: 0,
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
            |c: &Candidate| !c.draining && self.members.iter().all(|m| m.base.may_have_beside(c));
        all.iter()
            .filter(|c| free(of(c)))
            .filter_map(|c| Some((self.tried.failures(of(c), self.begun, self.now)?, c)))
            // Stable: among equals the ranking's order stands.
            .min_by_key(|(failures, _)| *failures)
            .map(|(_, c)| c.clone())
    }

    /// Takes one more in; `None` if too many failed over the work's life.
    pub(super) fn enlist(&mut self, candidate: Candidate, work: W) -> Option<AttemptId> {
        if self.spent >= MAX_ATTEMPTS {
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
        self.spent += 1;
        Attempt::new(id, candidate, 0, self.now, silence)
    }

    /// The same peer begins anew with other work, and pays for no hedge again; `None` if there
    /// were too many attempts.
    pub(super) fn renew(&mut self, id: AttemptId, work: W) -> Option<AttemptId> {
        let at = self.members.iter().position(|m| m.base.id == id)?;
        if self.spent >= MAX_ATTEMPTS {
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
        let (now, late) = (self.now, self.late);
        let Some(m) = self.find(id) else { return };
        m.base.late = late;
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
            // They come back: nothing failed.
            self.spent = self.spent.saturating_sub(self.reset_others(id));
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

    /// The program that asks ends, although somebody could go on: nobody will be there to take it.
    pub(super) fn leave(&mut self) {
        self.over = Some(match self.begun {
            true => Failure::Interrupted {
                reason: Reason::Leaving,
            },
            false => {
                let message = "this machine is leaving the mesh: ask again in a moment";
                Failure::Refused(WireError::new(ErrorCode::Draining, message))
            }
        });
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

    // ----- small parts ------------------------------------------------------------------

    /// An attempt more leaves enough of them for failures.
    fn can_spare_one(&self) -> bool {
        self.spent + MIN_ATTEMPTS_LEFT < MAX_ATTEMPTS
    }

    /// Returns how many.
    fn reset_others(&mut self, keep: AttemptId) -> u32 {
        let mut count = 0;
        while let Some(at) = self.members.iter().position(|m| m.base.id != keep) {
            self.learn(self.members[at].base.id);
            let other = self.members.remove(at).base;
            count += 1;
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
        count
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
