//! What serves requests, whoever asks: the way in for all of them.

use super::admission::{Admission, EngineLoad};
use super::drills::Drills;
use super::generations::Generations;
use super::journals::Budget;
use super::leases::Leases;
use super::leaving::Leaving;
use super::run::Run;
use super::validate;
use crate::engine::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_client::transport::{FrameStream, LinkError};
use unamesh_proto::wire::{ErrorCode, GenerateRequest, WireError};
use unamesh_proto::{limits, timeouts};

/// The bounds of a [`Service`]. The defaults are the protocol's limits; only smaller values
/// make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Requests that may wait for one engine.
    pub queue: usize,
    /// How long a generation goes on after its client's connection was lost.
    pub grace: Duration,
    /// How long a reader may take nothing before its stream is closed.
    pub reader_stall: Duration,
    /// How long a listener may grant nothing more before its speech ends.
    pub listener_pause: Duration,
    /// A leased model that its engine has unloaded is asked again no sooner than this.
    pub warm_again: Duration,
    /// Bytes that one generation keeps for reattachment.
    pub journal_bytes: usize,
    /// Bytes that all generations keep together.
    pub journals_bytes: usize,
    /// Generations and speech at once.
    pub generations: usize,
    /// Administrators of the mesh may have faults played here.
    pub drill: bool,
}

impl Default for ServeConfig {
    fn default() -> Self {
        ServeConfig {
            queue: limits::MAX_QUEUE,
            grace: timeouts::GRACE,
            reader_stall: timeouts::READER_STALL,
            listener_pause: timeouts::LISTENER_PAUSE,
            warm_again: timeouts::WARM_AGAIN,
            journal_bytes: limits::MAX_JOURNAL_BYTES,
            journals_bytes: limits::MAX_JOURNALS_BYTES,
            generations: limits::MAX_GENERATIONS,
            drill: false,
        }
    }
}

/// Serves generations: over QUIC ([`Service::serve_endpoint`]) and to this agent itself
/// ([`Service::open_local`]), through one admission.
pub struct Service {
    registry: Arc<Registry>,
    config: ServeConfig,
    admission: Arc<Admission>,
    generations: Arc<Generations>,
    journals: Arc<Budget>,
    leaving: Arc<Leaving>,
    drills: Arc<Drills>,
    leases: Leases,
    active: watch::Sender<usize>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// A service over the engines of `registry`. Its tasks are tracked by `tasks` and end when
    /// `stop` is cancelled.
    pub fn new(
        registry: Arc<Registry>,
        config: ServeConfig,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let admission = Admission::new(Arc::clone(&registry), config.queue);
        let follow = Arc::clone(&admission).follow();
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow));
        Arc::new(Service {
            admission,
            registry,
            config,
            generations: Generations::new(),
            journals: Budget::new(config.journals_bytes, config.journal_bytes),
            leaving: Leaving::new(stop.clone()),
            drills: Drills::new(config.drill),
            leases: Leases::new(),
            active: watch::Sender::new(0),
            tasks,
            stop,
        })
    }

    /// Runs `request` on an engine of this agent for this agent: the engine's stream is polled
    /// by whoever polls the frames, and dropping them cancels it. It cannot be reattached to.
    ///
    /// # Errors
    /// [`LinkError::Refused`], with the reason that a remote client would get; nothing was
    /// done.
    pub fn open_local(
        self: &Arc<Self>,
        request: Arc<GenerateRequest>,
    ) -> Result<Box<dyn FrameStream>, LinkError> {
        let run = self.admit(request).map_err(LinkError::Refused)?;
        Ok(Box::new(run))
    }

    /// The loads of the engines, in the catalog's order.
    pub fn load(&self) -> Vec<EngineLoad> {
        self.admission.loads()
    }

    /// The loads, whenever they change: for adverts, which debounce.
    pub fn load_changes(&self) -> watch::Receiver<Arc<[EngineLoad]>> {
        self.admission.changes()
    }

    /// Generations and speech that run or wait, those of detached clients included.
    pub fn active(&self) -> usize {
        *self.active.borrow()
    }

    /// The same, whenever their number changes.
    pub fn active_changes(&self) -> watch::Receiver<usize> {
        self.active.subscribe()
    }

    /// From now on refuses what is new and tells every running stream that this agent leaves
    /// in `deadline` at most. A later call sets a new deadline; streams are told once.
    pub fn drain(&self, deadline: Duration) {
        self.leaving.drain(deadline);
    }

    /// Takes requests again. What has moved meanwhile does not come back.
    pub fn resume(&self) {
        self.leaving.resume();
    }

    /// Resolves when nothing runs any more, or the deadline of [`Service::drain`] has passed.
    pub async fn drained(&self) {
        self.drained_and(async {}).await;
    }

    /// The same, when `others` have ended too.
    pub async fn drained_and(&self, others: impl Future<Output = ()>) {
        let mut active = self.active.subscribe();
        let idle = async {
            // We hold the sender. Nothing new comes while the agent drains.
            let _ = active.wait_for(|active| *active == 0).await;
            others.await;
        };
        match self.leaving.left() {
            // A deadline that passed is no error: what still runs is ended by the stop.
            Some(left) => drop(tokio::time::timeout(left, idle).await),
            None => idle.await,
        }
    }

    /// Takes a request in: everything that is checked before an engine is asked.
    ///
    /// # Errors
    /// Why not; nothing was done.
    pub(super) fn admit(self: &Arc<Self>, request: Arc<GenerateRequest>) -> Result<Run, WireError> {
        self.refuse_if_leaving()?;
        validate::request(&request)?;
        let picked = self.registry.pick(&request.model, request.engine)?;
        let active = self.enter()?;
        let seat = self.admission.enter(picked.index)?;
        Ok(Run::new(Arc::clone(self), request, picked, seat, active))
    }

    pub(super) fn refuse_if_leaving(&self) -> Result<(), WireError> {
        if self.leaving.left().is_none() && !self.stop.is_cancelled() {
            return Ok(());
        }
        let message = "this agent is leaving and takes nothing new: ask another";
        Err(WireError::new(ErrorCode::Draining, message))
    }

    /// Counts one more as active.
    ///
    /// # Errors
    /// `Busy`: there are too many.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Active, WireError> {
        let most = self.config.generations;
        let entered = self.active.send_if_modified(|active| {
            let room = *active < most;
            *active += usize::from(room);
            room
        });
        if entered {
            return Ok(Active(Arc::clone(self)));
        }
        let message = format!("this agent runs {most} requests already");
        Err(WireError::new(ErrorCode::Busy, message).retry_after(timeouts::BUSY_RETRY))
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn config(&self) -> &ServeConfig {
        &self.config
    }

    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    pub(super) fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    pub(super) fn journals(&self) -> &Arc<Budget> {
        &self.journals
    }

    pub(super) fn leaving(&self) -> &Arc<Leaving> {
        &self.leaving
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(super) fn drills(&self) -> &Arc<Drills> {
        &self.drills
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

/// Counts one request as active until it is dropped.
pub(super) struct Active(Arc<Service>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0
            .active
            .send_modify(|active| *active = active.saturating_sub(1));
    }
}
