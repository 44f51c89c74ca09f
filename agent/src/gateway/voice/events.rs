//! Events of speech as scripts read them; `proto/PROTOCOL.md` documents the keys.

use super::super::mesh::{failed_json, peer_json};
use super::super::source::ClientError;
use super::super::view;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use unamesh_client::converse::{Stage, Timeline, TurnEvent};
use unamesh_client::speech::{HearEvent, SayEvent, VoiceAt};

/// Engines that detection finds where these commands start them.
const PIPER: &str = "Piper: `pip install wyoming-piper`, then `python3 -m wyoming_piper --voice \
                     en_US-lessac-medium --uri tcp://127.0.0.1:10200 --data-dir voices`";
const WHISPER: &str = "Whisper: `pip install wyoming-faster-whisper`, then `python3 -m \
                       wyoming_faster_whisper --model base.en --language en --uri \
                       tcp://127.0.0.1:10300 --data-dir models`";

/// `{"event":"pcm","pcm":"..."}`: the samples in base64, s16le, 24 kHz, mono.
pub fn spoken(event: &SayEvent) -> Value {
    match event {
        SayEvent::Started { peer, voice, why } => {
            json!({"event": "started", "peer": peer_json(peer), "voice": voice, "why": why})
        }
        SayEvent::Progress { phase } => json!({"event": "progress", "phase": phase.name()}),
        SayEvent::Mark { from, to, at } => {
            json!({"event": "mark", "from": from, "to": to, "at": at})
        }
        SayEvent::Pcm(pcm) => json!({"event": "pcm", "pcm": BASE64.encode(&to_bytes(pcm))}),
        SayEvent::PeerChanged {
            from,
            to,
            voice,
            same_voice,
            reason,
            gap,
            lead,
        } => json!({
            "event": "peer_changed",
            "from": peer_json(from),
            "to": peer_json(to),
            "voice": voice,
            "same_voice": same_voice,
            "reason": reason,
            "gap_ms": view::ms(*gap),
            "lead_ms": view::ms(*lead),
        }),
        SayEvent::Done { samples } => json!({"event": "done", "samples": samples}),
        SayEvent::Failed(error) => failed(error, "speaks", PIPER),
    }
}

/// The samples of an event that [`spoken`] made; `None` of another event.
pub fn pcm(event: &Value) -> Option<Vec<i16>> {
    let bytes = BASE64.decode(event.get("pcm")?.as_str()?.as_bytes()).ok()?;
    let (pairs, _) = bytes.as_chunks();
    Some(pairs.iter().copied().map(i16::from_le_bytes).collect())
}

