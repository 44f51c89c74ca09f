//! An engine double: no model, no process, no clock but the one that its script names.
//!
//! Token *i* of an answer is a function of the seed, the request's session and *i*
//! ([`token`]), so two doubles with one seed are twins: an answer that moves from one to the
//! other in the middle must come out as [`Script::answer`] says, byte for byte. How it behaves
//! is a [`Script`]: delays, a stall, a failure at token *k*, an early end, a refusal. The
//! script can be changed while the double runs; a generation keeps the one it began with, and
//! only [`EngineDouble::strike`] hits it on its way.
//!
//! What happened to it is counted ([`EngineDouble::seen`]) and published on a watch, so that a
//! test waits for "its stream was dropped" instead of sleeping and hoping.

use futures_util::StreamExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use unamesh_agent::engine::{Engine, EngineError, EngineEvent, EngineInfo, EngineStream};
use unamesh_proto::limits;
use unamesh_proto::wire::{
    Chunk, EngineKind, FinishReason, GenerateRequest, Health, ModelAdvert, ModelKind, Residency,
    Stats, Usage,
};

/// What goes wrong at [`Script::fail_at`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The stream yields this error.
    Error(EngineError),
    /// The stream ends without a `Done`.
    EndEarly,
    /// The stream stays silent for ever.
    Hang,
    /// A piece of text of this many bytes comes instead of the token.
    Oversize(usize),
}

/// How a double behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// Tokens are a function of it: doubles with equal seeds are twins.
    pub seed: u64,
    /// Tokens of a whole answer (`max_tokens` of the request may cut it shorter).
    pub tokens: u32,
    /// Before the first token.
    pub first_delay: Duration,
    /// Before every other token.
    pub delay: Duration,
    /// Before token `.0`: silent for `.1` more.
    pub stall: Option<(u32, Duration)>,
    /// At token `.0`: what goes wrong.
    pub fail_at: Option<(u32, Failure)>,
    /// `generate` itself fails with this.
    pub refuse: Option<EngineError>,
    /// `generate` never resolves: headers that never come.
    pub hang_open: bool,
    /// `describe` answers this.
    pub health: Health,
    /// Requests at the same time.
    pub slots: u16,
    /// The model's name.
    pub model: String,
    /// The model's digest; equal digests answer alike.
    pub digest: String,
    /// The model takes and gives token ids.
    pub token_ids: bool,
    /// The model's context in tokens.
    pub context: u32,
    /// Where the model is.
    pub residency: Residency,
    /// `prompt_tokens` of every answer.
    pub prompt_tokens: u32,
    /// One token in so many has no text yet, as half a character; the next one brings it.
    /// 0 = none.
    pub halves: u32,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            seed: 1,
            tokens: 32,
            first_delay: Duration::ZERO,
            delay: Duration::ZERO,
            stall: None,
            fail_at: None,
            refuse: None,
            hang_open: false,
            health: Health::Ok,
            slots: 4,
            model: "double".to_owned(),
            digest: "sha256:double".to_owned(),
            token_ids: true,
            context: 4096,
            residency: Residency::Loaded,
            prompt_tokens: 7,
            halves: 0,
        }
    }
}

impl Script {
    /// The whole text of the answer to a request of `session`.
    pub fn answer(&self, session: u64) -> String {
        answer(self.seed.wrapping_add(session), self.tokens)
    }

    /// Token `index` of an answer of `end` tokens, as the engine hands it out.
    fn piece(&self, session: u64, index: u32, end: u32) -> Chunk {
        let seed = self.seed.wrapping_add(session);
        let half =
            |at: u32| self.halves > 0 && at + 1 < end && mix(seed, at).is_multiple_of(self.halves);
        let mut chunk = token(seed, index);
        if half(index) {
            chunk.text.clear();
        } else {
            let halves = (0..index).rev().take_while(|at| half(*at)).count();
            let first = index - u32::try_from(halves).unwrap_or_default();
            chunk.text = (first..=index).map(|at| token(seed, at).text).collect();
        }
        chunk
    }
}

