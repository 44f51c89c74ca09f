//! Which peer answers first, and why.
//!
//! Every peer that can do it gets a **predicted time to first output**:
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
//! Candidates are ordered by tier (suspect peers last; for a migration, the same weights
//! before others of the same name, and engines that take token ids before those that do not),
//! then by total. The peer that holds the conversation's KV cache stays first unless another
//! is better by [`STAY_SHARE`] **and** [`STAY`], so that noise does not move conversations.
//!
//! Speed: a thousand peers are ranked within 100 microseconds. One pass packs tier, total and
//! index of each into a `u64`; only the best [`MAX_RANKED`] are sorted and worded.

use crate::estimate;
use crate::ids::NodeId;
use crate::limits::MAX_RANKED;
use crate::table::{Liveness, Peer, Snapshot};
use crate::time::Mono;
use crate::wire::{
    Advert, EngineAdvert, Health, ModelAdvert, ModelKind, NodeState, Residency, Stats,
};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// A challenger takes less than this share of the incumbent's predicted time...
pub const STAY_SHARE: f64 = 0.8;
/// ...and at least this much less: below, nobody notices.
pub const STAY: Duration = Duration::from_millis(20);
/// Tokens of a typical spoken answer: how long a slot stays taken.
const TYPICAL_TOKENS: f64 = 200.0;
/// Milliseconds that a managed engine takes to start.
const STARTING_MS: f64 = 2000.0;
/// The round trip of a peer that was never probed, in milliseconds.
const UNKNOWN_RTT_MS: f64 = 5.0;

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
    /// The node that holds the conversation's KV cache.
    pub sticky: Option<NodeId>,
    /// Engines that take token ids are preferred (an exact seam).
    pub needs_token_ids: bool,
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
    /// From prompt to first token.
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

/// A peer that can do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// On which of its engines: the best one (index in its advert).
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
    let mut keys = Vec::with_capacity(snapshot.peers.len());
    let mut refused = Vec::new();
    let mut sticky = None;
    for (at, peer) in snapshot.peers.iter().enumerate() {
        match best_offer(snapshot, peer, need, name) {
            Ok(offer) => {
                let key = Key::new(offer.tier, offer.cost.total(), at);
                if need.sticky == Some(peer.advert.node) {
                    sticky = Some(key);
                }
                keys.push(key);
            }
            Err(refusal) => refused.push((refusal, at)),
        }
    }
    let kept = sticky.filter(|s| keys.iter().min().is_some_and(|best| stays(*s, *best)));
    best_first(&mut keys, kept);
    let ranked = keys.iter().filter_map(|key| {
        let peer = snapshot.peers.get(key.index())?;
        let offer = best_offer(snapshot, peer, need, name).ok()?;
        Some(offer.candidate(peer, kept == Some(*key), now))
    });
    Ranking {
        ranked: ranked.collect(),
        rejected: rejections(snapshot, refused, now),
    }
}

/// Names like `model` that the mesh has, best match first, and the names of the nodes that
/// have each: what to say to somebody who asked for a model that nobody has.
pub fn near_names(snapshot: &Snapshot, model: &str) -> Vec<(String, Vec<String>)> {
    const SHOWN: usize = 5;
    const COMPARED: usize = 4096;
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for peer in snapshot.peers.iter().filter(|p| usable(p).is_ok()) {
        for m in &peer.advert.models {
            if by_name.len() >= COMPARED && !by_name.contains_key(m.name.as_str()) {
                continue;
            }
            let nodes = by_name.entry(&m.name).or_default();
            if !nodes.contains(&peer.advert.name) {
                nodes.push(peer.advert.name.clone());
            }
        }
    }
    let mut near: Vec<_> = by_name
        .into_iter()
        .map(|(n, at)| (distance(model, n), n, at))
        .collect();
    near.sort();
    near.into_iter()
        .take(SHOWN)
        .map(|(_, name, at)| (name.to_owned(), at))
        .collect()
}

