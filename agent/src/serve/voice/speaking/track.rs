//! An engine's samples to packets, and which of them may go.
//!
//! Each chunk is an Opus stream of its own, of its text's sound to the sample: the resampler and
//! the encoder end with it. What is ready stands in a queue. A packet goes once it begins before
//! the position that was granted; marks and the end need no grant, but keep their places.

use std::collections::VecDeque;
use std::ops::Range;
use unamesh_client::audio::opus::{CodecError, Encoder, Profile};
use unamesh_client::audio::pcm::from_s16;
use unamesh_client::audio::resample::{RateError, Resampler};
use unamesh_proto::speech::speak::PACKET;
use unamesh_proto::wire::{Sound, SpeakFrame, SpeechDone, SpokenMark, WireError};

/// The sound of one text.
pub(super) struct Track {
    encoder: Encoder,
    /// From the engine's rate.
    resampler: Option<Resampler>,
    /// The samples at hand, at the engine's rate and at ours.
    raw: Vec<f32>,
    sound: Vec<f32>,
    queue: VecDeque<Item>,
    /// In the queue: at most one, whose chunk is the latest.
    marks: usize,
    /// Where that chunk begins.
    at: u64,
    /// Packets that went.
    sent: u32,
}

enum Item {
    Mark(SpokenMark),
    Packet { begins: u64, opus: Vec<u8> },
    End(SpeakFrame),
}

impl Track {
    /// Nothing yet.
    ///
    /// # Errors
    /// libopus has no memory.
    pub fn new() -> Result<Self, CodecError> {
        Ok(Track {
            encoder: Encoder::new(Profile::Down)?,
            resampler: None,
            raw: Vec::new(),
            sound: Vec::new(),
            queue: VecDeque::new(),
            marks: 0,
            at: 0,
            sent: 0,
        })
    }

    /// Samples that a decoder gives before each chunk's first.
    pub fn pre_skip(&self) -> u16 {
        u16::try_from(self.encoder.pre_skip()).unwrap_or(u16::MAX)
    }

    /// No chunk is whole yet.
    pub fn is_first(&self) -> bool {
        self.at == 0
    }

    /// Samples in all packets so far.
    pub fn made(&self) -> u64 {
        let coded = u64::from(self.encoder.length().frames) * PACKET;
        self.at + coded.saturating_sub(self.encoder.pre_skip() as u64)
    }

