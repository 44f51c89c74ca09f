//! A planned leave, step by step (see `session/handover.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::session::{AttemptId, Closed, Input, Output, Reason};
use unamesh_proto::wire::{Draining, GenFrame};

/// Tokens of a leaving peer, 20 ms apart, from `first`.
fn leaving(bench: &mut Bench, attempt: u32, indices: std::ops::Range<u32>) {
    for index in indices {
        bench.pass(Duration::from_millis(20));
        let backups = bench.opened.len() as u32;
        for backup in (0..backups).filter(|b| *b != attempt) {
            bench.frame(backup, generating());
        }
        bench.token(attempt, index, &format!("{index} "));
    }
}

/// Goes on until the lead is there; the index of the next token.
fn until_asked_again(bench: &mut Bench, first: u32) -> u32 {
    let mut next = first;
    while bench.opened.len() < 3 {
        assert!(next < first + 12, "a lead takes no longer");
        leaving(bench, 0, next..next + 1);
        next += 1;
    }
    next
}

/// A peer that has made two tokens and says that it leaves; the backup was asked.
fn farewell() -> Bench {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    leaving(&mut bench, 0, 0..2);
    bench.frame(0, GenFrame::Draining(Draining { deadline_ms: 5000 }));
    assert_eq!(bench.prefix(1), "0 1 ");
    bench.accepted(1);
    bench
}

#[test]
fn a_leaving_peer_hands_over_at_a_seam_that_the_caller_does_not_see() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..8);
    let held = bench.text();
    assert!(held.len() < "0 1 2 3 4 5 6 7 ".len(), "a lead is saved up");
    assert!(held.len() >= "0 1 2 3 4 ".len(), "slowly: {held}");
    // Its own first token says something else: the prompt is read, it is asked again.
    bench.token(1, 2, "deux ");
    let made = until_asked_again(&mut bench, 8);
    assert_eq!(bench.reset, [AttemptId(1)]);
    assert!(bench.prefix(2).starts_with(&bench.text()));
    let seam = bench.prefix(2);
    let next = seam.split_whitespace().count() as u32;
    // The lead bridges the pause; what the leaving peer makes beyond the seam is not shown.
    leaving(&mut bench, 0, made..made + 2);
    bench.accepted(2);
    bench.token(2, next, "neuf ");
    assert_eq!(bench.reset, [AttemptId(1), AttemptId(0)]);
    bench.done(2, next + 1);
    assert_eq!(bench.text(), format!("{seam}neuf "));
    let gap = bench.outputs.iter().find_map(|o| match o {
        Output::PeerChanged { gap, reason, .. } => Some((*gap, reason.clone())),
        _ => None,
    });
    assert_eq!(gap, Some((Duration::ZERO, Reason::Draining)));
}

#[test]
fn a_lead_that_runs_dry_gives_up_the_seam_and_not_the_caller() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..10);
    bench.token(1, 2, "deux ");
    let made = until_asked_again(&mut bench, 10);
    let mut shown = bench.text();
    // The second stream takes its time: the caller gets what the leaving peer goes on to say.
    for index in made..60 {
        leaving(&mut bench, 0, index..index + 1);
        if index % 2 == 0 {
            let now = bench.text();
            assert!(now.len() > shown.len(), "two token times without a token");
            shown = now;
        }
    }
    let expected: String = (0..60).map(|i| format!("{i} ")).collect();
    assert!(expected.starts_with(&shown));
}

#[test]
fn a_backup_that_catches_up_with_the_same_words_takes_over_as_it_is() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..4);
    for index in 2..5 {
        let already = bench.text().split_whitespace().count() as u32;
        bench.token(1, index, &format!("{index} "));
        if index == already {
            break;
        }
    }
    assert_eq!(bench.reset, [AttemptId(0)]);
    assert_eq!(bench.opened.len(), 2);
}

#[test]
fn a_peer_that_leaves_too_early_loses_nothing() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..10);
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    assert_eq!(bench.text(), "0 1 2 3 4 5 6 7 8 9 ", "what came is good");
    bench.token(1, 2, "deux ");
    assert_eq!(bench.prefix(2), "0 1 2 3 4 5 6 7 8 9 ");
    bench.accepted(2);
    bench.token(2, 10, "dix");
    bench.done(2, 11);
    assert_eq!(bench.text(), "0 1 2 3 4 5 6 7 8 9 dix");
}

#[test]
fn a_leaving_peer_that_finishes_first_needs_no_seam() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..6);
    bench.done(0, 6);
    assert_eq!(bench.text(), "0 1 2 3 4 5 ");
    assert!(matches!(bench.last(), Output::Done { .. }));
    assert_eq!(bench.reset, [AttemptId(1)]);
}

#[test]
fn a_backup_that_ends_its_own_answer_elsewhere_is_asked_again() {
    let mut bench = farewell();
    leaving(&mut bench, 0, 2..5);
    bench.token(1, 2, "fin");
    bench.done(1, 3);
    assert_eq!(bench.prefix(2), "0 1 2 3 4 ");
    bench.accepted(2);
    bench.done(2, 5);
    assert_eq!(bench.text(), "0 1 2 3 4 ", "nothing more to say there");
    assert!(matches!(bench.last(), Output::Done { .. }));
}
