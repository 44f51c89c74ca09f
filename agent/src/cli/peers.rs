//! `unamesh peers`: the machines of the mesh, as this one sees them.

use super::context::Context;
use super::error::CliError;
use super::mesh::Mesh;
use super::output::{BAD, BOLD, Cell, DIM, GOOD, PLAIN, Table, WARN, cell};
use super::text::{Read, bytes, ms, short, span};
use serde_json::Value;

pub(super) async fn run(context: &Context) -> Result<(), CliError> {
    let mesh = Mesh::find(context).await?;
    let peers = mesh.peers().await?;
    mesh.close().await;
    if context.out.json {
        return context.out.value(&peers);
    }
    context.out.print(&table(&peers).render(&context.out))
}

fn table(peers: &Value) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "NODE",
        "STATE",
        "RTT",
        "PATH",
        "ENGINES",
        "MODELS",
        "MEMORY FREE",
        "HEARD",
    ])
    .numbers(&[3]);
    let mut peers: Vec<&Value> = peers.items().iter().collect();
    // This machine first, the others by name.
    peers.sort_by_key(|peer| {
        (
            peer.at("me").as_bool() != Some(true),
            peer.at("name").text(),
        )
    });
    for peer in peers {
        table.row(row(peer));
    }
    table
}

fn row(peer: &Value) -> Vec<Cell> {
    let me = peer.at("me").as_bool() == Some(true);
    let down = peer.at("liveness").text() == "down";
    let path = peer.at("paths").items().first().unwrap_or(&Value::Null);
    let engines: Vec<String> = peer
        .at("engines")
        .items()
        .iter()
        .map(|e| match e.at("health").text() {
            "ok" => e.at("name").text().to_owned(),
            other => format!("{} ({other})", e.at("name").text()),
        })
        .collect();
    let mut models: Vec<&str> = peer
        .at("models")
        .items()
        .iter()
        .map(|m| m.at("name").text())
        .collect();
    models.dedup();
    vec![
        cell(peer.at("name").text(), if me { BOLD } else { PLAIN }),
        cell(short(peer.at("node").text()), DIM),
        state(peer),
        match peer.at("rtt_ms").float() {
            Some(rtt) if !me && !down => ms(rtt).into(),
            _ => "-".into(),
        },
        if me {
            cell("this machine", DIM)
        } else {
            format!("{} {}", path.at("kind").text(), path.at("addr").text()).into()
        },
        engines.join(", ").into(),
        summary(&models).into(),
        memory(peer.at("hardware")).into(),
        match peer.at("heard_ms_ago").number() {
            _ if me => "-".into(),
            n => span(n).into(),
        },
    ]
}

/// A few names, and how many more.
fn summary(models: &[&str]) -> String {
    const SHOWN: usize = 3;
    let mut text = models
        .iter()
        .take(SHOWN)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if models.len() > SHOWN {
        text.push_str(&format!(" +{}", models.len() - SHOWN));
    }
    text
}

/// What it says of itself, unless it is silent.
fn state(peer: &Value) -> Cell {
    match (peer.at("liveness").text(), peer.at("state").text()) {
        ("down", _) => cell("down", BAD),
        ("suspect", _) => cell("suspect", WARN),
        (_, "up") => cell("up", GOOD),
        (_, "draining") => cell("draining", WARN),
        (_, state) => cell(state, DIM),
    }
}

/// Free memory of the GPUs, else of the machine.
fn memory(hardware: &Value) -> String {
    let gpus = hardware.at("gpus").items();
    if gpus.is_empty() {
        return match hardware.at("ram_total").number() {
            0 => "-".to_owned(),
            _ => format!("RAM {}", bytes(hardware.at("ram_free").number())),
        };
    }
    let free: u64 = gpus.iter().map(|gpu| gpu.at("memory_free").number()).sum();
    format!("GPU {}", bytes(free))
}
