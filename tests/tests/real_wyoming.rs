//! The Wyoming adapter against wyoming-piper and wyoming-faster-whisper, and detection of engines
//! of speech where they usually are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use unamesh_agent::engine::detect::{STANDARD, standard_ports};
use unamesh_agent::engine::hearing::HearCall;
use unamesh_agent::engine::speech::SpeechCall;
use unamesh_agent::engine::{Engine, EngineError, adapter};
use unamesh_proto::wire::{EngineKind, ModelKind};
use unamesh_tests::cluster::turn;
use unamesh_tests::measure::until;
use unamesh_tests::real::speech::{
    SENTENCES, Server, VOICE, for_hearing, hear, kill, say, say_as, words,
};

/// An engine that was killed is up again within this.
const RESTART: Duration = Duration::from_secs(60);
/// Sentences enough that a kill comes in their middle.
const MANY: usize = 12;
/// Sentences to transcribe.
const FEW: usize = 4;
/// Set for the part of a test that runs in a namespace of its own.
const INSIDE: &str = "UNAMESH_INSIDE";

#[tokio::test]
async fn piper_speaks_by_sentences_and_dies() {
    let _turn = turn().await;
    let running = Server::WyomingPiper.start().await;
    let engine = &*running.engine;
    let info = engine.describe().await.unwrap();
    println!(
        "{}: {} voices, version {}",
        engine.name(),
        info.voices.len(),
        info.version
    );
    // It lists what it could download as installed.
    let ours = info.voices.iter().find(|v| v.name == VOICE).unwrap();
    assert_eq!(ours.language, "en-US");
    assert!(
        info.models.iter().all(|m| m.kind == ModelKind::Tts),
        "{:?}",
        info.models
    );

    let text = SENTENCES[..MANY].join(" ");
    let named = || SpeechCall {
        text: text.clone(),
        voice: VOICE.to_owned(),
        ..SpeechCall::default()
    };
    let whole = say_as(engine, named(), |_| {}).await.unwrap();
    println!(
        "wyoming-piper: first after {:?}, all {:.2} s after {:?} in {} pieces",
        whole.first,
        whole.pcm.len() as f64 / f64::from(whole.rate),
        whole.took,
        whole.pieces
    );
    assert_eq!(
        (whole.rate, &whole.end),
        (22_050, &Ok(whole.pcm.len() as u64))
    );
    assert!(whole.first < whole.took / 2, "streamed by sentences");

    for text in ["", " \n"] {
        let refused = say(engine, text).await;
        assert!(
            matches!(refused, Err(EngineError::Invalid { .. })),
            "{refused:?}"
        );
    }
    let voice = |name: &str| SpeechCall {
        voice: name.to_owned(),
        ..named()
    };
    let refused = say_as(engine, voice("Gone"), |_| {}).await;
    assert!(
        matches!(refused, Err(EngineError::UnknownVoice { .. })),
        "{refused:?}"
    );
    // Listed, not there, and not to be downloaded here.
    let listed = info
        .voices
        .iter()
        .find(|v| v.name.starts_with("de_DE"))
        .unwrap();
    let refused = say_as(engine, voice(&listed.name), |_| {}).await.unwrap();
    assert!(refused.pcm.is_empty());
    assert!(
        matches!(refused.end, Err(EngineError::UnknownVoice { .. })),
        "{:?}",
        refused.end
    );

    let third = whole.pcm.len() / 3;
    let mut killed = false;
    let strike = |samples| {
        if samples > third && !std::mem::replace(&mut killed, true) {
            kill(&running);
        }
    };
    let died = say_as(engine, named(), strike).await.unwrap();
    assert!(
        matches!(died.end, Err(EngineError::Failed { .. })),
        "{:?}",
        died.end
    );
    assert!(died.pcm.len() > third && died.pcm.len() < whole.pcm.len());
    // What came before is what it always says.
    assert!(whole.pcm.starts_with(&died.pcm), "not the same sound");
    println!(
        "wyoming-piper, killed after {} of {} samples",
        died.pcm.len(),
        whole.pcm.len()
    );
    until("it speaks again", RESTART, async || {
        let again = say(engine, SENTENCES[0]).await.map_err(|e| e.to_string())?;
        again.end.map_err(|e| e.to_string())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn whisper_hears_and_dies() {
    let _turn = turn().await;
    let piper = Server::WyomingPiper.start().await;
    let mut sounds = Vec::new();
    for sentence in &SENTENCES[..FEW] {
        let spoken = say(&*piper.engine, sentence).await.unwrap();
        sounds.push(for_hearing(&spoken.pcm, spoken.rate));
    }
    piper.stop().await;

    let running = Server::WyomingWhisper.start().await;
    let engine = &*running.engine;
    let info = engine.describe().await.unwrap();
    // Its name there is a path of this machine.
    assert_eq!(info.models[0].name, "model");
    assert!(info.models.iter().all(|m| m.kind == ModelKind::Stt));
    let call = || HearCall {
        language: "en-US".to_owned(),
        ..HearCall::default()
    };
    for (sound, sentence) in sounds.iter().zip(SENTENCES) {
        let start = Instant::now();
        let heard = hear(engine, call(), sound).await.unwrap();
        println!(
            "wyoming-faster-whisper: {} s in {:?}",
            sound.len() / 16_000,
            start.elapsed()
        );
        assert_eq!(words(&heard.text), words(sentence));
    }
    let nothing = hear(engine, call(), &[]).await.unwrap();
    assert_eq!(nothing.text, "");
    let refused = say(engine, SENTENCES[0]).await;
    assert!(
        matches!(refused, Err(EngineError::Unsupported { .. })),
        "{refused:?}"
    );

    let long = sounds.concat();
    let start = Instant::now();
    let whole = hear(engine, call(), &long).await.unwrap();
    let half = start.elapsed() / 2;
    let killing = async {
        tokio::time::sleep(half).await;
        kill(&running);
    };
    let (died, ()) = tokio::join!(hear(engine, call(), &long), killing);
    assert!(matches!(died, Err(EngineError::Failed { .. })), "{died:?}");
    let again = until("it hears again", RESTART, async || {
        hear(engine, call(), &long).await.map_err(|e| e.to_string())
    });
    assert_eq!(again.await.0.text, whole.text);
    running.stop().await;
}

/// Detection looks at fixed ports of the loopback interface, so the test runs itself again in a
/// network namespace where nobody else has them.
#[tokio::test]
async fn engines_are_found_where_they_usually_are() {
    if std::env::var_os(INSIDE).is_some() {
        return engines_are_found().await;
    }
    let _turn = turn().await;
    // There is no way out to install anything from inside.
    Server::Loudness.entry(0).await;
    let script = "ip link set lo up && exec \"$0\" --exact --nocapture \"$1\"";
    let inside = tokio::process::Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg("engines_are_found_where_they_usually_are")
        .env(INSIDE, "1")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success(), "{said}");
    // Not its `test result:`, which CI would count.
    let found = said.lines().filter(|line| line.starts_with("found"));
    found.for_each(|line| println!("{line}"));
}

async fn engines_are_found() {
    let usual = |name: &str| STANDARD.iter().find(|(n, _)| *n == name).unwrap().1;
    let expected = [
        (Server::Piper, usual("piper"), EngineKind::Piper),
        (Server::Whisper, usual("whisper"), EngineKind::Whisper),
        (
            Server::Loudness,
            usual("openai-speech"),
            EngineKind::OpenAiSpeech,
        ),
        (
            Server::WyomingPiper,
            usual("wyoming-piper"),
            EngineKind::Wyoming,
        ),
        (
            Server::WyomingWhisper,
            usual("wyoming-whisper"),
            EngineKind::Wyoming,
        ),
    ];
    let mut running = Vec::new();
    for (server, port, _) in expected {
        running.push(server.start_at(port).await);
    }
    let start = Instant::now();
    let found = standard_ports(&BTreeSet::new()).await;
    println!(
        "found in {:?}: {:?}",
        start.elapsed(),
        found.iter().map(|f| &f.name).collect::<Vec<_>>()
    );
    for (server, port, kind) in expected {
        let found = found.iter().find(|f| f.url.port() == Some(port));
        let found = found.unwrap_or_else(|| panic!("{server:?} is not found"));
        assert_eq!(found.kind, kind, "{server:?}");
        let talks = adapter(&found.clone().into_spec()).unwrap();
        assert!(
            !talks.describe().await.unwrap().models.is_empty(),
            "{server:?}"
        );
    }
    for engine in running {
        engine.stop().await;
    }
    // The packaged server has no list of models.
    let packaged = Server::PackagedWhisper.start_at(usual("whisper")).await;
    let found = standard_ports(&BTreeSet::new()).await;
    let whisper = found
        .iter()
        .find(|f| f.url.port() == Some(usual("whisper")))
        .unwrap();
    assert_eq!(whisper.kind, EngineKind::Whisper);
    packaged.stop().await;
}
