//! The peer table and rankings as JSON: what `/v1/models`, the mesh API and by them the
//! command line show. The README documents the keys.

use super::source::{Candidate, Ranking};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use unamesh_proto::table::{Liveness, Peer, Snapshot};
use unamesh_proto::wire::{Gpu, ModelAdvert, ModelKind, NodeState};
use unamesh_proto::{Mono, NodeId};

/// Percentage that an advert gives for "no battery".
const NO_BATTERY: u8 = 255;

/// Peers that may be chosen.
pub fn serving(snapshot: &Snapshot) -> impl Iterator<Item = &Peer> {
    let up = |p: &&Peer| p.advert.state == NodeState::Up && p.liveness != Liveness::Down;
    snapshot.peers.iter().map(AsRef::as_ref).filter(up)
}

/// OpenAI model objects: one for each name of a language model, with where it is.
pub fn openai_models(snapshot: &Snapshot) -> impl Iterator<Item = Value> + '_ {
    let groups = by_name(snapshot).into_iter();
    let texts = groups.filter(|(_, found)| found.iter().any(|(_, m)| m.kind == ModelKind::Llm));
    texts.map(|(name, found)| {
        let nodes: Vec<&str> = found
            .iter()
            .map(|(peer, _)| peer.advert.name.as_str())
            .collect();
        let context = found.iter().map(|(_, m)| m.context).max().unwrap_or(0);
        // The mesh does not know when a model was made; its oldest advertiser's start is stable
        // and in the past.
        let created = found
            .iter()
            .map(|(p, _)| p.advert.epoch / 1000)
            .min()
            .unwrap_or(0);
        json!({
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "unamesh",
            "unamesh": {"peers": nodes, "context": unknown(context)},
        })
    })
}

/// `GET /unamesh/v1/peers`.
pub fn peers(snapshot: &Snapshot, now: Mono) -> Value {
    let all = snapshot.peers.iter();
    all.map(|p| peer(p, snapshot.me, now)).collect()
}

/// `GET /unamesh/v1/models`.
pub fn models(snapshot: &Snapshot) -> Value {
    let all = by_name(snapshot).into_iter().map(|(name, found)| {
        let places: Vec<Value> = found
            .iter()
            .map(|(peer, model)| place(peer, model))
            .collect();
        let best = found.first().map(|(_, model)| *model);
        json!({
            "model": name,
            "kind": best.map(|m| m.kind.name()),
            "family": best.map(|m| m.family.as_str()),
            "quantization": best.map(|m| m.quantization.as_str()),
            "size": best.map(|m| m.size),
            "context": found.iter().map(|(_, m)| m.context).max(),
            "peers": places,
        })
    });
    all.collect()
}

/// `GET /unamesh/v1/why`.
pub fn why(
    model: &str,
    ranking: &Ranking,
    near: &[(String, Vec<String>)],
    snapshot: &Snapshot,
) -> Value {
    let ranked: Vec<Value> = ranking
        .ranked
        .iter()
        .map(|c| candidate(c, snapshot))
        .collect();
    let rejected: Vec<Value> = ranking
        .rejected
        .iter()
        .map(|r| json!({"node": r.node, "name": r.name, "reason": r.reason}))
        .collect();
    let near: Vec<Value> = near
        .iter()
        .map(|(name, nodes)| json!({"model": name, "peers": nodes}))
        .collect();
    json!({
        "model": model,
        "chosen": ranked.first(),
        "ranked": ranked,
        "rejected": rejected,
        "near": near,
    })
}

/// A duration in milliseconds with microseconds behind the point.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn candidate(c: &Candidate, snapshot: &Snapshot) -> Value {
    let peer = snapshot.get(&c.node);
    let engine = peer.and_then(|p| p.advert.engines.get(usize::from(c.engine)));
    json!({
        "node": c.node,
        "name": name_of(snapshot, &c.node),
        "engine": c.engine,
        "engine_name": engine.map(|e| e.name.as_str()),
        "model": c.model,
        "digest": c.digest,
        "token_ids": c.token_ids,
        "draining": c.draining,
        "cost_ms": {
            "rtt": ms(c.cost.rtt),
            "queue": ms(c.cost.queue),
            "load": ms(c.cost.load),
            "ttft": ms(c.cost.ttft),
            "total": ms(c.cost.total()),
        },
        "expected_ttft_ms": ms(c.expected_ttft),
        "expected_itl_ms": ms(c.expected_itl),
        "reason": c.reason,
    })
}