/// What happened to a double so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Calls of `generate`.
    pub asked: u64,
    /// Streams that run now.
    pub running: u64,
    /// The most that ran at the same time.
    pub peak: u64,
    /// Streams dropped before their `Done`: what a cancel looks like from the engine.
    pub dropped: u64,
    /// Streams that came to their `Done`.
    pub finished: u64,
    /// Tokens made, over all streams.
    pub tokens: u64,
}

/// The double. Clones share everything.
#[derive(Clone)]
pub struct EngineDouble {
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<Script>,
    seen: watch::Sender<Seen>,
    last: Mutex<Option<Arc<GenerateRequest>>>,
    /// Closed: tokens flow freely. Open: each token takes a permit.
    steps: Semaphore,
    /// Sessions whose streams fail instead of making their next token.
    struck: Mutex<Vec<(u64, Failure)>>,
}

impl EngineDouble {
    /// A double called `name` that follows `script`.
    pub fn new(name: impl Into<String>, script: Script) -> Self {
        let double = Self::stepped(name, script);
        double.shared.steps.close();
        double
    }

    /// A double that makes a token only when [`EngineDouble::step`] allows it.
    pub fn stepped(name: impl Into<String>, script: Script) -> Self {
        EngineDouble {
            name: name.into(),
            shared: Arc::new(Shared {
                script: Mutex::new(script),
                seen: watch::Sender::new(Seen::default()),
                last: Mutex::new(None),
                steps: Semaphore::new(0),
                struck: Mutex::default(),
            }),
        }
    }

    /// The stream that makes a token for `session` next fails instead.
    pub fn strike(&self, session: u64, failure: Failure) {
        lock(&self.shared.struck).push((session, failure));
    }

    /// Allows `tokens` more tokens, over all streams.
    pub fn step(&self, tokens: usize) {
        self.shared.steps.add_permits(tokens);
    }

    /// From now on tokens flow freely.
    pub fn release(&self) {
        self.shared.steps.close();
    }

    /// Changes the script for the generations that begin from now on.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut lock(&self.shared.script));
    }

    /// The counters now.
    pub fn seen(&self) -> Seen {
        *self.shared.seen.borrow()
    }

    /// Waits until the counters satisfy `wanted`, and returns them.
    pub async fn until(&self, wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        // The sender lives as long as `self`.
        seen.wait_for(wanted)
            .await
            .map(|seen| *seen)
            .unwrap_or_default()
    }

    /// The request that came last.
    pub fn last_request(&self) -> Option<Arc<GenerateRequest>> {
        lock(&self.shared.last).clone()
    }

    /// The whole answer's text, as an uninterrupted run gives it.
    pub fn expected(&self) -> String {
        let script = lock(&self.shared.script);
        answer(script.seed, script.tokens)
    }
}

/// Token `index` of the answers of `seed`.
pub fn token(seed: u64, index: u32) -> Chunk {
    let id = mix(seed, index);
    Chunk {
        text: format!(" w{:04x}", id & 0xffff),
        ids: vec![id],
        tokens: 1,
    }
}

/// The text of tokens `0..tokens` of `seed`.
pub fn answer(seed: u64, tokens: u32) -> String {
    (0..tokens).map(|i| token(seed, i).text).collect()
}

/// SplitMix64 of both, folded to 31 bits: a token id that a signed reader holds too.
fn mix(seed: u64, index: u32) -> u32 {
    let mut z = seed.wrapping_add(
        u64::from(index)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) & 0x7fff_ffff).unwrap_or_default()
}

#[async_trait::async_trait]
impl Engine for EngineDouble {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::LlamaCpp
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let script = lock(&self.shared.script).clone();
        if script.health == Health::Down {
            return Err(EngineError::Down {
                engine: self.name.clone(),
                reason: "the script says so".to_owned(),
            });
        }
        Ok(EngineInfo {
            health: script.health,
            slots: script.slots,
            models: vec![model(&script)],
            version: "double".to_owned(),
            voices: Vec::new(),
        })
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        let script = lock(&self.shared.script).clone();
        *lock(&self.shared.last) = Some(Arc::clone(&request));
        self.shared.seen.send_modify(|seen| {
            seen.asked += 1;
            seen.running += 1;
            seen.peak = seen.peak.max(seen.running);
        });
        let running = Running {
            shared: Arc::clone(&self.shared),
            finished: false,
        };
        if script.hang_open {
            std::future::pending::<()>().await;
        }
        if let Some(error) = script.refuse {
            return Err(error);
        }
        Ok(stream(script, &request, running))
    }
}

