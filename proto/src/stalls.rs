//! How long a model at a node takes, as seen from here: to its first token and between tokens.
//!
//! An engine hangs when it takes longer than it has been seen to take. What is learned are
//! distributions, for each (node, model): the waits before the first token, by class of prompt
//! length, and the gaps between tokens. Their 99th percentile is the session's stall bound, at
//! most [`STALL_MAX`](crate::timeouts::STALL_MAX) and at least
//! [`STALL_MIN`](crate::timeouts::STALL_MIN), between tokens
//! [`STALL_GAP_MIN`](crate::timeouts::STALL_GAP_MIN); until there are enough samples the session
//! goes by the advertised averages.
//!
//! - A sample is exactly what the bound bounds: the longest stretch without an advance while
//!   the engine worked. A queue and a load that report themselves are not in it.
//! - A stream that was left for its backup counts with the bound that it exceeded: left out, the
//!   slowest samples would be missing and the bound would sink from hedge to hedge; with its
//!   whole wait, a few dead engines would raise it.
//! - **Ageing**: the counts are halved whenever a sketch is full and after each hour
//!   without use, so that the last few hundred streams decide and an old picture is doubted.
//! - **Memory**: a [`Sketch`] is at most 640 bytes, an entry six of them, at most
//!   [`MAX_LEARNED`] entries: 1 MB.
//!
//! The sketch is [`hdrhistogram`] without its default features: MIT/Apache-2.0, release 7.6.0
//! of July 2026, no unsafe code, two small dependencies; a fixed array of counters, so its size is
//! known, merging is adding and ageing is halving. `sketches-ddsketch` (Apache-2.0, alive)
//! grows with its range and does not give out its bins, so it cannot age; `tdigest` (Apache-2.0)
//! is exact at the tails but rebuilds itself on every merge.

use crate::ids::NodeId;
use crate::limits::{MAX_LEARNED, MAX_NAME};
use crate::rank::Candidate;
use crate::time::Mono;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the bound is: of a hundred waits one is longer.
const QUANTILE: f64 = 0.99;
/// A percentile of fewer first tokens is guesswork.
const ENOUGH_FIRST: u64 = 30;
/// The same for gaps; one answer has a few hundred.
const ENOUGH_GAPS: u64 = 200;
/// A sketch with more samples than this is halved: first tokens...
const FULL_FIRST: u64 = 512;
/// ...and gaps, of which some twenty answers decide.
const FULL_GAPS: u64 = 4096;
/// After this long without use, what was learned counts half.
const HALF_LIFE: Duration = Duration::from_secs(3600);
/// Upper ends of the classes of prompt length, in tokens; the last class has none.
const CLASSES: [u32; 4] = [256, 1024, 4096, 16_384];
/// One step of a sketch.
const UNIT: Duration = Duration::from_micros(100);
/// Longer waits count as this one, in units: ten minutes.
const LONGEST: u64 = 6_000_000;

/// A distribution of durations: 100 µs to 10 min, within a tenth. Serialised as its
/// (units of 100 µs, count) pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u16)>", into = "Vec<(u64, u16)>")]
pub struct Sketch(Option<Histogram<u16>>);

impl Sketch {
    /// Adds a sample.
    pub fn record(&mut self, sample: Duration) {
        let units = sample.as_micros() / UNIT.as_micros();
        if self.0.is_none() {
            self.0 = Histogram::new_with_bounds(1, LONGEST, 1).ok();
        }
        if let Some(counts) = &mut self.0 {
            counts.saturating_record(u64::try_from(units).unwrap_or(u64::MAX));
        }
    }