/// Tier, microseconds and index in one number, in the order in which candidates are ranked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    const INDEX_BITS: u32 = 16;
    const TIME_BITS: u32 = 44;

    fn new(tier: u8, total: Duration, index: usize) -> Self {
        let longest = (1 << Self::TIME_BITS) - 1;
        let micros = u64::try_from(total.as_micros())
            .unwrap_or(longest)
            .min(longest);
        let index = index as u64 & ((1 << Self::INDEX_BITS) - 1);
        Key(u64::from(tier) << (Self::INDEX_BITS + Self::TIME_BITS)
            | micros << Self::INDEX_BITS
            | index)
    }

    fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }

    fn tier(self) -> u64 {
        self.0 >> (Self::INDEX_BITS + Self::TIME_BITS)
    }

    fn micros(self) -> u64 {
        (self.0 >> Self::INDEX_BITS) & ((1 << Self::TIME_BITS) - 1)
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

/// What a peer has to offer for the need.
struct Offer<'a> {
    model: &'a ModelAdvert,
    engine: &'a EngineAdvert,
    stats: Stats,
    cost: Cost,
    tier: u8,
    suspect: bool,
}

/// Why a peer is out, in the order in which it is shown: the nearest misses first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    Context(u32),
    EngineDown(u16),
    Absent,
    OtherKind(ModelKind),
    Draining,
    Down,
    Left,
    Client,
    NoModel,
}

fn usable(peer: &Peer) -> Result<(), Refusal> {
    match (peer.advert.state, peer.liveness) {
        (NodeState::Left, _) => Err(Refusal::Left),
        (NodeState::Draining, _) => Err(Refusal::Draining),
        (_, Liveness::Down) => Err(Refusal::Down),
        _ => Ok(()),
    }
}

/// The best of the peer's engines that have the model.
fn best_offer<'a>(
    snapshot: &Snapshot,
    peer: &'a Peer,
    need: &Need<'_>,
    name: &str,
) -> Result<Offer<'a>, Refusal> {
    usable(peer)?;
    let mut best: Option<Offer<'a>> = None;
    let nothing = if peer.advert.role.is_agent() {
        Refusal::NoModel
    } else {
        Refusal::Client
    };
    let mut refusal = nothing;
    for model in peer
        .advert
        .models
        .iter()
        .filter(|m| is_meant(m, need, name))
    {
        match offer(snapshot, peer, model, need) {
            Ok(new) => {
                let worth = |o: &Offer<'_>| (o.tier, o.cost.total());
                if best.as_ref().is_none_or(|old| worth(&new) < worth(old)) {
                    best = Some(new);
                }
            }
            Err(why) => refusal = refusal.min(why),
        }
    }
    best.ok_or(refusal)
}

fn offer<'a>(
    snapshot: &Snapshot,
    peer: &'a Peer,
    model: &'a ModelAdvert,
    need: &Need<'_>,
) -> Result<Offer<'a>, Refusal> {
    if model.kind != need.kind {
        return Err(Refusal::OtherKind(model.kind));
    }
    if model.context != 0 && need.prompt_tokens >= model.context {
        return Err(Refusal::Context(model.context));
    }
    let engine = peer
        .advert
        .engines
        .get(usize::from(model.engine))
        .ok_or(Refusal::Absent)?;
    if engine.health == Health::Down {
        return Err(Refusal::EngineDown(model.engine));
    }
    if model.residency == Residency::Absent {
        return Err(Refusal::Absent);
    }
    let stats = speed(&peer.advert, model);
    let own = snapshot.me == Some(peer.advert.node);
    let cost = Cost {
        rtt: if own { Duration::ZERO } else { rtt(peer) },
        queue: queue(engine, &stats),
        load: loading(engine, model, &stats),
        ttft: ms(first_token(&stats, need.prompt_tokens)),
    };
    let suspect = peer.liveness == Liveness::Suspect;
    // Ordered by weight: a suspect peer may be gone, other weights answer differently, no
    // token ids means a seam that is only continued.
    let other = need
        .digest
        .is_some_and(|d| !d.is_empty() && d != model.digest);
    let tier = u8::from(suspect) << 2
        | u8::from(other) << 1
        | u8::from(need.needs_token_ids && !model.token_ids);
    Ok(Offer {
        model,
        engine,
        stats,
        cost,
        tier,
        suspect,
    })
}

