//! Accepting connections: bounds first, then the handshake, then one check of membership.
//!
//! Whoever sends us packets costs nothing until a connection is accepted; a connection in its
//! handshake costs one of [`limits::MAX_HANDSHAKES`] for at most [`timeouts::HANDSHAKE`], and
//! one address may hold a part of them. While many are in their handshake, an address that has
//! not proved itself is sent a Retry, so that forged ones take no place at all. After the
//! handshake the certificate says who it is; the [`limits::MAX_CONNECTIONS`] places are for
//! members alone, of whom each may hold [`limits::MAX_CONNECTIONS_PER_PEER`], and QUIC itself
//! bounds the streams on each. One more closes the member's oldest, of those on which nobody
//! listens if there is one: an agent that crashed and started again some times leaves connections
//! behind that only their idle time-out would end, and it is the newest that counts. Answers on
//! the one that is closed are not cancelled: their clients come back for the rest.

use super::handshakes::{Handshake, Handshakes};
use super::streams;
use super::voice::Mics;
use super::{Hooks, Service};
use quinn::{Connection, Incoming};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unamesh_client::endpoint::{CLOSE_NORMAL, canonical, close_code, member_of};
use unamesh_client::identity::Member;
use unamesh_proto::wire::ErrorCode;
use unamesh_proto::{NodeId, limits, timeouts};

/// Accepts what arrives at one endpoint.
pub(super) struct Listener {
    pub service: Arc<Service>,
    pub hooks: Arc<dyn Hooks>,
    ca: Vec<u8>,
    places: Arc<Semaphore>,
    handshakes: Arc<Handshakes>,
    peers: Mutex<HashMap<NodeId, Held>>,
}

/// What one peer holds.
struct Held {
    /// The oldest first; a closed one until the last of its streams is over.
    connections: Vec<Arc<Line>>,
    reads: Arc<Semaphore>,
}

/// One connection, as the streams on it see it.
pub(super) struct Line {
    pub connection: Connection,
    /// Clients that listen on it.
    pub listening: AtomicUsize,
    /// It had to make room for a newer one.
    replaced: AtomicBool,
}

impl Line {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    fn is_idle(&self) -> bool {
        self.listening.load(Ordering::Relaxed) == 0
    }

    /// Closes it. Both ends take that for a break, after which a client comes back, and not for
    /// an end that somebody wanted.
    fn make_room(&self) {
        self.replaced.store(true, Ordering::Release);
        self.connection
            .close(CLOSE_NORMAL, b"a newer connection took its place");
    }

    /// Whether it was closed by [`Line::make_room`]; to be asked when it is closed.
    pub fn was_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }
}

impl Held {
    /// Takes one in, closing the oldest if there are too many; false if too many of those are
    /// not over yet.
    fn enter(&mut self, line: &Arc<Line>) -> bool {
        if self.connections.len() >= 2 * limits::MAX_CONNECTIONS_PER_PEER {
            return false;
        }
        let open = self.connections.iter().filter(|line| line.is_open());
        if open.clone().count() >= limits::MAX_CONNECTIONS_PER_PEER {
            let idle = open.clone().find(|line| line.is_idle());
            let oldest = idle.or_else(|| open.clone().next());
            oldest.into_iter().for_each(|line| line.make_room());
        }
        self.connections.push(Arc::clone(line));
        true
    }

    fn leave(&mut self, line: &Arc<Line>) {
        self.connections.retain(|held| !Arc::ptr_eq(held, line));
    }
}

impl Listener {
    /// Accepts members whose certificates `ca` (DER) issued.
    pub fn new(service: Arc<Service>, ca: Vec<u8>, hooks: Arc<dyn Hooks>) -> Arc<Self> {
        Arc::new(Listener {
            service,
            hooks,
            ca,
            places: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            handshakes: Arc::default(),
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
        if self.service.drills().is_silent() {
            incoming.ignore();
            return;
        }
        let loaded = self.handshakes.count() >= limits::MAX_UNPROVEN_HANDSHAKES;
        if loaded && !incoming.remote_address_validated() && incoming.may_retry() {
            // It cannot fail: `may_retry` was asked.
            let _ = incoming.retry();
            return;
        }
        let remote = canonical(incoming.remote_address());
        let Some(handshake) = self.handshakes.begin(remote.ip()) else {
            // Unanswered, its dialer sends its first packet again in a second, and is let in if
            // this was but a burst: a machine may run several agents, and a router hide many.
            tracing::debug!(%remote, "too many handshakes: ignored");
            incoming.ignore();
            return;
        };
        let listener = Arc::clone(self);
        self.service
            .tasks()
            .spawn(listener.connection(incoming, handshake));
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, handshake: Handshake) {
        let remote = canonical(incoming.remote_address());
        let shaken = self.shake_hands(incoming).await;
        drop(handshake);
        let Some(connection) = shaken else {
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
        let mut kills = self.service.drills().kills();
        loop {
            let accepted = tokio::select! {
                () = self.service.leaving().stopped() => return,
                Ok(()) = kills.changed() => {
                    connection.close(CLOSE_NORMAL, b"restarted");
                    return;
                }
                accepted = connection.accept_bi() => accepted,
                Ok(datagram) = connection.read_datagram() => {
                    guest.mics.deliver(datagram);
                    continue;
                }
            };
            let Ok((send, recv)) = accepted else { return };
            let stream = streams::serve(Arc::clone(&self), Arc::clone(&guest), send, recv);
            self.service.tasks().spawn(stream);
        }
    }

    async fn shake_hands(&self, incoming: Incoming) -> Option<Connection> {
        let remote = canonical(incoming.remote_address());
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
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| (ErrorCode::Limit, "too many connections".to_owned()))?;
        let line = Arc::new(Line {
            connection: connection.clone(),
            listening: AtomicUsize::new(0),
            replaced: AtomicBool::new(false),
        });
        let reads = self.enter(member.node, &line).ok_or_else(|| {
            let most = limits::MAX_CONNECTIONS_PER_PEER;
            (
                ErrorCode::Limit,
                format!("a node may hold {most} connections"),
            )
        })?;
        Ok(Guest {
            listener: Arc::clone(self),
            member,
            line,
            reads,
            mics: Arc::default(),
            _place: place,
        })
    }

    fn enter(&self, node: NodeId, line: &Arc<Line>) -> Option<Arc<Semaphore>> {
        let mut peers = self.peers();
        let held = peers.entry(node).or_insert_with(|| Held {
            connections: Vec::new(),
            reads: Arc::new(Semaphore::new(limits::MAX_READS_PER_PEER)),
        });
        held.enter(line).then(|| Arc::clone(&held.reads))
    }

    fn leave(&self, node: &NodeId, line: &Arc<Line>) {
        let mut peers = self.peers();
        if let Some(held) = peers.get_mut(node) {
            held.leave(line);
            if held.connections.is_empty() {
                peers.remove(node);
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Held>> {
        // Changed in one step each: whole whatever happened.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member on one connection. Counts among its connections until it is dropped, with the
/// last of its streams.
pub(super) struct Guest {
    listener: Arc<Listener>,
    pub member: Member,
    pub line: Arc<Line>,
    /// Permits for reading large requests.
    pub reads: Arc<Semaphore>,
    /// Where its datagrams go.
    pub mics: Arc<Mics>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.listener.leave(&self.member.node, &self.line);
    }
}
