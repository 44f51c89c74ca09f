//! A microphone's frames as datagrams, each frame twice.
//!
//! A datagram carries the newest frame and the one two before it, so that every frame travels
//! twice, 40 ms apart: a burst that takes two datagrams in a row takes no frame. Twice in
//! neighbouring datagrams would protect against single losses only.
//!
//! ```text
//! kind        u8    1; a datagram of another kind is ignored
//! utterance   u32   chosen by the sender, little endian as all numbers
//! sequence    u32   of the newest frame; the utterance's first is 0
//! count       u8    frames that follow, 1 to 8
//! count times:
//!   distance  u8    how many frames before `sequence`
//!   length    u16   1 to MAX_AUDIO_FRAME
//!   frame           one Opus packet of 20 ms
//! ```
//!
//! The whole has at most [`MAX_AUDIO_DATAGRAM`] bytes and nothing follows the last frame. There
//! is no timestamp: frames are 20 ms long and none is left out (no DTX), so frame `n` starts at
//! `n * 20 ms`, and a second clock would only have to be checked against that.
//!
//! The sender keeps every frame in an [`Outgoing`] until the utterance's final transcript is
//! there: it repeats the tail reliably at the end, and replays the whole to another peer if the
//! recognizer's dies.

use crate::limits::{
    MAX_AUDIO_DATAGRAM, MAX_AUDIO_FRAME, MAX_UTTERANCE_BYTES, MAX_UTTERANCE_FRAMES,
};

/// The kind of these datagrams.
pub const KIND: u8 = 1;
/// How many frames before the newest its companion is.
pub const DISTANCE: u32 = 2;
/// Frames that a datagram may carry: a later sender may repeat more.
const MAX_FRAMES: u8 = 8;
const HEAD: usize = 10;
const FRAME_HEAD: usize = 3;

/// Why bytes were not a datagram of the uplink. It is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than its head, or longer than any.
    #[error("a datagram of {0} bytes")]
    Size(usize),
    /// A kind of a later version.
    #[error("a datagram of kind {0}")]
    Kind(u8),
    /// No frame, or too many.
    #[error("a datagram with {0} frames")]
    Count(u8),
    /// A frame's length or distance does not fit, or bytes are left over.
    #[error("a datagram whose frames do not fit it")]
    Frames,
}

/// A datagram that was checked: its frames can be read.
///
/// ```
/// use unamesh_proto::speech::uplink::{Datagram, Outgoing};
///
/// let mut sent = Outgoing::new(7);
/// for frame in [b"a", b"b", b"c"] {
///     sent.push(frame)?;
/// }
/// let mut bytes = Vec::new();
/// sent.datagram(2, &mut bytes);
///
/// let datagram = Datagram::parse(&bytes)?;
/// assert_eq!(datagram.utterance(), 7);
/// let frames: Vec<_> = datagram.frames().collect();
/// assert_eq!(frames, [(0, &b"a"[..]), (2, &b"c"[..])]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    utterance: u32,
    sequence: u32,
    frames: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// It is none, or of another kind; nothing of it can be used.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DatagramError> {
        let size = DatagramError::Size(bytes.len());
        if let Some(kind) = bytes.first().filter(|kind| **kind != KIND) {
            return Err(DatagramError::Kind(*kind));
        }
        let (head, frames) = bytes.split_first_chunk::<HEAD>().ok_or(size)?;
        if bytes.len() > MAX_AUDIO_DATAGRAM {
            return Err(size);
        }
        let [_, a, b, c, d, e, f, g, h, count] = *head;
        if count == 0 || count > MAX_FRAMES {
            return Err(DatagramError::Count(count));
        }
        let datagram = Datagram {
            utterance: u32::from_le_bytes([a, b, c, d]),
            sequence: u32::from_le_bytes([e, f, g, h]),
            frames,
        };
        let mut rest = frames;
        for _ in 0..count {
            let (distance, frame, later) = split(rest).ok_or(DatagramError::Frames)?;
            let fits = (1..=MAX_AUDIO_FRAME).contains(&frame.len());
            if !fits || u32::from(distance) > datagram.sequence {
                return Err(DatagramError::Frames);
            }
            rest = later;
        }
        if rest.is_empty() {
            Ok(datagram)
        } else {
            Err(DatagramError::Frames)
        }
    }

    /// Which utterance of this connection.
    pub fn utterance(&self) -> u32 {
        self.utterance
    }

    /// The newest frame's number.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The frames with their numbers, in the order of the datagram: oldest first.
    pub fn frames(&self) -> impl Iterator<Item = (u32, &'a [u8])> + use<'a> {
        let (mut rest, sequence) = (self.frames, self.sequence);
        std::iter::from_fn(move || {
            let (distance, frame, later) = split(rest)?;
            rest = later;
            Some((sequence.saturating_sub(u32::from(distance)), frame))
        })
    }
}

