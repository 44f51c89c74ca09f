//! `unamesh events`: what happens at this machine's agent, one line each, until Ctrl-C.

use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BAD, DIM, GOOD, PLAIN, WARN, printable};
use super::text::{Read, ms, short};
use anstyle::Style;
use serde_json::Value;
use std::fmt::Write as _;

pub(super) async fn run(context: &Context) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let mut events = local.follow("events").await?;
    let out = &context.out;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(event) = event else {
            out.note(&format!("{DIM}[the agent has stopped]{DIM:#}\n"));
            return Ok(());
        };
        if out.json {
            out.line(&event.to_string())?;
        } else {
            out.line(&line(&event))?;
        }
    }
}

/// `09:15:02.417Z  suspect         1f0c2a77  tower: it fell silent, 152 ms`.
fn line(event: &Value) -> String {
    let name = event.at("event").text();
    let style = style(event);
    let request = match event.at("request").text() {
        "" => "-",
        id => id,
    };
    let text = format!(
        "{DIM}{}{DIM:#}  {style}{name:<14}{style:#}  {DIM}{request:<8}{DIM:#}  {}",
        time_of_day(event.at("at_ms").number()),
        what(event),
    );
    text.trim_end().to_owned()
}

/// In UTC, as logs have it.
fn time_of_day(at_ms: u64) -> String {
    let (seconds, ms) = (at_ms / 1000, at_ms % 1000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ms:03}Z", seconds % 60)
}

fn style(event: &Value) -> Style {
    match event.at("event").text() {
        "interrupted" | "incomplete" | "cut_off" | "twin_key" | "peer_down" => BAD,
        "suspect" | "backup" | "attempt_failed" | "hedge_in_vain" | "asked_again" | "lagged"
        | "peer_suspect" | "peer_vouched" | "draining" | "sleeping" => WARN,
        "peer_changed" | "reattached" | "peer_joined" | "peer_back" | "online" | "returned"
        | "woke" => GOOD,
        "breaker" if event.at("state").text() == "closed" => GOOD,
        "breaker" => WARN,
        _ => PLAIN,
    }
}

/// The fields as a person reads them; of an event that this version does not know, all.
fn what(event: &Value) -> String {
    let text = |key: &str| printable(event.at(key).text());
    let name = |key: &str| printable(event.at(key).at("name").text());
    let time = |key: &str| ms(event.at(key).float().unwrap_or_default());
    match event.at("event").text() {
        "suspect" => format!(
            "{}: {}, {}",
            name("peer"),
            text("reason"),
            time("silent_ms")
        ),
        "backup" => {
            let hedge = match event.at("hedge").as_bool() {
                Some(true) => ", a hedge",
                _ => "",
            };
            format!(
                "{} is asked after {}{hedge}",
                name("peer"),
                time("after_ms")
            )
        }
        "peer_changed" => format!(
            "{} -> {} ({}), gap {}, of it {} to its first token: {}",
            name("from"),
            name("to"),
            text("seam"),
            time("gap_ms"),
            time("backup_ttft_ms"),
            text("reason"),
        ),
        "reattached" => format!("{}, gap {}", name("peer"), time("gap_ms")),
        "attempt_failed" => format!("{} on {}: {}", text("engine"), name("peer"), text("reason")),
        "breaker" => {
            let mut line = format!("{} on {}: {}", text("engine"), name("peer"), text("state"));
            if event.get("open_ms").is_some() {
                let _ = write!(line, " for {}", time("open_ms"));
            }
            if event.get("reason").is_some() {
                let _ = write!(line, ", {}", text("reason"));
            }
            line
        }
        "hedge_in_vain" => format!(
            "{}; {} of {} hedges in {} requests, {} left",
            name("peer"),
            event.at("in_vain").number(),
            event.at("started").number(),
            event.at("requests").number(),
            event.at("left").number(),
        ),
        "interrupted" | "incomplete" => {
            format!(
                "after {} tokens: {}",
                event.at("tokens").number(),
                text("reason")
            )
        }
        "asked_again" => format!(
            "{} begins anew, without the {} tokens that nobody had seen",
            text("model"),
            event.at("tokens").number()
        ),
        "peer_down" => {
            let peers = event.at("confirmed_by").as_array().into_iter().flatten();
            let names: Vec<String> = peers.map(|p| printable(p.at("name").text())).collect();
            let cause = text("cause").replace('_', " ");
            let silent = time("silent_ms");
            format!(
                "{}: silent for {silent}, {cause} {}",
                text("name"),
                names.join(", ")
            )
        }
        "lagged" => format!("{} events were missed", event.at("missed").number()),
        _ => others(event),
    }
}

/// `key value` of whatever is there.
fn others(event: &Value) -> String {
    let known = ["event", "at_ms", "request"];
    let fields = event.as_object().into_iter().flatten();
    let shown = fields.filter(|(key, _)| !known.contains(&key.as_str()));
    let words = shown.map(|(key, value)| match (key.as_str(), value) {
        ("name", Value::String(text)) => printable(text),
        ("node", Value::String(node)) => format!("({})", short(node)),
        (key, Value::String(text)) => format!("{key} {}", printable(text)),
        (key, Value::Object(_)) if !value.at("name").text().is_empty() => {
            format!("{key} {}", printable(value.at("name").text()))
        }
        (key, value) => format!("{key} {value}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_when_what_and_why() {
        let event = json!({
            "event": "suspect", "at_ms": 33_302_417, "request": "1f0c2a77",
            "peer": {"node": "abc", "name": "tower"}, "cause": "silence",
            "reason": "it fell silent", "silent_ms": 152.3,
        });
        let plain = anstream::adapter::strip_str(&line(&event)).to_string();
        assert_eq!(
            plain,
            "09:15:02.417Z  suspect         1f0c2a77  tower: it fell silent, 152 ms"
        );
    }

    #[test]
    fn unknown_events_show_all_that_they_have() {
        let event = json!({
            "event": "peer_evicted", "at_ms": 0, "node": "abcdefghijk", "name": "to\u{1b}[2Jwer",
            "by": {"node": "x", "name": "desk"}, "silent_ms": 2800,
        });
        let plain = anstream::adapter::strip_str(&line(&event)).to_string();
        assert_eq!(
            plain,
            "00:00:00.000Z  peer_evicted    -         by desk to[2Jwer (abcdefgh) silent_ms 2800"
        );
    }
}
