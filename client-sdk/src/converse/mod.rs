//! A spoken conversation with the mesh: sound in, sound out, and a history between them.
//!
//! A [`Conversation`] is a stream that its caller pulls, as a [`Generation`](crate::driver) is:
//! nothing is spawned, dropping it stops everything down to the engines. Each stage (speech to
//! text, language model, text to speech) runs on its own best peer and survives that peer's death
//! as it does alone. What is done when is decided by `unamesh_proto::speech::turn`: guesses while
//! the user pauses, barge-in, what stays in the history. The state is here, in the client:
//! whichever agent dies, the conversation goes on; and [`Conversation::history`] is all that a new
//! one needs to go on with.
//!
//! **Sound comes at the ear's pace**: [`TurnEvent::Pcm`] is given out [`ConverseConfig::ahead`] of
//! it at most. So pull all events at once, play sound as it comes, and drop what the device holds
//! at [`TurnEvent::BargedIn`].
//!
//! **Warm-up.** When it opens, the likeliest peers of all three stages are dialed, and again
//! whenever somebody begins to speak. With [`ConverseConfig::warm_up`] the language model reads the
//! history once: that loads it, and fills its cache; each request keeps it loaded as its engine is
//! used to. The best peers to listen and to speak are asked to load their models and to keep them,
//! by leases that last as long as the conversation.

mod shell;
mod warm;

pub use shell::Conversation;
pub use unamesh_proto::speech::turn::{Engines, Message, Overlap, Role, Stage, Timeline};

use crate::client::{ClientError, MeshClient, PeerRef};
use crate::speech::{Hear, Say};
use std::time::Duration;
use unamesh_proto::timeouts::{END_SILENCE, PLAYOUT};
use unamesh_proto::wire::Sampling;

/// How a conversation is held.
#[derive(Clone, Debug)]
pub struct ConverseConfig {
    /// The language model's name.
    pub model: String,
    /// What the language model is told first; empty = nothing. Ignored if `history` begins with a
    /// system message.
    pub system: String,
    /// What was said before.
    pub history: Vec<Message>,
    /// How to sample.
    pub sampling: Sampling,
    /// A JSON object of other fields for the language model's engine; empty = none.
    pub extra: String,
    /// If nobody with the same language model can go on, one of another name may.
    pub other_model: bool,
    /// How to listen. Its `vad_ms`, `session` and `partials` are set by the conversation.
    pub stt: Hear,
    /// How to speak; its `text` and `session` are set by the conversation. `None`: answers are
    /// text. A voice that is left open is kept once somebody has spoken.
    pub voice: Option<Say>,
    /// After so much silence an utterance is over; zero: [`Conversation::end_utterance`] says when.
    pub silence: Duration,
    /// So much sound is given out before it is due: what the player needs to bridge its own delays.
    pub ahead: Duration,
    /// The language model reads the history before the first turn, and the models that listen and
    /// speak are kept warm from then on.
    pub warm_up: bool,
    /// The conversation's number, by which it returns to the peers that know it; 0 = a new one.
    pub session: u64,
}

impl ConverseConfig {
    /// A conversation with this language model, in any voice.
    pub fn new(model: impl Into<String>) -> Self {
        ConverseConfig {
            model: model.into(),
            system: String::new(),
            history: Vec::new(),
            sampling: Sampling::default(),
            extra: String::new(),
            other_model: false,
            stt: Hear::default(),
            voice: Some(Say::new("")),
            silence: END_SILENCE,
            ahead: PLAYOUT,
            warm_up: true,
            session: 0,
        }
    }
}

/// What a [`Conversation`] yields; it never ends by itself.
///
/// A turn begins with `Heard` (or [`Conversation::text`]) and ends with exactly one of `TurnDone`
/// and `BargedIn`. `Failed` ends none: the turn goes on with what is left.
#[derive(Clone, Debug)]
pub enum TurnEvent {
    /// The warm-up is over, however it went. Turns may begin before it.
    Ready,
    /// Somebody began to speak; perhaps it is but a noise. Once an utterance.
    SpeechBegan,
    /// What was understood so far; it replaces the one before.
    Partial {
        /// All of it.
        text: String,
    },
    /// There were no words in it, or no more than a murmur into the answer.
    NothingHeard,
    /// What was said: a turn begins.
    Heard {
        /// All of it.
        text: String,
        /// Who transcribed it.
        peer: PeerRef,
    },
    /// The language model's first token is about to come.
    Thinking {
        /// From whom.
        peer: PeerRef,
    },
    /// The next piece of the answer.
    Text {
        /// It.
        text: String,
    },
    /// The answer's first sound comes next.
    Speaking {
        /// From whom.
        peer: PeerRef,
        /// In which voice; empty if the engine does not name it.
        voice: String,
    },
    /// The next sound: mono, 24 kHz, at most 20 ms.
    Pcm(Vec<i16>),
    /// Another peer goes on.
    PeerChanged {
        /// With what.
        stage: Stage,
        /// Who did it until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// Of speech: it goes on in the same voice.
        same_voice: bool,
        /// Why.
        reason: String,
        /// From the last output to the first of the other peer; zero where nothing was due.
        gap: Duration,
    },
    /// The answer is complete and was played: the turn ends.
    TurnDone {
        /// What was said or typed.
        heard: String,
        /// All that was answered.
        answer: String,
        /// What stays in the history.
        played: String,
        /// When what happened.
        timeline: Timeline,
    },
    /// The answer was broken off: the turn ends. Drop the sound that was not played yet.
    BargedIn {
        /// What stays in the history: what was given out, in whole words.
        played: String,
        /// When what happened.
        timeline: Timeline,
    },
    /// A stage failed. Hearing: the utterance is lost but for `partial`, and the next is tried.
    /// Thinking: what there is of the answer is said. Speaking: the answer goes on as text.
    Failed {
        /// Which.
        stage: Stage,
        /// Why.
        error: ClientError,
        /// Of hearing: the best that was understood; may be empty.
        partial: String,
    },
}

impl MeshClient {
    /// Opens a conversation. Nothing happens until the stream is polled.
    pub fn converse(&self, config: ConverseConfig) -> Conversation {
        Conversation::new(self.shared.clone(), config)
    }
}
