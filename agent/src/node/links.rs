//! Adverts over connections: each side's word, exchanged at once when two nodes meet, pushed
//! when something changes that others must not learn late, and the goodbye.
//!
//! Gossip reaches everybody, but a link of the swarm takes its time to form. A connection of
//! the data plane is there first, so that a node that meets another knows all of it one round
//! trip later. Whoever dialed opens an `Exchange` stream, writes its [`SignedAdvert`], and
//! reads the other's.

use super::table::{Input, TableHandle};
use super::verify::Verifier;
use futures_util::future::join_all;
use quinn::Connection;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use unamesh_client::endpoint::{CLOSE_NORMAL, canonical, link_error, member_of};
use unamesh_client::framing::{self, RecordReader, RecordWriter};
use unamesh_client::pool::Pool;
use unamesh_client::transport::LinkError;
use unamesh_proto::NodeId;
use unamesh_proto::limits::MAX_PEERS;
use unamesh_proto::table::Liveness;
use unamesh_proto::timeouts::{GOODBYE_REPEAT, OPENING, PROBE_TIMEOUT};
use unamesh_proto::wire::codec;
use unamesh_proto::wire::{
    Addr, Advert, PeerUpdate, Record, SignedAdvert, SnapshotEnd, StreamHeader, StreamKind, VERSION,
};

/// Exchanges at once: a push to a thousand peers goes out in waves.
const MAX_EXCHANGES: usize = 64;
/// How often a word that must not be missed (draining, goodbye) is said to each peer.
const INSISTENCE: usize = 3;
/// Who met this recently knows us already: both sides often dial each other at once.
const JUST_MET: Duration = Duration::from_secs(1);

/// With whom adverts were exchanged a moment ago, by whichever side, and which word of ours the
/// other then got. Bounded by the peers that come within [`JUST_MET`]. Cheap to clone.
#[derive(Clone, Default)]
pub struct Met(Arc<Mutex<HashMap<NodeId, Meeting>>>);

type Meeting = (Instant, Arc<SignedAdvert>);

impl Met {
    /// Notes a meeting; the other got `word` or a newer one.
    pub fn note(&self, node: NodeId, word: Arc<SignedAdvert>) {
        let mut met = self.lock();
        met.retain(|_, (at, _)| at.elapsed() < JUST_MET);
        if met.len() < MAX_PEERS {
            met.insert(node, (Instant::now(), word));
        }
    }

    fn just_now(&self, node: &NodeId) -> bool {
        self.lock()
            .get(node)
            .is_some_and(|(at, _)| at.elapsed() < JUST_MET)
    }

