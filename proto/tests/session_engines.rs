//! One machine with two engines: they stand in for each other, and a dead machine is not asked
//! once for each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::session::{AttemptId, Closed, Input, Output, Reason};
use unamesh_proto::timeouts::{SILENCE_MAX, STALL_MIN};
use unamesh_proto::wire::{Draining, ErrorCode, GenFrame};

/// Both peers have two engines; the first of peer 1 was asked.
fn two() -> Bench {
    let mut bench = Bench::new(&[1, 2], true);
    bench.twofold = vec![1, 2];
    bench
}

/// The engine of attempt 0 hangs; its agent does not.
fn hang(bench: &mut Bench) {
    for _ in 0..=STALL_MIN.as_millis() / 50 {
        bench.pass(Duration::from_millis(50));
        bench.frame(0, generating());
    }
}

#[test]
fn an_engine_that_fails_is_followed_by_the_other_one_there() {
    for code in [ErrorCode::EngineDown, ErrorCode::EngineFailed] {
        let mut bench = two();
        bench.error(0, code);
        assert_eq!(bench.engines, [(1, 0), (1, 1)]);
        bench.accepted(1);
        bench.token(1, 0, "hello");
        bench.done(1, 1);
        assert_eq!(bench.text(), "hello");
        assert!(matches!(
            &bench.outputs[0],
            Output::Started { engine: 1, .. }
        ));
    }
}

#[test]
fn an_engine_that_hangs_is_backed_up_by_the_other_one_there() {
    let mut bench = two();
    bench.peers = vec![1];
    bench.accepted(0);
    bench.token(0, 0, "one ");
    hang(&mut bench);
    assert_eq!(bench.engines, [(1, 0), (1, 1)]);
    bench.accepted(1);
    bench.token(1, 1, "two");
    let Some(Output::PeerChanged {
        from,
        to,
        engine,
        reason,
        ..
    }) = bench
        .outputs
        .iter()
        .find(|o| matches!(o, Output::PeerChanged { .. }))
    else {
        panic!("no change: {:?}", bench.outputs);
    };
    assert_eq!((from, *engine, reason), (to, 1, &Reason::Stall));
    bench.done(1, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn a_machine_that_is_dead_or_silent_is_not_asked_for_its_other_engine() {
    let mut bench = two();
    let dead = Closed::Unreachable("no path".into());
    bench.input(Input::Closed(AttemptId(0), dead));
    assert_eq!(bench.engines, [(1, 0), (2, 0)]);

    let mut bench = two();
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MAX);
    assert_eq!(bench.engines[..2], [(1, 0), (2, 0)]);
    bench.input(Input::Closed(AttemptId(1), Closed::Ended));
    assert!(!bench.engines.contains(&(1, 1)), "{:?}", bench.engines);
}

#[test]
fn a_machine_that_leaves_takes_both_of_its_engines_with_it() {
    let mut bench = two();
    bench.accepted(0);
    bench.token(0, 0, "one ");
    hang(&mut bench);
    assert_eq!(bench.engines, [(1, 0), (1, 1)]);
    bench.accepted(1);
    for attempt in [0, 1] {
        let draining = Draining { deadline_ms: 5000 };
        bench.frame(attempt, GenFrame::Draining(draining));
    }
    assert_eq!(bench.engines, [(1, 0), (1, 1), (2, 0)]);
    bench.accepted(2);
    bench.token(2, 1, "two");
    bench.done(2, 2);
    assert_eq!(bench.text(), "one two");
}
