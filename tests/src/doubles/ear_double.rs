//! A double that hears: no model, no process, no clock but the one that its script names.
//!
//! Its transcript is a function of the samples that it was given, all of them ([`transcript`]):
//! two transcripts are equal if the sound was, to the sample. How it behaves is an [`EarScript`];
//! what happened to it is counted ([`EarDouble::seen`]).

use futures_util::StreamExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use unamesh_agent::engine::hearing::{HearCall, HearEvent, HearStream, Sound, Word};
use unamesh_agent::engine::{Engine, EngineError, EngineInfo, EngineStream};
use unamesh_proto::wire::{
    EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind, Residency, Stats,
};

/// What goes wrong once the sound has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EarFailure {
    /// The stream yields this error.
    Error(EngineError),
    /// The stream ends without a transcript.
    EndEarly,
    /// The stream stays silent for ever.
    Hang,
    /// A transcript of so many bytes.
    Oversize(usize),
    /// The transcript comes with the first sound, not after the last.
    Hasty,
}

/// How a double hears.
#[derive(Clone, Debug)]
pub struct EarScript {
    /// Between the end of the sound and the transcript.
    pub residue: Duration,
    /// It gives a partial transcript with every so many samples, without being asked; 0 = none.
    pub partial_every: usize,
    /// In the call of this number (0, 1, ...).
    pub fail: Option<(u64, EarFailure)>,
    /// `hear` itself fails with this.
    pub refuse: Option<EngineError>,
    /// Requests at the same time.
    pub slots: u16,
    /// What API it has: `GlmAsr` works while it listens, others when they are told that this
    /// was all.
    pub kind: EngineKind,
}

impl Default for EarScript {
    fn default() -> Self {
        EarScript {
            residue: Duration::ZERO,
            partial_every: 0,
            fail: None,
            refuse: None,
            slots: 4,
            kind: EngineKind::Whisper,
        }
    }
}

/// The transcript of `samples`.
#[must_use]
pub fn transcript(samples: &[i16]) -> String {
    let hash = samples.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, s| {
        (hash ^ u64::from(s.cast_unsigned())).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} samples {hash:016x}", samples.len())
}

/// What happened to a double so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EarSeen {
    /// Calls of `hear`.
    pub asked: u64,
    /// Calls whose sound came to its end.
    pub whole: u64,
    /// Streams that run now.
    pub running: u64,
    /// Streams dropped before their transcript.
    pub dropped: u64,
    /// Streams that came to their transcript.
    pub finished: u64,
    /// Samples of all calls.
    pub samples: u64,
}

/// The double. Clones share everything.
#[derive(Clone)]
pub struct EarDouble {
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<EarScript>,
    seen: watch::Sender<EarSeen>,
    calls: Mutex<Vec<HearCall>>,
}

impl EarDouble {
    /// A double called `name` that follows `script`.
    pub fn new(name: impl Into<String>, script: EarScript) -> Self {
        EarDouble {
            name: name.into(),
            shared: Arc::new(Shared {
                script: Mutex::new(script),
                seen: watch::Sender::default(),
                calls: Mutex::default(),
            }),
        }
    }

    /// Changes the script for the utterances that begin from now on.
    pub fn change(&self, change: impl FnOnce(&mut EarScript)) {
        change(&mut lock(&self.shared.script));
    }

    /// The counters now.
    pub fn seen(&self) -> EarSeen {
        *self.shared.seen.borrow()
    }

    /// Waits until the counters satisfy `wanted`, and returns them.
    pub async fn until(&self, wanted: impl FnMut(&EarSeen) -> bool) -> EarSeen {
        let mut seen = self.shared.seen.subscribe();
        // The sender lives as long as `self`.
        seen.wait_for(wanted)
            .await
            .map(|seen| *seen)
            .unwrap_or_default()
    }

    /// What it was asked, oldest first.
    pub fn calls(&self) -> Vec<HearCall> {
        lock(&self.shared.calls).clone()
    }
}

#[async_trait::async_trait]
impl Engine for EarDouble {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        lock(&self.shared.script).kind
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo {
            health: Health::Ok,
            slots: lock(&self.shared.script).slots,
            models: vec![model()],
            version: "double".to_owned(),
            voices: Vec::new(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        let script = lock(&self.shared.script).clone();
        lock(&self.shared.calls).push(call);
        let mut number = 0;
        self.shared.seen.send_modify(|seen| {
            number = seen.asked;
            seen.asked += 1;
            seen.running += 1;
        });
        let running = Running {
            shared: Arc::clone(&self.shared),
            finished: false,
        };
        if let Some(error) = script.refuse {
            return Err(error);
        }
        let failure = script.fail.clone().filter(|(at, _)| *at == number);
        let run = Run {
            script,
            failure: failure.map(|(_, failure)| failure),
            running,
            sound,
            heard: Vec::new(),
            told: 0,
            over: false,
        };
        let events = futures_util::stream::unfold(run, |mut run| async move {
            let event = run.event().await?;
            Some((event, run))
        });
        Ok(events.boxed())
    }
}

/// The one model (`engine` and `stats` belong to the registry).
fn model() -> ModelAdvert {
    ModelAdvert {
        engine: 0,
        name: "ear-1".to_owned(),
        digest: "sha256:ear".to_owned(),
        family: "double".to_owned(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind: ModelKind::Stt,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: false,
        stats: Stats::default(),
    }
}

/// Counts a running stream; dropped before the end, it counts as dropped.
struct Running {
    shared: Arc<Shared>,
    finished: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.seen.send_modify(|seen| {
            seen.running -= 1;
            if self.finished {
                seen.finished += 1;
            } else {
                seen.dropped += 1;
            }
        });
    }
}

/// What a stream keeps between its events.
struct Run {
    script: EarScript,
    failure: Option<EarFailure>,
    running: Running,
    sound: Sound,
    heard: Vec<i16>,
    /// Samples of the last partial transcript.
    told: usize,
    over: bool,
}

impl Run {
    async fn event(&mut self) -> Option<Result<HearEvent, EngineError>> {
        if self.over {
            return None;
        }
        while let Some(samples) = self.sound.recv().await {
            let seen = &self.running.shared.seen;
            seen.send_modify(|seen| seen.samples += samples.len() as u64);
            self.heard.extend(samples);
            if self.failure == Some(EarFailure::Hasty) {
                break;
            }
            let every = self.script.partial_every;
            if every > 0 && self.heard.len() - self.told >= every {
                self.told = self.heard.len();
                let text = transcript(&self.heard);
                return Some(Ok(HearEvent::Partial { text }));
            }
        }
        let seen = &self.running.shared.seen;
        seen.send_modify(|seen| seen.whole += 1);
        tokio::time::sleep(self.script.residue).await;
        self.over = true;
        let mut text = transcript(&self.heard);
        match self.failure.take() {
            None | Some(EarFailure::Hasty) => {}
            Some(EarFailure::Error(error)) => return Some(Err(error)),
            Some(EarFailure::EndEarly) => return None,
            Some(EarFailure::Hang) => std::future::pending().await,
            Some(EarFailure::Oversize(bytes)) => text = "x".repeat(bytes),
        }
        self.running.finished = true;
        let end_ms = u32::try_from(self.heard.len() / 16).unwrap_or(u32::MAX);
        Some(Ok(HearEvent::Final {
            words: vec![Word {
                text: text.clone(),
                start_ms: 0,
                end_ms,
            }],
            text,
            language: "en".to_owned(),
            confidence: Some(1.0),
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
