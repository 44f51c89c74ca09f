//! The peer table of a client that is no gossip member.
//!
//! One agent streams its table (a snapshot, then deltas); the client checks every advert
//! itself, as gossip would, and keeps its own [`Table`], whose liveness comes from the pool's
//! probes. If that agent goes, the next one is asked: first whoever is in the table, then the
//! seeds, then the addresses that worked last time. The table stays in use meanwhile.

use crate::client::ClientConfig;
use crate::clock;
use crate::framing::{RecordReader, RecordWriter};
use crate::identity::{Credentials, verify_member, write_private};
use crate::pool::{PathReport, Pool};
use crate::transport::LinkError;
use futures_util::StreamExt;
use quinn::Connection;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::NodeId;
use unamesh_proto::advert;
use unamesh_proto::limits::MAX_ADDRS;
use unamesh_proto::table::{Liveness, Snapshot, Table};
use unamesh_proto::wire::codec;
use unamesh_proto::wire::{
    PeerGone, PeerUpdate, Record, SignedAdvert, StreamHeader, StreamKind, VERSION,
};

/// Where `unamesh join` and earlier runs leave addresses: a JSON array of `ip:port`.
const SEEDS_FILE: &str = "seeds.json";
/// The first wait before asking around again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait before asking around again.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The table ages at least this often.
const TICK: Duration = Duration::from_millis(250);
/// Seeds that are dialed at the same time.
const SEEDS_AT_ONCE: usize = 4;
/// Deltas that wait to be merged: the reader pauses beyond it.
const MAX_DELTAS: usize = 256;

/// Reads the addresses that `dir` remembers; none if there are none.
pub fn load_seeds(dir: &Path) -> Vec<SocketAddr> {
    let Ok(bytes) = std::fs::read(dir.join(SEEDS_FILE)) else {
        return Vec::new();
    };
    match serde_json::from_slice::<Vec<SocketAddr>>(&bytes) {
        Ok(seeds) => seeds.into_iter().take(MAX_ADDRS * 4).collect(),
        Err(error) => {
            tracing::warn!(file = SEEDS_FILE, %error, "ignoring remembered addresses");
            Vec::new()
        }
    }
}

/// Remembers `seeds` in `dir`.
///
/// # Errors
/// The file could not be written; the client works, but starts slower next time.
pub fn save_seeds(dir: &Path, seeds: &[SocketAddr]) -> Result<(), crate::identity::IdentityError> {
    let json = serde_json::to_vec(seeds).unwrap_or_else(|_| b"[]".to_vec());
    write_private(&dir.join(SEEDS_FILE), &json)
}

pub(crate) struct Watcher {
    credentials: Arc<Credentials>,
    pool: Arc<Pool>,
    table: Table,
    publish: watch::Sender<Arc<Snapshot>>,
    reports: mpsc::Receiver<PathReport>,
    seeds: VecDeque<SocketAddr>,
    mdns: bool,
    state_dir: PathBuf,
    remembered: Vec<SocketAddr>,
}

/// What the reading task hands to the table's owner.
enum Delta {
    Update(PeerUpdate),
    Gone(PeerGone),
    /// Nobody is watched any more.
    Ended,
}

impl Watcher {
    pub fn new(
        config: ClientConfig,
        credentials: Arc<Credentials>,
        pool: Arc<Pool>,
        publish: watch::Sender<Arc<Snapshot>>,
        reports: mpsc::Receiver<PathReport>,
    ) -> Self {
        let given = config
            .seeds
            .iter()
            .filter_map(|text| match text.parse::<SocketAddr>() {
                Ok(addr) => Some(addr),
                Err(_) => {
                    tracing::warn!(seed = %text, "not an ip:port, ignored");
                    None
                }
            });
        let remembered = load_seeds(&config.state_dir);
        let mut seeds: VecDeque<SocketAddr> = given.collect();
        seeds.extend(remembered.iter().copied());
        Watcher {
            credentials,
            pool,
            table: Table::new(None),
            publish,
            reports,
            seeds,
            mdns: config.mdns,
            state_dir: config.state_dir,
            remembered,
        }
    }

