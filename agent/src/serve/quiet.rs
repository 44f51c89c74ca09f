//! When a stream has to say that it lives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep};
use unamesh_proto::timeouts;

/// Rings when no frame went out for [`timeouts::PROGRESS_EVERY`]. A frame costs a reading of
/// the clock; the timer is set anew only when it rings too early.
pub(super) struct Quiet {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Quiet {
    /// Something went out just now.
    pub fn new() -> Self {
        let since = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(since + timeouts::PROGRESS_EVERY));
        Quiet { since, timer }
    }

    /// Something goes out.
    pub fn broken(&mut self) {
        self.since = Instant::now();
    }

    /// Ready while nothing went out for so long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.since + timeouts::PROGRESS_EVERY;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}
