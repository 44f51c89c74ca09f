//! What the predicted time is made of.

use crate::estimate;
use crate::table::Peer;
use crate::wire::{Advert, EngineAdvert, Health, ModelAdvert, Residency, Stats};
use std::time::Duration;

/// Tokens of a typical spoken answer: how long a slot stays taken.
const TYPICAL_TOKENS: f64 = 200.0;
/// Milliseconds that a managed engine takes to start.
const STARTING_MS: f64 = 2000.0;
/// Each second since the last sample takes so many milliseconds off a measured first token: to
/// ask a peer again that is slower by some time costs that time, once in 5,000 times it. With ten
/// times as much, a home that asks a question now and then would ask the slow one every other time.
const DOUBT_MS_PER_S: f64 = 0.2;
/// No machine is this much faster than its class in the table: whatever its age, no measurement
/// counts for less than this share of the table value, so that a processor is not tried in vain
/// beside a card.
const TABLE_SHARE: f64 = 0.125;
/// The round trip of a peer that was never probed, in milliseconds.
const UNKNOWN_RTT_MS: f64 = 5.0;

/// What is known of the model's speed there: measured, else by hardware and size.
pub(super) fn speed(advert: &Advert, model: &ModelAdvert) -> Stats {
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

/// Milliseconds from prompt to first token.
pub(super) fn first_token(stats: &Stats, prompt_tokens: u32) -> f64 {
    f64::from(stats.ttft_ms) + f64::from(stats.ttft_per_ktok_ms) * f64::from(prompt_tokens) / 1000.0
}

/// What is left of `measured`, milliseconds to the first token, for a request that may try: see
/// the module above. Never more than that.
pub(super) fn aged(measured: f64, offer: (&Advert, &ModelAdvert), prompt_tokens: u32) -> f64 {
    let (advert, model) = offer;
    let stats = &model.stats;
    let left = measured - f64::from(stats.age_s) * DOUBT_MS_PER_S;
    if stats.samples == 0 || stats.age_s == 0 {
        return measured;
    }
    let table = first_token(
        &estimate::guess(&advert.hardware, model.size),
        prompt_tokens,
    );
    left.max(table * TABLE_SHARE).min(measured)
}

/// To the peer and back, over its best path.
pub(super) fn rtt(peer: &Peer) -> Duration {
    peer.paths
        .first()
        .and_then(|p| p.rtt)
        .unwrap_or_else(|| ms(UNKNOWN_RTT_MS))
}

/// Until a slot is free.
pub(super) fn queue(engine: &EngineAdvert, stats: &Stats) -> Duration {
    let slots = engine.slots.max(1);
    if engine.busy < slots && engine.queue == 0 {
        return Duration::ZERO;
    }
    let answer = f64::from(stats.ttft_ms) + f64::from(stats.itl_ms) * TYPICAL_TOKENS;
    let ahead = f64::from(engine.queue) + 1.0;
    ms(ahead / f64::from(slots) * answer)
}

/// Until the model is in memory.
pub(super) fn loading(engine: &EngineAdvert, model: &ModelAdvert, stats: &Stats) -> Duration {
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

/// Milliseconds as a duration.
pub(super) fn ms(n: f64) -> Duration {
    // `as` saturates, and a NaN is 0: adverts are checked for both, snapshots of tests are not.
    Duration::from_micros((n * 1000.0) as u64)
}
