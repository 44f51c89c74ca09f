//! How fast an engine was in one generation.

use crate::engine::registry::Sample;
use std::time::Duration;
use tokio::time::Instant;
use unamesh_proto::wire::{GenerateRequest, Residency};

/// Bytes of a prompt per token, where the engine did not count: English prose.
const BYTES_PER_TOKEN: usize = 4;
/// Below this many tokens the time between them says little.
const MIN_TOKENS: u32 = 4;

/// Measures from the moment the engine is asked; waiting for a slot is not its time.
pub(super) struct Meter {
    /// The model was not in memory: the first token includes loading it.
    cold: bool,
    /// Of the prompt, the replayed prefix included.
    prompt_tokens: u32,
    replayed: u32,
    opened: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u32,
    /// Tokens of the first piece, which came before the clock of the others ran.
    head: u32,
    /// Time that the reader took, not the engine.
    excluded: Duration,
}

impl Meter {
    /// For a request to a model that is where `residency` says.
    pub fn new(request: &GenerateRequest, residency: Residency) -> Self {
        let replayed = request.prefix.iter().map(|chunk| chunk.tokens);
        let replayed = replayed.fold(0, u32::saturating_add);
        let estimate = u32::try_from(request.input.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        Meter {
            cold: !matches!(residency, Residency::Loaded | Residency::Pinned),
            prompt_tokens: estimate.saturating_add(replayed),
            replayed,
            opened: None,
            first: None,
            last: None,
            tokens: 0,
            head: 0,
            excluded: Duration::ZERO,
        }
    }

    /// The engine is being asked.
    pub fn opened(&mut self) {
        self.opened = Some(Instant::now());
    }

    /// A piece of `tokens` tokens came.
    pub fn token(&mut self, tokens: u32) {
        let now = Instant::now();
        if self.first.is_none() {
            self.first = Some(now);
            self.head = tokens;
        }
        self.last = Some(now);
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The engine counted the prompt, the replayed prefix excluded.
    pub fn prompt(&mut self, tokens: u32) {
        if tokens > 0 {
            self.prompt_tokens = tokens.saturating_add(self.replayed);
        }
    }

    /// `long` was not the engine's doing.
    pub fn exclude(&mut self, long: Duration) {
        self.excluded += long;
    }

    /// What was measured; `None` before the first token.
    pub fn sample(&self) -> Option<Sample> {
        let (opened, first, last) = (self.opened?, self.first?, self.last?);
        let began = first.duration_since(opened);
        let rest = self.tokens.saturating_sub(self.head);
        let making = last.duration_since(first).saturating_sub(self.excluded);
        Some(Sample {
            prompt_tokens: self.prompt_tokens,
            ttft: (!self.cold).then_some(began),
            load: self.cold.then_some(began),
            itl: (rest >= MIN_TOKENS).then(|| making / rest),
        })
    }
}
