//! Slots, the queue, `busy`, loads, draining, the way in for this agent itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use serve_support::{Answer, Caller, Mesh, PATIENCE, Server, generate, request};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use unamesh_agent::serve::{EngineLoad, ServeConfig};
use unamesh_client::transport::{FrameStream, LinkError};
use unamesh_proto::wire::{ErrorCode, GenFrame, Phase, Progress, Role};
use unamesh_tests::doubles::engine_double::answer;
use unamesh_tests::doubles::{EngineDouble, Script};

/// A server with one slot and a queue of two, and a connection to it.
async fn narrow() -> (Mesh, EngineDouble, Server, Caller, quinn::Connection) {
    let mesh = Mesh::new();
    let double = EngineDouble::stepped(
        "e",
        Script {
            slots: 1,
            ..Script::default()
        },
    );
    let config = ServeConfig {
        queue: 2,
        ..ServeConfig::default()
    };
    let server = Server::start(&mesh, &[&double], config).await;
    let caller = Caller::new(&mesh, Role::Client);
    let connection = caller.connect(&server).await;
    (mesh, double, server, caller, connection)
}

async fn queued(answer: &mut Answer) -> Progress {
    match answer.frame().await {
        Some(GenFrame::Progress(progress)) => progress,
        other => panic!("expected Progress, got {other:?}"),
    }
}

#[tokio::test]
async fn who_comes_first_is_served_first_and_too_many_are_told() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = generate(&connection, &request()).await;
        stream.accepted().await;
        streams.push(stream);
    }
    let load = |busy, queue| EngineLoad {
        busy,
        queue,
        slots: 1,
    };
    assert_eq!(server.service.load(), [load(1, 2)]);
    assert_eq!(**server.service.load_changes().borrow(), [load(1, 2)]);

    let mut refused = generate(&connection, &request()).await;
    let error = refused.error().await;
    assert_eq!(error.code, ErrorCode::Busy);
    assert!(error.retry_after_ms > 0, "{error}");

    let [mut first, mut second, mut third]: [Answer; 3] = streams.try_into().ok().unwrap();
    let place = queued(&mut third).await;
    assert_eq!(
        place,
        Progress {
            phase: Phase::Queued,
            done: 1,
            total: 2
        }
    );
    assert_eq!(queued(&mut second).await.done, 0);

    // One token of the first, and only of the first.
    double.step(1);
    first.token().await;
    assert_eq!(double.seen().asked, 1);
    first.cancel();
    timeout(PATIENCE, double.until(|seen| seen.asked == 2))
        .await
        .expect("the second is next");
    assert_eq!(server.service.load(), [load(1, 1)]);
    double.release();
    assert_eq!(second.rest(0).await.0, double.expected());
    assert_eq!(third.rest(0).await.0, double.expected());
    assert_eq!(double.seen().peak, 1);
    let mut loads = server.service.load_changes();
    let idle = loads.wait_for(|loads| **loads == [load(0, 0)]);
    timeout(PATIENCE, idle)
        .await
        .expect("idle in the end")
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn who_gives_up_waiting_frees_the_place() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = generate(&connection, &request()).await;
        stream.accepted().await;
        streams.push(stream);
    }
    streams.remove(1).cancel();
    let mut loads = server.service.load_changes();
    let freed = loads.wait_for(|loads| loads[0].queue == 1);
    timeout(PATIENCE, freed)
        .await
        .expect("the place is free")
        .unwrap();
    assert_eq!(double.seen().asked, 1, "the engine never heard of it");
    let mut fourth = generate(&connection, &request()).await;
    fourth.accepted().await;
    double.release();
    assert_eq!(fourth.rest(0).await.0, double.expected());
    server.shutdown().await;
}

#[tokio::test]
async fn more_slots_serve_more() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    let mut first = generate(&connection, &request()).await;
    first.accepted().await;
    let mut second = generate(&connection, &request()).await;
    second.accepted().await;
    double.change(|script| script.slots = 2);
    // The registry asks the engine again; the lane looks when somebody comes.
    let mut loads = server.service.load_changes();
    let mut grown = None;
    for _ in 0..100 {
        let mut third = generate(&connection, &request()).await;
        third.accepted().await;
        if loads.borrow_and_update()[0].slots == 2 {
            grown = Some(third);
            break;
        }
        third.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(grown.is_some(), "the new number of slots arrives");
    timeout(PATIENCE, double.until(|seen| seen.running == 2))
        .await
        .expect("both run");
    server.shutdown().await;
}

