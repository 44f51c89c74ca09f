//! The fire drill: on a mesh of its own, and on one that is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::{Value, json};
use std::time::Duration;
use unamesh_tests::cluster::{Cluster, Generation, Setup, turn};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::http::Net;

const CASES: [&str; 5] = ["kill", "freeze", "cut", "hang", "drain"];
/// Of the bars, which are those of an optimized program.
const TOLERANCE: [&str; 2] = if cfg!(debug_assertions) {
    ["--tolerance", "5"]
} else {
    ["--tolerance", "1"]
};

#[tokio::test]
async fn on_a_mesh_of_its_own_nothing_is_lost_and_the_report_has_its_shape() {
    let _turn = turn().await;
    let arguments = ["drill", "--local", "--trials", "2", "--json"];
    let arguments = [&arguments[..], &TOLERANCE].concat();
    let output = unamesh_tests::agent::run(&Net::Host, &arguments).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    // The status is the verdict: a missed bar (a hung engine within 1 s, the mesh's share within
    // 30 ms, ...) is an error.
    assert!(output.status.success(), "{}: {errors}", output.status);
    assert_eq!(errors, "", "with --json nothing but the report");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["trials"], 2);
    assert_eq!(report["cases"].as_object().unwrap().len(), CASES.len());
    for case in CASES {
        let shown = &report["cases"][case];
        assert_eq!(shown["meets_bar"], true, "{case}: {shown}");
        for key in ["tokens_lost", "tokens_doubled", "failed", "unnoticed"] {
            assert_eq!(shown[key], 0, "{case} {key}: {shown}");
        }
        for key in ["p50", "p95", "max"] {
            assert!(shown["gap_ms"][key].is_f64(), "{case} {key}: {shown}");
        }
        for key in ["p50", "p95"] {
            assert!(shown["backup_ttft_ms"][key].is_f64(), "{case}: {shown}");
            assert!(shown["mesh_share_ms"][key].is_f64(), "{case}: {shown}");
        }
        let seams = |kind: &str| shown["seams"][kind].as_u64().unwrap();
        assert_eq!(seams("exact") + seams("continued"), 2, "{case}: {shown}");
        assert_eq!(shown["identical"], 2, "{case}: {shown}");
    }
}

#[tokio::test]
async fn a_missed_bar_is_an_error_of_the_benchmark() {
    let _turn = turn().await;
    // One short answer: noticing that its peer is frozen takes a good part of its time again.
    let bench = ["bench", "frozen", "--requests", "1", "--tokens", "16"];
    let output = unamesh_tests::agent::run(&Net::Host, &bench).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the bar is 1.15"), "{errors}");
    let tolerant = [&bench[..], &["--tolerance", "100"]].concat();
    let output = unamesh_tests::agent::run(&Net::Host, &tolerant).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
}

/// A desk without an engine, and two machines in front of one engine each.
async fn mesh(script: &Script) -> (Cluster, [ScriptEngine; 2]) {
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
    (cluster, engines)
}

/// Asks the desk, and returns the whole text.
async fn answer(cluster: &Cluster, script: &Script) -> String {
    let mut generation = Generation::start(&cluster.agents[0], &script.model, "Count.").await;
    let mut text = String::new();
    while let Some(event) = generation.next().await {
        assert_ne!(event["event"], "failed", "{event}");
        text.push_str(event["text"].as_str().unwrap_or_default());
    }
    text
}

#[tokio::test]
async fn on_the_real_mesh_it_takes_two_yeses_and_leaves_nothing_behind() {
    let script = Script {
        tokens: 60,
        pace: Duration::from_millis(20),
        ..Script::default()
    };
    let (mut cluster, _engines) = mesh(&script).await;
    let whole = answer(&cluster, &script).await;

    // Nobody can be asked here: it says what to type.
    let refused = cluster.agents[0].run(&["drill"]).await.unwrap_err();
    assert!(
        refused.contains("laptop") && refused.contains("drill --yes"),
        "{refused}"
    );
    // The owner of a machine has to allow it.
    let ask = json!({"node": "laptop", "fault": "freeze", "for_ms": 500});
    let gateway = cluster.agents[0].gateway();
    let refused = gateway
        .json("/unamesh/v1/drill", Some(&ask))
        .await
        .unwrap_err();
    assert!(refused.contains("drill = true under [serve]"), "{refused}");
    assert_eq!(answer(&cluster, &script).await, whole);

    for index in [1, 2] {
        let agent = &mut cluster.agents[index];
        agent.terminate().await;
        agent.set(&[("serve.drill", "true")]);
        agent.start().await;
    }
    cluster.met().await;
    cluster.chooses(0, &script.model, &[1, 2]).await;
    // Only administrators may ask, and only for so long.
    let of_laptop = json!({"node": "tower", "fault": "freeze", "for_ms": 500});
    let gateway = cluster.agents[1].gateway();
    let refused = gateway
        .json("/unamesh/v1/drill", Some(&of_laptop))
        .await
        .unwrap_err();
    assert!(refused.contains("role agent"), "{refused}");
    let gateway = cluster.agents[0].gateway();
    let long = json!({"node": "laptop", "fault": "freeze", "for_ms": 60_000});
    let refused = gateway
        .json("/unamesh/v1/drill", Some(&long))
        .await
        .unwrap_err();
    assert!(refused.contains("10000 ms"), "{refused}");

    let drill = [&["drill", "--yes", "--trials", "1"][..], &TOLERANCE].concat();
    let report = cluster.agents[0].run(&drill).await.unwrap();
    for case in CASES {
        let shown = &report["cases"][case];
        assert_eq!(
            (&shown["struck"], &shown["moved"]),
            (&json!(1), &json!(1)),
            "{case}: {shown}"
        );
        for key in ["tokens_lost", "tokens_doubled", "failed"] {
            assert_eq!(shown[key], 0, "{case} {key}: {shown}");
        }
    }
    // And then all is as before.
    cluster.met().await;
    cluster.chooses(0, &script.model, &[1, 2]).await;
    assert_eq!(answer(&cluster, &script).await, whole);
}

/// Whoever asks may have an engine of its own, which ranks first.
#[tokio::test]
async fn a_machine_that_ranks_behind_the_asking_one_is_drilled_all_the_same() {
    let script = Script {
        tokens: 60,
        pace: Duration::from_millis(20),
        ..Script::default()
    };
    let engines = [
        ScriptEngine::start(script.clone()).await,
        ScriptEngine::start(script.clone()).await,
    ];
    let mut cluster = Cluster::start(vec![
        Setup::new("desk").engine(engines[0].addr),
        Setup::new("tower").engine(engines[1].addr),
    ])
    .await;
    let tower = &mut cluster.agents[1];
    tower.terminate().await;
    tower.set(&[("serve.drill", "true")]);
    tower.start().await;
    cluster.met().await;
    cluster.chooses(0, &script.model, &[0, 1]).await;

    let drill = ["drill", "--yes", "--trials", "1", "--case", "freeze,drain"];
    let drill = [&drill[..], &["--peer", "tower"], &TOLERANCE].concat();
    let report = cluster.agents[0].run(&drill).await.unwrap();
    for case in ["freeze", "drain"] {
        let shown = &report["cases"][case];
        let played = (&shown["struck"], &shown["hit"], &shown["failed"]);
        assert_eq!(played, (&json!(1), &json!(1), &json!(0)), "{case}: {shown}");
    }
    let refused = cluster.agents[1].run(&drill).await.unwrap_err();
    assert!(
        refused.contains("role agent") && refused.contains("only an admin"),
        "{refused}"
    );
}
