#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::rank::Cost;
use crate::testing::node;
use crate::wire::ErrorCode;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn at(ms: u64) -> Mono {
    Mono::from_micros(1_000_000 + ms * 1000)
}

fn failed(n: u32, reason: Reason) -> Note {
    Note::AttemptFailed {
        node: node(n),
        engine: 0,
        reason,
    }
}

fn succeeded(n: u32) -> Note {
    Note::Succeeded {
        node: node(n),
        engine: 0,
    }
}

fn candidate(n: u32) -> Candidate {
    Candidate {
        node: node(n),
        engine: 0,
        model: "m".into(),
        digest: String::new(),
        token_ids: true,
        cost: Cost::default(),
        expected_ttft: Duration::ZERO,
        expected_itl: Duration::ZERO,
        learned: Default::default(),
        draining: false,
        reason: "12 ms".into(),
    }
}

/// Breakers with a seeded source of jitter.
struct B(Breakers, ChaCha8Rng);

impl B {
    fn new() -> Self {
        B(Breakers::default(), ChaCha8Rng::seed_from_u64(1))
    }
    fn note(&mut self, note: Note, ms: u64) {
        self.0.note(&note, &mut self.1, at(ms));
    }
    fn state(&self, n: u32, ms: u64) -> State {
        self.0.state(node(n), 0, at(ms))
    }
    fn open_for(&self, n: u32, ms: u64) -> Duration {
        match self.state(n, ms) {
            State::Open(left) => left,
            other => unreachable!("{other:?}"),
        }
    }
    fn order(&self, ms: u64) -> Vec<(NodeId, String)> {
        let mut ranked = vec![candidate(1), candidate(2), candidate(3)];
        self.0.order(&mut ranked, at(ms));
        ranked.into_iter().map(|c| (c.node, c.reason)).collect()
    }
}

#[test]
fn what_is_the_engines_fault_counts_and_nothing_else() {
    for (reason, counted) in [
        (Reason::EndedEarly, true),
        (Reason::Protocol, true),
        (Reason::Lost, true),
        (Reason::Unreachable, true),
        (Reason::Silence, true),
        (Reason::Stall, true),
        (Reason::Refused(ErrorCode::EngineFailed), true),
        (Reason::Refused(ErrorCode::EngineDown), true),
        (Reason::Refused(ErrorCode::Busy), false),
        (Reason::Refused(ErrorCode::Invalid), false),
        (Reason::Refused(ErrorCode::ContextExceeded), false),
        (Reason::Refused(ErrorCode::UnknownModel), false),
        (Reason::Refused(ErrorCode::Draining), false),
        (Reason::Draining, false),
    ] {
        let mut b = B::new();
        b.note(failed(1, reason.clone()), 0);
        assert_eq!(b.state(1, 0) != State::Closed, counted, "{reason:?}");
        assert_eq!(b.0.trusts(node(1), 0, at(0)), !counted);
    }
}

#[test]
fn an_open_breaker_ranks_last_and_says_why() {
    let mut b = B::new();
    assert_eq!(b.order(0)[0], (node(1), "12 ms".to_owned()));
    b.note(failed(1, Reason::EndedEarly), 0);
    let order = b.order(500);
    assert_eq!((order[0].0, order[2].0), (node(2), node(1)));
    let reason = &order[2].1;
    assert!(
        reason.starts_with("failed 0.5 s ago (its stream ended early), last choice for 1."),
        "{reason}"
    );
    assert!(reason.ends_with("; 12 ms"), "{reason}");
}

#[test]
fn half_open_lets_one_through_and_its_outcome_decides() {
    let mut b = B::new();
    b.note(failed(1, Reason::EndedEarly), 0);
    b.0.dispatched(node(1), 0, at(100)); // the last choice was asked: not a trial
    assert!(matches!(b.state(1, 100), State::Open(_)));
    assert_eq!(b.state(1, 2500), State::HalfOpen);
    assert_eq!(b.order(2500)[0].0, node(1), "in its own place");
    b.0.dispatched(node(1), 0, at(2500));
    assert_eq!(b.state(1, 2600), State::Trial);
    assert_eq!(b.order(2600)[2].0, node(1), "one only");
    b.note(failed(1, Reason::Stall), 2700);
    let second = b.open_for(1, 2700);
    assert!(second >= BREAKER_MIN * 3 / 2 && second <= BREAKER_MIN * 5 / 2);
    b.0.dispatched(node(1), 0, at(8000));
    b.note(succeeded(1), 9000);
    assert_eq!(b.state(1, 9000), State::Closed);
    // And it starts from the shortest backoff again.
    b.note(failed(1, Reason::Lost), 9001);
    assert!(b.open_for(1, 9001) <= BREAKER_MIN * 5 / 4);
}

#[test]
fn a_trial_that_says_nothing_frees_its_place() {
    let mut b = B::new();
    b.note(failed(1, Reason::Lost), 0);
    b.0.dispatched(node(1), 0, at(3000));
    b.note(failed(1, Reason::Refused(ErrorCode::Busy)), 3100);
    assert_eq!(b.state(1, 3100), State::HalfOpen, "busy is an answer");
    b.0.dispatched(node(1), 0, at(3200));
    let lease = BREAKER_TRIAL.as_millis() as u64;
    assert_eq!(b.state(1, 3200 + lease - 1), State::Trial);
    assert_eq!(b.state(1, 3200 + lease), State::HalfOpen, "cancelled");
}

