//! How the end of this agent reaches its streams: first *draining* with a deadline, then
//! *stopped*.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Whether this agent is leaving. Shared by all streams.
pub(super) struct Leaving {
    deadline: Mutex<Option<Instant>>,
    draining: CancellationToken,
    stop: CancellationToken,
}

impl Leaving {
    /// Not leaving; `stop` will say when it is over.
    pub fn new(stop: CancellationToken) -> Arc<Self> {
        Arc::new(Leaving {
            deadline: Mutex::default(),
            draining: CancellationToken::new(),
            stop,
        })
    }

    /// From now on draining, for `long` at most; a later call can only shorten it.
    pub fn drain(&self, long: Duration) {
        let deadline = Instant::now() + long;
        let mut current = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(current.map_or(deadline, |before| before.min(deadline)));
        drop(current);
        self.draining.cancel();
    }

    /// How much longer this agent stays, once it drains.
    pub fn left(&self) -> Option<Duration> {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Resolves when it is over.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// One stream's view.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher {
            leaving: Arc::clone(self),
            draining: Some(Box::pin(self.draining.clone().cancelled_owned())),
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
