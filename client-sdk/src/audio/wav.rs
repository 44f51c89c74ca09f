//! WAV as engines send it, and WAV files.
//!
//! [`Parser`] takes the bytes of a WAV as they arrive and hands out mono samples at once, long
//! before the end is there. No well-kept crate does that: `hound` and `wav` (LGPL) read from
//! a `Read` that blocks, `symphonia` (MPL) from one that can seek as well. Files are read with
//! it too, so that there is one reading of the format; they are written by [`hound`].
//!
//! What real engines send, and what becomes of it:
//! - a data length of 0 or of 2 GiB and more, because the header went out first: the samples go
//!   on to the end of the body;
//! - other chunks before and after the samples, of odd length too: skipped;
//! - a second whole WAV behind the first, one for each sentence: joined if its format is the
//!   same;
//! - an error page or JSON instead of a WAV: [`WavError::NotWav`] as soon as four bytes show it;
//! - a header that contradicts itself (bytes a second, bytes of a frame): an error, since one
//!   of its numbers is wrong and the wrong guess would be heard;
//! - samples behind the promised length, because the header was made for the first sentence only:
//!   an error, since nobody can tell them from a chunk of a strange name;
//! - an end before the promised length, or in the middle of a sample: everything up to there
//!   was handed out, and [`Parser::finish`] says what is missing.

use super::pcm::{Bytes, Encoding, Format, FormatError, to_s16};
use hound::{SampleFormat, WavSpec, WavWriter};
use std::io::{Seek, Write};
use unamesh_proto::limits::MAX_WAV_HEAD;

/// From here on a length stands for "not known yet".
const UNKNOWN_LENGTH: u32 = 0x7fff_0000;
/// The longest `fmt ` chunk: 40 bytes in WAVE_FORMAT_EXTENSIBLE.
const MAX_FMT: usize = 128;
const PCM: u16 = 1;
const FLOAT: u16 = 3;
const EXTENSIBLE: u16 = 0xfffe;
/// What follows the format's number in the GUID of WAVE_FORMAT_EXTENSIBLE.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

/// Why bytes were not a whole WAV. Samples that were handed out before stay good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WavError {
    /// Nothing came, or a WAV without samples.
    #[error("no audio came")]
    Empty,
    /// The bytes are something else.
    #[error("this is not a WAV: it starts with {0:02x?}")]
    NotWav([u8; 4]),
    /// Compressed, or of an unusual width.
    #[error("WAV of format {format} with {bits} bits a sample is not supported")]
    Unsupported {
        /// The number of the format.
        format: u16,
        /// Bits of a sample.
        bits: u16,
    },
    /// Channels or a rate that no speech has.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The header's numbers contradict each other.
    #[error("the WAV's header contradicts itself: {field} is {claimed}, the rest makes {actual}")]
    Contradiction {
        /// The field of the header.
        field: &'static str,
        /// Its value.
        claimed: u32,
        /// What the other fields make.
        actual: u32,
    },
    /// The samples come before their format.
    #[error("the WAV's samples come before their format")]
    NoFormat,
    /// The header goes on for longer than [`MAX_WAV_HEAD`].
    #[error("the WAV's header is longer than {MAX_WAV_HEAD} bytes")]
    HeadTooLong,
    /// More bytes follow the samples than were promised, and are no chunk.
    #[error("bytes follow the WAV's samples that are no part of it: {0:02x?}")]
    Stray([u8; 4]),
    /// A second WAV behind the first has another format.
    #[error("the WAV's format changes in the middle")]
    FormatChanged,
    /// It ends before its promised end.
    #[error("the WAV ends early: {missing} bytes less than its head says")]
    Truncated {
        /// Bytes that did not come.
        missing: u64,
    },
}

