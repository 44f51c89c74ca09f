//! What came of all requests, as a table.

use super::chat::{Chat, End, Told};
use crate::measure::Samples;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The requests of a soak.
#[derive(Default)]
pub struct Tally {
    requests: u64,
    tokens: u64,
    whole: u64,
    /// By their code.
    pub failed: BTreeMap<String, u64>,
    /// What must not be, in words.
    pub wrong: Vec<String>,
    /// The longest gap of each answer that had two tokens, or none for an error's sake.
    pub gaps: Samples,
    /// The first token of each answer that had one.
    pub firsts: Samples,
}

impl Tally {
    /// Counts one.
    pub fn take(&mut self, chat: Chat, told: Told) {
        self.requests += 1;
        self.tokens += u64::from(told.tokens);
        if told.tokens > 1 || told.end != End::Done {
            self.gaps.push(told.gap);
        }
        if let Some(first) = told.first {
            self.firsts.push(first);
        }
        match told.end {
            End::Done => self.whole += 1,
            End::Failed(code) => *self.failed.entry(code).or_default() += 1,
            End::Wrong(what) => self
                .wrong
                .push(format!("{chat:?}, {} tokens: {what}", told.tokens)),
        }
    }

    /// The slowest that a client saw: of first tokens and of gaps.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        self.gaps.percentile(1.0).max(self.firsts.percentile(1.0))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "requests          {}", self.requests)?;
        writeln!(f, "tokens            {}", self.tokens)?;
        writeln!(f, "whole             {}", self.whole)?;
        writeln!(f, "typed errors      {:?}", self.failed)?;
        writeln!(f, "wrong             {}", self.wrong.len())?;
        for (what, samples) in [("first token", &self.firsts), ("largest gap", &self.gaps)] {
            let [half, most, max] = [0.5, 0.99, 1.0].map(|p| samples.percentile(p));
            writeln!(f, "{what:17} p50 {half:.1?}, p99 {most:.1?}, max {max:.1?}")?;
        }
        Ok(())
    }
}

/// How often each kind of event happened, with what tells kinds apart.
#[must_use]
pub fn kinds(events: &[Value]) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for event in events {
        let words = ["event", "seam", "cause", "state", "hedge"].map(|field| &event[field]);
        let words = words.into_iter().filter(|word| !word.is_null());
        let kind: Vec<String> = words
            .map(|word| word.to_string().replace('"', ""))
            .collect();
        *kinds.entry(kind.join(" ")).or_default() += 1;
    }
    kinds
}
