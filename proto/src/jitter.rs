//! The receiver of a microphone's frames: in order, each once, gaps closed or told.
//!
//! Frames come in datagrams ([`crate::speech::uplink`]): lost, doubled, out of order. What
//! listens is a recognizer, not a loudspeaker, and that decides the policy: **a frame is handed
//! out as soon as all before it were**, since holding one back gains nothing. Only a gap costs
//! time:
//!
//! - A frame is missing once a later one is here. It is waited for until the *target* has passed
//!   since then; after that it is concealed, from the in-band FEC of the next frame if that is
//!   here. So no frame waits longer than the target after its own arrival, and never longer
//!   than [`JITTER_MAX`].
//! - If nothing at all comes, nothing is missing: the buffer waits. A blackout is not silence,
//!   and a recognizer that heard invented silence would end the utterance.
//! - The end of the utterance, told reliably, shows what is missing at its tail.
//!
//! **The target** starts at [`JITTER_MAX`]: only gaps cost time, and they are rare. With every
//! frame in order it sinks by 1/[`DECAY`] of what it is above [`JITTER_MIN`], half of it in seven
//! seconds; each frame that closes a gap, or comes too late to, shows how long a gap of this path
//! needs, and the target rises to that and [`MARGIN`].
//!
//! **Repair.** A frame of which both copies are lost is asked for over the reliable stream
//! ([`Jitter::lost`] tells it once, as soon as a datagram behind its second copy is here). Its
//! answer closes the gap like any late copy, and the target learns what that takes.
//!
//! **Two orders.** [`Jitter::pop`] is the live one, for voice detection, which must know now.
//! Everything is kept until the utterance is dropped, late frames too: a recognizer reads the
//! undisturbed utterance with [`Jitter::frame`], and waits where a frame is not here yet;
//! [`Jitter::missing`] tells what that is.

use crate::limits::{MAX_AUDIO_AHEAD, MAX_AUDIO_FRAME, MAX_UTTERANCE_BYTES, MAX_UTTERANCE_FRAMES};
use crate::speech::uplink::DISTANCE;
use crate::time::Mono;
use crate::timeouts::{JITTER_MAX, JITTER_MIN};
use std::ops::Range;
use std::time::Duration;

/// What the target is above the longest wait that a gap has needed: half a frame.
const MARGIN: Duration = Duration::from_millis(10);
/// With each frame the target sinks by this part of what it is above the minimum.
const DECAY: u32 = 512;

/// What became of a frame that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It will be handed out.
    New,
    /// It was here already, and the first copy stays.
    Copy,
    /// It was concealed meanwhile; it is kept for the recognizer.
    Late,
    /// Its number or its size is out of bounds; nothing was kept.
    Refused,
}

/// What [`Jitter::pop`] hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pop<'a> {
    /// The next frame.
    Frame {
        /// Its number.
        sequence: u32,
        /// One Opus packet.
        frame: &'a [u8],
    },
    /// The next frame is given up: 20 ms to conceal.
    Conceal {
        /// Its number.
        sequence: u32,
        /// The frame after it, if that is here: it may carry this one as in-band FEC.
        next: Option<&'a [u8]>,
    },
    /// Nothing yet. At that time a gap is given up; `None`: only a frame or the end helps.
    Wait(Option<Mono>),
    /// Everything was handed out.
    End,
}

/// What happened so far, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JitterStats {
    /// Different frames that are here.
    pub received: u32,
    /// Of those, came after they had been concealed.
    pub late: u32,
    /// Concealed in the live order.
    pub concealed: u32,
    /// Second and third copies.
    pub copies: u64,
    /// Out of bounds.
    pub refused: u64,
}

/// The utterance's end contradicts what came before: it has fewer frames than are here, or more
/// than an utterance may have, or another number than was told before. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an utterance of {claimed} frames, of which {here} are known")]
pub struct EndError {
    /// Frames that the end claims.
    pub claimed: u32,
    /// Frames up to the newest that is here.
    pub here: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Not here, and known to be missing since then.
    Missing(Mono),
    Here {
        start: u32,
        length: u16,
    },
}

/// The frames of one utterance at their receiver.
#[derive(Clone, Debug)]
pub struct Jitter {
    /// One for each frame up to the newest, or to the end once that is known.
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    /// The frame that is handed out next.
    next: u32,
    /// Below this, what is lost was told.
    told: u32,
    target: Duration,
    ended: bool,
    stats: JitterStats,
}

impl Default for Jitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Jitter {
    /// An utterance of which nothing has come.
    pub fn new() -> Self {
        Jitter {
            slots: Vec::new(),
            bytes: Vec::new(),
            next: 0,
            told: 0,
            target: JITTER_MAX,
            ended: false,
            stats: JitterStats::default(),
        }
    }

