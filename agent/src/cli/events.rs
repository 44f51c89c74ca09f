//! `unamesh events`: what happens at this machine's agent, one line each, until Ctrl-C.

use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BAD, DIM, GOOD, PLAIN, WARN, printable};
use super::text::{Read, count, ms, short, span};
use anstyle::Style;
use serde_json::Value;
use std::fmt::Write as _;

/// From here on a time is given in whole minutes, hours or days.
const EXACT_MS: f64 = 120_000.0;

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

/// `09:15:02.417Z  suspect         1f0c2a77  tower: its engine stalled, silent for 152 ms`.
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
    let time = |key: &str| time(event.at(key).float().unwrap_or_default());
    let machine = || format!("{} ({})", text("name"), short(event.at("node").text()));
    match event.at("event").text() {
        "suspect" => format!(
            "{}: {}, silent for {}",
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
            let (silent, cause) = (time("silent_ms"), text("cause").replace('_', " "));
            let mut line = format!("{}: silent for {silent}, {cause}", machine());
            if !names.is_empty() {
                let _ = write!(line, " by {}", names.join(", "));
            }
            line
        }
        "peer_joined" | "peer_left" | "peer_forgotten" | "twin_key" => machine(),
        "peer_suspect" => format!("{}: silent for {}", machine(), time("silent_ms")),
        "peer_vouched" => format!("{}: {} reaches it", machine(), name("by")),
        "peer_back" => format!("{}: it was silent for {}", machine(), time("after_ms")),
        "cut_off" => format!(
            "all peers ({}) fell silent together",
            event.at("peers").number()
        ),
        "online" => format!("after {}", time("after_ms")),
        "engines" => engines(event),
        "invited" => format!("as {}, {}", text("role"), counted(event, "uses", "use")),
        "draining" => draining(event),
        "sleeping" => counted(event, "active", "answer") + " under way",
        "woke" => {
            let by = text("noticed_by").replace('_', " ");
            format!("it slept for {}, noticed by {by}", time("slept_ms"))
        }
        "lagged" => format!("{} events were missed", event.at("missed").number()),
        _ => others(event),
    }
}

/// `signal: 0 answers under way; it leaves within 5.00 s`.
fn draining(event: &Value) -> String {
    let (why, active) = (event.at("why").text(), counted(event, "active", "answer"));
    let mut line = format!("{}: {active} under way", printable(why));
    let limit = event.at("deadline_ms").float().map(time);
    match (event.at("returns").as_bool(), limit) {
        (Some(true), Some(limit)) => {
            let _ = write!(line, "; it returns within {limit}");
        }
        (Some(true), None) => line.push_str("; it returns"),
        (_, Some(limit)) => {
            let _ = write!(line, "; it leaves within {limit}");
        }
        (_, None) => {}
    }
    line
}

/// `llama up, piper down; models: qwen, amy`.
fn engines(event: &Value) -> String {
    let health = |e: &Value| format!("{} {}", e.at("name").text(), e.at("health").text());
    let engines: Vec<String> = event.at("engines").items().iter().map(health).collect();
    let models = event.at("models").items().iter().map(|model| model.text());
    let models: Vec<&str> = models.collect();
    let or_none = |list: String| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list
        }
    };
    printable(&format!(
        "{}; models: {}",
        or_none(engines.join(", ")),
        or_none(models.join(", "))
    ))
}

/// The number in `key`, with its unit.
fn counted(event: &Value, key: &str, thing: &str) -> String {
    count(
        usize::try_from(event.at(key).number()).unwrap_or(usize::MAX),
        thing,
    )
}

/// Milliseconds: exactly while they are few.
fn time(milliseconds: f64) -> String {
    if milliseconds < EXACT_MS {
        ms(milliseconds)
    } else {
        // `as` saturates.
        span(milliseconds as u64)
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
            "reason": "its engine stalled", "silent_ms": 152.3,
        });
        let plain = anstream::adapter::strip_str(&line(&event)).to_string();
        assert_eq!(
            plain,
            "09:15:02.417Z  suspect         1f0c2a77  tower: its engine stalled, silent for 152 ms"
        );
    }

    #[test]
    fn events_of_machines_read_alike() {
        let desk = json!({"node": "x", "name": "desk"});
        let lines = [
            (json!({"event": "peer_joined"}), "tower (abcdefgh)"),
            (
                json!({"event": "peer_suspect", "silent_ms": 1500}),
                "tower (abcdefgh): silent for 1.50 s",
            ),
            (
                json!({"event": "peer_vouched", "by": desk}),
                "tower (abcdefgh): desk reaches it",
            ),
            (
                json!({"event": "peer_down", "silent_ms": 2800, "cause": "confirmed",
                       "confirmed_by": [{"name": "laptop"}, desk]}),
                "tower (abcdefgh): silent for 2.80 s, confirmed by laptop, desk",
            ),
            (
                json!({"event": "peer_down", "silent_ms": 2800, "cause": "nobody_to_ask",
                       "confirmed_by": []}),
                "tower (abcdefgh): silent for 2.80 s, nobody to ask",
            ),
            (
                json!({"event": "peer_back", "after_ms": 300_000}),
                "tower (abcdefgh): it was silent for 5 min",
            ),
            (
                json!({"event": "engines", "models": [],
                       "engines": [{"name": "llama", "health": "up"}]}),
                "llama up; models: none",
            ),
            (
                json!({"event": "draining", "why": "signal", "deadline_ms": 4999,
                       "returns": false, "active": 1}),
                "signal: 1 answer under way; it leaves within 5.00 s",
            ),
        ];
        for (mut event, expected) in lines {
            event["name"] = "tower".into();
            event["node"] = "abcdefghijk".into();
            assert_eq!(what(&event), expected);
        }
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