    /// Owns the table until `stop`.
    pub async fn run(mut self, tasks: TaskTracker, stop: CancellationToken) {
        self.pool.warm_all(true);
        let (deltas, mut news) = mpsc::channel(MAX_DELTAS);
        let mut hints = self.browse(&tasks, &stop);
        let (mut retry, mut follow_at) = (RETRY_MIN, None);
        self.follow(&tasks, &stop, deltas.clone());
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(report) = self.reports.recv() => self.report(report),
                Some(addr) = hints.recv() => {
                    if !self.seeds.contains(&addr) && self.seeds.len() < MAX_ADDRS * 8 {
                        self.seeds.push_front(addr);
                        // Somebody new is there to ask: no need to wait any longer.
                        follow_at = follow_at.map(|_| Instant::now());
                    }
                }
                Some(delta) = news.recv() => match delta {
                    Delta::Update(update) => {
                        retry = RETRY_MIN;
                        self.update(update);
                    }
                    Delta::Gone(gone) => self.gone(gone),
                    Delta::Ended => {
                        follow_at = Some(Instant::now() + retry);
                        retry = (retry * 2).min(RETRY_MAX);
                    }
                },
                () = sleep_until(follow_at.unwrap_or_else(Instant::now)), if follow_at.is_some() => {
                    follow_at = None;
                    self.follow(&tasks, &stop, deltas.clone());
                }
                _ = tick.tick() => self.table.tick(clock::mono()),
            }
            self.publish();
        }
    }

    fn publish(&mut self) {
        while let Some(event) = self.table.poll() {
            tracing::debug!(?event, "peer table");
        }
        if let Some(snapshot) = self.table.changed() {
            self.remember(&snapshot);
            // Nobody listening any more is no error: the client is being dropped.
            let _ = self.publish.send(snapshot);
        }
    }

    /// Keeps the addresses that work for the next start.
    fn remember(&mut self, snapshot: &Snapshot) {
        let working = |p: &&Arc<unamesh_proto::table::Peer>| p.liveness == Liveness::Alive;
        let mut addrs: Vec<SocketAddr> = snapshot
            .peers
            .iter()
            .filter(working)
            .filter_map(|p| p.paths.iter().find(|path| path.ok_at.is_some()))
            .map(|path| path.addr)
            .take(MAX_ADDRS)
            .collect();
        addrs.sort_unstable();
        if addrs.is_empty() || addrs == self.remembered {
            return;
        }
        if let Err(error) = save_seeds(&self.state_dir, &addrs) {
            tracing::debug!(%error, "cannot remember addresses");
        }
        self.remembered = addrs;
    }

    fn report(&mut self, report: PathReport) {
        let now = clock::mono();
        match report {
            PathReport::Ok { node, addr, rtt } => self.table.probe_ok(node, addr, rtt, now),
            PathReport::Failed { node, addr } => self.table.probe_failed(node, addr, now),
        }
    }

    fn update(&mut self, update: PeerUpdate) {
        match self.checked(&update.advert) {
            Ok(advert) => {
                // The watched agent vouches for what it heard a moment ago.
                let fresh = Duration::from_millis(u64::from(update.age_ms))
                    < unamesh_proto::timeouts::TABLE_SUSPECT;
                self.table
                    .merge(advert, update.advert, fresh, clock::mono(), clock::wall());
            }
            Err(reason) => tracing::debug!(%reason, "advert refused"),
        }
    }

    fn checked(&self, signed: &SignedAdvert) -> Result<unamesh_proto::wire::Advert, String> {
        let member = verify_member(&signed.certificate, &self.credentials.ca, clock::wall())
            .map_err(|e| e.to_string())?;
        let advert = advert::open(signed).map_err(|e| e.to_string())?;
        if advert.node != member.node {
            return Err(format!(
                "{} speaks for {}",
                member.node.short(),
                advert.node.short()
            ));
        }
        Ok(advert)
    }

    fn gone(&mut self, gone: PeerGone) {
        // A hint only: what the agent saw need not hold for our own paths. Who left said so
        // itself: its signed goodbye came before, as an update.
        if !gone.left {
            self.table.hint_silent(gone.node, clock::mono());
        }
        tracing::debug!(node = %gone.node.short(), left = gone.left, "peer gone");
    }

    /// Starts the task that finds an agent and reads its table.
    fn follow(
        &mut self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        deltas: mpsc::Sender<Delta>,
    ) {
        let snapshot = self.publish.borrow().clone();
        let agents = snapshot.peers.iter().filter(|p| p.advert.role.is_agent());
        let mut known: Vec<(Liveness, NodeId)> = agents
            .map(|p| (p.liveness, p.advert.node))
            .filter(|(liveness, _)| *liveness != Liveness::Down)
            .collect();
        // Whoever was watched last may be the one that is silent now.
        known.sort_unstable();
        let (pool, seeds) = (self.pool.clone(), self.seeds.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            let work = async {
                follow(&pool, known, seeds, &deltas).await;
                // The owner is gone only when it stops.
                let _ = deltas.send(Delta::Ended).await;
            };
            stop.run_until_cancelled(work).await;
        });
    }

    #[cfg(feature = "mdns")]
    fn browse(&self, tasks: &TaskTracker, stop: &CancellationToken) -> mpsc::Receiver<SocketAddr> {
        let (found, hints) = mpsc::channel(MAX_ADDRS);
        if self.mdns {
            let (mesh, stop) = (self.credentials.mesh, stop.clone());
            tasks.spawn(async move {
                let (tx, mut rx) = mpsc::channel(MAX_ADDRS);
                let browser = match crate::mdns::browse(mesh, tx) {
                    Ok(browser) => browser,
                    Err(error) => return tracing::warn!(%error, "mDNS is not available"),
                };
                while let Some(Some(hint)) = stop.run_until_cancelled(rx.recv()).await {
                    for addr in hint.addrs {
                        let _ = found.send(addr).await;
                    }
                }
                drop(browser);
            });
        }
        hints
    }

    #[cfg(not(feature = "mdns"))]
    fn browse(&self, _: &TaskTracker, _: &CancellationToken) -> mpsc::Receiver<SocketAddr> {
        if self.mdns {
            tracing::warn!("this build has no mDNS; give seeds or hints");
        }
        mpsc::channel(1).1
    }
}

