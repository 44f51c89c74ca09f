//! Decoded sound that waits for the ear: cut and joined when another peer goes on.
//!
//! Positions are samples (24 kHz) of the whole. A chunk's packets are decoded as they come
//! (dropping the pre-skip); the newest one is held back until the next frame shows that it is not
//! the chunk's last, whose end is filling. So no sample too many is ever given out, and a chunk
//! that breaks off has its last 20 ms free for a crossfade.
//!
//! A chunk that comes anew from another peer is collected beside what there is of it, which is
//! played on, until there is enough to find the place where the new sound goes on
//! ([`super::joint`]).

use super::joint::{self, FADE};
use crate::audio::opus::{Decoder, Profile};
use crate::audio::pcm::to_s16;
use unamesh_proto::speech::speak::{PACKET, SAMPLES_PER_MS};

/// What was taken is kept for this long, to be compared with what another peer makes of it.
const HISTORY: usize = joint::TAIL;
/// With less than this left to play a joint is made of what there is, while there is time to
/// find its place.
const HURRY: u64 = 200 * SAMPLES_PER_MS;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Playout {
    /// From `origin` on: history, and what was not taken yet.
    sound: Vec<f32>,
    origin: u64,
    taken: u64,
    chunk: Option<Chunk>,
    /// The newest samples, which are not given out yet.
    held: usize,
    joining: Option<Joining>,
}

/// The chunk that comes in.
struct Chunk {
    /// `None` if libopus has no memory: then it is silent.
    decoder: Option<Decoder>,
    /// Where its first sample lies; a joint may put it before the first of all.
    start: i64,
}

/// A chunk that comes anew.
struct Joining {
    chunk: Chunk,
    sound: Vec<f32>,
    /// Of the newest packet.
    held: usize,
    whole: Option<u64>,
}

impl Playout {
    /// Samples that were given out.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Where the sound ends.
    fn end(&self) -> u64 {
        self.origin + self.sound.len() as u64
    }

    /// Nothing can be given out now.
    pub(super) fn is_dry(&self) -> bool {
        self.free() == 0
    }

    /// Samples that can be given out.
    fn free(&self) -> u64 {
        (self.end() - self.taken).saturating_sub(self.held as u64)
    }

    /// The next chunk begins; where.
    pub(super) fn begin(&mut self, pre_skip: u16) -> u64 {
        let start = self.end();
        self.joining = None;
        self.held = 0;
        self.chunk = Some(Chunk::new(start, pre_skip));
        start
    }

    /// The chunk that began at `start` comes anew.
    pub(super) fn begin_anew(&mut self, start: u64, pre_skip: u16) {
        self.joining = Some(Joining {
            chunk: Chunk::new(start, pre_skip),
            sound: Vec::new(),
            held: 0,
            whole: None,
        });
    }

    /// The chunk's next packet.
    pub(super) fn sound(&mut self, opus: &[u8]) {
        let (chunk, sound, held) = match (&mut self.joining, &mut self.chunk) {
            (Some(j), _) => (&mut j.chunk, &mut j.sound, &mut j.held),
            (None, Some(chunk)) => (chunk, &mut self.sound, &mut self.held),
            (None, None) => return,
        };
        let before = sound.len();
        chunk.decode(opus, sound);
        *held = sound.len() - before;
    }

    /// The chunk is whole, and has so many samples.
    pub(super) fn whole(&mut self, samples: u64) {
        if let Some(joining) = &mut self.joining {
            joining
                .sound
                .truncate(usize::try_from(samples).unwrap_or(usize::MAX));
            (joining.held, joining.whole) = (0, Some(samples));
        } else if let Some(chunk) = self.chunk.take() {
            self.cut(
                chunk
                    .start
                    .saturating_add_unsigned(samples)
                    .try_into()
                    .unwrap_or(0),
            );
        }
    }

