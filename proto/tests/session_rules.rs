//! The session machine's rules, one by one, on a hand-moved clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::GenerationId;
use unamesh_proto::session::{AttemptId, Closed, Failure, How, Input, Note, Output, Reason, Seam};
use unamesh_proto::timeouts::{BUSY_RETRY, DIAL_SUSPECT, SILENCE_MIN, WAIT_FOR_PEER};
use unamesh_proto::wire::{Attach, ErrorCode, GenFrame, Phase, Progress, WireError};

#[test]
fn nobody_there_is_said_at_once() {
    let bench = Bench::new(&[], true);
    assert_eq!(bench.outputs, [Output::Failed(Failure::NoPeer)]);
}

#[test]
fn busy_everywhere_says_when_to_come_back() {
    let mut bench = Bench::new(&[1, 2], true);
    let busy = WireError::new(ErrorCode::Busy, "full");
    bench.frame(
        0,
        GenFrame::Error(busy.clone().retry_after(Duration::from_millis(900))),
    );
    bench.frame(
        1,
        GenFrame::Error(busy.retry_after(Duration::from_millis(300))),
    );
    let retry_after = Duration::from_millis(300);
    assert_eq!(
        bench.outputs,
        [Output::Failed(Failure::Busy { retry_after })]
    );
}

#[test]
fn a_wrong_request_is_not_tried_elsewhere() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.error(0, ErrorCode::Invalid);
    assert_eq!(bench.opened.len(), 1);
    assert!(
        matches!(bench.last(), Output::Failed(Failure::Refused(e)) if e.code == ErrorCode::Invalid)
    );
}

#[test]
fn a_refusal_beside_another_attempt_is_kept_for_the_end() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.pass(SILENCE_MIN + Duration::from_millis(1));
    assert_eq!((bench.opened.len(), bench.hedges), (2, 2));
    // The backup's template cannot take it, which the original could.
    bench.error(1, ErrorCode::Invalid);
    assert!(!bench.session.is_ended());
    bench.token(0, 0, "one ");
    assert_eq!(
        bench.hedges, 3,
        "what was paid for and did nothing comes back"
    );
    bench.done(0, 1);
    assert!(matches!(bench.last(), Output::Done { .. }));

    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.pass(SILENCE_MIN + Duration::from_millis(1));
    bench.error(1, ErrorCode::Invalid);
    bench.error(0, ErrorCode::EngineDown);
    bench.error(2, ErrorCode::EngineDown);
    assert!(
        matches!(bench.last(), Output::Failed(Failure::Refused(e)) if e.code == ErrorCode::Invalid),
        "nobody else served it: {:?}",
        bench.last()
    );
}

#[test]
fn a_connection_that_is_refused_says_nothing_of_the_request() {
    let mut bench = Bench::new(&[1, 2], true);
    let refused = || Closed::Refused(WireError::new(ErrorCode::Forbidden, "expired"));
    bench.input(Input::Closed(AttemptId(0), refused()));
    assert_eq!(bench.opened.len(), 2, "the next machine is asked");
    bench.input(Input::Closed(AttemptId(1), refused()));
    assert_eq!(bench.opened.len(), 2, "and nobody twice");
    assert!(
        matches!(bench.last(), Output::Failed(Failure::Refused(e)) if e.code == ErrorCode::Forbidden)
    );
}

#[test]
fn before_the_first_token_the_next_peer_is_tried_silently() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.error(0, ErrorCode::EngineDown);
    bench.accepted(1);
    bench.token(1, 0, "hello");
    bench.done(1, 1);
    assert!(matches!(&bench.outputs[0], Output::Started { node, .. } if node.0[0] == 2));
    assert_eq!(bench.text(), "hello");
    assert!(matches!(bench.last(), Output::Done { .. }));
    assert!(
        !bench
            .outputs
            .iter()
            .any(|o| matches!(o, Output::PeerChanged { .. }))
    );
}

