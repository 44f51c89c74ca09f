//! The codec: Opus, mono, 20 ms frames, in two profiles.
//!
//! | profile | rate | bitrate | application | look-ahead |
//! |---|---|---|---|---|
//! | [`Down`](Profile::Down): speech of an engine, on a reliable stream | 24 kHz | 32 kbit/s | LowDelay | 2.5 ms |
//! | [`Up`](Profile::Up): a microphone, in datagrams | 16 kHz | 24 kbit/s | Voip, in-band FEC | 6.5 ms |
//!
//! The settings were chosen by what they cost and keep, here of a recording of Piper (encoding
//! and decoding in % of one core of a shared Xeon; `tests/audio_reference.rs` measures it):
//!
//! | rate, application, complexity | cost | spectra apart | SNR |
//! |---|---|---|---|
//! | **24 kHz LowDelay 10** | 0.43 % | 4.57 dB | 16.0 dB |
//! | 24 kHz Audio 10 | 1.23 % | 4.61 dB | 11.5 dB |
//! | 24 kHz Voip 10 | 1.29 % | 4.57 dB | 7.8 dB |
//! | 16 kHz Voip with FEC 10 | 1.45 % | 5.58 dB | 10.9 dB |
//! | **16 kHz Voip with FEC 5** | 0.96 % | 5.66 dB | 10.6 dB |
//! | 16 kHz Voip with FEC 3 | 0.80 % | 6.05 dB | 10.8 dB |
//!
//! So `Down` gains nothing from Voip at this bitrate, and LowDelay is quicker as well; `Down`
//! needs no FEC either, since nothing is lost on a stream. `Up` needs FEC, which only Voip has,
//! and saves a third of a phone's work at complexity 5. It never uses DTX: a recognizer wants
//! to hear the silence.
//!
//! **To the sample.** A decoder's output is late by the encoder's look-ahead, the *pre-skip*, and
//! comes in whole frames. The encoder tells its pre-skip ([`Encoder::pre_skip`]) and, at the end,
//! how many samples went in ([`Length`]); the decoder drops the first and cuts at the second.
//! Frame `n` therefore holds the samples from `n * frame - pre_skip` on, and a round trip gives
//! exactly as many samples as went in, in their places.
//!
//! **Losses.** A lost frame is [recovered](Decoder::recover) from the in-band FEC of the next one
//! where that is here, else [concealed](Decoder::conceal): libopus goes on as the sound was and
//! fades out. Either way it takes its 20 ms, so that later frames stay in place.
//!
//! **Hostile packets** are a typed error: their length and duration are checked before libopus
//! decodes them, so what is refused changes nothing and can be concealed. One that passes sounds
//! wrong for as long as it lasts, and some frames after.

use super::pcm::limited;
use ::opus::{Application, Bitrate, Channels, Signal};
use unamesh_proto::limits::MAX_AUDIO_FRAME;
use unamesh_proto::timeouts::AUDIO_FRAME;

/// The longest frame that RFC 6716 allows, in bytes.
const MAX_RFC_FRAME: usize = 1275;
/// The longest packet: 48 such frames of 2.5 ms.
const MAX_RFC_PACKET: usize = 48 * MAX_RFC_FRAME;
/// The longest packet, in milliseconds.
const MAX_RFC_MS: usize = 120;
/// The loss that the encoder prepares for: a bad Wi-Fi's.
const UP_LOSS_PERCENT: i32 = 10;

/// What the codec is tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Agent to client, over a reliable stream.
    Down,
    /// Client to agent, in datagrams that may be lost.
    Up,
}

impl Profile {
    /// Samples a second.
    pub const fn rate(self) -> u32 {
        match self {
            Profile::Down => 24_000,
            Profile::Up => 16_000,
        }
    }

    /// Samples of a frame.
    pub const fn frame(self) -> usize {
        self.rate() as usize * AUDIO_FRAME.as_millis() as usize / 1000
    }

    const fn bitrate(self) -> i32 {
        match self {
            Profile::Down => 32_000,
            Profile::Up => 24_000,
        }
    }

    /// Of 10: see the module's table.
    const fn complexity(self) -> i32 {
        match self {
            Profile::Down => 10,
            Profile::Up => 5,
        }
    }

    fn encoder(self) -> Result<::opus::Encoder, ::opus::Error> {
        let application = match self {
            Profile::Down => Application::LowDelay,
            Profile::Up => Application::Voip,
        };
        let mut encoder = ::opus::Encoder::new(self.rate(), Channels::Mono, application)?;
        encoder.set_bitrate(Bitrate::Bits(self.bitrate()))?;
        encoder.set_signal(Signal::Voice)?;
        encoder.set_complexity(self.complexity())?;
        if self == Profile::Up {
            encoder.set_inband_fec(true)?;
            encoder.set_packet_loss_perc(UP_LOSS_PERCENT)?;
        }
        Ok(encoder)
    }
}

