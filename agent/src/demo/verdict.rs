//! What the demo proves: no token lost, none doubled, the text as without the kill.

use super::ask::Answer;
use serde_json::{Value, json};
use std::time::Duration;
use unamesh_proto::session::Seam;

/// One kill.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was asked.
    pub question: String,
    /// After how many tokens the agent was killed.
    pub kill_at: u32,
    /// What came.
    pub answer: Answer,
    /// Pieces that never came.
    pub lost: u32,
    /// Pieces that came twice.
    pub doubled: u32,
    /// The text equals that of an uninterrupted run.
    pub identical: bool,
    /// Tokens of the uninterrupted run.
    pub reference: u32,
    /// Characters up to the first difference, if there is one.
    pub differs_at: Option<usize>,
}

impl Run {
    /// `answer` to `question`, broken off at token `kill_at`; not compared yet.
    pub fn new(question: String, kill_at: u32, answer: Answer) -> Run {
        let (lost, doubled) = count(&answer);
        let (identical, reference, differs_at) = (false, 0, None);
        Run {
            question,
            kill_at,
            answer,
            lost,
            doubled,
            identical,
            reference,
            differs_at,
        }
    }

    /// Compares with an uninterrupted run.
    pub fn compare(&mut self, whole: &Answer) {
        let (ours, theirs) = (self.answer.text(), whole.text());
        self.identical = ours == theirs;
        self.reference = whole.tokens();
        self.differs_at = (!self.identical).then(|| {
            ours.chars()
                .zip(theirs.chars())
                .take_while(|(a, b)| a == b)
                .count()
        });
    }

    fn json(&self) -> Value {
        let (before, after) = self.answer.sides();
        let mut run = json!({
            "question": self.question,
            "kill_at": self.kill_at,
            "tokens_before": before,
            "tokens_after": after,
            "tokens_from": self.answer.shares,
            "tokens_reference": self.reference,
            "tokens_lost": self.lost,
            "tokens_doubled": self.doubled,
            "identical": self.identical,
            "differs_at": self.differs_at,
            "other_changes": self.answer.other_changes,
        });
        if let (Some(change), Value::Object(fields)) = (&self.answer.change, &mut run) {
            fields.insert("from".to_owned(), json!(change.from));
            fields.insert("to".to_owned(), json!(change.to));
            fields.insert("seam".to_owned(), json!(change.seam.name()));
            fields.insert("gap_ms".to_owned(), json!(ms(change.gap)));
            fields.insert("backup_ttft_ms".to_owned(), json!(ms(change.backup_ttft)));
            fields.insert("reason".to_owned(), json!(change.reason));
        }
        run
    }
}

/// Places in the answer that were skipped, and that came more than once.
fn count(answer: &Answer) -> (u32, u32) {
    let mut indices: Vec<u32> = answer.pieces.iter().map(|piece| piece.index).collect();
    let came = indices.len();
    indices.sort_unstable();
    indices.dedup();
    let doubled = came - indices.len();
    let expected = indices.last().map_or(0, |last| last + 1);
    let lost = usize::try_from(expected)
        .unwrap_or(usize::MAX)
        .saturating_sub(indices.len());
    (
        u32::try_from(lost).unwrap_or(u32::MAX),
        u32::try_from(doubled).unwrap_or(u32::MAX),
    )
}

/// What is the same for all runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Agents.
    pub peers: usize,
    /// From the start of the last agents until all know all.
    pub discovery: Duration,
    /// What was asked.
    pub model: String,
    /// What computed.
    pub engine: String,
}

/// The result of a demo.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the mesh.
    pub facts: Facts,
    /// At least one.
    pub runs: Vec<Run>,
}

impl Report {
    /// Of `runs`.
    pub fn new(facts: Facts, runs: Vec<Run>) -> Self {
        Report { facts, runs }
    }

