//! Raw PCM bytes to mono samples and back.
//!
//! [`Bytes`] takes the bytes of interleaved PCM as they come (a piece may end in the middle of a
//! sample) and mixes the channels to one by their mean, so that nothing can clip. Integers are
//! divided by half their range: 16-bit samples survive a round trip unchanged. Floats that are
//! no number become silence and all are limited to -1..=1: an engine's bug must not reach a
//! loudspeaker, or a codec's state.

use unamesh_proto::limits::MAX_PCM_CHANNELS;

/// Rates that occur in speech, in samples a second: telephone to studio.
pub const RATES: std::ops::RangeInclusive<u32> = 8_000..=192_000;

/// Mono samples with their rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pcm {
    /// Samples a second.
    pub rate: u32,
    /// In -1..=1.
    pub samples: Vec<f32>,
}

impl Pcm {
    /// How long it sounds.
    pub fn duration(&self) -> std::time::Duration {
        duration(self.samples.len() as u64, self.rate)
    }
}

/// How long `samples` at `rate` sound.
pub fn duration(samples: u64, rate: u32) -> std::time::Duration {
    std::time::Duration::from_nanos(samples.saturating_mul(1_000_000_000) / u64::from(rate.max(1)))
}

/// How one sample is stored; always little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 8 bits, unsigned, silence at 128.
    U8,
    /// 16 bits, signed.
    S16,
    /// 24 bits, signed, in three bytes.
    S24,
    /// 32 bits, signed.
    S32,
    /// 32-bit float in -1..=1.
    F32,
    /// 64-bit float in -1..=1.
    F64,
}

impl Encoding {
    /// Bytes of a sample.
    pub const fn bytes(self) -> usize {
        match self {
            Encoding::U8 => 1,
            Encoding::S16 => 2,
            Encoding::S24 => 3,
            Encoding::S32 | Encoding::F32 => 4,
            Encoding::F64 => 8,
        }
    }

    /// The sample in `bytes`, which has [`bytes`](Self::bytes) of them.
    fn sample(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Encoding::U8, &[a]) => (f32::from(a) - 128.0) / 128.0,
            (Encoding::S16, &[a, b]) => from_s16(i16::from_le_bytes([a, b])),
            (Encoding::S24, &[a, b, c]) => i32::from_le_bytes([0, a, b, c]) as f32 / 2f32.powi(31),
            (Encoding::S32, &[a, b, c, d]) => {
                i32::from_le_bytes([a, b, c, d]) as f32 / 2f32.powi(31)
            }
            (Encoding::F32, &[a, b, c, d]) => limited(f32::from_le_bytes([a, b, c, d])),
            (Encoding::F64, &[a, b, c, d, e, f, g, h]) => {
                limited(f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32)
            }
            _ => 0.0,
        }
    }
}

/// What raw PCM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Of one sample.
    pub encoding: Encoding,
    /// Interleaved channels.
    pub channels: u16,
    /// Samples a second of each channel.
    pub rate: u32,
}

/// A format that is not PCM of speech.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No channels, or more than [`MAX_PCM_CHANNELS`].
    #[error("{0} channels; 1 to {MAX_PCM_CHANNELS} are possible")]
    Channels(u16),
    /// A rate outside [`RATES`].
    #[error("{0} samples a second; {low} to {high} are possible", low = RATES.start(), high = RATES.end())]
    Rate(u32),
}

impl Format {
    /// Mono 16-bit, what speech engines mean by `pcm`.
    pub const fn s16(rate: u32) -> Self {
        Format {
            encoding: Encoding::S16,
            channels: 1,
            rate,
        }
    }

    /// Bytes of one sample of each channel.
    pub const fn frame(self) -> usize {
        self.encoding.bytes() * self.channels as usize
    }

    fn check(self) -> Result<(), FormatError> {
        if self.channels == 0 || self.channels > MAX_PCM_CHANNELS {
            return Err(FormatError::Channels(self.channels));
        }
        if !RATES.contains(&self.rate) {
            return Err(FormatError::Rate(self.rate));
        }
        Ok(())
    }
}

/// The longest frame: [`MAX_PCM_CHANNELS`] of 64 bits.
const MAX_FRAME: usize = MAX_PCM_CHANNELS as usize * 8;

/// Interleaved PCM bytes in, mono samples out.
///
/// ```
/// use unamesh_client::audio::pcm::{Bytes, Encoding, Format};
///
/// let format = Format { encoding: Encoding::S16, channels: 2, rate: 24_000 };
/// let (mut pcm, mut out) = (Bytes::new(format)?, Vec::new());
/// pcm.push(&[0x00, 0x40, 0x00], &mut out);
/// pcm.push(&[0x20], &mut out);
/// assert_eq!(out, [0.375], "the mean of 0.5 and 0.25");
/// # Ok::<(), unamesh_client::audio::pcm::FormatError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bytes {
    format: Format,
    /// The start of a frame whose rest has not come yet.
    partial: [u8; MAX_FRAME],
    filled: usize,
}

