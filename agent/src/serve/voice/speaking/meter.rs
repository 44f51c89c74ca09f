//! How fast an engine spoke one chunk, for the ranking. A packet counts as a token.

use crate::engine::registry::Sample;
use tokio::time::Instant;

/// Bytes of a text per token, as of prompts.
const BYTES_PER_TOKEN: usize = 4;
/// Below this many packets the time between them says little.
const MIN_PACKETS: u64 = 4;

/// Measures from the moment the engine is asked.
pub(super) struct Meter {
    cold: bool,
    tokens: u32,
    asked: Instant,
    first: Option<Instant>,
    void: bool,
}

impl Meter {
    /// The engine is asked for `text`; `cold`: its model was not in memory.
    pub fn new(text: &str, cold: bool) -> Self {
        Meter {
            cold,
            tokens: u32::try_from(text.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
            asked: Instant::now(),
            first: None,
            void: false,
        }
    }

    /// Sound came.
    pub fn sound(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Something else than the engine took its time: nothing can be told.
    pub fn void(&mut self) {
        self.void = true;
    }

    /// What was measured of a chunk of `packets`, which is whole now.
    pub fn sample(&self, packets: u64) -> Option<Sample> {
        let first = self.first.filter(|_| !self.void)?;
        let began = first.duration_since(self.asked);
        let rest = u32::try_from(packets.saturating_sub(1)).unwrap_or(u32::MAX);
        Some(Sample {
            prompt_tokens: self.tokens,
            ttft: (!self.cold).then_some(began),
            load: self.cold.then_some(began),
            itl: (packets >= MIN_PACKETS).then(|| first.elapsed() / rest),
        })
    }
}
