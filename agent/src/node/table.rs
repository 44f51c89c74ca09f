//! The table's task: the one owner of [`Table`]. Everybody sends it [`Input`]s over a bounded
//! channel and reads its [`Snapshot`] from a `watch`. This node's own word has a `watch` too:
//! only the newest counts, and nothing may crowd that one out.
//!
//! What the table tells becomes log lines and events ([`super::tell`]); its doubts become questions
//! to others ([`super::probe`]), whose answers come back as inputs.
//!
//! Inputs that wait are taken in together before a snapshot is published, so that a burst (a
//! start in a large mesh) costs one snapshot and not one an input.

use super::events::Events;
use super::links::Links;
use super::probe::Questions;
use super::tell::tell;
use super::verify::Verifier;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use unamesh_client::clock;
use unamesh_client::pool::PathReport;
use unamesh_proto::table::{Counters, Liveness, Merged, Peer, Snapshot, Table, TableEvent};
use unamesh_proto::wire::{Advert, SignedAdvert};
use unamesh_proto::{Mono, NodeId};

/// Inputs that may wait. A sender that finds it full waits, or drops what repeats itself.
const QUEUE: usize = 1024;
/// Inputs taken in before a snapshot goes out at the latest.
const BATCH: usize = 128;

/// What the table learns.
#[derive(Debug)]
pub enum Input {
    /// Another's, verified. `direct`: over its own connection.
    Advert {
        /// The word.
        advert: Box<Advert>,
        /// The same as signed.
        signed: Box<SignedAdvert>,
        /// Whether it came from the node itself.
        direct: bool,
    },
    /// A candidate address.
    Hint(NodeId, SocketAddr),
    /// This machine woke from sleep, at that time.
    Woke(Mono),
    /// What another says of a peer that was doubted.
    Opinion {
        /// The peer.
        node: NodeId,
        /// Who was asked.
        by: NodeId,
        /// Whether it was reached.
        reached: bool,
    },
}

/// What this node says of itself, and the same as signed.
type OwnWord = Arc<(Advert, SignedAdvert)>;

/// How the rest of the agent reaches the table. Cheap to clone.
#[derive(Clone)]
pub struct TableHandle {
    inputs: mpsc::Sender<Input>,
    own: watch::Sender<Option<OwnWord>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    counters: Arc<Mutex<Counters>>,
}

impl TableHandle {
    /// Tells the table; drops the input if the table is far behind (adverts, hints and opinions
    /// come again).
    pub fn tell(&self, input: Input) {
        if self.inputs.try_send(input).is_err() {
            debug!("the table is behind: an input was dropped");
        }
    }

    /// Tells the table this node's own newest word. It is never dropped; one that the table
    /// had not taken in yet gives way to it.
    pub fn publish(&self, advert: Advert, signed: SignedAdvert) {
        self.own.send_replace(Some(Arc::new((advert, signed))));
    }

    /// The newest snapshot and those to come.
    pub fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// What became of adverts so far.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task, not started yet.
pub struct TableTask {
    table: Table,
    inputs: mpsc::Receiver<Input>,
    own: watch::Receiver<Option<OwnWord>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    counters: Arc<Mutex<Counters>>,
    events: Events,
    /// Started anew while they seemed alive.
    renewed: Vec<NodeId>,
}

/// A table of the node `me`: how to reach it, and the task to run.
pub fn table(me: NodeId, events: Events) -> (TableHandle, TableTask) {
    let table = Table::new(Some(me));
    let (sender, inputs) = mpsc::channel(QUEUE);
    let (own, own_words) = watch::channel(None);
    let (snapshots, snapshot) = watch::channel(table.snapshot());
    let counters = Arc::new(Mutex::new(Counters::default()));
    let handle = TableHandle {
        inputs: sender,
        own,
        snapshot,
        counters: Arc::clone(&counters),
    };
    (
        handle,
        TableTask {
            table,
            inputs,
            own: own_words,
            snapshots,
            counters,
            events,
            renewed: Vec::new(),
        },
    )
}

impl TableTask {
    /// Runs until `stop`. `reports` come from the pool, `gossip` from the swarm. With a peer
    /// that shows life for the first time, or again, adverts are exchanged over `links`: it
    /// may not know us yet. Of silent ones others are asked by `questions`.
    pub async fn run(
        mut self,
        mut reports: mpsc::Receiver<PathReport>,
        mut gossip: mpsc::Receiver<(Advert, SignedAdvert)>,
        verifier: Arc<Verifier>,
        links: Arc<Links>,
        questions: Questions,
        stop: CancellationToken,
    ) {
        loop {
            let wakeup = self.table.next_wakeup().map(clock::instant);
            let sleep = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.own.changed() => self.take_own(),
                Some(input) = self.inputs.recv() => self.take(input),
                Some(report) = reports.recv() => self.report(report),
                Some((advert, signed)) = gossip.recv() => self.merge(advert, signed, false),
                () = sleep => {}
            }
            for _ in 0..BATCH {
                let Ok(input) = self.inputs.try_recv() else {
                    break;
                };
                self.take(input);
            }
            self.table.tick(clock::mono());
            self.publish(&verifier, &links, &questions);
        }
    }

