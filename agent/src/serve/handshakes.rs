//! Handshakes under way: counted in all and by address, so that none can crowd the others out.
//!
//! Whoever is in its handshake has proved nothing yet, at best that it is at its address. So
//! handshakes have places of their own, none of which a member's connection needs, and one
//! address may have no more than [`limits::MAX_HANDSHAKES_PER_ADDRESS`] of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unamesh_proto::limits;

/// The handshakes of one listener.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    all: usize,
    /// At most [`limits::MAX_HANDSHAKES`] entries; none of them is 0.
    by_address: HashMap<IpAddr, usize>,
}

impl Handshakes {
    /// A place for one more from `address`, or `None` if it, or all together, hold theirs.
    pub fn begin(self: &Arc<Self>, address: IpAddr) -> Option<Handshake> {
        let mut counts = self.counts();
        let held = counts.by_address.get(&address).copied().unwrap_or_default();
        if counts.all >= limits::MAX_HANDSHAKES || held >= limits::MAX_HANDSHAKES_PER_ADDRESS {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, held + 1);
        drop(counts);
        let handshakes = Arc::clone(self);
        Some(Handshake {
            handshakes,
            address,
        })
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.counts().all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Whoever holds the lock does nothing that can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one handshake, given back when dropped.
pub(super) struct Handshake {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.handshakes.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(held) = counts.by_address.get_mut(&self.address) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(n).unwrap_or(u8::MAX)])
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let handshakes = Arc::new(Handshakes::default());
        let mut flood: Vec<_> = std::iter::from_fn(|| handshakes.begin(address(1))).collect();
        assert_eq!(flood.len(), limits::MAX_HANDSHAKES_PER_ADDRESS);
        assert!(handshakes.begin(address(2)).is_some());
        flood.pop();
        let again = handshakes.begin(address(1));
        assert!(again.is_some() && handshakes.begin(address(1)).is_none());
    }

    #[test]
    fn all_together_are_bounded_and_leave_nothing_behind() {
        let handshakes = Arc::new(Handshakes::default());
        let flood: Vec<_> = (0..200)
            .flat_map(|n| [n; limits::MAX_HANDSHAKES_PER_ADDRESS])
            .map_while(|n| handshakes.begin(address(n)))
            .collect();
        assert_eq!(flood.len(), limits::MAX_HANDSHAKES);
        assert_eq!(handshakes.count(), limits::MAX_HANDSHAKES);
        assert!(handshakes.begin(address(250)).is_none());
        drop(flood);
        assert_eq!(handshakes.count(), 0);
        assert!(handshakes.counts().by_address.is_empty());
    }
}
