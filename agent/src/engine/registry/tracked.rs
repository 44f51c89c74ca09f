//! An engine, and how much of ours runs on it.

use crate::engine::hearing::{HearCall, HearEvent, HearStream, Sound};
use crate::engine::speech::{SpeechCall, SpeechEvent, SpeechStream};
use crate::engine::{Engine, EngineError, EngineInfo, EngineStream};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use unamesh_proto::wire::{EngineKind, GenerateRequest};

/// Counts generations, speech and transcriptions while they run, and reports their failures.
pub struct Tracked {
    engine: Arc<dyn Engine>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    running: AtomicU32,
    /// A generation failed: the engine is to be asked how it is.
    failed: Notify,
    /// When each model that speaks or transcribes has last answered.
    used: Mutex<BTreeMap<String, Instant>>,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        // Each change leaves it whole.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracked {
    /// Tracks `engine`.
    pub fn new(engine: Arc<dyn Engine>) -> Arc<Self> {
        Arc::new(Tracked {
            engine,
            shared: Arc::default(),
        })
    }

    /// Generations that run now.
    pub fn running(&self) -> u32 {
        self.shared.running.load(Ordering::Relaxed)
    }

    /// Resolves when a generation has failed since the last call.
    pub async fn failed(&self) {
        self.shared.failed.notified().await;
    }

    /// Since `model` has last spoken or transcribed; `None` if it never did.
    pub fn idle(&self, model: &str) -> Option<Duration> {
        self.shared.used().get(model).map(Instant::elapsed)
    }

    /// Forgets when these models were used.
    pub fn forget(&self, which: impl Fn(&str) -> bool) {
        self.shared.used().retain(|model, _| !which(model));
    }

    /// What `start` starts, counted until it ends. `model`: remembered as used once it made
    /// something.
    async fn counted<T: 'static>(
        &self,
        model: Option<Used<T>>,
        start: impl Future<Output = Result<BoxStream<'static, Result<T, EngineError>>, EngineError>>,
    ) -> Result<BoxStream<'static, Result<T, EngineError>>, EngineError> {
        let guard = Guard::new(&self.shared);
        match start.await {
            Ok(stream) => {
                let counted = Counted {
                    stream,
                    guard,
                    model,
                };
                Ok(counted.boxed())
            }
            Err(error) => {
                guard.judge(&error);
                Err(error)
            }
        }
    }
}

#[async_trait::async_trait]
impl Engine for Tracked {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.engine.describe().await
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        self.counted(None, self.engine.generate(request)).await
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        let model = Used::new(&call.model, |e| matches!(e, SpeechEvent::Pcm(_)));
        self.counted(model, self.engine.speak(call)).await
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        let model = Used::new(&call.model, |e| !matches!(e, HearEvent::Progress));
        self.counted(model, self.engine.hear(call, sound)).await
    }

    fn local_port(&self) -> Option<u16> {
        self.engine.local_port()
    }

    fn wedged(&self) {
        self.engine.wedged();
    }
}

/// One running generation.
struct Guard(Arc<Shared>);

impl Guard {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::Relaxed);
        Guard(Arc::clone(shared))
    }

    fn judge(&self, error: &EngineError) {
        if matches!(error, EngineError::Down { .. } | EngineError::Failed { .. }) {
            self.0.failed.notify_one();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Counted<T> {
    stream: BoxStream<'static, Result<T, EngineError>>,
    guard: Guard,
    model: Option<Used<T>>,
}

/// A model that is used: `works` of what only one in memory makes.
struct Used<T> {
    model: String,
    works: fn(&T) -> bool,
    worked: bool,
}

impl<T> Used<T> {
    fn new(model: &str, works: fn(&T) -> bool) -> Option<Self> {
        let model = model.to_owned();
        let worked = false;
        Some(Used {
            model,
            works,
            worked,
        })
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        if let Some(used) = self.model.take().filter(|used| used.worked) {
            // As many as the engine has models: others make nothing.
            self.guard.0.used().insert(used.model, Instant::now());
        }
    }
}

impl<T> Stream for Counted<T> {
    type Item = Result<T, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = self.stream.poll_next_unpin(cx);
        match &item {
            Poll::Ready(Some(Ok(event))) => {
                if let Some(used) = &mut self.model {
                    used.worked |= (used.works)(event);
                }
            }
            Poll::Ready(Some(Err(error))) => self.guard.judge(error),
            _ => {}
        }
        item
    }
}
