//! A home that falls apart and comes together again: each side goes on meanwhile, and nobody is
//! left over afterwards.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::{Duration, Instant};
use tokio::sync::Notify;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::home::Home;

/// Two sides know each other within this after they can talk again.
const HEALED: Duration = Duration::from_secs(5);
/// A router restarts for so long.
const OUTAGE: Duration = Duration::from_secs(5);
/// All is as before within this after it is back.
const BACK: Duration = Duration::from_secs(2);

async fn no_ghost(home: &Home, hosts: usize) {
    for host in 0..hosts {
        assert_eq!(home.listed(host).await, hosts, "host {host}");
    }
}

#[tokio::test]
async fn both_sides_of_a_partition_go_on() {
    let script = Script {
        tokens: 80,
        ..Script::default()
    };
    let Some(home) = Home::lab(3).script(script).start().await else {
        return;
    };
    // Whoever answers is alone on the other side.
    let mut lost = None;
    let answer = home
        .ask(0)
        .at_token(20, |peer| {
            lost = Some(peer);
            let rest: Vec<usize> = (0..3).filter(|host| *host != peer).collect();
            home.partition(&[&rest, &[peer]]);
        })
        .await;
    answer.is_whole();
    let (lost, begun) = (lost.unwrap(), Instant::now());
    println!(
        "partition: beyond the backup's time to first token: {:?}",
        answer.beyond_backup()
    );
    let kept = 3 - lost;
    home.until_listed(0, lost, "down").await;
    home.until_listed(kept, lost, "down").await;
    println!(
        "partition: the larger side gave the other up {:?} after the answer",
        begun.elapsed()
    );
    // Each side has an engine, and both answer; who is alone cannot know that the others live.
    home.ask(0).await.is_whole();
    home.ask(kept).await.is_whole();
    home.ask(lost).await.is_whole();

    home.heal();
    let healed = Instant::now();
    home.whole().await;
    println!("partition: healed after {:?}", healed.elapsed());
    assert!(healed.elapsed() <= HEALED, "{:?}", healed.elapsed());
    no_ghost(&home, 3).await;
    home.ask(0).await.is_whole();
}

#[tokio::test]
async fn a_router_restart_evicts_nobody() {
    let script = Script {
        tokens: 80,
        ..Script::default()
    };
    let Some(home) = Home::lab(3).script(script).start().await else {
        return;
    };
    let mut watches = Vec::new();
    for host in 0..3 {
        watches.push(home.watch(host).await);
    }
    let gone = Notify::new();
    let all = |act: fn(&Home, usize)| (0..3).for_each(|host| act(&home, host));
    let ask = home.ask(0).at_token(20, |_| {
        all(|home, host| home.cut(host));
        gone.notify_one();
    });
    let outage = async {
        gone.notified().await;
        tokio::time::sleep(OUTAGE).await;
        all(|home, host| home.mend(host));
        Instant::now()
    };
    let (answer, back) = tokio::join!(ask.into_future(), outage);
    answer.ended_well();
    println!(
        "router restart: the answer ended as {:?} with {} of 80 tokens",
        answer.end, answer.tokens
    );
    home.whole().await;
    let took = back.elapsed();
    for (host, watch) in watches.iter().enumerate() {
        let count = |event| watch.count(event);
        println!(
            "host {host}: suspect {}, down {}, cut off {}, online {}",
            count("peer_suspect"),
            count("peer_down"),
            count("cut_off"),
            count("online"),
        );
        assert_eq!(count("peer_down"), 0, "{:?}", watch.events());
    }
    println!("router restart: all is as before after {took:?}");
    assert!(took <= BACK, "{took:?}");
    no_ghost(&home, 3).await;
    home.ask(0).await.is_whole();
}
