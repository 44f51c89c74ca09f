//! Speech over QUIC: sound to the sample, grants, barge-in, the failures of an engine, many at
//! once. The engines are doubles ([`VoiceDouble`]).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::future::{join_all, poll_fn};
use futures_util::stream;
use serve_support::listener::{Listener, compare, say};
use serve_support::{Caller, Mesh, PATIENCE, Server, open};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use unamesh_agent::bench::stats::cpu_time;
use unamesh_agent::engine::{Engine, EngineError, EngineSpec, adapter};
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::limits::MAX_NAME;
use unamesh_proto::speech::speak::SAMPLES_PER_MS;
use unamesh_proto::wire::{
    Drill, DrillStarted, EngineKind, ErrorCode, Fault, Grant, Phase, Probe, Role, SpeakFrame,
    SpeakRequest, StreamKind,
};
use unamesh_tests::doubles::{VoiceDouble, VoiceFailure, VoiceScript};
use unamesh_tests::measure::setting;

/// Four pieces and a rest without words.
const TEXT: &str = "Well then, dear friend, here is the first of it. \
    This is the second sentence, and it is somewhat longer than the others are. \
    The third one has 3.14 in it, as Dr. Who said. And that was all! 🎉";
/// Nothing but progress for so long: everything that may come has come.
const QUIET: Duration = Duration::from_millis(300);

async fn start(double: &VoiceDouble, config: ServeConfig) -> (Mesh, Server, quinn::Connection) {
    let mesh = Mesh::new();
    let engines: Vec<Arc<dyn Engine>> = vec![Arc::new(double.clone())];
    let server = Server::with(mesh.member(Role::Agent), engines, config).await;
    let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
    (mesh, server, connection)
}

async fn serve(script: VoiceScript) -> (Mesh, VoiceDouble, Server, quinn::Connection) {
    let double = VoiceDouble::new("e", script);
    let (mesh, server, connection) = start(&double, ServeConfig::default()).await;
    (mesh, double, server, connection)
}

#[tokio::test]
async fn a_text_is_heard_to_the_sample_at_any_rate() {
    for rate in [24_000, 22_050, 48_000, 16_000] {
        let (_mesh, double, server, connection) = serve(VoiceScript {
            rate,
            ..VoiceScript::default()
        })
        .await;
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        let done = listener.end().await.unwrap();
        let said = double.spoken();
        // A resampled chunk's length is rounded.
        let calls = double.calls();
        assert!(calls.len() >= 4, "{calls:?}");
        assert!(said.len().abs_diff(listener.pcm.len()) <= calls.len());
        assert_eq!(done.samples, listener.pcm.len() as u64);
        let (snr, shift) = compare(&said[..20_000], &listener.pcm);
        println!("{rate} Hz: {snr:.1} dB");
        assert!(
            shift == 0 && snr > 10.0,
            "{rate} Hz: {snr:.1} dB, shift {shift}"
        );
        // Every chunk is where its mark says, the last one included.
        let last = listener.marks[calls.len() - 1];
        let whole = VoiceScript::default().sound(&calls[calls.len() - 1].text, 24_000);
        let heard = &listener.pcm[usize::try_from(last.at).unwrap()..];
        let (snr, shift) = compare(&whole, heard);
        assert!(
            shift == 0 && snr > 10.0,
            "{rate} Hz: {snr:.1} dB, shift {shift}"
        );
        // The rest without words is spoken for.
        let chars = TEXT.chars().count() as u32;
        assert_eq!(listener.marks.last().unwrap().to, chars);
        assert_eq!(double.seen().finished, calls.len() as u64);
        let accepted = listener.accepted.unwrap();
        assert_eq!(
            (accepted.voice.as_str(), accepted.same_voice),
            ("hum", true)
        );
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_text_is_gone_on_with_from_any_piece() {
    let (_mesh, _double, server, connection) = serve(VoiceScript::default()).await;
    let mut whole = Listener::open(&connection, &say(TEXT)).await;
    whole.end().await.unwrap();
    for (at, mark) in whole.marks.iter().enumerate() {
        let from = mark.from;
        let request = SpeakRequest { from, ..say(TEXT) };
        let mut rest = Listener::open(&connection, &request).await;
        rest.end().await.unwrap();
        let ranges = rest.marks.iter().map(|m| (m.from, m.to));
        assert!(ranges.eq(whole.marks[at..].iter().map(|m| (m.from, m.to))));
        // Chunk for chunk the same packets: the encoder is as new for each.
        assert_eq!(rest.pcm, whole.pcm[usize::try_from(mark.at).unwrap()..]);
    }
    let from = whole.marks[1].from + 1;
    let astray = SpeakRequest { from, ..say(TEXT) };
    let error = Listener::open(&connection, &astray)
        .await
        .end()
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::Invalid, Some("from"))
    );
    server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_spoken_is_refused_and_nothing_is_no_words() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let refused = async |request: SpeakRequest| {
        let error = Listener::open(&connection, &request)
            .await
            .end()
            .await
            .unwrap_err();
        (error.code, error.field.unwrap_or_default())
    };
    let voice = SpeakRequest {
        voice: "gone".to_owned(),
        ..say(TEXT)
    };
    let unknown = |field: &str| (ErrorCode::UnknownModel, field.to_owned());
    assert_eq!(refused(voice).await, unknown("voice"));
    let model = SpeakRequest {
        model: "other".to_owned(),
        ..say(TEXT)
    };
    assert_eq!(refused(model).await, unknown("model"));
    let long = SpeakRequest {
        voice: "x".repeat(MAX_NAME + 1),
        ..say(TEXT)
    };
    assert_eq!(
        refused(long).await,
        (ErrorCode::Invalid, "voice".to_owned())
    );
    for text in ["", "🎉 🎉", "— … —\n\n---\n"] {
        let mut listener = Listener::open(&connection, &say(text)).await;
        let done = listener.end().await.unwrap();
        assert_eq!((done.frames, done.samples), (0, 0), "{text:?}");
        let to = listener.marks.last().map_or(0, |mark| mark.to);
        assert_eq!(to as usize, text.chars().count(), "{text:?}");
    }
    assert_eq!(double.seen().asked, 0);
    server.shutdown().await;
}

