//! Text generation: the request, its frames, reattachment.

use super::codec::{Class, DecodeError, Record, body, open_enum};
use super::error::WireError;
use crate::ids::GenerationId;
use bincode::{Decode, Encode};

open_enum! {
    /// What [`GenerateRequest::input`] holds.
    InputKind {
        /// A JSON array of OpenAI chat messages.
        Chat = 1 "chat",
        /// A raw prompt for completion.
        Text = 2 "text",
    }
}

open_enum! {
    /// What a silent engine is doing.
    Phase {
        /// Waiting for a slot; `done` requests of `total` are ahead.
        Queued = 1 "queued",
        /// The model is being loaded; `done`/`total` in percent where known.
        Loading = 2 "loading",
        /// The prompt is being read; `done` of `total` tokens where known.
        Prefilling = 3 "prefilling",
        /// Tokens are being made.
        Generating = 4 "generating",
    }
}

open_enum! {
    /// Why a generation ended.
    FinishReason {
        /// The model ended its answer, or a stop sequence came.
        Stop = 1 "stop",
        /// `max_tokens` or the context was used up.
        Length = 2 "length",
        /// The model called tools.
        ToolCalls = 3 "tool_calls",
        /// A filter of the engine ended it.
        ContentFilter = 4 "content_filter",
    }
}

/// How to sample. `None` leaves the engine's default.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Sampling {
    /// 0 = greedy; OpenAI's range is 0..=2.
    pub temperature: Option<f32>,
    /// Nucleus, 0..=1.
    pub top_p: Option<f32>,
    /// Top-k, 0 = off.
    pub top_k: Option<u32>,
    /// Minimum probability relative to the best, 0..=1.
    pub min_p: Option<f32>,
    /// Random seed.
    pub seed: Option<i64>,
    /// Tokens to make at most, the delivered prefix **included**; an agent subtracts it.
    pub max_tokens: Option<u32>,
    /// Stop sequences, at most [`crate::limits::MAX_STOPS`].
    pub stop: Vec<String>,
    /// -2..=2.
    pub presence_penalty: Option<f32>,
    /// -2..=2.
    pub frequency_penalty: Option<f32>,
    /// llama.cpp's and Ollama's, 1 = off.
    pub repeat_penalty: Option<f32>,
}

/// A piece of an answer as it was delivered: what a backup replays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Chunk {
    /// The text; may be empty (a special token, or half a character that the next completes).
    pub text: String,
    /// The engine's token ids behind it; empty where the engine gives none.
    pub ids: Vec<u32>,
    /// How many tokens the engine made for it (`ids` may cover fewer: llama.cpp streams no
    /// ids for the first bytes of a character that takes several tokens).
    pub tokens: u32,
}

/// Asks for text.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct GenerateRequest {
    /// The model's name as the engine knows it.
    pub model: String,
    /// The engine on the receiving agent (index in its advert); `u16::MAX` = any that has it.
    pub engine: u16,
    /// What `input` is.
    pub kind: InputKind,
    /// Messages (JSON) or a prompt.
    pub input: String,
    /// How to sample.
    pub sampling: Sampling,
    /// A JSON object with the request's other fields, handed to the engine as they are
    /// (`tools`, `response_format`, `logprobs`, ...); empty = none.
    pub extra: String,
    /// What was delivered before: go on after it. Frames count from `prefix.len()`.
    pub prefix: Vec<Chunk>,
    /// The conversation, for the KV cache; 0 = none.
    pub session: u64,
}

impl Record for GenerateRequest {
    const KIND: u16 = 0x0030;
    const NAME: &'static str = "GenerateRequest";
    const CLASS: Class = Class::Large;
}

/// The request was taken. The first frame of a generate stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Accepted {
    /// For [`Attach`].
    pub generation: GenerationId,
    /// The engine that does it (index in the advert).
    pub engine: u16,
    /// The model's digest, empty if the engine gives none.
    pub digest: String,
    /// The delivered prefix is replayed as token ids: the seam is exact.
    pub exact: bool,
}

