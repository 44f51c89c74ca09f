//! A peer that falls silent, on real agents: killed, frozen or out of everybody's reach it is
//! evicted within three seconds, since another confirms it; out of one's own reach alone it is
//! not; and who is cut off itself evicts nobody.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::Value;
use std::time::Duration;
use unamesh_client::clock;
use unamesh_proto::Wall;
use unamesh_proto::timeouts::{TABLE_CUT_OFF, TABLE_DOWN, TABLE_DOWN_ALONE, TABLE_SUSPECT};
use unamesh_tests::cluster::{MEET, ranked};
use unamesh_tests::home::{Home, Watch};
use unamesh_tests::measure::{Samples, until};

/// From the fault until the peer is down everywhere.
const EVICTED: Duration = Duration::from_secs(3);
/// A loaded machine is late by this at most.
const LATE: Duration = Duration::from_millis(500);
const ROUNDS: usize = 3;

/// What `watch` was told of `event` (about `node`, if that is not empty) since `since`, and how
/// long after.
fn told(watch: &Watch, since: Wall, event: &str, node: &str) -> Vec<(Duration, Value)> {
    let at = |e: &Value| Wall::from_millis(e["at_ms"].as_u64().unwrap());
    let mut events = watch.events();
    events.retain(|e| {
        at(e) >= since && e["event"] == event && (node.is_empty() || e["node"] == node)
    });
    let timed = events.into_iter().map(|e| (at(&e).abs_diff(since), e));
    timed.collect()
}

/// The first of it, awaited.
async fn first(watch: &Watch, since: Wall, event: &str, node: &str) -> (Duration, Value) {
    let (found, _) = until(event, MEET, async || {
        let first = told(watch, since, event, node).into_iter().next();
        first.ok_or_else(|| format!("{:?}", watch.events()))
    })
    .await;
    found
}

fn millis(value: &Value) -> Duration {
    Duration::from_millis(value.as_u64().unwrap())
}

/// All `watches` take `node` for gone, and say why; when.
async fn evicted(watches: &[Watch], since: Wall, node: &str, times: &mut Samples) {
    for watch in watches {
        let (took, event) = first(watch, since, "peer_down", node).await;
        times.push(took);
        assert_eq!(event["cause"], "confirmed", "{event}");
        assert!(!event["confirmed_by"].as_array().unwrap().is_empty());
        assert!(millis(&event["silent_ms"]) >= TABLE_DOWN, "{event}");
        // A peer that has just restarted may have been suspected before it was struck.
        let suspected = told(watch, Wall::from_millis(0), "peer_suspect", node);
        let (_, suspect) = suspected.last().unwrap();
        assert!(millis(&suspect["silent_ms"]) <= TABLE_SUSPECT + LATE);
    }
}

async fn watches(home: &Home, hosts: &[usize]) -> Vec<Watch> {
    let mut all = Vec::new();
    for host in hosts {
        all.push(home.watch(*host).await);
    }
    all
}

#[tokio::test]
async fn a_killed_or_frozen_peer_is_evicted_within_three_seconds() {
    let mut home = Home::here(4).start().await.unwrap();
    let others = watches(&home, &[0, 1, 2]).await;
    let victim = home.agent(3).node().to_owned();
    let (mut killed, mut frozen) = (Samples::default(), Samples::default());
    let mut back = Samples::default();
    for _ in 0..ROUNDS {
        let since = clock::wall();
        home.freeze(3);
        evicted(&others, since, &victim, &mut frozen).await;
        let thawed = clock::wall();
        home.thaw(3);
        for watch in &others {
            let (took, event) = first(watch, thawed, "peer_back", &victim).await;
            assert!(millis(&event["after_ms"]) >= TABLE_DOWN, "{event}");
            back.push(took);
        }
        home.whole().await;

        let since = clock::wall();
        home.kill(3);
        evicted(&others, since, &victim, &mut killed).await;
        home.restart(3).await;
        home.whole().await;
    }
    println!("SIGKILL -> down: {killed}");
    println!("SIGSTOP -> down: {frozen}");
    println!("SIGCONT -> back: {back}");
    for times in [killed, frozen] {
        assert!(times.percentile(1.0) <= EVICTED, "{times}");
    }
}