    /// Whether `node` has just got `word`, or a newer one.
    fn knows(&self, node: &NodeId, word: &Arc<SignedAdvert>) -> bool {
        let met = self.lock();
        met.get(node)
            .is_some_and(|(at, got)| at.elapsed() < JUST_MET && Arc::ptr_eq(got, word))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Meeting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Exchanges adverts with peers. Shared.
pub struct Links {
    me: NodeId,
    ca: Vec<u8>,
    pool: Arc<Pool>,
    table: TableHandle,
    verifier: Arc<Verifier>,
    own: watch::Receiver<Arc<SignedAdvert>>,
    met: Met,
    permits: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Links {
    /// Links of the node `me` in the mesh of `ca` (DER). Its newest word is in `own`;
    /// meetings that others began are in `met`.
    pub fn new(
        (me, ca): (NodeId, Vec<u8>),
        pool: Arc<Pool>,
        table: TableHandle,
        verifier: Arc<Verifier>,
        (own, met): (watch::Receiver<Arc<SignedAdvert>>, Met),
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Links> {
        let permits = Semaphore::new(MAX_EXCHANGES);
        Arc::new(Links {
            me,
            ca,
            pool,
            table,
            verifier,
            own,
            met,
            permits,
            tasks,
            stop,
        })
    }

    /// Exchanges adverts with `node`, which shows life, unless that has just been done. A word
    /// of ours that came between their meeting and its entry in the table went to those who
    /// stood in the table ([`Links::push`]), so that it is told here.
    pub fn greet(self: &Arc<Self>, node: NodeId) {
        let known = self.met.knows(&node, &self.own.borrow());
        if !known {
            self.exchange(node);
        }
    }

    /// Exchanges adverts with `node` in a task of its own, over its connection (dialed if
    /// there is none). A failure is only logged: probes and gossip go on.
    pub fn exchange(self: &Arc<Self>, node: NodeId) {
        let links = Arc::clone(self);
        self.tasks.spawn(async move {
            let exchanged = async {
                let connection = links.pool.connection(node).await?;
                links.exchange_over(&connection).await
            };
            if let Some(Err(reason)) = links.stop.run_until_cancelled(exchanged).await {
                debug!(node = %node.short(), %reason, "no exchange of adverts");
            }
        });
    }

    /// Exchanges adverts with every peer that is not down.
    pub fn push(self: &Arc<Self>) {
        for node in self.reachable() {
            self.exchange(node);
        }
    }

    /// Exchanges adverts over `connection`. Returns who the other
    /// is.
    ///
    /// # Errors
    /// The connection broke, or the other side refused or answered with an advert that is not
    /// to be believed.
    pub async fn exchange_over(&self, connection: &Connection) -> Result<NodeId, LinkError> {
        let _permit = self.permits.acquire().await.map_err(|_| stopping())?;
        let word = Arc::clone(&self.own.borrow());
        let exchanged = async {
            let (mut writer, mut reader) =
                framing::open(connection, StreamKind::Exchange, &*word).await?;
            writer.finish();
            Ok::<SignedAdvert, LinkError>(reader.expect::<SignedAdvert>().await?)
        };
        let signed = tokio::time::timeout(PROBE_TIMEOUT, exchanged)
            .await
            .map_err(|_| LinkError::Lost("no advert in time".to_owned()))??;
        let advert = self
            .verifier
            .open(&signed)
            .map_err(|e| LinkError::Lost(e.to_string()))?;
        let node = advert.node;
        if member_of(connection, &self.ca).map(|m| m.node) != Ok(node) {
            return Err(LinkError::Lost(
                "it answered with another node's advert".to_owned(),
            ));
        }
        if node != self.me {
            self.verifier.spoke(&advert);
            self.met.note(node, word);
            self.table
                .tell(Input::Hint(node, canonical(connection.remote_address())));
            let (advert, signed) = (Box::new(advert), Box::new(signed));
            self.table.tell(Input::Advert {
                advert,
                signed,
                direct: true,
            });
        }
        Ok(node)
    }

    /// Reads the peer table of whoever is at the other end of `connection`, once, and takes
    /// in what it knows: nodes to dial, not signs of life.
    ///
    /// # Errors
    /// The connection broke, something else than a table came, or not all of it within
    /// [`OPENING`]. What came before counts.
    pub async fn learn(&self, connection: &Connection) -> Result<(), LinkError> {
        tokio::time::timeout(OPENING, self.read_table(connection))
            .await
            .unwrap_or_else(|_| Err(LinkError::Lost("no peer table in time".to_owned())))
    }

    async fn read_table(&self, connection: &Connection) -> Result<(), LinkError> {
        let (send, recv) = connection.open_bi().await.map_err(|e| link_error(&e))?;
        let (mut writer, mut reader) = (RecordWriter::new(send), RecordReader::new(recv));
        let header = StreamHeader {
            version: VERSION,
            kind: StreamKind::Watch,
        };
        writer.write(&header).await?;
        for _ in 0..MAX_PEERS {
            match reader.next().await? {
                Some((PeerUpdate::KIND, body)) => {
                    let PeerUpdate { advert: signed, .. } = codec::body(&body)?;
                    self.relayed(signed);
                }
                // The end of the snapshot, or of the stream; what follows is gossip's.
                None | Some((SnapshotEnd::KIND, _)) => break,
                Some(_) => {}
            }
        }
        writer.cancel();
        reader.stop(CLOSE_NORMAL);
        Ok(())
    }

    fn relayed(&self, signed: SignedAdvert) {
        let Ok(advert) = self.verifier.open(&signed) else {
            return;
        };
        if advert.node != self.me && !self.met.just_now(&advert.node) {
            let (advert, signed) = (Box::new(advert), Box::new(signed));
            self.table.tell(Input::Advert {
                advert,
                signed,
                direct: false,
            });
        }
    }

    /// Shows `twin` (another agent's word under the same key) to the agent that said `old`,
    /// at its own addresses: so that it learns why requests do not reach it.
    pub fn warn_twin(self: &Arc<Self>, old: &Advert, twin: Arc<SignedAdvert>) {
        for addr in old.addrs.iter().map(Addr::socket) {
            let (links, twin, node) = (Arc::clone(self), Arc::clone(&twin), old.node);
            self.tasks.spawn(async move {
                let told = async {
                    let connection = links.pool.dial(node, addr).await?;
                    let exchanged = async {
                        let (mut writer, mut reader) =
                            framing::open(&connection, StreamKind::Exchange, &*twin).await?;
                        writer.finish();
                        Ok::<SignedAdvert, LinkError>(reader.expect().await?)
                    };
                    tokio::time::timeout(PROBE_TIMEOUT, exchanged)
                        .await
                        .unwrap_or_else(|_| Err(LinkError::Lost("no answer in time".to_owned())))
                };
                if let Some(Err(reason)) = links.stop.run_until_cancelled(told).await {
                    debug!(node = %node.short(), %addr, %reason, "cannot warn of a twin");
                }
            });
        }
    }

    /// As [`Links::insist`] with this node's newest word, in a task of its own.
    pub fn insist_apart(self: &Arc<Self>) {
        let links = Arc::clone(self);
        let word = Arc::clone(&self.own.borrow());
        self.tasks.spawn(async move {
            let stop = links.stop.clone();
            stop.run_until_cancelled(links.insist(&word)).await;
        });
    }

    /// Says `word` (draining, or goodbye) to every peer that is not down, three times and in
    /// parallel. Returns when all have acknowledged or were given the time to.
    pub async fn insist(&self, word: &SignedAdvert) {
        let peers = self.reachable();
        join_all(peers.into_iter().map(|node| self.insist_to(node, word))).await;
    }

    async fn insist_to(&self, node: NodeId, word: &SignedAdvert) {
        let said = async {
            let connection = self.pool.connection(node).await?;
            let mut streams = Vec::new();
            for _ in 0..INSISTENCE {
                let (mut writer, reader) =
                    framing::open(&connection, StreamKind::Exchange, word).await?;
                writer.finish();
                streams.push((writer, reader));
                tokio::time::sleep(GOODBYE_REPEAT).await;
            }
            // The last word counts as heard when its bytes are acknowledged.
            if let Some((writer, _)) = streams.last() {
                writer.stopped().await;
            }
            Ok::<(), LinkError>(())
        };
        match tokio::time::timeout(PROBE_TIMEOUT, said).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => debug!(node = %node.short(), %reason, "a last word was not heard"),
            Err(_) => debug!(node = %node.short(), "a last word was not heard in time"),
        }
    }

    fn reachable(&self) -> Vec<NodeId> {
        let snapshot = self.table.snapshot();
        let snapshot = snapshot.borrow();
        let others = snapshot.peers.iter().filter(|p| p.advert.node != self.me);
        others
            .filter(|p| p.liveness != Liveness::Down)
            .map(|p| p.advert.node)
            .collect()
    }
}

fn stopping() -> LinkError {
    LinkError::Lost("this node is shutting down".to_owned())
}
