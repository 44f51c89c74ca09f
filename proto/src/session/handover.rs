//! A planned leave that the caller does not notice: make before break.
//!
//! The peer that leaves goes on while a backup reads the prompt, so the backup is behind by
//! what was made meanwhile and at equal speed never catches up; and what it says first differs
//! from what was delivered as soon as the temperature is above zero. So its first stream only
//! warms its cache, and it is asked again from the present point, which costs it a token or
//! two. That pause is bridged by a **lead** of tokens that were received and not yet given out:
//!
//! ```text
//!   leaving peer   n  n+1 n+2 ... ... m-2 m-1 │ (goes on, dropped once the backup produces)
//!   caller         n   n+1   n+2   ...   ...  m-3   m-2   m-1 │ m   m+1
//!   backup         [prompt, first token: warm] [asked again after m-1] m   m+1
//!                                              ▲ the lead is enough: the seam is fixed at m
//! ```
//!
//! 1. While a backup is at work, the leaving peer's tokens are given out [`PACE`] times as far
//!    apart as they come, until the lead lasts for the wait to come ([`HANDOVER_LEAD`] at
//!    most); then at their own speed again.
//! 2. When the backup is warm (its first token came, whatever it says) and the lead is there,
//!    it is asked again after everything received. That point is the seam: later tokens of the
//!    leaving peer are kept back.
//! 3. Its first token takes over; what is left of the lead goes out at once.
//! 4. If the lead runs dry first, the seam is given up: the leaving peer's tokens go out again
//!    before [`PATIENCE`] token times have passed, and the next try has twice the lead.
//!
//! A backup that is so fast that it catches up with what was given out, saying the same, takes
//! over without being asked again. If the leaving peer goes too early, what was received of it
//! is delivered and a backup that is far behind is asked again at once.

use super::attempt::{Attempt, AttemptId, Stage};
use super::frames::calls_a_tool;
use super::machine::Session;
use super::{Effect, How, Reason};
use crate::limits::{MAX_ATTEMPTS, MIN_ATTEMPTS_LEFT};
use crate::time::Mono;
use crate::timeouts::HANDOVER_LEAD;
use crate::wire::Chunk;
use std::time::Duration;

/// Tokens are given out so many times as far apart as they come while a lead is saved up: a
/// lead of two takes six tokens, and nobody hears the difference.
const PACE: f64 = 1.6;
/// The longest gap that the caller sees, in times of a token, less the lateness of a timer.
const PATIENCE: f64 = 1.9;
/// A lead in pieces of text: below, jitter eats it; above, a caller that cancels wastes it.
const LEAD: std::ops::RangeInclusive<u32> = 2..=16;
/// A backup that is further behind than this, with nobody else left, is asked again.
const BEHIND: usize = 4;

/// A planned leave under way.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The backup that was asked again continues after so many chunks, some of them held.
    seam: Option<usize>,
    /// Tries whose lead ran dry.
    dry: u32,
}

impl Session {
    /// Gives out what was received from the current producer and is due: everything, or piece
    /// by piece while it hands over.
    pub(super) fn release(&mut self, now: Mono) {
        while let Some(end) = self.next_piece() {
            let due = self.piece_due();
            if due.is_some_and(|at| now < at) {
                break;
            }
            self.give_out(end + 1);
        }
        let dry = self.dry_at().is_some_and(|at| now >= at);
        if dry {
            self.handover.seam = None;
            self.handover.dry += 1;
            self.release(now);
        }
    }

    /// When [`Session::release`] has something to do.
    pub(super) fn next_release(&self) -> Option<Mono> {
        match self.next_piece() {
            Some(_) => self.piece_due(),
            None => self.dry_at(),
        }
    }

    /// Asks a warm backup again after what was received, if the lead is there.
    pub(super) fn hand_over(&mut self, now: Mono) {
        let leaving = self.may_go_on() && self.leaving_producer().is_some();
        let ready = leaving && self.handover.seam.is_none();
        let warm = self.backup().filter(|b| b.stage == Stage::Producing);
        let Some(backup) = warm.filter(|_| ready) else {
            return;
        };
        if self.lead() >= self.wanted_lead() && self.can_spare_one() {
            let backup = backup.id;
            self.fix_seam();
            self.ask_again(backup, now);
        }
    }

    /// The backup's own answer ended, and not where this one does: it is asked again from here.
    pub(super) fn ends_elsewhere(&mut self, id: AttemptId, now: Mono) {
        if self.spent >= MAX_ATTEMPTS {
            return self.fail(id, Reason::Protocol);
        }
        if self.current.is_some() {
            self.fix_seam();
        }
        self.ask_again(id, now);
    }

    /// An attempt more leaves enough of them for failures.
    pub(super) fn can_spare_one(&self) -> bool {
        self.spent + MIN_ATTEMPTS_LEFT < MAX_ATTEMPTS
    }

    /// The backup continues after everything up to the seam, which is given out now.
    pub(super) fn close_seam(&mut self) {
        if let Some(seam) = self.handover.seam.take() {
            self.held
                .truncate(seam.saturating_sub(self.delivered.len()));
            self.flush();
        }
        self.handover.dry = 0;
    }