    /// Packets that went.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Something is ready and may not go.
    pub fn is_held(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A whole chunk is ready of which nothing may go: there is no hurry to make another.
    pub fn is_ahead(&self) -> bool {
        self.marks > 0
    }

    /// The next chunk begins.
    pub fn begin(&mut self, range: &Range<u32>) {
        self.marks += 1;
        self.queue.push_back(Item::Mark(SpokenMark {
            from: range.start,
            to: range.end,
            at: self.at,
        }));
    }

    /// The chunk's samples come at this rate.
    ///
    /// # Errors
    /// It is none of speech.
    pub fn set_rate(&mut self, rate: u32) -> Result<(), RateError> {
        if self.resampler.as_ref().map(Resampler::rate_in) != Some(rate) {
            self.resampler = Some(Resampler::new(rate, Profile::Down.rate())?);
        }
        Ok(())
    }

    /// Takes the chunk's next samples.
    ///
    /// # Errors
    /// libopus failed.
    pub fn push(&mut self, pcm: &[i16]) -> Result<(), CodecError> {
        let Some(resampler) = &mut self.resampler else {
            return Ok(());
        };
        self.raw.clear();
        self.raw.extend(pcm.iter().copied().map(from_s16));
        self.sound.clear();
        resampler.push(&self.raw, &mut self.sound);
        self.encode()
    }

    /// The chunk is whole: how many samples it has.
    ///
    /// # Errors
    /// libopus failed.
    pub fn finish(&mut self) -> Result<u64, CodecError> {
        self.sound.clear();
        if let Some(resampler) = &mut self.resampler {
            resampler.finish(&mut self.sound);
        }
        self.encode()?;
        let mut packets = Packets::of(&self.encoder, self.at, &mut self.queue);
        let length = self.encoder.finish(|opus| packets.add(opus))?;
        self.at += length.samples;
        Ok(length.samples)
    }

    /// All was spoken.
    pub fn end(&mut self) {
        let packets = self.queue.iter();
        let packets = packets.filter(|item| matches!(item, Item::Packet { .. }));
        let held = u32::try_from(packets.count()).unwrap_or(u32::MAX);
        self.queue.push_back(Item::End(SpeakFrame::Done(SpeechDone {
            frames: self.sent.saturating_add(held),
            samples: self.at,
        })));
    }

    /// The latest chunk will not be whole. Those before are delivered; of it goes what has its
    /// grant already, then the error.
    pub fn fail(&mut self, error: WireError, granted: u64) {
        match self
            .queue
            .iter()
            .rposition(|item| matches!(item, Item::Mark(_)))
        {
            // The mark says that the chunk before is whole.
            Some(mark) => self.queue.truncate(mark + 1),
            None => self.queue.retain(|item| match item {
                Item::Packet { begins, .. } => *begins < granted,
                _ => true,
            }),
        }
        self.queue.push_back(Item::End(SpeakFrame::Error(error)));
    }

    /// The next frame that may go before `granted`, a sample of this stream.
    pub fn pop(&mut self, granted: u64) -> Option<SpeakFrame> {
        if let Item::Packet { begins, .. } = self.queue.front()?
            && *begins >= granted
        {
            return None;
        }
        Some(match self.queue.pop_front()? {
            Item::Mark(mark) => {
                self.marks -= 1;
                SpeakFrame::Mark(mark)
            }
            Item::Packet { opus, .. } => {
                let seq = self.sent;
                self.sent += 1;
                SpeakFrame::Sound(Sound { seq, opus })
            }
            Item::End(frame) => frame,
        })
    }

    fn encode(&mut self) -> Result<(), CodecError> {
        let mut packets = Packets::of(&self.encoder, self.at, &mut self.queue);
        self.encoder.push(&self.sound, |opus| packets.add(opus))
    }
}

/// Where a chunk's packets go.
struct Packets<'a> {
    chunk: u64,
    pre_skip: u64,
    /// Samples in the packets so far.
    coded: u64,
    queue: &'a mut VecDeque<Item>,
}

impl<'a> Packets<'a> {
    fn of(encoder: &Encoder, chunk: u64, queue: &'a mut VecDeque<Item>) -> Self {
        Packets {
            chunk,
            pre_skip: encoder.pre_skip() as u64,
            coded: u64::from(encoder.length().frames) * PACKET,
            queue,
        }
    }

