//! Sound at the command line's edges: recordings in, files and devices out.
//!
//! - [`recording`]: WAV of any rate, Ogg/Opus and raw PCM as 16 kHz mono; read in a thread.
//! - [`answers`]: a conversation into files, a stream or the speaker.
//! - [`output`]: speech into a WAV, Ogg/Opus or raw PCM, as a file or on standard output.
//! - [`device`]: speaker and microphone, in a build with the feature `sound`.

pub mod answers;
#[cfg_attr(not(feature = "sound"), path = "no_device.rs")]
pub mod device;
pub mod output;
pub mod recording;

use std::time::Duration;
use unamesh_client::audio::pcm;

/// Samples a second of what is heard.
pub const UP: u32 = 16_000;
/// Samples a second of what is spoken.
pub const DOWN: u32 = 24_000;

/// How long `samples` of what is spoken last.
pub fn spoken(samples: u64) -> Duration {
    pcm::duration(samples, DOWN)
}