impl Bytes {
    /// # Errors
    /// The format's channels or rate are out of bounds.
    pub fn new(format: Format) -> Result<Self, FormatError> {
        format.check()?;
        Ok(Bytes {
            format,
            partial: [0; MAX_FRAME],
            filled: 0,
        })
    }

    /// What the bytes are.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of a frame that is incomplete: not 0 at the end means that something was cut off.
    pub fn partial(&self) -> usize {
        self.filled
    }

    /// Appends the samples that `bytes` complete to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<f32>) {
        let frame = self.format.frame();
        if self.filled > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(frame - self.filled));
            self.partial[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled < frame {
                return;
            }
            out.push(self.mono(&self.partial[..frame]));
            self.filled = 0;
        }
        let frames = bytes.chunks_exact(frame);
        let rest = frames.remainder();
        out.extend(frames.map(|f| self.mono(f)));
        self.partial[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    fn mono(&self, frame: &[u8]) -> f32 {
        let samples = frame.chunks_exact(self.format.encoding.bytes());
        let sum: f32 = samples.map(|s| self.format.encoding.sample(s)).sum();
        sum / f32::from(self.format.channels)
    }
}

/// A sample in -1..=1; what is no number is silence.
pub fn limited(sample: f32) -> f32 {
    if sample.is_nan() {
        0.0
    } else {
        sample.clamp(-1.0, 1.0)
    }
}

/// The nearest 16-bit sample.
pub fn to_s16(sample: f32) -> i16 {
    // The cast saturates: 1.0 becomes 32,767, and what is no number 0.
    (sample * 32_768.0).round() as i16
}

/// A 16-bit sample in -1..1.
pub fn from_s16(sample: i16) -> f32 {
    f32::from(sample) / 32_768.0
}

/// Appends `samples` to `out` as 16-bit little-endian bytes.
pub fn write_s16(samples: &[f32], out: &mut Vec<u8>) {
    out.reserve(samples.len() * 2);
    for sample in samples {
        out.extend_from_slice(&to_s16(*sample).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(format: Format, bytes: &[u8], piece: usize) -> Vec<f32> {
        let (mut pcm, mut out) = (Bytes::new(format).unwrap(), Vec::new());
        bytes.chunks(piece).for_each(|b| pcm.push(b, &mut out));
        assert_eq!(pcm.partial(), bytes.len() % format.frame());
        out
    }

    fn mono(encoding: Encoding) -> Format {
        Format {
            encoding,
            channels: 1,
            rate: 16_000,
        }
    }

    #[test]
    fn every_encoding_has_its_silence_and_its_peaks() {
        let cases: [(Encoding, &[u8], &[f32]); 6] = [
            (Encoding::U8, &[128, 0, 192], &[0.0, -1.0, 0.5]),
            (Encoding::S16, &[0, 0, 0, 0x80, 0, 0x40], &[0.0, -1.0, 0.5]),
            (
                Encoding::S24,
                &[0, 0, 0, 0, 0, 0x80, 0, 0, 0x40],
                &[0.0, -1.0, 0.5],
            ),
            (Encoding::S32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40], &[-1.0, 0.5]),
            (
                Encoding::F32,
                &[0, 0, 0xc0, 0x7f, 0, 0, 0, 0x41],
                &[0.0, 1.0],
            ),
            (
                Encoding::F64,
                &[0, 0, 0, 0, 0, 0, 0xe0, 0xbf, 0, 0, 0, 0, 0, 0, 0xf0, 0xff],
                &[-0.5, -1.0],
            ),
        ];
        for (encoding, bytes, samples) in cases {
            for piece in 1..=bytes.len() {
                assert_eq!(all(mono(encoding), bytes, piece), samples, "{encoding:?}");
            }
        }
    }

    #[test]
    fn all_16_bit_samples_survive() {
        let mut bytes = Vec::new();
        let samples: Vec<f32> = (i16::MIN..=i16::MAX).map(from_s16).collect();
        write_s16(&samples, &mut bytes);
        assert_eq!(all(Format::s16(8_000), &bytes, 4097), samples);
        assert_eq!(
            (to_s16(1.0), to_s16(-7.0), to_s16(f32::NAN)),
            (i16::MAX, i16::MIN, 0)
        );
    }

    #[test]
    fn channels_are_bounded_and_mixed() {
        let of = |channels, rate| {
            let encoding = Encoding::U8;
            Bytes::new(Format {
                encoding,
                channels,
                rate,
            })
            .err()
        };
        assert_eq!(of(0, 16_000), Some(FormatError::Channels(0)));
        assert_eq!(of(9, 16_000), Some(FormatError::Channels(9)));
        assert_eq!(of(1, 0), Some(FormatError::Rate(0)));
        assert_eq!(of(8, 192_000), None);
        let stereo = Format {
            channels: 2,
            ..mono(Encoding::S16)
        };
        let loud = [0xff, 0x7f, 0xff, 0x7f, 0, 0x80, 0xff, 0x7f];
        assert_eq!(all(stereo, &loud, 3), [from_s16(i16::MAX), -0.5 / 32_768.0]);
    }
}