#[test]
fn many_streams_that_break_together_are_one_failure() {
    let mut b = B::new();
    for ms in 0..16 {
        b.note(failed(1, Reason::Lost), ms);
    }
    assert!(b.open_for(1, 16) <= BREAKER_MIN * 5 / 4);
}

#[test]
fn the_backoff_grows_to_its_bound_and_old_failures_are_forgotten() {
    let (mut b, mut ms) = (B::new(), 0);
    for _ in 0..12 {
        b.note(failed(1, Reason::Unreachable), ms);
        let left = b.open_for(1, ms);
        assert!(left >= BREAKER_MIN * 3 / 4 && left <= BREAKER_MAX * 5 / 4);
        ms += left.as_millis() as u64 + 1;
    }
    b.note(failed(1, Reason::Unreachable), ms);
    assert!(b.open_for(1, ms) >= BREAKER_MAX * 3 / 4);
    ms += BREAKER_FORGET.as_millis() as u64;
    b.note(failed(1, Reason::Unreachable), ms);
    assert!(b.open_for(1, ms) <= BREAKER_MIN * 5 / 4);
}

#[test]
fn what_is_never_asked_again_is_forgotten() {
    let mut b = B::new();
    b.note(failed(1, Reason::Stall), 0);
    let forget = BREAKER_FORGET.as_millis() as u64;
    assert_eq!(b.state(1, forget - 1), State::HalfOpen);
    assert!(!b.0.trusts(node(1), 0, at(forget - 1)));
    assert_eq!(b.0.standing(at(forget - 1)).count(), 1);
    assert_eq!(b.state(1, forget), State::Closed);
    assert!(b.0.trusts(node(1), 0, at(forget)));
    assert_eq!(b.0.standing(at(forget)).count(), 0);
    assert_eq!(b.order(forget)[0].1, "12 ms", "nor said");
}

#[test]
fn a_dead_machine_is_out_with_all_engines_and_an_engine_alone() {
    for (reason, other_too) in [
        (Reason::Unreachable, true),
        (Reason::Lost, true),
        (Reason::Silence, true),
        (Reason::Stall, false),
        (Reason::Refused(ErrorCode::EngineDown), false),
    ] {
        let mut b = B::new();
        b.note(failed(1, reason.clone()), 0);
        let second = Candidate {
            engine: 1,
            ..candidate(1)
        };
        let mut ranked = [second, candidate(2)];
        b.0.order(&mut ranked, at(100));
        assert_eq!(ranked[1].node == node(1), other_too, "{reason:?}");
        assert_eq!(b.0.trusts(node(1), 1, at(100)), !other_too);
        // Whichever of its engines answers, the machine is back.
        b.0.dispatched(node(1), 1, at(5000));
        let trial = b.state(1, 5000) == State::Trial;
        assert_eq!(trial, other_too, "{reason:?}");
        let engine = 1;
        b.note(
            Note::Succeeded {
                node: node(1),
                engine,
            },
            5100,
        );
        assert_eq!(b.state(1, 5100) == State::Closed, other_too, "{reason:?}");
    }
}

#[test]
fn everything_is_bounded() {
    let mut b = B::new();
    for n in 0..3 * MAX_BREAKERS as u32 {
        b.note(failed(n, Reason::Lost), u64::from(n));
    }
    assert_eq!(b.0.troubled.len(), MAX_BREAKERS);
    let newest = 3 * MAX_BREAKERS as u32 - 1;
    let now = at(u64::from(newest));
    assert!(!b.0.trusts(node(newest), 0, now) && b.0.trusts(node(0), 0, now));
}

#[derive(Clone, Debug)]
enum Op {
    Ask,
    Fail,
    Succeed,
    Busy,
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Ask),
        2 => Just(Op::Fail),
        1 => Just(Op::Succeed),
        1 => Just(Op::Busy),
        4 => (1u64..30_000).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: a success closes, a failure opens within the bounds, and of a
    /// half-open breaker one request passes.
    #[test]
    fn the_breaker_keeps_its_rules(ops in prop::collection::vec(op(), 1..60), seed: u64) {
        let mut b = B(Breakers::default(), ChaCha8Rng::seed_from_u64(seed));
        let mut ms = 0;
        for op in ops {
            let before = b.state(1, ms);
            match op {
                Op::Wait(span) => ms += span,
                Op::Ask => {
                    b.0.dispatched(node(1), 0, at(ms));
                    let expected = match before {
                        State::HalfOpen => State::Trial,
                        other => other,
                    };
                    prop_assert_eq!(b.state(1, ms), expected);
                }
                Op::Fail => {
                    b.note(failed(1, Reason::Stall), ms);
                    let left = b.open_for(1, ms);
                    prop_assert!(left <= BREAKER_MAX * 5 / 4);
                    let same = matches!(before, State::Open(_)) && before != State::Open(left);
                    prop_assert!(!same, "an open breaker is not touched");
                }
                Op::Succeed => {
                    b.note(succeeded(1), ms);
                    prop_assert_eq!(b.state(1, ms), State::Closed);
                }
                Op::Busy => {
                    b.note(failed(1, Reason::Refused(ErrorCode::Busy)), ms);
                    prop_assert_ne!(b.state(1, ms), State::Trial);
                }
            }
        }
    }
}
