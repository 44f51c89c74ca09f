//! Engines that transcribe, as scripted servers: their answers, and their faults. These are
//! doubles, none is an engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::faults::{Act, Double, chunk, end, engine_at, head, reply};
use super::hearing::{HearCall, HearEvent, HearStream, Sound, Word};
use super::http::Http;
use super::{EngineError, detect};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use unamesh_proto::wire::EngineKind;

const PATH: &str = "/v1/audio/transcriptions";

/// An utterance of 40 ms.
async fn sound() -> Sound {
    let (tx, sound) = mpsc::channel(4);
    tx.send(vec![1; 320]).await.unwrap();
    tx.send(vec![-1; 320]).await.unwrap();
    sound
}

fn call() -> HearCall {
    HearCall {
        partials: true,
        ..HearCall::default()
    }
}

/// The partial transcripts, and how it ended.
async fn follow(mut stream: HearStream) -> (Vec<String>, Result<HearEvent, EngineError>) {
    let mut partials = Vec::new();
    loop {
        match stream.next().await.expect("a terminal item") {
            Ok(HearEvent::Progress) => {}
            Ok(HearEvent::Partial { text }) => partials.push(text),
            end => {
                assert!(stream.next().await.is_none());
                return (partials, end);
            }
        }
    }
}

async fn upload(kind: EngineKind, acts: Vec<Act>) -> (Vec<String>, Result<HearEvent, EngineError>) {
    let double = Double::of(vec![(PATH, acts)]).await;
    let stream = double.engine(kind).hear(call(), sound().await).await;
    follow(stream.unwrap()).await
}

#[tokio::test]
async fn uploads() {
    let answer = r#"{"text":" Hello there.","language":"en","segments":[{"avg_logprob":0.0,
        "words":[{"word":" Hello","start":0.1,"end":0.5}]}]}"#;
    let (_, end) = upload(EngineKind::Whisper, vec![Act::Say(reply(200, answer))]).await;
    let hello = Word {
        text: "Hello".into(),
        start_ms: 100,
        end_ms: 500,
    };
    let expected = HearEvent::Final {
        text: "Hello there.".into(),
        language: "en".into(),
        words: vec![hello],
        confidence: Some(1.0),
    };
    assert_eq!(end, Ok(expected));
    let plain = vec![Act::Say(reply(200, r#"{"text":"Hi"}"#))];
    for kind in [
        EngineKind::Vllm,
        EngineKind::OpenAi,
        EngineKind::OpenAiSpeech,
    ] {
        assert_eq!(
            upload(kind, plain.clone()).await.1,
            Ok(HearEvent::bare("Hi"))
        );
    }
}

#[tokio::test]
async fn uploads_with_events() {
    let delta = |text: &str| {
        chunk(
            format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
                .as_bytes(),
        )
    };
    let done = chunk(b"data: [DONE]\n\n");
    let acts = vec![head(), delta("Hel"), delta("lo"), done, end()];
    let (partials, end_of) = upload(EngineKind::Vllm, acts).await;
    assert_eq!(partials, ["Hel", "Hello"]);
    assert_eq!(end_of, Ok(HearEvent::bare("Hello")));
    let cut = vec![head(), delta("Hel"), end()];
    let (_, end_of) = upload(EngineKind::Vllm, cut).await;
    assert!(
        matches!(end_of, Err(EngineError::Failed { .. })),
        "half is no transcript"
    );
    // Each segment as an event of its own, and nothing behind the last.
    let event = |json: &str| chunk(format!("data: {json}\n\n").as_bytes());
    let segments = [r#"{"text":"Hello there."}"#, r#"{"text":"How are you?"}"#];
    let acts = |last: Act| vec![head(), event(segments[0]), event(segments[1]), last];
    let (partials, end_of) = upload(EngineKind::OpenAiSpeech, acts(end())).await;
    assert_eq!(partials.len(), 2);
    assert_eq!(
        end_of,
        Ok(HearEvent::bare("Hello there. How are you?")),
        "every segment counts"
    );
    let (_, end_of) = upload(EngineKind::OpenAiSpeech, acts(Act::Close)).await;
    assert!(matches!(end_of, Err(EngineError::Failed { .. })));
    // Deltas, and then all of it.
    let all = event(r#"{"text":"Hello."}"#);
    let acts = vec![head(), event(r#"{"delta":"Hel"}"#), all, end()];
    let (_, end_of) = upload(EngineKind::OpenAiSpeech, acts).await;
    assert_eq!(end_of, Ok(HearEvent::bare("Hello.")));
}

#[tokio::test]
async fn uploads_that_fail() {
    let failing = [
        (200, r#"{"error":"out of memory"}"#),
        (200, r#"{"x":1}"#),
        (200, "<html>"),
        (200, ""),
        (500, "oops"),
    ];
    for (status, body) in failing {
        let acts = vec![Act::Say(reply(status, body))];
        let (_, end) = upload(EngineKind::Whisper, acts).await;
        assert!(
            matches!(end, Err(EngineError::Failed { .. })),
            "{body}: {end:?}"
        );
    }
    let (_, end) = upload(EngineKind::Whisper, vec![Act::Say(reply(503, "{}"))]).await;
    assert!(matches!(end, Err(EngineError::Busy { .. })));
    // Recognizers make words up for an utterance that is none: they are not asked.
    let double = Double::of(vec![]).await;
    let (tx, silent) = mpsc::channel(1);
    tx.send(vec![0; 320]).await.unwrap();
    drop(tx);
    let stream = double
        .engine(EngineKind::Whisper)
        .hear(call(), silent)
        .await;
    assert_eq!(follow(stream.unwrap()).await.1, Ok(HearEvent::bare("")));
}

/// A Wyoming server: answers `info` to a `describe`, `heard` to the end of the sound.
async fn wyoming(heard: &'static str) -> (url::Url, JoinSet<()>) {
    const INFO: &str = r#"{"asr":[{"name":"fw","installed":true,"version":"2","models":[
        {"name":"tiny","installed":true},{"name":"big","installed":false}]}]}"#;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut seen = Vec::new();
            let has = |seen: &[u8], word: &[u8]| seen.windows(word.len()).any(|w| w == word);
            while socket.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                if has(&seen, b"describe") {
                    let info = INFO.replace('\n', " ");
                    let head = format!("{{\"type\":\"info\",\"data_length\":{}}}\n", info.len());
                    let _ = socket.write_all((head + &info).as_bytes()).await;
                    break;
                }
                let all = has(&seen, b"audio-stop");
                if all || (heard.contains("early") && has(&seen, b"audio-chunk")) {
                    let _ = socket.write_all(heard.as_bytes()).await;
                    break;
                }
            }
        }
    });
    (url, task)
}