#[test]
fn silence_starts_a_backup_and_the_first_to_produce_goes_on() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN - Duration::from_millis(1));
    assert_eq!(bench.opened.len(), 1, "not yet");
    bench.pass(Duration::from_millis(2));
    assert_eq!(bench.opened.len(), 2, "a backup");
    assert_eq!(bench.prefix(1), "one ");
    assert!(bench.reset.is_empty(), "the original is kept");

    // The original wakes first: it goes on, the backup is reset.
    bench.token(0, 1, "two ");
    assert_eq!(bench.reset, [AttemptId(1)]);
    // And once more, but this time the backup is first.
    bench.pass(SILENCE_MIN * 2);
    bench.accepted(2);
    bench.pass(Duration::from_millis(30));
    bench.token(2, 2, "three");
    assert_eq!(bench.reset, [AttemptId(1), AttemptId(0)]);
    bench.token(0, 2, "late");
    bench.done(2, 3);
    assert_eq!(bench.text(), "one two three");
    let changed = bench.outputs.iter().find_map(|o| match o {
        Output::PeerChanged {
            seam, reason, gap, ..
        } => Some((*seam, reason.clone(), *gap)),
        _ => None,
    });
    let (seam, reason, gap) = changed.expect("a change of peer");
    assert_eq!((seam, reason), (Seam::Exact, Reason::Silence));
    assert_eq!(gap, SILENCE_MIN * 2 + Duration::from_millis(30));
}

#[test]
fn who_let_the_caller_wait_is_noted_and_so_is_who_went_on() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN * 2);
    bench.accepted(1);
    bench.token(1, 1, "two");
    bench.done(1, 2);
    let (loser, winner) = (candidate(1).node, candidate(2).node);
    let failed = Note::AttemptFailed {
        node: loser,
        engine: 0,
        reason: Reason::Silence,
    };
    let succeeded = Note::Succeeded {
        node: winner,
        engine: 0,
    };
    assert!(bench.notes.contains(&failed), "{:?}", bench.notes);
    assert!(bench.notes.contains(&succeeded), "{:?}", bench.notes);
}

#[test]
fn progress_is_life_but_a_stalled_engine_is_not() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    for _ in 0..16 {
        bench.pass(Duration::from_millis(50));
        let progress = Progress {
            phase: Phase::Generating,
            done: 0,
            total: 0,
        };
        bench.frame(0, GenFrame::Progress(progress));
    }
    assert_eq!(bench.opened.len(), 1, "a live agent is not silent");
    bench.pass(Duration::from_millis(101));
    assert_eq!(
        bench.opened.len(),
        2,
        "but after nearly a second without a token its engine hangs"
    );
}

#[test]
fn half_a_character_or_stop_sequence_is_made_anew_by_the_backup() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.token(0, 1, ""); // Half of something that never completes.
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    assert_eq!(bench.prefix(1), "one ");
    bench.accepted(1);
    bench.token(1, 1, "");
    bench.token(1, 2, "é");
    bench.done(1, 3);
    assert_eq!(bench.text(), "one é");
    let indices: Vec<u32> = bench
        .outputs
        .iter()
        .filter_map(|o| match o {
            Output::Token { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    assert_eq!(indices, [0, 1, 2]);
}

#[test]
fn a_lost_connection_is_reattached_and_nothing_is_made_twice() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.input(Input::Closed(AttemptId(0), Closed::Lost("path".into())));
    let attach = How::Attach(Attach {
        generation: GenerationId([0; 16]),
        have: 1,
    });
    assert_eq!(bench.opened[1], (AttemptId(1), 1, attach));
    bench.token(1, 1, "two");
    bench.done(1, 2);
    assert_eq!(bench.text(), "one two");
    assert_eq!(bench.opened.len(), 2, "no migration");
}

#[test]
fn a_generation_that_is_gone_is_migrated() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.input(Input::Closed(AttemptId(0), Closed::Lost("restart".into())));
    bench.error(1, ErrorCode::UnknownGeneration);
    assert_eq!(bench.prefix(2), "one ");
}

