#![allow(clippy::unwrap_used)]

use super::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use unamesh_client::activity::RequestId;
use unamesh_client::client::PeerRef;
use unamesh_proto::NodeId;
use unamesh_proto::breaker::State;
use unamesh_proto::hedge::Counts;
use unamesh_proto::session::{Reason, Seam};

const BEGIN: &str = "<!-- events: UNAMESH_BLESS=1 cargo test -p unamesh-agent --lib events -->\n";
const END: &str = "<!-- /events -->\n";

/// The README's table is the one in the code. `UNAMESH_BLESS=1` writes it.
#[test]
fn the_readme_lists_every_event() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    let mut wanted = "| event | fields | meaning |\n|---|---|---|\n".to_owned();
    for (name, fields, meaning) in EVENTS {
        let fields: Vec<String> = fields.split(' ').map(|f| format!("`{f}`")).collect();
        let fields = fields.join(" ").replace("``", "");
        wanted.push_str(&format!("| `{name}` | {fields} | {meaning} |\n"));
    }
    if std::env::var_os("UNAMESH_BLESS").is_some() {
        std::fs::write(&readme, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(table, wanted, "UNAMESH_BLESS=1 writes the table");
    }
}

/// Every name in an `emit("...")` is listed.
#[test]
fn every_event_that_is_emitted_is_listed() {
    let known: BTreeSet<&str> = EVENTS.iter().map(|(name, ..)| *name).collect();
    let mut found = BTreeSet::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for after in text.split("emit(").skip(1) {
            let Some(literal) = after.trim_start().strip_prefix('"') else {
                continue;
            };
            let name = literal.split('"').next().unwrap();
            if !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_lowercase()) {
                found.insert(name.to_owned());
            }
        }
    }
    let unknown: Vec<_> = found
        .iter()
        .filter(|n| !known.contains(n.as_str()))
        .collect();
    assert!(unknown.is_empty(), "not in EVENTS: {unknown:?}");
    assert!(found.contains("peer_down") && found.contains("engines"));
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// One of each, as a client makes them.
fn activities(request: RequestId) -> Vec<Activity> {
    let peer = || PeerRef {
        node: NodeId([1; 32]),
        name: "tower".into(),
    };
    let (time, reason, engine) = (
        Duration::from_millis(150),
        Reason::Silence,
        "llama".to_owned(),
    );
    vec![
        Activity::Suspect {
            request,
            peer: peer(),
            reason: reason.clone(),
            silent: time,
        },
        Activity::Backup {
            request,
            peer: peer(),
            after: time,
            hedge: true,
        },
        Activity::PeerChanged {
            request,
            from: peer(),
            to: peer(),
            seam: Seam::Exact,
            gap: time,
            backup_ttft: time,
            reason: reason.clone(),
        },
        Activity::Reattached {
            request,
            peer: peer(),
            gap: time,
        },
        Activity::AttemptFailed {
            request,
            peer: peer(),
            engine: engine.clone(),
            reason: reason.clone(),
        },
        Activity::Breaker {
            peer: peer(),
            engine,
            state: State::Open(time),
            reason: Some(reason.clone()),
        },
        Activity::HedgeInVain {
            request,
            peer: peer(),
            counts: Counts::default(),
            left: 20,
        },
        Activity::Interrupted {
            request,
            tokens: 7,
            reason: reason.clone(),
        },
        Activity::Incomplete {
            request,
            tokens: 7,
            reason,
        },
        Activity::AskedAgain {
            model: "m".into(),
            tokens: 7,
            again: 1,
        },
    ]
}

/// What the client does reaches the listeners under the listed names, with the listed fields.
#[tokio::test]
async fn activities_are_passed_on_with_the_listed_fields() {
    let (sender, receiver) = broadcast::channel(32);
    let (events, stop) = (Events::default(), CancellationToken::new());
    let mut listener = events.listen();
    let all = activities(RequestId::default());
    let count = all.len();
    for activity in all {
        sender.send(activity).unwrap();
    }
    drop(sender);
    pass_on(receiver, events, stop).await;
    for _ in 0..count {
        let event = listener.recv().await.unwrap();
        let name = event["event"].as_str().unwrap();
        let (_, fields, _) = EVENTS.iter().find(|(n, ..)| *n == name).unwrap();
        let mut wanted: BTreeSet<&str> = fields.split(' ').collect();
        wanted.extend(["event", "at_ms"]);
        let found: BTreeSet<&str> = event
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(found, wanted, "{name}");
    }
}

#[tokio::test]
async fn a_slow_listener_is_told_what_it_missed() {
    let (sender, receiver) = broadcast::channel(2);
    let (events, stop) = (Events::default(), CancellationToken::new());
    let mut listener = events.listen();
    for activity in activities(RequestId::default()) {
        sender.send(activity).unwrap();
    }
    drop(sender);
    pass_on(receiver, events, stop).await;
    let first = listener.recv().await.unwrap();
    assert_eq!(
        (&first["event"], &first["missed"]),
        (&json!("lagged"), &json!(8))
    );
}
