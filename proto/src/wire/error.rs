//! The error that travels: what happened, in a code that says what the receiver can do.

use super::codec::{Class, Record, open_enum};
use bincode::{Decode, Encode};

open_enum! {
    /// What went wrong, and by that what to do next.
    ErrorCode {
        /// The request is wrong and would be everywhere. Do not retry.
        Invalid = 1 "invalid",
        /// No such model here. Another peer may have it.
        UnknownModel = 2 "unknown_model",
        /// Every slot and the queue are full. Try another peer, or this one after `retry_after`.
        Busy = 3 "busy",
        /// The prompt exceeds this model's context. A larger context elsewhere may do.
        ContextExceeded = 4 "context_exceeded",
        /// The engine failed, closed early or answered rubbish. Counts against it; try another.
        EngineFailed = 5 "engine_failed",
        /// The engine is not reachable. Counts against it; try another.
        EngineDown = 6 "engine_down",
        /// This agent is leaving and takes nothing new. Try another.
        Draining = 7 "draining",
        /// No such generation: never was, or its grace time is over. Migrate instead.
        UnknownGeneration = 8 "unknown_generation",
        /// The caller's role does not allow it. Do not retry.
        Forbidden = 9 "forbidden",
        /// This version or build does not do that. Do not retry here.
        Unsupported = 10 "unsupported",
        /// A record was malformed or out of place. The stream is closed.
        Protocol = 11 "protocol",
        /// A limit of the receiver was reached. Slow down.
        Limit = 12 "limit",
        /// An invitation's secret is wrong, used or expired. Ask for a new one.
        InviteRefused = 13 "invite_refused",
    }
}

impl ErrorCode {
    /// Whether another peer may succeed where this one refused.
    pub const fn elsewhere(self) -> bool {
        !matches!(
            self,
            ErrorCode::Invalid | ErrorCode::Forbidden | ErrorCode::InviteRefused
        )
    }

    /// Whether it speaks of one engine, so that another one of the same peer may do.
    pub const fn is_of_engine(self) -> bool {
        matches!(
            self,
            ErrorCode::Invalid
                | ErrorCode::UnknownModel
                | ErrorCode::Busy
                | ErrorCode::ContextExceeded
                | ErrorCode::EngineFailed
                | ErrorCode::EngineDown
                | ErrorCode::Unsupported
        )
    }

    /// Whether it counts against the engine or peer (busy is not dead, a bad request is not
    /// its fault).
    pub const fn is_failure(self) -> bool {
        matches!(
            self,
            ErrorCode::EngineFailed
                | ErrorCode::EngineDown
                | ErrorCode::Protocol
                | ErrorCode::Unknown(_)
        )
    }
}

/// Ends a stream with a reason.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{code}: {message}")]
pub struct WireError {
    /// What happened.
    pub code: ErrorCode,
    /// For people; names the field, model or limit and the way out. Never a prompt.
    pub message: String,
    /// The offending request field, if one is to blame.
    pub field: Option<String>,
    /// Milliseconds after which a retry makes sense; 0 = unknown.
    pub retry_after_ms: u32,
}

impl WireError {
    /// An error with a message; longer texts are cut to [`crate::limits::MAX_ERROR_TEXT`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > crate::limits::MAX_ERROR_TEXT {
            let mut end = crate::limits::MAX_ERROR_TEXT;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        WireError {
            code,
            message,
            field: None,
            retry_after_ms: 0,
        }
    }

    /// Names the request field to blame.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says when a retry makes sense.
    pub fn retry_after(mut self, after: std::time::Duration) -> Self {
        self.retry_after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        self
    }
}

impl Record for WireError {
    const KIND: u16 = 0x0002;
    const NAME: &'static str = "Error";
    const CLASS: Class = Class::Small;
}
