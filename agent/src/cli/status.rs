//! `unamesh status`: this machine's agent.

use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BOLD, DIM, GOOD, WARN};
use super::text::{Read, bytes, count, short, span};
use serde_json::Value;
use std::fmt::Write as _;
use unamesh_client::clock;

pub(super) async fn run(context: &Context) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let status = local.get("status").await?;
    if context.out.json {
        return context.out.value(&status);
    }
    let peers = local.get("peers").await?;
    let engines = local.get("engines").await?;
    context
        .out
        .print(&render(&local, &status, &peers, &engines))
}

fn render(local: &Local, status: &Value, peers: &Value, engines: &Value) -> String {
    let info = &local.info;
    let state = match status.at("state").text() {
        "" => "up",
        state => state,
    };
    let style = if state == "up" { GOOD } else { WARN };
    let mut text = format!(
        "{BOLD}{}{BOLD:#} is {style}{state}{style:#} {DIM}(node {}, version {}, process {}){DIM:#}\n",
        info.name,
        short(&info.node),
        info.version,
        info.pid,
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {DIM}{name:<8}{DIM:#} {value}");
    };
    let draining = status.at("draining");
    if draining.is_object() {
        line("draining", drain(draining));
    }
    let mesh = status.at("mesh_name").text();
    if !mesh.is_empty() {
        line("mesh", format!("{mesh}, role {}", status.at("role").text()));
    }
    line(
        "since",
        span(clock::wall().as_millis().saturating_sub(info.started_ms)),
    );
    line(
        "gateway",
        format!("http://{} (OpenAI API: /v1)", info.gateway),
    );
    line("data", format!("udp {}", info.quic));
    let others = peers
        .items()
        .iter()
        .filter(|p| p.at("me").as_bool() != Some(true));
    let (alive, silent): (Vec<_>, Vec<_>) =
        others.partition(|p| p.at("liveness").text() == "alive");
    let mut seen = count(alive.len(), "other machine");
    if !silent.is_empty() {
        let _ = write!(seen, ", {} silent", silent.len());
    }
    line("peers", seen);
    let engines = engines.items();
    let models: usize = engines.iter().map(|e| e.at("models").items().len()).sum();
    line(
        "engines",
        format!(
            "{}, {} here",
            count(engines.len(), "engine"),
            count(models, "model")
        ),
    );
    line("active", count(number(status.at("active")), "answer"));
    let hedges = status.at("hedges");
    if hedges.at("started").number() > 0 {
        line(
            "hedges",
            format!(
                "{} in {}, {} in vain",
                hedges.at("started").number(),
                count(number(hedges.at("requests")), "request"),
                hedges.at("in_vain").number(),
            ),
        );
    }
    for breaker in status.at("breakers").items() {
        line("breaker", self::breaker(breaker));
    }
    if let Some(me) = peers
        .items()
        .iter()
        .find(|p| p.at("me").as_bool() == Some(true))
    {
        line("hardware", hardware(me.at("hardware")));
    }
    text
}

fn number(value: &Value) -> usize {
    usize::try_from(value.number()).unwrap_or(0)
}

/// An engine that failed lately, and what follows.
fn breaker(breaker: &Value) -> String {
    let follows = match breaker.at("open_ms").as_u64() {
        Some(left) => format!("last choice for {} s more", left.div_ceil(1000)),
        None => "may be tried again".to_owned(),
    };
    format!(
        "{WARN}{}{WARN:#} {} on {}: failed {} ago ({}), {follows}",
        breaker.at("state").text().replace('_', "-"),
        breaker.at("engine").text(),
        breaker.at("name").text(),
        span(breaker.at("failed_ms_ago").number()),
        breaker.at("reason").text(),
    )
}

/// Why this machine takes nothing new, and until when.
fn drain(draining: &Value) -> String {
    let why = match draining.at("why").text() {
        "signal" => "told to end",
        "sleep" => "the machine sleeps",
        "asked" => "as you asked",
        "battery" => "the battery is low",
        "hot" => "it is too hot",
        other => other,
    };
    let left = draining.at("left_ms").as_u64().map(span);
    match (draining.at("returns").as_bool(), left) {
        (Some(true), Some(left)) => format!("{why}; takes requests again in {left}"),
        (Some(true), None) => format!("{why}; takes requests again when that is over"),
        (_, left) => format!("{why}; leaves within {}", left.unwrap_or_default()),
    }
}

fn hardware(hardware: &Value) -> String {
    let mut text = format!(
        "{} ({} cores), {} of {} RAM free",
        hardware.at("cpu").text(),
        hardware.at("cores").number(),
        bytes(hardware.at("ram_free").number()),
        bytes(hardware.at("ram_total").number()),
    );
    for gpu in hardware.at("gpus").items() {
        let _ = write!(
            text,
            "; {}: {} of {} free, {} %, {} °C",
            gpu.at("name").text(),
            bytes(gpu.at("memory_free").number()),
            bytes(gpu.at("memory_total").number()),
            gpu.at("utilization").number(),
            gpu.at("temperature").number(),
        );
    }
    if let Some(percent) = hardware.at("battery").as_u64() {
        let source = if hardware.at("on_battery").as_bool() == Some(true) {
            "on battery"
        } else {
            "on mains"
        };
        let _ = write!(text, "; {source}, {percent} %");
    }
    text
}
