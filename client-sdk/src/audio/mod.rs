//! Speech as samples, as packets and as files, without any network: what a client and an agent
//! share.
//!
//! Everything between the edges is mono `f32` in -1..=1 at a known rate. Integers, several
//! channels and other rates exist at the edges only (engines, files, microphones):
//!
//! - [`pcm`]: raw PCM bytes of any usual format to samples and back.
//! - [`wav`]: WAV as it arrives from an engine, WAV files out.
//! - [`resample`]: any usual rate to the codec's and back.
//! - [`opus`]: the two profiles of the codec; pre-skip and end trimming.
//! - [`ogg`]: Opus in Ogg files.
//!
//! All of them are streaming: they take input in pieces of any size and the result does not
//! depend on how it was cut. Each appends to a buffer of the caller or lends its own, so that
//! the path of a frame allocates nothing once it is warm.

pub mod ogg;
pub mod opus;
pub mod pcm;
pub mod resample;
pub mod wav;

#[cfg(test)]
#[allow(missing_docs)]
pub(crate) mod signal;
