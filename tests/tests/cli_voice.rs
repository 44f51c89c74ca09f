//! Speech at the command line, over real agents whose engines are doubles: what is said, written
//! down and talked, and what a user sees when the machine that speaks is killed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use unamesh_client::audio::pcm::to_s16;
use unamesh_client::audio::wav::Parser;
use unamesh_tests::agent::program;
use unamesh_tests::cluster::{Agent, Cluster, MEET, Setup};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::doubles::speech_server::{RATE, SpeechScript, SpeechServer, length};
use unamesh_tests::measure::until;

const TEXT: &str = "The fox went out on a chilly night. It prayed for the moon to give it light. \
                    It had many a mile to go that night before it reached the town.";
/// A command ends within this.
const PATIENCE: Duration = Duration::from_secs(30);

fn speaker(name: &str, server: &SpeechServer) -> Setup {
    Setup {
        config: server.config(),
        ..Setup::new(name)
    }
}

/// `unamesh ARGS` with the agent's state, beside whose files it works.
fn command(agent: &Agent, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("--state")
        .arg(&agent.state)
        .args(args)
        .current_dir(agent.state.parent().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(agent: &Agent, args: &[&str]) -> Output {
    let output = command(agent, args).output();
    timeout(PATIENCE, output).await.unwrap().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

async fn succeeds(agent: &Agent, args: &[&str]) -> String {
    let output = run(agent, args).await;
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    text(&output.stdout).to_owned()
}

/// Mono samples and their rate.
fn wav(bytes: &[u8]) -> (Vec<i16>, u32) {
    let (mut parser, mut samples) = (Parser::new(), Vec::new());
    parser.push(bytes, &mut samples).unwrap();
    let rate = parser.format().unwrap().rate;
    (samples.into_iter().map(to_s16).collect(), rate)
}

fn file(agent: &Agent, name: &str) -> PathBuf {
    agent.state.parent().unwrap().join(name)
}

fn seconds(path: &Path) -> f64 {
    let (samples, rate) = wav(&std::fs::read(path).unwrap());
    samples.len() as f64 / f64::from(rate)
}

/// Waits until `agent` knows of `count` places of its voices.
async fn hears_of_voices(agent: &Agent, count: usize) {
    until("the voices are known", MEET, async || {
        let voices = agent.api("voices").await?;
        let all = voices.as_array().into_iter().flatten();
        let places: usize = all.map(|v| v["peers"].as_array().map_or(0, Vec::len)).sum();
        match places >= count {
            true => Ok(()),
            false => Err(format!("{voices}")),
        }
    })
    .await;
}

#[tokio::test]
async fn without_an_engine_the_error_says_how_to_begin() {
    let cluster = Cluster::start(vec![Setup::new("desk")]).await;
    let desk = &cluster.agents[0];
    for (args, wanted) in [
        (&["say", "Hello."][..], "wyoming_piper"),
        (&["transcribe", "q.wav"], "wyoming_faster_whisper"),
        (&["talk", "q.wav", "--model", "m"], "wyoming_piper"),
        (&["voices"], "no machine of the mesh has a voice"),
    ] {
        std::fs::write(file(desk, "q.wav"), question()).unwrap();
        let output = run(desk, args).await;
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(wanted), "{args:?}: {stderr}");
        assert!(stderr.contains("try: unamesh"), "{args:?}: {stderr}");
    }
    assert!(!file(desk, "say.wav").exists(), "no sample, no file");
}

/// Two seconds of something that is no silence.
fn question() -> Vec<u8> {
    recorded(2, 22_050)
}

fn recorded(seconds: u64, rate: u32) -> Vec<u8> {
    let length = Duration::from_secs(seconds);
    let sound = unamesh_tests::doubles::voice_double::wave("Foxes?", length, rate);
    let mut wav = unamesh_client::audio::wav::stream_header(rate);
    wav.extend(sound.iter().flat_map(|s| s.to_le_bytes()));
    wav
}

#[tokio::test]
async fn a_text_is_said_into_every_kind_of_output() {
    let server = SpeechServer::start(SpeechScript::default()).await;
    let cluster = Cluster::start(vec![speaker("desk", &server)]).await;
    let desk = &cluster.agents[0];
    hears_of_voices(desk, 1).await;
    let expected = length("Hello there, fox.").as_secs_f64();

    let table = succeeds(desk, &["voices"]).await;
    assert!(
        table.contains("hum") && table.contains("desk/speech"),
        "{table}"
    );

    // Without a speaker the sound is in a file whose name is printed; the second takes another.
    for name in ["say.wav", "say-2.wav"] {
        let printed = succeeds(desk, &["say", "Hello", "there,", "fox."]).await;
        assert_eq!(printed.trim(), name);
        let said = seconds(&file(desk, name));
        assert!((said - expected).abs() < 0.1, "{name}: {said} s");
    }
    let output = run(desk, &["say", "Hello there, fox.", "-o", "-"]).await;
    let (samples, rate) = wav(&output.stdout);
    assert_eq!(rate, RATE);
    assert!((samples.len() as f64 / f64::from(rate) - expected).abs() < 0.1);

    let lines = succeeds(desk, &["say", "--json", "-o", "a.ogg", "Hello."]).await;
    let events: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert!(!lines.contains("\"pcm\""), "the file has it");
    assert_eq!(events.last().unwrap()["file"], "a.ogg");
    assert_eq!(&std::fs::read(file(desk, "a.ogg")).unwrap()[..4], b"OggS");
    let lines = succeeds(desk, &["say", "--json", "Hello."]).await;
    assert!(lines.contains("\"pcm\""), "the events have it");

    // The text may be piped in; an unknown voice is an error with a way out.
    let mut piped = command(desk, &["say", "-", "-o", "b.wav"]);
    let mut child = piped.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Hello there, fox.\n").await.unwrap();
    drop(stdin);
    assert!(
        timeout(PATIENCE, child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    assert!(seconds(&file(desk, "b.wav")) > expected - 0.1);
    let output = run(desk, &["say", "Hello.", "--voice", "nobody", "-o", "c.wav"]).await;
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("nobody") && stderr.contains("hum"),
        "{stderr}"
    );
    assert!(stderr.contains(" voices"), "{stderr}");
    assert!(!file(desk, "c.wav").exists());
    let args = [
        "say",
        "Hello.",
        "--voice",
        "nobody",
        "--any-voice",
        "-o",
        "e.wav",
    ];
    let output = run(desk, &args).await;
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("nobody has the voice nobody: hum speaks"),
        "{stderr}"
    );

    // Samples without a header: what they are is told, and is what `transcribe --raw` takes.
    let output = run(desk, &["say", "Hello.", "-o", "a.pcm"]).await;
    let stderr = text(&output.stderr);
    assert!(stderr.contains("raw, 24000 Hz mono s16le"), "{stderr}");
    // What has no words is an error before anybody is asked.
    for silent in ["...", "\u{1f389}\u{1f389}", "```", ""] {
        let output = run(desk, &["say", silent, "-o", "d.wav"]).await;
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{silent:?}: {stderr}");
        assert!(stderr.contains("nothing to say"), "{silent:?}: {stderr}");
        assert!(!stderr.contains("standard input"), "{silent:?}: {stderr}");
    }
    let output = run(desk, &["voices", "zzz", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn speech_goes_on_when_its_machine_is_killed() {
    let script = SpeechScript {
        pace: 4.0,
        ..SpeechScript::default()
    };
    let servers = [
        SpeechServer::start(script.clone()).await,
        SpeechServer::start(script).await,
    ];
    let mut cluster = Cluster::start(vec![
        Setup::new("desk"),
        speaker("laptop", &servers[0]),
        speaker("tower", &servers[1]),
    ])
    .await;
    hears_of_voices(&cluster.agents[0], 2).await;
    let desk = &cluster.agents[0];
    let mut saying = command(desk, &["say", "--json", TEXT]).spawn().unwrap();
    let mut lines = BufReader::new(saying.stdout.take().unwrap()).lines();
    let (mut samples, mut killed, mut changed) = (0, None, None);
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
        let event: Value = serde_json::from_str(&line).unwrap();
        match event["event"].as_str().unwrap() {
            "started" => {
                let node = event["peer"]["node"].as_str().unwrap();
                let at = cluster.index_of(node);
                killed = Some(cluster.agents[at].setup.name.clone());
                cluster.agents[at].kill().await;
            }
            "pcm" => samples += 1,
            "peer_changed" => changed = Some(event),
            "failed" => panic!("{event}"),
            _ => {}
        }
    }
    assert!(saying.wait().await.unwrap().success());
    let changed = changed.expect("nobody spoke on");
    assert_eq!(changed["from"]["name"].as_str(), killed.as_deref());
    assert_eq!(changed["same_voice"], true, "{changed}");
    let said = f64::from(samples) * 0.02;
    let expected = length(TEXT).as_secs_f64();
    assert!((said - expected).abs() < 0.5, "{said} s of {expected} s");
}

/// What was said until then is a good file, and the error says where it is.
#[tokio::test]
async fn what_was_said_before_the_agent_died_is_told() {
    let script = SpeechScript {
        pace: 2.0,
        ..SpeechScript::default()
    };
    let server = SpeechServer::start(script).await;
    let mut cluster = Cluster::start(vec![speaker("desk", &server)]).await;
    hears_of_voices(&cluster.agents[0], 1).await;
    let desk = &cluster.agents[0];
    let mut saying = command(desk, &["say", TEXT, "-o", "half.wav"]);
    let saying = saying.spawn().unwrap();
    let path = file(desk, "half.wav");
    until(
        "the file begins",
        PATIENCE,
        async || match std::fs::metadata(&path).map_or(0, |m| m.len()) {
            0..8_192 => Err("no sound".to_owned()),
            _ => Ok(()),
        },
    )
    .await;
    cluster.agents[0].kill().await;
    let output = timeout(PATIENCE, saying.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("the first ") && stderr.contains("half.wav"),
        "{stderr}"
    );
    assert!(seconds(&path) > 0.1);
}

#[tokio::test]
async fn a_recording_is_written_down() {
    let server = SpeechServer::start(SpeechScript::default()).await;
    let cluster = Cluster::start(vec![Setup::new("desk"), speaker("tower", &server)]).await;
    let desk = &cluster.agents[0];
    hears_of_voices(desk, 1).await;
    std::fs::write(file(desk, "q.wav"), question()).unwrap();
    assert_eq!(
        succeeds(desk, &["transcribe", "q.wav"]).await,
        "What do foxes eat?\n"
    );
    let lines = succeeds(desk, &["transcribe", "--json", "q.wav"]).await;
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["text"], &last["peer"]["name"]),
        (
            &json!("final"),
            &json!("What do foxes eat?"),
            &json!("tower")
        )
    );
    // Raw samples from a pipe, as a microphone brings them.
    let mut child = piped_raw(desk);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&question()[44..]).await.unwrap();
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(text(&output.stdout), "What do foxes eat?\n");
    // What cannot be read is told as such, with the command that converts it.
    std::fs::write(file(desk, "q.mp3"), b"ID3\x04\0\0\0\0\0\0\0\0\0\0").unwrap();
    let output = run(desk, &["transcribe", "q.mp3"]).await;
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("MP3") && stderr.contains("ffmpeg"),
        "{stderr}"
    );
}

