//! `unamesh models`: every model of the mesh, and where it is.

use super::args::ModelsArgs;
use super::context::Context;
use super::error::CliError;
use super::mesh::Mesh;
use super::output::{Cell, DIM, GOOD, Table, WARN, cell};
use super::text::{Read, bytes};
use serde_json::Value;

pub(super) async fn run(context: &Context, args: &ModelsArgs) -> Result<(), CliError> {
    let mesh = Mesh::find(context).await?;
    let mut models = mesh.models().await?;
    mesh.close().await;
    if let (Some(filter), Some(list)) = (&args.filter, models.as_array_mut()) {
        let filter = filter.to_lowercase();
        list.retain(|model| model.at("model").text().to_lowercase().contains(&filter));
    }
    if context.out.json {
        return context.out.value(&models);
    }
    let mut table = Table::new(&[
        "MODEL", "KIND", "QUANT", "SIZE", "CONTEXT", "WHERE", "TTFT", "TOK/S",
    ])
    .numbers(&[3, 4, 6, 7]);
    for model in models.items() {
        for (at, place) in model.at("peers").items().iter().enumerate() {
            table.row(row(model, place, at == 0));
        }
    }
    if table.is_empty() {
        let what = args
            .filter
            .as_ref()
            .map_or_else(String::new, |f| format!(" like {f:?}"));
        return Err(CliError::new(
            "no_models",
            format!("no machine of the mesh has a model{what}"),
        )
        .next(context.command("engines"))
        .next(context.command("doctor")));
    }
    context.out.print(&table.render(&context.out))
}

/// One place of a model; its name stands in each row of a pipe, once on a terminal is left
/// to the eye.
fn row(model: &Value, place: &Value, first: bool) -> Vec<Cell> {
    let residency = place.at("residency").text();
    let style = match residency {
        "loaded" | "pinned" => GOOD,
        "loading" => WARN,
        _ => DIM,
    };
    let stats = place.at("stats");
    let measured = stats.at("samples").number() > 0;
    let figure = |value: Option<f64>, digits: usize| match value {
        Some(v) if measured && v > 0.0 => format!("{v:.digits$}"),
        _ => "-".to_owned(),
    };
    let itl = stats.at("itl_ms").float().filter(|v| *v > 0.0);
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let name = model.at("model").text();
    vec![
        if first { name.into() } else { cell(name, DIM) },
        or_dash(model.at("kind").text()).into(),
        or_dash(model.at("quantization").text()).into(),
        match model.at("size").number() {
            0 => "-".into(),
            n => bytes(n).into(),
        },
        match model.at("context").number() {
            0 => "-".into(),
            n => n.to_string().into(),
        },
        cell(
            format!(
                "{}/{} {residency}",
                place.at("name").text(),
                place.at("engine").text()
            ),
            style,
        ),
        match figure(stats.at("ttft_ms").float(), 0).as_str() {
            "-" => "-".into(),
            ttft => format!("{ttft} ms").into(),
        },
        figure(itl.map(|v| 1000.0 / v), 1).into(),
    ]
}
