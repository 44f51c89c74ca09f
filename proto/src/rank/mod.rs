//! Which peer answers first, and why.
//!
//! Every engine of a peer that can do it gets a **predicted time to first output**:
//!
//! ```text
//! total = path round trip + wait for a slot + loading + time to first token
//! ```
//!
//! - The wait is 0 while a slot is free; else the requests ahead, ours included, shared
//!   out over the slots, each taking a typical answer's time.
//! - Loading counts for a model that is not in memory, as measured or by its size.
//! - The time to first token is the measured line over the prompt's length; while nothing is
//!   measured, a table value for the hardware and the model's size.
//!
//! **Measurements age**, or a peer that was slow once would never be asked again while others are
//! free, and its figure would never heal:
//!
//! ```text
//! aged = measured - 0.2 ms for each second since the last sample,
//!        but at least an eighth of the table value (if measured is more)
//! ```
//!
//! So a peer that took 900 ms beside others that take 60 is tried again after 70 minutes, and
//! then measured anew. If it is as slow as it was, that request waits the 840 ms in vain: no peer
//! costs more than 0.02 % of the time. A figure below that eighth stands. Only a
//! request that begins something tries: one whose conversation a peer holds, or whose answer has
//! begun, goes by what was measured.
//!
//! Candidates are ordered by tier (suspect peers last; for a migration, the same weights
//! before others of the same name, and engines that take token ids before those that do not),
//! then by total. The engine that holds the conversation's KV cache stays first unless another
//! is better by [`STAY_SHARE`] **and** [`STAY`], so that noise does not move conversations.
//!
//! Speed: a thousand peers are ranked within 100 microseconds. One pass packs tier, total and
//! place of each into a `u64`; only the best [`MAX_RANKED`] are sorted and worded.

mod cost;
mod near;
mod offer;
pub mod speech;
#[cfg(test)]
mod tests;
mod words;

pub use near::{distance, near_models, near_names};

use crate::ids::NodeId;
use crate::limits::{MAX_MODELS, MAX_PEERS, MAX_RANKED};
use crate::stalls::Bounds;
use crate::table::{Peer, Snapshot};
use crate::time::Mono;
use crate::wire::{ModelAdvert, ModelKind};
use offer::{LATEST, Offer, offer, offers};
use std::borrow::Cow;
use std::time::Duration;
use words::rejections;

/// A challenger takes less than this share of the incumbent's predicted time...
pub const STAY_SHARE: f64 = 0.8;
/// ...and at least this much less: below, nobody notices.
pub const STAY: Duration = Duration::from_millis(20);

/// What a request needs.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The model's name; Ollama's `:latest` may be left out.
    pub model: &'a str,
    /// What it is for.
    pub kind: ModelKind,
    /// Tokens of the prompt, a replayed prefix included; an estimate will do.
    pub prompt_tokens: u32,
    /// Weights with this digest are preferred, whatever their name (a migration).
    pub digest: Option<&'a str>,
    /// Tokens that the prompt surely has: contexts that do not hold them are out. 0 = nobody
    /// knows, and the engine will say.
    pub prompt_at_least: u32,
    /// The node, and its engine, that holds the conversation's KV cache.
    pub sticky: Option<(NodeId, u16)>,
    /// Engines that take token ids are preferred (an exact seam).
    pub needs_token_ids: bool,
}

impl Need<'_> {
    /// It begins something: a peer whose measurement is old may be tried with it.
    fn may_try(&self) -> bool {
        self.sticky.is_none() && self.digest.is_none() && !self.needs_token_ids
    }
}

/// The predicted time to first output, by what it is spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// To the peer and back.
    pub rtt: Duration,
    /// Until a slot is free.
    pub queue: Duration,
    /// Until the model is in memory.
    pub load: Duration,
    /// From prompt to first token: as measured, less what its age takes off.
    pub ttft: Duration,
}

impl Cost {
    /// The predicted time to first output.
    pub fn total(&self) -> Duration {
        self.rtt
            .saturating_add(self.queue)
            .saturating_add(self.load)
            .saturating_add(self.ttft)
    }
}

/// An engine of a peer that can do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// On which of its engines (index in its advert).
    pub engine: u16,
    /// What that engine calls the model.
    pub model: String,
    /// Digest of its weights, empty if unknown.
    pub digest: String,
    /// Takes and gives token ids.
    pub token_ids: bool,
    /// The prediction.
    pub cost: Cost,
    /// From prompt to first token on this engine, once it has a slot and the model is loaded.
    pub expected_ttft: Duration,
    /// Between tokens.
    pub expected_itl: Duration,
    /// What this client has learned of it: filled in by [`crate::stalls::Stalls::fill`].
    pub learned: Bounds,
    /// It is leaving. Draining peers are rejected, so this is false in a fresh ranking.
    pub draining: bool,
    /// Why it stands where it stands, for people.
    pub reason: String,
}

/// A peer that cannot do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Why not, for people.
    pub reason: Cow<'static, str>,
}

/// The outcome: at most [`MAX_RANKED`] of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranking {
    /// Best first.
    pub ranked: Vec<Candidate>,
    /// Those that have the model first.
    pub rejected: Vec<Rejected>,
}

