//! What a drill showed, and whether it was good.

use super::case::Case;
use super::trial::Trial;
use crate::bench::stats::{Samples, ms, round};
use crate::cli::output::{BAD, Cell, GOOD, Out, PLAIN, Table, WARN, cell};
use anstyle::Style;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// The trials of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    /// Which.
    pub case: Case,
    /// All of them.
    pub trials: Vec<Trial>,
}

/// A whole drill.
#[derive(Clone, Debug, Default)]
pub struct DrillReport {
    /// Trials of each case.
    pub trials: usize,
    /// In the order in which they ran.
    pub cases: Vec<CaseReport>,
    /// What the engines take to their first token, in milliseconds, where that is known.
    pub engine_ttft_ms: Option<f64>,
}

impl CaseReport {
    fn answers(&self) -> impl Iterator<Item = &super::answer::Answer> {
        self.trials.iter().flat_map(|trial| &trial.answers)
    }

    fn heals(&self) -> impl Iterator<Item = &super::answer::Heal> {
        self.answers().filter_map(|answer| answer.heal.as_ref())
    }

    /// Tokens that never came.
    pub fn lost(&self) -> usize {
        self.answers().map(|answer| answer.lost).sum()
    }

    /// Tokens that came twice, or out of order.
    pub fn doubled(&self) -> usize {
        self.answers().map(|answer| answer.doubled).sum()
    }

    /// Answers that did not come to their end.
    pub fn failed(&self) -> usize {
        self.answers()
            .filter(|answer| answer.failed.is_some())
            .count()
    }

    /// How much longer the gaps were than the backup's own first token took, in milliseconds.
    pub fn beyond(&self) -> Samples {
        self.heals()
            .map(|h| ms(h.gap) - ms(h.backup_ttft))
            .collect()
    }

    /// The longest time between two tokens in each answer that was hit.
    pub fn largest(&self) -> Samples {
        let hit = self.answers().filter(|answer| answer.hit);
        hit.map(|answer| ms(answer.largest)).collect()
    }

    /// For scripts. `usual`: between tokens while nothing is wrong.
    pub fn json(&self, engine_ttft_ms: Option<f64>, usual: &Samples) -> Value {
        let of = |value: &dyn Fn(&super::answer::Heal) -> f64| -> Samples {
            self.heals().map(value).collect()
        };
        let seams = |kind: &str| self.heals().filter(|heal| heal.seam == kind).count();
        let share = engine_ttft_ms.map(|own| of(&|h| ms(h.backup_ttft) - own).json());
        let mut reasons: Vec<&str> = self.heals().map(|heal| heal.reason.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let mut failures: Vec<&str> = self
            .answers()
            .filter_map(|answer| answer.failed.as_deref())
            .collect();
        failures.sort_unstable();
        failures.dedup();
        let compared = self.answers().filter_map(|answer| answer.identical);
        json!({
            "gap_ms": of(&|h| ms(h.gap)).json(),
            "backup_ttft_ms": of(&|h| ms(h.backup_ttft)).json(),
            "gap_beyond_ttft_ms": self.beyond().json(),
            "dispatch_ms": of(&|h| ms(h.outage) - ms(h.backup_ttft)).json(),
            "mesh_share_ms": share,
            "largest_gap_ms": self.largest().json(),
            "usual_p99_ms": round(usual.percentile(0.99)),
            "tokens_lost": self.lost(),
            "tokens_doubled": self.doubled(),
            "failed": self.failed(),
            "failures": failures,
            "seams": {"exact": seams("exact"), "continued": seams("continued")},
            "identical": compared.filter(|same| *same).count(),
            "answers": self.answers().count(),
            "hit": self.answers().filter(|answer| answer.hit).count(),
            "moved": self.heals().count(),
            "struck": self.trials.iter().filter(|trial| trial.struck).count(),
            "other_changes": self.answers().map(|answer| answer.other_changes).sum::<usize>(),
            "reasons": reasons,
        })
    }

    /// Whether the bar is met; `None` without anything to measure.
    pub fn meets_bar(&self, usual: &Samples) -> Option<bool> {
        let beyond = self.beyond();
        match self.case.bar_ms() {
            _ if beyond.is_empty() => None,
            Some(bar) => Some(beyond.percentile(0.95) <= bar),
            None => Some(self.largest().percentile(0.95) <= 2.0 * usual.percentile(0.99)),
        }
    }
}

impl DrillReport {
    /// Between tokens while nothing was wrong, in milliseconds, of the whole drill.
    pub fn usual(&self) -> Samples {
        let answers = self.cases.iter().flat_map(CaseReport::answers);
        answers
            .flat_map(|answer| &answer.usual)
            .map(|gap| ms(*gap))
            .collect()
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let usual = self.usual();
        let cases: Map<String, Value> = self
            .cases
            .iter()
            .map(|case| {
                let json = case.json(self.engine_ttft_ms, &usual);
                (case.case.name().to_owned(), json)
            })
            .collect();
        json!({"trials": self.trials, "cases": cases, "usual_gap_ms": usual.json()})
    }

