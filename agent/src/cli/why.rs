//! `unamesh why`: the ranking for a model, with the reason of each place.

use super::args::WhyArgs;
use super::context::Context;
use super::error::CliError;
use super::mesh::Mesh;
use super::output::{BOLD, DIM, GOOD, Table, cell, printable};
use super::text::{Read, ms, short};
use serde_json::Value;

pub(super) async fn run(context: &Context, args: &WhyArgs) -> Result<(), CliError> {
    let mesh = Mesh::find(context).await?;
    let why = mesh.why(&args.model, args.prompt_tokens).await?;
    mesh.close().await;
    if context.out.json {
        context.out.value(&why)?;
    } else if !why.at("ranked").items().is_empty() {
        context.out.print(&ranking(context, &why))?;
    }
    if why.at("ranked").items().is_empty() {
        return Err(nobody(context, &args.model, &why));
    }
    Ok(())
}

fn ranking(context: &Context, why: &Value) -> String {
    let mut table = Table::new(&[
        "", "MACHINE", "TOTAL", "RTT", "QUEUE", "LOAD", "TTFT", "REASON",
    ])
    .numbers(&[2, 3, 4, 5, 6]);
    let ranked = why.at("ranked").items();
    for (at, candidate) in ranked.iter().enumerate() {
        let node = |c: &Value| c.at("node").text().to_owned();
        let engines = ranked.iter().filter(|c| node(c) == node(candidate)).count();
        let name = match (engines, candidate.at("name").text()) {
            (1, name) => name.to_owned(),
            (_, name) => format!("{name} ({})", candidate.at("engine_name").text()),
        };
        let style = if at == 0 { GOOD } else { anstyle::Style::new() };
        let cost = |part: &str| match candidate.at("cost_ms").at(part).float() {
            Some(value) => ms(value),
            None => "-".to_owned(),
        };
        table.row(vec![
            cell(
                if at == 0 {
                    "->".to_owned()
                } else {
                    (at + 1).to_string()
                },
                style,
            ),
            cell(name, style),
            cell(cost("total"), style),
            cost("rtt").into(),
            cost("queue").into(),
            cost("load").into(),
            cost("ttft").into(),
            candidate.at("reason").text().into(),
        ]);
    }
    let mut text = table.render(&context.out);
    let rejected = why.at("rejected").items();
    if !rejected.is_empty() {
        text.push_str(&format!("\n{BOLD}Not considered{BOLD:#}\n"));
        for one in rejected {
            let name = match one.at("name").text() {
                "" => short(one.at("node").text()),
                name => printable(name),
            };
            text.push_str(&format!(
                "  {name}: {DIM}{}{DIM:#}\n",
                printable(one.at("reason").text())
            ));
        }
    }
    text
}

/// The near names of a ranking, on a line of their own; nothing without any.
pub(super) fn near(why: &Value) -> String {
    let near: Vec<String> = why
        .at("near")
        .items()
        .iter()
        .map(|n| {
            let places: Vec<&str> = n.at("peers").items().iter().map(Read::text).collect();
            format!("{} on {}", n.at("model").text(), places.join(", "))
        })
        .collect();
    match near.is_empty() {
        true => String::new(),
        false => format!("\n  near names: {}", near.join("; ")),
    }
}

/// No machine can answer: name what is near, and why each refused.
fn nobody(context: &Context, model: &str, why: &Value) -> CliError {
    let mut message = format!("no machine can answer for {model:?} now");
    // Those that merely do not have the model say nothing new.
    let absent = |one: &&Value| one.at("reason").text().contains("does not have the model");
    for one in why.at("rejected").items().iter().filter(|one| !absent(one)) {
        message.push_str(&format!(
            "\n  {}: {}",
            one.at("name").text(),
            one.at("reason").text()
        ));
    }
    message.push_str(&near(why));
    CliError::new("no_peer", message).next(context.command("models"))
}
