//! Accepting connections: bounds first, then the handshake, then one check of membership.
//!
//! Whoever sends us packets costs nothing until a connection is accepted; a connection in its
//! handshake costs one of [`limits::MAX_CONNECTIONS`] for at most [`timeouts::HANDSHAKE`].
//! While many are in their handshake, an address that has not proved itself is sent a Retry,
//! so that forged ones take no place at all. After the handshake the certificate says who it
//! is; one peer may hold [`limits::MAX_CONNECTIONS_PER_PEER`] connections, and QUIC itself
//! bounds the streams on each.

use super::streams;
use super::{Hooks, Service};
use quinn::{Connection, Incoming};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unamesh_client::endpoint::{canonical, close_code, member_of};
use unamesh_client::identity::Member;
use unamesh_proto::wire::ErrorCode;
use unamesh_proto::{NodeId, limits, timeouts};

/// Accepts what arrives at one endpoint.
pub(super) struct Listener {
    pub service: Arc<Service>,
    pub hooks: Arc<dyn Hooks>,
    ca: Vec<u8>,
    places: Arc<Semaphore>,
    handshakes: AtomicUsize,
    peers: Mutex<HashMap<NodeId, Held>>,
}

/// What one peer holds.
struct Held {
    connections: usize,
    reads: Arc<Semaphore>,
}

impl Listener {
    /// Accepts members whose certificates `ca` (DER) issued.
    pub fn new(service: Arc<Service>, ca: Vec<u8>, hooks: Arc<dyn Hooks>) -> Arc<Self> {
        Arc::new(Listener {
            service,
            hooks,
            ca,
            places: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            handshakes: AtomicUsize::new(0),
            peers: Mutex::default(),
        })
    }

    /// The accept loop: until the service stops or the endpoint closes.
    pub async fn listen(self: Arc<Self>, endpoint: quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                () = self.service.leaving().stopped() => return,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            self.take(incoming);
        }
    }

    fn take(self: &Arc<Self>, incoming: Incoming) {
        let loaded = self.handshakes.load(Ordering::Relaxed) >= limits::MAX_UNPROVEN_HANDSHAKES;
        if loaded && !incoming.remote_address_validated() && incoming.may_retry() {
            // It cannot fail: `may_retry` was asked.
            let _ = incoming.retry();
            return;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!(from = %incoming.remote_address(), "refused: too many connections");
            incoming.refuse();
            return;
        };
        let listener = Arc::clone(self);
        self.service
            .tasks()
            .spawn(listener.connection(incoming, place));
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, _place: OwnedSemaphorePermit) {
        let remote = canonical(incoming.remote_address());
        let Some(connection) = self.shake_hands(incoming).await else {
            return;
        };
        let guest = match self.admit(&connection) {
            Ok(guest) => Arc::new(guest),
            Err((code, reason)) => {
                tracing::info!(%remote, %code, reason, "connection refused");
                connection.close(close_code(code), reason.as_bytes());
                return;
            }
        };
        self.hooks.connected(guest.member, connection.clone());
        loop {
            let accepted = tokio::select! {
                () = self.service.leaving().stopped() => return,
                accepted = connection.accept_bi() => accepted,
            };
            let Ok((send, recv)) = accepted else { return };
            let stream = streams::serve(Arc::clone(&self), Arc::clone(&guest), send, recv);
            self.service.tasks().spawn(stream);
        }
    }

    async fn shake_hands(&self, incoming: Incoming) -> Option<Connection> {
        let remote = canonical(incoming.remote_address());
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        let shaken = async {
            let connecting = incoming.accept()?;
            match tokio::time::timeout(timeouts::HANDSHAKE, connecting).await {
                Ok(connection) => connection.map(Some),
                Err(_) => Ok(None),
            }
        };
        let shaken = tokio::select! {
            () = self.service.leaving().stopped() => Ok(None),
            shaken = shaken => shaken,
        };
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
        match shaken {
            Ok(connection) => connection,
            Err(e) => {
                tracing::debug!(%remote, error = %e, "handshake failed");
                None
            }
        }
    }

    /// Who is there, and whether there is room.
    fn admit(self: &Arc<Self>, connection: &Connection) -> Result<Guest, (ErrorCode, String)> {
        let member =
            member_of(connection, &self.ca).map_err(|e| (ErrorCode::Forbidden, e.to_string()))?;
        if self.hooks.is_revoked(&member.node) {
            return Err((
                ErrorCode::Forbidden,
                "this node was removed from the mesh".to_owned(),
            ));
        }
        let reads = self.enter(member.node).ok_or_else(|| {
            let most = limits::MAX_CONNECTIONS_PER_PEER;
            (
                ErrorCode::Limit,
                format!("a node may hold {most} connections"),
            )
        })?;
        let (listener, connection) = (Arc::clone(self), connection.clone());
        Ok(Guest {
            listener,
            member,
            connection,
            reads,
        })
    }

    fn enter(&self, node: NodeId) -> Option<Arc<Semaphore>> {
        let mut peers = self.peers();
        let held = peers.entry(node).or_insert_with(|| Held {
            connections: 0,
            reads: Arc::new(Semaphore::new(limits::MAX_READS_PER_PEER)),
        });
        if held.connections >= limits::MAX_CONNECTIONS_PER_PEER {
            return None;
        }
        held.connections += 1;
        Some(Arc::clone(&held.reads))
    }

    fn leave(&self, node: &NodeId) {
        let mut peers = self.peers();
        if let Some(held) = peers.get_mut(node) {
            held.connections = held.connections.saturating_sub(1);
            if held.connections == 0 {
                peers.remove(node);
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Held>> {
        // Counts are changed in one step each: they are whole whatever happened.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member on one connection. Counts among its connections until it is dropped, with the
/// last of its streams.
pub(super) struct Guest {
    listener: Arc<Listener>,
    pub member: Member,
    pub connection: Connection,
    /// Permits for reading large requests.
    pub reads: Arc<Semaphore>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.listener.leave(&self.member.node);
    }
}
