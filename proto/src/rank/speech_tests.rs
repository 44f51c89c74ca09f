#![allow(clippy::unwrap_used)]
use super::super::tests::{mesh, peer};
use super::*;
use crate::table::Liveness;
use crate::testing::{engine, model, node};
use crate::wire::{Advert, EngineAdvert, Health, ModelAdvert, NodeState, Role};
use std::sync::Arc;

/// A peer with one engine that speaks with these voices (`name/language`) after `first` ms.
fn voiced(n: u32, first: f32, kind: EngineKind, voices: &[&str]) -> Arc<Peer> {
    changed(n, first, kind, voices, |_, _| {})
}

fn changed(
    n: u32,
    first: f32,
    kind: EngineKind,
    voices: &[&str],
    change: impl FnOnce(&mut Peer, &mut Advert),
) -> Arc<Peer> {
    peer(n, first, |peer, advert| {
        advert.engines[0].kind = kind;
        (advert.models[0].kind, advert.models[0].name) = (ModelKind::Tts, "voice".into());
        advert.voices = voices.iter().map(|v| voice(0, v)).collect();
        change(peer, advert);
    })
}

fn voice(engine: u16, told: &str) -> VoiceAdvert {
    let (name, language) = told.split_once('/').unwrap_or((told, ""));
    let (name, language) = (name.into(), language.into());
    VoiceAdvert {
        engine,
        name,
        language,
    }
}

fn first_byte(id: NodeId) -> u32 {
    u32::from_be_bytes(id.0[..4].try_into().unwrap())
}

/// Who, with which voice, and whether it is the same.
fn order(peers: Vec<Arc<Peer>>, need: &SpeechNeed<'_>) -> Vec<(u32, String, bool)> {
    let ranked = speakers(&mesh(peers), need, Mono::ZERO).ranked;
    let told = |s: Speaker| (first_byte(s.candidate.node), s.voice, s.same);
    ranked.into_iter().map(told).collect()
}

const PIPER: EngineKind = EngineKind::Piper;

fn got(n: u32, voice: &str, same: bool) -> (u32, String, bool) {
    (n, voice.into(), same)
}

#[test]
fn the_voice_comes_before_the_time_and_the_system_last() {
    let peers = || {
        vec![
            voiced(1, 10.0, EngineKind::System, &["en-us"]),
            voiced(2, 50.0, PIPER, &["amy"]),
            voiced(3, 90.0, PIPER, &["Joe", "amy"]),
            voiced(4, 20.0, EngineKind::OpenAiSpeech, &[]),
        ]
    };
    let joe = SpeechNeed {
        voice: "joe",
        ..SpeechNeed::default()
    };
    let expected = [
        got(3, "joe", true),
        // May have it.
        got(4, "joe", true),
        got(2, "", false),
        got(1, "", false),
    ];
    assert_eq!(order(peers(), &joe), expected);
    let any = SpeechNeed::default();
    let expected = [
        got(4, "", true),
        got(2, "", true),
        got(3, "", true),
        got(1, "", true),
    ];
    assert_eq!(order(peers(), &any), expected);
    let mixed = SpeechNeed {
        voice: "AMY+joe",
        ..SpeechNeed::default()
    };
    assert_eq!(order(peers(), &mixed)[0], got(3, "AMY+joe", true));
}

#[test]
fn of_any_voice_one_of_the_language_is_chosen() {
    let peers = vec![
        voiced(1, 10.0, PIPER, &["amy/en-US"]),
        voiced(2, 50.0, PIPER, &["amy/en-US", "eva/de-AT", "kim/de"]),
        voiced(3, 90.0, EngineKind::Chatterbox, &[]),
    ];
    let german = SpeechNeed {
        language: "de_DE",
        ..SpeechNeed::default()
    };
    let expected = [got(2, "eva", true), got(3, "", true), got(1, "", true)];
    assert_eq!(order(peers, &german), expected);
}

#[test]
fn a_voice_without_a_name_is_its_models() {
    let named = |n, name: &str| {
        changed(n, n as f32, EngineKind::Chatterbox, &[], |_, a| {
            a.models[0].name = name.into();
        })
    };
    let need = SpeechNeed {
        like: Some("chatterbox"),
        ..SpeechNeed::default()
    };
    let peers = vec![named(1, "other"), named(2, "chatterbox")];
    assert_eq!(order(peers, &need), [got(2, "", true), got(1, "", false)]);
}

#[test]
fn each_engine_of_a_peer_is_a_candidate() {
    let two = changed(1, 10.0, EngineKind::System, &["en-us"], |_, a| {
        a.engines.push(EngineAdvert {
            kind: PIPER,
            ..engine("piper")
        });
        a.models.push(ModelAdvert {
            kind: ModelKind::Tts,
            ..model("piper", 1)
        });
        a.voices.push(voice(1, "joe"));
    });
    let ranked = speakers(&mesh(vec![two]), &SpeechNeed::default(), Mono::ZERO).ranked;
    let engines: Vec<u16> = ranked.iter().map(|s| s.candidate.engine).collect();
    assert_eq!(engines, [1, 0]);
    assert!(ranked[0].candidate.reason.contains("first sound in"));
}

#[test]
fn who_cannot_speak_is_rejected_with_the_reason() {
    let away = |n, change: fn(&mut Peer, &mut Advert)| changed(n, 1.0, PIPER, &["joe"], change);
    let mesh = mesh(vec![
        away(1, |p, _| p.liveness = Liveness::Down),
        away(2, |_, a| a.state = NodeState::Draining),
        away(3, |_, a| a.engines[0].health = Health::Down),
        away(4, |_, a| a.models[0].kind = ModelKind::Stt),
        away(5, |_, a| {
            a.models.clear();
            a.role = Role::Client;
        }),
        away(6, |p, _| p.liveness = Liveness::Suspect),
    ]);
    let outcome = speakers(&mesh, &SpeechNeed::default(), Mono::ZERO);
    let ranked: Vec<u32> = outcome
        .ranked
        .iter()
        .map(|s| first_byte(s.candidate.node))
        .collect();
    assert_eq!(ranked, [6]);
    let of = |n| outcome.rejected.iter().find(|r| r.node == node(n)).unwrap();
    for (n, words) in [
        (1, "down"),
        (2, "draining"),
        (3, "does not answer"),
        (4, "no model of kind tts"),
        (5, "a client"),
    ] {
        assert!(of(n).reason.contains(words), "{}", of(n).reason);
    }
    let other = SpeechNeed {
        model: "other",
        ..SpeechNeed::default()
    };
    let none = speakers(&mesh, &other, Mono::ZERO);
    assert!(none.ranked.is_empty() && none.rejected.len() == 6);
}

#[test]
fn who_listens_is_ranked_by_time_and_stays() {
    let ear = |n, first| {
        changed(n, first, EngineKind::Whisper, &[], |_, a| {
            a.models[0].kind = ModelKind::Stt;
        })
    };
    let mesh = mesh(vec![ear(1, 60.0), ear(2, 50.0), voiced(3, 1.0, PIPER, &[])]);
    let order = |model: &str, sticky| -> Vec<u32> {
        let ranked = listeners(&mesh, model, sticky, Mono::ZERO).ranked;
        ranked.iter().map(|c| first_byte(c.node)).collect()
    };
    assert_eq!(order("", None), [2, 1]);
    assert_eq!(order("voice", Some(node(1))), [1, 2]);
    assert!(order("whisper-1", None).is_empty());
}