impl Offer<'_> {
    fn candidate(&self, peer: &Peer, kept: bool, now: Mono) -> Candidate {
        Candidate {
            node: peer.advert.node,
            engine: self.model.engine,
            model: self.model.name.clone(),
            digest: self.model.digest.clone(),
            token_ids: self.model.token_ids,
            cost: self.cost,
            expected_ttft: self.cost.ttft,
            expected_itl: ms(f64::from(self.stats.itl_ms)),
            draining: false,
            reason: self.reason(peer, kept, now),
        }
    }

    fn reason(&self, peer: &Peer, kept: bool, now: Mono) -> String {
        use std::fmt::Write;
        let mut text = String::with_capacity(160);
        // Writing to a String cannot fail.
        if self.suspect {
            let silent = Ms(now.since(peer.heard));
            let _ = write!(text, "suspect (silent for {silent} ms), so last; ");
        }
        if kept {
            text.push_str("holds the conversation; ");
        }
        let c = &self.cost;
        let _ = write!(
            text,
            "first token in {} ms: path {}",
            Ms(c.total()),
            Ms(c.rtt)
        );
        if !c.queue.is_zero() {
            let EngineAdvert {
                busy, slots, queue, ..
            } = self.engine;
            let wait = Ms(c.queue);
            let _ = write!(
                text,
                " + queue {wait} ({busy}/{slots} slots busy, {queue} waiting)"
            );
        }
        if !c.load.is_zero() {
            let _ = write!(text, " + load {} ({})", Ms(c.load), self.model.residency);
        }
        let _ = write!(text, " + prompt {}", Ms(c.ttft));
        let _ = match self.stats.samples {
            0 => write!(text, " (not measured yet; by hardware and size)"),
            n => write!(
                text,
                " (measured {n} times, last {} s ago)",
                self.stats.age_s
            ),
        };
        text
    }
}

/// Milliseconds with one decimal, by integers: formatting floats was half of a ranking's time.
struct Ms(Duration);

impl std::fmt::Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = self.0.as_micros().saturating_add(50) / 100;
        let tenths = u64::try_from(tenths).unwrap_or(u64::MAX);
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}

fn rejections(snapshot: &Snapshot, mut refused: Vec<(Refusal, usize)>, now: Mono) -> Vec<Rejected> {
    if refused.len() > MAX_RANKED {
        refused.select_nth_unstable(MAX_RANKED);
        refused.truncate(MAX_RANKED);
    }
    refused.sort_unstable();
    let word = |(refusal, at): (Refusal, usize)| {
        let peer = snapshot.peers.get(at)?;
        Some(Rejected {
            node: peer.advert.node,
            name: peer.advert.name.clone(),
            reason: refusal.reason(peer, now),
        })
    };
    refused.into_iter().filter_map(word).collect()
}

impl Refusal {
    fn reason(self, peer: &Peer, now: Mono) -> Cow<'static, str> {
        match self {
            Refusal::Context(tokens) => {
                format!("the prompt exceeds its context of {tokens} tokens").into()
            }
            Refusal::EngineDown(at) => match peer.advert.engines.get(usize::from(at)) {
                Some(engine) => format!("its engine {} does not answer", engine.name).into(),
                None => "its engine does not answer".into(),
            },
            Refusal::Absent => "the model is not on that machine".into(),
            Refusal::OtherKind(kind) => format!("there it is a model of kind {kind}").into(),
            Refusal::Draining => "draining: takes nothing new".into(),
            Refusal::Down => {
                format!("down: silent for {} s", now.since(peer.heard).as_secs()).into()
            }
            Refusal::Left => "has left the mesh".into(),
            Refusal::Client => "a client: serves nothing".into(),
            Refusal::NoModel => "does not have the model".into(),
        }
    }
}

