//! Engines' errors on the wire.

use crate::engine::EngineError;
use unamesh_proto::timeouts::BUSY_RETRY;
use unamesh_proto::wire::{ErrorCode, WireError};

/// An engine's error as it travels.
pub fn wire_error(error: &EngineError) -> WireError {
    let code = match error {
        EngineError::Down { .. } => ErrorCode::EngineDown,
        EngineError::Invalid { .. } => ErrorCode::Invalid,
        // Another peer may have it, as with a model; the field tells them apart.
        EngineError::UnknownModel { .. } | EngineError::UnknownVoice { .. } => {
            ErrorCode::UnknownModel
        }
        EngineError::ContextExceeded { .. } => ErrorCode::ContextExceeded,
        EngineError::Busy { .. } => ErrorCode::Busy,
        EngineError::Failed { .. } => ErrorCode::EngineFailed,
        EngineError::Unsupported { .. } => ErrorCode::Unsupported,
    };
    let wire = WireError::new(code, error.to_string());
    match error {
        EngineError::Invalid {
            field: Some(field), ..
        } => wire.field(field),
        EngineError::UnknownModel { .. } => wire.field("model"),
        EngineError::UnknownVoice { .. } => wire.field("voice"),
        EngineError::ContextExceeded { .. } => wire.field("messages"),
        EngineError::Busy { .. } => wire.retry_after(BUSY_RETRY),
        _ => wire,
    }
}
