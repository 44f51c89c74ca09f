//! Answers to requests with tools: text until the first piece of a call, and whole after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::session::{AttemptId, Closed, Failure, Input, Output, Reason};
use unamesh_proto::timeouts::SILENCE_MAX;
use unamesh_proto::wire::{Draining, GenFrame};

const CALL: &str = r#"{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}"#;
/// A model that thinks of the field.
const NO_CALL: &str = r#"{"reasoning_content":"\"tool_calls\""}"#;

fn broken(bench: &mut Bench) -> &Output {
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.outputs.last().unwrap()
}

#[test]
fn text_before_any_call_is_continued() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.piece(0, 0, "Let me see. ", NO_CALL);
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.accepted(1);
    bench.piece(1, 1, "", CALL);
    bench.done(1, 2);
    assert!(matches!(bench.last(), Output::Done { .. }));
}

#[test]
fn after_a_piece_of_a_call_nobody_goes_on() {
    let incomplete = Output::Failed(Failure::Incomplete {
        reason: Reason::EndedEarly,
    });
    // Text after the call is no way back: the prefix would lack the call.
    for more in [None, Some("And ")] {
        let mut bench = Bench::new(&[1, 2], true);
        bench.accepted(0);
        bench.token(0, 0, "Let me see. ");
        bench.piece(0, 1, "", CALL);
        if let Some(text) = more {
            bench.token(0, 2, text);
        }
        bench.pass(SILENCE_MAX * 2);
        assert_eq!(bench.opened.len(), 1, "no backup either");
        assert_eq!(*broken(&mut bench), incomplete);
    }
}

#[test]
fn a_backup_is_let_go_when_the_call_begins() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    let draining = Draining { deadline_ms: 5000 };
    bench.frame(0, GenFrame::Draining(draining));
    assert_eq!(bench.opened.len(), 2);
    bench.accepted(1);
    for index in 1..=20 {
        bench.pass(Duration::from_millis(20));
        bench.piece(0, index, "", CALL);
    }
    // Its calls have no text either: what it says is no proof that they are the same.
    for index in 1..=21 {
        bench.piece(1, index, "", CALL);
    }
    bench.done(0, 21);
    assert!(
        matches!(bench.last(), Output::Done { .. }),
        "{:?}",
        bench.last()
    );
    let changed = |o: &Output| matches!(o, Output::PeerChanged { .. });
    assert!(!bench.outputs.iter().any(changed));
}

#[test]
fn a_handover_never_has_its_seam_within_a_call() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    for index in 0..3 {
        bench.token(0, index, "x ");
        bench.pass(Duration::from_millis(20));
    }
    let draining = Draining { deadline_ms: 5000 };
    bench.frame(0, GenFrame::Draining(draining));
    bench.accepted(1);
    for index in 3..9 {
        bench.token(0, index, "x ");
    }
    bench.piece(0, 9, "", CALL);
    // The backup is warm, and is asked again; what was kept back holds a call.
    bench.token(1, 3, "other");
    let prefix = bench.prefix(2);
    assert!(prefix.split_whitespace().all(|word| word == "x"));
    bench.accepted(2);
    let next = prefix.split_whitespace().count() as u32;
    bench.piece(2, next, "", CALL);
    bench.done(2, next + 1);
    assert!(matches!(bench.last(), Output::Done { .. }));
    assert_eq!(bench.text(), prefix);
    let is_call = |o: &&Output| matches!(o, Output::Token { extra, .. } if extra == CALL);
    let calls = bench.outputs.iter().filter(is_call).count();
    assert_eq!(calls, 1, "one call, not one of each");
}