/// Samples as bytes: s16le.
pub fn to_bytes(pcm: &[i16]) -> Vec<u8> {
    pcm.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// What was understood.
pub fn heard(event: &HearEvent) -> Value {
    match event {
        HearEvent::Started { peer, why } => {
            json!({"event": "started", "peer": peer_json(peer), "why": why})
        }
        HearEvent::Progress { phase } => json!({"event": "progress", "phase": phase.name()}),
        HearEvent::Began { at_ms } => json!({"event": "began", "at_ms": at_ms}),
        HearEvent::Silence { ms } => json!({"event": "silence", "ms": ms}),
        HearEvent::Full { at_ms } => json!({"event": "full", "at_ms": at_ms}),
        HearEvent::Partial { text } => json!({"event": "partial", "text": text}),
        HearEvent::PeerChanged { from, to, reason } => json!({
            "event": "peer_changed",
            "from": peer_json(from),
            "to": peer_json(to),
            "reason": reason,
        }),
        HearEvent::Final {
            text,
            language,
            words,
            confidence,
            peer,
        } => {
            let words: Vec<Value> = words
                .iter()
                .map(|w| json!({"text": w.text, "start_ms": w.start_ms, "end_ms": w.end_ms}))
                .collect();
            json!({
                "event": "final",
                "text": text,
                "language": language,
                "words": words,
                "confidence": confidence,
                "peer": peer_json(peer),
            })
        }
        HearEvent::Failed { error, partial } => {
            let mut failed = failed(error, "transcribes", WHISPER);
            failed["error"]["partial"] = json!(partial);
            failed
        }
    }
}

/// What happens in a conversation. Its sound is no JSON: `Pcm` is empty here.
pub fn turn(event: &TurnEvent) -> Value {
    match event {
        TurnEvent::Ready => json!({"event": "ready"}),
        TurnEvent::SpeechBegan => json!({"event": "began"}),
        TurnEvent::Partial { text } => json!({"event": "partial", "text": text}),
        TurnEvent::NothingHeard => json!({"event": "nothing_heard"}),
        TurnEvent::Heard { text, peer } => {
            json!({"event": "heard", "text": text, "peer": peer_json(peer)})
        }
        TurnEvent::Thinking { peer } => json!({"event": "thinking", "peer": peer_json(peer)}),
        TurnEvent::Text { text } => json!({"event": "text", "text": text}),
        TurnEvent::Speaking { peer, voice } => {
            json!({"event": "speaking", "peer": peer_json(peer), "voice": voice})
        }
        TurnEvent::Pcm(_) => json!({"event": "pcm"}),
        TurnEvent::PeerChanged {
            stage,
            from,
            to,
            same_voice,
            reason,
            gap,
        } => json!({
            "event": "peer_changed",
            "stage": stage,
            "from": peer_json(from),
            "to": peer_json(to),
            "same_voice": same_voice,
            "reason": reason,
            "gap_ms": view::ms(*gap),
        }),
        TurnEvent::TurnDone {
            heard,
            answer,
            played,
            timeline,
        } => json!({
            "event": "turn_done",
            "heard": heard,
            "answer": answer,
            "played": played,
            "timeline": timeline_json(timeline),
        }),
        TurnEvent::BargedIn { played, timeline } => {
            json!({"event": "barged_in", "played": played, "timeline": timeline_json(timeline)})
        }
        TurnEvent::Failed {
            stage,
            error,
            partial,
        } => {
            let mut failed = match stage {
                Stage::Hear => failed(error, "transcribes", WHISPER),
                Stage::Think => failed_json(error),
                Stage::Speak => failed(error, "speaks", PIPER),
            };
            failed["stage"] = json!(stage);
            failed["error"]["partial"] = json!(partial);
            failed
        }
    }
}

/// Milliseconds from the user's last speech sample; `null` for what was not.
pub fn timeline_json(line: &Timeline) -> Value {
    let at = |moment: Option<Duration>| moment.map(view::ms);
    json!({
        "transcript_ms": at(line.transcript),
        "thinking_ms": at(line.thinking),
        "confirmed_ms": at(line.confirmed),
        "first_token_ms": at(line.first_token),
        "first_piece_ms": at(line.first_piece),
        "first_audio_ms": at(line.first_audio),
        "thought_ms": at(line.thought),
        "end_ms": at(line.end),
        "overlaps": line.overlaps().collect::<Vec<_>>(),
    })
}

/// What failed. Where nobody `does` it at all, how to begin is told.
fn failed(error: &ClientError, does: &str, engine: &str) -> Value {
    let mut failed = failed_json(error);
    if matches!(error, ClientError::NoPeer { near, .. } if near.is_empty()) {
        failed["error"]["message"] = json!(nobody(does, engine));
    }
    failed
}

fn nobody(does: &str, engine: &str) -> String {
    format!(
        "no engine on the mesh {does} now. Start one on any of its machines, for example \
         {engine}; its agent finds it by itself (`unamesh engines` shows what it found)"
    )
}

/// How a mesh without a voice gets one.
pub fn nobody_speaks() -> String {
    nobody("speaks", PIPER)
}

/// Each voice once, with where it is: by name, then by language.
pub fn voices(all: &[VoiceAt]) -> Value {
    let mut found: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
    for at in all {
        let place = json!({
            "node": at.peer.node,
            "name": at.peer.name,
            "engine": at.engine,
            "model": at.model,
        });
        found
            .entry((&at.voice, &at.language))
            .or_default()
            .push(place);
    }
    let voice =
        |((voice, language), peers)| json!({"voice": voice, "language": language, "peers": peers});
    found.into_iter().map(voice).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_engine_learns_how_to_start_one() {
        let nobody = |near: &[&str]| {
            let near = near
                .iter()
                .map(|n| ((*n).to_owned(), vec!["desk".to_owned()]));
            let (model, near) = ("any".to_owned(), near.collect());
            spoken(&SayEvent::Failed(ClientError::NoPeer { model, near }))
        };
        let message = nobody(&[])["error"]["message"].to_string();
        assert!(message.contains("wyoming_piper"), "{message}");
        assert_eq!(nobody(&[])["error"]["code"], "no_peer");
        let near = nobody(&["tts-1"])["error"]["message"].to_string();
        assert!(near.contains("tts-1") && !near.contains("pip"), "{near}");
    }

    #[test]
    fn samples_survive_json() {
        let samples = vec![0, 1, -1, i16::MIN, i16::MAX, 12_345];
        let event = spoken(&SayEvent::Pcm(samples.clone()));
        let read: Value = serde_json::from_str(&event.to_string()).unwrap();
        assert_eq!(pcm(&read), Some(samples));
        assert_eq!(pcm(&json!({"event": "done", "samples": 1})), None);
    }
}
