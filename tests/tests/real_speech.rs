//! The adapters that speak against real engines: Piper's own server, and loudness-tts behind
//! OpenAI's API. (Wyoming: `real_wyoming`.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use unamesh_agent::engine::managed::State;
use unamesh_agent::engine::speech::{SpeechCall, Voice};
use unamesh_agent::engine::system::System;
use unamesh_agent::engine::{Engine, EngineError, EngineSpec, adapter};
use unamesh_agent::starter::{RunningEngine, free_port};
use unamesh_proto::wire::{Health, ModelKind};
use unamesh_tests::cluster::turn;
use unamesh_tests::measure::until;
use unamesh_tests::real::speech::{SENTENCES, Server, Spoken, VOICE, kill, piper, say, say_as};

/// An engine that was killed is up again within this.
const RESTART: Duration = Duration::from_secs(60);
/// What has no reason to wait happens within this.
const SOON: Duration = Duration::from_secs(10);
/// Sentences enough that a kill comes in their middle.
const MANY: usize = 12;

fn show(what: &str, spoken: &Spoken) {
    let seconds = spoken.pcm.len() as f64 / f64::from(spoken.rate);
    println!(
        "{what}: {seconds:.2} s at {} Hz in {} pieces; first after {:?}, all after {:?}",
        spoken.rate, spoken.pieces, spoken.first, spoken.took
    );
}

/// What every engine with this voice does.
async fn speaks(running: &RunningEngine, rate: u32) {
    let engine = &*running.engine;
    let info = engine.describe().await.unwrap();
    assert_eq!(info.health, Health::Ok);
    assert_eq!(info.voices, [Voice::new(VOICE, "en-US")]);
    assert!(
        info.models.iter().all(|m| m.kind == ModelKind::Tts),
        "{:?}",
        info.models
    );

    let spoken = say(engine, SENTENCES[0]).await.unwrap();
    show(engine.name(), &spoken);
    assert_eq!(spoken.rate, rate);
    assert_eq!(spoken.end, Ok(spoken.pcm.len() as u64));
    let seconds = spoken.pcm.len() as f64 / f64::from(rate);
    assert!((1.5..5.0).contains(&seconds), "{seconds} s");

    let named = SpeechCall {
        text: SENTENCES[0].to_owned(),
        voice: VOICE.to_owned(),
        speed: Some(2.0),
        ..SpeechCall::default()
    };
    let quick = say_as(engine, named, |_| {}).await.unwrap();
    let share = quick.pcm.len() as f64 / spoken.pcm.len() as f64;
    assert!(
        (0.4..0.75).contains(&share),
        "at twice the speed it takes {share:.2} of the time"
    );
}

async fn refuses(running: &RunningEngine) {
    let gone = SpeechCall {
        text: SENTENCES[0].to_owned(),
        voice: "Gone".to_owned(),
        ..SpeechCall::default()
    };
    let refused = say_as(&*running.engine, gone, |_| {}).await;
    assert!(
        matches!(refused, Err(EngineError::UnknownVoice { .. })),
        "{refused:?}"
    );
    for text in ["", " \n"] {
        let refused = say(&*running.engine, text).await;
        assert!(
            matches!(refused, Err(EngineError::Invalid { .. })),
            "{refused:?}"
        );
    }
    // There is nothing to say in it either, which Piper answers with an error of its own.
    let refused = say(&*running.engine, "...").await;
    assert!(
        matches!(refused, Err(EngineError::Invalid { .. })),
        "{refused:?}"
    );
}