/// Why a packet or a codec failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// libopus refused: out of memory, or a packet that is no Opus. The frame can be concealed.
    #[error("opus: {0}")]
    Library(String),
    /// A packet without bytes, or with more than any may have.
    #[error("an Opus packet of {0} bytes")]
    Size(usize),
    /// A packet that does not last one frame. Nothing was decoded.
    #[error("an Opus packet of {got} samples, expected {expected}")]
    Duration {
        /// What it lasts, at the decoder's rate.
        got: usize,
        /// What a frame lasts.
        expected: usize,
    },
}

impl From<::opus::Error> for CodecError {
    fn from(error: ::opus::Error) -> Self {
        CodecError::Library(error.to_string())
    }
}

/// What an utterance came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Length {
    /// Samples that went in, at the profile's rate: where the decoder cuts.
    pub samples: u64,
    /// Frames that came out.
    pub frames: u32,
}

/// Samples in, packets out.
///
/// ```
/// use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
///
/// let mut encoder = Encoder::new(Profile::Up)?;
/// let mut packets = Vec::new();
/// encoder.push(&[0.1; 1000], |packet| packets.push(packet.to_vec()))?;
/// let length = encoder.finish(|packet| packets.push(packet.to_vec()))?;
///
/// let mut decoder = Decoder::new(Profile::Up, encoder.pre_skip())?;
/// decoder.set_end(length.samples);
/// let mut samples = 0;
/// for packet in &packets {
///     samples += decoder.decode(packet)?.len();
/// }
/// assert_eq!(samples, 1000);
/// # Ok::<(), unamesh_client::audio::opus::CodecError>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    codec: ::opus::Encoder,
    profile: Profile,
    pre_skip: usize,
    /// The samples of the next frame, at most one.
    frame: Vec<f32>,
    packet: Box<[u8; MAX_AUDIO_FRAME]>,
    length: Length,
}

impl Encoder {
    /// An encoder for one utterance after another.
    ///
    /// # Errors
    /// libopus has no memory.
    pub fn new(profile: Profile) -> Result<Self, CodecError> {
        let mut codec = profile.encoder()?;
        let pre_skip = usize::try_from(codec.get_lookahead()?).unwrap_or(0);
        Ok(Encoder {
            codec,
            profile,
            pre_skip,
            frame: Vec::with_capacity(profile.frame()),
            packet: Box::new([0; MAX_AUDIO_FRAME]),
            length: Length::default(),
        })
    }

    /// What it is tuned for.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Samples, at the profile's rate, that a decoder drops at the start.
    pub fn pre_skip(&self) -> usize {
        self.pre_skip
    }

    /// What has gone in and come out since the last [`finish`](Self::finish).
    pub fn length(&self) -> Length {
        self.length
    }

    /// Takes samples and gives each whole frame's packet, of at most [`MAX_AUDIO_FRAME`] bytes,
    /// to `sink`.
    ///
    /// # Errors
    /// libopus failed; the utterance cannot be gone on with.
    pub fn push(&mut self, mut pcm: &[f32], mut sink: impl FnMut(&[u8])) -> Result<(), CodecError> {
        self.length.samples += pcm.len() as u64;
        let size = self.profile.frame();
        while !pcm.is_empty() {
            let (now, later) = pcm.split_at(pcm.len().min(size - self.frame.len()));
            self.frame.extend(now.iter().copied().map(limited));
            pcm = later;
            if self.frame.len() == size {
                sink(self.encode()?);
            }
        }
        Ok(())
    }

    /// Ends the utterance: silence fills the last frame, and another one where the look-ahead
    /// needs it. The encoder is as new afterwards.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self, mut sink: impl FnMut(&[u8])) -> Result<Length, CodecError> {
        let size = self.profile.frame();
        let needed = match self.length.samples {
            0 => 0,
            samples => samples + self.pre_skip as u64,
        };
        while u64::from(self.length.frames) * (size as u64) < needed {
            self.frame.resize(size, 0.0);
            sink(self.encode()?);
        }
        self.codec.reset_state()?;
        Ok(std::mem::take(&mut self.length))
    }

    fn encode(&mut self) -> Result<&[u8], CodecError> {
        let bytes = self.codec.encode_float(&self.frame, &mut self.packet[..])?;
        self.frame.clear();
        self.length.frames += 1;
        Ok(&self.packet[..bytes])
    }
}

