//! Keeping peers connected, and noticing when one is not.
//!
//! One manager task owns a keeper task for each wanted peer. A keeper probes, sleeps, and
//! wakes early when the connection closes (so a goodbye, a restart or a time-out is acted on
//! at once) or when the table has learned something new about the peer.

use super::{PathReport, Pool, kind_rank, lock};
use crate::clock;
use crate::endpoint::{canonical, link_error};
use crate::transport::LinkError;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, error};
use unamesh_proto::table::{Liveness, Snapshot};
use unamesh_proto::wire::{ErrorCode, NodeState};
use unamesh_proto::{Mono, NodeId, timeouts};

/// Runs until the pool's `stop`.
pub(super) async fn manage(pool: Arc<Pool>) {
    let mut table = pool.table.clone();
    let mut keepers = JoinSet::new();
    let mut running: HashMap<NodeId, AbortHandle> = HashMap::new();
    let mut seen: HashMap<NodeId, (u64, Vec<SocketAddr>)> = HashMap::new();
    loop {
        let snapshot = table.borrow_and_update().clone();
        let wanted = wanted(&pool, &snapshot);
        running.retain(|node, keeper| {
            let keep = wanted.contains(node) && !keeper.is_finished();
            if !keep {
                keeper.abort();
            }
            keep
        });
        for node in &wanted {
            running
                .entry(*node)
                .or_insert_with(|| keepers.spawn(keep(pool.clone(), *node)));
        }
        wake_changed(&pool, &snapshot, &mut seen);
        sweep(&pool, &wanted, clock::mono());
        tokio::select! {
            () = pool.stop.cancelled() => return,
            () = pool.wanted_changed.notified() => {}
            () = tokio::time::sleep(timeouts::POOL_SWEEP) => {}
            changed = table.changed() => if changed.is_err() { return },
            Some(ended) = keepers.join_next() => if let Err(e) = ended && e.is_panic() {
                // Started anew above; a keeper has no reason to panic.
                error!(error = %e, "a connection's keeper failed");
            },
        }
    }
}

fn wanted(pool: &Pool, snapshot: &Snapshot) -> HashSet<NodeId> {
    let me = pool.credentials.node();
    let wanted = lock(&pool.wanted);
    let mut nodes = wanted.nodes.clone();
    if wanted.all {
        let there = snapshot
            .peers
            .iter()
            .filter(|p| p.advert.state != NodeState::Left);
        nodes.extend(there.map(|p| p.advert.node));
    }
    nodes.remove(&me);
    nodes
}

/// Wakes the keepers of peers that were restarted or have new addresses. The connection of a
/// peer that was restarted leads to a process that is no more, which a probe would find out
/// only after its time-out: it is doubted at once.
fn wake_changed(
    pool: &Arc<Pool>,
    snapshot: &Snapshot,
    seen: &mut HashMap<NodeId, (u64, Vec<SocketAddr>)>,
) {
    seen.retain(|node, _| snapshot.get(node).is_some());
    for peer in &snapshot.peers {
        let mut addrs: Vec<SocketAddr> = peer.paths.iter().map(|p| p.addr).collect();
        addrs.sort_unstable();
        let now = (peer.advert.epoch, addrs);
        if seen.get(&peer.advert.node) == Some(&now) {
            continue;
        }
        let epoch = now.0;
        let before = seen.insert(peer.advert.node, now);
        let entry = lock(&pool.entries).get(&peer.advert.node).cloned();
        let Some(entry) = entry else { continue };
        let restarted = before.is_some_and(|(old, _)| old != epoch);
        if restarted && entry.live().is_some_and(|c| entry.doubt(&c)) {
            pool.start_dial(&entry, super::ANY_RANK);
        }
        entry.wake.notify_one();
    }
}

/// Drops what is neither wanted nor was used of late.
pub(super) fn sweep(pool: &Pool, wanted: &HashSet<NodeId>, now: Mono) {
    lock(&pool.entries).retain(|node, entry| {
        let keep =
            wanted.contains(node) || entry.is_dialing() || entry.unused(now) < timeouts::POOL_IDLE;
        if !keep {
            entry.close("not in use");
        }
        keep
    });
}

/// Keeps `node` connected until it is aborted.
async fn keep(pool: Arc<Pool>, node: NodeId) {
    let mut failures = 0;
    for probes in 1u64.. {
        match pool.probe(node).await {
            Ok((addr, ..)) => {
                failures = 0;
                if probes % timeouts::IMPROVE_PROBES == 0 {
                    pool.start_dial(&pool.entry(node), kind_rank(addr));
                }
            }
            Err(e) => {
                failures = if given_up(&pool, &node) {
                    failures + 1
                } else {
                    0
                };
                debug!(node = %node.short(), failures, error = %e, "peer does not answer");
            }
        }
        rest(&pool, node, failures).await;
    }
}

/// Whether the table takes `node` for gone. Of any other, its answer is awaited: one that
/// another vouches for, or all of them when this node itself is cut off, may be back each
/// moment.
fn given_up(pool: &Pool, node: &NodeId) -> bool {
    let table = pool.table.borrow();
    table
        .get(node)
        .is_none_or(|peer| peer.liveness == Liveness::Down)
}

/// Waits for the next probe's time, or for a reason to probe at once.
async fn rest(pool: &Arc<Pool>, node: NodeId, failures: u32) {
    let entry = pool.entry(node);
    let pause = tokio::time::sleep(pause(failures));
    let Some(connection) = entry.live() else {
        tokio::select! { () = pause => {} () = entry.wake.notified() => {} }
        return;
    };
    tokio::select! {
        () = pause => {}
        () = entry.wake.notified() => {}
        reason = connection.closed() => {
            let addr = canonical(connection.remote_address());
            let error = link_error(&reason);
            debug!(node = %node.short(), %addr, %error, "connection closed");
            pool.report(PathReport::Failed { node, addr });
            if deliberate(&error) {
                tokio::select! {
                    () = tokio::time::sleep(timeouts::PROBE_EVERY) => {}
                    () = entry.wake.notified() => {}
                }
            }
        }
    }
}

/// Whether the peer ended the connection on purpose: dialing at once would be importunate.
fn deliberate(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(e) if e.code != ErrorCode::Protocol)
}

/// The pause before the next probe: constant until the peer is taken for gone and for its first
/// failures then, then doubling. Spread by a tenth, so that peers do not fall into step.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(timeouts::PROBE_PATIENCE).min(16);
    let base = timeouts::PROBE_EVERY
        .saturating_mul(1 << doublings)
        .min(timeouts::PROBE_MAX);
    base.mul_f64(rand::random_range(0.9..1.1))
}
