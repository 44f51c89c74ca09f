//! The answer outlives its machine: twenty kills and twenty freezes of the agent that answers,
//! at different points of the answer, on real processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use rustix::process::Signal;
use std::time::{Duration, Instant};
use unamesh_tests::cluster::{Cluster, Generation, Setup};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::measure::Samples;

const ROUNDS: usize = 20;
/// From the last token of the dead peer to the first of the next, beyond the backup's own time
/// to first token (p95).
const GAP: Duration = Duration::from_millis(250);
/// From the freeze to the first token of the backup, of which its dispatch is a part (p95).
const FREEZE: Duration = Duration::from_millis(400);

/// A desk without an engine, and two machines in front of one engine each.
struct Mesh {
    cluster: Cluster,
    script: Script,
    _engines: [ScriptEngine; 2],
}

impl Mesh {
    async fn start() -> Self {
        let script = Script {
            tokens: 80,
            ..Script::default()
        };
        let engines = [
            ScriptEngine::start(script.clone()).await,
            ScriptEngine::start(script.clone()).await,
        ];
        let cluster = Cluster::start(vec![
            Setup::new("desk"),
            Setup::new("laptop").engine(engines[0].addr),
            Setup::new("tower").engine(engines[1].addr),
        ])
        .await;
        cluster.chooses(0, &script.model, &[1, 2]).await;
        Self {
            cluster,
            script,
            _engines: engines,
        }
    }
}

/// What a client saw of one answer.
#[derive(Default)]
struct Told {
    text: String,
    next_index: u64,
    ends: Vec<String>,
    changes: Vec<serde_json::Value>,
    /// From the moment of the fault to the next token.
    after_fault: Option<Duration>,
    /// From the last token before the fault to the next one.
    gap: Option<Duration>,
}

/// Asks the desk, does `fault` to the agent that answers after `tokens` tokens, and reads on.
async fn interrupted(
    mesh: &mut Mesh,
    tokens: u64,
    fault: impl AsyncFnOnce(&mut Cluster, usize),
) -> (Told, usize) {
    let desk = &mesh.cluster.agents[0];
    let mut generation = Generation::start(desk, &mesh.script.model, "Count.").await;
    let (mut told, mut answering, mut fault) = (Told::default(), None, Some(fault));
    let (mut last_token, mut done_at, mut victim) = (None, None, None);
    while let Some(event) = generation.next().await {
        match event["event"].as_str().unwrap() {
            "started" => {
                answering = Some(
                    mesh.cluster
                        .index_of(event["peer"]["node"].as_str().unwrap()),
                );
            }
            "token" => {
                assert_eq!(
                    event["index"], told.next_index,
                    "tokens in order, none twice"
                );
                told.next_index += event["tokens"].as_u64().unwrap();
                told.text.push_str(event["text"].as_str().unwrap());
                if let (Some(at), None) = (done_at, told.after_fault) {
                    // Tokens that were on their way when the fault came do not count.
                    if !told.changes.is_empty() {
                        told.after_fault = Some(Instant::now() - at);
                        told.gap = last_token.map(|last| Instant::now() - last);
                    }
                }
                last_token = Some(Instant::now());
                if told.next_index >= tokens
                    && let Some(fault) = fault.take()
                {
                    done_at = Some(Instant::now());
                    victim = answering;
                    fault(&mut mesh.cluster, answering.unwrap()).await;
                }
            }
            "peer_changed" => {
                answering = Some(mesh.cluster.index_of(event["to"]["node"].as_str().unwrap()));
                // On a busy machine one may come before the fault.
                if done_at.is_some() {
                    told.changes.push(event);
                }
            }
            end @ ("done" | "failed") => told.ends.push(format!("{end}: {event}")),
            _ => {}
        }
    }
    (told, victim.unwrap())
}

/// Nothing lost, nothing doubled, one end, and another machine went on.
fn check(told: &Told, script: &Script, round: usize) {
    assert_eq!(told.text, script.answer(), "round {round}: {:?}", told.ends);
    assert_eq!(
        told.ends.len(),
        1,
        "round {round}: one terminal event: {:?}",
        told.ends
    );
    assert!(
        told.ends[0].starts_with("done"),
        "round {round}: {:?}",
        told.ends
    );
    assert!(!told.changes.is_empty(), "round {round}: who went on?");
}

#[tokio::test]
async fn twenty_kills_lose_nothing() {
    let mut mesh = Mesh::start().await;
    let (mut gaps, mut beyond) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let tokens = 1 + 3 * round as u64;
        let (told, victim) = interrupted(&mut mesh, tokens, async |cluster, victim| {
            cluster.agents[victim].kill().await;
        })
        .await;
        check(&told, &mesh.script, round);
        let gap = told.gap.unwrap();
        let ttft = told.changes[0]["backup_ttft_ms"].as_f64().unwrap();
        gaps.push(gap);
        beyond.push(gap.saturating_sub(Duration::from_secs_f64(ttft / 1e3)));
        mesh.cluster.agents[victim].start().await;
        mesh.cluster.chooses(0, &mesh.script.model, &[1, 2]).await;
    }
    println!("SIGKILL: gap between tokens: {gaps}");
    println!("SIGKILL: beyond the backup's own time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= GAP, "{beyond}");
}

#[tokio::test]
async fn twenty_freezes_lose_nothing() {
    let mut mesh = Mesh::start().await;
    let mut dispatched = Samples::default();
    for round in 0..ROUNDS {
        let tokens = 1 + 3 * round as u64;
        let (told, victim) = interrupted(&mut mesh, tokens, async |cluster, victim| {
            cluster.agents[victim].signal(Signal::STOP);
        })
        .await;
        check(&told, &mesh.script, round);
        dispatched.push(told.after_fault.unwrap());
        mesh.cluster.agents[victim].signal(Signal::CONT);
        mesh.cluster.chooses(0, &mesh.script.model, &[1, 2]).await;
    }
    println!("SIGSTOP: until the first token of the backup: {dispatched}");
    assert!(dispatched.percentile(0.95) <= FREEZE, "{dispatched}");
}

#[tokio::test]
async fn a_planned_leave_loses_nothing() {
    let mut mesh = Mesh::start().await;
    let (told, victim) = interrupted(&mut mesh, 20, async |cluster, victim| {
        cluster.agents[victim].signal(Signal::TERM);
    })
    .await;
    assert_eq!(told.text, mesh.script.answer(), "{:?}", told.ends);
    assert_eq!(told.ends.len(), 1);
    println!("SIGTERM: gap between tokens: {:?}", told.gap);
    let status = mesh.cluster.agents[victim].ended().await;
    assert!(
        status.success(),
        "{status}: {}",
        mesh.cluster.agents[victim].log()
    );
}
