//! A line and what travels on it.

use super::{Fate, Line};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Packets that travel at once; beyond it they are lost: more than any real link holds.
const MAX_TRAVELLING: usize = 4096;

/// What a pipe did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that arrived.
    pub arrived: u64,
    /// Packets that were lost, for whatever reason.
    pub lost: u64,
}

/// A [`Line`] with packets on it: in at one end, out at the other when it is time.
#[derive(Debug)]
pub struct Pipe {
    /// What happens to the next packets.
    pub line: Line,
    travelling: BinaryHeap<Reverse<Travelling>>,
    /// Of all packets, to keep the order of those that arrive at the same time.
    number: u64,
    counts: Counts,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    arrives: Duration,
    number: u64,
    packet: Vec<u8>,
}

impl Pipe {
    /// An empty one.
    #[must_use]
    pub fn new(line: Line) -> Self {
        Self {
            line,
            travelling: BinaryHeap::new(),
            number: 0,
            counts: Counts::default(),
        }
    }

    /// A packet goes in.
    pub fn push(&mut self, now: Duration, packet: &[u8]) {
        match self.line.send(now, packet.len()) {
            Fate::Arrives(arrives) if self.travelling.len() < MAX_TRAVELLING => {
                self.number += 1;
                self.travelling.push(Reverse(Travelling {
                    arrives,
                    number: self.number,
                    packet: packet.to_vec(),
                }));
            }
            _ => self.counts.lost += 1,
        }
    }

    /// The next packet that has arrived.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        let Reverse(first) = self.travelling.pop()?;
        self.counts.arrived += 1;
        Some(first.packet)
    }

    /// When the next packet arrives.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        Some(self.travelling.peek()?.0.arrives)
    }

    /// Begins or ends a blackhole. What travels when it begins is lost with it.
    pub fn blackhole(&mut self, on: bool) {
        self.line.blackhole = on;
        if on {
            self.counts.lost += self.travelling.len() as u64;
            self.travelling.clear();
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
