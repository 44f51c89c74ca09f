//! Models that conversations keep warm: what a warm stream holds.
//!
//! Engines that speak and transcribe have no word for "load this", so a cold model is warmed by a
//! request for next to nothing. It is made as seldom as can be:
//! - not of a model that has answered within [`WARM_FOR`], whoever asked it;
//! - not at an engine without a free slot: it is at work, and a real request must not wait for this;
//! - once a model, however many conversations open at the same time;
//! - again only for one that its engine reports as unloaded while it is leased,
//!   [`ServeConfig::warm_again`](super::ServeConfig::warm_again) apart at least.
//!
//! A [`Lease`] is polled by whoever wants its frames, as all requests here are, and ends with its
//! stream: dropping it closes the engine's connection if it was just asked. What is measured of
//! such a request goes nowhere: it says nothing of the next one.

use super::Service;
use super::client::Client;
use super::encoder::Encoder;
use super::leaving::Watcher;
use crate::engine::EngineError;
use crate::engine::hearing::{HearCall, RATE};
use crate::engine::registry::{self, Catalog, Picked};
use crate::engine::speech::SpeechCall;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use unamesh_client::transport::{BoxFuture, LeaseLink, LinkError};
use unamesh_proto::limits::MAX_LEASES;
use unamesh_proto::timeouts::{BUSY_RETRY, LOAD_MAX, WARM_FOR};
use unamesh_proto::wire::{
    ErrorCode, ModelKind, Residency, WarmFrame, WarmModel, WarmRequest, Warmed, Warmth, WireError,
};

/// What is spoken to warm a voice: a word in any language.
const WORD: &str = "Ok.";
/// Samples of the silence that warms a recognizer: a third of a second.
const SILENCE: usize = RATE as usize / 3;

/// All leases of this agent.
pub(super) struct Leases {
    room: Arc<Semaphore>,
    /// What is being warmed: engine and model.
    asking: Mutex<BTreeSet<(u16, String)>>,
}

impl Leases {
    /// None yet.
    pub fn new() -> Self {
        Leases {
            room: Arc::new(Semaphore::new(MAX_LEASES)),
            asking: Mutex::default(),
        }
    }

    /// The right to warm a model; `None` while somebody has it.
    fn ask(&self, key: (u16, String)) -> Option<Asking<'_>> {
        let new = self.lock().insert(key.clone());
        new.then_some(Asking { leases: self, key })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(u16, String)>> {
        // Each change leaves it whole.
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to warm a model, until it is dropped.
struct Asking<'a> {
    leases: &'a Leases,
    key: (u16, String),
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.key);
    }
}

/// A model of a lease, and who has it.
struct Target {
    at: u16,
    picked: Picked,
    /// What is said to an engine that speaks; one that transcribes has none.
    voice: Option<String>,
    language: String,
}

/// The models of one conversation here.
pub(super) struct Lease {
    service: Arc<Service>,
    work: FuturesUnordered<BoxFuture<(Arc<Target>, Warmth)>>,
    leaving: Watcher,
    over: bool,
    _room: OwnedSemaphorePermit,
}

impl Service {
    /// Keeps the models of `request` warm for this agent, while the link lives.
    ///
    /// # Errors
    /// [`LinkError::Refused`], with the reason that a remote client would get.
    pub fn lease_local(
        self: &Arc<Self>,
        request: &WarmRequest,
    ) -> Result<Box<dyn LeaseLink>, LinkError> {
        let lease = self.admit_lease(request).map_err(LinkError::Refused)?;
        Ok(Box::new(lease))
    }

    /// Takes a lease in.
    ///
    /// # Errors
    /// Why not; nothing was asked.
    pub(super) fn admit_lease(self: &Arc<Self>, request: &WarmRequest) -> Result<Lease, WireError> {
        self.refuse_if_leaving()?;
        request.check()?;
        let targets = (0..).zip(&request.models);
        let targets = targets.map(|(at, model)| self.target(at, model));
        let targets = targets.collect::<Result<Vec<Target>, WireError>>()?;
        let room = Arc::clone(&self.leases().room).try_acquire_owned();
        let room = room.map_err(|_| {
            let message = format!("this agent keeps models warm for {MAX_LEASES} conversations");
            WireError::new(ErrorCode::Busy, message).retry_after(BUSY_RETRY)
        })?;
        let work = targets.into_iter().map(|target| {
            let (service, target) = (Arc::clone(self), Arc::new(target));
            Box::pin(async move { (Arc::clone(&target), service.warm(&target).await) })
                as BoxFuture<(Arc<Target>, Warmth)>
        });
        Ok(Lease {
            service: Arc::clone(self),
            work: work.collect(),
            leaving: self.leaving().watch(),
            over: false,
            _room: room,
        })
    }

    fn target(&self, at: u16, model: &WarmModel) -> Result<Target, WireError> {
        let registry = self.registry();
        let (picked, voice) = match model.kind {
            ModelKind::Tts => {
                let speaks = registry.pick_speech(&model.model, &model.voice, model.engine)?;
                (speaks.engine, Some(speaks.voice))
            }
            _ => (registry.pick_hearing(&model.model, model.engine)?, None),
        };
        Ok(Target {
            at,
            picked,
            voice,
            language: model.language.clone(),
        })
    }