    /// Whether a backup's token with this index is the first after the seam.
    pub(super) fn is_seam(&self, index: usize) -> bool {
        self.handover.seam == Some(index)
    }

    /// The backup is gone: the producer's tokens go out as they come.
    pub(super) fn open_seam(&mut self, now: Mono) {
        self.handover.seam = None;
        self.release(now);
    }

    /// The producer is gone while a backup is at work. What was received of it in order is
    /// good, except half a character, which is made again.
    pub(super) fn producer_gone(&mut self, now: Mono) {
        self.held.truncate(self.whole());
        let behind = self.attempts.first().map(|b| b.next as usize);
        if self.handover.seam.is_some() {
            self.close_seam();
        } else if behind != Some(self.delivered.len()) {
            self.flush();
        }
        // Else the backup is about to make exactly what is held.
        self.held.clear();
        let backup = self
            .attempts
            .first()
            .filter(|b| b.stage == Stage::Producing);
        if let Some((id, differs, next)) = backup.map(|b| (b.id, b.differs, b.next as usize))
            && (differs || next + BEHIND < self.delivered.len())
            && self.spent < MAX_ATTEMPTS
        {
            self.ask_again(id, now);
        }
    }

    /// The backup that is asked next continues after everything that was received, but for
    /// half a character, which it makes again.
    fn fix_seam(&mut self) {
        self.handover.seam = Some(self.delivered.len() + self.whole());
    }

    /// How many of the held chunks make whole pieces that a prefix can say.
    fn whole(&self) -> usize {
        let said = |(chunk, extra): &&(Chunk, String)| {
            extra.is_empty() || !(chunk.text.is_empty() || calls_a_tool(extra))
        };
        let text = self.held.iter().take_while(said).enumerate();
        let last = text.filter(|(_, piece)| has_text(piece)).last();
        last.map_or(0, |(at, _)| at + 1)
    }

    /// Opens a stream at the backup's peer that continues after all that was delivered and is
    /// held, in place of the one that runs.
    fn ask_again(&mut self, id: AttemptId, now: Mono) {
        let Some(backup) = self.find(id) else { return };
        let (candidate, hedge) = (backup.candidate.clone(), backup.hedge);
        self.drop_attempt(id);
        self.effects.push_back(Effect::Reset(id));
        let mut prefix = self.delivered.clone();
        let whole = self.held.iter().take(self.whole());
        prefix.extend(whole.map(|(chunk, _)| chunk.clone()));
        let mut attempt = self.attempt(candidate, prefix.len(), now);
        (attempt.cached, attempt.hedge) = (true, hedge);
        self.dispatch(attempt, How::Generate(prefix));
    }

    /// The producer, if it is leaving and a backup is at work.
    fn leaving_producer(&self) -> Option<&Attempt> {
        self.backup()?;
        let current = self.attempts.iter().find(|a| Some(a.id) == self.current);
        current.filter(|a| a.draining)
    }

    fn backup(&self) -> Option<&Attempt> {
        self.attempts.iter().find(|a| Some(a.id) != self.current)
    }

    /// The end (inclusive) of the next piece that may go out: chunks up to one with text.
    fn next_piece(&self) -> Option<usize> {
        let seam = self.handover.seam;
        let may = seam.map_or(usize::MAX, |s| s.saturating_sub(self.delivered.len()));
        self.held.iter().take(may).position(has_text)
    }

    /// When it goes out: `None` is at once.
    fn piece_due(&self) -> Option<Mono> {
        let producer = self.leaving_producer()?;
        let saved = self.handover.seam.is_none() && self.lead() > self.wanted_lead();
        (!saved).then(|| self.last_token + producer.itl.mul_f64(PACE))
    }

    /// The lead is used up and the producer has more: when to go on with that.
    fn dry_at(&self) -> Option<Mono> {
        let producer = self.leaving_producer()?;
        let more = self.handover.seam.is_some() && self.held.iter().any(has_text);
        let dry = more && self.next_piece().is_none();
        dry.then(|| self.last_token + producer.itl.mul_f64(PATIENCE))
    }

    /// Pieces that are held.
    fn lead(&self) -> u32 {
        let pieces = self.held.iter().filter(|piece| has_text(piece)).count();
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }

    /// Pieces that last for the backup's next wait, given out at [`PACE`].
    fn wanted_lead(&self) -> u32 {
        let (Some(producer), Some(backup)) = (self.leaving_producer(), self.backup()) else {
            return 0;
        };
        // Until it is known, the most; it never waits longer than it did without a cache.
        let wait = backup.first_wait().unwrap_or(HANDOVER_LEAD);
        let pace = producer.itl.mul_f64(PACE).max(Duration::from_micros(1));
        let pieces = wait.min(HANDOVER_LEAD).div_duration_f64(pace).ceil() as u32;
        (pieces << self.handover.dry.min(8)).clamp(*LEAD.start(), *LEAD.end())
    }
}

/// Whether a chunk completes something that can be shown.
pub(super) fn has_text((chunk, extra): &(Chunk, String)) -> bool {
    !chunk.text.is_empty() || !extra.is_empty()
}
