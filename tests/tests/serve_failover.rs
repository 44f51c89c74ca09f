//! The client's session machine against serving agents: an answer that survives its path, its
//! peer, its engine and a planned leave. Twins answer alike, so every token is checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use serve_support::PATIENCE;
use serve_support::peers::{peer, table};
use serve_support::twins::{Got, Twins, script};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use unamesh_proto::session::Seam;
use unamesh_tests::doubles::{Failure, Script};

#[tokio::test]
async fn a_dead_path_is_survived_exactly() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 20).await;
    twins.path.cut();
    let got = got.whole(generation, &twins.engines[0]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    let resumed = twins.engines[1].last_request().expect("the twin went on");
    assert!(resumed.prefix.len() >= 20);
    twins.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_fails_is_replaced() {
    let twins = Twins::start().await;
    twins.engines[0].change(|script| script.fail_at = Some((10, Failure::EndEarly)));
    let got = Got::default().whole(twins.ask(), &twins.engines[1]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    twins
        .engines
        .iter()
        .for_each(|engine| assert_eq!(engine.seen().running, 0));
    twins.shutdown().await;
}

#[tokio::test]
async fn a_planned_leave_is_not_felt() {
    let twins = Twins::start().await;
    // The one that stays catches up with the one that leaves, and overtakes it.
    twins.engines[0].change(|script| script.delay *= 5);
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 15).await;
    twins.servers[0].service.drain(Duration::from_secs(30));
    let got = got.whole(generation, &twins.engines[0]).await;
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert!(got.changes[0].1.contains("leaving"), "{:?}", got.changes);
    timeout(PATIENCE, twins.servers[0].service.drained())
        .await
        .expect("it may leave at once");
    timeout(PATIENCE, twins.engines[0].until(|seen| seen.running == 0))
        .await
        .expect("released");
    twins.shutdown().await;
}

#[tokio::test]
async fn a_leave_comes_true_before_the_end() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 15).await;
    // Equally fast, the twin is a few tokens behind when the first one goes.
    let service = &twins.servers[0].service;
    service.drain(Duration::from_millis(150));
    let leave = async {
        service.drained().await;
        twins.servers[0].stop.cancel();
    };
    let (got, ()) = tokio::join!(got.whole(generation, &twins.engines[0]), leave);
    assert_eq!(got.changes.len(), 1, "{:?}", got.changes);
    assert_eq!(got.changes[0].0, Seam::Exact);
    twins.shutdown().await;
}

#[tokio::test]
async fn alone_it_comes_back_over_another_path() {
    let twins = Twins::start().await;
    let slow = Script {
        delay: Duration::from_millis(100),
        ..script()
    };
    twins.engines[0].change(|script| *script = slow);
    let addrs = [twins.path.addr, twins.servers[0].addr];
    let only = |addrs: &[SocketAddr]| {
        table(vec![peer(
            &twins.servers[0],
            addrs,
            Duration::from_millis(1),
        )])
    };
    twins.table.send_replace(only(&addrs[..1]));
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 5).await;
    twins.table.send_replace(only(&addrs));
    twins.path.cut();
    got.whole(generation, &twins.engines[0]).await;
    assert_eq!(
        twins.engines[0].seen().asked,
        1,
        "nothing was computed again"
    );
    twins.shutdown().await;
}

#[tokio::test]
async fn a_cancel_reaches_every_engine() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 5).await;
    drop(generation);
    timeout(PATIENCE, twins.engines[0].until(|seen| seen.dropped == 1))
        .await
        .expect("stopped");
    assert_eq!(twins.engines[1].seen().asked, 0);
    twins.shutdown().await;
}