    /// How many runs gave the text of an uninterrupted one.
    pub fn identical(&self) -> usize {
        self.runs.iter().filter(|run| run.identical).count()
    }

    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.runs
            .iter()
            .all(|run| run.identical && run.lost == 0 && run.doubled == 0)
    }

    /// Median and 95th percentile of `of` over all runs, in milliseconds.
    pub fn gaps(&self, of: impl Fn(&super::ask::Change) -> Duration) -> (f64, f64) {
        let mut all: Vec<f64> = self
            .runs
            .iter()
            .filter_map(|run| run.answer.change.as_ref())
            .map(|c| ms(of(c)))
            .collect();
        all.sort_by(f64::total_cmp);
        (percentile(&all, 50), percentile(&all, 95))
    }

    /// For scripts. With several kills the figures of the top level stand for the worst
    /// (`gap_ms` and `backup_ttft_ms`: the 95th percentile), `from`, `to` for the last.
    pub fn json(&self) -> Value {
        let last = self.runs.last().and_then(|run| run.answer.change.as_ref());
        let sum = |of: fn(&Run) -> u32| self.runs.iter().map(of).sum::<u32>();
        let exact = self.runs.iter().all(|run| {
            run.answer
                .change
                .as_ref()
                .is_some_and(|c| c.seam == Seam::Exact)
        });
        let gap = self.gaps(|c| c.gap);
        let ttft = self.gaps(|c| c.backup_ttft);
        let beyond = self.gaps(|c| c.gap.saturating_sub(c.backup_ttft));
        json!({
            "peers": self.facts.peers,
            "discovery_ms": ms(self.facts.discovery),
            "tokens_lost": sum(|run| run.lost),
            "tokens_doubled": sum(|run| run.doubled),
            "identical": self.identical() == self.runs.len(),
            "gap_ms": gap.1,
            "backup_ttft_ms": ttft.1,
            "from": last.map(|c| c.from.as_str()),
            "to": last.map(|c| c.to.as_str()),
            "seam": if exact { "exact" } else { "continued" },
            "gap_beyond_ttft_ms": {"p50": beyond.0, "p95": beyond.1},
            "gap_p50_ms": gap.0,
            "kills": self.runs.len(),
            "identical_runs": self.identical(),
            "model": self.facts.model,
            "engine": self.facts.engine,
            "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
        })
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// The smallest value that at least `percent` of `sorted` do not exceed; 0 of nothing.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::ask::{Change, Piece};
    use super::*;

    fn answer(pieces: &[(u32, &str)]) -> Answer {
        let piece = |(index, text): &(u32, &str)| Piece {
            index: *index,
            text: (*text).to_owned(),
            tokens: 1,
            after_seam: *index > 1,
        };
        let change = Change {
            from: "a".into(),
            to: "b".into(),
            seam: Seam::Exact,
            gap: Duration::from_millis(140),
            backup_ttft: Duration::from_millis(90),
            reason: String::new(),
        };
        Answer {
            pieces: pieces.iter().map(piece).collect(),
            shares: Vec::new(),
            change: Some(change),
            other_changes: 0,
        }
    }

    fn run(pieces: &[(u32, &str)]) -> Run {
        let mut run = Run::new("q".into(), 2, answer(pieces));
        run.compare(&answer(&[(0, "a"), (1, "b"), (2, "c")]));
        run
    }

    #[test]
    fn lost_and_doubled_are_seen() {
        let good = run(&[(0, "a"), (1, "b"), (2, "c")]);
        assert_eq!((good.lost, good.doubled, good.identical), (0, 0, true));
        let lost = run(&[(0, "a"), (2, "c")]);
        assert_eq!((lost.lost, lost.doubled, lost.identical), (1, 0, false));
        let doubled = run(&[(0, "a"), (1, "b"), (1, "b"), (2, "c")]);
        assert_eq!(
            (doubled.lost, doubled.doubled, doubled.differs_at),
            (0, 1, Some(2))
        );
    }

    #[test]
    fn the_keys_that_scripts_read() {
        let facts = Facts {
            peers: 3,
            discovery: Duration::from_millis(300),
            model: "m".into(),
            engine: "e".into(),
        };
        let json = Report::new(facts, vec![run(&[(0, "a"), (1, "b"), (2, "c")])]).json();
        let expected = json!({"peers": 3, "discovery_ms": 300.0, "tokens_lost": 0,
            "tokens_doubled": 0, "identical": true, "gap_ms": 140.0, "backup_ttft_ms": 90.0,
            "from": "a", "to": "b", "seam": "exact"});
        for (key, value) in expected.as_object().into_iter().flatten() {
            assert_eq!(json[key], *value, "{key}");
        }
    }

    #[test]
    fn percentiles() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 95)),
            (10.0, 19.0)
        );
        assert_eq!((percentile(&[7.0], 95), percentile(&[], 50)), (7.0, 0.0));
    }
}
