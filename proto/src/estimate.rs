//! Measured speeds of one model on one engine, and what to assume before anything is measured.
//!
//! Time to first token grows with the prompt, so it is a line: an intercept (empty prompt) and
//! a slope (for each 1,000 tokens). Both come from weighted least squares over exponentially
//! fading samples: five sums, no history. A sample counts `FADE` of the next one's weight,
//! and halves again every `HALF_LIFE` of wall-clock time, so that an old machine's figures
//! give way at once when it is used again. Until prompts of different lengths were seen, the
//! slope is 0 ("not learned") and the intercept is the mean.
//!
//! Everything is plain data, so that an agent can keep it over restarts.

use crate::time::Wall;
use crate::wire::{Hardware, Stats};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The weight of a sample relative to the one after it: about the last ten count.
const FADE: f64 = 0.9;
/// After this long without use a sample's weight has halved.
const HALF_LIFE: Duration = Duration::from_secs(3600);
/// Longer than any real wait; a suspended machine measures nonsense, which must not stick.
const MAX_SAMPLE: Duration = Duration::from_secs(600);
/// Spread of prompt lengths (standard deviation, in 1,000 tokens) from which a slope is
/// believed: 50 tokens. Below, noise would tilt the line at will.
const MIN_SPREAD: f64 = 0.05;
/// The weight of a new sample in the plain averages.
const ALPHA: f64 = 0.2;

/// What was measured on one model of one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speed {
    /// Sum of weights of the samples below.
    weight: f64,
    /// Weighted sum of prompt lengths in 1,000 tokens.
    x: f64,
    /// Weighted sum of times to first token in milliseconds.
    y: f64,
    /// Weighted sum of squared lengths.
    xx: f64,
    /// Weighted sum of length times time.
    xy: f64,
    /// Wall clock of the last time to first token, milliseconds since 1970.
    ttft_at_ms: u64,
    /// Between tokens.
    itl: Mean,
    /// To load.
    load: Mean,
    /// How many samples, of all kinds.
    samples: u32,
}

/// A fading average of milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Mean {
    /// 0 = no sample yet.
    ms: f64,
    /// Wall clock of the last sample, milliseconds since 1970.
    at_ms: u64,
}

impl Mean {
    /// Moves towards `sample`, the further the more the old value has faded.
    fn observe(&mut self, sample: Duration, now: Wall) {
        let kept = if self.ms > 0.0 {
            (1.0 - ALPHA) * fade(self.at_ms, now)
        } else {
            0.0
        };
        self.ms = self.ms * kept + millis(sample) * (1.0 - kept);
        self.at_ms = now.as_millis();
    }
}

