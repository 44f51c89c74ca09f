//! Engines that speak, as scripted servers that misbehave. These are doubles: each plays one
//! fault, none is an engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::EngineError;
use super::faults::{Act, Double, chunk, end, head, reply};
use super::speech::{SpeechCall, SpeechEvent, SpeechStream, Voice};
use super::{Engine, system};
use futures_util::StreamExt;
use unamesh_proto::wire::{EngineKind, ModelKind};

const SPEECH: &str = "/v1/audio/speech";

pub(super) fn call(text: &str) -> SpeechCall {
    SpeechCall {
        text: text.to_owned(),
        ..SpeechCall::default()
    }
}

pub(super) fn in_voice(voice: &str) -> SpeechCall {
    SpeechCall {
        voice: voice.to_owned(),
        ..call("Hello.")
    }
}

/// A WAV's head: channels, bits, the rate, and the bytes of its samples.
fn wav_head(channels: u16, bits: u16, rate: u32, len: u32) -> Vec<u8> {
    let frame = channels * bits / 8;
    let mut head = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0".to_vec();
    head.extend(channels.to_le_bytes());
    head.extend(rate.to_le_bytes());
    head.extend((rate * u32::from(frame)).to_le_bytes());
    head.extend(frame.to_le_bytes());
    head.extend(bits.to_le_bytes());
    head.extend(b"data");
    head.extend(len.to_le_bytes());
    head
}

fn wav(channels: u16, bits: u16, rate: u32, samples: &[u8]) -> Vec<u8> {
    let mut wav = wav_head(channels, bits, rate, samples.len() as u32);
    wav.extend_from_slice(samples);
    wav
}

/// Samples of 1000.
pub(super) fn loud(samples: usize) -> Vec<u8> {
    1000i16.to_le_bytes().repeat(samples)
}

