//! Text to speech: the request, its frames, the lead.
//!
//! The agent splits the **whole** text into chunks ([`crate::speech::text`]) and speaks those
//! from the one that begins at `from`: so every agent has the same boundaries, and one may go on
//! where another stopped. Each chunk is announced by a [`SpokenMark`] and is an Opus stream of
//! its own: it begins with a fresh encoder, whose delay is `pre_skip`, and its last packet is
//! filled up. A chunk that was received whole can be kept whatever becomes of the next, and any
//! agent's next one decodes behind it. A text that its caller has cut already, as a conversation
//! does, goes to the engine as it is ([`SpeakRequest::one_piece`]): an agent that does not know
//! that yet cuts it as any other.
//!
//! A packet carries no timestamp: packet `k` of a chunk begins at sample `480 k - pre_skip` of it.

use super::codec::{Appended, Class, DecodeError, Record, body};
use super::error::{ErrorCode, WireError};
use super::generate::{Draining, Progress};
use crate::limits::{MAX_NAME, MAX_SPEECH_EXTRA, MAX_SPEECH_TEXT};
use bincode::{Decode, Encode};

/// Asks for a text to be spoken.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpeakRequest {
    /// The model's name as the engine knows it.
    pub model: String,
    /// The engine on the receiving agent (index in its advert); `u16::MAX` = any that has it.
    pub engine: u16,
    /// The voice's name as the engine knows it; empty = the engine's default.
    pub voice: String,
    /// BCP 47, or empty = the voice's.
    pub language: String,
    /// All that is to be spoken, at most [`MAX_SPEECH_TEXT`] bytes.
    pub text: String,
    /// In percent of the voice's own speed; 0 = 100.
    pub speed_percent: u16,
    /// A JSON object with the request's other fields, handed to the engine; empty = none.
    pub extra: String,
    /// The conversation, by which engines are kept warm; 0 = none.
    pub session: u64,
    /// The first character (Unicode scalar value) to speak: 0, or the `from` of a mark.
    pub from: u32,
    /// The lead to begin with; see [`Grant::until_ms`].
    pub grant_ms: u32,
    /// The text is one piece: it is cut only where it exceeds [`crate::limits::MAX_SPOKEN_CHUNK`].
    pub one_piece: Appended,
}

impl SpeakRequest {
    /// Checks what the record's size does not.
    ///
    /// # Errors
    /// What the agent answers: `invalid` with the field to blame.
    pub fn check(&self) -> Result<(), WireError> {
        let chars = self.text.chars().count();
        let bounds = [
            ("model", self.model.len() <= MAX_NAME),
            ("voice", self.voice.len() <= MAX_NAME),
            ("language", self.language.len() <= MAX_NAME),
            ("input", self.text.len() <= MAX_SPEECH_TEXT),
            ("extra", self.extra.len() <= MAX_SPEECH_EXTRA),
            ("from", self.from as usize <= chars),
        ];
        match bounds.into_iter().find(|(_, fits)| !fits) {
            Some((field, _)) => {
                let message = format!("{field} is too long or out of range");
                Err(WireError::new(ErrorCode::Invalid, message).field(field))
            }
            None => Ok(()),
        }
    }
}

impl Record for SpeakRequest {
    const KIND: u16 = 0x0080;
    const NAME: &'static str = "SpeakRequest";
    const CLASS: Class = Class::Medium;
}

/// How far ahead of the ear the agent may be. It grows only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// Packets that begin before this position of the stream, in milliseconds of its sound, may
    /// be sent.
    pub until_ms: u32,
    /// Up to here it was played: the agent needs to keep nothing before it.
    pub played_ms: u32,
}

impl Record for Grant {
    const KIND: u16 = 0x0081;
    const NAME: &'static str = "Grant";
}

/// The text was taken. The first frame of a speak stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpeechAccepted {
    /// The engine that speaks (index in the advert).
    pub engine: u16,
    /// The voice that it speaks with.
    pub voice: String,
    /// That is the voice asked for, or none was.
    pub same_voice: bool,
    /// Samples (24 kHz) that a decoder gives before each chunk's first.
    pub pre_skip: u16,
}

impl Record for SpeechAccepted {
    const KIND: u16 = 0x0082;
    const NAME: &'static str = "SpeechAccepted";
}

/// A chunk begins, and the one before is complete: so much text for so much sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpokenMark {
    /// Its first character; the end of the chunk before.
    pub from: u32,
    /// Behind its last.
    pub to: u32,
    /// Its first sample (24 kHz), counted over all chunks of this stream, trimmed.
    pub at: u64,
}

impl Record for SpokenMark {
    const KIND: u16 = 0x0083;
    const NAME: &'static str = "SpokenMark";
}

/// 20 ms of sound.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Sound {
    /// 0, 1, 2, ... within this stream.
    pub seq: u32,
    /// One Opus packet, 1 to [`crate::limits::MAX_AUDIO_FRAME`] bytes.
    pub opus: Vec<u8>,
}

impl Record for Sound {
    const KIND: u16 = 0x0084;
    const NAME: &'static str = "Sound";
}

/// All was spoken. The last frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpeechDone {
    /// Packets of this stream: the receiver must have this many.
    pub frames: u32,
    /// Samples (24 kHz) of this stream, trimmed: where the last chunk ends.
    pub samples: u64,
}

impl Record for SpeechDone {
    const KIND: u16 = 0x0085;
    const NAME: &'static str = "SpeechDone";
}

/// What an agent sends on a speak stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpeakFrame {
    /// See [`SpeechAccepted`].
    Accepted(SpeechAccepted),
    /// See [`Progress`].
    Progress(Progress),
    /// See [`SpokenMark`].
    Mark(SpokenMark),
    /// See [`Sound`].
    Sound(Sound),
    /// See [`SpeechDone`].
    Done(SpeechDone),
    /// See [`Draining`].
    Draining(Draining),
    /// See [`WireError`]. The last frame.
    Error(WireError),
}

impl SpeakFrame {
    /// Decodes a record of a speak stream; `None` for a kind of a later version, which is
    /// skipped.
    ///
    /// # Errors
    /// The body is malformed; the stream is of no more use.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Option<SpeakFrame>, DecodeError> {
        Ok(Some(match kind {
            Sound::KIND => SpeakFrame::Sound(body(bytes)?),
            SpokenMark::KIND => SpeakFrame::Mark(body(bytes)?),
            Progress::KIND => SpeakFrame::Progress(body(bytes)?),
            SpeechAccepted::KIND => SpeakFrame::Accepted(body(bytes)?),
            SpeechDone::KIND => SpeakFrame::Done(body(bytes)?),
            Draining::KIND => SpeakFrame::Draining(body(bytes)?),
            WireError::KIND => SpeakFrame::Error(body(bytes)?),
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
            SpeakFrame::Sound(r) => encode(r, out),
            SpeakFrame::Mark(r) => encode(r, out),
            SpeakFrame::Progress(r) => encode(r, out),
            SpeakFrame::Accepted(r) => encode(r, out),
            SpeakFrame::Done(r) => encode(r, out),
            SpeakFrame::Draining(r) => encode(r, out),
            SpeakFrame::Error(r) => encode(r, out),
        }
    }

    /// Whether nothing may follow it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, SpeakFrame::Done(_) | SpeakFrame::Error(_))
    }
}