/// Ranks the peers of `snapshot` for `need`. `now`, by the snapshot's clock, only words the
/// reasons (how long a peer has been silent): liveness is the table's to judge.
pub fn rank(snapshot: &Snapshot, need: &Need<'_>, now: Mono) -> Ranking {
    let name = need.model.strip_suffix(LATEST).unwrap_or(need.model);
    let mut keys: Vec<Key> = Vec::with_capacity(snapshot.peers.len());
    let mut refused = Vec::new();
    let mut sticky = None;
    for (at, peer) in snapshot.peers.iter().enumerate() {
        let first = keys.len();
        let found = |model, offer: Offer<'_>| {
            let key = Key::new(offer.tier, offer.cost.total(), at, model);
            let mut others = keys.iter_mut().skip(first);
            // An engine may have the model under two names.
            match others.find(|old| old.engine(peer) == Some(offer.model.engine)) {
                Some(old) => *old = key.min(*old),
                None => keys.push(key),
            }
        };
        if let Err(refusal) = offers(snapshot, peer, need, name, found) {
            refused.push((refusal, at));
        }
        if let Some((_, engine)) = need.sticky.filter(|(node, _)| *node == peer.advert.node) {
            let mut own = keys.iter().skip(first);
            sticky = own.find(|key| key.engine(peer) == Some(engine)).copied();
        }
    }
    let kept = sticky.filter(|s| keys.iter().min().is_some_and(|best| stays(*s, *best)));
    best_first(&mut keys, kept);
    let ranked = keys.iter().filter_map(|key| {
        let peer = snapshot.peers.get(key.peer())?;
        let offer = offer(snapshot, peer, key.model(peer)?, need).ok()?;
        Some(offer.candidate(peer, kept == Some(*key), now))
    });
    Ranking {
        ranked: ranked.collect(),
        rejected: rejections(snapshot, refused, now),
    }
}

/// Whether two names mean one model: Ollama's `:latest` may be left out.
pub fn same_name(a: &str, b: &str) -> bool {
    let bare = |name: &str| name.strip_suffix(LATEST).unwrap_or(name).len();
    bare(a) == bare(b) && a[..bare(a)] == b[..bare(b)]
}

/// Tier, microseconds and place (peer, model) in one number, in the order in which candidates
/// are ranked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    const MODEL_BITS: u32 = 8;
    const PEER_BITS: u32 = 12;
    const PLACE_BITS: u32 = Self::MODEL_BITS + Self::PEER_BITS;
    /// 12 days; the tier has the last four.
    const TIME_BITS: u32 = 40;

    fn new(tier: u8, total: Duration, peer: usize, model: usize) -> Self {
        const { assert!(MAX_MODELS <= 1 << Self::MODEL_BITS && MAX_PEERS <= 1 << Self::PEER_BITS) };
        Key::at(tier, total, peer << Self::MODEL_BITS | model)
    }

    /// `place` is any number of as many bits as that of peer and model.
    fn at(tier: u8, total: Duration, place: usize) -> Self {
        let longest = (1 << Self::TIME_BITS) - 1;
        let micros = u64::try_from(total.as_micros())
            .unwrap_or(longest)
            .min(longest);
        Key(u64::from(tier) << (Self::PLACE_BITS + Self::TIME_BITS)
            | micros << Self::PLACE_BITS
            | place as u64 & ((1 << Self::PLACE_BITS) - 1))
    }

    fn place(self) -> usize {
        (self.0 & ((1 << Self::PLACE_BITS) - 1)) as usize
    }

    fn peer(self) -> usize {
        (self.0 >> Self::MODEL_BITS & ((1 << Self::PEER_BITS) - 1)) as usize
    }

    fn model(self, peer: &Peer) -> Option<&ModelAdvert> {
        let at = self.0 & ((1 << Self::MODEL_BITS) - 1);
        peer.advert.models.get(at as usize)
    }

    fn engine(self, peer: &Peer) -> Option<u16> {
        self.model(peer).map(|m| m.engine)
    }

    fn tier(self) -> u64 {
        self.0 >> (Self::PLACE_BITS + Self::TIME_BITS)
    }

    fn micros(self) -> u64 {
        (self.0 >> Self::PLACE_BITS) & ((1 << Self::TIME_BITS) - 1)
    }
}

/// Whether the incumbent stays before the best of the others.
fn stays(incumbent: Key, best: Key) -> bool {
    let (old, new) = (incumbent.micros() as f64, best.micros() as f64);
    let clearly = new < old * STAY_SHARE && old - new >= STAY.as_micros() as f64;
    incumbent.tier() == best.tier() && !clearly
}

/// The best [`MAX_RANKED`] in order, `kept` in front.
fn best_first(keys: &mut Vec<Key>, kept: Option<Key>) {
    if keys.len() > MAX_RANKED {
        keys.select_nth_unstable(MAX_RANKED);
        keys.truncate(MAX_RANKED);
    }
    keys.sort_unstable();
    if let Some(kept) = kept {
        keys.retain(|key| *key != kept);
        keys.insert(0, kept);
        keys.truncate(MAX_RANKED);
    }
}
