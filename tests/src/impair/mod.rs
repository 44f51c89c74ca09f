//! What a bad network does to packets, as arithmetic: no sockets, no clock, no global randomness.
//!
//! An [`Impairment`] describes one direction of a link. A [`Line`] applies it: for the next
//! packet, of so many bytes at such a time, it says when that packet arrives or why it never
//! does. In this order:
//!
//! 1. a blackhole swallows it;
//! 2. Gilbert-Elliott: the line is good or bad, and a bad one loses what it is given; chances to
//!    change are drawn per packet, so that losses come in bursts;
//! 3. a token bucket lets it go at once or makes it queue; a full queue drops it;
//! 4. a stall keeps it until the stall is over, as a Wi-Fi adapter does that is away or asleep;
//! 5. it travels for the delay, more or less the jitter, and does not overtake the one before,
//!    unless reordering is asked for.
//!
//! Every packet draws the same number of random values whatever happens to it, so the luck of
//! packet *n* is a function of the seed and *n* alone, and a run can be repeated.
//!
//! A [`Pipe`] is a line with the packets that travel on it. The lab's forwarder moves Ethernet
//! frames through it ([`crate::lab`]), the in-process double UDP datagrams
//! ([`crate::doubles::PathDouble`]).

mod line;
mod pipe;
#[cfg(test)]
mod tests;

pub use line::{Fate, Line, Reason};
pub use pipe::{Counts, Pipe};

use std::time::Duration;

/// What happens to the packets of one direction of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairment {
    /// How long a packet travels.
    pub delay: Duration,
    /// Each packet travels this much longer or shorter at most, all values alike.
    pub jitter: Duration,
    /// Packets may overtake each other where the jitter allows it.
    pub reorder: bool,
    /// Packets that never arrive.
    pub loss: Option<Loss>,
    /// How much fits through.
    pub rate: Option<Rate>,
    /// When nothing gets through for a while.
    pub stalls: Option<Trace>,
}

/// Gilbert-Elliott loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Share of the packets, 0 to 1, that is lost in the long run.
    pub share: f64,
    /// Packets that are lost in a row, on average; at least 1.
    pub burst: f64,
}

/// A token bucket with a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bits a second in the long run.
    pub bits_per_s: u64,
    /// Bytes that pass at once after a pause.
    pub burst: usize,
    /// Bytes that may wait; what does not fit is dropped.
    pub queue: usize,
}

/// Stalls at known times, over and over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trace {
    /// Begin and length of each in milliseconds, in order; none touches the next, compressed
    /// neither.
    pub stalls: &'static [(u64, u64)],
    /// After this the trace begins again, in milliseconds.
    pub period: u64,
    /// Divides the begins and the period but not the lengths: the same stalls, closer together.
    pub compress: u64,
    /// The trace begins here, in milliseconds of itself, so that two links do not stall together.
    pub shift: u64,
}

/// A direction of a link, as the end sees it that the link belongs to: a host, a dialer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What it sends.
    Out,
    /// What it receives.
    In,
    /// Either.
    Both,
}

impl Way {
    /// Which of the two pipes of a link, out and in, are meant.
    #[must_use]
    pub fn range(self) -> std::ops::Range<usize> {
        match self {
            Way::Out => 0..1,
            Way::In => 1..2,
            Way::Both => 0..2,
        }
    }
}

/// Nothing is wrong: a cable.
pub const CABLE: Impairment = Impairment {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    reorder: false,
    loss: None,
    rate: None,
    stalls: None,
};

/// Ten minutes of a laptop on the edge of its Wi-Fi: twelve stalls of more than 200 ms, and
/// short ones between them.
pub const WIFI_TRACE: Trace = Trace {
    stalls: &[
        (11_300, 60),
        (31_700, 240),
        (58_900, 90),
        (84_200, 310),
        (103_600, 40),
        (129_400, 215),
        (161_000, 270),
        (190_500, 120),
        (217_800, 380),
        (262_300, 205),
        (295_100, 70),
        (318_700, 330),
        (352_900, 250),
        (381_200, 50),
        (409_600, 220),
        (447_300, 290),
        (488_800, 110),
        (515_400, 230),
        (566_100, 360),
    ],
    period: 600_000,
    compress: 1,
    shift: 0,
};

/// Wi-Fi through two walls.
pub const WIFI: Impairment = Impairment {
    delay: Duration::from_millis(2),
    jitter: Duration::from_micros(1500),
    loss: Some(Loss {
        share: 0.001,
        burst: 2.0,
    }),
    stalls: Some(WIFI_TRACE),
    ..CABLE
};

/// A bad path over the internet: 25 ms +- 5 ms each way, and 3 % of the packets lost in bursts
/// of two.
pub const LOSSY: Impairment = Impairment {
    delay: Duration::from_millis(25),
    jitter: Duration::from_millis(5),
    loss: Some(Loss {
        share: 0.03,
        burst: 2.0,
    }),
    ..CABLE
};

/// 1 Mbit/s, with the quarter of a second of buffer that cheap routers have.
pub const NARROW: Impairment = Impairment {
    delay: Duration::from_millis(5),
    rate: Some(Rate {
        bits_per_s: 1_000_000,
        burst: 3_000,
        queue: 32_000,
    }),
    ..CABLE
};

impl Default for Impairment {
    fn default() -> Self {
        CABLE
    }
}

impl Impairment {
    /// The same stalls in a tenth of the time, with `times` 10.
    #[must_use]
    pub fn compressed(mut self, times: u64) -> Self {
        if let Some(trace) = &mut self.stalls {
            trace.compress *= times;
        }
        self
    }

    /// The same stalls at other times: the trace begins at `milliseconds` of itself.
    #[must_use]
    pub fn shifted(mut self, milliseconds: u64) -> Self {
        if let Some(trace) = &mut self.stalls {
            trace.shift += milliseconds;
        }
        self
    }
}

impl Trace {
    /// When what leaves at `at` really leaves: then, or at the end of the stall.
    fn release(&self, at: Duration) -> Duration {
        let period = Duration::from_millis(self.period / self.compress);
        let shifted = at + Duration::from_millis(self.shift / self.compress);
        let round = period * u32::try_from(shifted.as_nanos() / period.as_nanos()).unwrap();
        let within = shifted - round;
        let mut stalls = self.stalls.iter().map(|&(begin, length)| {
            let begin = Duration::from_millis(begin / self.compress);
            begin..begin + Duration::from_millis(length)
        });
        stalls
            .find(|stall| stall.contains(&within))
            .map_or(at, |stall| at + (stall.end - within))
    }
}

impl Rate {
    /// How long `bytes` take.
    fn time(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.bits_per_s as f64)
    }
}
