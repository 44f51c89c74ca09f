//! `unamesh engines`: the engines of this machine.

use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BAD, GOOD, PLAIN, Table, WARN, cell};
use super::text::Read;
use anstyle::Style;
use serde_json::Value;

pub(super) async fn run(context: &Context) -> Result<(), CliError> {
    let engines = Local::find(context)?.get("engines").await?;
    if context.out.json {
        return context.out.value(&engines);
    }
    let mut table =
        Table::new(&["ENGINE", "API", "HEALTH", "BUSY", "QUEUE", "MODELS"]).numbers(&[3, 4]);
    for engine in engines.items() {
        let health = engine.at("health").text();
        let models: Vec<&str> = engine.at("models").items().iter().map(model_name).collect();
        table.row(vec![
            engine.at("name").text().into(),
            engine.at("kind").text().into(),
            cell(health, health_style(health)),
            format!(
                "{}/{}",
                engine.at("busy").number(),
                engine.at("slots").number()
            )
            .into(),
            engine.at("queue").number().to_string().into(),
            models.join(", ").into(),
        ]);
    }
    if table.is_empty() {
        return Err(
            CliError::new("no_engines", "this machine has no engine that answers")
                .next(context.command("doctor")),
        );
    }
    context.out.print(&table.render(&context.out))
}

/// A model is an object with a name, or the name alone.
fn model_name(model: &Value) -> &str {
    match model.at("name").text() {
        "" => model.text(),
        name => name,
    }
}

/// The colour of an engine's health.
pub(super) fn health_style(health: &str) -> Style {
    match health {
        "ok" => GOOD,
        "busy" | "starting" => WARN,
        "down" => BAD,
        _ => PLAIN,
    }
}
