//! An engine, and how much of ours runs on it.

use crate::engine::hearing::{HearCall, HearStream, Sound};
use crate::engine::speech::{SpeechCall, SpeechStream};
use crate::engine::{Engine, EngineError, EngineInfo, EngineStream};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Notify;
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

    /// What `start` starts, counted until it ends.
    async fn counted<T: 'static>(
        &self,
        start: impl Future<Output = Result<BoxStream<'static, Result<T, EngineError>>, EngineError>>,
    ) -> Result<BoxStream<'static, Result<T, EngineError>>, EngineError> {
        let guard = Guard::new(&self.shared);
        match start.await {
            Ok(stream) => Ok(Counted { stream, guard }.boxed()),
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
        self.counted(self.engine.generate(request)).await
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        self.counted(self.engine.speak(call)).await
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        self.counted(self.engine.hear(call, sound)).await
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
}

impl<T> Stream for Counted<T> {
    type Item = Result<T, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = self.stream.poll_next_unpin(cx);
        if let Poll::Ready(Some(Err(error))) = &item {
            self.guard.judge(error);
        }
        item
    }
}
