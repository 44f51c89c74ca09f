//! One request, from its first dial to its one terminal event: the failover machine.
//!
//! The machine is driven as `session.handle(input, now)`, then `while let Some(effect) =
//! session.poll()`; [`Session::next_wake`] says when to hand it [`Input::Wake`]. It performs
//! nothing itself.
//!
//! ```text
//!              Open(first)                     Token            Done
//!   start ───────────────────► trying ───────────────► streaming ───────► ended
//!     │ no candidate             │ refused, closed,       │  ▲  │
//!     ▼                          │ silent, stalled        │  │  │ closed, failed
//!   ended (NoPeer)               ▼                        │  │  ▼
//!                              trying (next candidate)    │  │ recovering ── nobody within
//!                                                         │  │  │            WAIT_FOR_PEER,
//!          suspect: silence, stall, draining              │  │  │            or not spliceable
//!          ┌──────────────────────────────────────────────┘  │  ▼
//!          ▼                    first to produce goes on     │ ended (Interrupted, Incomplete)
//!   streaming + backup ──────────────────────────────────────┘
//! ```
//!
//! At most two attempts run at a time: the one that produces (*current*) and a backup. The
//! rules that keep an answer exact:
//! - Every token carries its index. An attempt must send indices without a gap from the
//!   prefix that it was given; anything else is a failure of its peer.
//! - Whoever sends the token at the first undelivered index goes on; the other is reset. A
//!   backup of a leaving peer starts from a shorter prefix: it takes over if it catches up and
//!   its overlap equals what was delivered, and is otherwise asked again (`handover.rs`).
//! - A chunk without text (half a character, half a stop sequence) is held until text follows,
//!   and dropped at a seam: the next engine makes it again. So a stop sequence or a character
//!   that straddles the seam is neither cut nor doubled. (Text that may begin a stop sequence
//!   is held by the agent, see [`crate::stops`].)
//! - A silent attempt is also asked for over another connection to the same peer: it is one
//!   generation with one numbering, whichever path its tokens take (`fresh.rs`).
//! - A piece without text but with other fields (reasoning, half a tool call) is in no prefix:
//!   an answer that breaks off after one ends as `Incomplete`. So does one that breaks off
//!   anywhere after the first piece of a tool call; until then, an answer to a request with
//!   tools is text like any other.
//! - The end is checked too: a `Done` whose frame count is not what arrived is a failure.
//!
//! Every transition starts in the one `match` of [`Session::handle`] (`machine.rs`); what it
//! calls is in `frames.rs`, `failure.rs`, `suspicion.rs`, `fresh.rs` and `handover.rs`, the times
//! are in `deadline.rs`.

pub(crate) mod attempt;
mod deadline;
mod failure;
mod frames;
mod fresh;
mod handover;
mod machine;
mod silence;
mod suspicion;
pub(crate) mod tried;

pub use attempt::AttemptId;
pub use machine::Session;
pub use silence::Silence;

use crate::ids::NodeId;
use crate::rank::Candidate;
use crate::stalls::Observed;
use crate::time::Mono;
use crate::wire::{Attach, Chunk, ErrorCode, FinishReason, GenFrame, Phase, Usage, WireError};
use std::time::Duration;

/// How a session behaves; fixed for its life.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The answer may be continued by another engine after its first token, until it calls a
    /// tool. False for structured output and for tool calls that are asked for by name, which
    /// are restarted or end as `Incomplete`.
    pub spliceable: bool,
    /// In-stream silence learned per peer in earlier streams (see [`Silence`]).
    pub silence: Vec<(NodeId, Silence)>,
    /// Tokens of the prompt, by which first tokens are compared; an estimate will do.
    pub prompt_tokens: u32,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The ranking, best first: the answer to [`Effect::Rank`], or news while
    /// [`Session::is_waiting`].
    Candidates(Vec<Candidate>),
    /// The attempt's request is on its way.
    Opened(AttemptId),
    /// A frame came.
    Frame(AttemptId, GenFrame),
    /// The attempt's stream is over. After a terminal frame this needs not be said.
    Closed(AttemptId, Closed),
    /// The peer table says that this peer drains or left.
    PeerGoing(NodeId),
    /// The peer table says that this peer is down.
    PeerDown(NodeId),
    /// Yes to [`Effect::Hedge`]. For no, nothing is said.
    Hedge,
    /// Whether what comes from now on has lain unread, because the caller did not look for a
    /// while (at the start: no). When it came nobody knows, so it teaches nothing of its peer.
    Late(bool),
    /// The time of [`Session::next_wake`] has come.
    Wake,
    /// The caller wants no more.
    Cancel,
    /// The program that asks ends: so does the answer, with what was delivered.
    Leave,
}

