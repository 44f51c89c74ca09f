//! One spoken text, from its first dial to its one terminal event: the failover machine.
//!
//! Driven as `speak.handle(input, now)`, then `while let Some(effect) = speak.poll()`;
//! [`Speak::next_wake`] says when to hand it [`Input::Wake`]. It decides nothing about what the
//! sound is: it counts samples (24 kHz) and characters.
//!
//! ```text
//!             Open(from 0)                  Sound             Done
//!   start ──────────────────► trying ──────────────► speaking ──────► ended
//!     │ no candidate            │ refused, closed,     │  ▲
//!     ▼                         ▼ silent, stalled      │  │ the backup has sound of chunk R:
//!   ended (NoPeer, NoVoice)   trying (next)            │  │ Cut or Join
//!                                                      │  │
//!          gone ──────────► nobody speaks ─────────────┼──┤ nobody within WAIT_FOR_PEER:
//!          silent, stalled ► speaking + backup from R ─┼──┤ ended (Interrupted, NoVoice)
//!          draining ───────► speaking + backup from the next chunk: Cut at a boundary
//! ```
//!
//! *R* is the chunk that is not whole: the one that the lost stream was in. The rules:
//! - **A chunk is the unit.** Boundaries are the same at every agent ([`crate::wire`]'s
//!   `SpeakRequest`), every chunk decodes by itself, and what was received whole is kept.
//! - **Nothing played of R** (nor about to be, [`PLAYOUT`](crate::timeouts::PLAYOUT)): the
//!   caller drops it at [`Output::Cut`], and hears it from the backup.
//! - **R is being played:** the backup speaks it anew, and the caller joins both: it plays on to
//!   the end of what it has (`keep_until`) and looks near there for the same place in the new sound
//!   ([`Output::Join`]). Where that was it tells by [`Input::Joined`]; all that follows moves by it.
//! - It is decided when the backup's first sound is there, not before: until then the lead is
//!   played, and a suspect may go on after all.
//! - **A leaving peer speaks on.** Its backup begins at the next boundary, what it makes is held,
//!   and it takes over at the newest boundary that both have and of which nothing was played.
//! - **One voice.** A backup has the same one. Only if nobody has, and the caller allows it, goes
//!   another on; never because a peer merely drains.
//! - **The lead.** An agent may be [`Config::lead`] ahead of what was played, a backup too. One that
//!   has used it up is not stalled. One that exceeds it breaks the protocol.
//! - A gap in marks or packets, or a chunk whose packets are not those of its length, is a failure
//!   of the peer; so is an end at which a packet is missing.
//!
//! Against the plan this was built to: `Sound` has no timestamp and `SpokenMark`s are checked
//! against packets instead; `Played` travels with `Grant`; nothing is reattached to, since at most
//! one chunk is spoken twice.
//!
//! Transitions start in the one `match` of [`Speak::handle`] (`machine.rs`); who goes on, and
//! where, is `switch.rs`; what one peer sent `stream.rs`; what the caller has `timeline.rs`.

mod machine;
mod stream;
mod switch;
mod timeline;

pub use machine::Speak;

use super::Failure;
use super::crew::Act;
use crate::ids::NodeId;
use crate::rank::Candidate;
use crate::session::{AttemptId, Closed, Note, Reason, Silence};
use crate::timeouts::SPEECH_LEAD;
use crate::wire::{Grant, Phase, SpeakFrame};
use std::borrow::{Borrow, BorrowMut};
use std::time::Duration;

/// Samples of a millisecond.
pub const SAMPLES_PER_MS: u64 = 24;
/// Samples of a packet.
pub const PACKET: u64 = 20 * SAMPLES_PER_MS;

/// How a text is spoken; fixed for its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// The text.
    pub text: String,
    /// Another voice may speak (on) if nobody has the one asked for.
    pub other_voice: bool,
    /// How far ahead of what was played.
    pub lead: Duration,
    /// In-stream silence learned per peer in earlier streams (see [`Silence`]).
    pub silence: Vec<(NodeId, Silence)>,
}

impl Config {
    /// The text with the usual lead, in one voice.
    pub fn new(text: impl Into<String>) -> Self {
        Config {
            text: text.into(),
            other_voice: false,
            lead: SPEECH_LEAD,
            silence: Vec::new(),
        }
    }
}

/// A peer that can speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Who, and how soon.
    pub candidate: Candidate,
    /// The voice's name there; empty = the engine's default.
    pub voice: String,
    /// It is the voice asked for; once somebody spoke, that one ([`Speak::voice`]).
    pub same: bool,
}

