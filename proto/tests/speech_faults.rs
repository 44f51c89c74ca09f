//! Thousands of schedules of faults against speech, both ways.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;
use unamesh_proto::limits::MAX_ATTEMPTS;
use unamesh_proto::session::Reason;
use unamesh_proto::sim::speech::{Fault, Node, Report, Scenario, hear, speak};

const SEEDS: u64 = 2000;

/// Runs all seeds; the reports, those with a broken rule named with their seed.
fn all(hopeless: bool, run: impl Fn(&Scenario) -> Report) -> Vec<(u64, Report)> {
    let reports: Vec<_> = (0..SEEDS)
        .map(|seed| (seed, run(&Scenario::random(seed, hopeless))))
        .collect();
    let broken: Vec<_> = reports
        .iter()
        .filter_map(|(seed, r)| Some((seed, r.violation.as_ref()?)))
        .collect();
    assert!(
        broken.is_empty(),
        "{} runs: {:?}",
        broken.len(),
        &broken[..broken.len().min(5)]
    );
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

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_text_is_spoken_once_and_whole() {
    let reports = all(false, speak::run);
    let ends = ends(&reports);
    let joins: u32 = reports.iter().map(|(_, r)| r.joins).sum();
    let changes: usize = reports.iter().map(|(_, r)| r.changes.len()).sum();
    let (seed, longest) = reports.iter().max_by_key(|(_, r)| r.longest_wait).unwrap();
    let wait = longest.longest_wait;
    println!("{ends:?}; {joins} joins, {changes} changes; seed {seed} waited {wait:?}");
    assert!(joins > 50 && changes > 500);
    assert!(wait < Duration::from_secs(8));
    let cancelled = ends.get("Cancelled").copied().unwrap_or_default();
    assert_eq!(ends["done"] + cancelled, reports.len(), "{ends:?}");
}

#[test]
fn without_hope_it_ends_with_what_there_is() {
    let ends = ends(&all(true, speak::run));
    println!("{ends:?}");
    assert!(ends["Interrupted"] > 0 && ends["NoVoice"] > 0);
}

#[test]
fn an_utterance_has_one_transcript() {
    let reports = all(false, hear::run);
    let ends = ends(&reports);
    let longest = reports.iter().map(|(_, r)| r.first_wait).max().unwrap();
    println!("{ends:?}; the longest wait was {longest:?}");
    let cancelled = ends.get("Cancelled").copied().unwrap_or_default();
    assert_eq!(ends["done"] + cancelled, reports.len(), "{ends:?}");
    assert!(longest < Duration::from_secs(12));
    let hopeless = self::ends(&all(true, hear::run));
    println!("{hopeless:?}");
}

/// Two agents with the voice; the first fails.
fn two(speed: f64, at: Duration, fault: Fault) -> Scenario {
    let node = |faults| Node {
        first: ms(100),
        speed,
        delay: ms(1),
        jitter: ms(2),
        same_voice: true,
        faults,
    };
    Scenario {
        seed: 7,
        nodes: vec![node(vec![(at, fault)]), node(vec![])],
        chunks: vec![30_000, 50_000, 70_000, 40_000],
        other_voice: false,
        cancel_at: None,
        leave_at: None,
        pauses: Vec::new(),
        hedges: true,
        loss: 3,
        shift: 0,
    }
}

#[test]
fn with_a_lead_no_failure_is_heard() {
    for at in (400..1600).step_by(20) {
        for fault in [
            Fault::Kill,
            Fault::EngineFails,
            Fault::EndsEarly,
            Fault::Skips,
        ] {
            let report = speak::run(&two(4.0, ms(at), fault));
            assert_eq!(report.violation, None, "{fault:?} at {at} ms");
            assert!(
                report.done && report.longest_wait == Duration::ZERO,
                "{fault:?}: {report:?}"
            );
        }
    }
}

/// Without one, the gap is the detection and the backup's first sound, which is spoken from the
/// chunk's start and must reach where the ear is.
#[test]
fn without_a_lead_a_failure_is_a_short_gap() {
    let runs = (400..1600)
        .step_by(20)
        .map(|at| speak::run(&two(30.0, ms(at), Fault::Kill)));
    let ends = runs.map(|r| (r.violation, r.longest_wait));
    assert!(
        ends.clone()
            .all(|(violation, wait)| violation.is_none() && wait == Duration::ZERO)
    );
    for at in (300..5000).step_by(50) {
        let mut scenario = two(30.0, ms(at), Fault::Kill);
        // Barely faster than the ear.
        scenario.nodes[0].speed = 1.02;
        let report = speak::run(&scenario);
        assert_eq!(report.violation, None, "at {at} ms");
        assert!(
            report.done && report.longest_wait < ms(750),
            "at {at} ms: {report:?}"
        );
    }
}

#[test]
fn who_leaves_is_followed_at_a_boundary() {
    let mut handed = 0;
    for at in (200..3000).step_by(40) {
        let mut scenario = two(1.5, ms(at), Fault::Drain(Duration::from_secs(8)));
        scenario.nodes[1].speed = 3.0;
        let report = speak::run(&scenario);
        assert_eq!(report.violation, None, "at {at} ms");
        assert!(report.done && report.joins == 0, "at {at} ms: {report:?}");
        assert_eq!(report.longest_wait, Duration::ZERO, "at {at} ms");
        handed += usize::from(report.changes == [Reason::Draining]);
    }
    assert!(handed > 30, "{handed}");
}

/// 150 frames: the utterance ends after three seconds, and its transcript takes 100 ms.
#[test]
fn a_dead_recognizer_costs_its_detection() {
    for at in (0..3200).step_by(20) {
        let report = hear::run(&two(1.0, ms(at), Fault::Kill));
        assert_eq!(report.violation, None, "at {at} ms");
        let bound = if at < 2800 { ms(110) } else { ms(350) };
        assert!(
            report.done && report.first_wait < bound,
            "at {at} ms: {report:?}"
        );
    }
}

/// A caller that pauses, and plays nothing meanwhile, gets all the same.
#[test]
fn a_caller_that_pauses_loses_nothing() {
    for seed in 0..500 {
        let mut scenario = Scenario::random(seed, false);
        let at = seed * 37 % 3000;
        let long = 20 + seed * 53 % 2000;
        scenario.cancel_at = None;
        scenario.pauses = vec![(ms(at), ms(long)), (ms(at + long + 200), ms(long / 3))];
        for report in [speak::run(&scenario), hear::run(&scenario)] {
            assert_eq!(report.violation, None, "seed {seed}");
            assert!(report.done, "seed {seed}: {report:?}");
        }
    }
}

/// How long the caller looked away is neither the path's silence nor the engine's time, and nobody
/// is suspected for it.
#[test]
fn what_the_caller_did_not_watch_teaches_nothing() {
    for (speed, first) in [(1.1, 100), (4.0, 100), (30.0, 350)] {
        let mut scenario = two(speed, ms(60_000), Fault::Kill);
        scenario.nodes[0].first = ms(first);
        for run in [speak::run, hear::run] {
            scenario.pauses.clear();
            let watched = run(&scenario);
            scenario.pauses = (0..6).map(|n| (ms(150 + n * 700), ms(450))).collect();
            let paused = run(&scenario);
            assert_eq!((watched.attempts, paused.attempts), (1, 1), "{paused:?}");
            assert!(paused.done && paused.violation.is_none(), "{paused:?}");
            assert!(
                paused.patience <= watched.patience,
                "{paused:?} {watched:?}"
            );
            // The pauses fall elsewhere between the grants: a round trip more at most.
            let slowest = watched.slowest + ms(10);
            assert!(paused.slowest <= slowest, "{paused:?} {watched:?}");
        }
    }
}

/// Who leaves gets what was said or understood until then, at whatever moment.
#[test]
fn who_leaves_ends_with_what_was_delivered() {
    let mut ends = BTreeMap::<String, u32>::new();
    for seed in 0..500 {
        let mut scenario = Scenario::random(seed, false);
        (scenario.cancel_at, scenario.leave_at) = (None, Some(ms(seed * 31 % 4000)));
        for report in [speak::run(&scenario), hear::run(&scenario)] {
            assert_eq!(report.violation, None, "seed {seed}");
            let end = report.end.split([' ', '{', '(']).next().unwrap_or_default();
            *ends.entry(end.to_owned()).or_default() += 1;
        }
    }
    println!("{ends:?}");
    assert!(ends["Interrupted"] > 100 && ends["Refused"] > 10);
    assert_eq!(
        ends.values().sum::<u32>(),
        ends["Interrupted"] + ends["Refused"] + ends["done"]
    );
}

/// A long text from a peer that stands still again and again: a backup beside each stillness, all
/// in vain, and none of them missing when the peer dies.
#[test]
fn vain_hedges_use_up_no_failover() {
    let mut scenario = two(1.02, ms(40_000), Fault::Kill);
    // The backup is never in time.
    scenario.nodes[1].first = ms(390);
    scenario.chunks = vec![60_000; 24];
    let freeze = |n: u64| (ms(1000 + n * 1500), Fault::Freeze(ms(250)));
    scenario.nodes[0].faults.extend((0..25).map(freeze));
    let report = speak::run(&scenario);
    assert_eq!(report.violation, None);
    assert!(report.in_vain > MAX_ATTEMPTS, "{report:?}");
    assert!(report.done, "{report:?}");
}