#[tokio::test]
async fn wyoming_transcribes() {
    let heard = "{\"type\":\"transcript-start\"}\n\
        {\"type\":\"transcript-chunk\",\"data\":{\"text\":\"Hel\"}}\n\
        {\"type\":\"transcript-chunk\",\"data\":{\"text\":\"lo\"}}\n\
        {\"type\":\"transcript\",\"data\":{\"text\":\" Hello.\"}}\n";
    let (url, _task) = wyoming(heard).await;
    let engine = engine_at(&url, EngineKind::Wyoming);
    let info = engine.describe().await.unwrap();
    let names: Vec<_> = info.models.iter().map(|m| m.name.as_str()).collect();
    assert_eq!((names, info.version.as_str()), (vec!["tiny"], "2"));
    assert!(
        engine.speak(Default::default()).await.is_err(),
        "it hears only"
    );
    let (partials, end) = follow(engine.hear(call(), sound().await).await.unwrap()).await;
    assert_eq!(partials, ["Hel", "Hello"]);
    assert_eq!(end, Ok(HearEvent::bare("Hello.")));

    for fault in [
        "",
        "{\"type\":\"error\",\"data\":{\"text\":\"oops\"}}\n",
        "x\n",
    ] {
        let (url, _task) = wyoming(fault).await;
        let engine = engine_at(&url, EngineKind::Wyoming);
        let (_, end) = follow(engine.hear(call(), sound().await).await.unwrap()).await;
        assert!(
            matches!(end, Err(EngineError::Failed { .. })),
            "{fault}: {end:?}"
        );
    }
}

/// A transcript of less than was said is none.
#[tokio::test]
async fn a_transcript_before_the_end_of_the_sound_is_an_error() {
    let early = "{\"type\":\"transcript\",\"data\":{\"text\":\"early\"}}\n";
    let (url, _task) = wyoming(early).await;
    let engine = engine_at(&url, EngineKind::Wyoming);
    let (tx, sound) = mpsc::channel(1);
    tx.send(vec![1; 320]).await.unwrap();
    let mut stream = engine.hear(call(), sound).await.unwrap();
    let Some(Err(EngineError::Failed { reason, .. })) = stream.next().await else {
        panic!("more sound was to come");
    };
    assert!(reason.contains("before the sound"), "{reason}");
    drop(tx);
}