#[test]
fn structured_output_is_never_spliced() {
    let mut bench = Bench::new(&[1, 2], false);
    bench.accepted(0);
    bench.token(0, 0, "{\"a\":");
    bench.pass(SILENCE_MIN * 3);
    assert_eq!(
        bench.opened.len(),
        1,
        "no backup for what cannot be spliced"
    );
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    let reason = Reason::EndedEarly;
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Incomplete { reason })
    );
}

#[test]
fn a_skipped_or_miscounted_token_is_a_failure_of_its_peer() {
    let mut bench = Bench::new(&[1, 2, 3], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.token(0, 2, "three ");
    assert_eq!(bench.opened.len(), 2);
    bench.accepted(1);
    bench.token(1, 1, "two ");
    bench.done(1, 3);
    assert_eq!(
        bench.opened.len(),
        3,
        "an end that does not add up is no end"
    );
    bench.accepted(2);
    bench.token(2, 2, "three");
    bench.done(2, 3);
    assert_eq!(bench.text(), "one two three");
}

/// Neither silence nor the table alone is enough: each may be wrong.
#[test]
fn what_nobody_may_go_on_with_ends_once_its_producer_is_surely_gone() {
    let mut bench = Bench::new(&[1, 2], false);
    bench.accepted(0);
    bench.token(0, 0, "{\"a\":");
    bench.input(Input::PeerDown(candidate(1).node));
    assert!(!bench.session.is_ended(), "its stream lives");
    bench.pass(SILENCE_MIN * 3);
    assert!(!bench.session.is_ended(), "it may come back");
    bench.input(Input::PeerDown(candidate(1).node));
    let reason = Reason::Silence;
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Incomplete { reason })
    );
}

#[test]
fn a_broken_connection_and_the_table_end_it_too() {
    let mut bench = Bench::new(&[1, 2], false);
    bench.accepted(0);
    bench.token(0, 0, "{\"a\":");
    bench.input(Input::Closed(AttemptId(0), Closed::Lost("path".into())));
    bench.input(Input::PeerDown(candidate(1).node));
    assert!(!bench.session.is_ended(), "it may still run there");
    bench.pass(DIAL_SUSPECT);
    bench.input(Input::PeerDown(candidate(1).node));
    let reason = Reason::Silence;
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Incomplete { reason })
    );
}

/// A fresh connection that has opened shows that the table is wrong; one over which the peer
/// says that it has no such generation leaves nothing to wait for.
#[test]
fn a_fresh_path_decides_for_what_nobody_may_go_on_with() {
    use unamesh_proto::wire::ErrorCode;
    let mut bench = Bench::new(&[1, 2], false);
    bench.accepted(0);
    bench.token(0, 0, "{\"a\":");
    bench.pass(SILENCE_MIN + Duration::from_millis(1));
    let fresh = bench.fresh[0].0.0;
    bench.input(Input::Opened(AttemptId(fresh)));
    bench.input(Input::PeerDown(candidate(1).node));
    assert!(!bench.session.is_ended(), "the peer answers");
    bench.error(fresh, ErrorCode::UnknownGeneration);
    let reason = Reason::Refused(ErrorCode::UnknownGeneration);
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Incomplete { reason })
    );
}

#[test]
fn with_nobody_left_it_waits_for_a_peer_and_then_says_what_broke() {
    let mut bench = Bench::new(&[1], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.peers.clear();
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    assert!(bench.session.is_waiting());
    bench.pass(WAIT_FOR_PEER - Duration::from_millis(10));
    assert!(!bench.session.is_ended());
    bench.pass(Duration::from_millis(20));
    let reason = Reason::EndedEarly;
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Interrupted { reason })
    );
}

