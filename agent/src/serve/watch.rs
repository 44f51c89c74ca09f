//! The peer table for members that are not part of the gossip: a snapshot, then what changes.
//!
//! A peer that left is told with its own signed goodbye (an update, as any advert), and then as
//! gone: the goodbye is the proof, and a newcomer gets the latest ones too, of nodes that it may
//! still believe in.
//!
//! The table publishes a new snapshot at every change, which may be many times a second; a
//! watcher hears of a peer when there is something to act on: a new advert, another liveness,
//! a round trip that differs by more than a quarter. Changes are collected for
//! [`timeouts::ADVERT_DEBOUNCE`], and a watcher that reads slowly gets the latest state, never
//! a backlog.

use super::Service;
use super::client::{Client, Gone};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use unamesh_client::clock;
use unamesh_proto::table::{Liveness, Peer, Snapshot};
use unamesh_proto::wire::{DecodeError, PeerGone, PeerUpdate, SignedAdvert, SnapshotEnd, codec};
use unamesh_proto::{Mono, NodeId, timeouts};

/// Streams the table to `client` until either is over or the agent stops.
pub(super) async fn serve(
    service: &Service,
    mut table: watch::Receiver<Arc<Snapshot>>,
    mut client: Client,
) {
    let stall = service.config().reader_stall;
    let mut news = News::default();
    loop {
        let snapshot = Arc::clone(&table.borrow_and_update());
        match news.since(&snapshot, clock::mono()) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                if let Err(gone) = client.write(&mut [Bytes::from(records)], stall).await {
                    return end(client, gone);
                }
            }
            Err(e) => {
                // An advert that was accepted can be passed on; this cannot happen.
                tracing::error!(error = %e, "the peer table cannot be encoded");
                return;
            }
        }
        let changed = async {
            table.changed().await?;
            tokio::time::sleep(timeouts::ADVERT_DEBOUNCE).await;
            Ok::<(), watch::error::RecvError>(())
        };
        tokio::select! {
            Ok(()) = changed => {}
            gone = client.gone() => return end(client, gone),
            () = service.leaving().stopped() => {
                client.finish();
                // Until it has arrived, or is of no use any more.
                drop(tokio::time::timeout(timeouts::FINISHED_GRACE, client.gone()).await);
                return;
            }
        }
    }
}

fn end(client: Client, gone: Gone) {
    if gone != Gone::Delivered {
        client.cancel();
    }
}

/// What one watcher was told.
#[derive(Default)]
struct News {
    told: HashMap<NodeId, Told>,
    /// The goodbyes of the snapshot that was told last.
    left: Arc<[Arc<SignedAdvert>]>,
    complete: bool,
}

struct Told {
    signed: Arc<SignedAdvert>,
    liveness: Liveness,
    rtt: Option<Duration>,
}

impl News {
    /// The records that bring a watcher up to `snapshot`, and remembers that it has them.
    fn since(&mut self, snapshot: &Snapshot, now: Mono) -> Result<Vec<u8>, DecodeError> {
        let mut records = Vec::new();
        for peer in snapshot
            .peers
            .iter()
            .filter(|peer| peer.liveness != Liveness::Down)
        {
            let node = peer.advert.node;
            if self.told.get(&node).is_none_or(|told| told.is_old(peer)) {
                self.told.insert(node, Told::now(peer));
                codec::encode(&update(peer, now), &mut records)?;
            }
        }
        for goodbye in &*snapshot.left {
            if !self.left.iter().any(|told| Arc::ptr_eq(told, goodbye)) {
                let advert = SignedAdvert::clone(goodbye);
                let (rtt_us, age_ms) = (0, 0);
                let update = PeerUpdate {
                    advert,
                    rtt_us,
                    age_ms,
                };
                codec::encode(&update, &mut records)?;
            }
        }
        self.left = Arc::clone(&snapshot.left);
        for (node, left) in self.gone(snapshot) {
            self.told.remove(&node);
            codec::encode(&PeerGone { node, left }, &mut records)?;
        }
        if !self.complete {
            self.complete = true;
            let peers = u32::try_from(self.told.len()).unwrap_or(u32::MAX);
            codec::encode(&SnapshotEnd { peers }, &mut records)?;
        }
        Ok(records)
    }

    /// Who is there no more, and whether it said so: a node that says goodbye leaves the
    /// table, one that falls silent is down in it first.
    fn gone(&self, snapshot: &Snapshot) -> Vec<(NodeId, bool)> {
        let judge = |node: &NodeId| match snapshot.get(node) {
            None => Some((*node, true)),
            Some(peer) if peer.liveness == Liveness::Down => Some((*node, false)),
            Some(_) => None,
        };
        self.told.keys().filter_map(judge).collect()
    }
}

impl Told {
    fn now(peer: &Peer) -> Self {
        Told {
            signed: Arc::clone(&peer.signed),
            liveness: peer.liveness,
            rtt: rtt(peer),
        }
    }

    fn is_old(&self, peer: &Peer) -> bool {
        self.liveness != peer.liveness
            || !(Arc::ptr_eq(&self.signed, &peer.signed) || self.signed == peer.signed)
            || match (self.rtt, rtt(peer)) {
                (Some(before), Some(now)) => before.abs_diff(now) > before / 4,
                (before, now) => before.is_some() != now.is_some(),
            }
    }
}

fn rtt(peer: &Peer) -> Option<Duration> {
    peer.paths.first().and_then(|path| path.rtt)
}

fn update(peer: &Peer, now: Mono) -> PeerUpdate {
    let number = |n: u128| u32::try_from(n).unwrap_or(u32::MAX);
    PeerUpdate {
        advert: SignedAdvert::clone(&peer.signed),
        rtt_us: rtt(peer).map_or(0, |rtt| number(rtt.as_micros())),
        age_ms: number(now.since(peer.heard).as_millis()),
    }
}
