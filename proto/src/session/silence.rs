//! How long a path may be silent before its peer is suspect.
//!
//! A live agent sends a frame at least every [`PROGRESS_EVERY`]. What exceeds that is
//! lateness of the path (Wi-Fi power save, retransmissions) or of a busy machine. Its mean
//! and mean deviation are tracked as TCP tracks its round trip (RFC 6298: gains 1/8 and 1/4),
//! and the bound is interval + mean + 4 deviations, within
//! [`SILENCE_MIN`]..=[`SILENCE_MAX`].

use crate::timeouts::{PROGRESS_EVERY, SILENCE_MAX, SILENCE_MIN};
use std::time::Duration;

/// The learned lateness of one path.
///
/// ```
/// use std::time::Duration;
/// use unamesh_proto::session::Silence;
/// use unamesh_proto::timeouts::{SILENCE_MAX, SILENCE_MIN};
///
/// let mut path = Silence::default();
/// assert_eq!(path.bound(), SILENCE_MIN);
/// for _ in 0..20 {
///     path.observe(Duration::from_millis(20)); // a token each 20 ms
///     path.observe(Duration::from_millis(380)); // and a stall of the Wi-Fi
/// }
/// assert_eq!(path.bound(), SILENCE_MAX);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Silence {
    mean_us: f32,
    deviation_us: f32,
}

impl Silence {
    /// Takes in the gap between two frames of one live stream.
    pub fn observe(&mut self, gap: Duration) {
        let late = gap.saturating_sub(PROGRESS_EVERY).as_micros() as f32;
        self.deviation_us += ((late - self.mean_us).abs() - self.deviation_us) / 4.0;
        self.mean_us += (late - self.mean_us) / 8.0;
    }

    /// The same, of a record that nobody vouches for: no later than counts.
    pub(crate) fn believed(self) -> Self {
        let most = SILENCE_MAX.as_micros() as f32;
        Silence {
            mean_us: self.mean_us.clamp(0.0, most),
            deviation_us: self.deviation_us.clamp(0.0, most),
        }
    }

    /// Silence beyond this is suspicious.
    pub fn bound(&self) -> Duration {
        let late = (self.mean_us + 4.0 * self.deviation_us).max(0.0);
        (PROGRESS_EVERY + Duration::from_micros(late as u64)).clamp(SILENCE_MIN, SILENCE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_wire_keeps_the_minimum() {
        let mut s = Silence::default();
        for _ in 0..1000 {
            s.observe(Duration::from_millis(20));
        }
        assert_eq!(s.bound(), SILENCE_MIN);
    }

    #[test]
    fn stalls_stretch_it_to_the_maximum_and_no_further() {
        let mut s = Silence::default();
        for i in 0..100 {
            s.observe(Duration::from_millis(if i % 4 == 0 { 390 } else { 20 }));
        }
        assert_eq!(s.bound(), SILENCE_MAX);
        for _ in 0..100 {
            s.observe(Duration::from_millis(20));
        }
        assert_eq!(s.bound(), SILENCE_MIN, "it recovers when the path does");
    }
}
