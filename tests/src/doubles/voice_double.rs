//! A double that speaks: no model, no process, no clock but the one that its script names.
//!
//! The sound of a text is a function of the text ([`wave`]): a hummed voice, as long as the text
//! has characters, at any rate the same sound. So what arrives can be compared with what was
//! said, to the sample. How it behaves is a [`VoiceScript`]; what happened to it is counted
//! ([`VoiceDouble::seen`]).

use futures_util::StreamExt;
use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use unamesh_agent::engine::speech::{SpeechCall, SpeechEvent, SpeechStream, Voice};
use unamesh_agent::engine::{Engine, EngineError, EngineInfo, EngineStream};
use unamesh_proto::wire::{
    EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind, Residency, Stats,
};

/// What goes wrong in the middle of a text's sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoiceFailure {
    /// The stream yields this error.
    Error(EngineError),
    /// The stream ends without a `Done`.
    EndEarly,
    /// The stream stays silent for ever.
    Hang,
    /// `Done` without any sound.
    Mute,
    /// The samples' rate is another one from here on.
    Rate(u32),
    /// Samples come before their rate was told.
    Unannounced,
}

/// How a double speaks.
#[derive(Clone, Debug)]
pub struct VoiceScript {
    /// Samples a second.
    pub rate: u32,
    /// Sound of one character.
    pub per_char: Duration,
    /// Before the first sample of each text.
    pub first_delay: Duration,
    /// Seconds of sound made in one; `None` = at once.
    pub speed: Option<f64>,
    /// Sound of one event.
    pub piece: Duration,
    /// In the call of this number (0, 1, ...), at half of its sound.
    pub fail: Option<(u64, VoiceFailure)>,
    /// `speak` itself fails with this.
    pub refuse: Option<EngineError>,
    /// The voices that it lists.
    pub voices: Vec<String>,
    /// Requests at the same time.
    pub slots: u16,
    /// What it says of its model.
    pub residency: Residency,
}

impl Default for VoiceScript {
    fn default() -> Self {
        VoiceScript {
            rate: 24_000,
            per_char: Duration::from_millis(60),
            first_delay: Duration::ZERO,
            speed: None,
            piece: Duration::from_millis(100),
            fail: None,
            refuse: None,
            voices: vec!["hum".to_owned()],
            slots: 4,
            residency: Residency::Loaded,
        }
    }
}

impl VoiceScript {
    /// The sound of `text` at `rate`.
    pub fn sound(&self, text: &str, rate: u32) -> Vec<i16> {
        let chars = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        wave(text, self.per_char * chars, rate)
    }
}

/// A hum that is another one for another text.
pub fn wave(text: &str, long: Duration, rate: u32) -> Vec<i16> {
    let hash = text.bytes().fold(7_u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let pitch = 110.0 + f64::from(hash % 97);
    let samples = (long.as_secs_f64() * f64::from(rate)).round() as usize;
    let sample = |n: usize| {
        let at = n as f64 / f64::from(rate);
        // Syllables, and a voice whose pitch moves: no two places sound alike.
        let loud = 0.6 - 0.4 * (TAU * 3.7 * at).cos();
        let phase = TAU * (pitch * at + 4.0 * (TAU * 0.9 * at).sin());
        let voice: f64 = (1..=6)
            .map(|k| (f64::from(k) * phase).sin() / f64::from(k))
            .sum();
        (loud * voice * 5_000.0) as i16
    };
    (0..samples).map(sample).collect()
}

/// What happened to a double so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoiceSeen {
    /// Calls of `speak`.
    pub asked: u64,
    /// Streams that run now.
    pub running: u64,
    /// The most that ran at the same time.
    pub peak: u64,
    /// Streams dropped before their `Done`: what a barge-in looks like from the engine.
    pub dropped: u64,
    /// Streams that came to their `Done`.
    pub finished: u64,
}

/// The double. Clones share everything.
#[derive(Clone)]
pub struct VoiceDouble {
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<VoiceScript>,
    seen: watch::Sender<VoiceSeen>,
    calls: Mutex<Vec<SpeechCall>>,
    handed: Mutex<Vec<(usize, Instant)>>,
}

impl VoiceDouble {
    /// A double called `name` that follows `script`.
    pub fn new(name: impl Into<String>, script: VoiceScript) -> Self {
        VoiceDouble {
            name: name.into(),
            shared: Arc::new(Shared {
                script: Mutex::new(script),
                seen: watch::Sender::default(),
                calls: Mutex::default(),
                handed: Mutex::default(),
            }),
        }
    }

    /// Changes the script for the texts that begin from now on.
    pub fn change(&self, change: impl FnOnce(&mut VoiceScript)) {
        change(&mut lock(&self.shared.script));
    }

    /// The counters now.
    pub fn seen(&self) -> VoiceSeen {
        *self.shared.seen.borrow()
    }

    /// Waits until the counters satisfy `wanted`, and returns them.
    pub async fn until(&self, wanted: impl FnMut(&VoiceSeen) -> bool) -> VoiceSeen {
        let mut seen = self.shared.seen.subscribe();
        // The sender lives as long as `self`.
        seen.wait_for(wanted)
            .await
            .map(|seen| *seen)
            .unwrap_or_default()
    }