/// A GLM-ASR server: says `heard` after the end of the sound, and closes.
async fn glm(heard: Vec<&'static str>) -> (Vec<String>, Result<HearEvent, EngineError>) {
    glm_that_closes(heard, None).await
}

async fn glm_that_closes(
    heard: Vec<&'static str>,
    with: Option<CloseFrame>,
) -> (Vec<String>, Result<HearEvent, EngineError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = accept_async(socket).await.unwrap();
        let (mut bytes, mut texts) = (0, Vec::new());
        while texts.len() < 2 {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(sound) => bytes += sound.len(),
                Message::Text(text) => texts.push(text.to_string()),
                _ => {}
            }
        }
        assert_eq!(bytes, 1280);
        assert!(texts[0].contains("\"start\"") && texts[1].contains("\"end\""));
        for text in heard {
            let _ = socket.send(Message::text(text)).await;
        }
        let _ = socket.close(with).await;
    });
    let engine = engine_at(&url, EngineKind::GlmAsr);
    follow(engine.hear(call(), sound().await).await.unwrap()).await
}

#[tokio::test]
async fn glm_asr_streams() {
    let (partials, end) = glm(vec![
        r#"{"type":"partial","text":"He"}"#,
        r#"{"type":"error","code":"late","message":"x","recoverable":true}"#,
        r#"{"type":"final","text":"Hello.","confidence":0.9,"is_end_of_utterance":false,
            "words":[{"word":"Hello","start":0.0,"end":0.25}]}"#,
        r#"{"type":"partial","text":"Bye"}"#,
        r#"{"type":"final","text":"Bye.","confidence":0.8,"is_end_of_utterance":true}"#,
    ])
    .await;
    assert_eq!(partials, ["He", "Hello.", "Hello. Bye"]);
    let Ok(HearEvent::Final {
        text,
        words,
        confidence,
        ..
    }) = end
    else {
        panic!("{end:?}")
    };
    assert_eq!(
        (text.as_str(), words.len(), confidence),
        ("Hello. Bye.", 1, Some(0.8))
    );

    let open = r#"{"type":"final","text":"Hello.","is_end_of_utterance":false}"#;
    assert_eq!(
        glm(vec![open]).await.1,
        Ok(HearEvent::bare("Hello.")),
        "closing ends it too"
    );
    // The sentences behind the first are lost with the server.
    let broken = CloseFrame {
        code: CloseCode::Error,
        reason: "out of memory".into(),
    };
    let (_, end) = glm_that_closes(vec![open], Some(broken)).await;
    let Err(EngineError::Failed { reason, .. }) = end else {
        panic!("{end:?}")
    };
    assert!(reason.contains("1011"), "{reason}");
    let fatal = r#"{"type":"error","code":"x","message":"no GPU","recoverable":false}"#;
    for fault in [vec![fatal], vec![], vec!["{"]] {
        let (_, end) = glm(fault).await;
        assert!(matches!(end, Err(EngineError::Failed { .. })), "{end:?}");
    }
}

#[tokio::test]
async fn speech_engines_are_told_apart() {
    let say = |body: &str| vec![Act::Say(reply(200, body))];
    let cases = [
        ("/api/model-info", "{}", EngineKind::Chatterbox),
        (
            "/v1/audio/voices",
            r#"{"voices":["af_bella"]}"#,
            EngineKind::OpenAiSpeech,
        ),
        (
            "/voices",
            r#"{"voices":[{"id":"joe"}]}"#,
            EngineKind::OpenAiSpeech,
        ),
        (
            "/voices",
            r#"{"joe":{"audio":{"sample_rate":22050}}}"#,
            EngineKind::Piper,
        ),
    ];
    for (path, body, kind) in cases {
        let double = Double::of(vec![(path, say(body))]).await;
        let http = Http::new(&double.url, None).unwrap();
        assert_eq!(detect::identify(&http).await, Some(kind), "{path}");
    }
    let double = Double::of(vec![(PATH, vec![Act::Say(reply(405, "{}"))])]).await;
    let http = Http::new(&double.url, None).unwrap();
    assert_eq!(detect::identify(&http).await, Some(EngineKind::Whisper));
}
