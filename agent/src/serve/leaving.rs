//! How a planned leave of this agent reaches its streams: *draining* with a deadline, which can
//! be taken back for those to come, and *stopped*.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Whether this agent is leaving. Shared by all streams.
pub(super) struct Leaving {
    drain: Mutex<Drain>,
    stop: CancellationToken,
}

/// The present drain, or the next one.
#[derive(Default)]
struct Drain {
    /// Absent: it has not begun.
    deadline: Option<Instant>,
    begun: CancellationToken,
}

impl Leaving {
    /// Not leaving; `stop` will say when it is over.
    pub fn new(stop: CancellationToken) -> Arc<Self> {
        Arc::new(Leaving {
            drain: Mutex::default(),
            stop,
        })
    }

    /// From now on draining, for `long` at most; a later call sets a new deadline.
    pub fn drain(&self, long: Duration) {
        let mut drain = self.lock();
        drain.deadline = Some(Instant::now() + long);
        drain.begun.cancel();
    }

    /// Not draining any more. Streams that were told move all the same.
    pub fn resume(&self) {
        let mut drain = self.lock();
        if drain.deadline.is_some() {
            *drain = Drain::default();
        }
    }

    /// How much longer this agent stays, once it drains.
    pub fn left(&self) -> Option<Duration> {
        let deadline = self.lock().deadline;
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn lock(&self) -> MutexGuard<'_, Drain> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when it is over.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// One stream's view.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher {
            leaving: Arc::clone(self),
            draining: Some(Box::pin(self.lock().begun.clone().cancelled_owned())),
            stop: Box::pin(self.stop.clone().cancelled_owned()),
        }
    }
}

/// One stream's view of [`Leaving`].
pub(super) struct Watcher {
    leaving: Arc<Leaving>,
    /// `None` once it was told.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Watcher {
    /// Ready when it is over.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stop.as_mut().poll(cx)
    }

    /// Ready once, when draining begins: how much longer this agent stays.
    pub fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(draining) = &mut self.draining else {
            return Poll::Pending;
        };
        ready!(draining.as_mut().poll(cx));
        self.draining = None;
        Poll::Ready(self.leaving.left().unwrap_or_default())
    }
}