    /// Samples in it.
    pub fn samples(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The duration that `quantile` (0 to 1) of the samples do not exceed, if there are
    /// `enough` of them.
    pub fn quantile(&self, quantile: f64, enough: u64) -> Option<Duration> {
        let counts = self.0.as_ref().filter(|c| c.len() >= enough.max(1))?;
        let micros = counts.value_at_quantile(quantile) * UNIT.as_micros() as u64;
        Some(Duration::from_micros(micros))
    }

    /// Adds the samples of `other`.
    fn merge(&mut self, other: &Sketch) {
        match (&mut self.0, &other.0) {
            // All sketches have the same bounds, so adding cannot fail.
            (Some(mine), Some(theirs)) => drop(mine.add(theirs)),
            (None, Some(_)) => self.0.clone_from(&other.0),
            (_, None) => {}
        }
    }

    /// Halves the counts, keeping the shape: what a bucket leaves over goes to the next, so
    /// that the single samples of a tail are thinned out and not lost.
    fn halve(&mut self) {
        let Some(old) = &self.0 else { return };
        let (mut new, mut rest) = (Histogram::new_from(old), 0);
        for bucket in old.iter_recorded() {
            let count = u32::from(bucket.count_at_value()) + rest;
            rest = count % 2;
            let half = u16::try_from(count / 2).unwrap_or(u16::MAX);
            if half > 0 {
                new.saturating_record_n(bucket.value_iterated_to(), half);
            }
        }
        self.0 = Some(new).filter(|h| !h.is_empty());
    }

    fn shrink_to(&mut self, full: u64) {
        while self.samples() > full {
            self.halve();
        }
    }
}

impl From<Vec<(u64, u16)>> for Sketch {
    fn from(pairs: Vec<(u64, u16)>) -> Self {
        let counts = Histogram::new_with_bounds(1, LONGEST, 1).ok();
        let counts = counts.map(|mut counts| {
            for (units, count) in pairs {
                counts.saturating_record_n(units, count);
            }
            counts
        });
        Sketch(counts.filter(|c| !c.is_empty()))
    }
}

impl From<Sketch> for Vec<(u64, u16)> {
    fn from(sketch: Sketch) -> Self {
        let counts = sketch.0.iter().flat_map(Histogram::iter_recorded);
        counts
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
            .collect()
    }
}

/// What is known of one model at one node, for [`crate::learned::Learned`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedModel {
    node: NodeId,
    model: String,
    /// Since it was used.
    idle_s: u64,
    /// By class of prompt length.
    first: [Sketch; CLASSES.len() + 1],
    gaps: Sketch,
}

/// What one stream showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Of the prompt, a replayed prefix included.
    pub prompt_tokens: u32,
    /// The longest wait before the first token, or before the first sound of each piece; none if
    /// that says nothing of the engine.
    pub first: Sketch,
    /// Between tokens.
    pub gaps: Sketch,
}

/// Beyond this an engine stalls; `None` while too little is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Before the first token.
    pub first: Option<Duration>,
    /// Between tokens.
    pub gap: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Learned {
    first: [Sketch; CLASSES.len() + 1],
    gaps: Sketch,
    touched: Mono,
}

impl Learned {
    fn age(&mut self, now: Mono) {
        self.halve(now.since(self.touched));
        self.touched = now;
    }

    /// Doubts what was not used for `idle`.
    fn halve(&mut self, idle: Duration) {
        let lives = idle.as_secs() / HALF_LIFE.as_secs();
        for sketch in self.first.iter_mut().chain([&mut self.gaps]) {
            (0..lives.min(16)).for_each(|_| sketch.halve());
        }
    }

    fn bounds(&self, prompt_tokens: u32) -> Bounds {
        // A longer prompt's wait bounds a shorter one's too.
        let longer = self.first.iter().skip(class(prompt_tokens));
        Bounds {
            first: longer
                .filter_map(|s| s.quantile(QUANTILE, ENOUGH_FIRST))
                .next(),
            gap: self.gaps.quantile(QUANTILE, ENOUGH_GAPS),
        }
    }
}

/// What one client learned of all models that it used; at most [`MAX_LEARNED`].
#[derive(Clone, Debug, Default)]
pub struct Stalls {
    models: BTreeMap<NodeId, BTreeMap<String, Learned>>,
}