impl Borrow<Candidate> for Speaker {
    fn borrow(&self) -> &Candidate {
        &self.candidate
    }
}

impl BorrowMut<Candidate> for Speaker {
    fn borrow_mut(&mut self) -> &mut Candidate {
        &mut self.candidate
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The ranking, best first: the answer to [`Effect::Rank`], or news while
    /// [`Speak::is_waiting`].
    Candidates(Vec<Speaker>),
    /// The attempt's request is on its way.
    Opened(AttemptId),
    /// A frame came.
    Frame(AttemptId, SpeakFrame),
    /// The attempt's stream is over. After a terminal frame this needs not be said.
    Closed(AttemptId, Closed),
    /// So many samples of the whole were played.
    Played(u64),
    /// The caller found the place of the latest [`Output::Join`], so many samples later (or
    /// earlier) than expected.
    Joined {
        /// What is added to every position from this chunk's start on.
        shift: i64,
    },
    /// The peer table says that this peer drains or left.
    PeerGoing(NodeId),
    /// The peer table says that this peer is down.
    PeerDown(NodeId),
    /// Yes to [`Effect::Hedge`]. For no, nothing is said.
    Hedge,
    /// Whether what comes from now on has lain unread, because the caller did not look for a
    /// while (at the start: no). When it came nobody knows, so it teaches nothing of its peer.
    Late(bool),
    /// The time of [`Speak::next_wake`] has come.
    Wake,
    /// The caller wants no more: barge-in.
    Cancel,
    /// The program that asks ends: so does the speech, with what was delivered.
    Leave,
}

/// What the driver must do.
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
        /// The voice's name there.
        voice: String,
        /// The first character to speak.
        from: u32,
        /// The lead to begin with, in milliseconds.
        grant_ms: u32,
    },
    /// Send it on the attempt's stream.
    Grant(AttemptId, Grant),
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

/// What the caller gets. Positions are samples of the whole. Exactly one of `Done` and `Failed`
/// comes, last.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The first sound is about to come, from this peer. Once.
    Started {
        /// Who speaks.
        node: NodeId,
        /// With which voice.
        voice: String,
        /// Why it was chosen.
        why: String,
    },
    /// No sound yet; what the engine does.
    Progress(Phase),
    /// The next chunk begins, with a fresh decoder.
    Chunk {
        /// Its first character.
        from: u32,
        /// Behind its last.
        to: u32,
        /// Where it begins.
        start: u64,
        /// Samples that the decoder gives before its first.
        pre_skip: u16,
    },
    /// The chunk's next packet.
    Sound(Vec<u8>),
    /// The chunk is whole: it has so many samples; what the decoder gave beyond (it filled the
    /// last packet) is dropped, unless the player ran dry and has played it.
    Whole {
        /// Samples of the chunk.
        samples: u64,
    },
    /// Forget all sound from here on: of that nothing was played, and it is spoken anew.
    Cut {
        /// The first sample that goes.
        at: u64,
    },
    /// The chunk that is being played is spoken anew with a fresh decoder, and to be joined near
    /// `keep_until`; the sample expected there is `keep_until - start` of the new sound. See
    /// [`Input::Joined`].
    Join {
        /// Its first character.
        from: u32,
        /// Behind its last.
        to: u32,
        /// Where it began.
        start: u64,
        /// Where the sound that is there ends.
        keep_until: u64,
        /// Samples that the decoder gives before its first.
        pre_skip: u16,
    },
    /// Another peer goes on.
    PeerChanged {
        /// Who spoke until now.
        from: NodeId,
        /// Who goes on.
        to: NodeId,
        /// With which voice.
        voice: String,
        /// It is the same.
        same_voice: bool,
        /// Why.
        reason: Reason,
        /// From the last sound to the first of the backup.
        gap: Duration,
        /// Sound that was not played yet then: what the gap was bridged with.
        lead: Duration,
    },
    /// All is there.
    Done {
        /// Samples in all.
        samples: u64,
    },
    /// It will not be completed.
    Failed {
        /// Why.
        failure: Failure,
        /// Up to this character the sound is whole.
        whole: u32,
    },
}

/// `duration` in samples.
fn samples(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 64) * SAMPLES_PER_MS / 1000
}

/// Samples as a duration.
fn duration(samples: u64) -> Duration {
    Duration::from_micros(samples.saturating_mul(1000) / SAMPLES_PER_MS)
}

/// Whole milliseconds of `samples`.
fn millis(samples: u64) -> u32 {
    u32::try_from(samples / SAMPLES_PER_MS).unwrap_or(u32::MAX)
}