/// Follows the first agent that answers, until it goes.
async fn follow(
    pool: &Arc<Pool>,
    known: Vec<(Liveness, NodeId)>,
    seeds: VecDeque<SocketAddr>,
    deltas: &mpsc::Sender<Delta>,
) {
    for (_, node) in known {
        if let Ok(connection) = pool.connection(node).await {
            return end_of(read(&connection, deltas).await, node);
        }
    }
    let dials = seeds.into_iter().map(|addr| {
        let pool = pool.clone();
        async move { (addr, pool.dial_seed(addr).await) }
    });
    let mut dialed = futures_util::stream::iter(dials).buffer_unordered(SEEDS_AT_ONCE);
    while let Some((addr, outcome)) = dialed.next().await {
        match outcome {
            Ok((member, connection)) => {
                drop(dialed);
                return end_of(read(&connection, deltas).await, member.node);
            }
            Err(error) => tracing::debug!(%addr, %error, "seed does not answer"),
        }
    }
}

fn end_of(outcome: Result<(), LinkError>, node: NodeId) {
    if let Err(error) = outcome {
        tracing::debug!(node = %node.short(), %error, "its table stream ended");
    }
}

async fn read(connection: &Connection, deltas: &mpsc::Sender<Delta>) -> Result<(), LinkError> {
    let (send, recv) = connection
        .open_bi()
        .await
        .map_err(|e| crate::endpoint::link_error(&e))?;
    let mut writer = RecordWriter::new(send);
    writer
        .write(&StreamHeader {
            version: VERSION,
            kind: StreamKind::Watch,
        })
        .await?;
    let mut reader = RecordReader::new(recv);
    while let Some((kind, body)) = reader.next().await? {
        let delta = match kind {
            PeerUpdate::KIND => Delta::Update(codec::body(&body)?),
            PeerGone::KIND => Delta::Gone(codec::body(&body)?),
            _ => continue,
        };
        if deltas.send(delta).await.is_err() {
            break;
        }
    }
    Ok(())
}