impl Speed {
    /// A first token came `took` after the engine began with a prompt of `prompt_tokens` (no
    /// queueing, no loading).
    pub fn observe_ttft(&mut self, prompt_tokens: u32, took: Duration, now: Wall) {
        let keep = FADE * fade(self.ttft_at_ms, now);
        let (x, y) = (f64::from(prompt_tokens) / 1000.0, millis(took));
        for (sum, sample) in [
            (&mut self.weight, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * keep + sample;
        }
        self.ttft_at_ms = now.as_millis();
        self.samples = self.samples.saturating_add(1);
    }

    /// `took` passed between two tokens (or on average between several).
    pub fn observe_itl(&mut self, took: Duration, now: Wall) {
        self.itl.observe(took, now);
        self.samples = self.samples.saturating_add(1);
    }

    /// Loading the model took `took`.
    pub fn observe_load(&mut self, took: Duration, now: Wall) {
        self.load.observe(took, now);
        self.samples = self.samples.saturating_add(1);
    }

    /// The figures for an advert.
    pub fn stats(&self, now: Wall) -> Stats {
        let (intercept, slope) = self.line();
        let last = self.ttft_at_ms.max(self.itl.at_ms).max(self.load.at_ms);
        let age = now.as_millis().saturating_sub(last) / 1000;
        Stats {
            ttft_ms: intercept as f32,
            ttft_per_ktok_ms: slope as f32,
            itl_ms: self.itl.ms as f32,
            load_ms: self.load.ms as f32,
            age_s: u32::try_from(age).unwrap_or(u32::MAX),
            samples: self.samples,
        }
    }

    /// Intercept and slope, neither below 0.
    fn line(&self) -> (f64, f64) {
        if self.weight <= 0.0 {
            return (0.0, 0.0);
        }
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let variance = self.xx / self.weight - mean_x * mean_x;
        if variance < MIN_SPREAD * MIN_SPREAD {
            return (mean_y, 0.0);
        }
        let slope = (self.xy / self.weight - mean_x * mean_y) / variance;
        let intercept = mean_y - slope * mean_x;
        if slope <= 0.0 {
            (mean_y, 0.0)
        } else if intercept < 0.0 {
            // Through the origin: a time is never negative.
            (0.0, self.xy / self.xx)
        } else {
            (intercept, slope)
        }
    }
}

/// What is left of an old weight after the time since its last sample; a clock that jumped
/// back fades nothing.
fn fade(at_ms: u64, now: Wall) -> f64 {
    let gap_ms = now.as_millis().saturating_sub(at_ms) as f64;
    0.5f64.powf(gap_ms / (HALF_LIFE.as_secs_f64() * 1000.0))
}

fn millis(d: Duration) -> f64 {
    d.min(MAX_SAMPLE).as_secs_f64() * 1000.0
}

/// Bytes of a model whose size is unknown: a 7B at four bits, which homes run most.
const ASSUMED_SIZE: u64 = 4_400_000_000;

/// How fast a class of hardware is with a model, for each gigabyte of its weights.
struct Tier {
    /// Milliseconds to the first token of a short prompt.
    ttft_ms: f32,
    /// Milliseconds for each 1,000 tokens of prompt.
    per_ktok_ms: f32,
    /// Milliseconds for each token: the weights go through memory once.
    itl_ms: f32,
}

/// A discrete card that holds the model (3060: 40-60 tok/s on 4.4 GB, first token ~80 ms).
const CARD: Tier = Tier {
    ttft_ms: 18.0,
    per_ktok_ms: 150.0,
    itl_ms: 4.5,
};
/// Apple Silicon (M4 Max: 80-100 tok/s on 4.4 GB, ~50 ms; smaller chips a third of it).
const UNIFIED: Tier = Tier {
    ttft_ms: 25.0,
    per_ktok_ms: 300.0,
    itl_ms: 5.0,
};
/// Processor alone (5-10 tok/s on 4.4 GB, prefill ~40 tok/s).
const PROCESSOR: Tier = Tier {
    ttft_ms: 150.0,
    per_ktok_ms: 6000.0,
    itl_ms: 30.0,
};
/// Milliseconds to read a gigabyte of weights from an ordinary SSD.
const LOAD_MS_PER_GB: f32 = 700.0;
/// Milliseconds that starting a model takes beside reading it.
const LOAD_BASE_MS: f32 = 500.0;

/// What to expect of a model of `size` bytes (0 = unknown) on `hardware` while nothing is
/// measured: table values after the guide's benchmarks. `samples` is 0 in the result.
pub fn guess(hardware: &Hardware, size: u64) -> Stats {
    let size = if size == 0 { ASSUMED_SIZE } else { size };
    let largest = hardware
        .gpus
        .iter()
        .map(|g| g.memory_total)
        .max()
        .unwrap_or(0);
    let tier = if hardware.unified {
        UNIFIED
    } else if largest > size {
        CARD
    } else {
        PROCESSOR
    };
    let gb = size as f32 / 1e9;
    Stats {
        ttft_ms: tier.ttft_ms * gb,
        ttft_per_ktok_ms: tier.per_ktok_ms * gb,
        itl_ms: tier.itl_ms * gb,
        load_ms: LOAD_BASE_MS + LOAD_MS_PER_GB * gb,
        age_s: 0,
        samples: 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::Gpu;

    const NOW: Wall = Wall::from_millis(1_800_000_000_000);

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n / 1000.0)
    }

    fn near(a: f32, b: f32) -> bool {
        (a - b).abs() <= b.abs() * 0.02 + 0.01
    }

    #[test]
    fn learns_a_line() {
        let mut speed = Speed::default();
        for i in 0..50u32 {
            let tokens = 100 + (i * 379) % 4000;
            speed.observe_ttft(tokens, ms(40.0 + 0.12 * f64::from(tokens)), NOW);
        }
        let stats = speed.stats(NOW);
        assert!(
            near(stats.ttft_ms, 40.0) && near(stats.ttft_per_ktok_ms, 120.0),
            "{stats:?}"
        );
        assert_eq!((stats.samples, stats.age_s), (50, 0));
    }

