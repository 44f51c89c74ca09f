//! Finding the others: who may be where, and dialing whoever is not in the table yet.
//!
//! Sources: multicast DNS, the configured seeds, the addresses that worked before the last
//! stop. All of them only give candidates; a node is there when it has answered with a
//! certificate of this mesh. A candidate is dialed at once, all of its addresses beside each
//! other, then ever more rarely, until the table knows the node as alive; from then on the
//! pool keeps the connection. The first thing sent on a fresh connection is this node's
//! advert, so that both sides know each other one round trip after the handshake.

use super::links::Links;
use super::table::{Input, TableHandle};
use crate::state::LastGood;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use unamesh_client::clock;
use unamesh_client::mdns::Hint;
use unamesh_client::pool::Pool;
use unamesh_client::transport::LinkError;
use unamesh_proto::NodeId;
use unamesh_proto::limits::{MAX_ADDRS, MAX_PEERS};
use unamesh_proto::table::{Liveness, Snapshot};
use unamesh_proto::timeouts::RACE_STEP;

/// A candidate that did not answer is dialed again after this, doubling to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The longest pause: a machine that wakes up announces itself, this is for seeds.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A candidate known from mDNS or the cache alone is given up after so many dials; the next
/// hint brings it back. Seeds are never given up.
const MAX_DIALS: u32 = 8;
/// Candidates that are met at once. Hints are anybody's: a thousand forged ones must not cost
/// a handshake for each of their addresses at the same time.
const MAX_MEETINGS: usize = 32;
/// Addresses that worked are written down this often at most.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// Whom to look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Node(NodeId),
    /// `host:port`, whoever listens there.
    Seed(String),
}

struct Candidate {
    addrs: Vec<SocketAddr>,
    dial_at: Instant,
    pause: Duration,
    dials: u32,
    dialing: bool,
    /// Of a seed, once it answered.
    found: Option<NodeId>,
}

/// What was seen, for `status` and `doctor`.
#[derive(Debug, Default)]
pub struct Sightings {
    hints: AtomicU64,
    foreign_seeds: AtomicU64,
    /// The browser's own count, once it runs.
    foreign_services: OnceLock<Arc<AtomicU64>>,
}

impl Sightings {
    /// Hints that came from multicast DNS.
    pub fn hints(&self) -> u64 {
        self.hints.load(Ordering::Relaxed)
    }

    /// Nodes of other meshes that were seen, and ignored.
    pub fn foreign(&self) -> u64 {
        let services = self
            .foreign_services
            .get()
            .map_or(0, |n| n.load(Ordering::Relaxed));
        services.saturating_add(self.foreign_seeds.load(Ordering::Relaxed))
    }

    /// From now on `services` counts the other meshes that multicast DNS shows.
    pub fn count_services(&self, services: Arc<AtomicU64>) {
        // A second browser would be a second start: there is none.
        let _ = self.foreign_services.set(services);
    }
}

/// The task, not started yet.
pub struct Discovery {
    me: NodeId,
    pool: Arc<Pool>,
    links: Arc<Links>,
    table: TableHandle,
    last_good: LastGood,
    sightings: Arc<Sightings>,
    candidates: HashMap<Who, Candidate>,
    /// Addresses under which others use our own id, as far as they were tried.
    mirrors: HashSet<SocketAddr>,
    /// Nobody has told us yet who else is there.
    teach: Arc<AtomicBool>,
}