    /// What it was asked to speak, oldest first.
    pub fn calls(&self) -> Vec<SpeechCall> {
        lock(&self.shared.calls).clone()
    }

    /// When it handed over each piece of sound, and its samples with those before it; of streams
    /// one after another.
    pub fn handed(&self) -> Vec<(usize, Instant)> {
        lock(&self.shared.handed).clone()
    }

    /// The sound at 24 kHz of all that it was asked to speak.
    pub fn spoken(&self) -> Vec<i16> {
        let script = lock(&self.shared.script).clone();
        let calls = self.calls();
        calls
            .iter()
            .flat_map(|call| script.sound(&call.text, 24_000))
            .collect()
    }
}

#[async_trait::async_trait]
impl Engine for VoiceDouble {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::OpenAiSpeech
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let script = lock(&self.shared.script).clone();
        Ok(EngineInfo {
            health: Health::Ok,
            slots: script.slots,
            models: vec![model(script.residency)],
            version: "double".to_owned(),
            voices: script
                .voices
                .iter()
                .map(|name| Voice::named(name))
                .collect(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        let script = lock(&self.shared.script).clone();
        lock(&self.shared.calls).push(call.clone());
        let mut number = 0;
        self.shared.seen.send_modify(|seen| {
            number = seen.asked;
            seen.asked += 1;
            seen.running += 1;
            seen.peak = seen.peak.max(seen.running);
        });
        let running = Running {
            shared: Arc::clone(&self.shared),
            finished: false,
        };
        if let Some(error) = script.refuse {
            return Err(error);
        }
        Ok(stream(script, &call.text, number, running))
    }
}

/// The one model (`engine` and `stats` belong to the registry).
fn model(residency: Residency) -> ModelAdvert {
    ModelAdvert {
        engine: 0,
        name: "hum-1".to_owned(),
        digest: String::new(),
        family: "double".to_owned(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind: ModelKind::Tts,
        residency,
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
                seen.finished += 1
            } else {
                seen.dropped += 1
            }
        });
    }
}

/// What a stream keeps between its events.
struct Run {
    script: VoiceScript,
    running: Running,
    failure: Option<VoiceFailure>,
    pcm: Vec<i16>,
    at: usize,
    told: bool,
    began: Option<Instant>,
    over: bool,
}

fn stream(script: VoiceScript, text: &str, number: u64, running: Running) -> SpeechStream {
    let failure = script.fail.clone().filter(|(at, _)| *at == number);
    let run = Run {
        pcm: script.sound(text, script.rate),
        failure: failure.map(|(_, failure)| failure),
        script,
        running,
        at: 0,
        told: false,
        began: None,
        over: false,
    };
    futures_util::stream::unfold(run, |mut run| async move {
        let event = run.event().await?;
        Some((event, run))
    })
    .boxed()
}

impl Run {
    async fn event(&mut self) -> Option<Result<SpeechEvent, EngineError>> {
        if self.over {
            return None;
        }
        if !self.told {
            self.told = true;
            if self.failure == Some(VoiceFailure::Unannounced) {
                return Some(Ok(SpeechEvent::Pcm(self.pcm.clone())));
            }
            let rate = self.script.rate;
            return Some(Ok(SpeechEvent::Format { rate }));
        }
        if self.at * 2 >= self.pcm.len()
            && let Some(failure) = self.failure.take()
        {
            return self.fail(failure).await;
        }
        if self.failure == Some(VoiceFailure::Mute) || self.at == self.pcm.len() {
            self.over = true;
            self.running.finished = true;
            let samples = self.at as u64;
            return Some(Ok(SpeechEvent::Done { samples }));
        }
        Some(Ok(SpeechEvent::Pcm(self.piece().await)))
    }

    async fn piece(&mut self) -> Vec<i16> {
        let rate = f64::from(self.script.rate);
        let size = (self.script.piece.as_secs_f64() * rate) as usize;
        let end = (self.at + size.max(1)).min(self.pcm.len());
        if self.began.is_none() {
            tokio::time::sleep(self.script.first_delay).await;
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        if let Some(speed) = self.script.speed {
            // The first piece is there at once, each other when it would be made.
            let made = Duration::from_secs_f64(self.at as f64 / rate / speed);
            tokio::time::sleep_until(began + made).await;
        }
        let piece = self.pcm[self.at..end].to_vec();
        self.at = end;
        let mut handed = lock(&self.running.shared.handed);
        let before = handed.last().map_or(0, |(samples, _)| *samples);
        handed.push((before + piece.len(), Instant::now()));
        piece
    }

    async fn fail(&mut self, failure: VoiceFailure) -> Option<Result<SpeechEvent, EngineError>> {
        match failure {
            VoiceFailure::Error(error) => {
                self.over = true;
                Some(Err(error))
            }
            VoiceFailure::Hang => std::future::pending().await,
            VoiceFailure::Rate(rate) => Some(Ok(SpeechEvent::Format { rate })),
            VoiceFailure::EndEarly | VoiceFailure::Mute | VoiceFailure::Unannounced => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