    fn take_own(&mut self) {
        let word = self.own.borrow_and_update().clone();
        if let Some(word) = word {
            let (advert, signed) = Arc::unwrap_or_clone(word);
            self.table.publish(advert, signed, clock::mono());
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Advert {
                advert,
                signed,
                direct,
            } => self.merge(*advert, *signed, direct),
            Input::Hint(node, addr) => self.table.hint(node, addr, clock::mono()),
            Input::Woke(at) => self.table.woke(at, clock::mono()),
            Input::Opinion { node, by, reached } => {
                self.table.indirect(node, by, reached, clock::mono());
            }
        }
    }

    fn merge(&mut self, advert: Advert, signed: SignedAdvert, direct: bool) {
        let (node, name, epoch) = (advert.node, advert.name.clone(), advert.epoch);
        let merged = self
            .table
            .merge(advert, signed, direct, clock::mono(), clock::wall());
        let known = self.table.snapshot();
        let alive = |p: &Arc<Peer>| p.liveness == Liveness::Alive && p.advert.epoch < epoch;
        if merged == Merged::Updated && known.get(&node).is_some_and(alive) {
            self.renewed.push(node);
        }
        if merged == Merged::OutsideWindow {
            info!(node = %node.short(), %name, "its clock is off by more than a day: ignored");
        }
    }

    fn report(&mut self, report: PathReport) {
        let now = clock::mono();
        match report {
            PathReport::Ok { node, addr, rtt } => self.table.probe_ok(node, addr, rtt, now),
            PathReport::Failed { node, addr } => self.table.probe_failed(node, addr, now),
        }
    }

    fn publish(&mut self, verifier: &Verifier, links: &Arc<Links>, questions: &Questions) {
        // Names of those who left are in the last snapshot only.
        let before = self.table.snapshot();
        let after = self.table.changed();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.table.counters();
        if let Some(snapshot) = &after {
            self.snapshots.send_replace(Arc::clone(snapshot));
        }
        // A restart, most likely. But if the old connection still answers, it is a twin.
        for node in self.renewed.drain(..) {
            links.exchange(node);
        }
        while let Some(event) = self.table.poll() {
            tell(&event, [after.as_deref(), Some(&before)], &self.events);
            match event {
                TableEvent::Joined(node) | TableEvent::Back { node, .. } => links.greet(node),
                TableEvent::Doubt(node) => questions.ask(node, self.table.helpers(node)),
                TableEvent::Twin(_) => {
                    verifier.raise_twin("it publishes words that this one never said");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_support::{Mesh, advert};
    use super::*;
    use unamesh_proto::wire::Role;

    #[test]
    fn own_words_are_not_lost_when_the_table_is_behind() {
        let me = Mesh::new().member(Role::Agent);
        let (handle, mut task) = table(me.node(), Events::default());
        for _ in 0..=QUEUE {
            handle.tell(Input::Hint(NodeId([9; 32]), ([127, 0, 0, 1], 1).into()));
        }
        for seq in [1, 2] {
            let word = advert(me.node(), seq);
            handle.publish(word.clone(), me.sign(word));
        }
        assert!(task.own.has_changed().unwrap());
        task.take_own();
        let snapshot = task.table.changed().unwrap();
        assert_eq!(snapshot.get(&me.node()).unwrap().advert.seq, 2);
        assert!(!task.own.has_changed().unwrap());
    }
}