#[tokio::test]
async fn grants_are_kept_and_the_engine_is_a_chunk_ahead_at_most() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut listener = Listener::open(&connection, &request).await;
    for (until_ms, asked) in [(500, 2), (1_000, 2), (4_000, 4)] {
        listener.grant(until_ms).await;
        // The listener checks that none comes too early.
        listener.hear_all(QUIET).await;
        let most = u64::from(until_ms) * SAMPLES_PER_MS;
        let here = listener.pcm.len() as u64;
        assert!(here >= most && here < most + 480, "{here} of {most}");
        assert_eq!(double.seen().asked, asked, "granted {until_ms} ms");
        assert_eq!(
            double.seen().running,
            0,
            "nothing is made that nobody wants"
        );
    }
    // A grant never shrinks.
    let until_ms = 1;
    let small = Grant {
        until_ms,
        played_ms: 0,
    };
    listener.stream.writer.write(&small).await.unwrap();
    listener.grant(u32::MAX).await;
    listener.end().await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn whoever_has_enough_to_play_leaves_the_engine_to_others() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        slots: 1,
        ..VoiceScript::default()
    })
    .await;
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut playing = Listener::open(&connection, &request).await;
    playing.hear_all(QUIET).await;
    let mut other = Listener::open(&connection, &say(TEXT)).await;
    other.end().await.unwrap();
    playing.grant(u32::MAX).await;
    playing.end().await.unwrap();
    assert_eq!(double.seen().peak, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn who_goes_on_is_seated_before_who_begins() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        slots: 1,
        speed: Some(20.0),
        ..VoiceScript::default()
    })
    .await;
    let mut first = Listener::open(&connection, &say(TEXT)).await;
    first.hear(1).await;
    let mut second = Listener::open(&connection, &say("Somebody else.")).await;
    loop {
        match second.next().await {
            SpeakFrame::Progress(p) => break assert_eq!((p.phase, p.done), (Phase::Queued, 0)),
            other => assert!(matches!(other, SpeakFrame::Accepted(_)), "{other:?}"),
        }
    }
    let (first, second) = tokio::join!(first.end(), second.end());
    first.unwrap();
    second.unwrap();
    assert_eq!(double.calls().last().unwrap().text, "Somebody else.");
    server.shutdown().await;
}

