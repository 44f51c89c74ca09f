//! Noticing afterwards that the machine was asleep: its wall clock went on meanwhile, the
//! monotonic one stood still (Linux, macOS). For sleeps that nobody announced: no logind, a
//! frozen virtual machine, a lid that closed on an empty battery.

use std::time::Duration;
use unamesh_proto::timeouts::IDLE;
use unamesh_proto::{Mono, Wall};

/// How often the clocks are compared: a machine that woke is back in the mesh a second later.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A gap of this is a sleep: connections have not survived it ([`IDLE`]). A clock that is set
/// forward by as much looks the same and costs a new epoch and new connections; answers go on
/// over the old ones.
pub const SLEPT: Duration = Duration::from_secs(IDLE.as_secs() + 1);

/// The clocks at the last look.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    mono: Mono,
    wall: Wall,
}

impl Clocks {
    /// The first look.
    pub fn new(mono: Mono, wall: Wall) -> Self {
        Clocks { mono, wall }
    }

    /// By how much the wall clock ran ahead of the monotonic one since the last look: how long
    /// the machine slept, within the accuracy of its clocks.
    pub fn gap(&mut self, mono: Mono, wall: Wall) -> Duration {
        let by_wall = wall.as_millis().saturating_sub(self.wall.as_millis());
        let ran = mono.since(self.mono);
        *self = Clocks { mono, wall };
        Duration::from_millis(by_wall).saturating_sub(ran)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wall_clock_that_runs_ahead_is_a_sleep() {
        let at = |mono_ms: u64, wall_ms| {
            (
                Mono::from_micros(mono_ms * 1000),
                Wall::from_millis(wall_ms),
            )
        };
        let (mono, wall) = at(0, 1_000_000);
        let mut clocks = Clocks::new(mono, wall);
        let mut gap = |mono_ms, wall_ms| {
            let (mono, wall) = at(mono_ms, wall_ms);
            clocks.gap(mono, wall)
        };
        assert!(gap(1_000, 1_001_010) < SLEPT, "clocks drift");
        assert_eq!(gap(2_000, 4_602_010).as_secs(), 3_600, "an hour's sleep");
        assert!(gap(3_000, 4_603_010) < SLEPT, "told once");
        assert_eq!(
            gap(63_000, 4_603_010),
            Duration::ZERO,
            "a frozen wall clock"
        );
        assert_eq!(gap(64_000, 1_000), Duration::ZERO, "set back");
    }
}