impl Record for Accepted {
    const KIND: u16 = 0x0031;
    const NAME: &'static str = "Accepted";
}

/// Still alive, nothing to deliver yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// Doing what.
    pub phase: Phase,
    /// Of `total`; its unit depends on the phase.
    pub done: u32,
    /// 0 = unknown.
    pub total: u32,
}

impl Record for Progress {
    const KIND: u16 = 0x0032;
    const NAME: &'static str = "Progress";
}

/// The next piece of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Token {
    /// 0, 1, 2, ... within the whole answer, the replayed prefix included.
    pub index: u32,
    /// The piece.
    pub chunk: Chunk,
    /// A JSON object with the engine's other delta fields (`tool_calls`, `reasoning_content`,
    /// `logprobs`); empty = none.
    pub extra: String,
}

impl Record for Token {
    const KIND: u16 = 0x0033;
    const NAME: &'static str = "Token";
    const CLASS: Class = Class::Medium;
}

/// Tokens counted by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Usage {
    /// Of the prompt, a replayed prefix excluded; 0 = unknown.
    pub prompt_tokens: u32,
    /// Of the answer, a replayed prefix included.
    pub completion_tokens: u32,
}

/// The answer is complete. The last frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Done {
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub usage: Usage,
    /// Frames of the whole answer: the receiver must have this many.
    pub frames: u32,
}

impl Record for Done {
    const KIND: u16 = 0x0034;
    const NAME: &'static str = "Done";
}

/// This agent is leaving: start a backup, it keeps going until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Draining {
    /// Milliseconds until it stops anyway.
    pub deadline_ms: u32,
}

impl Record for Draining {
    const KIND: u16 = 0x0035;
    const NAME: &'static str = "Draining";
}

/// Goes on with a generation after a lost connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attach {
    /// As accepted.
    pub generation: GenerationId,
    /// Frames already received: the next one has this index.
    pub have: u32,
}

impl Record for Attach {
    const KIND: u16 = 0x0040;
    const NAME: &'static str = "Attach";
}

/// What an agent sends on a generate or attach stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenFrame {
    /// See [`Accepted`].
    Accepted(Accepted),
    /// See [`Progress`].
    Progress(Progress),
    /// See [`Token`].
    Token(Token),
    /// See [`Done`].
    Done(Done),
    /// See [`Draining`].
    Draining(Draining),
    /// See [`WireError`]. The last frame.
    Error(WireError),
}

impl GenFrame {
    /// Decodes a record of a generate stream; `None` for a kind of a later version, which is
    /// skipped.
    ///
    /// # Errors
    /// The body is malformed; the stream is of no more use.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Option<GenFrame>, DecodeError> {
        Ok(Some(match kind {
            Token::KIND => GenFrame::Token(body(bytes)?),
            Progress::KIND => GenFrame::Progress(body(bytes)?),
            Accepted::KIND => GenFrame::Accepted(body(bytes)?),
            Done::KIND => GenFrame::Done(body(bytes)?),
            Draining::KIND => GenFrame::Draining(body(bytes)?),
            WireError::KIND => GenFrame::Error(body(bytes)?),
            _ => return Ok(None),
        }))
    }

    /// Appends the frame's record to `out`.
    ///
    /// # Errors
    /// The frame exceeds its class; `out` is as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        use super::codec::encode;
        match self {
            GenFrame::Token(r) => encode(r, out),
            GenFrame::Progress(r) => encode(r, out),
            GenFrame::Accepted(r) => encode(r, out),
            GenFrame::Done(r) => encode(r, out),
            GenFrame::Draining(r) => encode(r, out),
            GenFrame::Error(r) => encode(r, out),
        }
    }

    /// Whether nothing may follow it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, GenFrame::Done(_) | GenFrame::Error(_))
    }
}
