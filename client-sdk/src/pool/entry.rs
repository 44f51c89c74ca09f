//! The state of one peer's connection.

use super::kind_rank;
use crate::clock;
use crate::endpoint::CLOSE_NORMAL;
use crate::transport::LinkError;
use quinn::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use unamesh_proto::{Mono, NodeId};

/// One peer.
pub(super) struct Entry {
    pub(super) node: NodeId,
    state: watch::Sender<State>,
    /// When it was last asked for, in microseconds of [`clock::mono`].
    used: AtomicU64,
    /// Streams that are open: a long answer is use, however long ago it was asked for.
    streams: AtomicUsize,
    /// Something about the peer changed: its keeper should try again now.
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct State {
    live: Option<Connection>,
    /// When it was made.
    since: Mono,
    /// A probe over `live` failed: the next connection replaces it, whatever its path.
    doubted: bool,
    dialing: bool,
    /// Why the last dial failed.
    error: Option<LinkError>,
}

impl State {
    fn usable(&self) -> Option<&Connection> {
        self.live.as_ref().filter(|c| c.close_reason().is_none())
    }

    /// What a waiting request gets; `None` while the dial goes on.
    pub(super) fn outcome(&self) -> Option<Result<Connection, LinkError>> {
        match (self.usable(), self.dialing) {
            (Some(connection), _) => Some(Ok(connection.clone())),
            (None, true) => None,
            // A connection that was won and lost before we looked has no error: say so.
            (None, false) => Some(Err(self.error.clone().unwrap_or_else(|| {
                let reason = self.live.as_ref().and_then(Connection::close_reason);
                reason.map_or_else(super::stopping, |r| crate::endpoint::link_error(&r))
            }))),
        }
    }

    /// The same for a request that wants a connection made after `after`.
    pub(super) fn outcome_since(&self, after: Mono) -> Option<Result<Connection, LinkError>> {
        match self.outcome() {
            Some(Ok(_)) if self.since <= after => {
                let none = || LinkError::Lost("no other path answered".into());
                (!self.dialing).then(|| Err(self.error.clone().unwrap_or_else(none)))
            }
            other => other,
        }
    }
}

/// An open stream: while it lives its peer is in use.
pub(super) struct InUse(Arc<Entry>);

impl InUse {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        entry.streams.fetch_add(1, Ordering::Relaxed);
        InUse(entry)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Entry {
    pub(super) fn new(node: NodeId) -> Self {
        Entry {
            node,
            state: watch::Sender::new(State::default()),
            used: AtomicU64::new(clock::mono().as_micros()),
            streams: AtomicUsize::new(0),
            wake: Notify::new(),
        }
    }

    /// Notes that the peer is in use.
    pub(super) fn touch(&self) {
        self.used
            .store(clock::mono().as_micros(), Ordering::Relaxed);
    }

    /// How long it has not been in use at `now`.
    pub(super) fn unused(&self, now: Mono) -> Duration {
        if self.streams.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        now.since(Mono::from_micros(self.used.load(Ordering::Relaxed)))
    }

    /// The connection, unless it is closed.
    pub(super) fn live(&self) -> Option<Connection> {
        self.state.borrow().usable().cloned()
    }

    pub(super) fn is_dialing(&self) -> bool {
        self.state.borrow().dialing
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Claims the dial; false if it is under way.
    pub(super) fn begin_dial(&self) -> bool {
        self.state.send_if_modified(|state| {
            let begin = !state.dialing;
            state.dialing = true;
            begin
        })
    }

    /// The dial is over. `error` counts only if no path answered.
    pub(super) fn end_dial(&self, error: LinkError) {
        self.state.send_if_modified(|state| {
            let failed = state.dialing;
            if failed {
                state.dialing = false;
                state.error = Some(error);
            }
            failed
        });
    }

    /// Takes `connection` into use if there is none, the present one is doubted or on a worse
    /// path; else puts it away.
    pub(super) fn offer(&self, connection: &Connection) {
        self.state.send_modify(|state| {
            state.dialing = false;
            state.error = None;
            let better = state.usable().is_none_or(|present| {
                let rank = |c: &Connection| kind_rank(c.remote_address());
                state.doubted || rank(connection) < rank(present)
            });
            if better {
                // The old one closes when its last stream ends.
                state.live = Some(connection.clone());
                (state.since, state.doubted) = (clock::mono(), false);
            }
        });
    }

    /// A probe over `connection` failed. True if that is the one in use.
    pub(super) fn doubt(&self, connection: &Connection) -> bool {
        self.set_doubted(connection, true)
    }

    /// A probe over `connection` was answered.
    pub(super) fn trust(&self, connection: &Connection) {
        self.set_doubted(connection, false);
    }

    fn set_doubted(&self, connection: &Connection, doubted: bool) -> bool {
        let mut current = false;
        // Nobody waits for doubt: no waiter is woken.
        self.state.send_if_modified(|state| {
            current = state
                .live
                .as_ref()
                .is_some_and(|c| c.stable_id() == connection.stable_id());
            if current {
                state.doubted = doubted;
            }
            false
        });
        current
    }

    /// Uses the connection for nothing new. It closes when its last stream ends.
    pub(super) fn let_go(&self) {
        self.state.send_modify(|state| state.live = None);
    }

    /// Puts the connection away, and tells the peer why.
    pub(super) fn close(&self, why: &str) {
        self.state.send_modify(|state| {
            if let Some(connection) = state.live.take() {
                connection.close(CLOSE_NORMAL, why.as_bytes());
            }
        });
    }
}