/// The bytes of a WAV in, mono samples out.
///
/// ```
/// use unamesh_client::audio::wav::{Parser, stream_header};
///
/// let (mut parser, mut out) = (Parser::new(), Vec::new());
/// parser.push(&stream_header(22_050), &mut out)?;
/// assert_eq!(parser.format().map(|f| f.rate), Some(22_050));
/// parser.push(&[0x00, 0x40, 0x00], &mut out)?;
/// assert_eq!(out, [0.5], "what is whole is here at once");
/// # Ok::<(), unamesh_client::audio::wav::WavError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    state: State,
    /// Bytes of a header's part that is incomplete.
    head: Vec<u8>,
    /// Bytes since the last sample that were none.
    overhead: usize,
    pcm: Option<Bytes>,
    samples: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// `RIFF`, a length, `WAVE`.
    Riff,
    /// A chunk's name and length.
    Chunk,
    /// The `fmt ` chunk, of this length.
    Fmt(u32),
    /// Bytes to pass over.
    Skip(u64),
    /// Samples; `None` to the end of the body. Whether a byte of padding follows.
    Data(Option<u32>, bool),
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the first byte.
    pub fn new() -> Self {
        Parser {
            state: State::Riff,
            head: Vec::new(),
            overhead: 0,
            pcm: None,
            samples: 0,
        }
    }

    /// What the samples are stored as, once the header is in. They come out as mono at its rate.
    pub fn format(&self) -> Option<Format> {
        self.pcm.as_ref().map(Bytes::format)
    }

    /// Samples handed out so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Takes the next bytes and appends the samples that they complete to `out`.
    ///
    /// # Errors
    /// The header is none that can be read. Nothing that follows can be understood.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<f32>) -> Result<(), WavError> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Data(left, padded) => self.data(bytes, left, padded, out)?,
                State::Skip(left) => self.skip(bytes, left)?,
                State::Riff => self.collect(bytes, 12, Self::riff)?,
                State::Chunk => self.collect(bytes, 8, Self::chunk)?,
                State::Fmt(len) => self.collect(bytes, len as usize, |p, b| p.fmt(b, len))?,
            };
        }
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// No sample came, or fewer than promised.
    pub fn finish(&self) -> Result<(), WavError> {
        let partial = self.pcm.as_ref().map_or(0, Bytes::partial);
        let missing = match self.state {
            State::Data(Some(left), _) => u64::from(left),
            State::Data(None, _) if partial > 0 => {
                let frame = self.format().map_or(0, Format::frame);
                (frame - partial) as u64
            }
            State::Fmt(_) | State::Riff if !self.head.is_empty() || self.samples > 0 => 1,
            // What follows the samples may be missing.
            _ => 0,
        };
        match missing {
            0 if self.samples == 0 => Err(WavError::Empty),
            0 => Ok(()),
            missing => Err(WavError::Truncated { missing }),
        }
    }

    fn data<'a>(
        &mut self,
        bytes: &'a [u8],
        left: Option<u32>,
        padded: bool,
        out: &mut Vec<f32>,
    ) -> Result<&'a [u8], WavError> {
        let pcm = self.pcm.as_mut().ok_or(WavError::NoFormat)?;
        let take = left.map_or(bytes.len(), |left| bytes.len().min(left as usize));
        let (now, later) = bytes.split_at(take);
        let before = out.len();
        pcm.push(now, out);
        self.samples += (out.len() - before) as u64;
        self.overhead = 0;
        let left = left.map(|left| left - take as u32);
        if left == Some(0) && pcm.partial() > 0 {
            // Half a sample is none, and must not shift those of a second WAV.
            *pcm = Bytes::new(pcm.format())?;
        }
        self.state = match left {
            Some(0) if padded => State::Skip(1),
            Some(0) => State::Chunk,
            left => State::Data(left, padded),
        };
        Ok(later)
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], left: u64) -> Result<&'a [u8], WavError> {
        let take = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.state = match left - take as u64 {
            0 => State::Chunk,
            left => State::Skip(left),
        };
        self.count(take)?;
        Ok(&bytes[take..])
    }

    /// Collects `len` bytes of header and has `then` read them.
    fn collect<'a>(
        &mut self,
        bytes: &'a [u8],
        len: usize,
        then: impl FnOnce(&mut Self, &[u8]) -> Result<(), WavError>,
    ) -> Result<&'a [u8], WavError> {
        let take = bytes.len().min(len - self.head.len());
        let (now, later) = bytes.split_at(take);
        self.head.extend_from_slice(now);
        self.count(take)?;
        if self.state == State::Riff
            && let Some(start) = self.head.first_chunk::<4>()
            && start != b"RIFF"
        {
            return Err(WavError::NotWav(*start));
        }
        if self.head.len() == len {
            let head = std::mem::take(&mut self.head);
            then(self, &head)?;
            self.head = head;
            self.head.clear();
        }
        Ok(later)
    }

    /// What is behind the samples may be as long as it likes: it is passed over anyway.
    fn count(&mut self, bytes: usize) -> Result<(), WavError> {
        self.overhead = self.overhead.saturating_add(bytes);
        if self.samples == 0 && self.overhead > MAX_WAV_HEAD {
            return Err(WavError::HeadTooLong);
        }
        Ok(())
    }

    fn riff(&mut self, head: &[u8]) -> Result<(), WavError> {
        match head.last_chunk::<4>() {
            Some(b"WAVE") => self.state = State::Chunk,
            other => return Err(WavError::NotWav(other.copied().unwrap_or_default())),
        }
        Ok(())
    }

    fn chunk(&mut self, head: &[u8]) -> Result<(), WavError> {
        let len = u32_at(head, 4);
        // Some fill the file up with zeros.
        let name = head.iter().take(4).all(|b| matches!(b, b' '..=b'~'));
        if self.samples > 0
            && let Some(start) = head.first_chunk::<4>()
            && !name
            && head != [0; 8]
        {
            return Err(WavError::Stray(*start));
        }
        self.state = match &head[..4] {
            b"fmt " if (16..=MAX_FMT as u32).contains(&len) => State::Fmt(len),
            b"data" if self.pcm.is_none() => return Err(WavError::NoFormat),
            b"data" if len == 0 || len >= UNKNOWN_LENGTH => State::Data(None, false),
            b"data" => State::Data(Some(len), len % 2 == 1),
            // Four bytes of the second WAV's head are still to come; its length says nothing.
            b"RIFF" => State::Skip(4),
            _ => State::Skip(u64::from(len) + u64::from(len % 2)),
        };
        if self.state == State::Skip(0) {
            self.state = State::Chunk;
        }
        Ok(())
    }

    fn fmt(&mut self, fmt: &[u8], len: u32) -> Result<(), WavError> {
        let format = parse_fmt(fmt)?;
        match &self.pcm {
            Some(pcm) if self.samples > 0 && pcm.format() != format => {
                return Err(WavError::FormatChanged);
            }
            Some(pcm) if pcm.format() == format => {}
            _ => self.pcm = Some(Bytes::new(format)?),
        }
        self.state = match len % 2 {
            0 => State::Chunk,
            _ => State::Skip(1),
        };
        Ok(())
    }
}

