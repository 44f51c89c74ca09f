//! What a failed attempt does: count, reattach, make room for the next.

use super::attempt::{Attempt, AttemptId};
use super::machine::{Loss, NEVER, RETRY_PAUSE, Session, Tried};
use super::{Closed, Effect, Failure, How, Note, Output, Reason};
use crate::ids::NodeId;
use crate::limits::MAX_ATTEMPTS;
use crate::time::Mono;
use crate::timeouts::BUSY_RETRY;
use crate::wire::{Attach, ErrorCode, WireError};
use std::time::Duration;

impl Session {
    pub(super) fn refused(&mut self, id: AttemptId, error: WireError, now: Mono) {
        let code = error.code;
        if !code.elsewhere() && self.delivered.is_empty() {
            self.attempts.retain(|a| a.id != id);
            return self.end(Output::Failed(Failure::Refused(error)));
        }
        if code == ErrorCode::Busy {
            let after = match error.retry_after_ms {
                0 => BUSY_RETRY,
                ms => Duration::from_millis(u64::from(ms)),
            };
            self.busy = Some(self.busy.map_or(after, |b| b.min(after)));
        }
        let attach = self.find(id).is_some_and(|a| a.attach);
        let out_until = match code {
            // Nothing is lost yet: the caller hears `busy` and decides.
            ErrorCode::Busy if self.delivered.is_empty() => NEVER,
            ErrorCode::Busy => now + self.busy.unwrap_or(BUSY_RETRY),
            // Of one that has just started, or restarts: it may have the model in a moment.
            ErrorCode::UnknownModel | ErrorCode::Draining if !self.delivered.is_empty() => {
                now + BUSY_RETRY
            }
            // A refused reattachment says nothing of a new generation there.
            code if code.is_failure() || attach => Mono::ZERO,
            _ => NEVER,
        };
        if let Some(tried) = self.find(id).map(|a| (a.node(), a.candidate.engine)) {
            self.tried(tried).out_until = out_until;
        }
        self.last_refusal = Some(error);
        self.fail(id, Reason::Refused(code));
    }

    pub(super) fn closed(&mut self, id: AttemptId, closed: Closed, now: Mono) {
        let reason = match closed {
            Closed::Refused(error) => return self.refused(id, error, now),
            Closed::Unreachable(_) => Reason::Unreachable,
            Closed::Protocol(_) => Reason::Protocol,
            Closed::Ended => Reason::EndedEarly,
            Closed::Lost(_) => Reason::Lost,
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
        let (draining, itl, hedge) = (lost.draining, lost.itl, lost.hedge);
        let (candidate, have, digest) = (lost.candidate.clone(), lost.next, lost.digest.clone());
        if self.next_id >= MAX_ATTEMPTS {
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
        let mut attempt = self.attempt(candidate, have as usize, now);
        attempt.attach = true;
        attempt.generation = Some(generation);
        attempt.digest = digest;
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
        if !matches!(&reason, Reason::Refused(code) if !code.is_failure()) {
            let now = self.now;
            let tried = self.tried((node, engine));
            tried.failures += 1;
            if let Some(doublings) = tried.failures.checked_sub(2) {
                tried.out_until = now + RETRY_PAUSE * (1 << doublings.min(4));
            }
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

    pub(super) fn tried(&mut self, (node, engine): (NodeId, u16)) -> &mut Tried {
        let at = self
            .tried
            .iter()
            .position(|t| t.node == node && t.engine == engine);
        let at = at.unwrap_or_else(|| {
            self.tried.push(Tried {
                node,
                engine,
                failures: 0,
                out_until: Mono::ZERO,
            });
            self.tried.len() - 1
        });
        &mut self.tried[at]
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
