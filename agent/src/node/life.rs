//! This node's life as its adverts number it.
//!
//! An epoch begins at the start, after a sleep, and when somebody else was found to publish
//! under our key with a later one: the mesh listens to the newest epoch only, so that
//! without a new one we would stay unheard even after the twin is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use unamesh_proto::{NodeId, Wall};

/// Who this node is, and since when. Shared.
#[derive(Debug)]
pub struct Life {
    /// Who.
    pub node: NodeId,
    /// When the process started.
    pub started: Wall,
    epoch: watch::Sender<u64>,
    now: Mutex<Now>,
}

#[derive(Clone, Copy, Debug)]
struct Now {
    /// The begin of the epoch.
    since: Wall,
    /// The highest epoch that others have used under our key.
    claimed: u64,
}

impl Life {
    /// The life of `node` that begins with `epoch`.
    pub fn new(node: NodeId, epoch: u64, started: Wall) -> Arc<Life> {
        let now = Mutex::new(Now {
            since: started,
            claimed: 0,
        });
        let epoch = watch::Sender::new(epoch);
        Arc::new(Life {
            node,
            started,
            epoch,
            now,
        })
    }

    /// The epoch of adverts from now on.
    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// The epoch and those to come.
    pub fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// When that epoch began.
    pub fn since(&self) -> Wall {
        self.lock().since
    }

    /// Another agent uses `epoch` under our key.
    pub fn claimed(&self, epoch: u64) {
        let mut now = self.lock();
        now.claimed = now.claimed.max(epoch);
    }

    /// Whether another agent's epoch is above ours, so that nobody listens to us.
    pub fn is_superseded(&self) -> bool {
        self.lock().claimed >= self.epoch()
    }

    /// Begins an epoch above all that were used.
    pub fn renew(&self, wall: Wall) {
        let mut now = self.lock();
        let above = self.epoch().max(now.claimed).saturating_add(1);
        now.since = wall;
        self.epoch.send_replace(wall.as_millis().max(above));
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_life_outranks_every_claim() {
        let life = Life::new(NodeId([1; 32]), 100, Wall::from_millis(100));
        assert!(!life.is_superseded());
        life.claimed(5_000);
        assert!(life.is_superseded());
        life.renew(Wall::from_millis(200));
        assert_eq!(
            (life.epoch(), life.since()),
            (5_001, Wall::from_millis(200))
        );
        assert!(!life.is_superseded());
        life.renew(Wall::from_millis(9_000));
        assert_eq!(life.epoch(), 9_000);
    }
}
