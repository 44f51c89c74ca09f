//! Stalls that were learned, and hedges that need leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::*;
use std::time::Duration;
use unamesh_proto::limits::{MAX_ATTEMPTS, MIN_ATTEMPTS_LEFT};
use unamesh_proto::rank::Candidate;
use unamesh_proto::session::{AttemptId, Closed, Config, Effect, Input, Note, Session};
use unamesh_proto::timeouts::{
    DIAL_SUSPECT, HEDGE_RETRY, SILENCE_MAX, SILENCE_MIN, SILENCE_SURE, STALL_GAP_MIN, STALL_MIN,
};
use unamesh_proto::wire::{Draining, ErrorCode, GenFrame};

/// `candidate` has sent one token; peer 2 could stand in for it.
fn answering(candidate: Candidate) -> Bench {
    let mut bench = Bench::new(&[2], true);
    bench.peers.clear();
    bench.error(0, ErrorCode::EngineDown);
    let config = Config {
        spliceable: true,
        ..Config::default()
    };
    bench.session = Session::new(config, bench.now);
    bench.peers = vec![2];
    assert_eq!(bench.session.poll(), Some(Effect::Rank));
    bench.input(Input::Candidates(vec![candidate]));
    bench.opened.clear();
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench
}

#[test]
fn a_stall_is_what_this_engine_was_never_seen_to_take() {
    let mut slow = candidate(1);
    slow.learned.gap = Some(Duration::from_millis(1700));
    let mut bench = answering(slow);
    for _ in 0..33 {
        bench.pass(Duration::from_millis(50));
        bench.frame(0, generating());
    }
    assert!(bench.opened.is_empty(), "1.65 s is nothing new for it");
    bench.pass(Duration::from_millis(110));
    assert_eq!(bench.opened.len(), 1);
}

#[test]
fn a_steady_engine_that_hangs_is_noticed_at_half_a_second_and_an_unknown_one_within_one() {
    for (learned, bound) in [
        (Some(Duration::from_millis(22)), STALL_GAP_MIN),
        (None, STALL_MIN),
    ] {
        let mut steady = candidate(1);
        steady.learned.gap = learned;
        steady.expected_itl = Duration::from_millis(20);
        let mut bench = answering(steady);
        let step = Duration::from_millis(50);
        for _ in 1..bound.div_duration_f64(step) as u32 {
            bench.pass(step);
            bench.frame(0, generating());
        }
        assert!(bench.opened.is_empty(), "no false alarm before {bound:?}");
        bench.pass(step + Duration::from_millis(1));
        assert_eq!(bench.opened.len(), 1, "{bound:?}");
        assert!(bound < Duration::from_secs(1));
    }
}

#[test]
fn a_hedge_needs_leave_and_a_retry_or_a_farewell_does_not() {
    let mut bench = Bench::new(&[1, 2, 3], true);
    bench.hedges = 0;
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN + HEDGE_RETRY * 2 + Duration::from_millis(1));
    assert_eq!(bench.opened.len(), 1, "no backup beside a silent one");
    assert_eq!(bench.asked, 3, "but it keeps asking");
    assert!(!bench.session.is_waiting(), "no news would help");
    bench.hedges = 1;
    bench.pass(HEDGE_RETRY);
    assert_eq!(bench.opened.len(), 2);
    assert_eq!(bench.hedges, 0);
    // The backup breaks: its successor goes in its place, and the token comes back with the
    // first that takes over.
    bench.input(Input::Closed(AttemptId(1), Closed::Ended));
    assert_eq!(bench.opened.len(), 3);
    bench.accepted(2);
    bench.token(2, 1, "two ");
    assert_eq!(bench.hedges, 1);

    bench.hedges = 0;
    bench.frame(2, GenFrame::Draining(Draining { deadline_ms: 5000 }));
    assert_eq!(bench.opened.len(), 4, "a planned leave is no hedge");
    bench.input(Input::Closed(AttemptId(2), Closed::Ended));
    bench.input(Input::Closed(AttemptId(3), Closed::Ended));
    assert_eq!(bench.opened.len(), 5, "nor is a retry");
}

