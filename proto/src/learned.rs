//! What a client learned of paths and engines, as a record that outlives its process.
//!
//! After a restart (an update, a reboot) a machine would otherwise not know that this Wi-Fi
//! stalls for 380 ms, or that this laptop takes four seconds to its first token, and would
//! suspect both until it has seen enough again. The record is plain data: its owner writes it
//! down and reads it back. It names nodes and models, no prompt and no answer.
//!
//! What comes back is aged by the time that has passed, as if it had been idle in memory, and is
//! cut to the same limits: a record is believed no further than its bounds.

use crate::ids::NodeId;
use crate::limits::{MAX_LEARNED, MAX_PEERS};
use crate::session::Silence;
use crate::stalls::LearnedModel;
use crate::time::Wall;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Of this form of record; another one is not read.
const VERSION: u32 = 1;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    version: u32,
    /// Wall clock when it was made, in milliseconds.
    at_ms: u64,
    paths: Vec<(NodeId, Silence)>,
    models: Vec<LearnedModel>,
}

impl Learned {
    /// What is known at `now`: the lateness of paths, and the models, latest used first.
    pub fn new(paths: Vec<(NodeId, Silence)>, models: Vec<LearnedModel>, now: Wall) -> Self {
        Learned {
            version: VERSION,
            at_ms: now.as_millis(),
            paths,
            models,
        }
    }

    /// The paths, the models, and for how long nothing was learned; nothing of another version.
    pub fn parts(self, now: Wall) -> (Vec<(NodeId, Silence)>, Vec<LearnedModel>, Duration) {
        let away = Duration::from_millis(now.as_millis().saturating_sub(self.at_ms));
        if self.version != VERSION {
            return (Vec::new(), Vec::new(), away);
        }
        let paths = self.paths.into_iter().take(MAX_PEERS);
        let paths = paths.map(|(node, silence)| (node, silence.believed()));
        let (paths, mut models) = (paths.collect(), self.models);
        models.truncate(MAX_LEARNED);
        (paths, models, away)
    }

    /// Forgets the half of the models that were not used for longest; false if there is none.
    pub fn shrink(&mut self) -> bool {
        let half = self.models.len() / 2;
        let some = !self.models.is_empty();
        self.models.truncate(half);
        some
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stalls::{Observed, Stalls};
    use crate::testing::node;
    use crate::time::Mono;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Forty streams of one model, and a path with stalls.
    fn record() -> Learned {
        let (mut stalls, mut silence) = (Stalls::default(), Silence::default());
        for _ in 0..40 {
            let mut observed = Observed {
                prompt_tokens: 2000,
                ..Observed::default()
            };
            observed.first.record(ms(4000));
            (0..10).for_each(|_| observed.gaps.record(ms(30)));
            stalls.learn(node(1), "m", &observed, Mono::ZERO);
            silence.observe(ms(20));
            silence.observe(ms(380));
        }
        Learned::new(
            vec![(node(1), silence)],
            stalls.save(Mono::ZERO),
            Wall::from_millis(1_000_000),
        )
    }

    fn restored(learned: Learned, now: Wall) -> (Stalls, Vec<(NodeId, Silence)>) {
        let (paths, models, away) = learned.parts(now);
        let mut stalls = Stalls::default();
        stalls.restore(models, away, Mono::ZERO);
        (stalls, paths)
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let learned = record();
        let json = serde_json::to_vec(&learned).unwrap();
        let read: Learned = serde_json::from_slice(&json).unwrap();
        assert_eq!(read, learned);
        let (stalls, paths) = restored(read, Wall::from_millis(1_060_000));
        let bounds = stalls.bounds(node(1), "m", 2000);
        let first = bounds.first.unwrap();
        assert!(first >= ms(3900) && first <= ms(4400), "{first:?}");
        assert!(bounds.gap.unwrap() >= ms(29), "{bounds:?}");
        assert_eq!(paths[0].1.bound(), crate::timeouts::SILENCE_MAX);
    }

    #[test]
    fn a_night_makes_it_doubtful_and_another_version_void() {
        let night = Wall::from_millis(1_000_000 + 8 * 3_600_000);
        let (stalls, _) = restored(record(), night);
        assert_eq!(stalls.bounds(node(1), "m", 2000), Default::default());
        let other = Learned {
            version: VERSION + 1,
            ..record()
        };
        let (stalls, paths) = restored(other, Wall::from_millis(1_000_000));
        assert!(stalls.is_empty() && paths.is_empty());
    }

    #[test]
    fn nonsense_is_cut_to_the_bounds() {
        let json = serde_json::to_string(&record()).unwrap();
        let huge = json.replace("\"mean_us\":", "\"mean_us\":1e30,\"was\":");
        let read: Learned = serde_json::from_str(&huge).unwrap();
        let (_, mut paths) = restored(read, Wall::from_millis(0));
        let silence = &mut paths[0].1;
        for _ in 0..200 {
            silence.observe(ms(20));
        }
        assert_eq!(silence.bound(), crate::timeouts::SILENCE_MIN, "it recovers");
        let mut learned = record();
        learned.models = vec![learned.models[0].clone(); 3 * MAX_LEARNED];
        let (stalls, _) = restored(learned, Wall::from_millis(1_000_000));
        assert_eq!(stalls.len(), 1);
    }

    #[test]
    fn it_can_be_made_to_fit() {
        let mut learned = record();
        assert!(learned.shrink());
        assert!(!learned.shrink());
    }
}
