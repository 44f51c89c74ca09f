//! One warm connection a peer, dialed over all of its paths.
//!
//! - **Dialing.** [`Pool::connection`] returns the peer's live connection, or joins the dial
//!   that is under way, or starts one: a hundred requests to a peer that is not connected
//!   cost one dial. A dial [races](race) every known address; the first that answers wins. A
//!   path of a better kind (the home's network rather than the tailnet) that answers later
//!   takes its place.
//! - **Keeping.** Peers that are likely to be asked are [kept](keep) connected and probed
//!   each [`timeouts::PROBE_EVERY`]; what comes of it is reported to the table.
//! - **Doubt.** A probe that fails makes a connection *doubted*: all paths are dialed again
//!   while the old connection stays in use. Whichever answers first is used from then on, and
//!   streams that run on the other go on as long as it lives. A stream that is silent for longer
//!   than its path has shown doubts its connection too ([`Pool::connection_since`]).
//! - **Putting away.** A connection that is neither kept nor was used for
//!   [`timeouts::POOL_IDLE`] is dropped.
//!
//! No lock is held across an await, and none is taken between two frames of a stream.

mod entry;
mod keep;
pub(crate) mod race;
mod speech;
mod transport;

pub use transport::QuicTransport;

use crate::clock;
use crate::endpoint::{canonical, member_of};
use crate::framing;
use crate::identity::{Credentials, Member, role_dns_name};
use crate::transport::LinkError;
use entry::{Entry, State};
use futures_util::FutureExt;
use quinn::{Connection, Endpoint};
use race::Race;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use unamesh_proto::table::{Liveness, Snapshot};
use unamesh_proto::wire::{Addr, ErrorCode, Probe, ProbeReply, Role, StreamKind, WireError};
use unamesh_proto::{Mono, NodeId, limits, timeouts};

/// What was learned about a path, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathReport {
    /// The node itself answered there.
    Ok {
        /// Who.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
        /// How fast.
        rtt: Duration,
    },
    /// Nobody answered there, somebody else did, or the connection broke.
    Failed {
        /// Who was asked for.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
    },
}

/// The connections of this node to others.
pub struct Pool {
    endpoint: Endpoint,
    credentials: Arc<Credentials>,
    table: watch::Receiver<Arc<Snapshot>>,
    reports: mpsc::Sender<PathReport>,
    tasks: TaskTracker,
    stop: CancellationToken,
    entries: Mutex<HashMap<NodeId, Arc<Entry>>>,
    wanted: Mutex<Wanted>,
    /// The wanted set changed.
    wanted_changed: Notify,
}

/// Whom to keep connected.
#[derive(Default)]
struct Wanted {
    all: bool,
    nodes: HashSet<NodeId>,
}

