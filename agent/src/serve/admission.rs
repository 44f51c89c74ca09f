//! Who may use an engine now, who waits, and who is told to come back later.
//!
//! Each engine has a *lane*: as many seats as it has slots, and a bounded queue in the order
//! of arrival. A [`Seat`] is a place in a lane, waiting or taken; dropping it gives the place
//! back, wherever the request was, and seats the next. Speech takes a seat for each piece of
//! its text, since it rests while its listener has enough: who has begun goes before who has
//! not, and is never turned away. A full queue is answered with `busy`
//! and the time in which a place should get free: what a request took on this engine lately,
//! over the number of slots.
//!
//! The catalog owns the number of slots and may change it at any time; who holds a seat keeps
//! it. Every change is published as [`EngineLoad`]s in the order of the catalog's engines, for
//! the adverts.

use crate::engine::registry::Registry;
use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use unamesh_proto::timeouts;
use unamesh_proto::wire::{ErrorCode, WireError};

/// How an engine is used now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Slots in use.
    pub busy: u16,
    /// Requests that wait.
    pub queue: u16,
    /// Slots.
    pub slots: u16,
}

/// The lanes of all engines.
pub(super) struct Admission {
    registry: Arc<Registry>,
    /// Requests that may wait for one engine.
    queue: usize,
    /// By the engine's index in the catalog, which it keeps for the life of the process.
    lanes: Mutex<Vec<Lane>>,
    loads: watch::Sender<Arc<[EngineLoad]>>,
}

#[derive(Default)]
struct Lane {
    slots: u16,
    busy: u16,
    queue: VecDeque<Arc<Place>>,
    /// How long a request takes a slot, as a moving average.
    takes: Option<Duration>,
}

/// What a lane and a seat share.
#[derive(Default)]
struct Place {
    /// Of a request that had a seat before.
    again: bool,
    taken: AtomicBool,
    waker: AtomicWaker,
}

impl Admission {
    /// All engines idle; each may have `queue` waiting requests.
    pub fn new(registry: Arc<Registry>, queue: usize) -> Arc<Self> {
        let loads = watch::Sender::new(Arc::from([]));
        Arc::new(Admission {
            registry,
            queue,
            lanes: Mutex::default(),
            loads,
        })
    }

    /// Takes a seat at the engine `index`, or a place in its queue.
    ///
    /// # Errors
    /// `Busy` if the queue is full, with the time after which to try again.
    pub fn enter(self: &Arc<Self>, index: u16) -> Result<Seat, WireError> {
        self.place(index, false)
    }

    /// Takes a seat for the next part of a request that had one: before all that have not
    /// begun, and whatever waits. There are never more of these than requests that run.
    ///
    /// # Errors
    /// There is no such engine.
    pub fn enter_again(self: &Arc<Self>, index: u16) -> Result<Seat, WireError> {
        self.place(index, true)
    }

    fn place(self: &Arc<Self>, index: u16, again: bool) -> Result<Seat, WireError> {
        let place = Arc::new(Place {
            again,
            ..Place::default()
        });
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(usize::from(index)) else {
            let message = format!("this agent has no engine {index}");
            return Err(WireError::new(ErrorCode::Invalid, message).field("engine"));
        };
        if !again && lane.busy >= lane.slots && lane.queue.len() >= self.queue {
            return Err(lane.full());
        }
        lane.wait(Arc::clone(&place));
        self.settle(lanes);
        Ok(Seat {
            admission: Arc::clone(self),
            index,
            place,
            since: None,
        })
    }

    /// The loads now, in the order of the catalog's engines.
    pub fn loads(&self) -> Vec<EngineLoad> {
        self.lock().iter().map(Lane::load).collect()
    }

    /// The loads, whenever they change.
    pub fn changes(&self) -> watch::Receiver<Arc<[EngineLoad]>> {
        self.loads.subscribe()
    }

    /// Gives `place` back and seats whoever is next. `held`: how long it was taken.
    fn leave(&self, index: u16, place: &Arc<Place>, held: Option<Duration>) {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(usize::from(index)) else {
            return;
        };
        if place.taken.load(Ordering::Acquire) {
            lane.busy = lane.busy.saturating_sub(1);
            lane.observe(held);
        } else {
            lane.queue.retain(|waiting| !Arc::ptr_eq(waiting, place));
        }
        self.settle(lanes);
    }

    /// Follows the catalog: a slot more seats one who waits.
    pub async fn follow(self: Arc<Self>) {
        let mut catalog = self.registry.changes();
        loop {
            self.settle(self.lock());
            if catalog.changed().await.is_err() {
                return;
            }
        }
    }

