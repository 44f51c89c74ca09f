//! Percentiles, deadlines, and trials in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
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

/// A thread of the system that wakes up this late has no processor to itself: what plays sound
/// behind 80 ms cannot tell then whose fault a gap is.
const BUSY: Duration = Duration::from_millis(20);

/// Trials of something that happens in real time; an unoptimized program is not worth more.
const TRIALS: u32 = if cfg!(debug_assertions) { 1 } else { 3 };

/// Holds `trial`, which tells what it missed, to its bar: at once where the machine had time for
/// it, else in the best of three. A debug build on a busy machine proves nothing, and says so.
///
/// # Panics
/// The bar was missed.
pub async fn in_real_time(mut trial: impl AsyncFnMut() -> Result<(), String>) {
    let mut last = String::new();
    for _ in 0..TRIALS {
        let busy = Busy::watch();
        let Err(missed) = trial().await else { return };
        let late = busy.latest();
        assert!(late >= BUSY, "{missed}, on a machine that had time");
        last = format!("{missed}; the machine is too busy: a thread woke up {late:.0?} late");
        println!("{last}");
    }
    if !cfg!(debug_assertions) {
        panic!("{last}");
    }
}

/// Notices when the machine has no processor to spare: a thread that sleeps for a moment, over
/// and over, and measures how late it wakes up.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Busy {
    fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut latest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(POLL);
                latest = latest.max(began.elapsed() - POLL);
            }
            latest
        });
        Busy { stop, thread }
    }

    /// By how much it was too late at most.
    fn latest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
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
