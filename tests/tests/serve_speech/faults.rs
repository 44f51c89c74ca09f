//! What goes wrong: engines that fail, drills, an agent that leaves.

use crate::serve_support::listener::{Listener, say};
use crate::serve_support::speaker::{QUIET, TEXT, behind, serve, start};
use crate::serve_support::{Caller, Mesh, PATIENCE, Server, open};
use axum::Router;
use axum::routing::post;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use unamesh_agent::engine::{Engine, EngineError};
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::wire::{
    Drill, DrillStarted, ErrorCode, Fault, Role, SpeakFrame, SpeakRequest, StreamKind,
};
use unamesh_tests::doubles::{VoiceDouble, VoiceFailure, VoiceScript};

#[tokio::test]
async fn the_failures_of_an_engine_are_told_behind_what_is_whole() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let broken = |reason: &str| {
        VoiceFailure::Error(EngineError::Failed {
            engine: "e".to_owned(),
            reason: reason.to_owned(),
        })
    };
    let gone = VoiceFailure::Error(EngineError::UnknownVoice {
        engine: "e".to_owned(),
        voice: "hum".to_owned(),
    });
    let failed = ErrorCode::EngineFailed;
    for (failure, code, words) in [
        (broken("the WAV is cut off"), failed, "the WAV is cut off"),
        (gone, ErrorCode::UnknownModel, "no voice"),
        (VoiceFailure::EndEarly, failed, "without an end"),
        (VoiceFailure::Mute, failed, "no sound"),
        (VoiceFailure::Rate(8_000), failed, "rate changed"),
        (VoiceFailure::Unannounced, failed, "before its rate"),
    ] {
        let asked = double.seen().asked;
        double.change(|script| script.fail = Some((asked + 2, failure.clone())));
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        let error = listener.end().await.unwrap_err();
        assert_eq!(error.code, code, "{failure:?}: {error}");
        assert!(error.message.contains(words), "{failure:?}: {error}");
        assert_eq!(listener.marks.len(), 3, "two chunks are whole, {failure:?}");
        assert!(listener.pcm.len() as u64 >= listener.marks[2].at);
    }
    double.change(|script| {
        script.refuse = Some(EngineError::Down {
            engine: "e".to_owned(),
            reason: "refused".to_owned(),
        });
    });
    let error = Listener::open(&connection, &say(TEXT))
        .await
        .end()
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::EngineDown);
    // A rate that is none of speech.
    double.change(|script| (script.refuse, script.fail, script.rate) = (None, None, 7_000));
    let error = Listener::open(&connection, &say(TEXT))
        .await
        .end()
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::EngineFailed, "{error}");
    assert!(error.message.contains("7000"), "{error}");
    assert_eq!(double.seen().running, 0);
    server.shutdown().await;
}

#[tokio::test]
async fn a_failure_waits_for_what_is_whole_and_not_played_yet() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        fail: Some((1, VoiceFailure::EndEarly)),
        ..VoiceScript::default()
    })
    .await;
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut listener = Listener::open(&connection, &request).await;
    listener.hear_all(QUIET).await;
    assert_eq!((double.seen().asked, listener.marks.len()), (2, 1));
    listener.grant(u32::MAX).await;
    assert_eq!(
        listener.end().await.unwrap_err().code,
        ErrorCode::EngineFailed
    );
    assert_eq!(listener.marks.len(), 2);
    assert_eq!(listener.pcm.len() as u64, listener.marks[1].at);
    server.shutdown().await;
}

