//! Which peers speak, or listen: as [`rank`](super::rank), with voices.
//!
//! Every engine that can do it is a candidate of its own, not only its peer's best: beside a
//! failed one its neighbour may go on, and the voice asked for may be on either. They are ordered
//! by tier, then by predicted time to the first output:
//!
//! 1. the system's own voice comes after all others (it is intelligible, and no more);
//! 2. another voice than the one asked for, or a language that no voice there is known to speak,
//!    after those that fit;
//! 3. suspect peers after live ones;
//! 4. an engine that lists no voices, which may have this one, after those that list it. The
//!    agent has the last word (`SpeechAccepted::same_voice`).

use super::offer::{Offer, Refusal, offer, usable};
use super::words::rejections;
use super::{Candidate, Key, Need, Ranking, Rejected, best_first, stays};
use crate::ids::NodeId;
use crate::speech::speak::Speaker;
use crate::table::{Peer, Snapshot};
use crate::time::Mono;
use crate::wire::{EngineKind, ModelKind, VoiceAdvert};
use std::collections::BTreeMap;

/// Who is to speak.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpeechNeed<'a> {
    /// The model's name, in any case; empty = any that speaks.
    pub model: &'a str,
    /// The voice's name, in any case; a mix names its parts with `+`. Empty = any.
    pub voice: &'a str,
    /// BCP 47: of any voice one that speaks it is chosen. Empty = any.
    pub language: &'a str,
    /// Of any voice only this model's is the same: it spoke until now with a voice that has no
    /// name.
    pub like: Option<&'a str>,
    /// The node that spoke to this conversation before.
    pub sticky: Option<NodeId>,
}

/// The outcome: at most [`MAX_RANKED`](crate::limits::MAX_RANKED) of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speakers {
    /// Best first; those that have another voice as well.
    pub ranked: Vec<Speaker>,
    /// Those that cannot speak.
    pub rejected: Vec<Rejected>,
}

/// Ranks who speaks. `now` words the reasons only, as for [`rank`](super::rank).
pub fn speakers(snapshot: &Snapshot, need: &SpeechNeed<'_>, now: Mono) -> Speakers {
    let offers = find(snapshot, ModelKind::Tts, need.model, need.sticky);
    let fits: Vec<Fit<'_>> = offers.found.iter().map(|o| fit(o, need)).collect();
    let tier = |at: usize| fits.get(at).map_or(u8::MAX, |fit| fit.tier);
    let ranked = offers.ranked(tier, need.sticky, now, |at, candidate| {
        let fit = fits.get(at)?;
        Some(Speaker {
            candidate,
            voice: fit.voice.to_owned(),
            same: fit.same,
        })
    });
    Speakers {
        ranked,
        rejected: rejections(snapshot, offers.refused, now),
    }
}

/// Ranks who listens, with `model` (empty = any that does). `sticky` has listened to this
/// conversation before.
pub fn listeners(snapshot: &Snapshot, model: &str, sticky: Option<NodeId>, now: Mono) -> Ranking {
    let offers = find(snapshot, ModelKind::Stt, model, sticky);
    let suspect = |at: usize| offers.found.get(at).map_or(u8::MAX, |o| o.offer.tier);
    let ranked = offers.ranked(suspect, sticky, now, |_, candidate| Some(candidate));
    Ranking {
        ranked,
        rejected: rejections(snapshot, offers.refused, now),
    }
}

/// Whether an engine that lists `voices` has this one.
pub fn has_voice<'v>(voices: impl Iterator<Item = &'v VoiceAdvert> + Clone, voice: &str) -> bool {
    let listed = |part: &str| voices.clone().any(|v| v.name.eq_ignore_ascii_case(part));
    listed(voice) || voice.contains('+') && voice.split('+').all(listed)
}

/// One engine's best offer.
struct Found<'a> {
    peer: &'a Peer,
    offer: Offer<'a>,
}

impl<'a> Found<'a> {
    fn voices(&self) -> impl Iterator<Item = &'a VoiceAdvert> + Clone + use<'a> {
        let engine = self.offer.model.engine;
        let all = self.peer.advert.voices.iter();
        all.filter(move |v| v.engine == engine)
    }
}

struct Offers<'a> {
    found: Vec<Found<'a>>,
    refused: Vec<(Refusal, usize)>,
}

