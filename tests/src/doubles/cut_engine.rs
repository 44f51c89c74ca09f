//! An engine that works, until it is told to break off: passes everything on to another one and
//! fails behind an exact piece of its answer, as a process that was killed there.

use futures_util::{StreamExt, stream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use unamesh_agent::engine::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream};
use unamesh_proto::wire::{EngineKind, GenerateRequest};

/// The double around another engine.
pub struct CutEngine {
    inner: Arc<dyn Engine>,
    cut: Mutex<Option<usize>>,
    deaf: AtomicBool,
    asked: Mutex<Vec<Arc<GenerateRequest>>>,
}

impl CutEngine {
    /// Around `inner`; nothing is cut yet.
    pub fn around(inner: Arc<dyn Engine>) -> Arc<Self> {
        Arc::new(CutEngine {
            inner,
            cut: Mutex::default(),
            deaf: AtomicBool::new(false),
            asked: Mutex::default(),
        })
    }

    /// The next answer breaks off after this many pieces.
    pub fn cut_after(&self, pieces: usize) {
        *self.cut.lock().unwrap() = Some(pieces);
    }

    /// From now on it knows no stop sequences, as the simplest servers do.
    pub fn ignore_stops(&self, ignore: bool) {
        self.deaf.store(ignore, Ordering::Relaxed);
    }

    /// What it was asked since the last time.
    pub fn asked(&self) -> Vec<Arc<GenerateRequest>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait::async_trait]
impl Engine for CutEngine {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn kind(&self) -> EngineKind {
        self.inner.kind()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.inner.describe().await
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        self.asked.lock().unwrap().push(Arc::clone(&request));
        let mut request = GenerateRequest::clone(&request);
        if self.deaf.load(Ordering::Relaxed) {
            request.sampling.stop.clear();
        }
        let cut = self.cut.lock().unwrap().take();
        let answer = self.inner.generate(Arc::new(request)).await?;
        let Some(left) = cut else { return Ok(answer) };
        let engine = self.name().to_owned();
        let cut = stream::unfold(Some((answer, left)), move |state| {
            let engine = engine.clone();
            async move {
                let (mut answer, left) = state?;
                if left == 0 {
                    let reason = "killed by the test".to_owned();
                    return Some((Err(EngineError::Failed { engine, reason }), None));
                }
                let item = answer.next().await?;
                let piece = matches!(item, Ok(EngineEvent::Chunk { .. }));
                Some((item, Some((answer, left - usize::from(piece)))))
            }
        });
        Ok(cut.boxed())
    }
}