/// Real bytes of engines that fail, from their socket to the listener's error.
#[tokio::test]
async fn what_engines_send_instead_of_speech_is_told() {
    let answer = Arc::new(Mutex::new(Vec::new()));
    let (engine, _tasks) = answering(Arc::clone(&answer)).await;
    let mesh = Mesh::new();
    let (agent, config) = (mesh.member(Role::Agent), ServeConfig::default());
    let server = Server::with(agent, vec![engine], config).await;
    let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
    let hum: Vec<u8> = (0..44_100)
        .map(|n| if n % 100 < 50 { 100 } else { 156 })
        .collect();
    let samples = |frame: u32| 44_100 / frame;
    let heard = async |bytes: Vec<u8>, voice: &str| {
        *answer.lock().unwrap() = bytes;
        let request = SpeakRequest {
            voice: voice.to_owned(),
            ..say("Well then.")
        };
        let mut listener = Listener::open(&connection, &request).await;
        (listener.end().await, listener.pcm.len())
    };
    // Two channels, 8 bits, any rate: that is speech.
    for (rate, channels, bits) in [
        (22_050, 2, 16),
        (22_050, 1, 8),
        (44_100, 2, 8),
        (8_000, 1, 16),
    ] {
        let count = samples(u32::from(channels * bits / 8));
        let (end, here) = heard(wav(rate, channels, bits, count, &hum), "").await;
        let expected = (u64::from(count) * 24_000).div_ceil(u64::from(rate));
        assert_eq!(end.unwrap().samples, here as u64);
        assert!(
            expected.abs_diff(here as u64) <= 1,
            "{rate} {channels} {bits}: {here}"
        );
    }
    let silence = wav(24_000, 1, 16, 22_050, &[0; 44_100]);
    let json = |words: &str| words.as_bytes().to_vec();
    let failed = ErrorCode::EngineFailed;
    for (bytes, voice, code) in [
        (Vec::new(), "", failed),
        (wav(24_000, 1, 16, 480_000, &hum), "", failed),
        (wav(24_000, 1, 16, 22_050, &hum)[..20].to_vec(), "", failed),
        (wav(3_000, 1, 16, 22_050, &hum), "", failed),
        (silence, "", failed),
        (
            json(r#"{"error": {"message": "out of memory"}}"#),
            "",
            failed,
        ),
        (
            json(r#"{"error": "voice 'gone' not found"}"#),
            "gone",
            ErrorCode::UnknownModel,
        ),
    ] {
        let size = bytes.len();
        let error = heard(bytes, voice).await.0.unwrap_err();
        println!("{size} bytes: {error}");
        assert_eq!(error.code, code, "{size} bytes: {error}");
    }
    server.shutdown().await;
}

/// An engine behind HTTP that answers what it is given, whatever it is asked.
async fn answering(answer: Arc<Mutex<Vec<u8>>>) -> (Arc<dyn Engine>, JoinSet<()>) {
    let speak = async move || answer.lock().unwrap().clone();
    behind(Router::new().route("/v1/audio/speech", post(speak))).await
}

/// The bytes of a WAV whose header promises `samples`.
fn wav(rate: u32, channels: u16, bits: u16, samples: u32, sound: &[u8]) -> Vec<u8> {
    let frame = channels * bits / 8;
    let size = samples * u32::from(frame);
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + size).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16_u32.to_le_bytes());
    out.extend([1_u16, channels].iter().flat_map(|n| n.to_le_bytes()));
    out.extend(
        [rate, rate * u32::from(frame)]
            .iter()
            .flat_map(|n| n.to_le_bytes()),
    );
    out.extend([frame, bits].iter().flat_map(|n| n.to_le_bytes()));
    out.extend(b"data");
    out.extend(size.to_le_bytes());
    out.extend(sound);
    out
}

#[tokio::test]
async fn a_hang_is_played_on_speech_too() {
    let double = VoiceDouble::new("e", VoiceScript::default());
    let config = ServeConfig {
        drill: true,
        ..ServeConfig::default()
    };
    let (mesh, server, connection) = start(&double, config).await;
    let admin = Caller::new(&mesh, Role::Admin).connect(&server).await;
    for fault in [Fault::Hang, Fault::Freeze] {
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        let drill = Drill { fault, for_ms: 500 };
        let began = Instant::now();
        let mut played = open(&admin, StreamKind::Admin, &drill).await;
        played.reader.expect::<DrillStarted>().await.unwrap();
        let fresh = Listener::open(&connection, &say(TEXT)).await;
        listener.end().await.unwrap();
        let mut fresh = fresh;
        let mut alive = 0;
        while fresh.packets == 0 {
            alive += usize::from(matches!(fresh.next().await, SpeakFrame::Progress(_)));
        }
        // The agent's clock began a little earlier.
        assert!(began.elapsed() >= Duration::from_millis(450), "{fault}");
        assert_eq!(alive > 3, fault == Fault::Hang, "{fault}: {alive}");
        fresh.end().await.unwrap();
    }
    server.shutdown().await;
}

#[tokio::test]
async fn speech_goes_on_while_an_agent_leaves_and_ends_when_it_stops() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        speed: Some(10.0),
        ..VoiceScript::default()
    })
    .await;
    let mut listener = Listener::open(&connection, &say(TEXT)).await;
    listener.hear(1).await;
    server.service.drain(PATIENCE);
    let draining = async {
        loop {
            if let SpeakFrame::Draining(draining) = listener.next().await {
                break draining.deadline_ms;
            }
        }
    };
    assert!(draining.await > 1000);
    let refused = Listener::open(&connection, &say(TEXT)).await.end().await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Draining);
    assert_eq!(server.service.active(), 1);
    listener.end().await.unwrap();
    timeout(PATIENCE, server.service.drained()).await.unwrap();

    server.service.resume();
    double.change(|script| script.speed = Some(1.0));
    let mut listener = Listener::open(&connection, &say(TEXT)).await;
    listener.hear(1).await;
    let (ended, ()) = tokio::join!(listener.end(), server.shutdown());
    assert_eq!(ended.unwrap_err().code, ErrorCode::Draining);
}