#[tokio::test]
async fn a_barge_in_reaches_the_engine() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        speed: Some(1.0),
        ..VoiceScript::default()
    })
    .await;
    let dropped = async |count: u64| {
        let began = Instant::now();
        let gone = double.until(|seen| seen.dropped == count);
        timeout(PATIENCE, gone).await.expect("the engine is let go");
        println!("barge-in: engine let go after {:?}", began.elapsed());
    };
    let playing = async || {
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        listener.hear(2).await;
        listener
    };
    playing().await.stream.cancel();
    dropped(1).await;

    let reading = playing().await.stream;
    let (reader, mut writer) = (reading.reader, reading.writer);
    drop(reader);
    dropped(2).await;
    writer.finish();

    // Having said all is no cancel; closing the connection is.
    let mut listens = playing().await;
    listens.stream.writer.finish();
    listens.hear(20).await;
    connection.close(0u32.into(), b"");
    dropped(3).await;
    server.shutdown().await;
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

/// An engine behind HTTP that answers what it is given, whatever it is asked.
async fn answering(answer: Arc<Mutex<Vec<u8>>>) -> (Arc<dyn Engine>, JoinSet<()>) {
    let speak = async move || answer.lock().unwrap().clone();
    behind(Router::new().route("/v1/audio/speech", post(speak))).await
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

/// An engine behind HTTP that speaks without end, at the pace of speech, and tells when its
/// connection is closed.
async fn endless(closed: watch::Sender<bool>) -> (Arc<dyn Engine>, JoinSet<()>) {
    struct Told(watch::Sender<bool>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send_replace(true);
        }
    }
    let speak = async move || {
        let told = Told(closed.clone());
        let pieces = stream::unfold((told, false), async |(told, begun)| {
            if begun {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Some((
                Ok::<_, std::convert::Infallible>(vec![1_u8; 960]),
                (told, true),
            ))
        });
        let kind = [("content-type", "audio/pcm;rate=24000")];
        (kind, Body::from_stream(pieces))
    };
    behind(Router::new().route("/v1/audio/speech", post(speak))).await
}

/// An engine that serves `router`.
async fn behind(router: Router) -> (Arc<dyn Engine>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(axum::serve(listener, router).await) });
    let engine = adapter(&EngineSpec {
        name: "e".to_owned(),
        kind: Some(EngineKind::OpenAiSpeech),
        url: format!("http://{addr}").parse().unwrap(),
        slots: None,
        api_key: None,
    });
    (engine.unwrap(), tasks)
}

#[tokio::test]
async fn a_barge_in_closes_the_connection_of_the_engine() {
    let closed = watch::Sender::new(false);
    let (engine, _tasks) = endless(closed.clone()).await;
    let mesh = Mesh::new();
    let (agent, config) = (mesh.member(Role::Agent), ServeConfig::default());
    let server = Server::with(agent, vec![engine], config).await;
    let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
    let mut took = Vec::new();
    for _ in 0..5 {
        closed.send_replace(false);
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        listener.hear(5).await;
        let began = Instant::now();
        drop(listener);
        let mut told = closed.subscribe();
        let told = timeout(PATIENCE, told.wait_for(|closed| *closed));
        drop(told.await.expect("it is closed"));
        took.push(began.elapsed());
    }
    println!("barge-in: the engine's connection closed after {took:.1?}");
    // Generous: a machine under load, and a debug build.
    assert!(took.iter().min().unwrap() < &Duration::from_millis(100));
    server.shutdown().await;
}

