//! Speech to text: the request, the sound, its transcript.
//!
//! A live microphone's frames go in datagrams ([`crate::speech::uplink`]); files, replays, the
//! tail and whatever was lost go on the stream as [`UpSound`]. Both carry the same frames under
//! the same numbers, and either order will do.

use super::codec::{Class, DecodeError, Record, body};
use super::error::{ErrorCode, WireError};
use super::generate::{Draining, Progress};
use crate::limits::{MAX_HEAR_PROMPT, MAX_NAME};
use bincode::{Decode, Encode};

/// Asks for an utterance to be transcribed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HearRequest {
    /// The model's name as the engine knows it.
    pub model: String,
    /// The engine on the receiving agent (index in its advert); `u16::MAX` = any that has it.
    pub engine: u16,
    /// BCP 47, or empty = the engine finds out.
    pub language: String,
    /// What was said before, or names that will be: at most [`MAX_HEAR_PROMPT`] bytes.
    pub prompt: String,
    /// The conversation, by which engines are kept warm; 0 = none.
    pub session: u64,
    /// The utterance that the datagrams of this connection name.
    pub utterance: u32,
    /// Provisional transcripts are wanted.
    pub partials: bool,
    /// After so many milliseconds of silence the agent ends the utterance; 0 = the client does.
    pub vad_ms: u16,
}

impl HearRequest {
    /// Checks what the record's size does not.
    ///
    /// # Errors
    /// What the agent answers: `invalid` with the field to blame.
    pub fn check(&self) -> Result<(), WireError> {
        let bounds = [
            ("model", self.model.len() <= MAX_NAME),
            ("language", self.language.len() <= MAX_NAME),
            ("prompt", self.prompt.len() <= MAX_HEAR_PROMPT),
        ];
        match bounds.into_iter().find(|(_, fits)| !fits) {
            Some((field, _)) => {
                let message = format!("{field} is too long");
                Err(WireError::new(ErrorCode::Invalid, message).field(field))
            }
            None => Ok(()),
        }
    }
}

impl Record for HearRequest {
    const KIND: u16 = 0x0090;
    const NAME: &'static str = "HearRequest";
}

/// A frame that must not be lost.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UpSound {
    /// 0, 1, 2, ... within the utterance; as in the datagrams.
    pub seq: u32,
    /// One Opus packet of 20 ms, 1 to [`crate::limits::MAX_AUDIO_FRAME`] bytes.
    pub opus: Vec<u8>,
}

impl Record for UpSound {
    const KIND: u16 = 0x0091;
    const NAME: &'static str = "UpSound";
}

/// The utterance is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UtteranceEnd {
    /// It has so many frames.
    pub frames: u32,
}

impl Record for UtteranceEnd {
    const KIND: u16 = 0x0092;
    const NAME: &'static str = "UtteranceEnd";
}

/// The utterance was taken. The first frame of a transcribe stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HearAccepted {
    /// The engine that listens (index in the advert).
    pub engine: u16,
    /// The model's digest, empty if the engine gives none.
    pub digest: String,
}

impl Record for HearAccepted {
    const KIND: u16 = 0x0093;
    const NAME: &'static str = "HearAccepted";
}

/// What was understood so far: it replaces the partial before, and may be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Partial {
    /// All of it, at most [`crate::limits::MAX_TRANSCRIPT`] bytes.
    pub text: String,
}

impl Record for Partial {
    const KIND: u16 = 0x0094;
    const NAME: &'static str = "Partial";
    const CLASS: Class = Class::Medium;
}

/// Somebody began to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpeechBegan {
    /// In this frame.
    pub frame: u32,
}

impl Record for SpeechBegan {
    const KIND: u16 = 0x0095;
    const NAME: &'static str = "SpeechBegan";
}

/// Nobody has spoken for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SilenceFor {
    /// Milliseconds of sound, up to the newest frame.
    pub ms: u32,
}

impl Record for SilenceFor {
    const KIND: u16 = 0x0096;
    const NAME: &'static str = "SilenceFor";
}

/// Frames that did not come in time to be repaired: asks for them on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Missing {
    /// The first.
    pub from: u32,
    /// Behind the last.
    pub to: u32,
}

impl Record for Missing {
    const KIND: u16 = 0x0097;
    const NAME: &'static str = "Missing";
}

/// A word and when it was said.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Word {
    /// The word.
    pub text: String,
    /// Milliseconds from the utterance's start.
    pub start_ms: u32,
    /// The same, of its end.
    pub end_ms: u32,
}

/// The transcript. The last frame.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Transcript {
    /// All that was said, at most [`crate::limits::MAX_TRANSCRIPT`] bytes; may be empty.
    pub text: String,
    /// BCP 47, or empty if the engine does not say.
    pub language: String,
    /// Where the engine tells them; at most [`crate::limits::MAX_WORDS`].
    pub words: Vec<Word>,
    /// 0..=1, where the engine tells it.
    pub confidence: Option<f32>,
    /// Frames that it is of: the whole utterance, or those up to the end that the agent found.
    pub frames: u32,
}

impl Record for Transcript {
    const KIND: u16 = 0x0098;
    const NAME: &'static str = "Transcript";
    const CLASS: Class = Class::Large;
}

/// What an agent sends on a transcribe stream.
#[derive(Clone, Debug, PartialEq)]
pub enum HearFrame {
    /// See [`HearAccepted`].
    Accepted(HearAccepted),
    /// See [`Progress`].
    Progress(Progress),
    /// See [`Partial`].
    Partial(Partial),
    /// See [`SpeechBegan`].
    Began(SpeechBegan),
    /// See [`SilenceFor`].
    Silence(SilenceFor),
    /// See [`Missing`].
    Missing(Missing),
    /// See [`Transcript`].
    Final(Transcript),
    /// See [`Draining`].
    Draining(Draining),
    /// See [`WireError`]. The last frame.
    Error(WireError),
}

impl HearFrame {
    /// Decodes a record of a transcribe stream; `None` for a kind of a later version, which is
    /// skipped.
    ///
    /// # Errors
    /// The body is malformed; the stream is of no more use.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Option<HearFrame>, DecodeError> {
        Ok(Some(match kind {
            Progress::KIND => HearFrame::Progress(body(bytes)?),
            Partial::KIND => HearFrame::Partial(body(bytes)?),
            SpeechBegan::KIND => HearFrame::Began(body(bytes)?),
            SilenceFor::KIND => HearFrame::Silence(body(bytes)?),
            Missing::KIND => HearFrame::Missing(body(bytes)?),
            HearAccepted::KIND => HearFrame::Accepted(body(bytes)?),
            Transcript::KIND => HearFrame::Final(body(bytes)?),
            Draining::KIND => HearFrame::Draining(body(bytes)?),
            WireError::KIND => HearFrame::Error(body(bytes)?),
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
            HearFrame::Progress(r) => encode(r, out),
            HearFrame::Partial(r) => encode(r, out),
            HearFrame::Began(r) => encode(r, out),
            HearFrame::Silence(r) => encode(r, out),
            HearFrame::Missing(r) => encode(r, out),
            HearFrame::Accepted(r) => encode(r, out),
            HearFrame::Final(r) => encode(r, out),
            HearFrame::Draining(r) => encode(r, out),
            HearFrame::Error(r) => encode(r, out),
        }
    }

    /// Whether nothing may follow it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, HearFrame::Final(_) | HearFrame::Error(_))
    }
}