impl Discovery {
    /// Looks for members on behalf of `me`.
    pub fn new(
        me: NodeId,
        pool: Arc<Pool>,
        links: Arc<Links>,
        table: TableHandle,
        last_good: LastGood,
        sightings: Arc<Sightings>,
    ) -> Discovery {
        Discovery {
            me,
            pool,
            links,
            table,
            last_good,
            sightings,
            candidates: HashMap::new(),
            mirrors: HashSet::new(),
            teach: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Runs until `stop`.
    pub async fn run(
        mut self,
        seeds: Vec<String>,
        mut hints: mpsc::Receiver<Hint>,
        stop: CancellationToken,
    ) {
        for seed in seeds {
            self.add(Who::Seed(seed), Vec::new());
        }
        for (node, addr) in self.last_good.candidates() {
            self.hint(node, vec![addr]);
        }
        let mut dials = JoinSet::new();
        let mut snapshots = self.table.snapshot();
        let mut save_at = Instant::now() + SAVE_EVERY;
        loop {
            self.dial_due(&mut dials);
            // While as many are met as may be, the end of one is what to wait for.
            let room = dials.len() < MAX_MEETINGS;
            let dial_at = self.next_dial().filter(|_| room);
            let wake = dial_at.unwrap_or(save_at).min(save_at);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(hint) = hints.recv() => self.sighted(hint),
                Some(ended) = dials.join_next() => if let Ok((who, result)) = ended {
                    self.dialed(who, result);
                },
                Ok(()) = snapshots.changed() => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.settle(&snapshot);
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            if save_at <= Instant::now() {
                save_at = Instant::now() + SAVE_EVERY;
                self = self.save().await;
            }
        }
        self.save().await;
    }

    fn sighted(&mut self, hint: Hint) {
        self.sightings.hints.fetch_add(1, Ordering::Relaxed);
        if hint.node == self.me {
            return self.mirrored(&hint.addrs);
        }
        self.hint(hint.node, hint.addrs);
    }

    fn hint(&mut self, node: NodeId, mut addrs: Vec<SocketAddr>) {
        addrs.truncate(MAX_ADDRS);
        for addr in &addrs {
            self.table.tell(Input::Hint(node, *addr));
        }
        let snapshot = self.table.snapshot();
        if node != self.me && !is_alive(&snapshot.borrow(), &node) {
            self.add(Who::Node(node), addrs);
        }
    }

    /// Somebody else announces itself under our key. Who answers there says so in the exchange.
    fn mirrored(&mut self, addrs: &[SocketAddr]) {
        for addr in addrs {
            if self.mirrors.len() < MAX_ADDRS && self.mirrors.insert(*addr) {
                self.add(Who::Node(self.me), vec![*addr]);
            }
        }
    }

    fn add(&mut self, who: Who, addrs: Vec<SocketAddr>) {
        if self.candidates.len() >= MAX_PEERS && !self.candidates.contains_key(&who) {
            debug!(?who, "too many candidates");
            return;
        }
        let now = Instant::now();
        let candidate = self.candidates.entry(who).or_insert_with(|| Candidate {
            addrs: Vec::new(),
            dial_at: now,
            pause: RETRY_MIN,
            dials: 0,
            dialing: false,
            found: None,
        });
        let known = candidate.addrs.len();
        for addr in addrs {
            if !candidate.addrs.contains(&addr) && candidate.addrs.len() < MAX_ADDRS {
                candidate.addrs.push(addr);
            }
        }
        if candidate.addrs.len() > known {
            // Something new to try: at once.
            (candidate.dial_at, candidate.pause, candidate.dials) = (now, RETRY_MIN, 0);
        }
    }

    fn next_dial(&self) -> Option<Instant> {
        let waiting = self
            .candidates
            .values()
            .filter(|c| !c.dialing && c.found.is_none());
        waiting.map(|c| c.dial_at).min()
    }

    fn dial_due(&mut self, dials: &mut JoinSet<(Who, Result<NodeId, LinkError>)>) {
        let now = Instant::now();
        for (who, candidate) in &mut self.candidates {
            if dials.len() >= MAX_MEETINGS {
                return;
            }
            if candidate.dialing || candidate.found.is_some() || candidate.dial_at > now {
                continue;
            }
            candidate.dialing = true;
            candidate.dials += 1;
            let (pool, links) = (Arc::clone(&self.pool), Arc::clone(&self.links));
            let (who, addrs) = (who.clone(), candidate.addrs.clone());
            let teach = Arc::clone(&self.teach);
            dials.spawn(async move {
                let result = meet(&pool, &links, &who, addrs, &teach).await;
                (who, result)
            });
        }
    }

    fn dialed(&mut self, who: Who, result: Result<NodeId, LinkError>) {
        let Some(candidate) = self.candidates.get_mut(&who) else {
            return;
        };
        candidate.dialing = false;
        candidate.pause = (candidate.pause * 2).min(RETRY_MAX);
        candidate.dial_at = Instant::now() + candidate.pause;
        match (result, &who) {
            (Ok(node), Who::Seed(_)) => candidate.found = Some(node),
            (Ok(_), Who::Node(_)) => {
                self.candidates.remove(&who);
            }
            (Err(reason), Who::Seed(seed)) => {
                let foreign = matches!(&reason, LinkError::Refused(e) if is_foreign(e));
                if foreign {
                    self.sightings.foreign_seeds.fetch_add(1, Ordering::Relaxed);
                }
                match (candidate.dials, foreign) {
                    (1, true) => warn!(
                        seed, %reason,
                        "this seed belongs to another mesh and is ignored: remove it from \
                         [mesh] seeds, or join that mesh with a link of its own"
                    ),
                    (1, false) => warn!(seed, %reason, "a seed does not answer; trying on"),
                    _ => {}
                }
            }
            (Err(reason), Who::Node(node)) => {
                debug!(node = %node.short(), %reason, "a candidate does not answer");
                if candidate.dials >= MAX_DIALS {
                    self.candidates.remove(&who);
                }
            }
        }
    }

    /// Drops candidates that the table has taken over; looks for a seed again whose node went.
    fn settle(&mut self, snapshot: &Snapshot) {
        let (me, now) = (self.me, Instant::now());
        self.candidates.retain(|who, candidate| match who {
            Who::Node(node) => *node == me || candidate.dialing || !is_alive(snapshot, node),
            Who::Seed(_) => {
                let lost = candidate
                    .found
                    .is_some_and(|n| n != me && !is_alive(snapshot, &n));
                if lost {
                    candidate.found = None;
                    candidate.dial_at = now + candidate.pause;
                }
                true
            }
        });
    }

    /// Remembers where peers answered. Writing may wait for a slow disk: not here.
    async fn save(mut self) -> Self {
        let snapshot = Arc::clone(&self.table.snapshot().borrow());
        let now = clock::wall();
        for peer in snapshot
            .peers
            .iter()
            .filter(|p| p.liveness == Liveness::Alive)
        {
            if let Some(path) = peer.paths.iter().find(|p| p.ok_at.is_some()) {
                self.last_good.worked(peer.advert.node, path.addr, now);
            }
        }
        let mut last_good = std::mem::replace(&mut self.last_good, LastGood::in_memory());
        let saved = tokio::task::spawn_blocking(move || {
            let saved = last_good.save();
            (last_good, saved)
        });
        if let Ok((last_good, saved)) = saved.await {
            self.last_good = last_good;
            if let Err(error) = saved {
                debug!(%error, "addresses of peers are not being saved");
            }
        }
        self
    }
}

fn is_alive(snapshot: &Snapshot, node: &NodeId) -> bool {
    snapshot
        .get(node)
        .is_some_and(|p| p.liveness == Liveness::Alive)
}

fn is_foreign(error: &unamesh_proto::wire::WireError) -> bool {
    error.code == unamesh_proto::wire::ErrorCode::Forbidden
}

/// Dials and exchanges adverts; says who answered. The first one is asked for its peer table
/// as well (`teach`).
async fn meet(
    pool: &Pool,
    links: &Links,
    who: &Who,
    mut addrs: Vec<SocketAddr>,
    teach: &AtomicBool,
) -> Result<NodeId, LinkError> {
    if let Who::Seed(seed) = who {
        let resolved = tokio::net::lookup_host(seed.as_str()).await;
        addrs = resolved
            .map_err(|e| LinkError::Lost(format!("{seed}: {e}")))?
            .collect();
        addrs.truncate(MAX_ADDRS);
    }
    let mut addrs = addrs.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut last = LinkError::Lost("no address of it is known".to_owned());
    loop {
        // One after the other, a step apart or as soon as one failed: usually the first will
        // do, and each handshake costs both sides.
        if let Some(addr) = addrs.next() {
            dials.push(meet_at(pool, links, who, addr, teach));
        }
        let step = tokio::time::sleep(RACE_STEP);
        tokio::select! {
            met = dials.next() => match met {
                Some(Ok(node)) => return Ok(node),
                Some(Err(e)) => last = e,
                None => return Err(last),
            },
            () = step, if addrs.len() > 0 => {}
        }
    }
}

async fn meet_at(
    pool: &Pool,
    links: &Links,
    who: &Who,
    addr: SocketAddr,
    teach: &AtomicBool,
) -> Result<NodeId, LinkError> {
    let connection = match who {
        Who::Node(node) => pool.dial(*node, addr).await?,
        Who::Seed(_) => pool.dial_seed(addr).await?.1,
    };
    let node = links.exchange_over(&connection).await?;
    if teach.swap(false, Ordering::Relaxed)
        && let Err(reason) = links.learn(&connection).await
    {
        debug!(node = %node.short(), %reason, "its peer table did not come");
        teach.store(true, Ordering::Relaxed);
    }
    Ok(node)
}
