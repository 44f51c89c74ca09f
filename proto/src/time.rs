//! Time as an argument: a monotonic instant and a wall-clock stamp.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A monotonic instant in microseconds since an epoch that the caller chose.
///
/// Only differences have a meaning, and only within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(u64);

impl Mono {
    /// The caller's epoch.
    pub const ZERO: Mono = Mono(0);

    /// `micros` microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Mono(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, d: Duration) -> Mono {
        Mono(
            self.0
                .saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Mono {
    type Output = Mono;
    fn sub(self, d: Duration) -> Mono {
        Mono(
            self.0
                .saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

/// Wall-clock time in milliseconds since 1970-01-01T00:00:00Z. May jump; never used to order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(u64);

impl Wall {
    /// `ms` milliseconds since the Unix epoch.
    pub const fn from_millis(ms: u64) -> Self {
        Wall(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The distance to `other`, whichever is later.
    pub fn abs_diff(self, other: Wall) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}
