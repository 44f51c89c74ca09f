//! What one peer sends of a text: checked, and kept until it is given out.

use super::PACKET;
use crate::limits::MAX_AUDIO_FRAME;
use crate::wire::{Sound, SpeechAccepted, SpeechDone, SpokenMark};
use std::collections::VecDeque;

/// A part of a text's sound, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A chunk begins, `at` samples into the stream.
    Begin { from: u32, to: u32, at: u64 },
    /// Its next packet.
    Sound(Vec<u8>),
    /// It is whole.
    Whole { samples: u64 },
    /// The text is.
    End,
}

/// The peer broke the protocol.
#[derive(Debug)]
pub(super) struct Broken;

/// The chunk that a stream is in.
#[derive(Clone, Copy, Debug)]
struct Open {
    from: u32,
    to: u32,
    at: u64,
    packets: u64,
}

/// An attempt's work.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) voice: String,
    pub(super) same: bool,
    pub(super) pre_skip: u16,
    /// The character that it was asked to begin with.
    pub(super) first: u32,
    /// Of the whole text.
    chars: u32,
    seq: u32,
    chunk: Option<Open>,
    /// Where its first sample lies in the whole; of a backup, about where.
    pub(super) base: i64,
    /// Packets that begin before this sample of the stream may come.
    pub(super) granted: u64,
    /// What came and was not given out: a backup's.
    pub(super) held: VecDeque<Piece>,
}

impl Stream {
    pub(super) fn new(voice: String, same: bool, first: u32, chars: u32, base: u64) -> Self {
        Stream {
            voice,
            same,
            pre_skip: 0,
            first,
            chars,
            seq: 0,
            chunk: None,
            base: i64::try_from(base).unwrap_or(i64::MAX),
            granted: 0,
            held: VecDeque::new(),
        }
    }

    pub(super) fn accepted(&mut self, accepted: SpeechAccepted) -> Result<(), Broken> {
        if self.chunk.is_some() {
            return Err(Broken);
        }
        self.pre_skip = accepted.pre_skip;
        self.voice = accepted.voice;
        // One that was asked for no voice calls whatever it has the same.
        self.same &= accepted.same_voice;
        Ok(())
    }

    pub(super) fn mark(&mut self, mark: SpokenMark) -> Result<(), Broken> {
        let next = self.close(mark.at)?;
        if mark.from != next || mark.to <= mark.from || mark.to > self.chars {
            return Err(Broken);
        }
        let (from, to, at) = (mark.from, mark.to, mark.at);
        self.chunk = Some(Open {
            from,
            to,
            at,
            packets: 0,
        });
        self.held.push_back(Piece::Begin { from, to, at });
        Ok(())
    }

    pub(super) fn sound(&mut self, sound: Sound) -> Result<(), Broken> {
        let fits = (1..=MAX_AUDIO_FRAME).contains(&sound.opus.len());
        let allowed = sound.seq == self.seq && !self.is_full();
        let Some(chunk) = self.chunk.as_mut().filter(|_| fits && allowed) else {
            return Err(Broken);
        };
        chunk.packets += 1;
        self.seq += 1;
        self.held.push_back(Piece::Sound(sound.opus));
        Ok(())
    }

    pub(super) fn done(&mut self, done: SpeechDone) -> Result<(), Broken> {
        let next = self.close(done.samples)?;
        if next != self.chars || done.frames != self.seq {
            return Err(Broken);
        }
        self.held.push_back(Piece::End);
        Ok(())
    }

    /// It may send nothing at the moment.
    pub(super) fn is_full(&self) -> bool {
        self.position() >= self.granted
    }

    /// A chunk that begins with this character may still come, or is here.
    pub(super) fn may_speak(&self, from: u32) -> bool {
        match self.chunk {
            None => self.first <= from,
            Some(chunk) => chunk.from <= from,
        }
    }

    /// Where the next packet begins.
    fn position(&self) -> u64 {
        let position = |c: Open| c.at + received(c.packets, self.pre_skip);
        self.chunk.map_or(0, position)
    }

    /// The chunk ends at that sample of the stream; the character that follows it.
    fn close(&mut self, at: u64) -> Result<u32, Broken> {
        let Some(chunk) = self.chunk.take() else {
            return if at == 0 { Ok(self.first) } else { Err(Broken) };
        };
        let samples = at.checked_sub(chunk.at).ok_or(Broken)?;
        let needed = match samples {
            0 => 0,
            n => n.saturating_add(self.pre_skip.into()).div_ceil(PACKET),
        };
        if chunk.packets != needed {
            return Err(Broken);
        }
        self.held.push_back(Piece::Whole { samples });
        Ok(chunk.to)
    }
}

/// Samples that so many packets of a chunk give.
pub(super) fn received(packets: u64, pre_skip: u16) -> u64 {
    (packets * PACKET).saturating_sub(pre_skip.into())
}
