//! The live order: every frame as soon as it can be had, lost ones concealed, to notice at once
//! when somebody speaks or falls silent. What is understood depends on none of it: see
//! [`super::call`].

use super::vad::Vad;
use std::time::Duration;
use unamesh_client::audio::opus::{CodecError, Decoder, Profile};
use unamesh_client::audio::pcm::to_s16;
use unamesh_proto::Mono;
use unamesh_proto::jitter::{Jitter, Pop};

/// Listens to the live order.
pub(super) struct Ear {
    decoder: Decoder,
    pcm: Vec<i16>,
    vad: Vad,
    /// Frames heard.
    at: u32,
    /// Behind the last frame that had to be concealed.
    concealed: u32,
}

/// What [`Ear::listen`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listened {
    /// One frame more; whether somebody began to speak in it.
    Frame(bool),
    /// Nothing to hear, until then at least.
    Wait(Option<Mono>),
}

impl Ear {
    /// # Errors
    /// libopus has no memory.
    pub fn new() -> Result<Self, CodecError> {
        Ok(Ear {
            decoder: Decoder::new(Profile::Up, 0)?,
            pcm: Vec::with_capacity(Profile::Up.frame()),
            vad: Vad::new(),
            at: 0,
            concealed: 0,
        })
    }

    /// Listens to the next frame.
    ///
    /// # Errors
    /// It is no frame of speech.
    pub fn listen(
        &mut self,
        jitter: &mut Jitter,
        now: Mono,
    ) -> Result<Listened, (u32, CodecError)> {
        let (frame, decoded) = match jitter.pop(now) {
            Pop::Frame { sequence, frame } => (sequence, self.decoder.decode(frame)),
            Pop::Conceal { sequence, next } => {
                self.concealed = sequence + 1;
                let decoded = match next {
                    Some(next) => self.decoder.recover(next),
                    None => self.decoder.conceal(),
                };
                (sequence, decoded)
            }
            Pop::Wait(until) => return Ok(Listened::Wait(until)),
            Pop::End => return Ok(Listened::Wait(None)),
        };
        let sound = decoded.map_err(|error| (frame, error))?;
        self.pcm.clear();
        self.pcm.extend(sound.iter().copied().map(to_s16));
        self.at = frame + 1;
        Ok(Listened::Frame(self.vad.push(&self.pcm)))
    }

    /// Frames heard.
    pub fn at(&self) -> u32 {
        self.at
    }

    /// Every frame from `frame` on was really heard.
    pub fn heard_since(&self, frame: u32) -> bool {
        self.concealed <= frame
    }

    /// See [`Vad::silence`].
    pub fn silence(&self) -> Duration {
        self.vad.silence()
    }

    /// See [`Vad::is_rising`].
    pub fn is_rising(&self) -> bool {
        self.vad.is_rising()
    }
}
