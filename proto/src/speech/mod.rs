//! What speech needs beside the codec, without a clock or a socket.
//!
//! - [`uplink`]: a microphone's frames as datagrams, each frame twice.
//! - [`text`]: an answer's tokens to pieces that a speech engine speaks.
//! - `lines`, `sentence`, `spoken`: Markdown's blocks, where a sentence ends, and how it sounds
//!   without its marks.
//! - [`speak`]: a spoken text from its first dial to its one terminal event.
//! - [`hear`]: the same of an utterance and its transcript.
//! - [`turn`]: a conversation: what is heard, thought and said, and when.
//! - `crew`: the peers that work on either, as [`crate::session`] has them for text.
//!
//! The receiver's side of the uplink is [`crate::jitter`].

mod crew;
pub mod hear;
mod lines;
mod sentence;
pub mod speak;
mod spoken;
pub mod text;
pub mod turn;
pub mod uplink;

use crate::session::Reason;
use crate::wire::WireError;
use std::time::Duration;

/// Why speech failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody can do it: nothing was delivered.
    NoPeer,
    /// Everybody who could is busy: nothing was delivered.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// Refused as every peer would or did: nothing was delivered.
    Refused(WireError),
    /// Those who could (go on to) speak have another voice, which the caller does not want.
    NoVoice,
    /// Broken off, and nobody could go on. The caller has what was delivered.
    Interrupted {
        /// The last reason.
        reason: Reason,
    },
    /// The caller cancelled.
    Cancelled,
}
