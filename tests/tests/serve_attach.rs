//! Reattaching: a path dies without a word, and the generation goes on over another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use serve_support::{Answer, Caller, Mesh, PATIENCE, Server, attach, generate, request};
use std::time::Duration;
use tokio::time::timeout;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::endpoint::CLOSE_NORMAL;
use unamesh_proto::GenerationId;
use unamesh_proto::limits::MAX_CONNECTIONS_PER_PEER;
use unamesh_proto::wire::{ErrorCode, Role};
use unamesh_tests::doubles::engine_double::answer;
use unamesh_tests::doubles::{EngineDouble, PathDouble, Script};

/// A generation of which `have` tokens arrived before its path was cut.
struct Broken {
    _mesh: Mesh,
    double: EngineDouble,
    server: Server,
    caller: Caller,
    id: GenerationId,
    _dead: (quinn::Connection, Answer, PathDouble),
}

async fn broken(script: Script, config: ServeConfig, have: usize) -> Broken {
    let mesh = Mesh::new();
    let double = EngineDouble::stepped("e", script);
    let server = Server::start(&mesh, &[&double], config).await;
    let caller = Caller::new(&mesh, Role::Client);
    let relay = PathDouble::to(server.addr).await;
    let connection = caller.dial(server.node, relay.addr).await.unwrap();
    let mut stream = generate(&connection, &request()).await;
    let id = stream.accepted().await.generation;
    double.step(have);
    for _ in 0..have {
        stream.token().await;
    }
    relay.cut();
    Broken {
        _mesh: mesh,
        double,
        server,
        caller,
        id,
        _dead: (connection, stream, relay),
    }
}

#[tokio::test]
async fn the_rest_comes_over_a_new_path() {
    let b = broken(Script::default(), ServeConfig::default(), 5).await;
    // Sent into the dead path: the agent does not know yet.
    b.double.step(7);
    b.double.until(|seen| seen.tokens == 12).await;
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 5).await;
    assert_eq!(stream.accepted().await.generation, b.id);
    b.double.release();
    let (text, done) = stream.rest(5).await;
    assert_eq!(answer(1, 5) + &text, b.double.expected());
    assert_eq!(done.frames, 32);
    assert_eq!(b.double.seen().asked, 1, "nothing was computed again");
    b.server.shutdown().await;
}

#[tokio::test]
async fn it_goes_on_while_nobody_listens() {
    let b = broken(Script::default(), ServeConfig::default(), 3).await;
    // The agent notices by the idle time-out, and the engine comes to its end meanwhile.
    tokio::time::sleep(unamesh_proto::timeouts::IDLE + Duration::from_millis(700)).await;
    b.double.release();
    timeout(PATIENCE, b.double.until(|seen| seen.finished == 1))
        .await
        .expect("it goes on");
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 3).await;
    stream.accepted().await;
    assert_eq!(answer(1, 3) + &stream.rest(3).await.0, b.double.expected());
    b.server.shutdown().await;
}

#[tokio::test]
async fn what_lingers_unheard_does_not_hold_up_the_end() {
    let config = ServeConfig {
        grace: 10 * PATIENCE,
        ..ServeConfig::default()
    };
    let b = broken(Script::default(), config, 3).await;
    tokio::time::sleep(unamesh_proto::timeouts::IDLE + Duration::from_millis(700)).await;
    b.double.release();
    timeout(PATIENCE, b.double.until(|seen| seen.finished == 1))
        .await
        .expect("it goes on");
    b.server.shutdown().await;
}

#[tokio::test]
async fn the_end_that_did_not_arrive_comes_again() {
    let b = broken(
        Script {
            tokens: 4,
            ..Script::default()
        },
        ServeConfig::default(),
        4,
    )
    .await;
    b.double.release();
    b.double.until(|seen| seen.finished == 1).await;
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 4).await;
    stream.accepted().await;
    assert_eq!(stream.rest(4).await.1.frames, 4);
    // Delivered now, so there is nothing left to attach to.
    let mut again = attach(&connection, b.id, 4).await;
    assert_eq!(again.refused().await, ErrorCode::UnknownGeneration);
    b.server.shutdown().await;
}

#[tokio::test]
async fn the_grace_time_ends() {
    let grace = Duration::from_millis(200);
    let config = ServeConfig {
        grace,
        ..ServeConfig::default()
    };
    let b = broken(Script::default(), config, 3).await;
    timeout(PATIENCE, b.double.until(|seen| seen.dropped == 1))
        .await
        .expect("given up");
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 3).await;
    assert_eq!(stream.refused().await, ErrorCode::UnknownGeneration);
    b.server.shutdown().await;
}

#[tokio::test]
async fn somebody_elses_generation_is_unknown() {
    let b = broken(Script::default(), ServeConfig::default(), 3).await;
    let thief = Caller::new(&b._mesh, Role::Admin);
    let connection = thief.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 0).await;
    assert_eq!(stream.refused().await, ErrorCode::UnknownGeneration);
    let mut stream = attach(&connection, GenerationId([1; 16]), 0).await;
    assert_eq!(stream.refused().await, ErrorCode::UnknownGeneration);

    // The owner is none the worse for it.
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 3).await;
    stream.accepted().await;
    b.double.release();
    assert_eq!(answer(1, 3) + &stream.rest(3).await.0, b.double.expected());
    b.server.shutdown().await;
}