    /// What is wrong; `None`: nothing was lost or doubled, no request failed, and there was
    /// something to see.
    pub fn trouble(&self) -> Option<String> {
        let sum = |of: fn(&CaseReport) -> usize| self.cases.iter().map(of).sum::<usize>();
        let counts = [
            (sum(CaseReport::lost), "tokens were lost"),
            (sum(CaseReport::doubled), "tokens were doubled"),
            (sum(CaseReport::failed), "requests failed"),
        ];
        let found = counts.iter().filter(|(count, _)| *count > 0);
        let mut found: Vec<String> = found.map(|(n, what)| format!("{n} {what}")).collect();
        let idle = |case: &&CaseReport| !case.trials.iter().any(|trial| trial.struck);
        found.extend(self.cases.iter().filter(idle).map(|case| {
            format!(
                "no answer came from a machine that may {}",
                case.case.name()
            )
        }));
        (!found.is_empty()).then(|| found.join(", "))
    }

    /// For people, in 80 columns.
    pub fn table(&self, out: &Out) -> String {
        let usual = self.usual();
        let mut table = Table::new(&[
            "CASE", "GAP P50", "P95", "MAX", "BACKUP", "BEYOND", "LOST", "TWICE", "FAILED", "SEAMS",
        ])
        .numbers(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for case in &self.cases {
            table.row(case.row(&usual));
        }
        let mut text = table.render(out);
        let _ = writeln!(
            text,
            "{} trials a case, times in ms. BACKUP: its first token, p95; BEYOND: the gap without \
             it, p95.",
            self.trials
        );
        for drain in self.cases.iter().filter(|c| c.case == Case::Drain) {
            let style = drain.style(&usual);
            let _ = writeln!(
                text,
                "Drained: {style}{}{style:#} between two tokens at most (p95); {} is usual (p99).",
                shown(drain.largest().percentile(0.95)),
                shown(usual.percentile(0.99)),
            );
        }
        text
    }
}

impl CaseReport {
    /// Whether the bar is met, as a colour.
    fn style(&self, usual: &Samples) -> Style {
        match self.meets_bar(usual) {
            Some(true) => GOOD,
            Some(false) => WARN,
            None => PLAIN,
        }
    }

    fn row(&self, usual: &Samples) -> Vec<Cell> {
        let gap: Samples = self.heals().map(|heal| ms(heal.gap)).collect();
        let ttft: Samples = self.heals().map(|heal| ms(heal.backup_ttft)).collect();
        let beyond = match self.case.bar_ms() {
            Some(_) => cell(shown(self.beyond().percentile(0.95)), self.style(usual)),
            // It may have started while the other still went on.
            None => "-".into(),
        };
        let seams: Vec<String> = ["exact", "continued"]
            .iter()
            .map(|kind| (self.heals().filter(|heal| heal.seam == *kind).count(), kind))
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        let count = |n: usize| cell(n.to_string(), if n == 0 { GOOD } else { BAD });
        vec![
            self.case.name().into(),
            shown(gap.median()).into(),
            shown(gap.percentile(0.95)).into(),
            shown(gap.percentile(1.0)).into(),
            shown(ttft.percentile(0.95)).into(),
            beyond,
            count(self.lost()),
            count(self.doubled()),
            count(self.failed()),
            seams.join(", ").into(),
        ]
    }
}

fn shown(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Answer, Heal};
    use super::*;
    use std::time::Duration;