#[tokio::test]
async fn words_that_are_no_grant_end_the_stream() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        speed: Some(1.0),
        ..VoiceScript::default()
    })
    .await;
    // A grant of three bytes, and a probe.
    let malformed: &[u8] = &[0x81, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff];
    let mut listener = Listener::open(&connection, &say(TEXT)).await;
    listener.hear(1).await;
    let raw = bytes::Bytes::copy_from_slice(malformed);
    listener.stream.writer.write_bytes(raw).await.unwrap();
    let error = listener.end().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Protocol, "{error}");
    double.until(|seen| seen.dropped == 1).await;

    let mut listener = Listener::open(&connection, &say(TEXT)).await;
    listener.hear(1).await;
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    listener.stream.writer.write(&probe).await.unwrap();
    let error = listener.end().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Protocol, "{error}");
    double.until(|seen| seen.dropped == 2).await;
    server.shutdown().await;
}

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
async fn a_reader_that_takes_nothing_is_closed_and_one_that_plays_is_not() {
    let double = VoiceDouble::new("e", VoiceScript::default());
    let config = ServeConfig {
        reader_stall: Duration::from_millis(300),
        ..ServeConfig::default()
    };
    let (_mesh, server, connection) = start(&double, config).await;
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut playing = Listener::open(&connection, &request).await;
    // More than the stream's window holds: five minutes.
    let long = "And it goes on and on, as nobody would have thought it could. ".repeat(110);
    let stalled = Listener::open(&connection, &say(&long)).await;
    let served = timeout(PATIENCE, async {
        server
            .service
            .active_changes()
            .wait_for(|n| *n == 2)
            .await
            .unwrap();
        server
            .service
            .active_changes()
            .wait_for(|n| *n == 1)
            .await
            .unwrap();
    });
    let (served, ()) = tokio::join!(served, playing.hear_all(Duration::from_secs(1)));
    served.expect("it is closed");
    playing.grant(u32::MAX).await;
    playing.end().await.unwrap();
    drop(stalled);
    server.shutdown().await;
}

#[tokio::test]
async fn this_agent_itself_hears_the_same() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let mut remote = Listener::open(&connection, &say(TEXT)).await;
    remote.end().await.unwrap();
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut local = server.service.speak_local(Arc::new(request)).unwrap();
    let (mut packets, mut marks) = (0, 0);
    loop {
        match poll_fn(|cx| local.poll_frame(cx)).await.unwrap().unwrap() {
            SpeakFrame::Sound(_) => packets += 1,
            SpeakFrame::Mark(_) => marks += 1,
            SpeakFrame::Done(done) => break assert_eq!(done.frames, packets),
            SpeakFrame::Progress(_) => local.grant(Grant {
                until_ms: u32::MAX,
                played_ms: 0,
            }),
            SpeakFrame::Accepted(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(poll_fn(|cx| local.poll_frame(cx)).await.is_none());
    assert_eq!((packets, marks), (remote.packets, remote.marks.len()));

    double.change(|script| script.speed = Some(1.0));
    let mut local = server.service.speak_local(Arc::new(say(TEXT))).unwrap();
    while !matches!(
        poll_fn(|cx| local.poll_frame(cx)).await,
        Some(Ok(SpeakFrame::Sound(_)))
    ) {}
    drop(local);
    assert_eq!(double.seen().dropped, 1);
    assert_eq!(server.service.active(), 0);
    server.shutdown().await;
}

#[tokio::test]
async fn ten_minutes_of_emoji_code_and_addresses_are_spoken_to_the_end() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        rate: 8_000,
        ..VoiceScript::default()
    })
    .await;
    let odd = "See https://www.example.org/a?b=c 🎉 or `let x = 3;` \u{1F469}\u{200D}\u{1F52C}!\n\n\
               ```rust\nfn main() {}\n```\n| a | b |\n|---|---|\n| 1 | 2 |\n\n";
    let text = odd.repeat(190);
    let request = SpeakRequest {
        grant_ms: 10_000,
        ..say(&text)
    };
    let mut listener = Listener::open(&connection, &request).await;
    let mut until_ms = 10_000;
    let done = loop {
        match listener.next().await {
            SpeakFrame::Done(done) => break done,
            SpeakFrame::Error(error) => panic!("{error}"),
            // As if it were played at once, up to five seconds before the end.
            _ if (listener.pcm.len() as u64) / SAMPLES_PER_MS + 5_000 > until_ms.into() => {
                until_ms += 5_000;
                listener.grant(until_ms).await;
            }
            _ => {}
        }
    };
    let calls = double.calls();
    println!(
        "{} s of sound in {} chunks",
        done.samples / 24_000,
        calls.len()
    );
    assert!(done.samples > 600 * 24_000, "{} s", done.samples / 24_000);
    let odd = |c: char| matches!(c, '🎉' | '`' | '|' | '\u{200D}');
    assert!(calls.iter().all(|call| !call.text.contains(odd)));
    let said: u64 = calls
        .iter()
        .map(|c| c.text.chars().count() as u64 * 60 * 24)
        .sum();
    assert_eq!(done.samples, said, "nothing is lost");
    assert_eq!(
        listener.marks.last().unwrap().to as usize,
        text.chars().count()
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_player_that_pauses_for_too_long_is_told() {
    let double = VoiceDouble::new("e", VoiceScript::default());
    let pause = Duration::from_millis(500);
    let config = ServeConfig {
        listener_pause: pause,
        ..ServeConfig::default()
    };
    let (_mesh, server, connection) = start(&double, config).await;
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut listener = Listener::open(&connection, &request).await;
    listener.hear_all(pause / 2).await;
    let began = Instant::now();
    listener.grant(600).await;
    let error = listener.end().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Limit, "{error}");
    assert!(began.elapsed() >= pause, "each grant begins it anew");
    server.shutdown().await;
    assert_eq!(double.seen().running, 0);
}

