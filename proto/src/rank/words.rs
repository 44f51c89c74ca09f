//! Reasons in words, for the few that are shown.

use super::cost::ms;
use super::offer::{Offer, Refusal};
use super::{Candidate, Rejected};
use crate::limits::MAX_RANKED;
use crate::stalls::Bounds;
use crate::table::{Peer, Snapshot};
use crate::time::Mono;
use crate::wire::{EngineAdvert, ModelKind};
use std::borrow::Cow;
use std::time::Duration;

impl Offer<'_> {
    /// As it is handed out.
    pub(super) fn candidate(&self, peer: &Peer, kept: bool, now: Mono) -> Candidate {
        Candidate {
            node: peer.advert.node,
            engine: self.model.engine,
            model: self.model.name.clone(),
            digest: self.model.digest.clone(),
            token_ids: self.model.token_ids,
            cost: self.cost,
            expected_ttft: self.ttft,
            expected_itl: ms(f64::from(self.stats.itl_ms)),
            learned: Bounds::default(),
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
        let (output, work) = match self.model.kind {
            ModelKind::Tts => ("first sound", "voice"),
            ModelKind::Stt => ("transcript", "recognizer"),
            _ => ("first token", "prompt"),
        };
        let (total, path) = (Ms(c.total()), Ms(c.rtt));
        let _ = write!(text, "{output} in {total} ms: path {path}");
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
        let _ = write!(text, " + {work} {}", Ms(c.ttft));
        let _ = match self.stats.samples {
            0 => write!(text, " (not measured yet; by hardware and size)"),
            n => {
                let age = self.stats.age_s;
                let _ = match self.ttft == c.ttft {
                    true => text.write_str(" ("),
                    false => write!(text, " (aged from {}: ", Ms(self.ttft)),
                };
                write!(text, "measured {n} times, last {age} s ago)")
            }
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

/// The peers that are out, nearest misses first, each with its reason.
pub(super) fn rejections(
    snapshot: &Snapshot,
    mut refused: Vec<(Refusal, usize)>,
    now: Mono,
) -> Vec<Rejected> {
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
            Refusal::NoneOf(kind) => format!("has no model of kind {kind}").into(),
        }
    }
}
