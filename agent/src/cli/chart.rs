//! Bars on a time axis: when each stage of a turn worked.
//!
//! ```text
//!               0          200 ms    400 ms     600 ms
//!   silence     ████████████████                  300 ms
//!   transcript  ████████████                      230 ms
//!   first token             █████████             170 ms (from 230 ms)
//! ```

use super::output::{DIM, GOOD, Out, WARN};
use super::text::{Read as _, ms};
use anstyle::Style;
use serde_json::Value;
use std::fmt::Write as _;

/// Columns of the axis.
const WIDTH: usize = 48;
/// Columns of the labels.
const LABEL: usize = 12;

/// A stage: from when to when, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is.
    pub label: &'static str,
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// How it is drawn.
    pub ink: Ink,
    /// Beside it.
    pub note: String,
}

/// What a bar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Waiting for the user to have finished.
    Wait,
    /// An engine works.
    Work,
    /// Sound is heard.
    Sound,
}

impl Ink {
    fn style(self) -> Style {
        match self {
            Ink::Wait => DIM,
            Ink::Work => WARN,
            Ink::Sound => GOOD,
        }
    }
}

/// The stages of a turn that took place, from its `timeline` in the mesh API.
pub fn bars(timeline: &Value) -> Vec<Bar> {
    let at = |key: &str| timeline.at(key).float();
    let bar = |label, from: Option<f64>, to: Option<f64>, ink| {
        let (from, to) = (from?, to?);
        let note = match from > 0.0 {
            true => format!("{} (from {})", ms(to - from), ms(from)),
            false => ms(to),
        };
        Some(Bar {
            label,
            from,
            to,
            ink,
            note,
        })
    };
    let (words, token) = (at("first_piece_ms"), at("first_token_ms"));
    [
        bar("silence", Some(0.0), at("confirmed_ms"), Ink::Wait),
        bar("transcript", Some(0.0), at("transcript_ms"), Ink::Work),
        bar("first token", at("thinking_ms"), token, Ink::Work),
        bar("first words", token, words, Ink::Work),
        bar("first sound", words, at("first_audio_ms"), Ink::Work),
        bar("all tokens", token, at("thought_ms"), Ink::Work),
        bar("heard", at("first_audio_ms"), at("end_ms"), Ink::Sound),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How far the axis of a turn goes: to the first sound and half as far again, or to its end.
pub fn until(timeline: &Value) -> f64 {
    let furthest = |keys: &[&str]| {
        let moments = keys.iter().filter_map(|key| timeline.at(key).float());
        moments.fold(0.0, f64::max)
    };
    let waited = furthest(&["first_audio_ms", "confirmed_ms", "transcript_ms"]);
    let all = furthest(&["thought_ms", "end_ms"]).max(waited);
    if waited > 0.0 {
        all.min(waited * 1.5)
    } else {
        all
    }
}

/// The bars below an axis that ends at `until` milliseconds; what lasts longer gets an arrow.
pub fn chart(bars: &[Bar], until: f64, out: &Out) -> String {
    let until = until.max(1.0);
    let mut text = axis(until);
    for bar in bars {
        let column = |at: f64| ((at / until).clamp(0.0, 1.0) * WIDTH as f64).round() as usize;
        let (from, beyond) = (column(bar.from).min(WIDTH - 1), bar.to > until);
        // What took no time at all is shown all the same.
        let length = column(bar.to).saturating_sub(from).max(1);
        let (block, arrow) = if out.plain {
            ('#', '>')
        } else {
            ('█', '▶')
        };
        let mut drawn: String = std::iter::repeat_n(block, length).collect();
        if beyond {
            drawn.pop();
            drawn.push(arrow);
        }
        let (style, rest) = (bar.ink.style(), WIDTH - (from + length).min(WIDTH));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<LABEL$}{:from$}{style}{drawn}{style:#}{:rest$}  {}",
            bar.label, "", "", bar.note
        );
    }
    text
}

/// Three or four round figures at their places.
fn axis(until: f64) -> String {
    let step = [
        50.0, 100.0, 200.0, 250.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
    ]
    .into_iter()
    .find(|step| until / step <= 5.0)
    .unwrap_or(until / 4.0);
    let mut line = String::new();
    let mut at = 0.0;
    while at < until {
        let column = ((at / until) * WIDTH as f64).round() as usize;
        let label = match at {
            0.0 => "0".to_owned(),
            at if at < 1_000.0 => format!("{at:.0} ms"),
            at => format!("{:.1} s", at / 1_000.0),
        };
        let used = line.chars().count();
        if used == 0 || column > used {
            let gap = column.saturating_sub(used);
            let _ = write!(line, "{:gap$}{label}", "");
        }
        at += step;
    }
    format!("  {DIM}{:LABEL$}{line}{DIM:#}\n", "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_bar_stands_where_it_worked() {
        let timeline = json!({
            "transcript_ms": 230.0, "thinking_ms": 230.0, "confirmed_ms": 300.0,
            "first_token_ms": 400.0, "first_piece_ms": 500.0, "first_audio_ms": 600.0,
            "thought_ms": 2_000.0, "end_ms": 5_000.0,
        });
        assert_eq!(until(&timeline), 900.0);
        let text = chart(&bars(&timeline), until(&timeline), &Out::piped());
        let plain = anstream::adapter::strip_str(&text).to_string();
        let rows: Vec<&str> = plain.lines().skip(1).collect();
        let begins = |row: usize| rows.get(row).and_then(|row| row.find(['#', '>']));
        assert_eq!(begins(0), Some(14), "{plain}");
        assert_eq!(begins(0), begins(1), "{plain}");
        assert!(begins(2) > begins(1) && begins(6) > begins(4), "{plain}");
        // The last two go on beyond the axis.
        let arrows: Vec<bool> = rows.iter().map(|row| row.contains('>')).collect();
        assert_eq!(
            arrows,
            [false, false, false, false, false, true, true],
            "{plain}"
        );
        assert!(plain.is_ascii());
    }

    #[test]
    fn what_did_not_happen_has_no_bar() {
        let typed = json!({
            "thinking_ms": 0.0, "first_token_ms": 90.0, "thought_ms": 800.0, "end_ms": null,
        });
        let labels: Vec<&str> = bars(&typed).iter().map(|bar| bar.label).collect();
        assert_eq!(labels, ["first token", "all tokens"]);
        assert_eq!(until(&typed), 800.0);
        assert!(!chart(&bars(&json!({})), 0.0, &Out::terminal()).is_empty());
    }
}
