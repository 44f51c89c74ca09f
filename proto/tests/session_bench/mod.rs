//! A session on a clock that only the test moves, with peers that do as they are told.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::time::Duration;
use unamesh_proto::rank::{Candidate, Cost};
use unamesh_proto::session::{AttemptId, Config, Effect, How, Input, Note, Output, Seam, Session};
use unamesh_proto::stalls::Bounds;
use unamesh_proto::wire::{
    Accepted, Chunk, Done, ErrorCode, FinishReason, GenFrame, Phase, Progress, Token, Usage,
    WireError,
};
use unamesh_proto::{GenerationId, Mono, NodeId};

/// A session on a clock that only the test moves.
pub struct Bench {
    pub session: Session,
    pub now: Mono,
    pub peers: Vec<u8>,
    /// The peers that have the model on two engines.
    pub twofold: Vec<u8>,
    /// What was opened: at whom, on which engine.
    pub engines: Vec<(u8, u16)>,
    pub opened: Vec<(AttemptId, u8, How)>,
    pub reset: Vec<AttemptId>,
    /// Fresh paths that were asked for and are not given up; they open when the test says so.
    pub fresh: Vec<(AttemptId, How)>,
    pub outputs: Vec<Output>,
    pub notes: Vec<Note>,
    pub hedges: u32,
    pub asked: u32,
}

impl Bench {
    pub fn new(peers: &[u8], spliceable: bool) -> Bench {
        let config = Config {
            spliceable,
            ..Config::default()
        };
        let mut bench = Bench {
            session: Session::new(config, Mono::ZERO),
            now: Mono::ZERO,
            peers: peers.to_vec(),
            twofold: Vec::new(),
            engines: Vec::new(),
            opened: Vec::new(),
            reset: Vec::new(),
            fresh: Vec::new(),
            outputs: Vec::new(),
            notes: Vec::new(),
            hedges: 3,
            asked: 0,
        };
        bench.drain();
        bench
    }

    pub fn drain(&mut self) {
        while let Some(effect) = self.session.poll() {
            match effect {
                Effect::Rank => {
                    let ranked = self.candidates();
                    self.session.handle(Input::Candidates(ranked), self.now);
                }
                Effect::Open {
                    attempt,
                    how: how @ How::Reattach { .. },
                    ..
                } => self.fresh.push((attempt, how)),
                Effect::Open {
                    attempt,
                    node,
                    engine,
                    how,
                    ..
                } => {
                    self.engines.push((node.0[0], engine));
                    self.opened.push((attempt, node.0[0], how));
                    self.session.handle(Input::Opened(attempt), self.now);
                }
                Effect::Reset(attempt) => match self.fresh.iter().position(|f| f.0 == attempt) {
                    Some(at) => drop(self.fresh.remove(at)),
                    None => self.reset.push(attempt),
                },
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

    fn candidates(&self) -> Vec<Candidate> {
        let engines = |peer: &u8| 0..1 + u16::from(self.twofold.contains(peer));
        let all = self.peers.iter().flat_map(|peer| {
            engines(peer).map(|engine| Candidate {
                engine,
                ..candidate(*peer)
            })
        });
        all.collect()
    }

    pub fn input(&mut self, input: Input) {
        self.session.handle(input, self.now);
        self.drain();
    }

    pub fn frame(&mut self, attempt: u32, frame: GenFrame) {
        self.input(Input::Frame(AttemptId(attempt), frame));
    }

    pub fn accepted(&mut self, attempt: u32) {
        self.accepted_as(attempt, true);
    }

    /// `exact`: the prefix went in as token ids.
    pub fn accepted_as(&mut self, attempt: u32, exact: bool) {
        let accepted = Accepted {
            generation: GenerationId([attempt as u8; 16]),
            engine: 0,
            digest: "d".into(),
            exact,
        };
        self.frame(attempt, GenFrame::Accepted(accepted));
    }

    pub fn token(&mut self, attempt: u32, index: u32, text: &str) {
        self.piece(attempt, index, text, "");
    }

    /// A token with other fields of the engine's.
    pub fn piece(&mut self, attempt: u32, index: u32, text: &str, extra: &str) {
        let chunk = Chunk {
            text: text.into(),
            ids: vec![index],
            tokens: 1,
        };
        let extra = extra.into();
        self.frame(
            attempt,
            GenFrame::Token(Token {
                index,
                chunk,
                extra,
            }),
        );
    }

    pub fn done(&mut self, attempt: u32, frames: u32) {
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

    pub fn error(&mut self, attempt: u32, code: ErrorCode) {
        self.frame(attempt, GenFrame::Error(WireError::new(code, "said so")));
    }

    /// Lets time pass, waking the session whenever it asks for it.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.session.next_wake().filter(|at| *at <= end) {
            self.now = at.max(self.now + Duration::from_micros(1));
            self.input(Input::Wake);
        }
        self.now = end;
    }

    pub fn text(&self) -> String {
        let texts = self.outputs.iter().filter_map(|o| match o {
            Output::Token { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    pub fn last(&self) -> &Output {
        self.outputs.last().expect("an output")
    }

    /// The seam of the last change of peer.
    pub fn seam(&self) -> Option<Seam> {
        self.outputs.iter().rev().find_map(|o| match o {
            Output::PeerChanged { seam, .. } => Some(*seam),
            _ => None,
        })
    }

    pub fn prefix(&self, attempt: usize) -> String {
        match &self.opened[attempt].2 {
            How::Generate(prefix) => prefix.iter().map(|c| c.text.as_str()).collect(),
            How::Attach(_) | How::Reattach { .. } => panic!("an attach"),
        }
    }
}

pub fn candidate(peer: u8) -> Candidate {
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

pub fn generating() -> GenFrame {
    GenFrame::Progress(Progress {
        phase: Phase::Generating,
        done: 0,
        total: 0,
    })
}
