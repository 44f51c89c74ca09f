//! Percentiles and deadlines.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(5);

/// Looks at `condition` every [`POLL`] until it yields something, and tells how long that took.
///
/// # Panics
/// When `limit` has passed; the message tells `what` was awaited and the last refusal.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        let refusal = match condition().await {
            Ok(found) => return (found, start.elapsed()),
            Err(refusal) => refusal,
        };
        assert!(
            start.elapsed() < limit,
            "{what}: not within {limit:?}: {refusal}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// A number from the environment, or `default`.
///
/// # Panics
/// If the variable is set to something else.
#[must_use]
pub fn setting(name: &str, default: u64) -> u64 {
    let Ok(value) = std::env::var(name) else {
        return default;
    };
    let number = value.parse();
    number.unwrap_or_else(|e| panic!("{name}={value}: {e}"))
}

/// Measured durations of one kind.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that a share `p` (0 to 1) of the samples does not exceed: the nearest rank, so
    /// of 20 samples p95 is the 19th.
    ///
    /// # Panics
    /// Without samples.
    #[must_use]
    pub fn percentile(&self, p: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (p * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }
}

impl std::fmt::Display for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |p| self.percentile(p).as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:.1} ms, p95 {:.1} ms, max {:.1} ms of {}",
            ms(0.5),
            ms(0.95),
            ms(1.0),
            self.0.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let mut samples = Samples::default();
        for ms in (1..=20).rev() {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!(samples.percentile(0.5), Duration::from_millis(10));
        assert_eq!(samples.percentile(0.95), Duration::from_millis(19));
        assert_eq!(samples.percentile(1.0), Duration::from_millis(20));
    }
}
