//! What happens can be watched: `unamesh events` beside an answer whose machine is frozen, and
//! `unamesh status` afterwards.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use rustix::process::Signal;
use serde_json::Value;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use unamesh_tests::agent::program;
use unamesh_tests::cluster::{Agent, Cluster, Generation, MEET, Setup};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;

/// `unamesh events` of one agent.
struct Watching {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    fn start(agent: &Agent, json: bool) -> Self {
        let mut command = Command::new(program());
        command
            .arg("--state")
            .arg(&agent.state)
            .arg("events")
            .args(json.then_some("--json"))
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watching { child, lines }
    }

    /// Lines up to the first that has `wanted`, that one included.
    async fn until(&mut self, wanted: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let line = match timeout(MEET, self.lines.next_line()).await {
                Ok(Ok(Some(line))) => line,
                other => panic!("no {wanted:?}: {other:?} after {seen:#?}"),
            };
            let found = line.contains(wanted);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }

    /// Ctrl-C.
    async fn end(mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().try_into().unwrap());
        rustix::process::kill_process(pid.unwrap(), Signal::INT).unwrap();
        let status = timeout(MEET, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn a_frozen_machine_is_seen_suspected_and_replaced() {
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
    let desk = &cluster.agents[0];
    let (mut json, mut text) = (Watching::start(desk, true), Watching::start(desk, false));
    // Both listen once something that is caused here, again and again, reaches them.
    let causing = async {
        loop {
            desk.run(&["invite"]).await.unwrap();
        }
    };
    tokio::select! {
        seen = async { tokio::join!(json.until("invited"), text.until("invited")) } => drop(seen),
        () = causing => {}
    }

    let mut generation = Generation::start(desk, &script.model, "Count.").await;
    let (mut tokens, mut answering) = (0, 0);
    while let Some(event) = generation.next().await {
        match event["event"].as_str().unwrap() {
            "started" => answering = cluster.index_of(event["peer"]["node"].as_str().unwrap()),
            "token" => {
                tokens += 1;
                if tokens == 20 {
                    cluster.agents[answering].signal(Signal::STOP);
                }
            }
            "failed" => panic!("{event}"),
            _ => {}
        }
    }
    let (seen_json, seen_text) =
        tokio::join!(json.until("peer_changed"), text.until("peer_changed"));
    println!("{}\n{}", seen_json.join("\n"), seen_text.join("\n"));
    let events: Vec<Value> = seen_json
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |name: &str| events.iter().find(|e| e["event"] == name).cloned();
    let (suspect, backup) = (of("suspect").unwrap(), of("backup").unwrap());
    let (changed, breaker) = (of("peer_changed").unwrap(), of("breaker").unwrap());
    assert_eq!(suspect["cause"], "silence");
    assert_eq!(suspect["request"], changed["request"]);
    assert_eq!(backup["peer"], changed["to"]);
    assert_eq!(suspect["peer"], changed["from"]);
    assert_eq!(breaker["state"], "open");

    let status = desk.run(&["status"]).await.unwrap();
    assert_eq!(status["breakers"][0]["name"], changed["from"]["name"]);
    assert_eq!(status["hedges"]["started"], 1, "{}", status["hedges"]);
    assert_eq!(status["hedges"]["in_vain"], 0, "{}", status["hedges"]);
    cluster.agents[answering].signal(Signal::CONT);
    json.end().await;
    text.end().await;
}
