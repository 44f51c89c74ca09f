//! One peer of the table: its word, its paths, its liveness.

use super::paths::Paths;
use super::{Liveness, Peer};
use crate::time::Mono;
use crate::timeouts::{TABLE_DOWN, TABLE_FORGET, TABLE_SUSPECT};
use crate::wire::{Advert, SignedAdvert};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The wake-up of an entry that does not age.
pub(super) const NEVER: Mono = Mono::from_micros(u64::MAX);

/// An authenticated sign of life.
pub(super) enum Sign {
    /// An advert over the node's own connection.
    Advert,
    /// An answered probe: over which path, and how fast.
    Probe(SocketAddr, Duration),
}

#[derive(Debug)]
pub(super) struct Entry {
    /// `None` only between making an entry and its first [`Entry::replace`].
    word: Option<(Arc<Advert>, Arc<SignedAdvert>)>,
    paths: Paths,
    heard: Mono,
    /// This node itself: always alive.
    own: bool,
    /// Gave a sign of life to us, ever.
    was_alive: bool,
    /// Every path failed since the last sign of life.
    doubt: bool,
    /// As of the last [`Entry::settle`].
    liveness: Liveness,
    /// As published last; `None` once anything changed.
    cached: Option<Arc<Peer>>,
}

impl Entry {
    /// This node's own entry.
    pub fn own(now: Mono) -> Self {
        let entry = Entry::other(Paths::default(), now);
        Entry {
            own: true,
            was_alive: true,
            liveness: Liveness::Alive,
            ..entry
        }
    }

    /// Another node's entry: suspect until it gives a sign of life.
    pub fn other(paths: Paths, now: Mono) -> Self {
        Entry {
            word: None,
            paths,
            heard: now,
            own: false,
            was_alive: false,
            doubt: false,
            liveness: Liveness::Suspect,
            cached: None,
        }
    }

    /// (epoch, seq) of its word.
    pub fn mark(&self) -> (u64, u64) {
        self.word.as_ref().map_or((0, 0), |(a, _)| (a.epoch, a.seq))
    }

    /// When it last gave a sign of life.
    pub fn heard(&self) -> Mono {
        self.heard
    }

    /// Whether it ever gave a sign of life. Of a node that did not, nobody is told that it
    /// went: to people it never was there.
    pub fn was_alive(&self) -> bool {
        self.was_alive
    }

    /// Its new word.
    pub fn replace(&mut self, advert: Advert, signed: SignedAdvert) {
        let fresh = self.mark().0 != advert.epoch;
        self.paths.advertise(&advert.addrs, fresh);
        self.word = Some((Arc::new(advert), Arc::new(signed)));
        self.cached = None;
    }

    /// A candidate address. Returns whether that is news.
    pub fn hint(&mut self, addr: SocketAddr) -> bool {
        let news = self.paths.hint(addr);
        if news {
            self.cached = None;
        }
        news
    }

    /// It lives. Returns whether its paths changed in a way that matters; liveness itself is
    /// [`Entry::settle`]'s.
    pub fn sign_of_life(&mut self, sign: Sign, now: Mono) -> bool {
        // The first sign may be a probe that was answered before the entry was made.
        self.heard = if self.was_alive {
            self.heard.max(now)
        } else {
            now
        };
        self.was_alive = true;
        self.doubt = false;
        self.cached = None;
        match sign {
            Sign::Advert => false,
            Sign::Probe(addr, rtt) => self.paths.ok(addr, rtt, now),
        }
    }

    /// A probe failed. Returns whether the order of paths changed.
    pub fn probe_failed(&mut self, addr: SocketAddr, now: Mono) -> bool {
        let worked = self.paths.any_works();
        let changed = self.paths.failed(addr, now);
        self.doubt |= worked && !self.paths.any_works();
        if changed {
            self.cached = None;
        }
        changed
    }

    /// Brings the liveness up to `now`; `(new, old)` if it changed.
    pub fn settle(&mut self, now: Mono) -> Option<(Liveness, Liveness)> {
        let new = self.liveness(now);
        let old = std::mem::replace(&mut self.liveness, new);
        if new == old {
            return None;
        }
        self.cached = None;
        Some((new, old))
    }

    /// The liveness at `now`.
    pub fn liveness(&self, now: Mono) -> Liveness {
        let silent = now.since(self.heard);
        if self.own {
            Liveness::Alive
        } else if silent >= TABLE_DOWN {
            Liveness::Down
        } else if silent >= TABLE_SUSPECT || !self.was_alive || self.doubt {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }

    /// Whether it has been down for so long that it leaves the table.
    pub fn is_forgotten(&self, now: Mono) -> bool {
        !self.own && now.since(self.heard) >= TABLE_DOWN + TABLE_FORGET
    }

    /// When time alone changes it next.
    pub fn next_change(&self) -> Mono {
        match self.liveness {
            _ if self.own => NEVER,
            Liveness::Alive => self.heard + TABLE_SUSPECT,
            Liveness::Suspect => self.heard + TABLE_DOWN,
            Liveness::Down => self.heard + (TABLE_DOWN + TABLE_FORGET),
        }
    }

    /// As it goes into a snapshot; the same `Arc` while nothing changed.
    pub fn publish(&mut self) -> Option<Arc<Peer>> {
        if self.cached.is_none() {
            let (advert, signed) = self.word.as_ref()?;
            self.cached = Some(Arc::new(Peer {
                advert: advert.clone(),
                signed: signed.clone(),
                liveness: self.liveness,
                paths: self.paths.list(),
                heard: self.heard,
            }));
        }
        self.cached.clone()
    }
}
