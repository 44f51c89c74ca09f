//! `unamesh ping`: the round trip to other machines, over every path.

use super::args::PingArgs;
use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BAD, DIM, GOOD, Table, WARN, cell};
use super::text::{Read, ms, short};
use serde_json::{Value, json};
use std::time::Duration;

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(1);
/// Clocks further apart than this are worth a word: certificates and adverts allow a day.
const SKEW_MS: i64 = 60_000;

pub(super) async fn run(context: &Context, args: &PingArgs) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let body = match &args.node {
        Some(node) => json!({"node": node}),
        None => json!({}),
    };
    for round in 0..args.count {
        if round > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let answer = local.post("ping", &body).await?;
        if context.out.json {
            context.out.value(&answer)?;
        } else {
            show(context, &answer)?;
        }
    }
    Ok(())
}

fn show(context: &Context, answer: &Value) -> Result<(), CliError> {
    let mut table =
        Table::new(&["MACHINE", "NODE", "PATH", "ADDRESS", "RTT", "NOTE"]).numbers(&[4]);
    for peer in answer.items() {
        let skew = peer
            .at("clock_skew_ms")
            .as_i64()
            .filter(|s| s.abs() > SKEW_MS);
        let note = skew
            .map(|s| format!("clock {} s off", s / 1000))
            .unwrap_or_default();
        let name = || peer.at("name").text();
        let node = || cell(short(peer.at("node").text()), DIM);
        let paths = peer.at("paths").items();
        if paths.is_empty() {
            let error = match peer.at("error").text() {
                "" => "no known address",
                text => text,
            };
            table.row(vec![
                name().into(),
                node(),
                "-".into(),
                "-".into(),
                "-".into(),
                cell(error, BAD),
            ]);
        }
        for path in paths {
            let (rtt, note) = match (path.at("rtt_ms").float(), path.at("error").text()) {
                (Some(rtt), "") => (cell(ms(rtt), GOOD), cell(note.as_str(), WARN)),
                (_, error) => (cell("-", BAD), cell(error, BAD)),
            };
            table.row(vec![
                name().into(),
                node(),
                path.at("kind").text().into(),
                path.at("addr").text().into(),
                rtt,
                note,
            ]);
        }
    }
    if table.is_empty() {
        return Err(
            CliError::new("no_peers", "this machine sees no other machine of the mesh")
                .next(context.command("doctor")),
        );
    }
    context.out.print(&table.render(&context.out))
}