impl Stalls {
    /// Takes in what a stream of `model` at `node` showed.
    pub fn learn(&mut self, node: NodeId, model: &str, observed: &Observed, now: Mono) {
        let models = self.models.entry(node).or_default();
        let learned = models.entry(model.to_owned()).or_insert_with(|| Learned {
            first: Default::default(),
            gaps: Sketch::default(),
            touched: now,
        });
        learned.age(now);
        let first = learned.first.get_mut(class(observed.prompt_tokens));
        if let Some(first) = first {
            first.merge(&observed.first);
            first.shrink_to(FULL_FIRST);
        }
        learned.gaps.merge(&observed.gaps);
        learned.gaps.shrink_to(FULL_GAPS);
        self.make_room();
    }

    /// What is known of `model` at `node` for a prompt of this length.
    pub fn bounds(&self, node: NodeId, model: &str, prompt_tokens: u32) -> Bounds {
        let learned = self.models.get(&node).and_then(|m| m.get(model));
        learned.map_or_else(Bounds::default, |l| l.bounds(prompt_tokens))
    }

    /// Writes what is known into the candidates for a prompt of this length.
    pub fn fill<C: BorrowMut<Candidate>>(&self, ranked: &mut [C], prompt_tokens: u32) {
        for candidate in ranked.iter_mut().map(BorrowMut::borrow_mut) {
            candidate.learned = self.bounds(candidate.node, &candidate.model, prompt_tokens);
        }
    }

    /// All that is known, latest used first.
    pub fn save(&self, now: Mono) -> Vec<LearnedModel> {
        let all = self.models.iter();
        let all = all.flat_map(|(node, models)| models.iter().map(|(m, l)| (*node, m, l)));
        let saved = all.map(|(node, model, learned)| LearnedModel {
            node,
            model: model.clone(),
            idle_s: now.since(learned.touched).as_secs(),
            first: learned.first.clone(),
            gaps: learned.gaps.clone(),
        });
        let mut saved: Vec<_> = saved.collect();
        saved.sort_by_key(|model| model.idle_s);
        saved
    }

    /// Adds what was saved `away` ago, aged by that; what was learned since stands.
    pub fn restore(&mut self, saved: Vec<LearnedModel>, away: Duration, now: Mono) {
        for model in saved {
            let mut learned = Learned {
                first: model.first,
                gaps: model.gaps,
                touched: now,
            };
            learned.halve(away.saturating_add(Duration::from_secs(model.idle_s)));
            for first in &mut learned.first {
                first.shrink_to(FULL_FIRST);
            }
            learned.gaps.shrink_to(FULL_GAPS);
            if model.model.len() <= MAX_NAME && self.len() < MAX_LEARNED {
                let models = self.models.entry(model.node).or_default();
                models.entry(model.model).or_insert(learned);
            }
        }
    }

