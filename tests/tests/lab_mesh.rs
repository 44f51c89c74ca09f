//! Three machines on one switch (network namespaces), found by multicast DNS: how fast one that
//! starts is used, how fast one that leaves is not, and a cable that is pulled mid-answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};
use unamesh_tests::cluster::{Agent, Cluster, Generation, MEET, Setup, ranked};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::lab::Lab;
use unamesh_tests::measure::{Samples, until};

const ROUNDS: usize = 20;
/// From the start of a process until the first machine got an answer from it (p95).
const START: Duration = Duration::from_millis(500);
/// From SIGTERM until the first machine would not choose it any more (p95).
const LEAVE: Duration = Duration::from_millis(100);

/// A desk without an engine and two machines with one; the fields drop in this order.
struct Mesh {
    cluster: Cluster,
    _engines: Vec<ScriptEngine>,
    lab: Lab,
}

/// Laptop and tower have the models of `scripts`.
async fn mesh(scripts: [Script; 2]) -> Option<Mesh> {
    let lab = Lab::new(3)?;
    let setup = |name: &str, host| Setup {
        net: lab.net(host),
        mdns: true,
        ..Setup::new(name)
    };
    let (mut setups, mut engines) = (vec![setup("desk", 0)], Vec::new());
    for (index, script) in scripts.into_iter().enumerate() {
        let host = index + 1;
        let engine = ScriptEngine::serve(lab.net(host).listen().await.unwrap(), script);
        setups.push(setup(["laptop", "tower"][index], host).engine(engine.addr));
        engines.push(engine);
    }
    Some(Mesh {
        cluster: Cluster::start(setups).await,
        _engines: engines,
        lab,
    })
}

fn script(model: &str) -> Script {
    Script {
        model: model.into(),
        tokens: 4,
        pace: Duration::ZERO,
    }
}

/// Whether `agent` gets a whole answer of `model`.
async fn answers(agent: &Agent, model: &str) -> Result<(), String> {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Count."}]});
    let answer = agent
        .gateway()
        .json("/v1/chat/completions", Some(&body))
        .await?;
    let text = &answer["choices"][0]["message"]["content"];
    if *text == script(model).answer() {
        Ok(())
    } else {
        Err(format!("answered {text}"))
    }
}

#[tokio::test]
async fn a_machine_that_starts_is_used_at_once_and_one_that_leaves_never() {
    let Some(mut mesh) = mesh([script("laptop-model"), script("tower-model")]).await else {
        return;
    };
    let (desk, rest) = mesh.cluster.agents.split_at_mut(1);
    let (desk, tower) = (&desk[0], &mut rest[1]);
    let (mut used, mut up, mut left) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let asked = Instant::now();
        tower.signal(Signal::TERM);
        until("desk forgets the tower", MEET, async || {
            match ranked(desk, "tower-model").await? {
                found if found.is_empty() => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await;
        left.push(asked.elapsed());
        tower.ended().await;

        let started = Instant::now();
        tower.spawn();
        up.push(tower.ready().await);
        until("desk uses the tower", MEET, async || {
            answers(desk, "tower-model").await
        })
        .await;
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
    let Some(mut mesh) = mesh([script("one"), script("two")]).await else {
        return;
    };
    // After this every port is another one, so that no remembered address helps.
    for agent in &mut mesh.cluster.agents {
        agent.kill().await;
    }
    let started = Instant::now();
    for agent in &mut mesh.cluster.agents {
        agent.spawn();
    }
    for agent in &mut mesh.cluster.agents {
        agent.ready().await;
    }
    mesh.cluster.met().await;
    println!(
        "three agents know each other {:?} after their start",
        started.elapsed()
    );
    for model in ["one", "two"] {
        until(model, MEET, async || {
            answers(&mesh.cluster.agents[0], model).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_pulled_cable_loses_nothing() {
    let script = Script {
        tokens: 100,
        ..Script::default()
    };
    let Some(mesh) = mesh([script.clone(), script.clone()]).await else {
        return;
    };
    mesh.cluster.chooses(0, &script.model, &[1, 2]).await;
    let mut generation = Generation::start(&mesh.cluster.agents[0], &script.model, "Count.").await;
    let (mut text, mut changes, mut tokens) = (String::new(), 0, 0);
    let (mut answering, mut end) = (0, String::new());
    while let Some(event) = generation.next().await {
        match event["event"].as_str().unwrap() {
            "started" => {
                answering = mesh
                    .cluster
                    .index_of(event["peer"]["node"].as_str().unwrap());
            }
            "token" => {
                text.push_str(event["text"].as_str().unwrap());
                tokens += 1;
                if tokens == 30 {
                    mesh.lab.unplug(answering);
                }
            }
            "peer_changed" => changes += 1,
            other => end = format!("{other}: {event}"),
        }
    }
    assert_eq!(text, script.answer(), "{end}");
    assert_eq!(changes, 1);
    mesh.lab.plug(answering);
    mesh.cluster.chooses(0, &script.model, &[1, 2]).await;
}