fn name_of(snapshot: &Snapshot, node: &NodeId) -> String {
    snapshot
        .get(node)
        .map_or_else(|| node.short(), |peer| peer.advert.name.clone())
}

/// Where each model is, best-known place first within the order of node ids.
fn by_name(snapshot: &Snapshot) -> BTreeMap<&str, Vec<(&Peer, &ModelAdvert)>> {
    let mut found: BTreeMap<&str, Vec<(&Peer, &ModelAdvert)>> = BTreeMap::new();
    for peer in serving(snapshot) {
        for model in &peer.advert.models {
            found.entry(&model.name).or_default().push((peer, model));
        }
    }
    found
}

fn place(peer: &Peer, model: &ModelAdvert) -> Value {
    let engine = peer.advert.engines.get(usize::from(model.engine));
    json!({
        "node": peer.advert.node,
        "name": peer.advert.name,
        "engine": engine.map(|e| e.name.as_str()),
        "health": engine.map(|e| e.health.name()),
        "digest": model.digest,
        "residency": model.residency.name(),
        "token_ids": model.token_ids,
        "stats": model.stats,
    })
}

fn peer(peer: &Peer, me: Option<NodeId>, now: Mono) -> Value {
    let advert = &peer.advert;
    let paths: Vec<Value> = peer
        .paths
        .iter()
        .map(|path| {
            json!({
                "addr": path.addr.to_string(),
                "kind": path.kind.name(),
                "rtt_ms": path.rtt.map(ms),
                "ok_ms_ago": path.ok_at.map(|at| now.since(at).as_millis() as u64),
            })
        })
        .collect();
    let engines: Vec<Value> = advert
        .engines
        .iter()
        .map(|e| {
            json!({
                "name": e.name, "kind": e.kind.name(), "health": e.health.name(),
                "slots": e.slots, "busy": e.busy, "queue": e.queue,
            })
        })
        .collect();
    let models: Vec<Value> = advert.models.iter().map(|m| model(peer, m)).collect();
    json!({
        "node": advert.node,
        "name": advert.name,
        "me": me == Some(advert.node),
        "version": advert.version,
        "role": advert.role.name(),
        "state": advert.state.name(),
        "liveness": liveness(peer.liveness),
        "heard_ms_ago": now.since(peer.heard).as_millis() as u64,
        "rtt_ms": peer.paths.first().and_then(|p| p.rtt).map(ms),
        "epoch": advert.epoch,
        "seq": advert.seq,
        "drain_ms": advert.drain_ms,
        "paths": paths,
        "hardware": hardware(peer),
        "engines": engines,
        "models": models,
    })
}

fn model(peer: &Peer, m: &ModelAdvert) -> Value {
    let engine = peer.advert.engines.get(usize::from(m.engine));
    json!({
        "name": m.name,
        "engine": engine.map(|e| e.name.as_str()),
        "kind": m.kind.name(),
        "digest": m.digest,
        "family": m.family,
        "quantization": m.quantization,
        "size": m.size,
        "context": m.context,
        "residency": m.residency.name(),
        "load_eta_ms": m.load_eta_ms,
        "token_ids": m.token_ids,
        "stats": m.stats,
    })
}

fn hardware(peer: &Peer) -> Value {
    let hw = &peer.advert.hardware;
    let gpu = |g: &Gpu| {
        json!({
            "name": g.name, "memory_total": g.memory_total, "memory_free": g.memory_free,
            "utilization": g.utilization, "temperature": g.temperature, "power_mw": g.power_mw,
        })
    };
    json!({
        "os": hw.os,
        "cpu": hw.cpu,
        "cores": hw.cores,
        "ram_total": hw.ram_total,
        "ram_free": hw.ram_free,
        "unified": hw.unified,
        "gpus": hw.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "on_battery": hw.on_battery,
        "battery": (hw.battery != NO_BATTERY).then_some(hw.battery),
    })
}

const fn liveness(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Down => "down",
    }
}

/// 0 stands for unknown in adverts.
fn unknown(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}