    /// Warms a model, if that is of use now.
    async fn warm(&self, target: &Target) -> Warmth {
        let (index, model) = (target.picked.index, &target.picked.model.name);
        let idle = self.registry().idle(index, model);
        if idle.is_some_and(|idle| idle < WARM_FOR) {
            return Warmth::Already;
        }
        let load = self.admission().loads().get(usize::from(index)).copied();
        let free = load.is_some_and(|load| load.busy < load.slots && load.queue == 0);
        let asking = self.leases().ask((index, model.clone()));
        let Some(_asking) = asking.filter(|_| free) else {
            return Warmth::Busy;
        };
        let asked = timeout(LOAD_MAX, self.ask(target)).await;
        let error = match asked {
            Ok(Ok(())) => return Warmth::Asked,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing came of it within {LOAD_MAX:?}"),
        };
        let engine = target.picked.engine.name();
        tracing::warn!(engine, model, error, "could not be warmed");
        Warmth::Failed
    }

    /// Asks for next to nothing, in a slot.
    async fn ask(&self, target: &Target) -> Result<(), WireError> {
        let mut seat = self.admission().enter(target.picked.index)?;
        poll_fn(|cx| seat.poll_taken(cx)).await;
        let asked = match &target.voice {
            Some(voice) => speak(target, voice).await,
            None => hear(target).await,
        };
        asked.map_err(|error| registry::wire_error(&error))
    }

    /// Resolves when the engine says that it has unloaded the model.
    async fn unloaded(&self, target: &Target) {
        sleep(self.config().warm_again).await;
        let (index, name) = (target.picked.index, &target.picked.model.name);
        let mut catalog = self.registry().changes();
        // What an engine says that never calls it loaded means nothing.
        for in_memory in [true, false] {
            let is = |catalog: &Arc<Catalog>| {
                let mut models = catalog.models.iter();
                let model = models.find(|m| (m.engine, &m.name) == (index, name));
                model.is_some_and(|m| (m.residency != Residency::OnDisk) == in_memory)
            };
            if catalog.wait_for(is).await.is_err() {
                // The engines are gone with the agent.
                std::future::pending::<()>().await;
            }
        }
        self.registry().forget_use(index, name);
    }
}

async fn speak(target: &Target, voice: &str) -> Result<(), EngineError> {
    let call = SpeechCall {
        model: target.picked.model.name.clone(),
        voice: voice.to_owned(),
        language: target.language.clone(),
        text: WORD.to_owned(),
        ..SpeechCall::default()
    };
    let sound = target.picked.engine.speak(call).await?;
    sound.try_for_each(|_| std::future::ready(Ok(()))).await
}

async fn hear(target: &Target) -> Result<(), EngineError> {
    let call = HearCall {
        model: target.picked.model.name.clone(),
        language: target.language.clone(),
        ..HearCall::default()
    };
    let (sound, silence) = mpsc::channel(1);
    // There is room for one, and the receiver is here.
    let _ = sound.try_send(vec![0; SILENCE]);
    drop(sound);
    let words = target.picked.engine.hear(call, silence).await?;
    words.try_for_each(|_| std::future::ready(Ok(()))).await
}

impl Lease {
    /// The next frame; `None` after the last one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<WarmFrame>> {
        if self.over {
            return Poll::Ready(None);
        }
        let leaves = self.leaving.poll_draining(cx).is_ready();
        if leaves || self.leaving.poll_stopped(cx).is_ready() {
            self.over = true;
            self.work.clear();
            let message = "this agent is leaving: another one is to keep the models warm";
            let error = WireError::new(ErrorCode::Draining, message);
            return Poll::Ready(Some(WarmFrame::Error(error)));
        }
        // With nothing left to do the lease lasts all the same.
        let Poll::Ready(Some((target, how))) = self.work.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        let at = target.at;
        if how != Warmth::Failed {
            let service = Arc::clone(&self.service);
            self.work.push(Box::pin(async move {
                service.unloaded(&target).await;
                (Arc::clone(&target), service.warm(&target).await)
            }));
            // The new one is to be polled, too.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Some(WarmFrame::Warmed(Warmed { at, how })))
    }
}

impl LeaseLink for Lease {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WarmFrame, LinkError>>> {
        self.poll_next(cx).map(|frame| frame.map(Ok))
    }
}

/// Serves `lease` to `client` until one of them ends it.
pub(super) async fn serve(service: &Service, mut lease: Lease, mut client: Client) {
    let stall = service.config().reader_stall;
    let mut encoder = Encoder::default();
    loop {
        let frame = tokio::select! {
            frame = poll_fn(|cx| lease.poll_next(cx)) => frame,
            _ = client.gone() => return client.cancel(),
        };
        let Some(frame) = frame else {
            return client.finish();
        };
        let Ok(record) = encoder.written(|out| frame.encode(out)) else {
            // Its fields are numbers and a message of our own.
            return client.reset(ErrorCode::EngineFailed);
        };
        if client.write(&mut [record], stall).await.is_err() {
            return client.cancel();
        }
    }
}
