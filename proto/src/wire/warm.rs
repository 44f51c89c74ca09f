//! Models that a conversation keeps warm: a lease, which lasts as long as its stream.

use super::codec::{DecodeError, Record, body, open_enum};
use super::error::{ErrorCode, WireError};
use super::node::ModelKind;
use crate::limits::{MAX_NAME, MAX_WARM_MODELS};
use bincode::{Decode, Encode};

/// A model that will be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WarmModel {
    /// What for: `tts` or `stt`. A language model is warmed by a request of its own, which fills
    /// its cache as well.
    pub kind: ModelKind,
    /// Its name as the engine knows it; empty = any of the kind.
    pub model: String,
    /// The engine on the receiving agent (index in its advert); `u16::MAX` = any that has it.
    pub engine: u16,
    /// The voice; empty = the engine's default, or no voice.
    pub voice: String,
    /// BCP 47, or empty.
    pub language: String,
}

/// Asks for models to be warm now, and kept warm while this stream is open.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WarmRequest {
    /// The conversation; 0 = none.
    pub session: u64,
    /// One to [`MAX_WARM_MODELS`].
    pub models: Vec<WarmModel>,
}

impl WarmRequest {
    /// Checks what the record's size does not.
    ///
    /// # Errors
    /// What the agent answers: `invalid` with the field to blame.
    pub fn check(&self) -> Result<(), WireError> {
        let named = |m: &WarmModel| {
            let names = [&m.model, &m.voice, &m.language];
            names.iter().all(|name| name.len() <= MAX_NAME)
        };
        let speech = |m: &WarmModel| matches!(m.kind, ModelKind::Tts | ModelKind::Stt);
        let count = (1..=MAX_WARM_MODELS).contains(&self.models.len());
        if count && self.models.iter().all(|m| named(m) && speech(m)) {
            return Ok(());
        }
        let message = format!("one to {MAX_WARM_MODELS} models that speak or transcribe are kept");
        Err(WireError::new(ErrorCode::Invalid, message).field("models"))
    }
}

impl Record for WarmRequest {
    const KIND: u16 = 0x00a0;
    const NAME: &'static str = "WarmRequest";
}

open_enum! {
    /// How warm a model is now.
    Warmth {
        /// It has answered lately, and was not asked.
        Already = 1 "already",
        /// It was asked for next to nothing, and answered.
        Asked = 2 "asked",
        /// Its engine is at work for somebody: it was not asked.
        Busy = 3 "busy",
        /// It was asked and failed; the agent's log says how.
        Failed = 4 "failed",
    }
}

/// A model is as warm as it gets: once for each at first, and again when one was unloaded
/// meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Warmed {
    /// Which of [`WarmRequest::models`].
    pub at: u16,
    /// How warm.
    pub how: Warmth,
}

impl Record for Warmed {
    const KIND: u16 = 0x00a1;
    const NAME: &'static str = "Warmed";
}

/// What an agent sends on a warm stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarmFrame {
    /// See [`Warmed`].
    Warmed(Warmed),
    /// See [`WireError`]. The last frame: the lease is over.
    Error(WireError),
}

impl WarmFrame {
    /// Decodes a record of a warm stream; `None` for a kind of a later version, which is skipped.
    ///
    /// # Errors
    /// The body is malformed; the stream is of no more use.
    pub fn decode(kind: u16, bytes: &[u8]) -> Result<Option<WarmFrame>, DecodeError> {
        Ok(Some(match kind {
            Warmed::KIND => WarmFrame::Warmed(body(bytes)?),
            WireError::KIND => WarmFrame::Error(body(bytes)?),
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
            WarmFrame::Warmed(r) => encode(r, out),
            WarmFrame::Error(r) => encode(r, out),
        }
    }

    /// Whether nothing may follow it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, WarmFrame::Error(_))
    }
}