#[tokio::test]
async fn more_than_was_made_cannot_be_had() {
    let b = broken(Script::default(), ServeConfig::default(), 3).await;
    let connection = b.caller.connect(&b.server).await;
    let mut stream = attach(&connection, b.id, 9).await;
    assert_eq!(stream.refused().await, ErrorCode::UnknownGeneration);
    b.server.shutdown().await;
}

#[tokio::test]
async fn a_full_journal_lets_the_past_go() {
    let config = ServeConfig {
        journal_bytes: 1000,
        ..ServeConfig::default()
    };
    let b = broken(Script::default(), config, 20).await;
    let connection = b.caller.connect(&b.server).await;
    let mut beginning = attach(&connection, b.id, 0).await;
    assert_eq!(beginning.refused().await, ErrorCode::UnknownGeneration);
    let mut recent = attach(&connection, b.id, 20).await;
    recent.accepted().await;
    b.double.release();
    assert_eq!(
        answer(1, 20) + &recent.rest(20).await.0,
        b.double.expected()
    );
    b.server.shutdown().await;
}

#[tokio::test]
async fn a_full_journal_without_a_reader_is_the_end() {
    let config = ServeConfig {
        journal_bytes: 1000,
        ..ServeConfig::default()
    };
    let b = broken(
        Script {
            tokens: 1000,
            ..Script::default()
        },
        config,
        3,
    )
    .await;
    tokio::time::sleep(unamesh_proto::timeouts::IDLE + Duration::from_millis(700)).await;
    b.double.release();
    timeout(PATIENCE, b.double.until(|seen| seen.dropped == 1))
        .await
        .expect("given up");
    b.server.shutdown().await;
}

#[tokio::test]
async fn a_second_path_takes_over_from_the_first() {
    let b = broken(Script::default(), ServeConfig::default(), 2).await;
    let connection = b.caller.connect(&b.server).await;
    let mut first = attach(&connection, b.id, 2).await;
    first.accepted().await;
    b.double.step(3);
    for _ in 0..3 {
        first.token().await;
    }
    let mut second = attach(&connection, b.id, 5).await;
    second.accepted().await;
    assert!(first.reader.next().await.is_err(), "the first is reset");
    b.double.release();
    assert_eq!(answer(1, 5) + &second.rest(5).await.0, b.double.expected());
    b.server.shutdown().await;
}

/// As many connections of `caller` as it may hold, the oldest first.
async fn all_connections(caller: &Caller, server: &Server) -> Vec<quinn::Connection> {
    let mut connected = server.hooks.connected.subscribe();
    let mut all = Vec::new();
    for n in 1..=MAX_CONNECTIONS_PER_PEER {
        all.push(caller.connect(server).await);
        let admitted = connected.wait_for(|c| *c >= n);
        timeout(PATIENCE, admitted)
            .await
            .expect("admitted")
            .unwrap();
    }
    all
}

#[tokio::test]
async fn the_connection_that_makes_room_is_one_without_an_answer() {
    let mesh = Mesh::new();
    let double = EngineDouble::stepped("e", Script::default());
    let server = Server::start(&mesh, &[&double], ServeConfig::default()).await;
    let caller = Caller::new(&mesh, Role::Client);
    let held = all_connections(&caller, &server).await;
    let mut stream = generate(&held[0], &request()).await;
    stream.accepted().await;

    let _ninth = caller.connect(&server).await;
    timeout(PATIENCE, held[1].closed())
        .await
        .expect("the oldest of the idle ones is closed");
    double.release();
    let (text, _) = stream.rest(0).await;
    assert_eq!(text, double.expected());
    assert!(held[2..].iter().all(|c| c.close_reason().is_none()));
    server.shutdown().await;
}

#[tokio::test]
async fn an_answer_outlives_the_connection_that_made_room() {
    let mesh = Mesh::new();
    let script = Script {
        slots: MAX_CONNECTIONS_PER_PEER as u16,
        ..Script::default()
    };
    let double = EngineDouble::stepped("e", script);
    let server = Server::start(&mesh, &[&double], ServeConfig::default()).await;
    let caller = Caller::new(&mesh, Role::Client);
    let held = all_connections(&caller, &server).await;
    let (mut streams, mut ids) = (Vec::new(), Vec::new());
    for connection in &held {
        let mut stream = generate(connection, &request()).await;
        ids.push(stream.accepted().await.generation);
        streams.push(stream);
    }
    let ninth = caller.connect(&server).await;
    let closed = timeout(PATIENCE, held[0].closed());
    let closed = closed.await.expect("the oldest is closed");
    let quinn::ConnectionError::ApplicationClosed(close) = &closed else {
        panic!("{closed}")
    };
    // What a client reads as a break, after which it asks for the rest.
    assert_eq!(close.error_code, CLOSE_NORMAL);
    let mut again = attach(&ninth, ids[0], 0).await;
    assert_eq!(again.accepted().await.generation, ids[0]);
    double.release();
    assert_eq!(again.rest(0).await.0, double.expected());
    for mut stream in streams.drain(1..) {
        assert_eq!(stream.rest(0).await.0, double.expected());
    }
    assert_eq!(double.seen().asked as usize, MAX_CONNECTIONS_PER_PEER);
    server.shutdown().await;
}
