//! What a drill showed, and whether it was good: nothing lost, nothing unnoticed, and every bar
//! met. The bars are those of [`Case::bar_ms`], of the mesh's share, and for a drained agent of
//! the largest gap.

use super::case::Case;
use super::trial::Trial;
use crate::bench::stats::{Samples, ms, round};
use crate::cli::output::{BAD, Cell, GOOD, Out, PLAIN, Table, WARN, cell, printable};
use anstyle::Style;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The most of a backup's first token, in milliseconds, that is the mesh's own doing and not its
/// engine's (95th percentile).
const SHARE_BAR_MS: f64 = 30.0;
/// The largest gap in the answers of a drained agent (95th percentile), in times of the usual
/// gaps' 99th.
const DRAIN_BAR: f64 = 2.0;

/// The trials of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    /// Which.
    pub case: Case,
    /// All of them.
    pub trials: Vec<Trial>,
}

/// A whole drill.
#[derive(Clone, Debug)]
pub struct DrillReport {
    /// Trials of each case.
    pub trials: usize,
    /// In the order in which they ran.
    pub cases: Vec<CaseReport>,
    /// What the engines take to their first token, in milliseconds, where that is known.
    pub engine_ttft_ms: Option<f64>,
    /// By this the bars are multiplied.
    pub tolerance: f64,
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

    /// Those that were hit and came to their end.
    fn survivors(&self) -> impl Iterator<Item = &super::answer::Answer> {
        self.answers()
            .filter(|answer| answer.hit && answer.failed.is_none())
    }

    /// The gap of each answer that was hit, in milliseconds: until another agent went on, or, if
    /// none stepped in, the longest wait for the one that failed.
    pub fn gaps(&self) -> Samples {
        self.survivors()
            .map(|answer| ms(answer.heal.as_ref().map_or(answer.largest, |heal| heal.gap)))
            .collect()
    }

    /// How much longer the gaps were than the backup's own first token took, in milliseconds.
    pub fn beyond(&self) -> Samples {
        self.survivors()
            .map(|answer| match &answer.heal {
                Some(heal) => ms(heal.gap) - ms(heal.backup_ttft),
                None => ms(answer.largest),
            })
            .collect()
    }

    /// The 95th percentile that is judged, in words: of the gap beyond the backup's first token,
    /// or, of a drained agent, of the largest gap.
    pub fn summary(&self) -> String {
        let (what, seen) = match self.case.bar_ms() {
            Some(_) => ("gap beyond the backup's first token", self.beyond()),
            None => ("largest gap", self.largest()),
        };
        let p95 = seen.percentile(0.95);
        let (case, trials) = (self.case.name(), self.trials.len());
        if p95.is_nan() {
            return format!("{case}: {trials} trials, no answer was interrupted");
        }
        format!("{case}: {trials} trials, {what} p95 {p95:.0} ms")
    }

    /// The longest time between two tokens in each answer that was hit.
    pub fn largest(&self) -> Samples {
        let hit = self.answers().filter(|answer| answer.hit);
        hit.map(|answer| ms(answer.largest)).collect()
    }

    /// Of the backups' first tokens what is not their engine's, in milliseconds.
    fn share(&self, engine_ttft_ms: f64) -> Samples {
        self.heals()
            .map(|heal| ms(heal.backup_ttft) - engine_ttft_ms)
            .collect()
    }

    /// Answers that stood still for longer than the bar, and nobody stepped in.
    pub fn unnoticed(&self) -> usize {
        let Some(bar) = self.case.bar_ms() else {
            return 0; // A drained agent may end what it has.
        };
        self.survivors()
            .filter(|answer| answer.heal.is_none() && ms(answer.largest) > bar)
            .count()
    }