#[tokio::test]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    let mut running = generate(&connection, &request()).await;
    running.accepted().await;
    double.step(2);
    running.token().await;
    running.token().await;
    server.service.drain(Duration::from_secs(60));
    match running.news().await {
        GenFrame::Draining(draining) => assert!((1..=60_000).contains(&draining.deadline_ms)),
        other => panic!("expected Draining, got {other:?}"),
    }
    let mut late = generate(&connection, &request()).await;
    assert_eq!(late.refused().await, ErrorCode::Draining);
    assert!(server.service.open_local(Arc::new(request())).is_err());
    assert_eq!(server.service.active(), 1);
    double.release();
    let (text, _) = running.rest(2).await;
    assert_eq!(answer(1, 2) + &text, double.expected());
    timeout(PATIENCE, server.service.drained())
        .await
        .expect("nothing runs any more");
    server.shutdown().await;
}

#[tokio::test]
async fn a_pause_is_over_for_those_who_come_later() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    server.service.drain(Duration::from_secs(60));
    let mut refused = generate(&connection, &request()).await;
    assert_eq!(refused.refused().await, ErrorCode::Draining);
    server.service.resume();
    let mut taken = generate(&connection, &request()).await;
    taken.accepted().await;
    // The next drain reaches it as the first one would have.
    server.service.drain(Duration::from_secs(60));
    loop {
        match taken.news().await {
            GenFrame::Draining(_) => break,
            GenFrame::Progress(_) => {}
            other => panic!("expected Draining, got {other:?}"),
        }
    }
    double.release();
    taken.rest(0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_stop_ends_what_still_runs_with_a_reason() {
    let (_mesh, double, server, _caller, connection) = narrow().await;
    let mut running = generate(&connection, &request()).await;
    let mut waiting = generate(&connection, &request()).await;
    running.accepted().await;
    waiting.accepted().await;
    server.service.drain(Duration::from_millis(50));
    timeout(PATIENCE, server.service.drained())
        .await
        .expect("the deadline passes");
    assert_eq!(server.service.active(), 2);
    server.stop.cancel();
    for stream in [&mut running, &mut waiting] {
        let error = loop {
            match stream.news().await {
                GenFrame::Draining(_) => {}
                GenFrame::Error(error) => break error,
                other => panic!("expected Error, got {other:?}"),
            }
        };
        assert_eq!(error.code, ErrorCode::Draining);
    }
    drop((running, waiting));
    server.shutdown().await;
    assert_eq!((double.seen().running, double.seen().dropped), (0, 1));
}

async fn next(stream: &mut Box<dyn FrameStream>) -> Option<GenFrame> {
    let frame = poll_fn(|cx| stream.poll_frame(cx));
    timeout(PATIENCE, frame)
        .await
        .expect("a frame comes in time")
        .map(|frame| frame.unwrap())
}

#[tokio::test]
async fn this_agent_asks_itself_through_the_same_door() {
    let (_mesh, double, server, _caller, _connection) = narrow().await;
    let mut first = server.service.open_local(Arc::new(request())).unwrap();
    assert!(matches!(
        next(&mut first).await,
        Some(GenFrame::Accepted(_))
    ));
    assert!(matches!(
        next(&mut first).await,
        Some(GenFrame::Progress(_))
    ));
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(server.service.open_local(Arc::new(request())).unwrap());
    }
    assert!(matches!(
        next(&mut others[1]).await,
        Some(GenFrame::Accepted(_))
    ));
    match next(&mut others[1]).await {
        Some(GenFrame::Progress(p)) => assert_eq!((p.phase, p.done), (Phase::Queued, 1)),
        other => panic!("expected Progress, got {other:?}"),
    }
    match server.service.open_local(Arc::new(request())) {
        Err(LinkError::Refused(error)) => assert_eq!(error.code, ErrorCode::Busy),
        Err(other) => panic!("expected Busy, got {other}"),
        Ok(_) => panic!("expected Busy"),
    }
    double.until(|seen| seen.running == 1).await;
    drop(first);
    assert_eq!(double.seen().dropped, 1, "dropped with the stream, at once");
    double.release();
    let mut text = String::new();
    let frames = loop {
        match next(&mut others[0]).await {
            Some(GenFrame::Token(token)) => text.push_str(&token.chunk.text),
            Some(GenFrame::Done(done)) => break done.frames,
            Some(_) => {}
            None => panic!("ended early"),
        }
    };
    assert_eq!((text, frames), (double.expected(), 32));
    assert!(next(&mut others[0]).await.is_none());
    drop(others);
    server.shutdown().await;
}
