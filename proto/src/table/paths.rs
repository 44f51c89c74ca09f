//! The addresses of one peer, in the order in which they are worth using.
//!
//! Working paths come first, by round trip, then untried ones, then those that failed last.
//! A round trip over a tunnel counts [`TUNNEL`] more than over the home's own network, so that
//! two machines side by side do not stay on their VPN; and the path in use is left only for
//! one that is clearly better ([`STAY_SHARE`], [`STAY`]), since noise alone must not move
//! connections about.

use super::Path;
use crate::limits::MAX_PATHS;
use crate::time::Mono;
use crate::wire::{Addr, PathKind};
use std::net::SocketAddr;
use std::time::Duration;

/// What a path outside the home's own network counts more, for equal round trips.
const TUNNEL: Duration = Duration::from_millis(1);
/// The best path stays unless another takes less than this share of its round trip...
const STAY_SHARE: f64 = 0.75;
/// ...and at least this much less.
const STAY: Duration = Duration::from_micros(500);

#[derive(Clone, Debug)]
struct Slot {
    path: Path,
    failed_at: Option<Mono>,
    /// In the peer's current advert, not only hinted at.
    advertised: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Works,
    Untried,
    Failed,
}

impl Slot {
    fn tier(&self) -> Tier {
        match (self.path.ok_at, self.failed_at) {
            (Some(ok), Some(failed)) if failed >= ok => Tier::Failed,
            (Some(_), _) => Tier::Works,
            (None, Some(_)) => Tier::Failed,
            (None, None) => Tier::Untried,
        }
    }

    fn weight(&self) -> Duration {
        let near = matches!(self.path.kind, PathKind::Loopback | PathKind::Lan);
        let rtt = self.path.rtt.unwrap_or_default();
        if near {
            rtt
        } else {
            rtt.saturating_add(TUNNEL)
        }
    }
}

/// The addresses of one peer; at most [`MAX_PATHS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    slots: Vec<Slot>,
}

impl Paths {
    /// Takes over the addresses of a new advert: those that it no longer names and that do not
    /// work go. `fresh`: the peer started anew, so old failures say nothing. Returns whether
    /// the list changed.
    pub fn advertise(&mut self, addrs: &[Addr], fresh: bool) -> bool {
        let before = self.addrs();
        let addrs: Vec<SocketAddr> = addrs
            .iter()
            .map(Addr::socket)
            .filter(is_dialable)
            .take(MAX_PATHS)
            .collect();
        let named = |s: &Slot| addrs.contains(&s.path.addr);
        self.slots
            .retain(|s| named(s) || !s.advertised || s.tier() == Tier::Works);
        for slot in &mut self.slots {
            if fresh || (named(slot) && !slot.advertised) {
                slot.failed_at = None;
            }
            slot.advertised = named(slot);
        }
        for addr in addrs {
            self.slot(addr).advertised = true;
        }
        self.sort();
        before != self.addrs()
    }

    /// Adds a candidate, unless that would displace a path that works; returns whether the
    /// list changed.
    pub fn hint(&mut self, addr: SocketAddr) -> bool {
        let known = self.slots.iter().any(|s| s.path.addr == addr);
        let room =
            self.slots.len() < MAX_PATHS || self.slots.iter().any(|s| s.tier() != Tier::Works);
        if known || !room {
            return false;
        }
        self.slot(addr);
        self.sort();
        true
    }

    /// `addr` worked. Returns whether something that matters changed: the order, or a round
    /// trip by more than noise.
    pub fn ok(&mut self, addr: SocketAddr, rtt: Duration, now: Mono) -> bool {
        let before = self.addrs();
        let slot = self.slot(addr);
        let old = slot.path.rtt;
        // RFC 6298's smoothing: a sample counts an eighth.
        let new = old.map_or(rtt, |old| (old * 7).saturating_add(rtt) / 8);
        slot.path.rtt = Some(new);
        slot.path.ok_at = Some(now);
        slot.failed_at = None;
        self.sort();
        let moved = old.is_none_or(|old| {
            new.abs_diff(old) > STAY && new.abs_diff(old) > old.mul_f64(1.0 - STAY_SHARE)
        });
        moved || before != self.addrs()
    }

    /// `addr` did not work. Returns whether the order changed.
    pub fn failed(&mut self, addr: SocketAddr, now: Mono) -> bool {
        let before = self.addrs();
        if let Some(slot) = self.slots.iter_mut().find(|s| s.path.addr == addr) {
            slot.failed_at = Some(now);
        }
        self.sort();
        before != self.addrs()
    }

    /// Whether any path worked and did not fail since.
    pub fn any_works(&self) -> bool {
        self.slots.iter().any(|s| s.tier() == Tier::Works)
    }

    /// When a path last worked.
    pub fn last_ok(&self) -> Option<Mono> {
        self.slots.iter().filter_map(|s| s.path.ok_at).max()
    }

    /// Best first.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.slots.iter().map(|s| s.path.addr).collect()
    }

    /// Best first.
    pub fn list(&self) -> Vec<Path> {
        self.slots.iter().map(|s| s.path).collect()
    }

    /// The slot of `addr`, made if need be. Over the limit the worst one makes room.
    fn slot(&mut self, addr: SocketAddr) -> &mut Slot {
        if let Some(at) = self.slots.iter().position(|s| s.path.addr == addr) {
            return &mut self.slots[at];
        }
        if self.slots.len() >= MAX_PATHS {
            let badness = |s: &Slot| (s.tier(), !s.advertised, s.weight());
            let worst = (0..self.slots.len()).max_by_key(|at| badness(&self.slots[*at]));
            worst.map(|at| self.slots.remove(at));
        }
        let path = Path {
            addr,
            kind: Addr::new(addr).kind,
            rtt: None,
            ok_at: None,
        };
        self.slots.push(Slot {
            path,
            failed_at: None,
            advertised: false,
        });
        let last = self.slots.len() - 1;
        &mut self.slots[last]
    }

    fn sort(&mut self) {
        let incumbent = self.slots.first().map(|s| s.path.addr);
        // Stable: equal ones stay in the order of the advert, which is the peer's own wish.
        self.slots
            .sort_by_key(|s| (s.tier(), s.weight(), !s.advertised, s.failed_at));
        let Some(at) = self
            .slots
            .iter()
            .position(|s| Some(s.path.addr) == incumbent)
        else {
            return;
        };
        let (old, new) = (&self.slots[at], &self.slots[0]);
        let near = |s: &Slot| matches!(s.path.kind, PathKind::Loopback | PathKind::Lan);
        let clearly =
            new.weight() < old.weight().mul_f64(STAY_SHARE) && old.weight() - new.weight() >= STAY;
        let home = near(new) && !near(old);
        if at > 0 && old.tier() == Tier::Works && !clearly && !home {
            self.slots[..=at].rotate_right(1);
        }
    }
}

/// Whether a datagram to `addr` can reach one host: hints and adverts may say anything.
pub(super) fn is_dialable(addr: &SocketAddr) -> bool {
    let ip = addr.ip();
    let broadcast = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}