    /// For scripts, without the verdict. `usual`: between tokens while nothing is wrong.
    fn json(&self, engine_ttft_ms: Option<f64>, usual: &Samples) -> Value {
        let of = |value: &dyn Fn(&super::answer::Heal) -> f64| -> Samples {
            self.heals().map(value).collect()
        };
        let seams = |kind: &str| self.heals().filter(|heal| heal.seam == kind).count();
        let share = engine_ttft_ms.map(|own| self.share(own).json());
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
            "gap_ms": self.gaps().json(),
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
            "unnoticed": self.unnoticed(),
            "struck": self.trials.iter().filter(|trial| trial.struck).count(),
            "other_changes": self.answers().map(|answer| answer.other_changes).sum::<usize>(),
            "reasons": reasons,
        })
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
                let mut json = case.json(self.engine_ttft_ms, &usual);
                json["meets_bar"] = self.meets_bar(case, &usual).into();
                (case.case.name().to_owned(), json)
            })
            .collect();
        json!({
            "trials": self.trials,
            "tolerance": self.tolerance,
            "cases": cases,
            "usual_gap_ms": usual.json(),
        })
    }

    /// The bars that `case` misses, in words.
    fn missed(&self, case: &CaseReport, usual: &Samples) -> Vec<String> {
        let own = match case.case.bar_ms() {
            Some(bar) => (
                "the gap beyond the backup's first token",
                case.beyond(),
                bar,
            ),
            None => {
                let bar = DRAIN_BAR * usual.percentile(0.99);
                ("the largest gap", case.largest(), bar)
            }
        };
        let share = self.engine_ttft_ms.map(|own| {
            let what = "the mesh's share of the backup's first token";
            (what, case.share(own), SHARE_BAR_MS)
        });
        let bars = [Some(own), share].into_iter().flatten();
        bars.map(|(what, seen, bar)| (what, seen.percentile(0.95), bar * self.tolerance))
            // Without anything to measure it is no number, and exceeds nothing.
            .filter(|(_, p95, bar)| p95 > bar)
            .map(|(what, p95, bar)| {
                let case = case.case.name();
                format!("{case}: {what} is {p95:.0} ms (p95), the bar {bar:.0} ms")
            })
            .collect()
    }

    /// Whether `case` meets its bars; `None` without anything to measure.
    pub fn meets_bar(&self, case: &CaseReport, usual: &Samples) -> Option<bool> {
        let measured = case.survivors().next().is_some();
        measured.then(|| self.missed(case, usual).is_empty())
    }

    /// What is wrong; `None`: nothing was lost or doubled, no request failed, every fault was
    /// noticed, every bar met, and there was something to see.
    pub fn trouble(&self) -> Option<String> {
        let sum = |of: fn(&CaseReport) -> usize| self.cases.iter().map(of).sum::<usize>();
        let counts = [
            (sum(CaseReport::lost), "tokens were lost"),
            (sum(CaseReport::doubled), "tokens were doubled"),
            (sum(CaseReport::failed), "requests failed"),
            (sum(CaseReport::unnoticed), "faults were not noticed"),
        ];
        let found = counts.iter().filter(|(count, _)| *count > 0);
        let mut found: Vec<String> = found.map(|(n, what)| format!("{n} {what}")).collect();
        found.extend(self.idle());
        let usual = self.usual();
        found.extend(self.cases.iter().flat_map(|case| self.missed(case, &usual)));
        (!found.is_empty()).then(|| found.join(", "))
    }

    /// In which cases nobody was made to fail, and why, in words; `None`: in none.
    pub fn idle(&self) -> Option<String> {
        let idle = |case: &&CaseReport| !case.trials.iter().any(|trial| trial.struck);
        let idle: Vec<&CaseReport> = self.cases.iter().filter(idle).collect();
        let trials = || idle.iter().flat_map(|case| &case.trials);
        let others: BTreeSet<&str> = trials().filter_map(|t| t.instead.as_deref()).collect();
        let why = if !others.is_empty() {
            let others: Vec<String> = others.into_iter().map(printable).collect();
            let others = others.join(" and ");
            format!("{others} answered instead, which this drill may not touch")
        } else if trials().any(|t| t.answers.iter().any(|answer| answer.failed.is_none())) {
            "the answers ended before it was their turn to be interrupted".to_owned()
        } else {
            "no answer came".to_owned()
        };
        let verbs: Vec<&str> = idle.iter().map(|case| case.case.verb()).collect();
        (!verbs.is_empty()).then(|| format!("no machine was made to {}: {why}", verbs.join(" or ")))
    }

    /// For people, in 80 columns.
    pub fn table(&self, out: &Out) -> String {
        let usual = self.usual();
        let mut table = Table::new(&[
            "CASE", "GAP P50", "P95", "MAX", "BACKUP", "BEYOND", "LOST", "TWICE", "FAILED", "SEAMS",
        ])
        .numbers(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for case in &self.cases {
            table.row(case.row(self.style(case, &usual)));
        }
        let mut text = table.render(out);
        let _ = writeln!(
            text,
            "{} trials a case, times in ms. BACKUP: its first token, p95; BEYOND: the gap without \
             it, p95.",
            self.trials
        );
        for drain in self.cases.iter().filter(|c| c.case == Case::Drain) {
            let style = self.style(drain, &usual);
            let _ = writeln!(
                text,
                "Drained: {style}{}{style:#} between two tokens at most (p95); {} is usual (p99).",
                shown(drain.largest().percentile(0.95)),
                shown(usual.percentile(0.99)),
            );
        }
        text
    }

    /// Whether the bars are met, as a colour.
    fn style(&self, case: &CaseReport, usual: &Samples) -> Style {
        match self.meets_bar(case, usual) {
            Some(true) => GOOD,
            Some(false) => WARN,
            None => PLAIN,
        }
    }
}