/// How a stream ended without a terminal frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// No path answered; nothing was sent.
    Unreachable(String),
    /// The connection broke; the generation may still run there.
    Lost(String),
    /// The peer broke the protocol.
    Protocol(String),
    /// The stream ended early.
    Ended,
    /// The peer refused the stream.
    Refused(WireError),
}

impl Closed {
    /// Why the attempt is over; what the peer answered is an error.
    pub(crate) fn reason(self) -> Result<Reason, WireError> {
        match self {
            Closed::Unreachable(_) => Ok(Reason::Unreachable),
            Closed::Lost(_) => Ok(Reason::Lost),
            Closed::Protocol(_) => Ok(Reason::Protocol),
            Closed::Ended => Ok(Reason::EndedEarly),
            Closed::Refused(error) => Err(error),
        }
    }
}

/// What the driver must do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Rank the peers and hand in [`Input::Candidates`].
    Rank,
    /// Ask whether a backup may work beside an engine that only looks hung
    /// ([`crate::hedge::Hedges::take`]); for yes, hand in [`Input::Hedge`]. Asked again after a
    /// no, as long as there is need.
    Hedge,
    /// Open a stream.
    Open {
        /// For the inputs that concern it.
        attempt: AttemptId,
        /// At whom.
        node: NodeId,
        /// The engine there.
        engine: u16,
        /// The model's name there.
        model: String,
        /// What to send.
        how: How,
    },
    /// Reset the attempt's stream: the peer stops its engine.
    Reset(AttemptId),
    /// Hand this to the caller.
    Emit(Output),
    /// For logs and statistics.
    Note(Note),
}

/// What an attempt's stream starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// A new generation after this prefix.
    Generate(Vec<Chunk>),
    /// The rest of one that runs there.
    Attach(Attach),
    /// The same over a connection that is younger than the last frame of the one in use.
    Reattach {
        /// Of what.
        attach: Attach,
        /// When that frame came.
        heard: Mono,
    },
}

/// Whether the new engine continued from the very same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seam {
    /// The same generation, or the same weights with the prefix replayed as token ids.
    Exact,
    /// The same model by name, the prefix replayed as text; or one whose weights are not known
    /// to be the same.
    Continued,
    /// A model of another name, which the caller allowed.
    OtherModel,
}

impl Seam {
    /// As it stands in JSON, headers and logs.
    pub fn name(self) -> &'static str {
        match self {
            Seam::Exact => "exact",
            Seam::Continued => "continued",
            Seam::OtherModel => "other_model",
        }
    }
}

/// What the caller gets. Exactly one of `Done` and `Failed` comes, last.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The first output is about to come, from this peer. Once, before any `Token`.
    Started {
        /// Who answers.
        node: NodeId,
        /// On which engine.
        engine: u16,
        /// Why it was chosen.
        why: String,
    },
    /// Nothing to deliver yet; what the engine does.
    Progress {
        /// Doing what.
        phase: Phase,
        /// Of `total`.
        done: u32,
        /// 0 = unknown.
        total: u32,
    },
    /// The next piece.
    Token {
        /// 0, 1, 2, ... without a gap.
        index: u32,
        /// The piece's text.
        text: String,
        /// Tokens behind it.
        tokens: u32,
        /// JSON of the engine's other delta fields, or empty.
        extra: String,
    },
    /// Another peer goes on.
    PeerChanged {
        /// Who answered until now.
        from: NodeId,
        /// Who goes on: perhaps the same, on another engine.
        to: NodeId,
        /// On which engine.
        engine: u16,
        /// How well the parts fit.
        seam: Seam,
        /// From the last token of `from` to the first of `to`.
        gap: Duration,
        /// Of it: from the dispatch of the backup to its first token.
        backup_ttft: Duration,
        /// Why.
        reason: Reason,
    },
    /// The whole answer is there.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// Tokens.
        usage: Usage,
    },
    /// It will not be completed.
    Failed(Failure),
}