#[tokio::test]
async fn without_a_third_silence_alone_decides() {
    let home = Home::here(2).start().await.unwrap();
    let watch = home.watch(0).await;
    let since = clock::wall();
    home.kill(1);
    let (took, event) = first(&watch, since, "peer_down", home.agent(1).node()).await;
    println!("SIGKILL -> down, with nobody to ask: {took:?}: {event}");
    assert_eq!(event["cause"], "nobody_to_ask");
    assert!(took <= TABLE_DOWN_ALONE + LATE, "{took:?}");
    assert!(millis(&event["silent_ms"]) >= TABLE_DOWN_ALONE);
}

#[tokio::test]
async fn a_peer_whose_cable_is_cut_is_evicted_within_three_seconds() {
    let Some(home) = Home::lab(3).start().await else {
        return;
    };
    let others = watches(&home, &[0, 1]).await;
    let mut times = Samples::default();
    for _ in 0..ROUNDS {
        let since = clock::wall();
        home.cut(2);
        evicted(&others, since, home.agent(2).node(), &mut times).await;
        home.mend(2);
        home.whole().await;
    }
    println!("cable cut -> down: {times}");
    assert!(times.percentile(1.0) <= EVICTED, "{times}");
}

#[tokio::test]
async fn a_peer_that_another_still_reaches_stays() {
    const CUT: Duration = Duration::from_secs(15);
    let Some(home) = Home::lab(3).start().await else {
        return;
    };
    let all = watches(&home, &[0, 1, 2]).await;
    let [desk, laptop, tower] = [0, 1, 2].map(|host| home.agent(host).node());
    let since = clock::wall();
    home.partition(&[&[0], &[1]]);
    for (host, of) in [(0, laptop), (1, desk)] {
        let (took, event) = first(&all[host], since, "peer_vouched", of).await;
        println!("cut between two -> vouched for: {took:?}: {event}");
        assert_eq!(event["by"]["name"], "tower");
        assert!(took <= EVICTED, "{took:?}");
    }
    while clock::wall().abs_diff(since) < CUT {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let order = ranked(home.agent(0), &home.script.model).await.unwrap();
        assert_eq!(order, [tower, laptop], "ranked, and last");
        for other in [0, 1] {
            assert_eq!(home.liveness(2, other).await.unwrap(), "alive");
        }
    }
    for watch in &all {
        for event in ["peer_down", "cut_off"] {
            assert_eq!(told(watch, since, event, ""), [], "nobody went");
        }
    }
    let healed = clock::wall();
    home.heal();
    let (took, event) = first(&all[0], healed, "peer_back", laptop).await;
    println!("healed -> back: {took:?}: {event}");
    assert!(millis(&event["after_ms"]) >= CUT - EVICTED, "{event}");
}

#[tokio::test]
async fn who_is_cut_off_itself_evicts_nobody() {
    let Some(home) = Home::lab(3).start().await else {
        return;
    };
    let watch = home.watch(0).await;
    let since = clock::wall();
    home.cut(0);
    let (took, event) = first(&watch, since, "cut_off", "").await;
    println!("own cable cut -> cut_off: {took:?}: {event}");
    assert_eq!(event["peers"], 2);
    assert!(took <= EVICTED, "{took:?}");
    // Until shortly before the end of the patience.
    tokio::time::sleep(TABLE_CUT_OFF - EVICTED).await;
    assert_eq!(told(&watch, since, "peer_down", ""), []);
    let mended = clock::wall();
    home.mend(0);
    let (took, event) = first(&watch, mended, "online", "").await;
    println!("mended -> online: {took:?}: {event}");
    assert!(millis(&event["after_ms"]) >= TABLE_CUT_OFF - EVICTED);
    home.whole().await;
    assert_eq!(told(&watch, since, "peer_down", ""), []);
}