    /// How many models something is known of.
    pub fn len(&self) -> usize {
        self.models.values().map(BTreeMap::len).sum()
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Over the limit, what was not used for longest goes.
    fn make_room(&mut self) {
        while self.len() > MAX_LEARNED {
            let all = self.models.iter();
            let all = all.flat_map(|(n, models)| models.iter().map(|(m, l)| (l.touched, *n, m)));
            let Some((_, node, model)) = all.min().map(|(at, n, m)| (at, n, m.clone())) else {
                return;
            };
            if let Some(models) = self.models.get_mut(&node) {
                models.remove(&model);
                if models.is_empty() {
                    self.models.remove(&node);
                }
            }
        }
    }
}

fn class(prompt_tokens: u32) -> usize {
    CLASSES.iter().filter(|end| prompt_tokens > **end).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn stream(prompt_tokens: u32, first: u64, gaps: impl Iterator<Item = u64>) -> Observed {
        let mut observed = Observed {
            prompt_tokens,
            ..Observed::default()
        };
        observed.first.record(ms(first));
        gaps.for_each(|g| observed.gaps.record(ms(g)));
        observed
    }

    fn near(found: Option<Duration>, wanted: Duration) -> bool {
        found.is_some_and(|f| f >= wanted.mul_f64(0.9) && f <= wanted.mul_f64(1.1))
    }

    #[test]
    fn nothing_is_claimed_before_there_are_enough_samples() {
        let mut stalls = Stalls::default();
        for _ in 0..29 {
            stalls.learn(node(1), "m", &stream(10, 300, 0..6), Mono::ZERO);
        }
        assert_eq!(stalls.bounds(node(1), "m", 10), Bounds::default());
        for _ in 0..5 {
            stalls.learn(node(1), "m", &stream(10, 300, 0..6), Mono::ZERO);
        }
        let bounds = stalls.bounds(node(1), "m", 10);
        assert!(near(bounds.first, ms(300)), "{bounds:?}");
        assert!(near(bounds.gap, ms(5)), "{bounds:?}");
        assert_eq!(stalls.bounds(node(2), "m", 10), Bounds::default());
        assert_eq!(stalls.bounds(node(1), "n", 10), Bounds::default());
    }

    #[test]
    fn prompts_have_classes_and_a_longer_one_bounds_a_shorter_one() {
        let mut stalls = Stalls::default();
        for _ in 0..40 {
            stalls.learn(node(1), "m", &stream(8000, 4000, 0..0), Mono::ZERO);
        }
        assert!(near(stalls.bounds(node(1), "m", 100).first, ms(4000)));
        assert_eq!(stalls.bounds(node(1), "m", 20_000).first, None);
        for _ in 0..40 {
            stalls.learn(node(1), "m", &stream(100, 200, 0..0), Mono::ZERO);
        }
        assert!(near(stalls.bounds(node(1), "m", 100).first, ms(200)));
        assert!(near(stalls.bounds(node(1), "m", 5000).first, ms(4000)));
    }

    #[test]
    fn the_bound_is_the_99th_percentile_and_survives_ageing() {
        let mut sketch = Sketch::default();
        (0..2000).for_each(|n| sketch.record(ms(if n % 50 == 0 { 900 } else { 20 })));
        for left in [2000, 1000, 500, 250] {
            assert_eq!(sketch.samples(), left);
            assert!(near(sketch.quantile(0.99, 1), ms(900)));
            assert!(near(sketch.quantile(0.9, 1), ms(20)));
            sketch.halve();
        }
    }

    #[test]
    fn a_machine_that_became_slower_is_learned_anew() {
        let mut stalls = Stalls::default();
        for _ in 0..100 {
            let quick = stream(10, 200, (0..100).map(|_| 20));
            stalls.learn(node(1), "m", &quick, Mono::ZERO);
        }
        for _ in 0..30 {
            let slow = stream(10, 200, (0..100).map(|_| 80));
            stalls.learn(node(1), "m", &slow, Mono::ZERO);
        }
        assert!(near(stalls.bounds(node(1), "m", 10).gap, ms(80)));
        // And after a night without use it is doubted: too few samples are left.
        let morning = Mono::ZERO + HALF_LIFE * 8;
        let one = stream(10, 200, 0..0);
        stalls.learn(node(1), "m", &one, morning);
        assert_eq!(stalls.bounds(node(1), "m", 10), Bounds::default());
    }

    #[test]
    fn everything_is_bounded() {
        let mut stalls = Stalls::default();
        for n in 0..2 * MAX_LEARNED as u32 {
            let at = Mono::from_micros(u64::from(n));
            let name = format!("model {}", n % 7);
            stalls.learn(node(n / 7), &name, &stream(1, 700_000, 0..3), at);
        }
        assert_eq!(stalls.len(), MAX_LEARNED);
        let mut sketch = Sketch::default();
        sketch.record(Duration::MAX);
        sketch.record(Duration::ZERO);
        assert!(sketch.quantile(1.0, 1).is_some_and(|d| d <= ms(660_000)));
        let counts = sketch.0.as_ref().map_or(0, |h| h.distinct_values());
        assert!(counts * 2 <= 640, "{counts} counters of two bytes");
    }
}
