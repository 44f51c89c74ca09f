//! Three machines on one switch (network namespaces), found by multicast DNS: how fast one that
//! starts is used, and how fast one that leaves is not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::time::{Duration, Instant};
use unamesh_tests::cluster::MEET;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::home::Home;
use unamesh_tests::measure::{Samples, until};

const ROUNDS: usize = 20;
/// From the start of a process until the first machine got an answer from it (p95).
const START: Duration = Duration::from_millis(500);
/// From SIGTERM until the first machine would not choose it any more (p95).
const LEAVE: Duration = Duration::from_millis(100);

/// A desk, a laptop, and a tower that alone has an engine.
async fn home() -> Option<Home> {
    let script = Script {
        tokens: 4,
        pace: Duration::ZERO,
        ..Script::default()
    };
    Home::lab(3).engines(&[2]).script(script).start().await
}

#[tokio::test]
async fn a_machine_that_starts_is_used_at_once_and_one_that_leaves_never() {
    let Some(mut home) = home().await else { return };
    let (mut used, mut up, mut left) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let asked = Instant::now();
        home.leave(2);
        home.cluster.chooses(0, &home.script.model, &[]).await;
        left.push(asked.elapsed());
        home.ended(2).await;

        let started = Instant::now();
        home.cluster.agents[2].spawn();
        up.push(home.cluster.agents[2].ready().await);
        until("desk uses the tower", MEET, async || home.answers(0).await).await;
        used.push(started.elapsed());
    }
    println!("start -> its own API answers:       {up}");
    println!("start -> desk has its first answer: {used}");
    println!("SIGTERM -> desk does not choose it: {left}");
    assert!(used.percentile(0.95) <= START, "{used}");
    assert!(left.percentile(0.95) <= LEAVE, "{left}");
}

#[tokio::test]
async fn machines_find_each_other_by_multicast_dns_alone() {
    let Some(mut home) = home().await else { return };
    // After this every port is another one, so that no remembered address helps.
    for agent in &mut home.cluster.agents {
        agent.kill().await;
    }
    let started = Instant::now();
    for agent in &mut home.cluster.agents {
        agent.spawn();
    }
    for agent in &mut home.cluster.agents {
        agent.ready().await;
    }
    home.cluster.met().await;
    println!(
        "three agents know each other {:?} after their start",
        started.elapsed()
    );
    until("the tower answers", MEET, async || home.answers(0).await).await;
}