    /// A frame has come.
    pub fn insert(&mut self, sequence: u32, frame: &[u8], now: Mono) -> Inserted {
        if !self.takes(sequence, frame) {
            self.stats.refused += 1;
            return Inserted::Refused;
        }
        let at = sequence as usize;
        match self.slots.get(at) {
            Some(Slot::Here { .. }) => {
                self.stats.copies += 1;
                return Inserted::Copy;
            }
            Some(Slot::Missing(since)) => {
                let needed = now.since(*since) + MARGIN;
                self.target = self.target.max(needed).min(JITTER_MAX);
            }
            None => {
                if at == self.slots.len() {
                    self.target -= (self.target - JITTER_MIN) / DECAY;
                }
                self.slots.resize(at + 1, Slot::Missing(now));
            }
        }
        self.slots[at] = Slot::Here {
            // Both bounded: see `takes`.
            start: self.bytes.len() as u32,
            length: frame.len() as u16,
        };
        self.bytes.extend_from_slice(frame);
        self.stats.received += 1;
        if sequence < self.next {
            self.stats.late += 1;
            return Inserted::Late;
        }
        Inserted::New
    }

    /// The utterance has `frames` frames, as its sender told reliably.
    ///
    /// # Errors
    /// That cannot be; nothing changed.
    pub fn end(&mut self, frames: u32, now: Mono) -> Result<(), EndError> {
        let here = self.slots.len() as u32;
        if frames < here || frames > MAX_UTTERANCE_FRAMES || (self.ended && frames != here) {
            let claimed = frames;
            return Err(EndError { claimed, here });
        }
        self.slots.resize(frames as usize, Slot::Missing(now));
        self.ended = true;
        Ok(())
    }

    /// The next of the live order. Call it again until it says [`Pop::Wait`] or [`Pop::End`].
    pub fn pop(&mut self, now: Mono) -> Pop<'_> {
        let sequence = self.next;
        match self.slots.get(sequence as usize) {
            None if self.ended => Pop::End,
            None => Pop::Wait(None),
            Some(Slot::Missing(since)) if now < *since + self.target => {
                Pop::Wait(Some(*since + self.target))
            }
            Some(Slot::Missing(_)) => {
                self.next += 1;
                self.stats.concealed += 1;
                let next = self.frame(self.next);
                Pop::Conceal { sequence, next }
            }
            Some(Slot::Here { .. }) => {
                self.next += 1;
                let frame = self.frame(sequence).unwrap_or_default();
                Pop::Frame { sequence, frame }
            }
        }
    }

    /// The frame of that number, if it is here: what a recognizer hears.
    pub fn frame(&self, sequence: u32) -> Option<&[u8]> {
        match *self.slots.get(sequence as usize)? {
            Slot::Missing(_) => None,
            Slot::Here { start, length } => {
                let start = start as usize;
                self.bytes.get(start..start + usize::from(length))
            }
        }
    }

    /// Frames up to the newest that is here, or to the end once that is known.
    pub fn frames(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The numbers of the frames that are not here, up to [`frames`](Self::frames): what a recognizer
    /// still waits for.
    pub fn missing(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let missing = |slot: &Slot| matches!(slot, Slot::Missing(_));
        let runs = self.slots.chunk_by(move |a, b| missing(a) == missing(b));
        let mut start = 0;
        runs.filter_map(move |run| {
            let range = start..start + run.len() as u32;
            start = range.end;
            run.first().is_some_and(missing).then_some(range)
        })
    }

    /// The next frames of which both copies must be lost, to be asked for. Each is told once; what
    /// does not come for that either is in [`missing`](Self::missing).
    pub fn lost(&mut self) -> Option<Range<u32>> {
        // The second copy of frame n comes with frame n + 2.
        let known = match self.ended {
            true => self.frames(),
            false => self.frames().saturating_sub(DISTANCE + 1),
        };
        let slots = self.slots.get(self.told as usize..known as usize)?;
        let here = |slot: &&Slot| matches!(slot, Slot::Here { .. });
        let start = self.told + slots.iter().take_while(here).count() as u32;
        let run = slots
            .iter()
            .skip_while(here)
            .take_while(|slot| !here(slot))
            .count() as u32;
        self.told = start + run;
        (run > 0).then_some(start..start + run)
    }

    /// Every frame up to the end is here.
    pub fn is_complete(&self) -> bool {
        self.ended && self.stats.received as usize == self.slots.len()
    }

    /// How long a gap is waited for at present.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// What happened so far.
    pub fn stats(&self) -> JitterStats {
        self.stats
    }

    fn takes(&self, sequence: u32, frame: &[u8]) -> bool {
        let known = self.slots.len() as u32;
        let reach = match self.ended {
            true => known,
            false => (known + MAX_AUDIO_AHEAD).min(MAX_UTTERANCE_FRAMES),
        };
        sequence < reach
            && (1..=MAX_AUDIO_FRAME).contains(&frame.len())
            && self.bytes.len() + frame.len() <= MAX_UTTERANCE_BYTES
    }
}

#[cfg(test)]
#[path = "jitter_tests.rs"]
mod tests;
