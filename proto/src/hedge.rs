//! How many backups may run beside a peer that only *looks* hung: a token bucket.
//!
//! Suspicion is a guess, and a mesh in which every guess starts a second generation halves its
//! own speed just when it is loaded and its guesses are worst. So hedges against silence and
//! stalls may add at most one request in [`HEDGE_SHARE`] in the long run, after a burst of
//! [`HEDGE_BURST`] that covers the streams of one machine which freeze together.
//!
//! What is capped is *waste*: a hedge that had to take over did the work that the original did
//! not, so its token comes back ([`Hedges::refund`]). A mesh in which machine after machine
//! dies is never short of hedges; one in which the originals go on after all soon is. A refused
//! session asks again every [`HEDGE_RETRY`](crate::timeouts::HEDGE_RETRY), for what came back
//! meanwhile. A retry after a closed stream, a planned leave, a slow dial and a reattachment
//! are no hedges: no engine works twice for them. Nor is a backup after
//! [`SILENCE_SURE`](crate::timeouts::SILENCE_SURE) of silence: that is evidence, no guess.

use crate::limits::{HEDGE_BURST, HEDGE_SHARE};
use crate::session::Note;

/// The bucket of one client.
#[derive(Clone, Debug)]
pub struct Hedges {
    /// In parts of a hedge: each request adds one, a hedge takes [`HEDGE_SHARE`].
    level: u32,
    counts: Counts,
}

/// What came of all hedges so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Requests of callers.
    pub requests: u64,
    /// Hedges that were dispatched beside them.
    pub started: u64,
    /// Hedges that cost nothing: they took over, or were not needed after all.
    pub refunded: u64,
    /// Hedges whose original went on: the extra load.
    pub in_vain: u64,
}

impl Default for Hedges {
    fn default() -> Self {
        Hedges::new(HEDGE_BURST)
    }
}

impl Hedges {
    /// A bucket that allows so many hedges at once, at most [`HEDGE_BURST`].
    pub fn new(hedges: u32) -> Self {
        Hedges {
            level: hedges.min(HEDGE_BURST) * HEDGE_SHARE,
            counts: Counts::default(),
        }
    }

    /// A request begins.
    pub fn request(&mut self) {
        self.counts.requests += 1;
        self.add(1);
    }

    /// Takes in what a session did with a hedge.
    pub fn note(&mut self, note: &Note) {
        match note {
            Note::Backup { hedge: true, .. } => self.counts.started += 1,
            Note::HedgeRefund => self.refund(),
            Note::HedgeInVain { .. } => self.counts.in_vain += 1,
            _ => {}
        }
    }

    /// What came of them.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Hedges that may start now.
    pub fn left(&self) -> u32 {
        self.level / HEDGE_SHARE
    }

    /// Takes a hedge out, if there is one.
    pub fn take(&mut self) -> bool {
        let left = self.level.checked_sub(HEDGE_SHARE);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }

    /// A hedge that was taken took over, or was not used: it cost nothing.
    pub fn refund(&mut self) {
        self.counts.refunded += 1;
        self.add(HEDGE_SHARE);
    }

    fn add(&mut self, parts: u32) {
        self.level = (self.level + parts).min(HEDGE_BURST * HEDGE_SHARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasted_hedges_add_a_tenth_at_most() {
        let (mut hedges, mut wasted) = (Hedges::default(), 0);
        for _ in 0..10_000 {
            hedges.request();
            wasted += u32::from(hedges.take());
        }
        assert!((1000..=1000 + HEDGE_BURST).contains(&wasted), "{wasted}");
    }

    #[test]
    fn hedges_that_took_over_are_not_capped() {
        let mut hedges = Hedges::default();
        for _ in 0..10_000 {
            assert!(hedges.take());
            hedges.refund();
        }
    }

    #[test]
    fn an_empty_bucket_fills_and_a_full_one_does_not_overflow() {
        let mut hedges = Hedges::new(0);
        assert!(!hedges.take());
        (0..HEDGE_SHARE).for_each(|_| hedges.request());
        assert!(hedges.take() && !hedges.take());
        (0..100 * HEDGE_SHARE * HEDGE_BURST).for_each(|_| hedges.request());
        assert_eq!(
            (0..1000).filter(|_| hedges.take()).count(),
            HEDGE_BURST as usize
        );
    }
}