/// Packets in, samples out.
#[derive(Debug)]
pub struct Decoder {
    codec: ::opus::Decoder,
    /// What every packet must last, in samples; `None` takes any.
    frame: Option<usize>,
    /// Of the last packet: what a lost one is taken to last.
    usual: usize,
    largest: usize,
    /// Samples still to be dropped at the start.
    skip: usize,
    /// Samples that were handed out.
    position: u64,
    end: u64,
    out: Vec<f32>,
}

impl Decoder {
    /// A decoder for one utterance: 20 ms packets, of which the first `pre_skip` samples are
    /// dropped.
    ///
    /// # Errors
    /// libopus has no memory.
    pub fn new(profile: Profile, pre_skip: usize) -> Result<Self, CodecError> {
        let frame = profile.frame();
        Self::build(profile.rate(), pre_skip, Some(frame), frame, MAX_RFC_FRAME)
    }

    /// A decoder for a file of somebody else's: packets of any duration; stereo is mixed. `rate`
    /// is one of Opus' (8, 12, 16, 24, 48 kHz).
    ///
    /// # Errors
    /// Another rate, or libopus has no memory.
    pub fn of_file(rate: u32, pre_skip: usize) -> Result<Self, CodecError> {
        let longest = rate as usize * MAX_RFC_MS / 1000;
        Self::build(rate, pre_skip, None, longest, MAX_RFC_PACKET)
    }

    fn build(
        rate: u32,
        skip: usize,
        frame: Option<usize>,
        longest: usize,
        largest: usize,
    ) -> Result<Self, CodecError> {
        Ok(Decoder {
            codec: ::opus::Decoder::new(rate, Channels::Mono)?,
            frame,
            usual: frame.unwrap_or(rate as usize / 50),
            largest,
            skip,
            position: 0,
            end: u64::MAX,
            out: vec![0.0; longest],
        })
    }

    /// Makes everything louder by `gain`/256 dB.
    ///
    /// # Errors
    /// libopus refused.
    pub fn set_gain(&mut self, gain: i16) -> Result<(), CodecError> {
        Ok(self.codec.set_gain(i32::from(gain))?)
    }

    /// Samples handed out so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Cuts the output after `samples` in all. Returns how many too many were handed out
    /// already: silence that the encoder appended.
    pub fn set_end(&mut self, samples: u64) -> u64 {
        self.end = samples;
        self.position.saturating_sub(samples)
    }

    /// The samples of `packet`.
    ///
    /// # Errors
    /// The packet is no Opus, or not of one frame; the caller may [conceal](Self::conceal) it.
    pub fn decode(&mut self, packet: &[u8]) -> Result<&[f32], CodecError> {
        let samples = self.check(packet)?;
        self.run(packet, samples, false)
    }

    /// The samples of a lost packet, from the FEC in the `next` one where that has it, else
    /// concealed. `next` itself is decoded after it as usual.
    ///
    /// # Errors
    /// `next` is no Opus, or not of one frame.
    pub fn recover(&mut self, next: &[u8]) -> Result<&[f32], CodecError> {
        self.check(next)?;
        self.run(next, self.usual, true)
    }

    /// The samples of a lost packet, guessed from those before.
    ///
    /// # Errors
    /// libopus failed.
    pub fn conceal(&mut self) -> Result<&[f32], CodecError> {
        self.run(&[], self.usual, false)
    }

    /// What a packet lasts, if it is one.
    fn check(&mut self, packet: &[u8]) -> Result<usize, CodecError> {
        if packet.is_empty() || packet.len() > self.largest {
            return Err(CodecError::Size(packet.len()));
        }
        let got = self.codec.get_nb_samples(packet)?;
        let expected = self.frame.unwrap_or(got);
        // Zero frames in a packet pass libopus' own look at its head.
        if got != expected || got == 0 || got > self.out.len() {
            return Err(CodecError::Duration { got, expected });
        }
        Ok(got)
    }

    fn run(&mut self, packet: &[u8], samples: usize, fec: bool) -> Result<&[f32], CodecError> {
        let out = &mut self.out[..samples];
        let decoded = self.codec.decode_float(packet, out, fec)?;
        self.usual = decoded;
        let skipped = self.skip.min(decoded);
        self.skip -= skipped;
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let kept = (decoded - skipped).min(left);
        self.position += kept as u64;
        Ok(&self.out[skipped..skipped + kept])
    }
}

#[cfg(test)]
#[path = "opus_tests.rs"]
mod tests;