impl CaseReport {
    fn row(&self, verdict: Style) -> Vec<Cell> {
        let gap = self.gaps();
        let ttft: Samples = self.heals().map(|heal| ms(heal.backup_ttft)).collect();
        let beyond = match self.case.bar_ms() {
            Some(_) => cell(shown(self.beyond().percentile(0.95)), verdict),
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
#[allow(clippy::unwrap_used)]
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
            instead: None,
            answers,
        };
        DrillReport {
            trials: 1,
            cases: vec![CaseReport {
                case,
                trials: vec![trial],
            }],
            engine_ttft_ms: Some(30.0),
            tolerance: 1.0,
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
        assert!(untouched.trouble().unwrap().contains("ended before"));
        untouched.cases[0].trials[0].instead = Some("desk".into());
        assert_eq!(
            untouched.trouble().as_deref(),
            Some(
                "no machine was made to lose its cable: desk answered instead, which this drill \
                 may not touch"
            )
        );
    }

    #[test]
    fn a_summary_has_no_number_where_nothing_was_measured() {
        let of = |case, answers| report(case, answers).cases[0].summary();
        assert_eq!(
            of(Case::Kill, vec![answer(190, 40)]),
            "kill: 1 trials, gap beyond the backup's first token p95 150 ms"
        );
        assert_eq!(
            of(Case::Kill, vec![]),
            "kill: 1 trials, no answer was interrupted"
        );
        assert_eq!(
            of(Case::Drain, vec![answer(30, 40)]),
            "drain: 1 trials, largest gap p95 30 ms"
        );
    }

    #[test]
    fn each_case_has_its_bar() {
        let meets = |case, gap| {
            let report = report(case, vec![answer(gap, 30)]);
            report.meets_bar(&report.cases[0], &report.usual())
        };
        assert_eq!(meets(Case::Kill, 230), Some(true));
        assert_eq!(meets(Case::Kill, 231), Some(false));
        assert_eq!(meets(Case::Freeze, 480), Some(true));
        assert_eq!(meets(Case::Hang, 1031), Some(false));
        assert_eq!(meets(Case::Drain, 40), Some(true));
        assert_eq!(meets(Case::Drain, 41), Some(false));
        let nothing = report(Case::Kill, vec![]);
        assert_eq!(nothing.meets_bar(&nothing.cases[0], &nothing.usual()), None);
    }

    #[test]
    fn a_missed_bar_is_trouble_unless_it_is_tolerated() {
        let mut slow = report(Case::Hang, vec![answer(1040, 30)]);
        let words = "hang: the gap beyond the backup's first token is 1010 ms (p95), \
                     the bar 1000 ms";
        assert_eq!(slow.trouble().as_deref(), Some(words));
        slow.tolerance = 1.1;
        assert_eq!(slow.trouble(), None);
        let share = report(Case::Kill, vec![answer(150, 61)]);
        assert_eq!(
            share.meets_bar(&share.cases[0], &share.usual()),
            Some(false)
        );
        assert!(share.trouble().unwrap().contains("share"));
    }

    #[test]
    fn a_fault_that_nobody_noticed_is_trouble_and_no_small_gap() {
        let stood_still = Answer {
            heal: None,
            ..answer(4000, 0)
        };
        let report = report(Case::Hang, vec![answer(400, 30), stood_still]);
        let json = &report.json()["cases"]["hang"];
        assert_eq!((&json["hit"], &json["moved"]), (&json!(2), &json!(1)));
        assert_eq!(json["gap_ms"]["max"], 4000.0);
        assert_eq!(
            (&json["unnoticed"], &json["meets_bar"]),
            (&json!(1), &json!(false))
        );
        assert!(
            report
                .trouble()
                .unwrap()
                .contains("1 faults were not noticed")
        );
    }

    #[test]
    fn what_was_not_struck_counts_for_nothing() {
        let mut spared = answer(20, 30);
        spared.untouched();
        assert_eq!((spared.hit, spared.other_changes), (false, 1));
        let report = report(Case::Kill, vec![answer(190, 40), spared]);
        assert_eq!(report.cases[0].largest().len(), 1);
    }
}
