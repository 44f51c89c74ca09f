//! Wyoming servers that speak, as scripted ones that misbehave. These are doubles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::engine::EngineError;
use crate::engine::faults::engine_at;
use crate::engine::speech::SpeechCall;
use crate::engine::speech_faults::{in_voice, listen, loud, reason};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unamesh_proto::limits::MAX_WYOMING_PART;
use unamesh_proto::wire::EngineKind;

/// What a Wyoming server that answers by `bytes` is heard to say.
async fn wyoming(bytes: Vec<u8>, call: SpeechCall) -> (u32, Vec<i16>, Result<u64, EngineError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        // Until the other side closes: a reset would take the bytes with it.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let engine = engine_at(&url, EngineKind::Wyoming);
    let stream = engine.speak(call).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), listen(stream))
        .await
        .unwrap()
}

fn event(json: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{json}\n").into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test]
async fn wyoming_speaks() {
    let format = r#"{"rate":22050,"width":2,"channels":1}"#;
    let start = event(&format!(r#"{{"type":"audio-start","data":{format}}}"#), b"");
    let chunk = format!(r#"{{"type":"audio-chunk","data":{format},"payload_length":8}}"#);
    let chunk = event(&chunk, &loud(4));
    let stop = event(r#"{"type":"audio-stop","data":{}}"#, b"");
    let all = [&start[..], &chunk, &chunk, &stop].concat();
    assert_eq!(
        wyoming(all.clone(), in_voice("")).await,
        (22_050, vec![1000; 8], Ok(8))
    );
    let (_, heard, end) = wyoming([&start[..], &chunk].concat(), in_voice("")).await;
    assert_eq!(heard.len(), 4);
    assert!(reason(end).contains("before its speech ended"));
    let (.., end) = wyoming([start.clone(), stop].concat(), in_voice("")).await;
    assert!(reason(end).contains("no audio"));
    let other = r#"{"type":"audio-start","data":{"rate":16000,"width":2,"channels":1}}"#;
    let (.., end) = wyoming([start, chunk, event(other, b"")].concat(), in_voice("")).await;
    assert!(reason(end).contains("changes"));
    let gone = event(
        r#"{"type":"error","data":{"text":"Voice not found: joe"}}"#,
        b"",
    );
    let (.., end) = wyoming(gone, in_voice("joe")).await;
    assert!(
        matches!(end, Err(EngineError::UnknownVoice { .. })),
        "{end:?}"
    );
    assert!(reason(wyoming(b"\r\n\r\n".to_vec(), in_voice("")).await.2).contains("Wyoming"));
}

#[tokio::test]
async fn huge_parts_are_errors() {
    let (.., end) = wyoming(vec![b'{'; MAX_WYOMING_PART + 2], in_voice("")).await;
    assert!(reason(end).contains("exceeds"));
    let huge = b"{\"type\":\"audio-chunk\",\"payload_length\":4000000000}\n".to_vec();
    assert!(reason(wyoming(huge, in_voice("")).await.2).contains("exceeds"));
}

/// A server that lists a voice and streams: each sentence has its own beginning and end.
#[tokio::test]
async fn speech_streams_where_that_is_offered() {
    const INFO: &[u8] = b"{\"type\":\"info\",\"data\":{\"tts\":[{\"name\":\"piper\",\
        \"supports_synthesize_streaming\":true,\"voices\":[{\"name\":\"joe\",\
        \"languages\":[\"en_US\"]}]}]}}\n";
    let format = r#"{"rate":22050,"width":2,"channels":1}"#;
    let start = event(&format!(r#"{{"type":"audio-start","data":{format}}}"#), b"");
    let chunk = format!(r#"{{"type":"audio-chunk","data":{format},"payload_length":8}}"#);
    let chunk = event(&chunk, &loud(4));
    let stop = event(r#"{"type":"audio-stop"}"#, b"");
    let last = event(r#"{"type":"synthesize-stopped"}"#, b"");
    let sentence = [start, chunk, stop].concat();
    let said = [&sentence[..], &sentence, &last].concat();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut asked, _) = listener.accept().await.unwrap();
        asked.write_all(INFO).await.unwrap();
        let (mut asked, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(15).any(|w| w == b"synthesize-stop") {
            asked.read_buf(&mut seen).await.unwrap();
        }
        asked.write_all(&said).await.unwrap();
        let _ = asked.read_to_end(&mut seen).await;
    });
    let engine = engine_at(&url.parse().unwrap(), EngineKind::Wyoming);
    let info = engine.describe().await.unwrap();
    assert_eq!(
        (
            info.voices[0].name.as_str(),
            info.voices[0].language.as_str()
        ),
        ("joe", "en-US")
    );
    let gone = engine.speak(in_voice("amy")).await.err().unwrap();
    assert!(matches!(gone, EngineError::UnknownVoice { .. }));
    let said = listen(engine.speak(in_voice("joe")).await.unwrap()).await;
    assert_eq!(said, (22_050, vec![1000; 8], Ok(8)));
}