impl Offers<'_> {
    /// In order. `tier` and `out` get an offer's number.
    fn ranked<T>(
        &self,
        tier: impl Fn(usize) -> u8,
        sticky: Option<NodeId>,
        now: Mono,
        out: impl Fn(usize, Candidate) -> Option<T>,
    ) -> Vec<T> {
        let key = |(at, o): (usize, &Found<'_>)| Key::at(tier(at), o.offer.cost.total(), at);
        let mut keys: Vec<Key> = self.found.iter().enumerate().map(key).collect();
        let holds = |key: &&Key| {
            let found = self.found.get(key.place());
            found.is_some_and(|o| Some(o.peer.advert.node) == sticky)
        };
        let best = keys.iter().min();
        let kept = keys.iter().filter(holds).min();
        let kept = kept.filter(|k| best.is_some_and(|best| stays(**k, *best)));
        let kept = kept.copied();
        best_first(&mut keys, kept);
        let ranked = keys.iter().filter_map(|key| {
            let found = self.found.get(key.place())?;
            let candidate = found.offer.candidate(found.peer, kept == Some(*key), now);
            out(key.place(), candidate)
        });
        ranked.collect()
    }
}

/// What all engines offer, and why the peers without an offer have none.
fn find<'a>(
    snapshot: &'a Snapshot,
    kind: ModelKind,
    model: &str,
    sticky: Option<NodeId>,
) -> Offers<'a> {
    let need = Need {
        model,
        kind,
        prompt_tokens: 0,
        digest: None,
        prompt_at_least: 0,
        // Whichever engine: only whether there is one counts.
        sticky: sticky.map(|node| (node, 0)),
        needs_token_ids: false,
    };
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for (at, peer) in snapshot.peers.iter().enumerate() {
        match by_engine(snapshot, peer, &need) {
            Ok(offers) => found.extend(offers.into_values().map(|offer| Found { peer, offer })),
            Err(refusal) => refused.push((refusal, at)),
        }
    }
    Offers { found, refused }
}

/// The best that each engine of a peer offers.
fn by_engine<'a>(
    snapshot: &Snapshot,
    peer: &'a Peer,
    need: &Need<'_>,
) -> Result<BTreeMap<u16, Offer<'a>>, Refusal> {
    usable(peer)?;
    let (kind, name) = (need.kind, need.model);
    let mut best: BTreeMap<u16, Offer<'a>> = BTreeMap::new();
    let mut refusal = match peer.advert.role.is_agent() {
        false => Refusal::Client,
        true if name.is_empty() => Refusal::NoneOf(kind),
        true => Refusal::NoModel,
    };
    let models = peer.advert.models.iter();
    for model in models.filter(|m| match name.is_empty() {
        true => m.kind == kind,
        false => m.name.eq_ignore_ascii_case(name),
    }) {
        match offer(snapshot, peer, model, need) {
            Ok(new) => {
                let old = best.get(&model.engine).map(|old| old.cost.total());
                if old.is_none_or(|old| new.cost.total() < old) {
                    best.insert(model.engine, new);
                }
            }
            Err(why) => refusal = refusal.min(why),
        }
    }
    match best.is_empty() {
        true => Err(refusal),
        false => Ok(best),
    }
}

/// How well an engine's voices fit.
struct Fit<'a> {
    voice: &'a str,
    same: bool,
    tier: u8,
}

fn fit<'a>(found: &Found<'a>, need: &SpeechNeed<'a>) -> Fit<'a> {
    let voices = found.voices();
    let unlisted = voices.clone().next().is_none();
    let speaks = |v: &&VoiceAdvert| same_language(&v.language, need.language);
    let of_language = voices.clone().find(speaks).map(|v| v.name.as_str());
    let (voice, same, fits, unsure) = if need.voice.is_empty() {
        let like = need
            .like
            .is_none_or(|m| found.offer.model.name.eq_ignore_ascii_case(m));
        let any = need.language.is_empty() || unlisted;
        let voice = of_language.filter(|_| !any).unwrap_or_default();
        (voice, like, like && (any || of_language.is_some()), false)
    } else if has_voice(voices, need.voice) {
        (need.voice, true, true, false)
    } else if unlisted {
        (need.voice, true, true, true)
    } else {
        (of_language.unwrap_or_default(), false, false, false)
    };
    let system = found.offer.engine.kind == EngineKind::System;
    let tier = u8::from(system) << 3
        | u8::from(!fits) << 2
        | u8::from(found.offer.suspect) << 1
        | u8::from(unsure);
    Fit { voice, same, tier }
}

/// `de-AT` speaks `de`, and the other way round.
fn same_language(spoken: &str, wanted: &str) -> bool {
    let primary = |tag: &str| tag.split(['-', '_']).next().unwrap_or_default().len();
    let (a, b) = (primary(spoken), primary(wanted));
    a > 0 && a == b && spoken[..a].eq_ignore_ascii_case(&wanted[..b])
}

#[cfg(test)]
#[path = "speech_tests.rs"]
mod tests;
