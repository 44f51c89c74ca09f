//! Speech over the mesh: a text to be spoken, an utterance to be transcribed.
//!
//! Both are streams that the caller pulls, as a [`Generation`](crate::driver::Generation) is:
//! nothing is spawned, dropping one cancels it down to the engine, and both survive the peer that
//! works on them. What survives and how is decided by `unamesh_proto::speech`; here it is done:
//!
//! - [`speaking`]: [`Speech`], from [`MeshClient::speak`].
//! - [`hearing`]: [`Hearing`], from [`MeshClient::transcribe`].
//! - `playout`: decoded sound that waits for the ear, cut and joined when another peer goes on.
//! - `joint`: where two recordings of one text are at the same place.

mod hear;
pub mod hearing;
mod joint;
mod playout;
mod say;
pub mod speaking;

pub use hear::{Hear, HearEvent};
pub use hearing::Hearing;
pub use say::{Say, SayEvent};
pub use speaking::Speech;

use crate::client::{ClientError, MeshClient, PeerRef};
use crate::memory::Shared;
use unamesh_proto::rank::{distance, near_models};
use unamesh_proto::session::Reason;
use unamesh_proto::speech::Failure;
use unamesh_proto::table::{Liveness, Peer};
use unamesh_proto::wire::{ModelKind, NodeState};

/// A voice and where it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VoiceAt {
    /// Its name; empty = the only voice of an engine that does not name it.
    pub voice: String,
    /// BCP 47, empty if unknown.
    pub language: String,
    /// The model that speaks with it.
    pub model: String,
    /// The engine's name there.
    pub engine: String,
    /// Whose engine.
    pub peer: PeerRef,
}

impl MeshClient {
    /// Has a text spoken. Nothing happens until the stream is polled.
    pub fn speak(&self, say: Say) -> Speech {
        Speech::new(self.shared.clone(), say)
    }

    /// Has an utterance transcribed, which is pushed into the stream as it is recorded. Nothing
    /// is sent until the stream is polled.
    pub fn transcribe(&self, hear: Hear) -> Hearing {
        Hearing::new(self.shared.clone(), hear)
    }

    /// The voices that can be asked for now.
    pub fn voices(&self) -> Vec<VoiceAt> {
        let snapshot = self.peers();
        let up = |p: &&std::sync::Arc<Peer>| {
            p.advert.state == NodeState::Up && p.liveness != Liveness::Down
        };
        snapshot
            .peers
            .iter()
            .filter(up)
            .flat_map(|p| voices(p))
            .collect()
    }
}

fn voices(peer: &Peer) -> Vec<VoiceAt> {
    let advert = &peer.advert;
    let mut all = Vec::new();
    for (at, engine) in (0u16..).zip(&advert.engines) {
        let speaks = |m: &&_| {
            let m: &unamesh_proto::wire::ModelAdvert = m;
            m.engine == at && m.kind == ModelKind::Tts
        };
        let Some(model) = advert.models.iter().find(speaks) else {
            continue;
        };
        let place = |voice: &str, language: &str| VoiceAt {
            voice: voice.to_owned(),
            language: language.to_owned(),
            model: model.name.clone(),
            engine: engine.name.clone(),
            peer: PeerRef {
                node: advert.node,
                name: advert.name.clone(),
            },
        };
        let listed = advert.voices.iter().filter(|v| v.engine == at);
        let before = all.len();
        all.extend(listed.map(|v| place(&v.name, &v.language)));
        if all.len() == before {
            all.push(place("", ""));
        }
    }
    all
}

/// What the caller is told. `voice` is the one asked for; `delivered` what was said or understood
/// until then.
fn client_error(
    shared: &Shared,
    failure: Failure,
    kind: ModelKind,
    model: &str,
    voice: &str,
    delivered: &str,
) -> ClientError {
    match failure {
        Failure::NoPeer => nobody(shared, kind, model),
        Failure::Busy { retry_after } => ClientError::Busy { retry_after },
        Failure::Refused(error) => ClientError::from(error),
        Failure::NoVoice => no_voice(shared, voice),
        Failure::Interrupted {
            reason: Reason::Leaving,
        } => ClientError::Left {
            delivered: delivered.to_owned(),
            tokens: 0,
        },
        Failure::Interrupted { reason } => broken_off(&reason),
        Failure::Cancelled => ClientError::Cancelled,
    }
}

fn broken_off(reason: &Reason) -> ClientError {
    ClientError::BrokenOff {
        reason: reason.to_string(),
    }
}

fn nobody(shared: &Shared, kind: ModelKind, model: &str) -> ClientError {
    let snapshot = shared.table.borrow().clone();
    let near = near_models(&snapshot, model, |m| m.kind == kind);
    let model = match (model.is_empty(), kind) {
        (false, _) => model.to_owned(),
        (true, ModelKind::Tts) => "any that speaks".to_owned(),
        (true, _) => "any that transcribes".to_owned(),
    };
    let known = |p: &std::sync::Arc<Peer>| {
        p.advert
            .models
            .iter()
            .any(|m| m.name.eq_ignore_ascii_case(&model))
    };
    match near.is_empty() || snapshot.peers.iter().any(known) {
        true => ClientError::NoPeer { model, near },
        false => ClientError::UnknownModel { model, near },
    }
}

fn no_voice(shared: &Shared, voice: &str) -> ClientError {
    const SHOWN: usize = 5;
    let snapshot = shared.table.borrow().clone();
    let all = snapshot.peers.iter().flat_map(|p| voices(p));
    let mut near: Vec<(usize, String, String)> = all
        .map(|v| (distance(voice, &v.voice), v.voice, v.peer.name))
        .collect();
    near.sort();
    near.dedup_by(|a, b| a.1 == b.1);
    let named = near.into_iter().filter(|(_, voice, _)| !voice.is_empty());
    ClientError::NoVoice {
        voice: voice.to_owned(),
        near: named
            .take(SHOWN)
            .map(|(_, v, peer)| (v, vec![peer]))
            .collect(),
    }
}
