//! A spoken conversation, turn by turn: what is heard, thought and said, and when.
//!
//! Driven as [`crate::speech::speak`]: `turns.handle(input, now)`, then `while let Some(effect) =
//! turns.poll()`; [`Turns::next_wake`] says when to hand it [`Input::Wake`]. Sound itself never
//! comes here: the driver asks [`Turns::next_sound`] whose it may hand out, and tells that it did.
//!
//! ```text
//!            Began        Silence, Partial: StartThinking      Final: the same text
//!  listening ─────► hearing ──────────────────► guessing ──────────────► answering ──► listening
//!                    ▲  │ Began: StopThinking,     │                       │   │ all was played:
//!                    │  └──◄───────────────────────┘                       │   │ TurnDone
//!                    │ Final of another text: StopThinking, think anew ──► │   │
//!                    └──────────── voice for BARGE_IN, or the caller ◄─────┘ ◄─┘
//!                                  StopSpeaking, StopThinking, BargedIn
//! ```
//! - **A guess.** After a little silence the recognizer says what it has; the language model begins
//!   with that, and speech with its first words. All of it is held back until the silence is
//!   confirmed by the final transcript. If that differs, or speech goes on, the guess is dropped.
//! - **Generations.** Every start of thinking has a new number, which all that follows from it
//!   carries. What comes from an older one is ignored.
//! - **One voice at a time.** An answer's pieces are spoken in their order, the next one opened while
//!   one is heard. There is never more than one answer.
//! - **Barge-in.** The user's voice for [`BARGE_IN`](crate::timeouts::BARGE_IN), or the caller, ends
//!   an answer at once. Of it stays in the history what was played, in whole words.
//! - **The ear's clock.** Sound is handed out [`Config::ahead`] of it at most: what was handed out
//!   is about what was heard, and little is left to fall silent.
//! - **Exactly one end.** A turn begins with [`Output::Heard`] (or [`Input::Typed`]) and ends with
//!   [`Output::TurnDone`] or [`Output::BargedIn`]. [`Output::Failed`] reports a stage, and ends none:
//!   without thoughts, what was thought is said; without a voice, the answer goes on as text.
//!
//! Transitions start in the one `match` of [`Turns::handle`] (`machine.rs`). What is heard is
//! `ear.rs`; an answer from its first token to its last sample `answer.rs`; what was said so far
//! `history.rs`; when what happened `timeline.rs`.

mod answer;
mod ear;
mod history;
mod machine;
mod timeline;

pub use history::{Message, Role};
pub use machine::Turns;
pub use timeline::{Engines, Overlap, Timeline};

use crate::ids::NodeId;
use crate::timeouts::PLAYOUT;
use std::time::Duration;

/// Samples of a millisecond of the microphone.
pub const MIC_SAMPLES_PER_MS: u64 = 16;

/// How a conversation is held; fixed for its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// What was said before, a system message first.
    pub history: Vec<Message>,
    /// The agent finds an utterance's end; else the caller says it ([`Input::EndUtterance`]).
    pub agent_ends: bool,
    /// Answers are spoken; else they are text.
    pub aloud: bool,
    /// So much sound is handed out before it is due.
    pub ahead: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            history: Vec::new(),
            agent_ends: true,
            aloud: true,
            ahead: PLAYOUT,
        }
    }
}

/// A part of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Speech to text.
    Hear,
    /// The language model.
    Think,
    /// Text to speech.
    Speak,
}

/// Names an answer; grows with every one.
pub type Generation = u32;

