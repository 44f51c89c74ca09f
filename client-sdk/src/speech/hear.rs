//! What can be heard, and what is told of it.

use crate::client::{ClientError, PeerRef};
use unamesh_proto::wire::{Phase, Word};

/// How an utterance is to be transcribed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hear {
    /// The model's name; empty = any that transcribes.
    pub model: String,
    /// BCP 47; empty = the engine finds out.
    pub language: String,
    /// What was said before, or names that will be: at most
    /// [`MAX_HEAR_PROMPT`](unamesh_proto::limits::MAX_HEAR_PROMPT) bytes.
    pub prompt: String,
    /// The conversation, so that it stays with the peer that listened before; 0 = none.
    pub session: u64,
    /// Provisional transcripts are wanted.
    pub partials: bool,
    /// After so many milliseconds of silence the agent ends the utterance; 0 =
    /// [`Hearing::end`](super::Hearing::end) does.
    pub vad_ms: u16,
}

/// What a [`Hearing`](super::Hearing) yields. Exactly one of `Final` and `Failed` comes, last.
#[derive(Clone, Debug)]
pub enum HearEvent {
    /// Somebody listens.
    Started {
        /// Who.
        peer: PeerRef,
        /// Why it was chosen.
        why: String,
    },
    /// Nothing was understood yet.
    Progress {
        /// What the engine does.
        phase: Phase,
    },
    /// Somebody began to speak.
    Began {
        /// Then, from the utterance's start.
        at_ms: u32,
    },
    /// Nobody has spoken for a while.
    Silence {
        /// For so long.
        ms: u32,
    },
    /// The utterance is as long as one may be, and ends here: the transcript is of what there is,
    /// and what is pushed from now on is for another one.
    Full {
        /// So much of it is kept, from the utterance's start.
        at_ms: u32,
    },
    /// What was understood so far; it replaces the one before.
    Partial {
        /// All of it.
        text: String,
    },
    /// Another peer listens on; it was told all that was said.
    PeerChanged {
        /// Who listened until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// Why.
        reason: String,
    },
    /// The transcript.
    Final {
        /// All that was said; may be empty.
        text: String,
        /// BCP 47, or empty if the engine does not say.
        language: String,
        /// Where the engine tells them.
        words: Vec<Word>,
        /// 0..=1, where the engine tells it.
        confidence: Option<f32>,
        /// Who made it.
        peer: PeerRef,
    },
    /// There will be none.
    Failed {
        /// Why.
        error: ClientError,
        /// The best that was understood; may be empty.
        partial: String,
    },
}
