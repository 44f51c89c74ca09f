//! Small tasks beside the large ones: sampling the machine, speaking mDNS, the swarm's gate,
//! reporting twins, and what a device that joins is told.

use super::addrs;
use super::discovery::Sightings;
use super::events::Events;
use super::findings::{Finding, Findings};
use super::links::Links;
use super::verify::Twins;
use crate::ca::Welcome;
use crate::capacity::{self, Sampler};
use crate::engine::registry::{Catalog, Registry};
use crate::swarm::Swarm;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use unamesh_client::mdns::{Announcement, Announcer, Hint};
use unamesh_proto::NodeId;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::Hardware;

/// How often twins are reported.
const TWIN_PAUSE: Duration = Duration::from_secs(30);
/// Addresses of the inviter, and of others, that a new device is told as seeds.
const SEEDS_OF_ONE: usize = 3;
/// See [`SEEDS_OF_ONE`].
const SEEDS_OF_OTHERS: usize = 5;

/// Samples the machine in a thread of its own: a driver may take its time.
pub(super) fn sample_hardware(
    sources: capacity::Sources,
    findings: &Findings,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<Hardware> {
    let (publish, hardware) = watch::channel(Hardware::default());
    let (findings, stop) = (findings.clone(), stop.clone());
    tasks.spawn(async move {
        let mut sampler = None;
        loop {
            let sources = sources.clone();
            let sampling = tokio::task::spawn_blocking(move || {
                let mut sampler = sampler.unwrap_or_else(|| Sampler::new(sources));
                let changed = sampler.sample();
                (sampler, changed)
            });
            let Ok((sampled, changed)) = sampling.await else {
                return;
            };
            if let Some(hardware) = changed {
                publish.send_replace(hardware);
            }
            match sampled.driver_failure() {
                Some(reason) => findings.raise(Finding::Gpu, reason),
                None => findings.clear(Finding::Gpu),
            }
            sampler = Some(sampled);
            let pause = tokio::time::sleep(capacity::SAMPLE_EVERY);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    });
    hardware
}

/// Announces this node, again with each of its `epochs`, and looks for others until `leave`,
/// then takes the announcement back.
pub(super) async fn speak_mdns(
    announcement: Announcement,
    hints: mpsc::Sender<Hint>,
    (findings, sightings): (Findings, Arc<Sightings>),
    mut epochs: watch::Receiver<u64>,
    leave: CancellationToken,
) {
    let spoken = Announcer::start(&announcement)
        .and_then(|announcer| announcer.browse(hints).map(|browser| (announcer, browser)));
    match spoken {
        Ok((announcer, browser)) => {
            sightings.count_services(browser.foreign());
            while let Some(Ok(())) = leave.run_until_cancelled(epochs.changed()).await {
                // Others have forgotten what was announced before the sleep, and its addresses.
                if let Err(error) = announcer.update(&announcement) {
                    debug!(%error, "not announced again");
                }
            }
            announcer.goodbye().await;
        }
        Err(error) => findings.raise(Finding::Mdns, error.to_string()),
    }
}

/// Tells listeners when an engine's health changed, or models came or went.
pub(super) async fn tell_engines(registry: Arc<Registry>, events: Events, stop: CancellationToken) {
    let told = |catalog: &Catalog| {
        let engines = catalog.engines.iter();
        let models = catalog.models.iter();
        json!({
            "engines": engines.map(|e| json!({ "name": e.name, "health": e.health })).collect::<Vec<_>>(),
            "models": models.map(|m| &m.name).collect::<Vec<_>>(),
        })
    };
    let mut catalogs = registry.changes();
    let mut last = told(&catalogs.borrow_and_update());
    while let Some(Ok(())) = stop.run_until_cancelled(catalogs.changed()).await {
        let now = told(&catalogs.borrow_and_update());
        if now != last {
            events.emit("engines", now.clone());
            last = now;
        }
    }
}

/// The gate of the swarm: whoever is in the table, whose entries all passed the
/// [`Verifier`](super::verify::Verifier). Dialed at the addresses of the data plane, those that worked first.
pub(super) async fn follow_members(
    swarm: Swarm,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) {
    loop {
        let members = members(&snapshots.borrow_and_update());
        swarm.set_members(members);
        match stop.run_until_cancelled(snapshots.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

fn members(snapshot: &Snapshot) -> BTreeMap<NodeId, Vec<SocketAddr>> {
    let others = snapshot
        .peers
        .iter()
        .filter(|p| Some(p.advert.node) != snapshot.me);
    let entries = others.map(|peer| {
        let port = peer.advert.swarm_port;
        let mut ips: Vec<IpAddr> = peer
            .paths
            .iter()
            .filter(|p| p.ok_at.is_some())
            .map(|p| p.addr.ip())
            .collect();
        // The order of paths changes with every probe; that is no reason to dial anew.
        ips.extend(peer.advert.addrs.iter().map(|a| a.socket().ip()));
        ips.sort_unstable();
        ips.dedup();
        let addrs = ips
            .into_iter()
            .filter(|_| port != 0)
            .map(|ip| SocketAddr::new(ip, port));
        (peer.advert.node, addrs.collect())
    });
    entries.collect()
}

/// Tells the owner, and the older one of two agents with one key. Once a [`TWIN_PAUSE`].
pub(super) async fn report_twins(
    mut found: mpsc::Receiver<Twins>,
    links: Arc<Links>,
    events: Events,
    stop: CancellationToken,
) {
    while let Some(Some(twins)) = stop.run_until_cancelled(found.recv()).await {
        let (node, name) = (twins.older.node, &twins.older.name);
        warn!(node = %node.short(), %name, "two agents of the mesh run with the same key");
        events.emit("twin_key", json!({ "node": node, "name": name }));
        links.warn_twin(&twins.older, twins.newer);
        if stop
            .run_until_cancelled(tokio::time::sleep(TWIN_PAUSE))
            .await
            .is_none()
        {
            return;
        }
        while found.try_recv().is_ok() {}
    }
}

/// What a device that joins is told.
pub(super) struct MeshWelcome {
    pub(super) me: NodeId,
    pub(super) listen: SocketAddr,
    pub(super) advertise: Vec<SocketAddr>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Welcome for MeshWelcome {
    fn addresses(&self) -> Vec<IpAddr> {
        addrs::own(self.listen.ip())
    }

    fn seeds(&self) -> Vec<String> {
        let own = addrs::own(self.listen.ip()).into_iter();
        let own = own.map(|ip| SocketAddr::new(ip, self.listen.port()));
        let told = self.advertise.iter().copied();
        let own = own.filter(|_| self.advertise.is_empty());
        let mut seeds: Vec<String> = told
            .chain(own)
            .take(SEEDS_OF_ONE)
            .map(|addr| addr.to_string())
            .collect();
        let snapshot = self.snapshot.borrow();
        let others = snapshot.peers.iter().filter(|p| p.advert.node != self.me);
        let best = others
            .filter_map(|p| p.paths.first())
            .map(|path| path.addr.to_string());
        seeds.extend(best.take(SEEDS_OF_OTHERS));
        seeds
    }
}
