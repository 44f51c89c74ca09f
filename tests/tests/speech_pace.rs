//! How speech keeps its pace: a hundred texts at once without a gap, and a barge-in that is quick.
//! The engines are doubles.
//!
//! Times are held to the bars in release builds. The tests of this program run one after another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod serve_support;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::future::join_all;
use futures_util::stream;
use serve_support::listener::{Listener, say};
use serve_support::player::Player;
use serve_support::speaker::{TEXT, behind, start};
use serve_support::{Caller, Mesh, PATIENCE, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use unamesh_agent::bench::stats::cpu_time;
use unamesh_agent::engine::Engine;
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::wire::{Role, SpeakFrame, SpeakRequest};
use unamesh_tests::cluster::turn;
use unamesh_tests::doubles::{VoiceDouble, VoiceScript};
use unamesh_tests::measure::{Samples, in_real_time, setting};

/// Texts at once: the bar, or what an unoptimized program can do.
const STREAMS: u64 = if cfg!(debug_assertions) { 12 } else { 100 };
/// Sound that is here before it is played.
const PREBUFFER: Duration = Duration::from_millis(80);
/// Barge-ins, each of which is held to the bar.
const BARGE_INS: usize = 20;

/// Five seconds of speech each, from engines half as quick again as speech: together as much as two
/// cores can code, send, receive and decode while they also play the engines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_heard_at_once_without_a_gap() {
    let _turn = turn().await;
    let streams = setting("UNAMESH_STREAMS", STREAMS);
    let double = VoiceDouble::new(
        "e",
        VoiceScript {
            rate: 22_050,
            per_char: Duration::from_millis(65),
            first_delay: Duration::from_millis(100),
            speed: Some(1.5),
            slots: 1000,
            ..VoiceScript::default()
        },
    );
    let (mesh, server, _connection) = start(&double, ServeConfig::default()).await;
    in_real_time(async || match hear_at_once(&mesh, &server, streams).await {
        0 => Ok(()),
        gaps => Err(format!("{streams} streams had {gaps} gaps")),
    })
    .await;
    server.shutdown().await;
}

/// The gaps that so many listeners heard.
async fn hear_at_once(mesh: &Mesh, server: &Server, streams: u64) -> u32 {
    const TEXT: &str = "It is a long way to the sea, my friend, and we shall walk it all the way.";
    let cpu = || cpu_time(std::process::id()).unwrap_or_default();
    let began = (Instant::now(), cpu());
    let runs = (0..streams).map(|n| {
        let caller = Caller::new(mesh, Role::Client);
        async move {
            // Speech does not begin everywhere at once.
            sleep(Duration::from_millis(n * 10)).await;
            let connection = caller.connect(server).await;
            play(&connection, TEXT).await
        }
    });
    let heard = join_all(runs).await;
    // Of the threads that live: those of other tests come and go.
    let (took, used) = (began.0.elapsed(), cpu().saturating_sub(began.1));
    let mut firsts = Samples::default();
    heard.iter().for_each(|(first, _)| firsts.push(*first));
    let seconds = heard.iter().map(|(_, player)| player.here()).sum::<u64>() as f64 / 24_000.0;
    let gaps = heard.iter().map(|(_, player)| player.gaps).sum();
    println!(
        "{streams} streams, {seconds:.0} s of sound in {took:.1?}: {gaps} gaps; first sound \
         {firsts}; {:.2} % of a core a stream, double, agent and client together",
        100.0 * used.as_secs_f64() / seconds,
    );
    gaps
}

/// Plays `text` with a lead of ten seconds: when its first sound came, and how it was played.
async fn play(connection: &quinn::Connection, text: &str) -> (Duration, Player) {
    let asked = Instant::now();
    let request = SpeakRequest {
        grant_ms: 10_000,
        ..say(text)
    };
    let mut listener = Listener::open(connection, &request).await;
    let (mut first, mut player) = (None, Player::behind(PREBUFFER));
    loop {
        let here = listener.pcm.len();
        match listener.next().await {
            SpeakFrame::Sound(_) => {
                first.get_or_insert_with(|| asked.elapsed());
                player.sound(listener.pcm.len() - here);
            }
            SpeakFrame::Done(_) => return (first.unwrap(), player),
            SpeakFrame::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_barge_in_closes_the_connection_of_the_engine() {
    let _turn = turn().await;
    let closed = watch::Sender::new(false);
    let (engine, _tasks) = endless(closed.clone()).await;
    let mesh = Mesh::new();
    let (agent, config) = (mesh.member(Role::Agent), ServeConfig::default());
    let server = Server::with(agent, vec![engine], config).await;
    let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
    let mut took = Samples::default();
    for _ in 0..BARGE_INS {
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
    println!("barge-in: the engine's connection closed after {took}");
    if !cfg!(debug_assertions) {
        assert!(took.percentile(1.0) <= Duration::from_millis(100), "{took}");
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
