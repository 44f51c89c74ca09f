//! Second opinions on silent peers: asked for, and given.
//!
//! - **Asking.** When the table doubts a peer, [`Questions`] puts a [`ProbeFor`] to some others
//!   over the connections that the pool holds, and hands what they say to the table. Each
//!   question is a task of its own that ends within [`DOUBT_EVERY`]; the table never waits for
//!   one. Whatever is not an answer (an error, silence, an agent of before this record) is
//!   left out: the table decides without it.
//! - **Answering.** [`Helper`] probes whom it was asked about, if that one is in its own table,
//!   over its own connection to it. It says `silent` only after a whole [`PROBE_TIMEOUT`], and
//!   `reached` as soon as *anything* proves that the peer lives, if it came after the question.

use super::table::{Input, TableHandle};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use unamesh_client::clock;
use unamesh_client::framing;
use unamesh_client::pool::Pool;
use unamesh_client::transport::LinkError;
use unamesh_proto::limits::{MAX_PROBES_FOR, MAX_PROBES_FOR_ONE, MAX_QUESTIONS};
use unamesh_proto::table::Snapshot;
use unamesh_proto::timeouts::{BUSY_RETRY, DOUBT_EVERY, PROBE_TIMEOUT};
use unamesh_proto::wire::{ErrorCode, ProbeFor, ProbedFor, Reach, StreamKind, WireError};
use unamesh_proto::{Mono, NodeId};

/// Asks others about silent peers. Cheap to clone.
#[derive(Clone)]
pub struct Questions {
    pool: Arc<Pool>,
    table: TableHandle,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Questions {
    /// Asks over `pool` and tells `table`. `tasks` owns the questions, `stop` ends them.
    pub fn new(
        pool: Arc<Pool>,
        table: TableHandle,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Questions {
        Questions {
            pool,
            table,
            permits: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            tasks,
            stop,
        }
    }

    /// Asks `helpers` about `node` and returns at once. Beyond [`MAX_QUESTIONS`] nobody is
    /// asked; the table doubts again.
    pub fn ask(&self, node: NodeId, helpers: Vec<NodeId>) {
        for by in helpers {
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                debug!(node = %node.short(), "too many silent peers to ask about");
                return;
            };
            let this = self.clone();
            self.tasks.spawn(async move {
                let asked = tokio::time::timeout(DOUBT_EVERY, question(&this.pool, by, node));
                let reach = match this.stop.run_until_cancelled(asked).await {
                    Some(Ok(Ok(reach))) => reach,
                    Some(Ok(Err(reason))) => {
                        return debug!(node = %node.short(), by = %by.short(), %reason, "no answer");
                    }
                    Some(Err(_)) | None => return,
                };
                drop(permit);
                debug!(node = %node.short(), by = %by.short(), %reach, "a second opinion");
                let reached = match reach {
                    Reach::Reached => true,
                    Reach::Silent => false,
                    Reach::Stranger | Reach::Unknown(_) => return,
                };
                this.table.tell(Input::Opinion { node, by, reached });
            });
        }
    }
}

/// What `by` says of `node`.
async fn question(pool: &Arc<Pool>, by: NodeId, node: NodeId) -> Result<Reach, LinkError> {
    let connection = pool.connection(by).await?;
    let nonce = rand::random();
    let question = ProbeFor { nonce, node };
    let (mut writer, mut reader) = framing::open(&connection, StreamKind::Probe, &question).await?;
    writer.finish();
    let answer: ProbedFor = reader.expect().await?;
    if answer.nonce != nonce {
        return Err(LinkError::Lost("the answer was to another question".into()));
    }
    Ok(answer.reach)
}

/// Probes for others who cannot reach a peer themselves.
pub struct Helper {
    pool: Arc<Pool>,
    table: watch::Receiver<Arc<Snapshot>>,
    /// Probes under way, by who asked.
    asked: Mutex<HashMap<NodeId, usize>>,
}

impl Helper {
    /// Probes over `pool` whom `table` knows.
    pub fn new(pool: Arc<Pool>, table: watch::Receiver<Arc<Snapshot>>) -> Arc<Helper> {
        let asked = Mutex::default();
        Arc::new(Helper { pool, table, asked })
    }

    /// Answers the question of `from`, within [`PROBE_TIMEOUT`].
    ///
    /// # Errors
    /// Too many ask already; nobody was probed.
    pub async fn probe_for(
        &self,
        from: NodeId,
        question: ProbeFor,
    ) -> Result<ProbedFor, WireError> {
        let ProbeFor { nonce, node } = question;
        let answer = |reach, rtt_us| ProbedFor {
            nonce,
            reach,
            rtt_us,
        };
        if !self.knows(&node) {
            return Ok(answer(Reach::Stranger, 0));
        }
        let _seat = self.seat(from)?;
        let reached = tokio::time::timeout(PROBE_TIMEOUT, self.sign_of_life(node)).await;
        Ok(match reached {
            Ok(rtt) => answer(
                Reach::Reached,
                u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
            ),
            Err(_) => answer(Reach::Silent, 0),
        })
    }

    fn knows(&self, node: &NodeId) -> bool {
        let table = self.table.borrow();
        table.me != Some(*node) && table.get(node).is_some()
    }

    /// The round trip to `node` when it shows life; does not resolve while it does not.
    async fn sign_of_life(&self, node: NodeId) -> Duration {
        let asked = clock::mono();
        let probed = async {
            match self.pool.probe(node).await {
                Ok((_, rtt, _)) => rtt,
                // Perhaps on a new connection, which the failed probe has the pool dial.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            rtt = probed => rtt,
            rtt = heard_since(self.table.clone(), node, asked) => rtt,
        }
    }

    fn seat(&self, from: NodeId) -> Result<Seat<'_>, WireError> {
        let mut asked = self.lock();
        let (mine, all) = (asked.get(&from).copied(), asked.values().sum::<usize>());
        let mine = mine.unwrap_or_default();
        if mine >= MAX_PROBES_FOR_ONE || all >= MAX_PROBES_FOR {
            let message = "too many probes for others are under way here: ask another";
            return Err(WireError::new(ErrorCode::Limit, message).retry_after(BUSY_RETRY));
        }
        asked.insert(from, mine + 1);
        Ok(Seat { helper: self, from })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, usize>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the table has heard `node` after `asked`.
async fn heard_since(
    mut table: watch::Receiver<Arc<Snapshot>>,
    node: NodeId,
    asked: Mono,
) -> Duration {
    let heard = |s: &Arc<Snapshot>| s.get(&node).is_some_and(|p| p.heard > asked);
    let rtt = table.wait_for(heard).await.ok().map(|table| {
        let path = table.get(&node).and_then(|p| p.paths.first());
        path.and_then(|p| p.rtt).unwrap_or_default()
    });
    match rtt {
        Some(rtt) => rtt,
        // The table has ended: so will this.
        None => std::future::pending().await,
    }
}

/// A probe for another under way; counted until it is dropped.
struct Seat<'a> {
    helper: &'a Helper,
    from: NodeId,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut asked = self.helper.lock();
        if let Some(count) = asked.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                asked.remove(&self.from);
            }
        }
    }
}
