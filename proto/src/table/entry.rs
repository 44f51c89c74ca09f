//! One peer of the table: its word, its paths, its liveness.

use super::paths::Paths;
use super::{Liveness, Peer, Verdict};
use crate::ids::NodeId;
use crate::limits::MAX_HELPERS;
use crate::time::Mono;
use crate::timeouts::{
    DOUBT_EVERY, PROBE_EVERY, TABLE_DOWN, TABLE_DOWN_ALONE, TABLE_FORGET, TABLE_SUSPECT,
};
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
    /// How long it had been silent when it was heard.
    away: Duration,
    /// This node itself: always alive.
    own: bool,
    /// Gave a sign of life to us, ever.
    was_alive: bool,
    /// Since the last sign of life every path failed, or another said that it fell silent.
    doubt: bool,
    /// Others were asked about it, since its last sign of life.
    asked: bool,
    /// When a helper last reached it, since its last sign of life.
    vouched: Mono,
    /// The helpers that could not reach it either, since then.
    denied: Vec<NodeId>,
    /// Its silence counts from here at the earliest: we were cut off or asleep.
    spared: Mono,
    /// When we woke from sleep, and had not heard it since.
    woke: Mono,
    /// Not down before this: we are cut off.
    spared_until: Mono,
    /// When others are to be asked about it.
    doubt_from: Mono,
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
            away: Duration::ZERO,
            own: false,
            was_alive: false,
            doubt: false,
            asked: false,
            vouched: Mono::ZERO,
            denied: Vec::new(),
            spared: Mono::ZERO,
            woke: Mono::ZERO,
            spared_until: Mono::ZERO,
            doubt_from: Mono::ZERO,
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

    /// From when on its silence says something.
    pub fn silent_since(&self) -> Mono {
        self.heard.max(self.spared)
    }

    /// How long it had been silent when it last gave a sign of life.
    pub fn away(&self) -> Duration {
        self.away
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
        self.away = now.since(self.heard);
        // The first sign may be a probe that was answered before the entry was made.
        self.heard = if self.was_alive {
            self.heard.max(now)
        } else {
            now
        };
        self.was_alive = true;
        (self.doubt, self.asked) = (false, false);
        self.vouched = Mono::ZERO;
        self.denied.clear();
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

    /// Another says that it fell silent; what we heard ourselves of late weighs more.
    pub fn hint_silent(&mut self, now: Mono) {
        self.doubt |= now.since(self.heard) >= PROBE_EVERY;
    }

    /// Brings the liveness up to `now`; `(new, old)` if it changed.
    pub fn settle(&mut self, now: Mono) -> Option<(Liveness, Liveness)> {
        let new = self.liveness(now);
        let old = std::mem::replace(&mut self.liveness, new);
        if new == old {
            return None;
        }
        self.cached = None;
        if (new, old) == (Liveness::Suspect, Liveness::Alive) {
            self.doubt_from = now;
        }
        Some((new, old))
    }

    /// The liveness at `now`.
    pub fn liveness(&self, now: Mono) -> Liveness {
        let silent = now.since(self.heard);
        if self.own {
            Liveness::Alive
        } else if now >= self.down_at() {
            Liveness::Down
        } else if silent >= TABLE_SUSPECT || !self.was_alive || self.doubt {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }

    /// Whether it has been down for so long that it leaves the table.
    pub fn is_forgotten(&self, now: Mono) -> bool {
        !self.own && now >= self.forgotten_at()
    }

    fn forgotten_at(&self) -> Mono {
        self.heard.max(self.vouched).max(self.woke) + (TABLE_DOWN + TABLE_FORGET)
    }

    /// When silence makes it down; see `doubt.rs`.
    fn down_at(&self) -> Mono {
        if !self.was_alive {
            return self.heard + TABLE_DOWN;
        }
        let since = self.silent_since().max(self.vouched);
        let patience = match self.denied.is_empty() {
            false => TABLE_DOWN,
            true => TABLE_DOWN_ALONE,
        };
        let down = (since + patience).max(self.spared_until);
        down.min(self.forgotten_at())
    }

    /// What the helper `by` says of it. Returns whether that is of use: one that is down needs a sign
    /// of life of its own, and a helper that does not reach it is wrong if another does.
    pub fn indirect(&mut self, by: NodeId, alive: bool, now: Mono) -> bool {
        let vouched = self.vouched > Mono::ZERO && now.since(self.vouched) < TABLE_SUSPECT;
        let used = !self.own
            && self.was_alive
            && self.liveness == Liveness::Suspect
            && (alive || !vouched);
        if used {
            self.doubt_from = now + DOUBT_EVERY;
            if alive {
                self.vouched = now;
                self.denied.clear();
            } else if !self.denied.contains(&by) && self.denied.len() < MAX_HELPERS {
                self.denied.push(by);
            }
        }
        used
    }

    /// Whether a helper reached it since its last sign of life.
    pub fn is_vouched(&self) -> bool {
        self.vouched > Mono::ZERO
    }

    /// What others said of it since its last sign of life.
    pub fn verdict(&self) -> Verdict {
        match (self.denied.is_empty(), self.asked) {
            (false, _) => Verdict::Confirmed(self.denied.clone()),
            (true, true) => Verdict::NoAnswer,
            (true, false) => Verdict::NobodyToAsk,
        }
    }

    /// Another's, and it was alive and is not down: its silence says something.
    pub fn is_awake(&self) -> bool {
        !self.own && self.was_alive && self.liveness != Liveness::Down
    }

    /// It can be asked about others.
    pub fn helps(&self) -> bool {
        !self.own && self.liveness == Liveness::Alive
    }

    /// The round trip of its best path.
    pub fn rtt(&self) -> Option<Duration> {
        self.paths.list().first().and_then(|path| path.rtt)
    }

    /// When others are to be asked about it, if it is a suspect of which nothing is known.
    pub fn doubt_at(&self) -> Option<Mono> {
        let suspect = self.is_awake() && self.liveness == Liveness::Suspect;
        let open = suspect && self.denied.is_empty();
        open.then_some(self.doubt_from)
    }

    /// Others are being asked about it; again only after a while.
    pub fn doubted(&mut self, now: Mono) {
        self.asked = true;
        self.doubt_from = now + DOUBT_EVERY;
    }

    /// We are cut off: it is not down before `until`.
    pub fn spare_until(&mut self, until: Mono) {
        self.spared_until = until;
    }

    /// We are back, or awake, since `now`: its silence counts from here, and it may speak before others
    /// are asked.
    pub fn spare_from(&mut self, now: Mono) {
        (self.spared, self.spared_until) = (now, Mono::ZERO);
        self.doubt_from = now + DOUBT_EVERY;
        self.asked = false;
        self.denied.clear();
    }

    /// We woke from sleep at `at`: whether it is there has to show anew.
    pub fn woke(&mut self, at: Mono) {
        (self.doubt, self.woke, self.spared) = (true, at, at);
    }

    /// When time alone changes it next.
    pub fn next_change(&self) -> Mono {
        match self.liveness {
            _ if self.own => NEVER,
            Liveness::Alive => self.heard + TABLE_SUSPECT,
            Liveness::Suspect => self.down_at(),
            Liveness::Down => self.forgotten_at(),
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