/// The first frame: its distance, its bytes, and what follows.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[distance, low, high], rest) = bytes.split_first_chunk::<FRAME_HEAD>()?;
    let length = usize::from(u16::from_le_bytes([low, high]));
    let (frame, rest) = rest.split_at_checked(length)?;
    Some((distance, frame, rest))
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    /// Empty, or longer than [`MAX_AUDIO_FRAME`].
    #[error("a frame of {0} bytes")]
    Frame(usize),
    /// The utterance is as long as one may be: end it and start the next.
    #[error("the utterance is full")]
    Full,
}

/// The frames of one utterance at their sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    utterance: u32,
    bytes: Vec<u8>,
    /// Where each frame ends in `bytes`.
    ends: Vec<u32>,
}

impl Outgoing {
    /// An utterance without frames.
    pub fn new(utterance: u32) -> Self {
        Outgoing {
            utterance,
            bytes: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Its number.
    pub fn utterance(&self) -> u32 {
        self.utterance
    }

    /// Frames so far.
    pub fn frames(&self) -> u32 {
        // Bounded by `MAX_UTTERANCE_FRAMES`.
        self.ends.len() as u32
    }

    /// Takes the next frame and returns its number.
    ///
    /// # Errors
    /// The frame or the utterance is too long. Nothing was taken.
    pub fn push(&mut self, frame: &[u8]) -> Result<u32, OutgoingError> {
        if !(1..=MAX_AUDIO_FRAME).contains(&frame.len()) {
            return Err(OutgoingError::Frame(frame.len()));
        }
        let (sequence, end) = (self.frames(), self.bytes.len() + frame.len());
        if sequence >= MAX_UTTERANCE_FRAMES || end > MAX_UTTERANCE_BYTES {
            return Err(OutgoingError::Full);
        }
        self.bytes.extend_from_slice(frame);
        self.ends.push(end as u32);
        Ok(sequence)
    }

    /// The frame of that number.
    pub fn frame(&self, sequence: u32) -> Option<&[u8]> {
        let at = sequence as usize;
        let end = *self.ends.get(at)? as usize;
        let start = at
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    /// The frames from that number on: the tail, or everything.
    pub fn from(&self, sequence: u32) -> impl Iterator<Item = (u32, &[u8])> {
        (sequence..self.frames()).filter_map(|n| Some((n, self.frame(n)?)))
    }

    /// Writes the datagram whose newest frame is `sequence` into `out`, in place of what it
    /// holds; nothing if there is no such frame. The companion is left out where both would
    /// not fit.
    pub fn datagram(&self, sequence: u32, out: &mut Vec<u8>) {
        out.clear();
        let Some(newest) = self.frame(sequence) else {
            return;
        };
        let companion = sequence.checked_sub(DISTANCE).and_then(|n| self.frame(n));
        let size = |frame: &[u8]| FRAME_HEAD + frame.len();
        let companion = companion.filter(|c| HEAD + size(c) + size(newest) <= MAX_AUDIO_DATAGRAM);
        out.push(KIND);
        out.extend_from_slice(&self.utterance.to_le_bytes());
        out.extend_from_slice(&sequence.to_le_bytes());
        out.push(1 + u8::from(companion.is_some()));
        // The older first: then no receiver sees a gap that the same datagram closes.
        let older = companion.map(|frame| (DISTANCE as u8, frame));
        for (distance, frame) in older.into_iter().chain([(0, newest)]) {
            out.push(distance);
            // At most `MAX_AUDIO_FRAME`.
            out.extend_from_slice(&(frame.len() as u16).to_le_bytes());
            out.extend_from_slice(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(frames: &[&[u8]]) -> Outgoing {
        let mut sent = Outgoing::new(0x0102_0304);
        for (n, frame) in frames.iter().enumerate() {
            assert_eq!(sent.push(frame), Ok(n as u32));
        }
        sent
    }

    #[test]
    fn the_bytes_are_these() {
        let mut bytes = Vec::new();
        sent(&[b"abc", b"d", b"ef"]).datagram(2, &mut bytes);
        let golden = b"\x01\x04\x03\x02\x01\x02\0\0\0\x02\x02\x03\0abc\x00\x02\0ef";
        assert_eq!(bytes, golden);
        sent(&[b"abc", b"d"]).datagram(1, &mut bytes);
        assert_eq!(bytes, b"\x01\x04\x03\x02\x01\x01\0\0\0\x01\x00\x01\0d");
        sent(&[b"abc"]).datagram(1, &mut bytes);
        assert!(bytes.is_empty());
    }

    #[test]
    fn the_largest_frames_fit() {
        let frame = [7; MAX_AUDIO_FRAME];
        let mut bytes = Vec::new();
        sent(&[&frame[..]; 3]).datagram(2, &mut bytes);
        assert!(bytes.len() <= MAX_AUDIO_DATAGRAM);
        assert_eq!(Datagram::parse(&bytes).unwrap().frames().count(), 2);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let mut good = Vec::new();
        sent(&[b"abc", b"d", b"ef"]).datagram(2, &mut good);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Datagram::parse(&bytes).err()
        };
        assert_eq!(with(0, 1), None);
        assert_eq!(with(0, 2), Some(DatagramError::Kind(2)));
        assert_eq!(with(9, 0), Some(DatagramError::Count(0)));
        assert_eq!(with(9, 9), Some(DatagramError::Count(9)));
        assert_eq!(
            with(9, 1),
            Some(DatagramError::Frames),
            "bytes are left over"
        );
        assert_eq!(
            with(9, 3),
            Some(DatagramError::Frames),
            "a frame is missing"
        );
        assert_eq!(
            with(10, 3),
            Some(DatagramError::Frames),
            "before the first frame"
        );
        assert_eq!(with(11, 0), Some(DatagramError::Frames), "an empty frame");
        assert_eq!(with(11, 9), Some(DatagramError::Frames));
        for cut in 0..good.len() {
            assert!(Datagram::parse(&good[..cut]).is_err());
        }
        let long = [&[1][..], &[0; MAX_AUDIO_DATAGRAM]].concat();
        assert_eq!(Datagram::parse(&long), Err(DatagramError::Size(long.len())));
    }

    #[test]
    fn an_utterance_is_bounded() {
        let mut sent = Outgoing::new(1);
        assert_eq!(sent.push(&[]), Err(OutgoingError::Frame(0)));
        assert_eq!(sent.push(&[0; 501]), Err(OutgoingError::Frame(501)));
        while sent.push(&[0; MAX_AUDIO_FRAME]).is_ok() {}
        assert_eq!(sent.push(&[0; MAX_AUDIO_FRAME]), Err(OutgoingError::Full));
        assert!(sent.bytes.len() <= MAX_UTTERANCE_BYTES);
        let mut small = Outgoing::new(1);
        while small.push(&[0]).is_ok() {}
        assert_eq!(small.frames(), MAX_UTTERANCE_FRAMES);
        assert_eq!(small.from(MAX_UTTERANCE_FRAMES - 2).count(), 2);
    }
}