    /// Seats those who can be seated, tells them, and publishes the loads if they changed.
    fn settle(&self, mut lanes: MutexGuard<'_, Vec<Lane>>) {
        let mut seated = Vec::new();
        for lane in lanes.iter_mut() {
            lane.seat(&mut seated);
        }
        self.publish(&lanes);
        drop(lanes);
        for place in seated {
            place.waker.wake();
        }
    }

    /// Puts who holds `place` into the queue anew, as `next`, and seats whoever is first now.
    fn again(&self, index: u16, place: &Arc<Place>, next: Arc<Place>, held: Option<Duration>) {
        if let Some(lane) = self.lock().get_mut(usize::from(index)) {
            lane.wait(next);
        }
        self.leave(index, place, held);
    }

    /// How many requests wait before `place`, and how many in all.
    fn ahead(&self, index: u16, place: &Arc<Place>) -> (u32, u32) {
        let lanes = self.lock();
        let Some(lane) = lanes.get(usize::from(index)) else {
            return (0, 0);
        };
        let at = lane
            .queue
            .iter()
            .position(|waiting| Arc::ptr_eq(waiting, place));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (count(at.unwrap_or(0)), count(lane.queue.len()))
    }

    fn publish(&self, lanes: &[Lane]) {
        let same = |loads: &[EngineLoad]| loads.iter().copied().eq(lanes.iter().map(Lane::load));
        self.loads.send_if_modified(|published| {
            let changed = !same(published);
            if changed {
                *published = lanes.iter().map(Lane::load).collect();
            }
            changed
        });
    }

    /// The lanes, with as many slots as the catalog says now.
    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        // Nothing panics while it is held; if it did, the counts would still be whole.
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.registry.catalog();
        if lanes.len() < catalog.engines.len() {
            lanes.resize_with(catalog.engines.len(), Lane::default);
        }
        for (lane, engine) in lanes.iter_mut().zip(&catalog.engines) {
            // An engine that does not tell has one slot.
            lane.slots = engine.slots.max(1);
        }
        lanes
    }
}

impl Lane {
    /// Puts `place` behind those of its kind: who goes on is before who begins.
    fn wait(&mut self, place: Arc<Place>) {
        let before = |other: &Arc<Place>| other.again || !place.again;
        let at = self.queue.iter().take_while(|other| before(other)).count();
        self.queue.insert(at, place);
    }

    /// Seats as many of those who wait as there are free slots; they are to be woken.
    fn seat(&mut self, seated: &mut Vec<Arc<Place>>) {
        while self.busy < self.slots
            && let Some(next) = self.queue.pop_front()
        {
            self.busy += 1;
            next.taken.store(true, Ordering::Release);
            seated.push(next);
        }
    }

    fn observe(&mut self, held: Option<Duration>) {
        let Some(held) = held else { return };
        self.takes = Some(match self.takes {
            Some(mean) => (mean * 7 + held) / 8,
            None => held,
        });
    }

    fn load(&self) -> EngineLoad {
        let queue = u16::try_from(self.queue.len()).unwrap_or(u16::MAX);
        EngineLoad {
            busy: self.busy,
            queue,
            slots: self.slots,
        }
    }

    fn full(&self) -> WireError {
        let mean = self.takes.map(|takes| takes / u32::from(self.slots.max(1)));
        let after = mean
            .unwrap_or(timeouts::BUSY_RETRY)
            .max(timeouts::PROGRESS_EVERY);
        let (busy, waiting) = (self.busy, self.queue.len());
        let message = format!("the engine is busy: it works on {busy} requests, {waiting} wait");
        WireError::new(ErrorCode::Busy, message).retry_after(after)
    }
}

/// A place in an engine's lane. Dropping it gives it back.
pub(super) struct Seat {
    admission: Arc<Admission>,
    index: u16,
    place: Arc<Place>,
    since: Option<Instant>,
}

impl Seat {
    /// Ready when a slot of the engine belongs to this seat.
    pub fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.place.taken.load(Ordering::Acquire) {
            self.place.waker.register(cx.waker());
            // Seated between the look and the registration?
            if !self.place.taken.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        self.since.get_or_insert_with(Instant::now);
        Poll::Ready(())
    }

    /// Gives the slot to whoever has waited for it longer among those that go on, and waits for
    /// the next one. If there is nobody, it is this one's again.
    pub fn again(&mut self) {
        let held = self.since.take().map(|since| since.elapsed());
        let next = Arc::new(Place {
            again: true,
            ..Place::default()
        });
        let place = std::mem::replace(&mut self.place, Arc::clone(&next));
        self.admission.again(self.index, &place, next, held);
    }

    /// How many requests wait before this one, and how many in all.
    pub fn ahead(&self) -> (u32, u32) {
        self.admission.ahead(self.index, &self.place)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let held = self.since.map(|since| since.elapsed());
        self.admission.leave(self.index, &self.place, held);
    }
}