#[test]
fn a_peer_that_appears_while_waiting_goes_on() {
    let mut bench = Bench::new(&[1], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.peers.clear();
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.pass(Duration::from_secs(1));
    bench.input(Input::Candidates(vec![candidate(7)]));
    bench.accepted(1);
    bench.token(1, 1, "two");
    bench.done(1, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn cancelling_resets_everything_and_nothing_follows() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN * 2);
    bench.input(Input::Cancel);
    assert_eq!(bench.reset, [AttemptId(0), AttemptId(1)]);
    bench.token(0, 1, "two ");
    assert_eq!(*bench.last(), Output::Failed(Failure::Cancelled));
    assert_eq!(bench.session.next_wake(), None);
}

#[test]
fn a_program_that_leaves_ends_its_answers_with_what_they_have() {
    let ends_as = |spliceable, delivered| {
        let mut bench = Bench::new(&[1, 2], spliceable);
        bench.accepted(0);
        if delivered {
            bench.token(0, 0, "one ");
        }
        bench.input(Input::Leave);
        assert_eq!(bench.reset, [AttemptId(0)]);
        bench.last().clone()
    };
    let reason = || Reason::Leaving;
    let interrupted = Failure::Interrupted { reason: reason() };
    assert_eq!(ends_as(true, true), Output::Failed(interrupted));
    let incomplete = Failure::Incomplete { reason: reason() };
    assert_eq!(ends_as(false, true), Output::Failed(incomplete));
    match ends_as(true, false) {
        Output::Failed(Failure::Refused(error)) => assert_eq!(error.code, ErrorCode::Draining),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_is_down_is_not_said_to_leave() {
    let mut bench = Bench::new(&[1, 2], true);
    let down = || Input::PeerDown(candidate(1).node);
    bench.input(down());
    assert_eq!(bench.opened.len(), 2, "it gave no sign of life");
    let reason = |n: &Note| match n {
        Note::Suspect { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reasons: Vec<Reason> = bench.notes.iter().filter_map(reason).collect();
    assert_eq!(reasons, [Reason::Silence]);

    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.input(down());
    assert_eq!(bench.opened.len(), 1, "its stream lives");
    bench.token(0, 1, "two ");
    bench.pass(SILENCE_MIN + Duration::from_millis(1));
    assert_eq!(bench.opened.len(), 2, "until it does not");
    bench.accepted(1);
    bench.token(1, 2, "three");
    assert!(
        bench
            .outputs
            .iter()
            .any(|o| matches!(o, Output::PeerChanged { reason, .. } if *reason == Reason::Silence))
    );
}

#[test]
fn peers_that_failed_are_asked_again_rather_than_losing_the_answer() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    for attempt in 0..4 {
        let unreachable = Closed::Unreachable("a busy machine".into());
        bench.input(Input::Closed(AttemptId(attempt), unreachable));
    }
    assert_eq!(bench.opened.len(), 4, "twice each, and then a pause");
    assert!(bench.session.is_waiting());
    bench.pass(Duration::from_millis(260));
    assert_eq!(bench.opened.len(), 5);
    bench.accepted(4);
    bench.token(4, 1, "two");
    bench.done(4, 2);
    assert_eq!(bench.text(), "one two");
}

#[test]
fn who_had_no_model_yet_is_asked_again() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN + Duration::from_millis(1));
    // The backup has just started and does not know its engine's models.
    bench.error(1, ErrorCode::UnknownModel);
    assert_eq!(bench.opened.len(), 2, "not at once");
    bench.pass(BUSY_RETRY);
    assert_eq!(bench.opened.len(), 3, "beside the one that is silent");
    bench.error(2, ErrorCode::Draining);
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.input(Input::Closed(AttemptId(3), Closed::Ended));
    bench.pass(BUSY_RETRY);
    let last = bench.opened.len() as u32 - 1;
    bench.accepted(last);
    bench.token(last, 1, "two");
    assert_eq!(bench.text(), "one two");
}
