//! A peer that falls silent is also asked for over another path: one generation, one numbering.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::session::{AttemptId, Closed, Failure, How, Input, Note, Output, Reason};
use unamesh_proto::timeouts::{DIAL, FRESH_PATH_EVERY, SILENCE_GIVE_UP, SILENCE_MIN};
use unamesh_proto::wire::{Attach, ErrorCode};
use unamesh_proto::{GenerationId, Mono};

const SILENT: Duration = SILENCE_MIN.saturating_add(Duration::from_millis(1));

/// One token came from peer 1, and then nothing.
fn silent(peers: &[u8], spliceable: bool) -> (Bench, AttemptId) {
    let mut bench = Bench::new(peers, spliceable);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENT);
    let (id, how) = bench.fresh[0].clone();
    let attach = Attach {
        generation: GenerationId([0; 16]),
        have: 1,
    };
    let heard = Mono::ZERO;
    assert_eq!(how, How::Reattach { attach, heard });
    (bench, id)
}

fn reattached(bench: &Bench) -> usize {
    let notes = bench.notes.iter();
    notes
        .filter(|n| matches!(n, Note::Reattached { .. }))
        .count()
}

#[test]
fn the_generation_goes_on_over_the_new_path_and_the_backup_is_reset() {
    let (mut bench, fresh) = silent(&[1, 2], true);
    assert_eq!(bench.opened.len(), 2, "the backup is dialed at once too");
    bench.input(Input::Opened(fresh));
    bench.accepted(fresh.0);
    assert_eq!(bench.reset, [AttemptId(0)], "the old stream");
    bench.token(fresh.0, 1, "two ");
    assert_eq!(bench.reset, [AttemptId(0), AttemptId(1)], "the backup");
    bench.token(fresh.0, 2, "three");
    bench.done(fresh.0, 3);
    assert_eq!(bench.text(), "one two three");
    assert_eq!(reattached(&bench), 1);
    let changed = |o: &Output| matches!(o, Output::PeerChanged { .. });
    assert!(!bench.outputs.iter().any(changed), "it is the same peer");
    let vain = |n: &Note| matches!(n, Note::HedgeInVain { .. });
    assert!(
        bench.notes.iter().any(vain),
        "the backup worked for nothing"
    );
}

#[test]
fn the_backup_goes_on_if_it_produces_first() {
    let (mut bench, fresh) = silent(&[1, 2], true);
    bench.input(Input::Opened(fresh));
    bench.accepted(1);
    bench.token(1, 1, "two");
    assert!(bench.fresh.is_empty(), "given up");
    // What still comes over it is too late.
    bench.accepted(fresh.0);
    bench.token(fresh.0, 1, "two");
    bench.done(1, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn an_old_path_that_wakes_up_makes_the_new_one_needless() {
    let (mut bench, _) = silent(&[1], true);
    bench.token(0, 1, "two");
    assert!(bench.fresh.is_empty(), "nothing was sent: it is dropped");
    bench.done(0, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn once_it_was_asked_for_the_new_path_is_followed_and_nothing_comes_twice() {
    let (mut bench, fresh) = silent(&[1], true);
    bench.input(Input::Opened(fresh));
    // The old path wakes up; the agent has not heard of the new one yet.
    bench.token(0, 1, "two ");
    bench.token(0, 2, "three ");
    assert_eq!(
        bench.fresh.len(),
        1,
        "taking it back would end the generation"
    );
    // The agent moves to the new path, and the old stream is reset.
    bench.input(Input::Closed(AttemptId(0), Closed::Lost("reset".into())));
    assert_eq!(bench.opened.len(), 1, "nobody else is asked");
    bench.accepted(fresh.0);
    for (index, text) in [(1, "two "), (2, "three "), (3, "four")] {
        bench.token(fresh.0, index, text);
    }
    bench.done(fresh.0, 4);
    assert_eq!(bench.text(), "one two three four");
}

#[test]
fn what_must_not_be_spliced_goes_on_over_the_new_path() {
    let (mut bench, fresh) = silent(&[1, 2], false);
    assert_eq!(bench.opened.len(), 1, "no backup");
    bench.input(Input::Opened(fresh));
    bench.accepted(fresh.0);
    bench.token(fresh.0, 1, "two");
    bench.done(fresh.0, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn a_generation_that_is_gone_is_no_failure_and_the_backup_decides() {
    let (mut bench, fresh) = silent(&[1, 2], true);
    bench.input(Input::Opened(fresh));
    bench.error(fresh.0, ErrorCode::UnknownGeneration);
    let failed = |n: &Note| matches!(n, Note::AttemptFailed { .. });
    assert!(!bench.notes.iter().any(failed));
    bench.accepted(1);
    bench.token(1, 1, "two");
    bench.done(1, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn a_path_that_is_not_there_yet_is_tried_again_while_the_silence_lasts() {
    let (mut bench, mut fresh) = silent(&[1], true);
    for _ in 0..3 {
        let failed = Closed::Unreachable("no network".into());
        bench.input(Input::Closed(fresh, failed));
        assert!(bench.fresh.iter().all(|f| f.0 == fresh), "not at once");
        bench.fresh.clear();
        bench.pass(FRESH_PATH_EVERY);
        fresh = bench.fresh[0].0;
    }
    // Four are enough: what is left is to give up.
    bench.input(Input::Closed(fresh, Closed::Unreachable("none".into())));
    bench.fresh.clear();
    bench.peers.clear();
    bench.pass(SILENCE_GIVE_UP + DIAL);
    assert!(bench.fresh.is_empty());
    bench.pass(Duration::from_secs(10));
    let reason = Reason::Silence;
    let interrupted = Output::Failed(Failure::Interrupted { reason });
    assert_eq!(*bench.last(), interrupted);
}

#[test]
fn a_cancelled_request_leaves_no_path_behind() {
    let (mut bench, fresh) = silent(&[1], true);
    bench.input(Input::Opened(fresh));
    bench.input(Input::Cancel);
    assert!(bench.fresh.is_empty());
    assert_eq!(*bench.last(), Output::Failed(Failure::Cancelled));
}