/// What happened. `E` is the driver's error.
#[derive(Debug)]
pub enum Input<E> {
    /// So much more sound of the microphone is there: samples at 16 kHz. All goes into the hearing
    /// that is open and not ended, or is kept for the next.
    Pushed(usize),
    /// The caller says that the utterance is over.
    EndUtterance,
    /// The user typed instead of speaking.
    Typed(String),
    /// The caller wants the answer to end.
    BargeIn,
    /// Of the hearing with this number.
    Hear(u32, Heard<E>),
    /// Of the thinking of this generation.
    Think(Generation, Thought<E>),
    /// Of this generation's piece.
    Speak(Generation, usize, Spoken<E>),
    /// The time of [`Turns::next_wake`] has come.
    Wake,
}

/// What a recognizer said.
#[derive(Debug)]
pub enum Heard<E> {
    /// Somebody began to speak, so many milliseconds after the hearing's start.
    Began {
        /// Milliseconds of sound.
        at_ms: u32,
    },
    /// Nobody has spoken for so long.
    Silence(Duration),
    /// What was understood so far.
    Partial(String),
    /// What was said. The last.
    Final {
        /// Who understood it.
        node: NodeId,
        /// All of it; may be empty.
        text: String,
        /// Of so many samples: what came after them belongs to the next utterance.
        samples: u64,
    },
    /// There will be no transcript. The last.
    Failed {
        /// Why.
        error: E,
        /// The best that was understood; may be empty.
        partial: String,
    },
}

/// What a language model said.
#[derive(Debug)]
pub enum Thought<E> {
    /// The first token is about to come from this peer.
    Started(NodeId),
    /// The next piece of the answer.
    Token(String),
    /// The answer is complete. The last.
    Done,
    /// It will not be. The last.
    Failed {
        /// Why.
        error: E,
        /// There is too much history for every context: less may do.
        too_long: bool,
    },
}

/// What became of a piece of an answer.
#[derive(Debug)]
pub enum Spoken<E> {
    /// The first sound is about to come.
    Started,
    /// So much was handed out.
    Taken {
        /// Samples at 24 kHz.
        samples: usize,
        /// With it, the piece was said up to this character.
        said: u32,
    },
    /// All of it was handed out. The last.
    Done,
    /// The rest will not be spoken. The last.
    Failed(E),
}

/// What the driver must do.
#[derive(Debug, PartialEq)]
pub enum Effect<E> {
    /// Open a hearing.
    StartHearing {
        /// Its number.
        hearing: u32,
        /// It gets so many of the latest samples at once.
        samples: u64,
    },
    /// Tell it that the utterance is over.
    EndHearing(u32),
    /// Drop it.
    StopHearing(u32),
    /// Ask the language model.
    StartThinking {
        /// For all that follows.
        generation: Generation,
        /// What was said so far.
        messages: Vec<Message>,
    },
    /// Drop the request.
    StopThinking(Generation),
    /// Have a piece spoken, beside those that are.
    Say {
        /// Of which answer.
        generation: Generation,
        /// 0, 1, 2, ...
        piece: usize,
        /// What the engine is given.
        text: String,
    },
    /// Drop all pieces and what is queued of them.
    StopSpeaking(Generation),
    /// Hand this to the caller.
    Emit(Output<E>),
}

/// What the caller gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Output<E> {
    /// Somebody began to speak; perhaps it is but a noise. Once an utterance.
    SpeechBegan,
    /// What was understood so far; it replaces the one before.
    Partial(String),
    /// There were no words in it.
    NothingHeard,
    /// What was said. A turn begins.
    Heard {
        /// All of it.
        text: String,
        /// Who understood it.
        node: NodeId,
    },
    /// This peer answers.
    Thinking(NodeId),
    /// The next piece of the answer.
    Text(String),
    /// The answer is complete, and was played. The turn ends.
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
    /// The answer was broken off. The turn ends.
    BargedIn {
        /// What stays in the history.
        played: String,
        /// When what happened.
        timeline: Timeline,
    },
    /// A stage failed; see the module's documentation for what becomes of the turn.
    Failed {
        /// Which.
        stage: Stage,
        /// Why.
        error: E,
        /// Of hearing: the best that was understood.
        partial: String,
    },
}
