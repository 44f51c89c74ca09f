//! What a seam is called, and what has none: the rules of choice in `PROTOCOL.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod session_bench;

use session_bench::{Bench, candidate};
use std::time::Duration;
use unamesh_proto::GenerationId;
use unamesh_proto::rank::Candidate;
use unamesh_proto::session::{
    AttemptId, Closed, Config, Effect, Failure, Input, Output, Reason, Seam, Session,
};
use unamesh_proto::timeouts::SILENCE_MIN;
use unamesh_proto::wire::{Accepted, Chunk, GenFrame, Token};

/// A peer's model and what its agent says of the replayed prefix.
struct Side {
    model: &'static str,
    digest: &'static str,
    exact: bool,
}

const IDS: Side = Side {
    model: "m",
    digest: "d",
    exact: true,
};

/// The seam between two peers, the first of which dies after a token.
fn seam(first: &Side, second: &Side) -> Seam {
    let config = Config {
        spliceable: true,
        ..Config::default()
    };
    let now = unamesh_proto::Mono::ZERO;
    let mut session = Session::new(config, now);
    let sides = [first, second];
    for (at, side) in (0..).zip(sides) {
        let peer = Candidate {
            model: side.model.into(),
            digest: side.digest.into(),
            ..candidate(at)
        };
        session.handle(Input::Candidates(vec![peer]), now);
        let id = AttemptId(at.into());
        let accepted = Accepted {
            generation: GenerationId([at; 16]),
            engine: 0,
            digest: side.digest.into(),
            exact: side.exact,
        };
        session.handle(Input::Frame(id, GenFrame::Accepted(accepted)), now);
        session.handle(Input::Frame(id, token(at.into(), "x", "")), now);
        if at == 0 {
            session.handle(Input::Closed(id, Closed::Ended), now);
        }
    }
    let seams = std::iter::from_fn(|| session.poll()).filter_map(|effect| match effect {
        Effect::Emit(Output::PeerChanged { seam, .. }) => Some(seam),
        _ => None,
    });
    seams.last().expect("a change of peer")
}

fn token(index: u32, text: &str, extra: &str) -> GenFrame {
    GenFrame::Token(Token {
        index,
        chunk: Chunk {
            text: text.into(),
            ids: Vec::new(),
            tokens: 1,
        },
        extra: extra.into(),
    })
}

#[test]
fn a_seam_says_how_well_the_parts_fit() {
    let text = Side {
        exact: false,
        ..IDS
    };
    assert_eq!(seam(&IDS, &IDS), Seam::Exact);
    assert_eq!(seam(&IDS, &text), Seam::Continued);
    let unknown = Side { digest: "", ..IDS };
    assert_eq!(seam(&unknown, &unknown), Seam::Continued);
    let tagged = Side {
        model: "m:latest",
        digest: "e",
        ..IDS
    };
    assert_eq!(seam(&IDS, &tagged), Seam::Continued);
    // The same weights by another name are the same model.
    let alias = Side { model: "n", ..IDS };
    assert_eq!(seam(&IDS, &alias), Seam::Exact);
    let other = Side {
        model: "n",
        digest: "e",
        ..IDS
    };
    assert_eq!(seam(&IDS, &other), Seam::OtherModel);
    let nameless = Side {
        model: "n",
        digest: "",
        ..IDS
    };
    assert_eq!(seam(&nameless, &unknown), Seam::OtherModel);
}

/// Reasoning is in no prefix: another engine would reason anew, and the caller see it twice.
#[test]
fn within_its_reasoning_an_answer_is_not_spliced() {
    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.frame(0, token(0, "", r#"{"reasoning_content":"hm"}"#));
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    let reason = Reason::EndedEarly;
    assert_eq!(
        *bench.last(),
        Output::Failed(Failure::Incomplete { reason })
    );

    let mut bench = Bench::new(&[1, 2], true);
    bench.accepted(0);
    bench.frame(0, token(0, "", r#"{"reasoning_content":"hm"}"#));
    bench.frame(0, token(1, "So ", ""));
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.accepted(1);
    bench.token(1, 2, "be it");
    bench.done(1, 3);
    assert_eq!(bench.text(), "So be it");
}

/// The answer of a peer that declines to go on is sought elsewhere, at once.
#[test]
fn who_cannot_go_on_in_the_middle_is_passed_over() {
    use unamesh_proto::wire::ErrorCode;
    let mut bench = Bench::new(&[1, 2, 3], true);
    bench.accepted(0);
    bench.token(0, 0, "one ");
    bench.input(Input::Closed(AttemptId(0), Closed::Ended));
    bench.error(1, ErrorCode::Unsupported);
    assert_eq!((bench.opened.len(), bench.opened[2].1), (3, 3));
    bench.peers = vec![2];
    bench.error(2, ErrorCode::EngineFailed);
    // The one that declined is not asked again.
    assert_eq!(bench.opened.len(), 3);
    bench.pass(unamesh_proto::timeouts::WAIT_FOR_PEER);
    assert!(matches!(
        bench.last(),
        Output::Failed(Failure::Interrupted { .. })
    ));
}

/// A backup that continues from text is as inexact after its stream has moved to another path.
#[test]
fn a_backup_on_another_path_is_as_exact_as_it_was() {
    for (exact, seam) in [(true, Seam::Exact), (false, Seam::Continued)] {
        for fresh in [true, false] {
            let mut bench = Bench::new(&[1, 2], true);
            bench.accepted(0);
            bench.token(0, 0, "one ");
            bench.input(Input::Closed(AttemptId(0), Closed::Ended));
            bench.accepted_as(1, exact);
            let mut id = 2;
            if fresh {
                bench.pass(SILENCE_MIN + Duration::from_millis(1));
                id = bench.fresh[0].0.0;
                bench.input(Input::Opened(AttemptId(id)));
                bench.accepted_as(id, exact);
            } else {
                bench.input(Input::Closed(AttemptId(1), Closed::Lost("path".into())));
            }
            bench.token(id, 1, "two");
            assert_eq!(bench.seam(), Some(seam), "fresh path: {fresh}");
        }
    }
}
