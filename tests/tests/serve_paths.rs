//! Bad paths to the agent that answers, without root: the same impairments as in the network
//! lab, through the path's double. Whatever the path does, the answer is whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use serve_support::peers::{peer, table};
use serve_support::twins::{Got, Twins, script};
use std::time::{Duration, Instant};
use unamesh_tests::doubles::Script;
use unamesh_tests::impair::{CABLE, Impairment, LOSSY, NARROW, Trace, WIFI, Way};

/// One whole answer, while the better path is so.
async fn answer(twins: &Twins) -> Got {
    Got::default().whole(twins.ask(), &twins.engines[0]).await
}

#[tokio::test]
async fn wifi_keeps_every_token() {
    let twins = Twins::start().await;
    // Sixty times as many stalls: in six answers there are two or three long ones.
    twins.path.impair(Way::Both, WIFI.compressed(60));
    let mut changes = 0;
    for _ in 0..6 {
        changes += answer(&twins).await.changes.len();
    }
    println!("Wi-Fi: 6 whole answers, {changes} changes of the peer");
    twins.shutdown().await;
}

#[tokio::test]
async fn a_short_stall_moves_nobody() {
    let twins = Twins::start().await;
    let stall = Impairment {
        stalls: Some(Trace {
            stalls: &[(100, 80)],
            period: 300,
            compress: 1,
            shift: 0,
        }),
        ..CABLE
    };
    twins.path.impair(Way::Both, stall);
    let got = answer(&twins).await;
    assert!(got.changes.is_empty(), "{:?}", got.changes);
    twins.shutdown().await;
}

#[tokio::test]
async fn burst_loss_and_a_long_way_keep_every_token() {
    let twins = Twins::start().await;
    twins.path.impair(Way::Both, LOSSY);
    let mut changes = 0;
    for _ in 0..3 {
        changes += answer(&twins).await.changes.len();
    }
    println!("3 % loss, 25 ms: 3 whole answers, {changes} changes of the peer");
    twins.shutdown().await;
}

#[tokio::test]
async fn a_narrow_path_is_used_as_far_as_it_goes() {
    let twins = Twins::start().await;
    let fast = Script {
        tokens: 5000,
        delay: Duration::ZERO,
        first_delay: Duration::ZERO,
        ..script()
    };
    for engine in &twins.engines {
        engine.change(|script| *script = fast.clone());
    }
    let only = peer(
        &twins.servers[0],
        &[twins.path.addr],
        Duration::from_millis(1),
    );
    twins.table.send_replace(table(vec![only]));
    twins.path.impair(Way::Both, NARROW);
    let begun = Instant::now();
    let got = answer(&twins).await;
    let rate = f64::from(got.frames) / begun.elapsed().as_secs_f64();
    println!(
        "1 Mbit/s: {rate:.0} tokens a second, changes: {:?}",
        got.changes
    );
    twins.shutdown().await;
}

#[tokio::test]
async fn a_path_that_goes_dead_one_way_is_left() {
    for way in [Way::Out, Way::In] {
        let twins = Twins::start().await;
        let mut generation = twins.ask();
        let mut got = Got::default();
        got.read(&mut generation, 20).await;
        twins.path.blackhole(way, true);
        let begun = Instant::now();
        let got = got.whole(generation, &twins.engines[0]).await;
        println!("dead {way:?}: the rest took {:?}", begun.elapsed());
        // What the client sends may be missed for a while; what it does not get may not.
        assert!(
            way == Way::Out || got.changes.len() == 1,
            "{:?}",
            got.changes
        );
        twins.shutdown().await;
    }
}

#[tokio::test]
async fn a_path_that_comes_back_in_time_is_kept() {
    let twins = Twins::start().await;
    let mut generation = twins.ask();
    let mut got = Got::default();
    got.read(&mut generation, 20).await;
    twins.path.cut();
    tokio::time::sleep(Duration::from_millis(60)).await;
    twins.path.mend();
    let got = got.whole(generation, &twins.engines[0]).await;
    println!("60 ms of nothing: changes {:?}", got.changes);
    twins.shutdown().await;
}