    fn add(&mut self, opus: &[u8]) {
        self.queue.push_back(Item::Packet {
            begins: self.chunk + self.coded.saturating_sub(self.pre_skip),
            opus: opus.to_vec(),
        });
        self.coded += PACKET;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_client::audio::opus::Decoder;
    use unamesh_proto::wire::ErrorCode;

    /// A tone of 300 Hz.
    fn tone(rate: u32, samples: usize) -> Vec<i16> {
        let turn = std::f32::consts::TAU * 300.0 / rate as f32;
        (0..samples)
            .map(|n| ((n as f32 * turn).sin() * 8000.0) as i16)
            .collect()
    }

    fn speak(track: &mut Track, range: Range<u32>, rate: u32, pcm: &[i16]) -> u64 {
        track.begin(&range);
        track.set_rate(rate).unwrap();
        pcm.chunks(777).for_each(|part| track.push(part).unwrap());
        track.finish().unwrap()
    }

    fn all(track: &mut Track, granted: u64) -> Vec<SpeakFrame> {
        std::iter::from_fn(|| track.pop(granted)).collect()
    }

    #[test]
    fn every_chunk_decodes_alone_and_to_the_sample() {
        let mut track = Track::new().unwrap();
        let lengths = [
            speak(&mut track, 0..5, 22_050, &tone(22_050, 22_050)),
            speak(&mut track, 5..9, 24_000, &tone(24_000, 4_801)),
            speak(&mut track, 9..10, 48_000, &tone(48_000, 1)),
        ];
        assert_eq!(lengths, [24_000, 4_801, 1]);
        track.begin(&(10..11));
        assert_eq!(track.finish().unwrap(), 0);
        track.end();
        let (mut at, mut seq, mut marks) = (0, 0, Vec::new());
        let mut decoder = None;
        let pre_skip = usize::from(track.pre_skip());
        for frame in all(&mut track, u64::MAX) {
            match frame {
                SpeakFrame::Mark(mark) => {
                    let length = lengths.get(marks.len()).copied().unwrap_or(0);
                    marks.push(mark);
                    let mut fresh = Decoder::new(Profile::Down, pre_skip).unwrap();
                    fresh.set_end(length);
                    decoder = Some(fresh);
                }
                SpeakFrame::Sound(sound) => {
                    assert_eq!(sound.seq, seq);
                    seq += 1;
                    at += decoder.as_mut().unwrap().decode(&sound.opus).unwrap().len();
                }
                SpeakFrame::Done(done) => {
                    assert_eq!((done.frames, done.samples), (seq, 28_802));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(at, 28_802);
        let mark = |from, to, at| SpokenMark { from, to, at };
        let expected = [
            mark(0, 5, 0),
            mark(5, 9, 24_000),
            mark(9, 10, 28_801),
            mark(10, 11, 28_802),
        ];
        assert_eq!(marks, expected);
        assert!(!track.is_held());
    }

    #[test]
    fn packets_wait_for_their_grant_and_marks_for_their_place() {
        let mut track = Track::new().unwrap();
        speak(&mut track, 0..5, 24_000, &tone(24_000, 4_800));
        assert_eq!(all(&mut track, 0).len(), 1, "the mark");
        let pre_skip = u64::from(track.pre_skip());
        // Packet k begins at 480 k - pre_skip: the first two at 0 and soon after.
        assert_eq!(all(&mut track, 1).len(), 1);
        assert_eq!(all(&mut track, 480 - pre_skip).len(), 0);
        assert_eq!(all(&mut track, 481 - pre_skip).len(), 1);
        assert!(!track.is_ahead());
        speak(&mut track, 5..9, 24_000, &tone(24_000, 480));
        assert!(track.is_ahead() && track.is_held());
        let rest = all(&mut track, 4_800);
        assert!(
            matches!(rest.last(), Some(SpeakFrame::Mark(_))),
            "{}",
            rest.len()
        );
        assert!(!track.is_ahead() && track.is_held());
        // Of what fails now nothing has its grant.
        let error = WireError::new(ErrorCode::EngineFailed, "x");
        track.fail(error.clone(), 4_800);
        assert_eq!(all(&mut track, 4_800), [SpeakFrame::Error(error)]);
    }

    #[test]
    fn a_failure_comes_behind_the_chunks_that_are_whole() {
        let mut track = Track::new().unwrap();
        speak(&mut track, 0..5, 24_000, &tone(24_000, 4_800));
        assert_eq!(all(&mut track, 0).len(), 1);
        track.begin(&(5..9));
        track.push(&tone(24_000, 4_800)).unwrap();
        track.fail(WireError::new(ErrorCode::EngineFailed, "x"), 0);
        assert_eq!(all(&mut track, 0).len(), 0);
        let rest = all(&mut track, u64::MAX);
        let packets = rest.len() - 2;
        assert_eq!(
            packets as u64,
            (4_800 + u64::from(track.pre_skip())).div_ceil(PACKET)
        );
        assert!(matches!(
            rest[packets..],
            [SpeakFrame::Mark(_), SpeakFrame::Error(_)]
        ));
    }
}
