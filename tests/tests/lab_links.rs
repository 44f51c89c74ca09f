//! Bad links in the lab: every token arrives once and in order, nobody is evicted, and the
//! answer rarely moves.

#![allow(clippy::unwrap_used, reason = "test code")]

use futures_util::future::join_all;
use std::time::{Duration, Instant};
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::home::{Answer, Home, Watch};
use unamesh_tests::impair::{Impairment, LOSSY, NARROW, WIFI};

/// The Wi-Fi trace of ten minutes in forty seconds: a stall stays as long as it is.
const COMPRESS: u64 = 15;
const WIFI_RUN: Duration = Duration::from_secs(40);

fn report(what: &str, answers: &[Answer]) {
    let changes: usize = answers.iter().map(|answer| answer.changes.len()).sum();
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    let longest = answers.iter().map(|a| a.pauses().percentile(1.0)).max();
    println!(
        "{what}: {} whole answers, {tokens} tokens, {changes} changes of the peer, \
         longest pause {longest:?}",
        answers.len()
    );
}

/// Whole answers, one after another, as long as `time`.
async fn ask_for(home: &Home, host: usize, time: Duration) -> Vec<Answer> {
    let (begun, mut answers) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let answer = home.ask(host).await;
        answer.is_whole();
        answers.push(answer);
    }
    answers
}

#[tokio::test]
async fn wifi_stalls_evict_nobody() {
    let script = Script {
        tokens: 150,
        ..Script::default()
    };
    let wifi = |minute: u64| WIFI.compressed(COMPRESS).shifted(minute * 60_000);
    // A wired desk asks two machines on Wi-Fi, and an attic on Wi-Fi asks them too.
    let home = Home::lab(4)
        .engines(&[1, 2])
        .script(script)
        .link(1, wifi(0))
        .link(2, wifi(3))
        .link(3, wifi(6));
    let Some(home) = home.start().await else {
        return;
    };
    let watches = join_all((0..4).map(|host| home.watch(host))).await;
    let (desk, attic) = tokio::join!(ask_for(&home, 0, WIFI_RUN), ask_for(&home, 3, WIFI_RUN));
    report("Wi-Fi peers, wired caller", &desk);
    report("Wi-Fi peers, Wi-Fi caller", &attic);
    let count = |event: &str| watches.iter().map(|w| w.count(event)).sum::<usize>();
    println!(
        "three links, 36 stalls over 200 ms: suspect {}, down {}, cut off {}",
        count("peer_suspect"),
        count("peer_down"),
        count("cut_off"),
    );
    assert_eq!(
        count("peer_down"),
        0,
        "{:?}",
        watches.iter().map(Watch::events).collect::<Vec<_>>()
    );
}

/// Some answers at the pace of an engine, then one as fast as the link carries it.
async fn over(what: &str, link: Impairment) {
    let Some(mut home) = Home::lab(3).link(0, link).start().await else {
        return;
    };
    let paced = ask_for(&home, 0, Duration::from_secs(3)).await;
    report(what, &paced);
    let sixteen = join_all((0..16).map(|_| home.ask(0).into_future())).await;
    sixteen.iter().for_each(Answer::is_whole);
    report(&format!("{what}, 16 at once"), &sixteen);

    home.play(Script {
        tokens: 3000,
        pace: Duration::ZERO,
        ..Script::default()
    });
    let answer = home.ask(0).await;
    answer.is_whole();
    let rate = answer.tokens as f64 / answer.took().unwrap().as_secs_f64();
    println!(
        "{what}: {rate:.0} tokens a second at most, {} changes",
        answer.changes.len()
    );
}

#[tokio::test]
async fn burst_loss_on_a_long_way() {
    over("3 % loss, 25 ms +- 5 ms each way", LOSSY).await;
}

#[tokio::test]
async fn one_megabit() {
    over("1 Mbit/s", NARROW).await;
}
