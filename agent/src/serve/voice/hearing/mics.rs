//! The microphones of one connection: datagrams to the streams that listen to them.
//!
//! The connection's own task hands every datagram to [`Mics::deliver`], which never waits. Each
//! utterance that is being heard has a bounded box. A datagram of one that is not heard yet may
//! have overtaken its request and is kept for it, the newest [`MAX_EARLY_DATAGRAMS`] of them. What
//! does not fit, what is malformed and what belongs to an utterance that is over is dropped and
//! counted: a frame that is missed is asked for on the stream.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use unamesh_proto::limits::{MAX_EARLY_DATAGRAMS, MAX_WAITING_DATAGRAMS};
use unamesh_proto::speech::uplink::{Datagram, DatagramError};

/// The microphones of one connection.
#[derive(Default)]
pub(in super::super::super) struct Mics(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    boxes: HashMap<u32, mpsc::Sender<Bytes>>,
    early: VecDeque<(u32, Bytes)>,
    /// The utterances that ended last: what is still on its way is nobody's.
    over: VecDeque<u32>,
    dropped: Dropped,
}

/// Datagrams that nobody got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// No datagrams of a microphone.
    pub malformed: u64,
    /// Their stream was too slow.
    pub late: u64,
    /// Of an utterance that nobody hears, or that is over.
    pub unknown: u64,
}

impl Mics {
    /// Hands a datagram to whoever listens.
    pub fn deliver(&self, bytes: Bytes) {
        let utterance = match Datagram::parse(&bytes) {
            Ok(datagram) => datagram.utterance(),
            // Of a later version: no fault.
            Err(DatagramError::Kind(_)) => return,
            Err(error) => {
                let malformed = {
                    let dropped = &mut self.lock().dropped;
                    dropped.malformed += 1;
                    dropped.malformed
                };
                // A line for the first, the second, the fourth, ...
                if malformed.is_power_of_two() {
                    tracing::debug!(%error, malformed, "datagrams dropped");
                }
                return;
            }
        };
        let mut inner = self.lock();
        let Some(listener) = inner.boxes.get(&utterance) else {
            return inner.keep(utterance, bytes);
        };
        if listener.try_send(bytes).is_err() {
            inner.dropped.late += 1;
        }
    }

    /// Listens to `utterance`. Whoever did so before gets no more.
    pub fn open(self: &Arc<Self>, utterance: u32) -> Mic {
        let (sender, datagrams) = mpsc::channel(MAX_WAITING_DATAGRAMS);
        let mut inner = self.lock();
        inner.over.retain(|over| *over != utterance);
        let early = std::mem::take(&mut inner.early);
        let (ours, others) = early.into_iter().partition(|(of, _)| *of == utterance);
        inner.early = others;
        let ours: VecDeque<(u32, Bytes)> = ours;
        for (_, bytes) in ours {
            // There is room for all of them: see the limits.
            let _ = sender.try_send(bytes);
        }
        inner.boxes.insert(utterance, sender);
        drop(inner);
        Mic {
            mics: Arc::clone(self),
            utterance,
            datagrams,
        }
    }

    /// What was dropped so far.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> Dropped {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, utterance: u32, bytes: Bytes) {
        if self.over.contains(&utterance) {
            self.dropped.unknown += 1;
            return;
        }
        self.early.push_back((utterance, bytes));
        if self.early.len() > MAX_EARLY_DATAGRAMS {
            self.early.pop_front();
            self.dropped.unknown += 1;
        }
    }
}

/// One utterance's datagrams. Closed when it is dropped.
pub(in super::super::super) struct Mic {
    mics: Arc<Mics>,
    utterance: u32,
    datagrams: mpsc::Receiver<Bytes>,
}

impl Mic {
    /// The next datagram. Pending for good once another stream listens to the utterance.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        match ready!(self.datagrams.poll_recv(cx)) {
            Some(bytes) => Poll::Ready(bytes),
            None => Poll::Pending,
        }
    }

    /// The next one if it is here.
    pub fn try_next(&mut self) -> Option<Bytes> {
        self.datagrams.try_recv().ok()
    }
}

impl Drop for Mic {
    fn drop(&mut self) {
        // First: it tells our own entry from a successor's.
        self.datagrams.close();
        let mut inner = self.mics.lock();
        let ours = inner.boxes.get(&self.utterance);
        if ours.is_some_and(mpsc::Sender::is_closed) {
            inner.boxes.remove(&self.utterance);
            inner.over.push_back(self.utterance);
            if inner.over.len() > MAX_EARLY_DATAGRAMS {
                inner.over.pop_front();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_proto::speech::uplink::Outgoing;

    fn datagram(utterance: u32, frame: u8) -> Bytes {
        let mut sent = Outgoing::new(utterance);
        sent.push(&[frame]).unwrap();
        let mut bytes = Vec::new();
        sent.datagram(0, &mut bytes);
        bytes.into()
    }

    fn taken(mic: &mut Mic) -> Vec<Bytes> {
        std::iter::from_fn(|| mic.try_next()).collect()
    }

    #[test]
    fn each_utterance_gets_its_own_and_the_early_ones() {
        let mics = Arc::new(Mics::default());
        mics.deliver(datagram(1, 1));
        mics.deliver(datagram(2, 2));
        mics.deliver(datagram(1, 3));
        let mut one = mics.open(1);
        mics.deliver(datagram(1, 4));
        assert_eq!(taken(&mut one), [1, 3, 4].map(|n| datagram(1, n)));
        let mut two = mics.open(2);
        assert_eq!(taken(&mut two), [datagram(2, 2)]);
        // A second stream of the same utterance gets what comes from now on.
        let mut again = mics.open(1);
        mics.deliver(datagram(1, 5));
        assert_eq!((taken(&mut one).len(), taken(&mut again).len()), (0, 1));
        drop(one);
        mics.deliver(datagram(1, 6));
        assert_eq!(taken(&mut again).len(), 1);
        drop(again);
        mics.deliver(datagram(1, 7));
        assert_eq!(mics.dropped().unknown, 1);
        let kept = taken(&mut mics.open(1)).len();
        assert_eq!(kept, 0, "of what is over nothing is kept");
        assert_eq!(
            mics.dropped(),
            Dropped {
                unknown: 1,
                ..Dropped::default()
            }
        );
    }

    #[test]
    fn nothing_grows() {
        let mics = Arc::new(Mics::default());
        for n in 0..10_000 {
            mics.deliver(datagram(n, 0));
        }
        let inner = mics.lock().early.len();
        assert_eq!(inner, MAX_EARLY_DATAGRAMS);
        let mut slow = mics.open(9_999);
        for n in 0..200 {
            mics.deliver(datagram(9_999, n));
        }
        assert_eq!(taken(&mut slow).len(), MAX_WAITING_DATAGRAMS);
        for n in 0..1000 {
            drop(mics.open(n));
        }
        assert_eq!(mics.lock().boxes.len(), 1);
        assert!(mics.lock().over.len() <= MAX_EARLY_DATAGRAMS);
        mics.deliver(Bytes::from_static(b"\x01"));
        mics.deliver(Bytes::from_static(b"\x02 a later kind"));
        let dropped = mics.dropped();
        assert_eq!((dropped.malformed, dropped.late), (1, 137));
    }
}