/// Ollama's tag of a name that says none.
const LATEST: &str = ":latest";

/// Whether `model` is what is asked for; `name` is the asked name without [`LATEST`]. Lengths
/// come first: most names differ in them, and then their bytes are not fetched from memory.
fn is_meant(model: &ModelAdvert, need: &Need<'_>, name: &str) -> bool {
    let own = model.name.as_str();
    let named = own == name
        || own.len() == name.len() + LATEST.len()
            && own.strip_suffix(LATEST).is_some_and(|own| own == name);
    named
        || need
            .digest
            .is_some_and(|d| !d.is_empty() && d == model.digest)
}

fn speed(advert: &Advert, model: &ModelAdvert) -> Stats {
    let measured = model.stats;
    if measured.samples > 0 && measured.ttft_ms > 0.0 {
        return measured;
    }
    let guess = estimate::guess(&advert.hardware, model.size);
    let or = |measured: f32, guess: f32| if measured > 0.0 { measured } else { guess };
    Stats {
        itl_ms: or(measured.itl_ms, guess.itl_ms),
        load_ms: or(measured.load_ms, guess.load_ms),
        ..guess
    }
}

fn first_token(stats: &Stats, prompt_tokens: u32) -> f64 {
    f64::from(stats.ttft_ms) + f64::from(stats.ttft_per_ktok_ms) * f64::from(prompt_tokens) / 1000.0
}

fn rtt(peer: &Peer) -> Duration {
    peer.paths
        .first()
        .and_then(|p| p.rtt)
        .unwrap_or_else(|| ms(UNKNOWN_RTT_MS))
}

fn queue(engine: &EngineAdvert, stats: &Stats) -> Duration {
    let slots = engine.slots.max(1);
    if engine.busy < slots && engine.queue == 0 {
        return Duration::ZERO;
    }
    let answer = f64::from(stats.ttft_ms) + f64::from(stats.itl_ms) * TYPICAL_TOKENS;
    let ahead = f64::from(engine.queue) + 1.0;
    ms(ahead / f64::from(slots) * answer)
}

fn loading(engine: &EngineAdvert, model: &ModelAdvert, stats: &Stats) -> Duration {
    let starting = if engine.health == Health::Starting {
        STARTING_MS
    } else {
        0.0
    };
    let cold = match model.residency {
        Residency::Loaded | Residency::Pinned => 0.0,
        Residency::Loading if model.load_eta_ms > 0 => f64::from(model.load_eta_ms),
        // A measured machine whose loading was never seen still has a size.
        _ if stats.load_ms > 0.0 => f64::from(stats.load_ms),
        _ => f64::from(estimate::guess(&Default::default(), model.size).load_ms),
    };
    ms(starting + cold)
}

fn ms(n: f64) -> Duration {
    // `as` saturates, and a NaN is 0: adverts are checked for both, snapshots of tests are not.
    Duration::from_micros((n * 1000.0) as u64)
}

/// How unlike two model names are: edit distance, less if one begins like the other (a tag, a
/// size left out). Only the first 64 characters count, so that hostile names cost little.
pub fn distance(asked: &str, name: &str) -> usize {
    let fold = |s: &str| -> Vec<char> { s.chars().take(64).flat_map(char::to_lowercase).collect() };
    let (a, b) = (fold(asked), fold(name));
    let shared = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()] + 64 - shared.min(64)
}

#[cfg(test)]
#[path = "rank_tests.rs"]
mod tests;
