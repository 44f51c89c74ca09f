//! Thousands of random fault schedules against the session machine.
//!
//! Each seed draws agents, paths and faults (kill, freeze, cut, a path that dies, hang, engine failure, early
//! end, a skipped token, busy, drain) and runs the real machine in the simulator. The rules:
//! no token lost, none doubled, order kept, the text equal to an uninterrupted run where the
//! engines are deterministic, exactly one terminal event, and it comes last.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;
use unamesh_proto::Mono;
use unamesh_proto::session::{Failure, Output};
use unamesh_proto::sim::session::{Fault, Report, Scenario, run};

/// Enough for the bar of 10,000 schedules, split over the two families below.
const SCHEDULES: u64 = 20_000;

fn check(seed: u64, scenario: &Scenario) -> Report {
    let report = run(scenario);
    assert!(
        report.violation.is_none(),
        "seed {seed}: {}\n{scenario:#?}\n{:#?}",
        report.violation.as_deref().unwrap_or_default(),
        report.outputs,
    );
    report
}

/// With one agent that never fails, a spliceable answer always completes, and never keeps the
/// caller waiting longer than the bounds allow.
#[test]
fn an_answer_survives_everything_while_one_peer_is_left() {
    let mut changed = 0;
    let mut longest = Duration::ZERO;
    for seed in 0..SCHEDULES {
        let scenario = Scenario::random(seed, false);
        let report = check(seed, &scenario);
        let last = &report.outputs.last().unwrap().1;
        if scenario.cancel_at.is_none() && scenario.spliceable {
            assert!(
                matches!(last, Output::Done { .. }),
                "seed {seed}: {last:?}\n{scenario:#?}\n{:#?}",
                report.outputs
            );
        }
        changed += u64::from(
            report
                .outputs
                .iter()
                .any(|(_, o)| matches!(o, Output::PeerChanged { .. })),
        );
        // Every fault may cost one suspicion (a stall: at least 1 s, 8x the usual 120 ms TTFT
        // at most) and one more TTFT. What must not be spliced has no backup: it waits until
        // the connection and then the reattachment are known to be lost.
        let faults: usize = scenario.nodes.iter().map(|n| n.faults.len()).sum();
        let bound = match scenario.spliceable {
            true => Duration::from_millis(400 + 1600 * (faults as u64 + 1)),
            false => Duration::from_secs(6 * (faults as u64 + 1)),
        };
        assert!(
            report.longest_wait <= bound,
            "seed {seed}: waited {:?}, bound {bound:?}\n{scenario:#?}\n{:#?}",
            report.longest_wait,
            report.outputs
        );
        if scenario.spliceable {
            longest = longest.max(report.longest_wait);
        }
    }
    println!("{SCHEDULES} schedules: {changed} answers changed peer, longest wait {longest:?}");
    assert!(
        changed > SCHEDULES / 10,
        "the faults must bite: only {changed} changed peer"
    );
}

/// Where every agent may fail, the answer may be lost, but never silently and never wrongly.
#[test]
fn without_a_reliable_peer_it_ends_with_a_typed_error_that_loses_nothing() {
    let mut failed = 0;
    for seed in 0..SCHEDULES {
        let scenario = Scenario::random(seed ^ 0xdead_0000, true);
        let report = check(seed, &scenario);
        let tokens = report
            .outputs
            .iter()
            .filter(|(_, o)| matches!(o, Output::Token { .. }))
            .count();
        if let Output::Failed(failure) = &report.outputs.last().unwrap().1 {
            failed += 1;
            match failure {
                Failure::Interrupted { .. } | Failure::Incomplete { .. } => assert!(tokens > 0),
                Failure::NoPeer | Failure::Busy { .. } | Failure::Refused(_) => {
                    assert_eq!(tokens, 0, "seed {seed}: {:#?}", report.outputs);
                }
                Failure::Cancelled => assert!(scenario.cancel_at.is_some()),
            }
        }
    }
    println!("{SCHEDULES} schedules without a reliable peer: {failed} ended with an error");
}

/// A client that has used up its hedges waits for a silent peer instead, and is never wrong.
#[test]
fn without_hedges_nothing_is_lost_either() {
    let (mut with, mut without) = (0, 0);
    for seed in 0..SCHEDULES / 4 {
        let mut scenario = Scenario::random(seed ^ 0xbeef_0000, false);
        with += check(seed, &scenario).backups;
        scenario.hedges = 0;
        let report = check(seed, &scenario);
        without += report.backups;
        if scenario.cancel_at.is_none() && scenario.spliceable {
            let last = &report.outputs.last().unwrap().1;
            assert!(matches!(last, Output::Done { .. }), "seed {seed}: {last:?}");
        }
    }
    println!("backups: {with} with hedges, {without} without (farewells and slow dials)");
    assert!(without < with);
}

/// The only peer's path dies and another leads to it: the same generation goes on, whenever that
/// happens, and nothing is computed twice.
#[test]
fn the_only_peer_is_reached_over_another_path() {
    let ms = Duration::from_millis;
    let (mut longest, mut cut) = (Duration::ZERO, 0);
    for seed in 0..SCHEDULES / 10 {
        let mut scenario = Scenario::random(seed, false);
        scenario.nodes.truncate(1);
        let at = ms(seed % 1500);
        for long in [ms(250 + seed % 3500), ms(60_000)] {
            scenario.nodes[0].faults = vec![(at, Fault::PathDies(long))];
            (scenario.frames, scenario.cancel_at) = (60, None);
            let report = check(seed, &scenario);
            let (end, last) = report.outputs.last().unwrap();
            let before = report.outputs.iter().find_map(|(t, o)| match o {
                Output::Token { .. } => Some(*t),
                _ => None,
            });
            // Before it is accepted there is nothing to attach to: that is a second request.
            let begun = before.is_some_and(|t| t < Mono::ZERO + at);
            if !begun || *end < Mono::ZERO + at {
                continue;
            }
            cut += 1;
            assert!(
                matches!(last, Output::Done { .. }) && report.generations == 1,
                "seed {seed}: {scenario:#?}\n{report:#?}"
            );
            longest = longest.max(report.longest_wait);
        }
    }
    println!("{cut} answers went on over another path, longest wait {longest:?}");
    assert!(longest <= ms(450), "{longest:?}");
}