    #[test]
    fn equal_prompts_give_a_mean_and_no_slope() {
        let mut speed = Speed::default();
        for took in [90.0, 100.0, 110.0] {
            speed.observe_ttft(500, ms(took), NOW);
        }
        let stats = speed.stats(NOW);
        assert!((95.0..105.0).contains(&stats.ttft_ms) && stats.ttft_per_ktok_ms == 0.0);
    }

    #[test]
    fn never_predicts_a_negative_time() {
        // A cached long prompt is faster than a cold short one; a quadratic one bends upwards.
        for points in [[(100, 500.0), (4000, 50.0)], [(100, 1.0), (4000, 4000.0)]] {
            let mut speed = Speed::default();
            for (tokens, took) in points.into_iter().cycle().take(20) {
                speed.observe_ttft(tokens, ms(took), NOW);
            }
            let stats = speed.stats(NOW);
            assert!(
                stats.ttft_ms >= 0.0 && stats.ttft_per_ktok_ms >= 0.0,
                "{stats:?}"
            );
        }
    }

    #[test]
    fn a_day_later_the_new_sample_counts() {
        let mut speed = Speed::default();
        for _ in 0..100 {
            speed.observe_ttft(100, ms(1000.0), NOW);
            speed.observe_itl(ms(100.0), NOW);
        }
        let later = Wall::from_millis(NOW.as_millis() + 86_400_000);
        assert_eq!(speed.stats(later).age_s, 86_400);
        speed.observe_ttft(100, ms(10.0), later);
        speed.observe_itl(ms(1.0), later);
        let stats = speed.stats(later);
        assert!(stats.ttft_ms < 11.0 && stats.itl_ms < 1.1, "{stats:?}");
    }

    #[test]
    fn one_outlier_does_not_stick() {
        let mut speed = Speed::default();
        for _ in 0..30 {
            speed.observe_itl(ms(20.0), NOW);
        }
        speed.observe_itl(Duration::from_secs(1_000_000), NOW);
        assert!(speed.stats(NOW).itl_ms <= 20.0 + 0.2 * 600_000.0 + 1.0);
        for _ in 0..60 {
            speed.observe_itl(ms(20.0), NOW);
        }
        assert!(
            near(speed.stats(NOW).itl_ms, 20.0),
            "{:?}",
            speed.stats(NOW)
        );
    }

    #[test]
    fn survives_a_restart_and_unknown_fields() {
        let mut speed = Speed::default();
        speed.observe_ttft(100, ms(33.0), NOW);
        speed.observe_load(ms(2500.0), NOW);
        let text = serde_json::to_string(&speed).unwrap();
        assert_eq!(serde_json::from_str::<Speed>(&text).unwrap(), speed);
        let other = r#"{"weight":1.0,"y":7.0,"of_a_later_version":1}"#;
        assert_eq!(
            serde_json::from_str::<Speed>(other)
                .unwrap()
                .stats(NOW)
                .ttft_ms,
            7.0
        );
    }

    #[test]
    fn guesses_follow_the_hardware() {
        let gpu = |gb: u64| Gpu {
            memory_total: gb * 1_000_000_000,
            ..Gpu::default()
        };
        let card = Hardware {
            gpus: vec![gpu(12)],
            ..Hardware::default()
        };
        let apple = Hardware {
            unified: true,
            ..Hardware::default()
        };
        let plain = Hardware::default();
        let size = 4_400_000_000;
        let tok_s = |h: &Hardware| 1000.0 / guess(h, size).itl_ms;
        assert!((40.0..=60.0).contains(&tok_s(&card)), "{}", tok_s(&card));
        assert!((5.0..=10.0).contains(&tok_s(&plain)), "{}", tok_s(&plain));
        assert!(tok_s(&apple) > tok_s(&plain));
        // Larger than the card: as slow as the processor.
        assert_eq!(
            guess(&card, 20_000_000_000).itl_ms,
            guess(&plain, 20_000_000_000).itl_ms
        );
        assert_eq!(guess(&plain, 0), guess(&plain, ASSUMED_SIZE));
    }
}
