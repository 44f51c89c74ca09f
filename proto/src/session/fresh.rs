//! A fresh path to a peer that fell silent, beside the backup elsewhere.
//!
//! Silence is a path's fault as often as a peer's: an access point that restarts, a cable, a
//! laptop that changes from one network to the other. The generation then still runs. So while
//! a backup is sought, the silent attempt's generation is attached to over a connection that is
//! younger than the silence, on whichever address of the peer answers first:
//!
//! ```text
//!   silent attempt ── dial ──► attach sent ── Accepted ──► takes the attempt's place
//!     │ a frame came: dropped     │ a frame came: goes on      │ the first to produce goes on,
//!     ▼ (nothing was sent)        ▼ (the agent has moved)      ▼ this or the backup
//! ```
//! - It is no second attempt, only a second way to the first: it stands beside the attempts, has
//!   no part in their number, and delays no backup.
//! - The agent sends a generation to whoever attached last. Once the request is out, taking it
//!   back would end the generation, so it is followed through even if the old path wakes up.
//! - What arrives over both paths has the same index and is delivered once: the new stream
//!   begins after what was received when it was asked for, and what came since is skipped.
//! - It is no failure of the peer if nothing comes of it.

use super::attempt::{Attempt, AttemptId, Stage};
use super::machine::Session;
use super::{Effect, How, Reason};
use crate::limits::MAX_FRESH_PATHS;
use crate::time::Mono;
use crate::timeouts::FRESH_PATH_EVERY;
use crate::wire::{Attach, ErrorCode, GenFrame};

/// The tries of a fresh path.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The one that runs, and the attempt whose generation it wants.
    pub(super) running: Option<(Attempt, AttemptId)>,
    /// All that were begun, which numbers them.
    begun: u32,
    /// Those since the attempt was last heard.
    tries: u32,
    /// When the last one began.
    tried: Mono,
}

impl Session {
    /// Asks for the rest of a silent attempt's generation over a new connection.
    pub(super) fn try_fresh_path(&mut self, now: Mono) {
        let Some(silent) = self.on_a_silent_path() else {
            return;
        };
        let (Some(generation), of) = (silent.generation, silent.id) else {
            return;
        };
        let (candidate, have, heard) = (silent.candidate.clone(), silent.next, silent.heard);
        let digest = silent.digest.clone();
        // A number of its own: an attempt's says when it was begun.
        let id = AttemptId(u32::MAX - self.fresh.begun);
        let mut attempt = self.attempt_as(id, candidate, have as usize, now);
        (attempt.attach, attempt.generation) = (true, Some(generation));
        attempt.digest = digest;
        self.fresh.begun += 1;
        self.fresh.tries += 1;
        self.fresh.tried = now;
        let attach = Attach { generation, have };
        self.effects.push_back(Effect::Open {
            attempt: attempt.id,
            node: attempt.node(),
            engine: attempt.candidate.engine,
            model: attempt.candidate.model.clone(),
            how: How::Reattach { attach, heard },
        });
        self.fresh.running = Some((attempt, of));
    }

    /// When to try again, while the silence lasts.
    pub(super) fn next_fresh_path(&self) -> Option<Mono> {
        match &self.fresh.running {
            Some((attempt, _)) => Some(attempt.give_up_at().0),
            None => self
                .on_a_silent_path()
                .map(|_| self.fresh.tried + FRESH_PATH_EVERY),
        }
    }

    /// Its time is over, or another try is due.
    pub(super) fn wake_fresh_path(&mut self, now: Mono) {
        if self.next_fresh_path().is_some_and(|at| now >= at) {
            self.drop_fresh_path();
            self.try_fresh_path(now);
        }
    }

    /// Whether `id` is the fresh path's.
    pub(super) fn is_fresh_path(&self, id: AttemptId) -> bool {
        self.fresh.running.as_ref().is_some_and(|(a, _)| a.id == id)
    }