impl Pool {
    /// A pool that dials from `endpoint` and finds addresses in `table`. Reports go to
    /// `reports`; those that do not fit are dropped (the next probe makes new ones). `tasks`
    /// owns its tasks, `stop` ends them. Must be called within a tokio runtime.
    pub fn new(
        endpoint: Endpoint,
        credentials: Arc<Credentials>,
        table: watch::Receiver<Arc<Snapshot>>,
        reports: mpsc::Sender<PathReport>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Pool> {
        let pool = Arc::new(Pool {
            endpoint,
            credentials,
            table,
            reports,
            tasks,
            stop,
            entries: Mutex::default(),
            wanted: Mutex::default(),
            wanted_changed: Notify::new(),
        });
        pool.tasks.spawn(keep::manage(pool.clone()));
        pool
    }

    /// Keeps every peer of the table connected (an agent), or only those named to
    /// [`crate::transport::Transport::warm`].
    pub fn warm_all(&self, all: bool) {
        lock(&self.wanted).all = all;
        self.wanted_changed.notify_one();
    }

    fn warm(&self, nodes: &[NodeId]) {
        let mut wanted = lock(&self.wanted);
        let same =
            wanted.nodes.len() == nodes.len() && nodes.iter().all(|n| wanted.nodes.contains(n));
        if !same {
            wanted.nodes = nodes.iter().copied().collect();
            drop(wanted);
            self.wanted_changed.notify_one();
        }
    }

    /// The live connection to `node`, dialed if there is none. Dropping the future gives up
    /// waiting; a dial that it started goes on for the others.
    ///
    /// # Errors
    /// No path answered, or the peer refused; nothing was sent.
    pub async fn connection(self: &Arc<Self>, node: NodeId) -> Result<Connection, LinkError> {
        let entry = self.entry(node);
        entry.touch();
        if let Some(connection) = entry.live() {
            return Ok(connection);
        }
        let changes = entry.subscribe();
        self.start_dial(&entry, ANY_RANK);
        self.dialed(changes, State::outcome).await
    }

    /// A connection to `node` that was made after `after`: over all paths at once, unless there
    /// is one. The older one, which fell silent then, stays until its streams end.
    ///
    /// # Errors
    /// No path answered, or the peer refused; nothing was sent.
    pub async fn connection_since(
        self: &Arc<Self>,
        node: NodeId,
        after: Mono,
    ) -> Result<Connection, LinkError> {
        let entry = self.entry(node);
        entry.touch();
        let outcome = |state: &State| state.outcome_since(after);
        for _ in 0..2 {
            let changes = entry.subscribe();
            if let Some(Ok(connection)) = outcome(&changes.borrow()) {
                return Ok(connection);
            }
            if let Some(silent) = entry.live() {
                entry.doubt(&silent);
            }
            let began = self.start_dial(&entry, ANY_RANK);
            let dialed = self.dialed(changes, outcome).await;
            if began || dialed.is_ok() {
                return dialed;
            }
            // It was a dial of better paths alone, or it began before the silence.
        }
        Err(unreachable(node, Vec::new()))
    }

    /// Waits for the outcome of a dial.
    async fn dialed(
        &self,
        mut changes: watch::Receiver<State>,
        outcome: impl Fn(&State) -> Option<Result<Connection, LinkError>>,
    ) -> Result<Connection, LinkError> {
        loop {
            if let Some(outcome) = outcome(&changes.borrow_and_update()) {
                return outcome;
            }
            tokio::select! {
                // Whoever waits holds the entry, which is the sender: it cannot be gone.
                _ = changes.changed() => {}
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    /// Dials `node` at `addr` alone. The connection becomes the peer's if it has none or this
    /// is a better path.
    ///
    /// # Errors
    /// The node itself did not answer there.
    pub async fn dial(&self, node: NodeId, addr: SocketAddr) -> Result<Connection, LinkError> {
        let dialed = race::dial(&self.endpoint, &node.dns_name(), addr).await;
        self.report_dial(node, addr, &dialed);
        let connection = dialed?;
        self.entry(node).offer(&connection);
        Ok(connection)
    }

    /// Dials whichever agent of the mesh listens at `addr`: for a seed, whose node id is not
    /// known. The connection becomes that peer's if it has none.
    ///
    /// # Errors
    /// No agent of this mesh answered there.
    pub async fn dial_seed(&self, addr: SocketAddr) -> Result<(Member, Connection), LinkError> {
        let by_role = async |role| race::dial(&self.endpoint, &role_dns_name(role), addr).await;
        let connection = match by_role(Role::Admin).await {
            // Of this mesh, but no admin (or of another mesh, which the second try tells).
            Err(LinkError::Refused(_)) => by_role(Role::Agent).await?,
            other => other?,
        };
        let member = member_of(&connection, &self.credentials.ca)
            .map_err(|e| LinkError::Refused(WireError::new(ErrorCode::Forbidden, e.to_string())))?;
        self.report_dial(member.node, addr, &Ok(connection.clone()));
        self.entry(member.node).offer(&connection);
        Ok((member, connection))
    }

    /// Asks `node` for a sign of life over its connection, dialed if there is none. Returns
    /// the path used, its round trip and the answer. Failure makes the connection doubted.
    ///
    /// # Errors
    /// No path answered, or no answer came within [`timeouts::PROBE_TIMEOUT`].
    pub async fn probe(
        self: &Arc<Self>,
        node: NodeId,
    ) -> Result<(SocketAddr, Duration, ProbeReply), LinkError> {
        let connection = self.connection(node).await?;
        let addr = canonical(connection.remote_address());
        match probe_over(&connection).await {
            Ok((rtt, reply)) => {
                self.entry(node).trust(&connection);
                self.report(PathReport::Ok { node, addr, rtt });
                Ok((addr, rtt, reply))
            }
            Err(e) => {
                debug!(node = %node.short(), %addr, error = %e, "probe failed");
                self.report(PathReport::Failed { node, addr });
                let entry = self.entry(node);
                if entry.doubt(&connection) {
                    self.start_dial(&entry, ANY_RANK);
                }
                Err(e)
            }
        }
    }

    /// As [`Pool::probe`], on the one path to `addr`, for measuring each of a peer's paths.
    /// Uses the peer's connection if it runs there, else one for this purpose.
    ///
    /// # Errors
    /// The node itself did not answer there in time.
    pub async fn probe_path(
        &self,
        node: NodeId,
        addr: SocketAddr,
    ) -> Result<(Duration, ProbeReply), LinkError> {
        let same = |c: &Connection| canonical(c.remote_address()) == canonical(addr);
        let connection = match self.entry(node).live().filter(same) {
            Some(connection) => connection,
            None => race::dial(&self.endpoint, &node.dns_name(), addr).await?,
        };
        let probed = probe_over(&connection).await;
        self.report(match &probed {
            Ok((rtt, _)) => PathReport::Ok {
                node,
                addr,
                rtt: *rtt,
            },
            Err(_) => PathReport::Failed { node, addr },
        });
        probed
    }

    /// Closes every connection with `code` and `reason`, which the peers see; for a goodbye.
    pub fn close_all(&self, code: ErrorCode, reason: &str) {
        for (_, entry) in lock(&self.entries).drain() {
            if let Some(connection) = entry.live() {
                connection.close(crate::endpoint::close_code(code), reason.as_bytes());
            }
        }
    }

    /// For a machine that was probably asleep: nothing new goes over the connections of before,
    /// whose other ends have given them up or will soon, and every kept peer is dialed and probed
    /// at once, however long it has been silent. The old connections are not closed: where the
    /// clock was set, and nobody slept, answers run over them. Each ends with its last stream.
    pub fn reconnect(&self) {
        for entry in lock(&self.entries).values() {
            entry.let_go();
            entry.wake.notify_one();
        }
    }

    fn entry(&self, node: NodeId) -> Arc<Entry> {
        lock(&self.entries)
            .entry(node)
            .or_insert_with(|| Arc::new(Entry::new(node)))
            .clone()
    }

    /// Starts dialing the paths of a rank below `below`; false if a dial is under way.
    fn start_dial(self: &Arc<Self>, entry: &Arc<Entry>, below: u8) -> bool {
        let begun = entry.begin_dial();
        if begun {
            let (pool, entry) = (self.clone(), entry.clone());
            self.tasks.spawn(async move {
                let stop = pool.stop.clone();
                if stop
                    .run_until_cancelled(pool.dial_paths(&entry, below))
                    .await
                    .is_none()
                {
                    entry.end_dial(stopping());
                }
            });
        }
        begun
    }

    async fn dial_paths(&self, entry: &Entry, below: u8) {
        let mut failed = self.race(entry, below).await;
        if failed.is_some() && below < ANY_RANK && entry.live().is_none() {
            // The connection that was to be improved on broke meanwhile, and requests wait.
            failed = self.race(entry, ANY_RANK).await;
        }
        // After a win the dial ended with the offer, and by now another may be under way.
        if let Some(error) = failed {
            entry.end_dial(error);
        }
    }

    /// Dials until no better path can answer any more. Returns the error if none did.
    async fn race(&self, entry: &Entry, below: u8) -> Option<LinkError> {
        let node = entry.node;
        let mut table = self.table.clone();
        let mut race = Race::new(&self.endpoint, node.dns_name(), self.addresses(node, below));
        let (mut errors, mut won) = (Vec::new(), false);
        let mut seen = self.life(node);
        loop {
            let next = tokio::select! {
                next = race.next() => next,
                Ok(()) = table.changed() => {
                    let (addrs, life) = (self.addresses(node, below), self.life(node));
                    let anew = life != seen && life.is_some_and(|(_, alive)| alive);
                    seen = life;
                    if anew { race.again(addrs) } else { race.add(addrs) }
                    continue;
                }
            };
            let Some((addr, dialed)) = next else { break };
            self.report_dial(node, addr, &dialed);
            match dialed {
                Ok(connection) => {
                    won = true;
                    entry.offer(&connection);
                    race.only_better_than(kind_rank(addr));
                }
                Err(e) => errors.push((addr, e)),
            }
        }
        (!won).then(|| unreachable(node, errors))
    }

    /// Which life of `node` the table knows, and whether it shows.
    fn life(&self, node: NodeId) -> Option<(u64, bool)> {
        let table = self.table.borrow();
        let peer = table.get(&node)?;
        Some((peer.advert.epoch, peer.liveness == Liveness::Alive))
    }

    /// Where `node` may be, best first, on paths of a rank below `below`.
    fn addresses(&self, node: NodeId, below: u8) -> Vec<SocketAddr> {
        let table = self.table.borrow();
        let Some(peer) = table.get(&node) else {
            return Vec::new();
        };
        let mut addrs: Vec<SocketAddr> = peer.paths.iter().map(|p| p.addr).collect();
        for addr in peer.advert.addrs.iter().map(Addr::socket) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs.retain(|addr| kind_rank(*addr) < below);
        addrs.truncate(limits::MAX_ADDRS);
        addrs
    }

    fn report_dial(&self, node: NodeId, addr: SocketAddr, dialed: &Result<Connection, LinkError>) {
        let addr = canonical(addr);
        self.report(match dialed {
            Ok(connection) => PathReport::Ok {
                node,
                addr,
                rtt: connection.rtt(),
            },
            Err(_) => PathReport::Failed { node, addr },
        });
    }

    fn report(&self, report: PathReport) {
        // Full: the table is behind, and the next probe tells it again.
        let _ = self.reports.try_send(report);
    }
}

/// One probe over `connection`.
async fn probe_over(connection: &Connection) -> Result<(Duration, ProbeReply), LinkError> {
    let asked = async {
        let probe = Probe {
            nonce: rand::random(),
            wall_ms: clock::wall().as_millis(),
        };
        let start = Instant::now();
        let (mut writer, mut reader) = framing::open(connection, StreamKind::Probe, &probe).await?;
        writer.finish();
        let reply = reader.expect::<ProbeReply>().await?;
        let rtt = start.elapsed();
        // The end came with the reply; reading it spares the peer a STOP_SENDING.
        let _ = reader.next().now_or_never();
        if reply.nonce != probe.nonce {
            return Err(LinkError::Lost("the answer was to another probe".into()));
        }
        Ok((rtt, reply))
    };
    let within = timeouts::PROBE_TIMEOUT;
    match tokio::time::timeout(within, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(LinkError::Lost(format!(
            "no answer to a probe within {within:?}"
        ))),
    }
}

/// All paths failed. The peer's own refusal says more than "unreachable", where each gave one.
fn unreachable(node: NodeId, errors: Vec<(SocketAddr, LinkError)>) -> LinkError {
    if errors.is_empty() {
        return LinkError::Unreachable {
            node,
            reason: "no address of it is known".into(),
        };
    }
    if errors
        .iter()
        .all(|(_, e)| matches!(e, LinkError::Refused(_)))
    {
        if let Some((_, refused)) = errors.into_iter().next() {
            return refused;
        }
        return stopping();
    }
    let each: Vec<String> = errors
        .iter()
        .map(|(addr, e)| format!("{addr}: {e}"))
        .collect();
    LinkError::Unreachable {
        node,
        reason: each.join("; "),
    }
}

fn stopping() -> LinkError {
    LinkError::Lost("this node is shutting down".into())
}

/// Above every rank.
const ANY_RANK: u8 = u8::MAX;

/// The order of preference of an address's kind; lower is better.
fn kind_rank(addr: SocketAddr) -> u8 {
    use unamesh_proto::wire::PathKind;
    match Addr::new(canonical(addr)).kind {
        PathKind::Loopback => 0,
        PathKind::Lan => 1,
        PathKind::WireGuard => 2,
        PathKind::Tailnet => 3,
        PathKind::Other | PathKind::Unknown(_) => 4,
    }
}

/// Each guarded value is valid between any two statements, so a panic elsewhere harms none.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
