//! Generations over QUIC: frames, cancel, failures of the engine, slow readers, many at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::future::join_all;
use serve_support::{Caller, Mesh, PATIENCE, Server, generate, request};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use unamesh_agent::engine::EngineError;
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::wire::{ErrorCode, FinishReason, GenFrame, Phase, Residency, Role, Usage};
use unamesh_tests::doubles::engine_double::{answer, token};
use unamesh_tests::doubles::{EngineDouble, Failure, Script};

async fn serve(double: &EngineDouble) -> (Mesh, Server, Caller, quinn::Connection) {
    let mesh = Mesh::new();
    let server = Server::start(&mesh, &[double], ServeConfig::default()).await;
    let caller = Caller::new(&mesh, Role::Client);
    let connection = caller.connect(&server).await;
    (mesh, server, caller, connection)
}

#[tokio::test]
async fn an_answer_arrives_whole() {
    let double = EngineDouble::new("e", Script::default());
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut stream = generate(&connection, &request()).await;
    let accepted = stream.accepted().await;
    assert_eq!(
        (accepted.engine, accepted.digest.as_str()),
        (0, "sha256:double")
    );
    let (text, done) = stream.rest(0).await;
    assert_eq!(text, double.expected());
    assert_eq!(done.finish, FinishReason::Stop);
    assert_eq!(
        done.usage,
        Usage {
            prompt_tokens: 7,
            completion_tokens: 32
        }
    );
    server.shutdown().await;
    assert_eq!(double.seen().finished, 1);
}

