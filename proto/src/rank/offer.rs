//! What one peer can do for a need, or why it cannot.

use super::cost::{aged, first_token, loading, ms, queue, rtt, speed};
use super::{Cost, Need};
use crate::table::{Liveness, Peer, Snapshot};
use crate::wire::{EngineAdvert, Health, ModelAdvert, ModelKind, NodeState, Residency, Stats};
use std::time::Duration;

/// What a peer has to offer for the need.
pub(super) struct Offer<'a> {
    pub model: &'a ModelAdvert,
    pub engine: &'a EngineAdvert,
    pub stats: Stats,
    /// The cost's time to first token is this, or what its age has left of it.
    pub ttft: Duration,
    pub cost: Cost,
    pub tier: u8,
    pub suspect: bool,
}

/// Why a peer is out, in the order in which it is shown: the nearest misses first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    Context(u32),
    EngineDown(u16),
    Absent,
    OtherKind(ModelKind),
    Draining,
    Down,
    Left,
    Client,
    NoModel,
    /// Nor any other of the kind.
    NoneOf(ModelKind),
}

/// Whether anything may be asked of the peer at all.
pub(super) fn usable(peer: &Peer) -> Result<(), Refusal> {
    match (peer.advert.state, peer.liveness) {
        (NodeState::Left, _) => Err(Refusal::Left),
        (NodeState::Draining, _) => Err(Refusal::Draining),
        (_, Liveness::Down) => Err(Refusal::Down),
        _ => Ok(()),
    }
}

/// Hands out each offer of the peer, with its model's place in the advert.
pub(super) fn offers<'a>(
    snapshot: &Snapshot,
    peer: &'a Peer,
    need: &Need<'_>,
    name: &str,
    mut found: impl FnMut(usize, Offer<'a>),
) -> Result<(), Refusal> {
    usable(peer)?;
    let mut any = false;
    let nothing = if peer.advert.role.is_agent() {
        Refusal::NoModel
    } else {
        Refusal::Client
    };
    let mut refusal = nothing;
    let models = peer.advert.models.iter().enumerate();
    for (at, model) in models.filter(|(_, m)| is_meant(m, need, name)) {
        match offer(snapshot, peer, model, need) {
            Ok(offer) => {
                any = true;
                found(at, offer);
            }
            Err(why) => refusal = refusal.min(why),
        }
    }
    if any { Ok(()) } else { Err(refusal) }
}

/// What the peer offers with this model.
pub(super) fn offer<'a>(
    snapshot: &Snapshot,
    peer: &'a Peer,
    model: &'a ModelAdvert,
    need: &Need<'_>,
) -> Result<Offer<'a>, Refusal> {
    if model.kind != need.kind {
        return Err(Refusal::OtherKind(model.kind));
    }
    if model.context != 0 && need.prompt_at_least >= model.context {
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
    let known = first_token(&stats, need.prompt_tokens);
    let counted = match need.may_try() {
        true => aged(known, (&peer.advert, model), need.prompt_tokens),
        false => known,
    };
    let own = snapshot.me == Some(peer.advert.node);
    let cost = Cost {
        rtt: if own { Duration::ZERO } else { rtt(peer) },
        queue: queue(engine, &stats),
        load: loading(engine, model, &stats),
        ttft: ms(counted),
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
        ttft: ms(known),
        cost,
        tier,
        suspect,
    })
}

/// Ollama's tag of a name that says none.
pub(super) const LATEST: &str = ":latest";

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