fn piped_raw(agent: &Agent) -> Child {
    let mut command = command(agent, &["transcribe", "--raw=22050", "-"]);
    command.stdin(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn a_recording_is_answered_aloud() {
    let server = SpeechServer::start(SpeechScript::default()).await;
    let script = Script::default();
    let model = script.model.clone();
    let engine = ScriptEngine::start(script).await;
    let cluster = Cluster::start(vec![
        Setup::new("desk"),
        speaker("tower", &server),
        Setup::new("laptop").engine(engine.addr),
    ])
    .await;
    let desk = &cluster.agents[0];
    hears_of_voices(desk, 1).await;
    cluster.chooses(0, &model, &[2]).await;
    std::fs::write(file(desk, "q.wav"), question()).unwrap();
    let args = [
        "talk",
        "q.wav",
        "q.wav",
        "-o",
        "answer.wav",
        "--model",
        &model,
        "-v",
    ];
    let output = run(desk, &args).await;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert_eq!(
        stdout.matches("> What do foxes eat?").count(),
        2,
        "{stdout}"
    );
    assert!(
        stderr.contains("from the last word to the first sound"),
        "{stderr}"
    );
    assert!(
        stderr.contains("transcript") && stderr.contains("██"),
        "the chart: {stderr}"
    );
    for name in ["answer.wav", "answer-2.wav"] {
        assert!(seconds(&file(desk, name)) > 0.5, "{name}");
    }
    // A telephone's: what is read of it at once is more than one message.
    std::fs::write(file(desk, "long.wav"), recorded(10, 8_000)).unwrap();
    let args = ["talk", "long.wav", "-o", "c.wav", "--model", &model];
    let told = succeeds(desk, &args).await;
    assert!(told.contains("> What do foxes eat?"), "{told}");
    let lines = succeeds(
        desk,
        &["talk", "--json", "q.wav", "-o", "b.wav", "--model", &model],
    )
    .await;
    let done = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|event| event["event"] == "turn_done")
        .unwrap();
    assert_eq!(done["heard"], "What do foxes eat?");
    assert_eq!(done["file"], "b.wav");
    assert!(
        done["timeline"]["first_audio_ms"].as_f64().is_some(),
        "{done}"
    );
}
