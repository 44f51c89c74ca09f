//! The only place where the client reads a clock.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use unamesh_proto::{Mono, Wall};

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Now, in the core's monotonic time (epoch: the first call in this process). It is the timers'
/// clock: where a test pauses that, this one stands still too.
pub fn mono() -> Mono {
    let since = tokio::time::Instant::now()
        .into_std()
        .saturating_duration_since(*EPOCH);
    Mono::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The instant of `at`, for timers.
pub fn instant(at: Mono) -> tokio::time::Instant {
    tokio::time::Instant::from_std(*EPOCH + std::time::Duration::from_micros(at.as_micros()))
}

/// Now, in wall-clock time; 0 if the clock stands before 1970.
pub fn wall() -> Wall {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Wall::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
