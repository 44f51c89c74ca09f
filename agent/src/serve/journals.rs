//! The journals of running generations: each bounded, and all of them together.
//!
//! When a journal is full while its client listens, the past is let go and a new one begins
//! with the frame at hand: the client has nearly all of it. Should its connection break just
//! then, its `Attach` finds a gap and it migrates. When nobody listens, a full journal is the
//! end of the generation: what cannot be kept cannot be delivered.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use unamesh_proto::journal::{Gap, Journal};

/// The memory of all journals.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    total: usize,
    each: usize,
}

impl Budget {
    /// `total` bytes, of which one journal may use `each`.
    pub fn new(total: usize, each: usize) -> Arc<Self> {
        Arc::new(Budget {
            used: AtomicUsize::new(0),
            total,
            each,
        })
    }

    /// A journal within this budget.
    pub fn journal(self: &Arc<Self>) -> Kept {
        Kept {
            journal: Journal::new(self.each),
            counted: 0,
            budget: Arc::clone(self),
        }
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The frame is not kept: the journal or the budget is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// What is kept of one generation. Its memory returns to the budget when it is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    journal: Journal,
    counted: usize,
    budget: Arc<Budget>,
}

impl Kept {
    /// Keeps `frame`, an encoded record, as number `index`.
    ///
    /// # Errors
    /// [`Full`]; see [`Kept::restart`].
    pub fn push(&mut self, index: u32, frame: Bytes) -> Result<(), Full> {
        if self.budget.used.load(Ordering::Relaxed) >= self.budget.total {
            return Err(Full);
        }
        self.journal.push(index, frame).map_err(|_| Full)?;
        let grown = self.journal.bytes() - self.counted;
        self.counted += grown;
        // A few journals that grow at the same moment may exceed the total by a frame each.
        self.budget.used.fetch_add(grown, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets everything and begins anew with `frame`, if at least that fits.
    pub fn restart(&mut self, index: u32, frame: Bytes) {
        *self = self.budget.journal();
        // If it does not fit either, the journal stays empty and every `from` is a gap.
        let _ = self.push(index, frame);
    }

    /// The frames after the first `have`.
    ///
    /// # Errors
    /// [`Gap`] if they are not all here.
    pub fn from(&self, have: u32) -> Result<impl ExactSizeIterator<Item = &Bytes>, Gap> {
        self.journal.from(have)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_and_returned() {
        let budget = Budget::new(250, 1000);
        let (mut a, mut b) = (budget.journal(), budget.journal());
        a.push(0, Bytes::from_static(&[0; 100])).unwrap();
        b.push(0, Bytes::from_static(&[0; 100])).unwrap();
        assert_eq!(a.push(1, Bytes::from_static(b"x")), Err(Full));
        drop(b);
        a.push(1, Bytes::from_static(b"x")).unwrap();
        assert_eq!(a.from(0).unwrap().len(), 2);
        drop(a);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_new_beginning_leaves_a_gap_behind() {
        let budget = Budget::new(10_000, 200);
        let mut kept = budget.journal();
        kept.push(0, Bytes::from_static(&[0; 100])).unwrap();
        let frame = Bytes::from_static(&[1; 100]);
        assert_eq!(kept.push(1, frame.clone()), Err(Full));
        kept.restart(1, frame);
        assert!(kept.from(0).is_err());
        assert_eq!(kept.from(1).unwrap().len(), 1);
        assert!(budget.used() < 200);
    }
}
