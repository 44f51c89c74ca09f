//! What speech needs beside the codec, without a clock or a socket.
//!
//! - [`uplink`]: a microphone's frames as datagrams, each frame twice.
//! - [`text`]: an answer's tokens to pieces that a speech engine speaks.
//! - `lines`, `sentence`, `spoken`: Markdown's blocks, where a sentence ends, and how it sounds
//!   without its marks.
//!
//! The receiver's side of the uplink is [`crate::jitter`].

mod lines;
mod sentence;
mod spoken;
pub mod text;
pub mod uplink;
