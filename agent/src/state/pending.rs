//! Stands in for `unamesh_proto::estimate::Speed` until that is on main: the last sample only.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use unamesh_proto::Wall;
use unamesh_proto::wire::Stats;

/// The last sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Speed {
    ttft_ms: f32,
    itl_ms: f32,
    load_ms: f32,
    samples: u32,
    at_ms: u64,
}

impl Speed {
    /// A first token.
    pub fn observe_ttft(&mut self, _prompt_tokens: u32, ttft: Duration, now: Wall) {
        self.ttft_ms = ttft.as_secs_f32() * 1e3;
        self.seen(now);
    }
    /// The time between tokens.
    pub fn observe_itl(&mut self, itl: Duration, now: Wall) {
        self.itl_ms = itl.as_secs_f32() * 1e3;
        self.seen(now);
    }
    /// A load.
    pub fn observe_load(&mut self, load: Duration, now: Wall) {
        self.load_ms = load.as_secs_f32() * 1e3;
        self.seen(now);
    }
    /// As advertised.
    pub fn stats(&self, now: Wall) -> Stats {
        Stats {
            ttft_ms: self.ttft_ms,
            itl_ms: self.itl_ms,
            load_ms: self.load_ms,
            samples: self.samples,
            age_s: u32::try_from(now.as_millis().saturating_sub(self.at_ms) / 1000)
                .unwrap_or(u32::MAX),
            ..Stats::default()
        }
    }
    fn seen(&mut self, now: Wall) {
        self.samples += 1;
        self.at_ms = now.as_millis();
    }
}
