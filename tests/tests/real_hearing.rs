//! The adapters that hear against real engines: the starter's Whisper and faster-whisper-server.
//! (Wyoming: `real_wyoming`.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::time::{Duration, Instant};
use unamesh_agent::engine::hearing::{HearCall, RATE};
use unamesh_agent::engine::{Engine, EngineError};
use unamesh_agent::starter::RunningEngine;
use unamesh_proto::wire::{Health, ModelKind};
use unamesh_tests::cluster::turn;
use unamesh_tests::measure::until;
use unamesh_tests::real::speech::{
    SENTENCES, Server, WHISPER, for_hearing, hear, kill, say, words,
};

/// An engine that was killed is up again within this.
const RESTART: Duration = Duration::from_secs(60);
/// Sentences that are transcribed one by one.
const FEW: usize = 4;

/// Sentences as Piper says them, at 16 kHz.
async fn spoken(sentences: &[&str]) -> Vec<Vec<i16>> {
    let piper = Server::Piper.start().await;
    let mut all = Vec::new();
    for sentence in sentences {
        let spoken = say(&*piper.engine, sentence).await.unwrap();
        all.push(for_hearing(&spoken.pcm, spoken.rate));
    }
    piper.stop().await;
    all
}

fn call() -> HearCall {
    HearCall {
        language: "en-US".to_owned(),
        partials: true,
        ..HearCall::default()
    }
}

/// What every engine with this model does.
async fn hears(running: &RunningEngine, sounds: &[Vec<i16>]) {
    let engine = &*running.engine;
    let info = engine.describe().await.unwrap();
    assert_eq!(info.health, Health::Ok);
    assert!(
        info.models.iter().all(|m| m.kind == ModelKind::Stt),
        "{:?}",
        info.models
    );
    for (sound, sentence) in sounds.iter().zip(SENTENCES) {
        let start = Instant::now();
        let heard = hear(engine, call(), sound).await.unwrap();
        println!(
            "{}: {:.2} s of speech in {:?}, confidence {:?}",
            engine.name(),
            sound.len() as f64 / f64::from(RATE),
            start.elapsed(),
            heard.confidence
        );
        assert_eq!(words(&heard.text), words(sentence));
        assert_eq!(heard.language, "en");
        assert!(heard.confidence.is_some_and(|c| (0.3..=1.0).contains(&c)));
    }
    // Digital silence is no utterance: a recognizer would make something up.
    let silence = hear(engine, call(), &vec![0; RATE as usize]).await.unwrap();
    assert_eq!(silence.text, "");
    let nothing = hear(engine, call(), &[]).await.unwrap();
    assert_eq!(nothing.text, "");
}

/// Kills it in the middle of a transcription.
async fn dies(running: &RunningEngine, sounds: &[Vec<i16>]) {
    let long: Vec<i16> = sounds.concat();
    let start = Instant::now();
    let whole = hear(&*running.engine, call(), &long).await.unwrap();
    assert_eq!(words(&whole.text), words(&SENTENCES[..FEW].join(" ")));
    let half = start.elapsed() / 2;
    let killing = async {
        tokio::time::sleep(half).await;
        kill(running);
    };
    let (died, ()) = tokio::join!(hear(&*running.engine, call(), &long), killing);
    match died {
        Err(EngineError::Failed { reason, .. } | EngineError::Down { reason, .. }) => {
            println!("{}, killed: {reason}", running.engine.name());
        }
        other => panic!("{other:?}"),
    }
    let again = until("it hears again", RESTART, async || {
        hear(&*running.engine, call(), &long)
            .await
            .map_err(|e| e.to_string())
    });
    // What was kept gives the same words.
    assert_eq!(again.await.0.text, whole.text);
}

#[tokio::test]
async fn whisper_hears_and_refuses() {
    let _turn = turn().await;
    let sounds = spoken(&SENTENCES[..FEW]).await;
    let running = Server::Whisper.start().await;
    let info = running.engine.describe().await.unwrap();
    assert_eq!(info.models[0].name, WHISPER);
    hears(&running, &sounds).await;

    let worded = HearCall {
        extra: r#"{"timestamp_granularities[]":"word"}"#.to_owned(),
        ..call()
    };
    let heard = hear(&*running.engine, worded, &sounds[0]).await.unwrap();
    let timed: Vec<&str> = heard.words.iter().map(|w| w.text.as_str()).collect();
    assert_eq!(words(&timed.join(" ")), words(SENTENCES[0]));
    let length = sounds[0].len() as u32 / (RATE / 1000);
    assert!(
        heard
            .words
            .windows(2)
            .all(|w| w[0].start_ms <= w[1].start_ms)
    );
    assert!(
        heard.words.last().unwrap().end_ms <= length + 100,
        "{:?}",
        heard.words
    );

    let unknown = HearCall {
        model: "large".to_owned(),
        ..call()
    };
    let refused = hear(&*running.engine, unknown, &sounds[0]).await;
    assert!(
        matches!(refused, Err(EngineError::UnknownModel { .. })),
        "{refused:?}"
    );
    let wrong = HearCall {
        extra: r#"{"response_format":"srt"}"#.to_owned(),
        ..call()
    };
    let refused = hear(&*running.engine, wrong, &sounds[0]).await;
    assert!(
        matches!(refused, Err(EngineError::Invalid { .. })),
        "{refused:?}"
    );
    dies(&running, &sounds).await;
    running.stop().await;
}

#[tokio::test]
async fn the_packaged_whisper_hears() {
    let _turn = turn().await;
    let sounds = spoken(&SENTENCES[..FEW]).await;
    let running = Server::PackagedWhisper.start().await;
    hears(&running, &sounds).await;
    dies(&running, &sounds).await;
    running.stop().await;
}