    fn answer(gap: u64, ttft: u64) -> Answer {
        Answer {
            hit: true,
            heal: Some(Heal {
                gap: Duration::from_millis(gap),
                backup_ttft: Duration::from_millis(ttft),
                seam: "exact".into(),
                ..Heal::default()
            }),
            largest: Duration::from_millis(gap),
            usual: vec![Duration::from_millis(20); 5],
            ..Answer::default()
        }
    }

    fn report(case: Case, answers: Vec<Answer>) -> DrillReport {
        let trial = Trial {
            struck: true,
            answers,
        };
        DrillReport {
            trials: 1,
            cases: vec![CaseReport {
                case,
                trials: vec![trial],
            }],
            engine_ttft_ms: Some(30.0),
        }
    }

    #[test]
    fn the_keys_of_the_issue() {
        let json = report(Case::Kill, vec![answer(190, 40)]).json();
        assert_eq!(json["trials"], 1);
        let kill = &json["cases"]["kill"];
        assert_eq!(kill["gap_ms"]["p50"], 190.0);
        assert_eq!(kill["gap_ms"]["p95"], 190.0);
        assert_eq!(kill["gap_ms"]["max"], 190.0);
        assert_eq!(kill["backup_ttft_ms"]["p50"], 40.0);
        assert_eq!(kill["backup_ttft_ms"]["p95"], 40.0);
        assert_eq!(kill["gap_beyond_ttft_ms"]["p95"], 150.0);
        assert_eq!(kill["mesh_share_ms"]["p95"], 10.0);
        for key in ["tokens_lost", "tokens_doubled", "failed"] {
            assert_eq!(kill[key], 0, "{key}");
        }
        assert_eq!(kill["seams"], json!({"exact": 1, "continued": 0}));
    }

    #[test]
    fn lost_doubled_failed_and_nothing_to_see_are_trouble() {
        assert_eq!(report(Case::Cut, vec![answer(400, 30)]).trouble(), None);
        let lost = Answer {
            lost: 2,
            ..answer(400, 30)
        };
        assert_eq!(
            report(Case::Cut, vec![lost]).trouble().as_deref(),
            Some("2 tokens were lost")
        );
        let failed = Answer {
            doubled: 1,
            failed: Some("x".into()),
            ..Answer::default()
        };
        assert_eq!(
            report(Case::Cut, vec![failed]).trouble().as_deref(),
            Some("1 tokens were doubled, 1 requests failed")
        );
        let mut untouched = report(Case::Cut, vec![answer(400, 30)]);
        untouched.cases[0].trials[0].struck = false;
        assert!(untouched.trouble().is_some());
    }

    #[test]
    fn each_case_has_its_bar() {
        let meets = |case, gap| {
            let report = report(case, vec![answer(gap, 30)]);
            report.cases[0].meets_bar(&report.usual())
        };
        assert_eq!(meets(Case::Kill, 230), Some(true));
        assert_eq!(meets(Case::Kill, 231), Some(false));
        assert_eq!(meets(Case::Freeze, 480), Some(true));
        assert_eq!(meets(Case::Hang, 1031), Some(false));
        assert_eq!(meets(Case::Drain, 40), Some(true));
        assert_eq!(meets(Case::Drain, 41), Some(false));
        let nothing = report(Case::Kill, vec![]);
        assert_eq!(nothing.cases[0].meets_bar(&nothing.usual()), None);
    }
}
