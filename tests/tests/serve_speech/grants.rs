//! The listener's grant, and the engine's seat that it gives away meanwhile.

use crate::serve_support::PATIENCE;
use crate::serve_support::listener::{Listener, say};
use crate::serve_support::speaker::{QUIET, TEXT, serve, start};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::speech::speak::SAMPLES_PER_MS;
use unamesh_proto::wire::{ErrorCode, Grant, Phase, Probe, SpeakFrame, SpeakRequest};
use unamesh_tests::doubles::{VoiceDouble, VoiceScript};

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