/// An answer whose length stands in its head.
fn whole(body: &[u8]) -> Vec<Act> {
    let head = format!(
        "HTTP/1.1 200 x\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    vec![Act::Say([head.as_bytes(), body].concat())]
}

/// The rate, all samples, and how it ended.
pub(super) async fn listen(mut stream: SpeechStream) -> (u32, Vec<i16>, Result<u64, EngineError>) {
    let (mut told, mut all) = (0, Vec::new());
    loop {
        match stream.next().await.expect("a terminal item") {
            Ok(SpeechEvent::Format { rate }) => {
                assert_eq!((told, all.len()), (0, 0), "the format comes first and once");
                told = rate;
            }
            Ok(SpeechEvent::Pcm(pcm)) => all.extend(pcm),
            Ok(SpeechEvent::Timing { .. }) => {}
            Ok(SpeechEvent::Done { samples }) => {
                assert!(stream.next().await.is_none());
                return (told, all, Ok(samples));
            }
            Err(error) => {
                assert!(stream.next().await.is_none());
                return (told, all, Err(error));
            }
        }
    }
}

/// What an engine of speech that answers by `acts` is heard to say.
async fn play(acts: Vec<Act>, call: SpeechCall) -> (u32, Vec<i16>, Result<u64, EngineError>) {
    let double = Double::of(vec![(SPEECH, acts)]).await;
    match double.engine(EngineKind::OpenAiSpeech).speak(call).await {
        Ok(stream) => listen(stream).await,
        Err(error) => (0, Vec::new(), Err(error)),
    }
}

pub(super) fn reason(end: Result<u64, EngineError>) -> String {
    match end {
        Err(EngineError::Failed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sound_comes_before_the_answer_has_ended() {
    let first = [wav_head(1, 16, 22_050, 0xffff_ffff), loud(100)].concat();
    let acts = vec![head(), chunk(&first), Act::Hang];
    let mut double = Double::of(vec![(SPEECH, acts)]).await;
    let engine = double.engine(EngineKind::OpenAiSpeech);
    let mut stream = engine.speak(call("Hello.")).await.unwrap();
    let format = stream.next().await.unwrap();
    assert_eq!(format, Ok(SpeechEvent::Format { rate: 22_050 }));
    let pcm = stream.next().await.unwrap();
    assert_eq!(pcm, Ok(SpeechEvent::Pcm(vec![1000; 100])));
    // A barge-in closes the connection.
    drop(stream);
    double.hung_up.recv().await.unwrap();
}

#[tokio::test]
async fn formats_are_read() {
    let stereo: Vec<u8> = [1000i16, 3000]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    let said = play(whole(&wav(2, 16, 44_100, &stereo)), call("Hello.")).await;
    assert_eq!(said, (44_100, vec![2000], Ok(1)));
    let said = play(whole(&wav(1, 8, 11_025, &[128, 192])), call("Hello.")).await;
    assert_eq!(said, (11_025, vec![0, 16_384], Ok(2)));
    // Each sentence as a WAV of its own.
    let two = wav(1, 16, 24_000, &loud(2)).repeat(2);
    let said = play(whole(&two), call("Hello. Hello.")).await;
    assert_eq!(said, (24_000, vec![1000; 4], Ok(4)));
}

#[tokio::test]
async fn wrong_claims_and_early_ends_are_errors() {
    let mut lying = wav(1, 16, 24_000, &loud(10));
    lying[24..28].copy_from_slice(&48_000u32.to_le_bytes());
    let (.., end) = play(whole(&lying), call("Hello.")).await;
    assert!(reason(end).contains("contradicts"));
    let (.., end) = play(whole(&wav(1, 16, 1_000_000, &loud(10))), call("Hello.")).await;
    assert!(reason(end).contains("samples a second"));

    let whole_wav = wav(1, 16, 24_000, &loud(10));
    let (_, heard, end) = play(whole(&whole_wav[..50]), call("Hello.")).await;
    assert_eq!(heard, [1000; 3], "what came is not lost");
    assert!(reason(end).contains("14 bytes less"));
    // The same, with the connection cut.
    let acts = vec![head(), chunk(&whole_wav[..50]), Act::Close];
    let (_, heard, end) = play(acts, call("Hello.")).await;
    assert_eq!(heard, [1000; 3]);
    assert!(reason(end).contains("broke"));

    for body in [&b""[..], &wav(1, 16, 24_000, &[])] {
        let (.., end) = play(whole(body), call("Hello.")).await;
        assert!(reason(end).contains("no audio"));
    }
}

#[tokio::test]
async fn words_instead_of_sound_are_errors() {
    let sorry = br#"{"error":{"message":"CUDA out of memory"}}"#;
    let (.., end) = play(whole(sorry), call("Hello.")).await;
    assert!(reason(end).contains("CUDA"));
    let gone = br#"{"detail":"Voice 'joe' not found"}"#;
    let (.., end) = play(whole(gone), in_voice("joe")).await;
    assert!(
        matches!(end, Err(EngineError::UnknownVoice { .. })),
        "{end:?}"
    );
    let (.., end) = play(whole(b"<html>oops"), call("Hello.")).await;
    assert!(reason(end).contains("words instead of sound"));
    let (.., end) = play(whole(b"\xff\xfb\x90\x64"), call("Hello.")).await;
    assert!(reason(end).contains("not a WAV"));
    let pcm = SpeechCall {
        extra: r#"{"response_format":"pcm"}"#.into(),
        ..call("Hello.")
    };
    let (.., end) = play(whole(b"ID3\x04rest"), pcm.clone()).await;
    assert!(reason(end).contains("MP3"));
    // Where raw samples were asked for, all of these would be noise in somebody's ear.
    let list = br#"[{"msg":"the queue is full"}]"#;
    let pretty = b"{\n    \"error\": {\"message\": \"CUDA\"}\n}";
    for (words, told) in [
        (&sorry[..], "CUDA"),
        (pretty, "CUDA"),
        (list, "the queue is full"),
        (b"Internal Server Error", "words instead of sound"),
        (b"oops", "words instead of sound"),
    ] {
        let (_, heard, end) = play(whole(words), pcm.clone()).await;
        assert!(heard.is_empty());
        let reason = reason(end);
        assert!(reason.contains(told), "{reason}");
    }
    // Whatever raw speech begins with, it is heard.
    for start in [
        [0; 16],
        [0x7b; 16].map(|b| b | 0x80),
        *b"{\"\0\0rest of it  ",
    ] {
        let mut sound = start.to_vec();
        sound.extend(loud(8));
        let (_, heard, end) = play(whole(&sound), pcm.clone()).await;
        assert_eq!((heard.len(), end), (16, Ok(16)));
    }
}

#[tokio::test]
async fn silence_only_and_endless_speech_are_errors() {
    let silent = wav(1, 16, 24_000, &[0; 4800]);
    let (_, heard, end) = play(whole(&silent), call("Hello.")).await;
    assert_eq!(heard.len(), 2400);
    assert!(reason(end).contains("only silence"));
    // Where there is nothing to say it is what was asked for.
    assert_eq!(play(whole(&silent), call("...")).await.2, Ok(2400));

    let mut acts = vec![head(), chunk(&wav_head(1, 16, 8_000, 0))];
    acts.extend(vec![chunk(&loud(8_000)); 30]);
    acts.push(Act::Hang);
    let (_, heard, end) = play(acts, call("Hi")).await;
    assert!(reason(end).contains("longer than this text"));
    assert!(heard.len() <= 18 * 8_000);
}

#[tokio::test]
async fn a_voice_that_vanished_is_never_replaced() {
    let answer = reply(400, r#"{"detail":"unknown voice: joe"}"#);
    let (.., end) = play(vec![Act::Say(answer)], in_voice("joe")).await;
    assert!(matches!(end, Err(EngineError::UnknownVoice { .. })));
    let (.., end) = play(whole(b""), call(" ")).await;
    assert!(matches!(end, Err(EngineError::Invalid { .. })));

    // VibeVoice speaks in another one instead; what it lists decides.
    let list = reply(
        200,
        r#"{"voices":[{"voice_id":"Carter","language":"en_US"}]}"#,
    );
    let double = Double::of(vec![
        (
            "/health",
            vec![Act::Say(reply(
                200,
                r#"{"status":"ok","model_loaded":true}"#,
            ))],
        ),
        ("/v1/audio/voices", vec![Act::Say(list)]),
        (SPEECH, whole(&wav(1, 16, 24_000, &loud(10)))),
    ])
    .await;
    let engine = double.engine(EngineKind::OpenAiSpeech);
    let info = engine.describe().await.unwrap();
    assert_eq!(info.voices, [Voice::new("Carter", "en-US")]);
    assert_eq!(
        (info.models[0].name.as_str(), info.models[0].kind),
        ("tts-1", ModelKind::Tts)
    );
    assert!(engine.speak(in_voice("Carter")).await.is_ok());
    let gone = engine.speak(in_voice("joe")).await.err().unwrap();
    assert!(matches!(gone, EngineError::UnknownVoice { .. }));

    // Chatterbox likewise.
    let info = reply(200, r#"{"loaded":true}"#);
    let list = reply(200, r#"{"voices":["Emily"]}"#);
    let double = Double::of(vec![
        ("/api/model-info", vec![Act::Say(info)]),
        ("/voices", vec![Act::Say(list)]),
        ("/tts", whole(&wav(1, 16, 24_000, &loud(10)))),
    ])
    .await;
    let engine = double.engine(EngineKind::Chatterbox);
    engine.describe().await.unwrap();
    assert!(engine.speak(in_voice("Emily")).await.is_ok());
    let gone = engine.speak(in_voice("joe")).await.err().unwrap();
    assert!(matches!(gone, EngineError::UnknownVoice { .. }));
}

/// A busy server that answers late has the voices that it had.
#[tokio::test]
async fn a_late_list_of_voices_is_the_one_from_before() {
    use super::http::Http;
    use super::openai_speech::voices;
    let list = reply(200, r#"["Carter"]"#);
    let lists = Double::of(vec![("/v1/audio/voices", vec![Act::Say(list)])]).await;
    let of = async |double: &Double| voices(&Http::new(&double.url, None).unwrap()).await;
    assert_eq!(of(&lists).await, Ok(vec![Voice::named("Carter")]));
    let none = Double::of(vec![("/x", vec![])]).await;
    assert_eq!(of(&none).await, Ok(Vec::new()));
    for busy in [Act::Say(reply(503, "{}")), Act::Close] {
        let answers = vec![("/v1/audio/voices", vec![busy])];
        assert!(of(&Double::of(answers.clone()).await).await.is_err());
        // The other path may still tell.
        let list = ("/voices", vec![Act::Say(reply(200, r#"["joe"]"#))]);
        let both = Double::of([answers, vec![list]].concat()).await;
        assert_eq!(of(&both).await, Ok(vec![Voice::named("joe")]));
    }
}

#[tokio::test]
async fn ok_without_a_model_is_not_ok() {
    let health = reply(200, r#"{"status":"ok","model_loaded":false}"#);
    let double = Double::of(vec![("/health", vec![Act::Say(health)])]).await;
    let told = double.engine(EngineKind::OpenAiSpeech).describe().await;
    assert!(matches!(told, Err(EngineError::Failed { .. })));
}

#[tokio::test]
async fn raw_samples_are_asked_for_once_their_rate_is_known() {
    let mut double = Double::of(vec![(SPEECH, whole(&wav(1, 16, 24_000, &loud(10))))]).await;
    let engine = double.engine(EngineKind::OpenAiSpeech);
    let mut formats = Vec::new();
    for _ in 0..3 {
        let said = listen(engine.speak(call("Hello.")).await.unwrap()).await;
        assert_eq!(
            said,
            (24_000, vec![1000; 10], Ok(10)),
            "a WAV is one, asked for or not"
        );
        let body = double.asked.recv().await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        formats.push(body["response_format"].as_str().unwrap().to_owned());
    }
    // It made those as a whole too.
    assert_eq!(formats, ["wav", "pcm", "wav"]);

    let told = b"HTTP/1.1 200 x\r\ncontent-type: audio/pcm;rate=16000\r\ncontent-length: 4\r\n\r\n";
    let acts = vec![Act::Say([&told[..], &loud(2)].concat())];
    assert_eq!(
        play(acts, call("Hello.")).await,
        (16_000, vec![1000; 2], Ok(2))
    );
}

#[tokio::test]
async fn piper_and_chatterbox() {
    let list =
        r#"{"en_US-joe-medium":{"audio":{"sample_rate":22050},"language":{"code":"en_US"}}}"#;
    let mut double = Double::of(vec![
        ("/voices", vec![Act::Say(reply(200, list))]),
        ("/synthesize", whole(&wav(1, 16, 22_050, &loud(5)))),
        (
            "/api/model-info",
            vec![Act::Say(reply(200, r#"{"loaded":true,"type":"turbo"}"#))],
        ),
        (
            "/tts",
            vec![head(), chunk(&loud(3)[..5]), chunk(&loud(3)[5..]), end()],
        ),
    ])
    .await;
    let piper = double.engine(EngineKind::Piper);
    assert_eq!(
        piper.describe().await.unwrap().voices,
        [Voice::new("en_US-joe-medium", "en-US")]
    );
    double.asked.recv().await.unwrap();
    let fast = SpeechCall {
        speed: Some(2.0),
        ..in_voice("en_US-joe-medium")
    };
    let said = listen(piper.speak(fast).await.unwrap()).await;
    assert_eq!(said, (22_050, vec![1000; 5], Ok(5)));
    let body = String::from_utf8(double.asked.recv().await.unwrap()).unwrap();
    assert!(
        body.contains(r#""length_scale":0.5"#) && body.contains("joe"),
        "{body}"
    );

    let chatterbox = double.engine(EngineKind::Chatterbox);
    assert_eq!(chatterbox.describe().await.unwrap().models[0].name, "turbo");
    let said = listen(chatterbox.speak(call("Hello.")).await.unwrap()).await;
    assert_eq!(said, (24_000, vec![1000; 3], Ok(3)));
}

#[tokio::test]
async fn a_huge_head_is_an_error() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
        "y".repeat(2 * 1024 * 1024)
    );
    let (.., end) = play(vec![Act::Say(long.into_bytes())], call("Hello.")).await;
    assert!(matches!(end, Err(EngineError::Failed { .. })), "{end:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn the_system_voice_gets_its_text_by_stdin() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("espeak");
    std::fs::write(folder.path().join("wav"), wav(1, 16, 22_050, &loud(9))).unwrap();
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$@\" > args\ncat > said\ncat wav\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let engine = system::System::espeak_at("sys".into(), program.into());
    let text = "$(reboot) `x` \"; --help".repeat(5000);
    let said = listen(engine.speak(call(&text)).await.unwrap()).await;
    assert_eq!(said, (22_050, vec![1000; 9], Ok(9)));
    let got = std::fs::read_to_string(folder.path().join("said")).unwrap();
    assert!(got == text, "the text came through whole");
    let args = std::fs::read_to_string(folder.path().join("args")).unwrap();
    assert_eq!(args.trim(), "--stdin --stdout -s 175");
    let gone = engine.speak(in_voice("--version")).await.err().unwrap();
    assert!(matches!(gone, EngineError::UnknownVoice { .. }));
    let absent = system::System::espeak_at("sys".into(), folder.path().join("absent").into());
    let down = absent.speak(call("Hello.")).await.err().unwrap();
    assert!(matches!(down, EngineError::Down { .. }));
}