/// Why a request failed. `Interrupted` and `Incomplete` come after output was delivered; the
/// caller has that output already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody can serve it: nothing was delivered.
    NoPeer,
    /// Everybody who could is busy: nothing was delivered.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// Refused as every peer would or did: nothing was delivered.
    Refused(WireError),
    /// Broken off, and nobody could go on.
    Interrupted {
        /// The last reason.
        reason: Reason,
    },
    /// Broken off, and it must not be spliced (structured output, tool calls) or cannot be
    /// (within its reasoning).
    Incomplete {
        /// The last reason.
        reason: Reason,
    },
    /// The caller cancelled.
    Cancelled,
}

/// Why an attempt was suspected or given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Dialing takes too long.
    DialSlow,
    /// No path answered.
    Unreachable,
    /// No frame for longer than the path has shown.
    Silence,
    /// Frames, but no token for longer than this engine has shown.
    Stall,
    /// The connection broke.
    Lost,
    /// The stream ended without a terminal frame.
    EndedEarly,
    /// The peer broke the protocol (a gap, a wrong count, a malformed record).
    Protocol,
    /// The peer is leaving.
    Draining,
    /// The program that asks is leaving itself.
    Leaving,
    /// The peer or engine said so.
    Refused(ErrorCode),
}

impl Reason {
    /// Whether it speaks of one engine: its peer answers, and another engine there may do.
    pub(crate) const fn is_of_engine(&self) -> bool {
        match self {
            Reason::Stall => true,
            Reason::Refused(code) => code.is_of_engine(),
            _ => false,
        }
    }

    /// Its stable name, for scripts and counters.
    pub const fn name(&self) -> &'static str {
        match self {
            Reason::DialSlow => "dial_slow",
            Reason::Unreachable => "unreachable",
            Reason::Silence => "silence",
            Reason::Stall => "stall",
            Reason::Lost => "lost",
            Reason::EndedEarly => "ended_early",
            Reason::Protocol => "protocol",
            Reason::Draining => "draining",
            Reason::Leaving => "leaving",
            Reason::Refused(_) => "refused",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::DialSlow => "dialing took too long",
            Reason::Unreachable => "no path answered",
            Reason::Silence => "it fell silent",
            Reason::Stall => "its engine stalled",
            Reason::Lost => "the connection broke",
            Reason::EndedEarly => "its stream ended early",
            Reason::Protocol => "it broke the protocol",
            Reason::Draining => "it is leaving",
            Reason::Leaving => "the machine that asks is leaving",
            Reason::Refused(code) => return write!(f, "it answered {code}"),
        })
    }
}

/// What the machine decided, for logs, statistics and scores.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// A backup will be sought; the original is kept.
    Suspect {
        /// Of whom.
        node: NodeId,
        /// Why.
        reason: Reason,
        /// Since its last frame.
        silent: Duration,
    },
    /// A backup was dispatched.
    Backup {
        /// To whom.
        node: NodeId,
        /// After the last frame of the original.
        after: Duration,
        /// It works beside an engine that may only look hung: the owner's budget paid for it.
        hedge: bool,
    },
    /// The same generation goes on over a new connection to its peer.
    Reattached {
        /// Whose.
        node: NodeId,
        /// After the last token that was received before.
        after: Duration,
    },
    /// An attempt is over, by its own fault or not; also of a suspect that lost to its backup.
    AttemptFailed {
        /// Whose.
        node: NodeId,
        /// Its engine.
        engine: u16,
        /// Why.
        reason: Reason,
    },
    /// A stream went on to its proper end: this engine works.
    Succeeded {
        /// Whose.
        node: NodeId,
        /// Its engine.
        engine: u16,
    },
    /// A hedge that was granted took over or was not needed: [`crate::hedge::Hedges::refund`].
    HedgeRefund,
    /// A hedge that was dispatched is over, and its original went on (or both failed).
    HedgeInVain {
        /// At whom.
        node: NodeId,
    },
    /// What this stream showed of its engine, for [`crate::stalls::Stalls::learn`].
    Observed {
        /// Of whom.
        node: NodeId,
        /// The model's name there.
        model: String,
        /// How long it took.
        observed: Box<Observed>,
    },
    /// What this stream showed of the path's jitter, for the next session's
    /// [`Config::silence`].
    Learned {
        /// Of whom.
        node: NodeId,
        /// Updated.
        silence: Silence,
    },
}