/// Reads a `fmt ` chunk of at least 16 bytes.
fn parse_fmt(fmt: &[u8]) -> Result<Format, WavError> {
    let mut number = u16_at(fmt, 0);
    let (channels, bits) = (u16_at(fmt, 2), u16_at(fmt, 14));
    let rate = u32_at(fmt, 4);
    if number == EXTENSIBLE && fmt.get(26..40) == Some(&GUID_TAIL) {
        number = u16_at(fmt, 24);
    }
    let encoding = match (number, bits) {
        (PCM, 8) => Encoding::U8,
        (PCM, 16) => Encoding::S16,
        (PCM, 24) => Encoding::S24,
        (PCM, 32) => Encoding::S32,
        (FLOAT, 32) => Encoding::F32,
        (FLOAT, 64) => Encoding::F64,
        (format, bits) => return Err(WavError::Unsupported { format, bits }),
    };
    let format = Format {
        encoding,
        channels,
        rate,
    };
    // Out of bounds first: it is the clearer word.
    Bytes::new(format)?;
    let frame = format.frame() as u32;
    agree("bytes of a frame", u32::from(u16_at(fmt, 12)), frame)?;
    agree("bytes a second", u32_at(fmt, 8), rate * frame)?;
    Ok(format)
}

/// Sloppy writers leave a field 0.
fn agree(field: &'static str, claimed: u32, actual: u32) -> Result<(), WavError> {
    if claimed == actual || claimed == 0 {
        return Ok(());
    }
    Err(WavError::Contradiction {
        field,
        claimed,
        actual,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    u16::from_le_bytes(two.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(four.unwrap_or_default())
}

/// Mono, 16 bits: what every engine, player and recognizer reads.
fn spec(rate: u32) -> WavSpec {
    WavSpec {
        channels: 1,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    }
}

/// The header of a mono 16-bit WAV whose length is not known yet, for an HTTP reply: samples
/// follow as [`super::pcm::write_s16`] makes them.
pub fn stream_header(rate: u32) -> Vec<u8> {
    spec(rate).into_header_for_infinite_file()
}

/// A mono 16-bit WAV file.
pub struct Writer<W: Write + Seek>(WavWriter<W>);

impl<W: Write + Seek> Writer<W> {
    /// Starts a file with samples at `rate`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(file: W, rate: u32) -> std::io::Result<Self> {
        let writer = WavWriter::new(file, spec(rate)).map_err(std::io::Error::other)?;
        Ok(Writer(writer))
    }

    /// Appends samples.
    ///
    /// # Errors
    /// The file cannot be written, or becomes longer than a WAV can be (12 hours at 48 kHz).
    pub fn push(&mut self, pcm: &[f32]) -> std::io::Result<()> {
        if u64::from(self.0.len()) + pcm.len() as u64 > u64::from(UNKNOWN_LENGTH / 2) {
            return Err(std::io::Error::other("a WAV cannot be so long"));
        }
        for sample in pcm {
            self.0
                .write_sample(to_s16(*sample))
                .map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    /// Writes the lengths into the header.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> std::io::Result<()> {
        self.0.finalize().map_err(std::io::Error::other)
    }
}

#[cfg(test)]
#[path = "wav_tests.rs"]
mod tests;