/// Kills the engine and waits until it speaks again.
async fn comes_back(running: &RunningEngine) {
    let (_, took) = until("it speaks again", RESTART, async || {
        match say(&*running.engine, SENTENCES[0]).await {
            Ok(Spoken { end: Ok(_), .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    println!(
        "{}: spoke again {took:?} after its death",
        running.engine.name()
    );
}

#[tokio::test]
async fn piper_speaks_and_refuses() {
    let _turn = turn().await;
    let running = Server::Piper.start().await;
    // Its server would say this in its only voice; nobody has asked for the list yet.
    refuses(&running).await;
    speaks(&running, 22_050).await;
    let (once, again) = (
        say(&*running.engine, SENTENCES[1]).await.unwrap(),
        say(&*running.engine, SENTENCES[1]).await.unwrap(),
    );
    assert!(once.pcm == again.pcm, "the same text is the same sound");
    running.stop().await;
}

#[tokio::test]
async fn piper_dies_while_it_speaks() {
    let _turn = turn().await;
    let running = Server::Piper.start().await;
    let text = SENTENCES[..MANY].join(" ");
    // It makes the whole before it sends any: half of what it takes is in the middle.
    let whole = say(&*running.engine, &text).await.unwrap();
    show("piper, 12 sentences", &whole);
    let engine = Arc::clone(&running.engine);
    let killing = async {
        tokio::time::sleep(whole.took / 2).await;
        kill(&running);
    };
    let (died, ()) = tokio::join!(say(&*engine, &text), killing);
    match died {
        Err(EngineError::Failed { reason, .. } | EngineError::Down { reason, .. }) => {
            println!("piper, killed: {reason}");
        }
        other => panic!("{other:?}"),
    }
    comes_back(&running).await;
    assert!(matches!(
        running.engine.state(),
        State::Up { .. } | State::Starting { .. }
    ));
    running.stop().await;
}

#[tokio::test]
async fn loudness_speaks_and_refuses() {
    let _turn = turn().await;
    let running = Server::Loudness.start().await;
    refuses(&running).await;
    let info = running.engine.describe().await.unwrap();
    assert!(
        info.models.iter().any(|m| m.name == "tts-1"),
        "{:?}",
        info.models
    );
    // The first WAV tells the voice's rate, as a whole; OpenAI's raw samples are another one.
    speaks(&running, 22_050).await;
    running.stop().await;
}

#[tokio::test]
async fn loudness_dies_while_it_speaks() {
    let _turn = turn().await;
    let running = Server::Loudness.start().await;
    let call = || SpeechCall {
        text: SENTENCES[..MANY].join(" "),
        extra: r#"{"response_format":"pcm"}"#.to_owned(),
        ..SpeechCall::default()
    };
    // It sends its head after the first sentence and all samples after the last: it means to
    // stream, and collects its own generator first.
    let whole = say_as(&*running.engine, call(), |_| {}).await.unwrap();
    show("loudness, 12 sentences as pcm", &whole);
    assert_eq!(whole.rate, 24_000);
    assert_eq!(whole.end, Ok(whole.pcm.len() as u64));
    let killing = async {
        tokio::time::sleep(whole.took / 2).await;
        kill(&running);
    };
    let (died, ()) = tokio::join!(say_as(&*running.engine, call(), |_| {}), killing);
    let died = died.unwrap();
    assert!(
        matches!(died.end, Err(EngineError::Failed { .. })),
        "{:?}",
        died.end
    );
    assert!(died.pcm.len() < whole.pcm.len());
    comes_back(&running).await;
    running.stop().await;
}

#[tokio::test]
async fn the_system_voice_speaks() {
    let _turn = turn().await;
    let voice = System::of_this_machine("system".to_owned(), None);
    let mut info = voice.describe().await;
    // Real engines are tested with what other tests leave of the machine: it may be late.
    for _ in 0..5 {
        if !matches!(info, Err(EngineError::Busy { .. })) {
            break;
        }
        info = voice.describe().await;
    }
    let info = info.unwrap_or_else(|e| panic!("{e} (apt-get install espeak-ng)"));
    assert!(
        info.voices.contains(&Voice::new("en-us", "en-us")),
        "{:?}",
        info.voices
    );
    let spoken = say(&voice, SENTENCES[0]).await.unwrap();
    show("espeak-ng", &spoken);
    assert_eq!(
        (spoken.rate, spoken.end),
        (22_050, Ok(spoken.pcm.len() as u64))
    );
    let gone = SpeechCall {
        text: SENTENCES[0].to_owned(),
        voice: "Gone".to_owned(),
        ..SpeechCall::default()
    };
    let refused = say_as(&voice, gone, |_| {}).await;
    assert!(
        matches!(refused, Err(EngineError::UnknownVoice { .. })),
        "{refused:?}"
    );
}

/// Whoever started it may end in any way: the engine does not outlive it.
#[tokio::test]
async fn an_engine_ends_with_its_agent() {
    let _turn = turn().await;
    let folder = tempfile::tempdir().unwrap();
    for cruel in [false, true] {
        let pid_file = folder.path().join(if cruel { "killed" } else { "closed" });
        let piper = piper().await.clone().with_pid_file(&pid_file);
        let entry = piper.entry("piper", free_port().unwrap(), &[]);
        let mut leash = tokio::process::Command::new(&entry.command[0])
            .args(&entry.command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let spec = EngineSpec {
            name: entry.name.clone(),
            kind: entry.kind.kind(),
            url: entry.url.parse().unwrap(),
            slots: None,
            api_key: None,
        };
        let engine = adapter(&spec).unwrap();
        let up = async || engine.describe().await.map_err(|e| e.to_string());
        until("it answers", RESTART, up).await;
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let process = Path::new("/proc").join(pid);
        assert!(process.exists());
        match cruel {
            true => leash.start_kill().unwrap(),
            false => drop(leash.stdin.take()),
        }
        let gone = async || match process.exists() {
            true => Err("it runs".to_owned()),
            false => Ok(()),
        };
        let (_, took) = until("it ends", SOON, gone).await;
        leash.wait().await.unwrap();
        println!("piper ended {took:?} after its agent (killed: {cruel})");
    }
}
