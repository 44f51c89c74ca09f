//! What a failed attempt does: count, reattach, make room for the next.

use super::attempt::{Attempt, AttemptId};
use super::machine::{Loss, Session};
use super::{Closed, Effect, Failure, How, Note, Output, Reason};
use crate::limits::MAX_ATTEMPTS;
use crate::time::Mono;
use crate::wire::{Attach, ErrorCode, WireError};

impl Session {
    /// The engine's answer is an error. One that every engine would give ends the request, unless
    /// something was delivered, or another attempt shows that this one asks too much.
    pub(super) fn refused(&mut self, id: AttemptId, error: WireError, now: Mono) {
        let alone = self.attempts.iter().all(|a| a.id == id);
        if !error.code.elsewhere() && alone && self.delivered.is_empty() {
            return self.end(Output::Failed(Failure::Refused(error)));
        }
        self.refused_here(id, error, now);
    }

    /// It refused, and others may not.
    fn refused_here(&mut self, id: AttemptId, error: WireError, now: Mono) {
        let code = error.code;
        if let Some(a) = self.find(id) {
            let (engine, attach) = ((a.node(), a.candidate.engine), a.attach);
            let begun = !self.delivered.is_empty();
            self.tried.refused(engine, &error, begun, attach, now);
        }
        // What is wrong with the request says more than what is wrong with a peer.
        if self
            .last_refusal
            .as_ref()
            .is_none_or(|e| e.code != ErrorCode::Invalid)
        {
            self.last_refusal = Some(error);
        }
        self.fail(id, Reason::Refused(code));
    }

    pub(super) fn closed(&mut self, id: AttemptId, closed: Closed, now: Mono) {
        let reason = match closed.reason() {
            Ok(reason) => reason,
            // The path or the connection was refused, not the request: others may take it.
            Err(error) => return self.refused_here(id, error, now),
        };
        let moves = reason == Reason::Lost || self.is_attaching(id);
        if moves && self.go_on_fresh_path(id) {
            return;
        }
        if reason != Reason::Lost || !self.reattach(id, now) {
            self.fail(id, reason);
        }
    }

    /// The connection broke but the generation may still run: ask for the rest of it. A
    /// backup follows at once if that is not answered within a round trip or so.
    pub(super) fn reattach(&mut self, id: AttemptId, now: Mono) -> bool {
        let Some(lost) = self.find(id) else {
            return false;
        };
        let (Some(generation), false) = (lost.generation, lost.reattaches()) else {
            return false;
        };
        let (draining, itl, hedge, exact) = (lost.draining, lost.itl, lost.hedge, lost.exact);
        let (candidate, have, digest) = (lost.candidate.clone(), lost.next, lost.digest.clone());
        if self.spent >= MAX_ATTEMPTS {
            return false;
        }
        let was_current = self.current == Some(id);
        self.drop_attempt(id);
        if was_current {
            self.record_loss(Loss {
                from: candidate.node,
                digest: digest.clone(),
                model: candidate.model.clone(),
                reason: Reason::Lost,
                last_token: self.last_token,
            });
        }
        let new = self.new_id();
        let mut attempt = self.attempt_as(new, candidate, have as usize, now);
        attempt.attach = true;
        attempt.generation = Some(generation);
        (attempt.digest, attempt.exact) = (digest, exact);
        (attempt.draining, attempt.itl, attempt.hedge) = (draining, itl, hedge);
        self.last_reason = Some(Reason::Lost);
        // The generation is the same one: what is held stays valid, and its tokens go on
        // where they stopped.
        if was_current {
            self.current = Some(attempt.id);
            self.loss = None;
        }
        self.dispatch(attempt, How::Attach(Attach { generation, have }));
        true
    }

    /// The attempt is over. Others go on, or the next candidate is sought.
    pub(super) fn fail(&mut self, id: AttemptId, reason: Reason) {
        if reason == Reason::Silence && self.is_attaching(id) && self.go_on_fresh_path(id) {
            return;
        }
        let Some(failed) = self.find(id) else { return };
        let (node, engine) = (failed.node(), failed.candidate.engine);
        let (digest, model) = (failed.digest.clone(), failed.candidate.model.clone());
        let was_hedge = failed.hedge;
        let in_vain = u32::from(failed.reattaches());
        self.spent += in_vain;
        if !matches!(&reason, Reason::Refused(code) if !code.is_failure()) {
            self.tried.failed((node, engine), &reason, self.now);
        }
        self.drop_attempt(id);
        self.effects.push_back(Effect::Reset(id));
        if !was_hedge {
            self.hedge_was_right();
        }
        if self.current == Some(id) {
            self.record_loss(Loss {
                from: node,
                digest,
                model,
                reason: reason.clone(),
                last_token: self.last_token,
            });
            self.current = None;
            self.producer_gone(self.now);
        } else {
            self.open_seam(self.now);
        }
        self.effects.push_back(Effect::Note(Note::AttemptFailed {
            node,
            engine,
            reason: reason.clone(),
        }));
        self.last_reason = Some(reason.clone());
        if !self.attempts.is_empty() {
            // A suspect that lost its backup gets another, in place of the one paid for.
            self.granted |= was_hedge;
            return self.seek_backup();
        }
        if was_hedge {
            self.effects
                .push_back(Effect::Note(Note::HedgeInVain { node }));
        }
        if !self.may_go_on() {
            return self.end(Output::Failed(Failure::Incomplete { reason }));
        }
        self.rank();
    }

    pub(super) fn record_loss(&mut self, loss: Loss) {
        self.loss.get_or_insert(loss);
    }

    pub(super) fn loss_of(&self, attempt: &Attempt) -> Loss {
        Loss {
            from: attempt.node(),
            digest: attempt.digest.clone(),
            model: attempt.candidate.model.clone(),
            reason: attempt.trouble(),
            last_token: self.last_token,
        }
    }
}
