//! One utterance, from its first dial to its one transcript: the failover machine.
//!
//! Driven as [`crate::speech::speak`]. The microphone's frames are handed in as they come, before
//! anybody is found; they are kept until the transcript is there, and whoever is asked gets all of
//! them.
//!
//! ```text
//!             Opened: all frames so far          Final
//!   start ────────────────────────────► hearing ───────► ended
//!     │ no candidate                      │ ▲
//!     ▼                                   │ │ the backup hears all, then the same live frames:
//!   ended (NoPeer)                        │ │ the first transcript counts
//!          gone ──────────► nobody hears ─┼─┤ nobody within WAIT_FOR_PEER:
//!          silent, stalled ► + backup ────┼─┘ ended (Interrupted, with the best partial)
//!          draining ───────► + backup ────┘
//! ```
//! - **Sound is never lost.** Live frames go as datagrams; what went before a peer accepted, what
//!   it misses ([`crate::wire::Missing`]) and the tail go on its stream. A frame may arrive twice,
//!   never under another number.
//! - **Partials are provisional**, and come from one peer at a time. A backup's are shown once the
//!   one before it is gone or in doubt, and only if they say more than nothing.
//! - **Exactly one end**: the first transcript of the whole utterance, or an error that carries
//!   the best partial: the longest of those heard last from each peer.
//! - A transcript of fewer frames than there are is wrong (the peer did not hear all), unless the
//!   peer was asked to find the end itself ([`Config::agent_ends`]).
//! - Before the end of the utterance no engine stalls: perhaps nobody speaks. After it a
//!   recognizer may take half as long as the speech lasted, if nothing else is known; and so it may
//!   when its agent says that it works, which it does in a pause, or since the agent found the end.

mod machine;

pub use machine::Hear;

use super::Failure;
use super::crew::Act;
use crate::ids::NodeId;
use crate::rank::Candidate;
use crate::session::{AttemptId, Closed, Note, Reason, Silence};
use crate::wire::{HearFrame, Phase, Transcript};
use std::ops::Range;
use std::time::Duration;

/// How an utterance is heard; fixed for its life.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Its number on the wire.
    pub utterance: u32,
    /// The agent finds its end (`vad_ms` is not 0): a transcript may be of fewer frames, and come
    /// before [`Input::End`].
    pub agent_ends: bool,
    /// In-stream silence learned per peer in earlier streams (see [`Silence`]).
    pub silence: Vec<(NodeId, Silence)>,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The ranking, best first: the answer to [`Effect::Rank`], or news while
    /// [`Hear::is_waiting`].
    Candidates(Vec<Candidate>),
    /// The next 20 ms of sound, as Opus.
    Sound(Vec<u8>),
    /// The utterance is over.
    End,
    /// The attempt's request is on its way.
    Opened(AttemptId),
    /// A frame came.
    Frame(AttemptId, HearFrame),
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
    /// The time of [`Hear::next_wake`] has come.
    Wake,
    /// The caller wants no more.
    Cancel,
    /// The program that asks ends: so does the utterance, with the best partial.
    Leave,
}

/// What the driver must do. Frames are read by [`Hear::sound`].
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Rank the peers and hand in [`Input::Candidates`].
    Rank,
    /// Ask whether a backup may work beside an engine that only looks hung
    /// ([`crate::hedge::Hedges::take`]); for yes, hand in [`Input::Hedge`].
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
    },
    /// Send these frames on the attempt's stream.
    Send(AttemptId, Range<u32>),
    /// Send the datagram whose newest frame is this to the attempt's peer.
    Live(AttemptId, u32),
    /// Send [`crate::wire::UtteranceEnd`] on the attempt's stream.
    End(AttemptId, u32),
    /// Reset the attempt's stream: the peer stops its engine.
    Reset(AttemptId),
    /// Hand this to the caller.
    Emit(Output),
    /// For logs and statistics.
    Note(Note),
}

impl From<Act> for Effect {
    fn from(act: Act) -> Self {
        match act {
            Act::Rank => Effect::Rank,
            Act::Hedge => Effect::Hedge,
            Act::Reset(id) => Effect::Reset(id),
            Act::Note(note) => Effect::Note(note),
        }
    }
}

/// What the caller gets. Exactly one of `Final` and `Failed` comes, last.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Somebody listens. Once.
    Started {
        /// Who.
        node: NodeId,
        /// Why it was chosen.
        why: String,
    },
    /// Nothing was understood yet; what the engine does.
    Progress(Phase),
    /// What was understood so far; it replaces the one before.
    Partial(String),
    /// Somebody began to speak, in this frame.
    Began(u32),
    /// Nobody has spoken for so long.
    Silence(Duration),
    /// The utterance is as long as one may be: end it. This frame was not taken.
    Full,
    /// Another peer goes on.
    PeerChanged {
        /// Who listened until now.
        from: NodeId,
        /// Who goes on.
        to: NodeId,
        /// Why.
        reason: Reason,
    },
    /// The transcript.
    Final {
        /// Who made it.
        node: NodeId,
        /// What was said.
        transcript: Transcript,
    },
    /// There will be none.
    Failed {
        /// Why.
        failure: Failure,
        /// The best that was understood; may be empty.
        partial: String,
    },
}
