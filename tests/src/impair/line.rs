//! One direction of a link, packet after packet; see [`super`] for the algorithm.

use super::Impairment;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives then.
    Arrives(Duration),
    /// It never arrives.
    Lost(Reason),
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The line swallows everything.
    Blackhole,
    /// Bad luck.
    Loss,
    /// The queue was full.
    Queue,
}

/// An [`Impairment`] at work. Times count from any moment that does not change.
#[derive(Clone, Debug)]
pub struct Line {
    impairment: Impairment,
    /// Everything is swallowed, whatever the impairment says.
    pub blackhole: bool,
    luck: ChaCha8Rng,
    /// The Gilbert-Elliott state.
    bad: bool,
    /// When the token bucket has paid for all that was sent; in the past if tokens are left.
    paid: Duration,
    /// When the last packet arrives.
    last: Duration,
}

impl Line {
    /// A line whose luck comes from `seed`.
    #[must_use]
    pub fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment,
            blackhole: false,
            luck: ChaCha8Rng::seed_from_u64(seed),
            bad: false,
            paid: Duration::ZERO,
            last: Duration::ZERO,
        }
    }

    /// From the next packet on it is another impairment; the luck goes on where it is.
    pub fn set(&mut self, impairment: Impairment) {
        self.impairment = impairment;
        self.bad = false;
        self.paid = Duration::ZERO;
    }

    /// The fate of the next packet: `size` bytes, sent at `now`, which is never before the last.
    pub fn send(&mut self, now: Duration, size: usize) -> Fate {
        let (turn, spread) = (self.luck.random::<f64>(), self.luck.random::<f64>());
        let unlucky = self.turns_bad(turn);
        if self.blackhole {
            return Fate::Lost(Reason::Blackhole);
        }
        if unlucky {
            return Fate::Lost(Reason::Loss);
        }
        let Some(leaves) = self.leaves(now, size) else {
            return Fate::Lost(Reason::Queue);
        };
        let Impairment {
            delay,
            jitter,
            reorder,
            stalls,
            ..
        } = self.impairment;
        let leaves = stalls.map_or(leaves, |trace| trace.release(leaves));
        let arrives = (leaves + delay + jitter.mul_f64(2.0 * spread)).saturating_sub(jitter);
        let arrives = arrives.max(now);
        if reorder {
            return Fate::Arrives(arrives);
        }
        self.last = self.last.max(arrives);
        Fate::Arrives(self.last)
    }

    /// Moves on in the Gilbert-Elliott model; whether the line is bad now.
    fn turns_bad(&mut self, turn: f64) -> bool {
        let Some(loss) = self.impairment.loss else {
            return false;
        };
        // A burst ends with the chance 1/burst; that a bad one begins balances it at `share`.
        let ends = 1.0 / loss.burst;
        let begins = loss.share * ends / (1.0 - loss.share);
        self.bad = turn < if self.bad { 1.0 - ends } else { begins };
        self.bad
    }

    /// When the token bucket lets a packet go; `None` if its queue is full.
    fn leaves(&mut self, now: Duration, size: usize) -> Option<Duration> {
        let Some(rate) = self.impairment.rate else {
            return Some(now);
        };
        let waiting = self.paid.saturating_sub(now);
        if waiting + rate.time(size) > rate.time(rate.queue) {
            return None;
        }
        let saved = now.saturating_sub(rate.time(rate.burst));
        self.paid = self.paid.max(saved) + rate.time(size);
        Some(self.paid.max(now))
    }
}