/// Five seconds of speech each, played on a real clock behind 80 ms. `UNAMESH_STREAMS=100`, in
/// release and alone, is the bar; beside other tests it shows that all is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_heard_at_once_without_a_gap() {
    let streams = usize::try_from(setting("UNAMESH_STREAMS", 12)).unwrap();
    let double = VoiceDouble::new(
        "e",
        VoiceScript {
            rate: 22_050,
            per_char: Duration::from_millis(65),
            first_delay: Duration::from_millis(100),
            speed: Some(2.0),
            slots: 1000,
            ..VoiceScript::default()
        },
    );
    let (mesh, server, _connection) = start(&double, ServeConfig::default()).await;
    let text = "It is a long way to the sea, my friend, and we shall walk it all the way.";
    let cpu = || cpu_time(std::process::id()).unwrap_or_default();
    let began = (Instant::now(), cpu());
    let server = &server;
    let runs = (0..streams).map(|n| {
        let caller = Caller::new(&mesh, Role::Client);
        async move {
            // Speech does not begin everywhere at once.
            tokio::time::sleep(Duration::from_millis(n as u64 * 10)).await;
            let connection = caller.connect(server).await;
            play(&connection, text).await
        }
    });
    let heard = join_all(runs).await;
    // Of the threads that live: those of other tests come and go.
    let (took, used) = (began.0.elapsed(), cpu().saturating_sub(began.1));
    let gaps: u32 = heard.iter().map(|h| h.gaps).sum();
    let seconds: f64 = heard.iter().map(|h| h.seconds).sum();
    let mut firsts: Vec<Duration> = heard.iter().map(|h| h.first).collect();
    firsts.sort_unstable();
    println!(
        "{streams} streams, {seconds:.0} s of sound in {took:.1?}: {gaps} gaps; first sound p50 \
         {:?}, max {:?}; {:.2} % of a core a stream, double, agent and client together",
        firsts[streams / 2],
        firsts[streams - 1],
        100.0 * used.as_secs_f64() / seconds,
    );
    if std::env::var_os("UNAMESH_STREAMS").is_some() {
        assert_eq!(gaps, 0);
    }
}

/// What one listener heard.
struct Heard {
    gaps: u32,
    first: Duration,
    seconds: f64,
}

/// Plays on a real clock, 80 ms behind the first sound, with a lead of ten seconds.
async fn play(connection: &quinn::Connection, text: &str) -> Heard {
    const PREBUFFER: u64 = 80 * SAMPLES_PER_MS;
    let asked = Instant::now();
    let request = SpeakRequest {
        grant_ms: 10_000,
        ..say(text)
    };
    let mut listener = Listener::open(connection, &request).await;
    let (mut first, mut playing, mut gaps) = (None, None::<Instant>, 0);
    loop {
        let frame = listener.next().await;
        let here = listener.pcm.len() as u64;
        match frame {
            SpeakFrame::Sound(_) => {
                first.get_or_insert_with(|| asked.elapsed());
                if playing.is_none() && here >= PREBUFFER {
                    playing = Some(Instant::now());
                }
            }
            SpeakFrame::Done(done) => {
                return Heard {
                    gaps,
                    first: first.unwrap(),
                    seconds: done.samples as f64 / 24_000.0,
                };
            }
            SpeakFrame::Error(error) => panic!("{error}"),
            _ => {}
        }
        // Progress comes often enough to see a player that has run dry.
        if let Some(since) = playing {
            let played = since.elapsed().as_micros() as u64 * SAMPLES_PER_MS / 1000;
            if played > here {
                gaps += 1;
                playing = None;
            }
        }
    }
}