    /// Forgets the sound from `at` on, of which nothing was taken.
    pub(super) fn cut(&mut self, at: u64) {
        let kept = at.max(self.taken).saturating_sub(self.origin);
        self.sound
            .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        self.held = 0;
    }

    /// Joins the chunk that comes anew, once there is enough of it (`now`: whatever there is), and
    /// says by how much it lies later than expected.
    pub(super) fn join(&mut self, now: bool) -> Option<i64> {
        let joining = self.joining.as_ref()?;
        let start = u64::try_from(joining.chunk.start).unwrap_or(0);
        let from = self.origin.max(start);
        let old = &self.sound[usize::try_from(from - self.origin).ok()?..];
        let expected = usize::try_from(self.end() - start).ok()?;
        let reach = match now || self.free() < HURRY {
            true => FADE,
            false => joint::reach(expected),
        };
        if joining.whole.is_none() && joining.sound.len() < expected + reach {
            return None;
        }
        let free = usize::try_from(self.taken.saturating_sub(from)).ok()?;
        let skipped = usize::try_from(from - start).ok()?;
        let place = joint::find(old, skipped, free, &joining.sound);
        let mut joining = self.joining.take()?;
        let at = from + place.old as u64;
        self.cut(at);
        let fade = FADE
            .min(place.new)
            .min(usize::try_from(at - self.taken.max(from)).ok()?);
        let tail = self.sound.len() - fade;
        let (old, new) = (
            &mut self.sound[tail..],
            &joining.sound[place.new - fade..place.new],
        );
        joint::crossfade(old, new, place.alike);
        self.sound.extend_from_slice(&joining.sound[place.new..]);
        self.held = joining.held.min(joining.sound.len() - place.new);
        let moved = at.cast_signed() - i64::try_from(place.new).ok()?;
        let shift = moved - joining.chunk.start;
        joining.chunk.start = moved;
        self.chunk = joining.whole.is_none().then_some(joining.chunk);
        Some(shift)
    }

    /// No sound follows: what is held back may go.
    pub(super) fn finish(&mut self) {
        (self.held, self.joining) = (0, None);
    }

    /// Forgets all that was not taken.
    pub(super) fn clear(&mut self) {
        self.cut(self.taken);
        self.finish();
    }

    /// The next samples, at most a packet's.
    pub(super) fn take(&mut self) -> Option<Vec<i16>> {
        let samples = self.free().min(PACKET);
        if samples == 0 {
            return None;
        }
        let from = usize::try_from(self.taken - self.origin).ok()?;
        let to = from + usize::try_from(samples).ok()?;
        let pcm = self.sound[from..to].iter().copied().map(to_s16).collect();
        self.taken += samples;
        if to > 2 * HISTORY {
            let past = to - HISTORY;
            self.sound.drain(..past);
            self.origin += past as u64;
        }
        Some(pcm)
    }
}

impl Chunk {
    fn new(start: u64, pre_skip: u16) -> Self {
        let decoder = Decoder::new(Profile::Down, pre_skip.into());
        let decoder = decoder.inspect_err(|error| tracing::warn!(%error, "no decoder"));
        Chunk {
            decoder: decoder.ok(),
            start: i64::try_from(start).unwrap_or(i64::MAX),
        }
    }

    /// A packet that cannot be decoded is concealed: what follows stays in place.
    fn decode(&mut self, opus: &[u8], out: &mut Vec<f32>) {
        let Some(decoder) = &mut self.decoder else {
            return out.resize(out.len() + Profile::Down.frame(), 0.0);
        };
        let failed = match decoder.decode(opus) {
            Ok(samples) => return out.extend_from_slice(samples),
            Err(error) => error,
        };
        tracing::warn!(error = %failed, "a packet of speech cannot be decoded");
        match decoder.conceal() {
            Ok(samples) => out.extend_from_slice(samples),
            Err(_) => out.resize(out.len() + Profile::Down.frame(), 0.0),
        }
    }
}

#[cfg(test)]
#[path = "playout_tests.rs"]
mod tests;
