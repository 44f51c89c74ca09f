//! Thousands of schedules of faults against speech, both ways.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;
use unamesh_proto::sim::speech::{Report, Scenario, hear, speak};

const SEEDS: u64 = 3000;

/// Runs all seeds; the reports, those with a broken rule named with their seed.
fn all(hopeless: bool, run: impl Fn(&Scenario) -> Report) -> Vec<(u64, Report)> {
    let reports: Vec<_> = (0..SEEDS)
        .map(|seed| (seed, run(&Scenario::random(seed, hopeless))))
        .collect();
    let broken: Vec<_> = reports
        .iter()
        .filter_map(|(seed, r)| Some((seed, r.violation.as_ref()?)))
        .collect();
    assert!(broken.is_empty(), "{} runs: {:?}", broken.len(), &broken[..broken.len().min(5)]);
    reports
}

fn ends(reports: &[(u64, Report)]) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for (_, report) in reports {
        let end = report.end.split([' ', '{']).next().unwrap_or_default();
        *ends.entry(end.to_owned()).or_default() += 1;
    }
    ends
}

#[test]
fn a_text_is_spoken_once_and_whole() {
    let reports = all(false, speak::run);
    let ends = ends(&reports);
    eprintln!("{ends:?}");
    let joins: u32 = reports.iter().map(|(_, r)| r.joins).sum();
    let changes: usize = reports.iter().map(|(_, r)| r.changes.len()).sum();
    eprintln!("{joins} joins, {changes} changes");
    assert!(joins > 20 && changes > 500);
    let (seed, longest) = reports.iter().max_by_key(|(_, r)| r.longest_wait).unwrap();
    eprintln!("seed {seed} waited {:?}", longest.longest_wait);
    assert!(longest.longest_wait < Duration::from_secs(8));
    let cancelled = ends.get("Cancelled").copied().unwrap_or_default();
    assert_eq!(ends["done"] + cancelled, reports.len(), "{ends:?}");
}

#[test]
fn without_hope_it_ends_with_what_there_is() {
    let reports = all(true, speak::run);
    eprintln!("{:?}", ends(&reports));
}

#[test]
fn an_utterance_has_one_transcript() {
    let reports = all(false, hear::run);
    let ends = ends(&reports);
    eprintln!("{ends:?}");
}