#[test]
fn after_a_long_silence_a_backup_needs_no_leave() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.hedges = 0;
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_SURE - Duration::from_millis(1));
    assert_eq!(bench.opened.len(), 1, "every hedge is spent");
    bench.pass(HEDGE_RETRY);
    assert_eq!(bench.opened.len(), 2, "it is as good as dead");
    bench.accepted(1);
    bench.token(1, 1, "two ");
    assert_eq!(bench.hedges, 0, "nothing was spent, nothing is given back");
}

#[test]
fn after_a_long_silence_with_nobody_else_news_are_waited_for() {
    let mut bench = Bench::new(&[1], true);
    bench.hedges = 0;
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_SURE + HEDGE_RETRY);
    let asked = bench.asked;
    assert!(bench.session.is_waiting());
    bench.pass(HEDGE_RETRY * 4);
    assert_eq!(bench.asked, asked, "no hedge is asked for any more");
    assert_eq!(bench.opened.len(), 1);
}

#[test]
fn a_hedge_that_was_not_needed_is_given_back_or_is_spent() {
    let mut bench = Bench::new(&[1], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(SILENCE_MIN * 2);
    assert_eq!((bench.opened.len(), bench.hedges), (1, 2), "nobody else");
    bench.token(0, 1, "two ");
    assert_eq!(bench.hedges, 3, "not used");
    bench.peers.push(2);
    bench.pass(SILENCE_MAX + Duration::from_millis(1));
    bench.token(0, 2, "three ");
    assert_eq!((bench.opened.len(), bench.hedges), (2, 2), "in vain");
}

#[test]
fn a_hedge_whose_original_failed_is_given_back_whatever_becomes_of_it() {
    let silent = SILENCE_MIN + Duration::from_millis(1);
    let mut bench = Bench::new(&[1, 2, 3], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.pass(silent);
    assert_eq!((bench.opened.len(), bench.hedges), (2, 2));
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    assert_eq!(bench.hedges, 3, "nobody works twice");
    bench.accepted(1);
    bench.input(Input::Closed(AttemptId(1), Closed::Ended));
    assert_eq!((bench.opened.len(), bench.hedges), (3, 3), "a retry");

    // The backup falls silent too: the original makes room, and a second hedge starts.
    bench.accepted(2);
    bench.token(2, 1, "two ");
    bench.pass(silent);
    assert_eq!((bench.opened.len(), bench.hedges), (4, 2));
    bench.pass(DIAL_SUSPECT);
    assert_eq!((bench.opened.len(), bench.hedges), (5, 2));
    // Its connection breaks: it is attached to, and is the same hedge.
    bench.accepted(4);
    bench.input(Input::Closed(AttemptId(4), Closed::Lost(String::new())));
    assert_eq!(bench.opened.len(), 6);
    bench.token(5, 2, "three ");
    assert_eq!(bench.hedges, 3, "none is lost");
}

#[test]
fn what_an_engine_took_is_told_at_the_end() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.pass(Duration::from_millis(120));
    for index in 0..5 {
        bench.token(0, index, "x ");
        bench.pass(Duration::from_millis(30));
    }
    // It hangs; what nobody waited for counts with the bound that it exceeded.
    for _ in 0..20 {
        bench.frame(0, generating());
        bench.pass(Duration::from_millis(50));
    }
    bench.accepted(1);
    bench.token(1, 5, "y");
    let (model, observed) = bench
        .notes
        .iter()
        .find_map(|n| match n {
            Note::Observed {
                model, observed, ..
            } => Some((model.clone(), observed.clone())),
            _ => None,
        })
        .unwrap();
    assert_eq!(model, "m");
    let first = observed.first.quantile(1.0, 1).unwrap();
    assert!(
        first >= Duration::from_millis(120) && first < Duration::from_millis(132),
        "{first:?}"
    );
    assert_eq!(observed.gaps.samples(), 5);
    let longest = observed.gaps.quantile(1.0, 1).unwrap();
    assert!(
        longest >= STALL_MIN && longest < STALL_MIN * 11 / 10,
        "{longest:?}"
    );
}

/// The original falls silent; whether a backup was dispatched before its longest bound.
fn falls_silent(bench: &mut Bench) -> bool {
    let opened = bench.opened.len();
    let end = bench.now + SILENCE_MAX * 2;
    while bench.now < end && bench.opened.len() == opened {
        bench.pass(Duration::from_millis(5));
    }
    bench.opened.len() > opened
}

/// A long answer over Wi-Fi: dozens of short silences, a backup beside each, all in vain.
#[test]
fn vain_hedges_use_up_neither_failover_nor_fresh_paths() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.hedges = 100;
    bench.accepted(0);
    bench.token(0, 0, "x ");
    let mut paths = Vec::new();
    for index in 1..=40 {
        assert!(falls_silent(&mut bench), "silence {index}");
        paths.push(bench.fresh[0].0);
        bench.token(0, index, "x ");
    }
    paths.dedup();
    assert_eq!(paths.len(), 40, "each silence has a fresh path of its own");
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    let (last, ..) = bench.opened.pop().unwrap();
    bench.accepted(last.0);
    bench.token(last.0, 41, "y");
    assert!(bench.text().ends_with("x y"));
}

