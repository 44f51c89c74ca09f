//! The answer outlives its machine: twenty kills and twenty freezes of the agent that answers,
//! at different points of the answer, on real processes.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::Duration;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::home::{Answer, Home};
use unamesh_tests::measure::Samples;

const ROUNDS: u64 = 20;
/// From the last token of the dead peer to the first of the next, beyond the backup's own time
/// to first token (p95).
const GAP: Duration = Duration::from_millis(250);
/// From the freeze to the first token of the backup, of which its dispatch is a part (p95).
const FREEZE: Duration = Duration::from_millis(400);

/// A desk without an engine, and two machines in front of one engine each.
async fn home() -> Home {
    let script = Script {
        tokens: 80,
        ..Script::default()
    };
    Home::here(3).script(script).start().await.unwrap()
}

/// Asks the desk and does `fault` to the agent that answers after `tokens` tokens. Nothing is
/// lost, nothing doubled, and another machine goes on.
async fn interrupted(home: &Home, tokens: u64, fault: fn(&Home, usize)) -> (Answer, usize) {
    let mut victim = None;
    let answer = home
        .ask(0)
        .at_token(tokens, |peer| {
            victim = Some(peer);
            fault(home, peer);
        })
        .await;
    answer.is_whole();
    (answer, victim.unwrap())
}

#[tokio::test]
async fn twenty_kills_lose_nothing() {
    let mut home = home().await;
    let (mut gaps, mut beyond) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let (answer, victim) = interrupted(&home, 1 + 3 * round, Home::kill).await;
        gaps.push(answer.gap().unwrap());
        beyond.push(answer.beyond_backup().unwrap());
        home.restart(victim).await;
        home.usable().await;
    }
    println!("SIGKILL: gap between tokens: {gaps}");
    println!("SIGKILL: beyond the backup's own time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= GAP, "{beyond}");
}

#[tokio::test]
async fn twenty_freezes_lose_nothing() {
    let home = home().await;
    let mut dispatched = Samples::default();
    for round in 0..ROUNDS {
        let (answer, victim) = interrupted(&home, 1 + 3 * round, Home::freeze).await;
        dispatched.push(answer.after_act().unwrap());
        home.thaw(victim);
        home.usable().await;
    }
    println!("SIGSTOP: until the first token of the backup: {dispatched}");
    assert!(dispatched.percentile(0.95) <= FREEZE, "{dispatched}");
}

#[tokio::test]
async fn a_planned_leave_loses_nothing() {
    let mut home = home().await;
    let (answer, victim) = interrupted(&home, 20, Home::leave).await;
    println!("SIGTERM: gap between tokens: {:?}", answer.gap());
    let status = home.ended(victim).await;
    assert!(status.success(), "{status}: {}", home.agent(victim).log());
}
