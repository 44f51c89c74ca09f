//! What a serving agent keeps of a generation, so that a client can reattach.
//!
//! Frames are kept encoded, in order, without a hole: the index of the first, then one after
//! the other. A client that has `n` frames asks for [`Journal::from`]`(n)` and gets the rest;
//! nothing is computed again. The terminal frame is pushed like any other, with the next
//! index.
//!
//! Memory is bounded by the limit given at the start. When a frame would exceed it, that
//! frame and all later ones are refused: the generation goes on for the client that listens,
//! and one that reattaches beyond the kept part gets a [`Gap`] and migrates instead.

use bytes::Bytes;

/// What a kept frame costs beside its bytes: its handle, and the allocation's own header.
const FRAME_OVERHEAD: usize = size_of::<Bytes>() + 16;

/// The frames of one generation.
#[derive(Debug)]
pub struct Journal {
    limit: usize,
    first: u32,
    frames: Vec<Bytes>,
    bytes: usize,
    closed: bool,
}

/// The journal takes no more frames: the limit was reached, or an index was not the next. The
/// frames before stay available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal is full at frame {at}")]
pub struct JournalFull {
    /// The index of the first frame that is not kept.
    pub at: u32,
}

/// The asked-for frame is not in the journal, so the rest of the answer cannot be had from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames {first}..{next} are kept, {asked} is not among them")]
pub struct Gap {
    /// What was asked for.
    pub asked: u32,
    /// The first frame that is kept.
    pub first: u32,
    /// The frame after the last that is kept.
    pub next: u32,
}

impl Journal {
    /// An empty journal that holds at most `limit_bytes`, its bookkeeping included. Its first
    /// frame sets the first index (a replayed prefix is not kept: its frames were delivered).
    pub fn new(limit_bytes: usize) -> Self {
        Journal {
            limit: limit_bytes,
            first: 0,
            frames: Vec::new(),
            bytes: 0,
            closed: false,
        }
    }

    /// Keeps `frame`, an encoded record, as number `index`.
    ///
    /// # Errors
    /// [`JournalFull`], from then on for every frame, so that no hole can arise.
    pub fn push(&mut self, index: u32, frame: Bytes) -> Result<(), JournalFull> {
        if self.frames.is_empty() && !self.closed {
            self.first = index;
        }
        let cost = frame.len() + FRAME_OVERHEAD;
        let fits = self.bytes.saturating_add(cost) <= self.limit;
        if self.closed || !fits || index != self.next_index() || index == u32::MAX {
            self.closed = true;
            return Err(JournalFull {
                at: self.next_index(),
            });
        }
        self.bytes += cost;
        self.frames.push(frame);
        Ok(())
    }

    /// The frames after the first `have`, for a client that reattaches.
    ///
    /// # Errors
    /// [`Gap`] if frame `have` was never kept, or lies beyond what was made; also on a closed
    /// journal, whose end is not the end of the answer.
    pub fn from(&self, have: u32) -> Result<impl ExactSizeIterator<Item = &Bytes>, Gap> {
        let gap = Gap {
            asked: have,
            first: self.first,
            next: self.next_index(),
        };
        let skip = have.checked_sub(self.first).ok_or(gap)?;
        let rest = self.frames.get(skip as usize..).ok_or(gap)?;
        if self.closed && rest.is_empty() {
            return Err(gap);
        }
        Ok(rest.iter())
    }

    /// The index that the next frame must have; 0 before the first.
    pub fn next_index(&self) -> u32 {
        // `push` keeps the sum below u32::MAX.
        self.first
            .saturating_add(u32::try_from(self.frames.len()).unwrap_or(u32::MAX))
    }

    /// Bytes held, bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether every frame pushed so far was kept.
    pub fn is_complete(&self) -> bool {
        !self.closed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(i: u32) -> Bytes {
        Bytes::from(i.to_le_bytes().to_vec())
    }

    #[test]
    fn gives_back_the_rest_after_any_point() {
        let mut journal = Journal::new(10_000);
        for i in 0..20 {
            journal.push(i, frame(i)).unwrap();
        }
        for have in 0..=20 {
            let rest: Vec<_> = journal.from(have).unwrap().cloned().collect();
            assert_eq!(rest, (have..20).map(frame).collect::<Vec<_>>());
        }
        assert_eq!(
            journal.from(21).err(),
            Some(Gap {
                asked: 21,
                first: 0,
                next: 20
            })
        );
        assert_eq!(journal.next_index(), 20);
    }

    #[test]
    fn starts_at_the_index_of_a_resumed_generation() {
        let mut journal = Journal::new(10_000);
        journal.push(7, frame(7)).unwrap();
        assert_eq!(journal.from(7).unwrap().len(), 1);
        assert_eq!(journal.from(8).unwrap().len(), 0);
        assert!(journal.from(6).is_err());
    }

    #[test]
    fn is_bounded_and_never_has_a_hole() {
        let mut journal = Journal::new(3 * (4 + FRAME_OVERHEAD));
        for i in 0..3 {
            journal.push(i, frame(i)).unwrap();
        }
        assert_eq!(journal.push(3, frame(3)), Err(JournalFull { at: 3 }));
        assert_eq!(journal.push(3, Bytes::new()), Err(JournalFull { at: 3 }));
        assert!(journal.bytes() <= 3 * (4 + FRAME_OVERHEAD));
        assert_eq!(journal.from(1).unwrap().len(), 2);
        // Frame 3 exists and is not here: handing out "nothing more" would lose it.
        assert!(journal.from(3).is_err());
        assert!(!journal.is_complete());
    }

    #[test]
    fn a_skipped_index_closes_it() {
        let mut journal = Journal::new(10_000);
        journal.push(0, frame(0)).unwrap();
        assert!(journal.push(2, frame(2)).is_err());
        assert!(journal.push(1, frame(1)).is_err());
        assert_eq!(journal.from(0).unwrap().len(), 1);
    }
}