#[tokio::test]
async fn a_prefix_is_gone_on_from() {
    let double = EngineDouble::new("e", Script::default());
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut resumed = request();
    resumed.prefix = (0..10).map(|i| token(1, i)).collect();
    let mut stream = generate(&connection, &resumed).await;
    assert!(stream.accepted().await.exact);
    let (text, done) = stream.rest(10).await;
    assert_eq!(answer(1, 10) + &text, double.expected());
    assert_eq!(
        done.usage.completion_tokens, 32,
        "the replayed part is included"
    );

    // Without ids the seam is not exact, and the client is told before the first token.
    resumed
        .prefix
        .iter_mut()
        .for_each(|chunk| chunk.ids.clear());
    let mut stream = generate(&connection, &resumed).await;
    assert!(!stream.accepted().await.exact);
    stream.rest(10).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_cancel_reaches_the_engine() {
    let double = EngineDouble::stepped("e", Script::default());
    let (_mesh, server, _caller, connection) = serve(&double).await;

    let mut reset = generate(&connection, &request()).await;
    double.step(1);
    reset.accepted().await;
    reset.token().await;
    reset.cancel();
    timeout(PATIENCE, double.until(|seen| seen.dropped == 1))
        .await
        .expect("reset");

    let mut stopped = generate(&connection, &request()).await;
    stopped.accepted().await;
    double.until(|seen| seen.running == 1).await;
    let serve_support::Answer {
        writer: _writer,
        reader,
    } = stopped;
    drop(reader);
    timeout(PATIENCE, double.until(|seen| seen.dropped == 2))
        .await
        .expect("stop");

    let mut closed = generate(&connection, &request()).await;
    closed.accepted().await;
    double.until(|seen| seen.running == 1).await;
    connection.close(0u32.into(), b"");
    timeout(PATIENCE, double.until(|seen| seen.dropped == 3))
        .await
        .expect("close");
    server.shutdown().await;
}

#[tokio::test]
async fn a_finished_request_is_no_cancel() {
    let double = EngineDouble::stepped("e", Script::default());
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut stream = generate(&connection, &request()).await;
    stream.writer.finish();
    stream.accepted().await;
    double.until(|seen| seen.running == 1).await;
    double.release();
    assert_eq!(stream.rest(0).await.0, double.expected());
    server.shutdown().await;
}

#[tokio::test]
async fn the_failures_of_an_engine_are_told() {
    let double = EngineDouble::new("e", Script::default());
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let broken = EngineError::Failed {
        engine: "e".to_owned(),
        reason: "HTTP 500".to_owned(),
    };
    for (failure, words) in [
        (Failure::Error(broken), "HTTP 500"),
        (Failure::EndEarly, "after 5 tokens"),
        (Failure::Oversize(100_000), "100064 bytes"),
    ] {
        double.change(|script| script.fail_at = Some((5, failure)));
        let mut stream = generate(&connection, &request()).await;
        stream.accepted().await;
        for index in 0..5 {
            assert_eq!(stream.token().await.chunk, token(1, index));
        }
        let error = stream.error().await;
        assert_eq!(error.code, ErrorCode::EngineFailed, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert!(stream.frame().await.is_none());
    }
    double.change(|script| {
        let (engine, reason) = ("e".to_owned(), "connection refused".to_owned());
        script.refuse = Some(EngineError::Down { engine, reason });
    });
    let mut stream = generate(&connection, &request()).await;
    stream.accepted().await;
    assert_eq!(stream.refused().await, ErrorCode::EngineDown);
    server.shutdown().await;
}

#[tokio::test]
async fn a_silent_engine_is_no_silent_agent() {
    let script = Script {
        hang_open: true,
        residency: Residency::OnDisk,
        ..Script::default()
    };
    let double = EngineDouble::new("e", script);
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut stream = generate(&connection, &request()).await;
    stream.accepted().await;
    for _ in 0..5 {
        match stream.frame().await {
            Some(GenFrame::Progress(progress)) => assert_eq!(progress.phase, Phase::Loading),
            other => panic!("expected Progress, got {other:?}"),
        }
    }
    stream.cancel();
    timeout(PATIENCE, double.until(|seen| seen.dropped == 1))
        .await
        .expect("cancelled");
    server.shutdown().await;
}

#[tokio::test]
async fn what_an_engine_takes_is_measured() {
    let delay = Duration::from_millis(10);
    let script = Script {
        first_delay: 5 * delay,
        delay,
        tokens: 10,
        ..Script::default()
    };
    let double = EngineDouble::new("e", script);
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut stream = generate(&connection, &request()).await;
    stream.accepted().await;
    stream.rest(0).await;
    let mut catalog = server.registry.changes();
    let measured = catalog.wait_for(|catalog| catalog.models[0].stats.samples > 0);
    let stats = timeout(PATIENCE, measured)
        .await
        .expect("measured")
        .unwrap()
        .models[0]
        .stats;
    assert!((50.0..500.0).contains(&stats.ttft_ms), "{stats:?}");
    assert!((10.0..100.0).contains(&stats.itl_ms), "{stats:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_stalls_holds_the_engine_and_is_closed() {
    let tokens = 400_000;
    let double = EngineDouble::new(
        "e",
        Script {
            tokens,
            ..Script::default()
        },
    );
    let mesh = Mesh::new();
    let reader_stall = Duration::from_millis(500);
    let config = ServeConfig {
        reader_stall,
        ..ServeConfig::default()
    };
    let server = Server::start(&mesh, &[&double], config).await;
    let caller = Caller::new(&mesh, Role::Client);
    let connection = caller.connect(&server).await;
    let stream = generate(&connection, &request()).await;
    let seen = timeout(PATIENCE, double.until(|seen| seen.dropped == 1))
        .await
        .expect("closed");
    assert!(
        seen.tokens < u64::from(tokens),
        "the engine was held: {seen:?}"
    );
    drop(stream);
    server.shutdown().await;
}

#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let tokens = 100_000;
    let double = EngineDouble::new(
        "e",
        Script {
            tokens,
            ..Script::default()
        },
    );
    let (_mesh, server, _caller, connection) = serve(&double).await;
    let mut stream = generate(&connection, &request()).await;
    stream.accepted().await;
    // Longer than it takes to fill every buffer on the way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stream.rest(0).await.0, answer(1, tokens));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once() {
    let script = Script {
        slots: 1000,
        tokens: 20,
        ..Script::default()
    };
    let double = EngineDouble::stepped("e", script);
    let mesh = Mesh::new();
    let server = Server::start(&mesh, &[&double], ServeConfig::default()).await;
    let callers: Vec<_> = (0..4).map(|_| Caller::new(&mesh, Role::Client)).collect();
    let connections = join_all(callers.iter().map(|caller| caller.connect(&server))).await;
    let request = Arc::new(request());
    let expected = double.expected();
    let one = |n: usize| {
        let connection = connections[n % connections.len()].clone();
        let (request, expected) = (Arc::clone(&request), expected.clone());
        async move {
            let mut stream = generate(&connection, &request).await;
            stream.accepted().await;
            assert_eq!(stream.rest(0).await.0, expected);
        }
    };
    let all = join_all((0..1000).map(one));
    let together = async {
        double.until(|seen| seen.running == 1000).await;
        assert_eq!(server.service.active(), 1000);
        double.release();
    };
    timeout(3 * PATIENCE, futures_util::future::join(all, together))
        .await
        .expect("all done");
    assert_eq!(double.seen().finished, 1000);
    server.shutdown().await;
}