/// The one model of a script (`engine` and `stats` belong to the registry).
fn model(script: &Script) -> ModelAdvert {
    ModelAdvert {
        engine: 0,
        name: script.model.clone(),
        digest: script.digest.clone(),
        family: "double".to_owned(),
        quantization: String::new(),
        size: 0,
        context: script.context,
        kind: ModelKind::Llm,
        residency: script.residency,
        load_eta_ms: 0,
        token_ids: script.token_ids,
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
    script: Script,
    running: Running,
    first: u32,
    next: u32,
    end: u32,
    finish: FinishReason,
    session: u64,
    state: State,
}

enum State {
    Announcing { exact: bool },
    Making,
    Over,
}

fn stream(script: Script, request: &GenerateRequest, running: Running) -> EngineStream {
    let first = u32::try_from(request.prefix.len()).unwrap_or(u32::MAX);
    let cap = request.sampling.max_tokens.unwrap_or(limits::MAX_TOKENS);
    let finish = if cap < script.tokens {
        FinishReason::Length
    } else {
        FinishReason::Stop
    };
    let exact = script.token_ids && request.prefix.iter().all(|chunk| !chunk.ids.is_empty());
    let run = Run {
        end: script.tokens.min(cap).max(first),
        script,
        running,
        first,
        next: first,
        finish,
        session: request.session,
        state: State::Announcing { exact },
    };
    futures_util::stream::unfold(run, |mut run| async move {
        let event = run.event().await?;
        Some((event, run))
    })
    .boxed()
}

impl Run {
    async fn event(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        match self.state {
            State::Announcing { exact } => {
                self.state = State::Making;
                Some(Ok(EngineEvent::Started { exact }))
            }
            State::Making => self.make().await,
            State::Over => None,
        }
    }

    async fn make(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        let index = self.next;
        if let Some((at, failure)) = self.script.fail_at.clone()
            && at == index
        {
            return self.fail(failure).await;
        }
        if index >= self.end {
            self.state = State::Over;
            self.running.finished = true;
            return Some(Ok(EngineEvent::Done {
                finish: self.finish,
                usage: self.usage(),
            }));
        }
        self.pace(index).await;
        if let Some(failure) = self.struck() {
            return self.fail(failure).await;
        }
        self.next += 1;
        self.running
            .shared
            .seen
            .send_modify(|seen| seen.tokens += 1);
        let chunk = self.script.piece(self.session, index, self.end);
        Some(Ok(EngineEvent::Chunk {
            chunk,
            extra: String::new(),
        }))
    }

    fn struck(&self) -> Option<Failure> {
        let mut struck = lock(&self.running.shared.struck);
        let at = struck.iter().position(|(of, _)| *of == self.session)?;
        Some(struck.swap_remove(at).1)
    }

    async fn pace(&self, index: u32) {
        let delay = if index == self.first {
            self.script.first_delay
        } else {
            self.script.delay
        };
        let stall = self
            .script
            .stall
            .filter(|(at, _)| *at == index)
            .map(|(_, long)| long);
        let wait = delay + stall.unwrap_or_default();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        // A closed semaphore means: tokens flow freely.
        if let Ok(step) = self.running.shared.steps.acquire().await {
            step.forget();
        }
    }

    async fn fail(&mut self, failure: Failure) -> Option<Result<EngineEvent, EngineError>> {
        match failure {
            Failure::Error(error) => {
                self.state = State::Over;
                Some(Err(error))
            }
            Failure::EndEarly => None,
            Failure::Hang => std::future::pending().await,
            Failure::Oversize(bytes) => {
                self.next += 1;
                let chunk = Chunk {
                    text: "x".repeat(bytes),
                    ids: Vec::new(),
                    tokens: 1,
                };
                Some(Ok(EngineEvent::Chunk {
                    chunk,
                    extra: String::new(),
                }))
            }
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.script.prompt_tokens,
            completion_tokens: self.end - self.first,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
