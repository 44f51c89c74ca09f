//! What can be said, and what is told of it.

use crate::client::{ClientError, PeerRef};
use std::time::Duration;
use unamesh_proto::timeouts::SPEECH_LEAD;
use unamesh_proto::wire::Phase;

/// A text to be spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    /// The model's name; empty = any that speaks.
    pub model: String,
    /// The voice's name, in any case; empty = any.
    pub voice: String,
    /// BCP 47; empty = the voice's.
    pub language: String,
    /// All that is to be spoken, at most
    /// [`MAX_SPEECH_TEXT`](unamesh_proto::limits::MAX_SPEECH_TEXT) bytes.
    pub text: String,
    /// In percent of the voice's own speed; 0 = 100.
    pub speed_percent: u16,
    /// A JSON object of other fields for the engine; empty = none.
    pub extra: String,
    /// The conversation, so that it stays with the peer that spoke before; 0 = none.
    pub session: u64,
    /// Another voice may speak (on) if no peer has this one.
    pub other_voice: bool,
    /// How far ahead of the ear peers may be: that much is kept here, and outlasts a failover.
    /// At least [`SPEECH_LEAD_MIN`](unamesh_proto::timeouts::SPEECH_LEAD_MIN).
    pub lead: Duration,
    /// The text is one piece, as a sentence is: it goes to the engine as a whole. Else its first
    /// words go alone, so that they are heard early.
    pub one_piece: bool,
}

impl Say {
    /// The text in any voice, which may change if its peer is lost.
    pub fn new(text: impl Into<String>) -> Self {
        Say {
            model: String::new(),
            voice: String::new(),
            language: String::new(),
            text: text.into(),
            speed_percent: 0,
            extra: String::new(),
            session: 0,
            other_voice: true,
            lead: SPEECH_LEAD,
            one_piece: false,
        }
    }
}

/// What a [`Speech`](super::Speech) yields. Exactly one of `Done` and `Failed` comes, last.
#[derive(Clone, Debug)]
pub enum SayEvent {
    /// The first sound is about to come.
    Started {
        /// From whom.
        peer: PeerRef,
        /// In which voice; empty if the engine does not name it.
        voice: String,
        /// Why it was chosen.
        why: String,
    },
    /// No sound yet.
    Progress {
        /// What the engine does.
        phase: Phase,
    },
    /// These characters (Unicode scalar values) are spoken from that sample on, until the next
    /// mark. It comes before its sound, and once more if another peer speaks it anew.
    Mark {
        /// The first.
        from: u32,
        /// Behind the last.
        to: u32,
        /// The sample (24 kHz), counted over all sound.
        at: u64,
    },
    /// The next sound: mono, 24 kHz, at most 20 ms. Taking it counts as playing it.
    Pcm(Vec<i16>),
    /// Another peer goes on.
    PeerChanged {
        /// Who spoke until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// In which voice.
        voice: String,
        /// It is the same.
        same_voice: bool,
        /// Why.
        reason: String,
        /// From the last sound received to the first of the other peer.
        gap: Duration,
        /// Sound that was there meanwhile; a gap within it was not heard.
        lead: Duration,
    },
    /// All was spoken, and taken.
    Done {
        /// Samples in all.
        samples: u64,
    },
    /// The rest will not be spoken; what was received was taken before, unless the caller
    /// cancelled.
    Failed(ClientError),
}
