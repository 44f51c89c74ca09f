//! The session machine's rules, one by one, on a hand-moved clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;
use unamesh_proto::rank::{Candidate, Cost};
use unamesh_proto::session::{
    AttemptId, Closed, Config, Effect, Failure, How, Input, Note, Output, Reason, Seam, Session,
};
use unamesh_proto::stalls::Bounds;
use unamesh_proto::timeouts::{HEDGE_RETRY, SILENCE_MAX, SILENCE_MIN, STALL_MIN, WAIT_FOR_PEER};
use unamesh_proto::wire::{
    Accepted, Attach, Chunk, Done, Draining, ErrorCode, FinishReason, GenFrame, Phase, Progress,
    Token, Usage, WireError,
};
use unamesh_proto::{GenerationId, Mono, NodeId};

/// A session on a clock that only the test moves.
struct Bench {
    session: Session,
    now: Mono,
    peers: Vec<u8>,
    opened: Vec<(AttemptId, u8, How)>,
    reset: Vec<AttemptId>,
    outputs: Vec<Output>,
    notes: Vec<Note>,
    hedges: u32,
    asked: u32,
}

impl Bench {
    fn new(peers: &[u8], spliceable: bool) -> Bench {
        let config = Config {
            spliceable,
            ..Config::default()
        };
        let mut bench = Bench {
            session: Session::new(config, Mono::ZERO),
            now: Mono::ZERO,
            peers: peers.to_vec(),
            opened: Vec::new(),
            reset: Vec::new(),
            outputs: Vec::new(),
            notes: Vec::new(),
            hedges: 3,
            asked: 0,
        };
        bench.drain();
        bench
    }

    fn drain(&mut self) {
        while let Some(effect) = self.session.poll() {
            match effect {
                Effect::Rank => {
                    let ranked = self.peers.iter().map(|p| candidate(*p)).collect();
                    self.session.handle(Input::Candidates(ranked), self.now);
                }
                Effect::Open {
                    attempt, node, how, ..
                } => {
                    self.opened.push((attempt, node.0[0], how));
                    self.session.handle(Input::Opened(attempt), self.now);
                }
                Effect::Reset(attempt) => self.reset.push(attempt),
                Effect::Emit(output) => self.outputs.push(output),
                Effect::Hedge => {
                    self.asked += 1;
                    if self.hedges > 0 {
                        self.hedges -= 1;
                        self.session.handle(Input::Hedge, self.now);
                    }
                }
                Effect::Note(Note::HedgeRefund) => self.hedges += 1,
                Effect::Note(note) => self.notes.push(note),
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.session.handle(input, self.now);
        self.drain();
    }

    fn frame(&mut self, attempt: u32, frame: GenFrame) {
        self.input(Input::Frame(AttemptId(attempt), frame));
    }

    fn accepted(&mut self, attempt: u32) {
        let accepted = Accepted {
            generation: GenerationId([attempt as u8; 16]),
            engine: 0,
            digest: "d".into(),
            exact: true,
        };
        self.frame(attempt, GenFrame::Accepted(accepted));
    }

    fn token(&mut self, attempt: u32, index: u32, text: &str) {
        let chunk = Chunk {
            text: text.into(),
            ids: vec![index],
            tokens: 1,
        };
        self.frame(
            attempt,
            GenFrame::Token(Token {
                index,
                chunk,
                extra: String::new(),
            }),
        );
    }

    fn done(&mut self, attempt: u32, frames: u32) {
        let usage = Usage {
            prompt_tokens: 1,
            completion_tokens: frames,
        };
        self.frame(
            attempt,
            GenFrame::Done(Done {
                finish: FinishReason::Stop,
                usage,
                frames,
            }),
        );
    }

    fn error(&mut self, attempt: u32, code: ErrorCode) {
        self.frame(attempt, GenFrame::Error(WireError::new(code, "said so")));
    }

    /// Lets time pass, waking the session whenever it asks for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.session.next_wake().filter(|at| *at <= end) {
            self.now = at.max(self.now + Duration::from_micros(1));
            self.input(Input::Wake);
        }
        self.now = end;
    }

    fn text(&self) -> String {
        let texts = self.outputs.iter().filter_map(|o| match o {
            Output::Token { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn last(&self) -> &Output {
        self.outputs.last().expect("an output")
    }

    fn prefix(&self, attempt: usize) -> String {
        match &self.opened[attempt].2 {
            How::Generate(prefix) => prefix.iter().map(|c| c.text.as_str()).collect(),
            How::Attach(_) => panic!("an attach"),
        }
    }
}

fn candidate(peer: u8) -> Candidate {
    let mut id = [0; 32];
    id[0] = peer;
    Candidate {
        node: NodeId(id),
        engine: 0,
        model: "m".into(),
        digest: "d".into(),
        token_ids: true,
        cost: Cost::default(),
        expected_ttft: Duration::from_millis(50),
        expected_itl: Duration::from_millis(20),
        learned: Bounds::default(),
        draining: false,
        reason: "first".into(),
    }
}

fn generating() -> GenFrame {
    GenFrame::Progress(Progress {
        phase: Phase::Generating,
        done: 0,
        total: 0,
    })
}

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
    for _ in 0..19 {
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
        "but after a second without a token its engine hangs"
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
fn a_stall_is_what_this_engine_was_never_seen_to_take() {
    let mut bench = Bench::new(&[2], true);
    let mut slow = candidate(1);
    slow.learned.gap = Some(Duration::from_millis(1700));
    bench.peers.clear();
    bench.error(0, ErrorCode::EngineDown);
    let config = Config {
        spliceable: true,
        ..Config::default()
    };
    bench.session = Session::new(config, bench.now);
    bench.peers = vec![2];
    assert_eq!(bench.session.poll(), Some(Effect::Rank));
    bench.input(Input::Candidates(vec![slow]));
    bench.opened.clear();
    bench.accepted(0);
    bench.token(0, 0, "one ");
    for _ in 0..33 {
        bench.pass(Duration::from_millis(50));
        bench.frame(0, generating());
    }
    assert!(bench.opened.is_empty(), "1.65 s is nothing new for it");
    bench.pass(Duration::from_millis(110));
    assert_eq!(bench.opened.len(), 1);
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
fn what_an_engine_took_is_told_at_the_end() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.pass(Duration::from_millis(120));
    for index in 0..5 {
        bench.token(0, index, "x ");
        bench.pass(Duration::from_millis(30));
    }
    // It hangs; what nobody waited for counts with the bound that it exceeded.
    for _ in 0..24 {
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
    assert_eq!(observed.first, Some(Duration::from_millis(120)));
    assert_eq!(observed.gaps.samples(), 5);
    let longest = observed.gaps.quantile(1.0, 1).unwrap();
    assert!(
        longest >= STALL_MIN && longest < STALL_MIN * 11 / 10,
        "{longest:?}"
    );
}