/// Backups that fail beside a peer that is only slow leave enough attempts for its death.
#[test]
fn hedges_take_none_of_what_is_kept_for_failures() {
    let peers: Vec<u8> = (1..=40).collect();
    let mut bench = Bench::new(&peers, true);
    bench.accepted(0);
    bench.token(0, 0, "x ");
    bench.opened.clear();
    let mut hedges = 0;
    for index in 1..=20 {
        let end = bench.now + SILENCE_MAX * 2;
        while bench.now < end {
            bench.pass(Duration::from_millis(5));
            while let Some((backup, ..)) = bench.opened.pop() {
                hedges += 1;
                bench.input(Input::Closed(backup, Closed::Ended));
            }
        }
        bench.token(0, index, "x ");
        assert_eq!(bench.hedges, 3, "none is lost");
    }
    assert_eq!(hedges, MAX_ATTEMPTS - MIN_ATTEMPTS_LEFT - 1);
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    for _ in 1..MIN_ATTEMPTS_LEFT {
        let (last, ..) = bench.opened.pop().unwrap();
        bench.input(Input::Closed(last, Closed::Ended));
    }
    let (last, ..) = bench.opened.pop().unwrap();
    bench.accepted(last.0);
    bench.token(last.0, 21, "y");
    assert!(bench.text().ends_with("x y"), "{:?}", bench.last());
}

/// What has lain unread while the caller did something else shows how long the caller took.
#[test]
fn what_the_caller_did_not_watch_teaches_nothing() {
    let ms = Duration::from_millis;
    let mut bench = Bench::new(&[1], true);
    bench.accepted(0);
    let mut index = 0;
    for _ in 0..5 {
        for _ in 0..10 {
            bench.pass(ms(30));
            bench.token(0, index, "x ");
            index += 1;
        }
        // The caller speaks the sentence; meanwhile the next one comes.
        bench.now = bench.now + ms(2000);
        bench.input(Input::Late(true));
        for _ in 0..10 {
            bench.token(0, index, "x ");
            index += 1;
        }
        bench.input(Input::Late(false));
    }
    bench.done(0, index);
    assert_eq!(bench.opened.len(), 1);
    let (mut gaps, mut path) = (None, None);
    for note in &bench.notes {
        match note {
            Note::Observed { observed, .. } => gaps = Some(observed.gaps.clone()),
            Note::Learned { silence, .. } => path = Some(silence.bound()),
            _ => {}
        }
    }
    let gaps = gaps.unwrap();
    assert_eq!(gaps.samples(), 45, "nine of each ten that were watched");
    assert!(gaps.quantile(1.0, 1).unwrap() < ms(35));
    assert_eq!(path, Some(SILENCE_MIN));
}

/// A connection that breaks again and again: the same generation goes on each time.
#[test]
fn reattachments_that_are_answered_use_up_no_failover() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.token(0, 0, "x ");
    for id in 0..30 {
        bench.input(Input::Closed(AttemptId(id), Closed::Lost("cut".into())));
        bench.token(id + 1, id + 1, "x ");
    }
    bench.input(Input::Closed(AttemptId(30), Closed::Ended));
    bench.accepted(31);
    bench.token(31, 31, "y");
    assert!(bench.text().ends_with("x y"));
}