    /// Its request is on its way.
    pub(super) fn fresh_path_opened(&mut self, now: Mono) {
        if let Some((attempt, _)) = &mut self.fresh.running {
            (attempt.stage, attempt.heard) = (Stage::Waiting, now);
        }
    }

    /// A frame came over it: it takes the place of the silent one, unless it was refused. A peer
    /// that no longer has the generation will send no more of it: if nobody else may go on, that
    /// is the end.
    pub(super) fn fresh_path_answers(&mut self, frame: GenFrame, now: Mono) {
        let Some((attempt, of)) = &self.fresh.running else {
            return;
        };
        let (id, of) = (attempt.id, *of);
        if let GenFrame::Error(error) = frame {
            self.drop_fresh_path();
            if error.code == ErrorCode::UnknownGeneration && !self.may_go_on() {
                self.fail(of, Reason::Refused(error.code));
            }
            return;
        }
        if !self.go_on_fresh_path(of) {
            return self.drop_fresh_path();
        }
        self.fresh.tries = 0;
        self.frame(id, frame, now);
    }

    /// The attempt `of` goes on over its fresh path; false if it has none.
    pub(super) fn go_on_fresh_path(&mut self, of: AttemptId) -> bool {
        let (Some(at), Some((mut attempt, _))) = (
            self.attempts.iter().position(|a| a.id == of),
            self.fresh.running.take_if(|(_, whose)| *whose == of),
        ) else {
            return false;
        };
        self.learn(of);
        let old = &self.attempts[at];
        (attempt.draining, attempt.itl) = (old.draining, old.itl);
        (attempt.hedge, attempt.differs) = (old.hedge, old.differs);
        attempt.exact = old.exact;
        if self.current == Some(of) {
            self.current = Some(attempt.id);
        }
        self.attempts[at] = attempt;
        self.effects.push_back(Effect::Reset(of));
        true
    }

    /// Whether the generation of `of` was asked for over a fresh path.
    pub(super) fn is_attaching(&self, of: AttemptId) -> bool {
        let sent = |(a, whose): &(Attempt, AttemptId)| *whose == of && a.stage != Stage::Dialing;
        self.fresh.running.as_ref().is_some_and(sent)
    }

    /// The attempt `of` gives signs of life on its old path: a new one is not needed, if nothing
    /// was sent over it yet.
    pub(super) fn old_path_lives(&mut self, of: AttemptId) {
        let silent = |a: &mut Attempt| a.suspect == Some(Reason::Silence);
        if self.find(of).is_some_and(silent) {
            self.fresh.tries = 0;
        }
        let whose = self.fresh.running.as_ref().map(|(_, whose)| *whose);
        if whose == Some(of) && !self.is_attaching(of) {
            self.drop_fresh_path();
        }
    }

    /// Gives it up.
    pub(super) fn drop_fresh_path(&mut self) {
        if let Some((attempt, _)) = self.fresh.running.take() {
            self.effects.push_back(Effect::Reset(attempt.id));
        }
    }

    /// Gives it up if the attempt that it is for is no more.
    pub(super) fn drop_orphan(&mut self) {
        let of = self.fresh.running.as_ref().map(|(_, of)| *of);
        if of.is_some_and(|of| self.attempts.iter().all(|a| a.id != of)) {
            self.drop_fresh_path();
        }
    }

    /// The attempt for whose generation a fresh path is of use: the producer, or the only one.
    fn on_a_silent_path(&self) -> Option<&Attempt> {
        if self.fresh.tries >= MAX_FRESH_PATHS || self.fresh.running.is_some() {
            return None;
        }
        let only = self.attempts.len() == 1;
        self.attempts.iter().find(|a| {
            let silent = a.suspect == Some(Reason::Silence) && a.generation.is_some();
            silent && !a.reattaches() && (self.current == Some(a.id) || only)
        })
    }
}
