//! Figures and JSON values as people read them.

use serde_json::Value;

/// A size in bytes: `16.0 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Milliseconds with three significant digits: `0.18 ms`, `12.3 ms`, `250 ms`, `2.50 s`.
pub fn ms(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2} ms"),
        v if v < 100.0 => format!("{v:.1} ms"),
        v if v < 1000.0 => format!("{v:.0} ms"),
        v => format!("{:.2} s", v / 1000.0),
    }
}

/// A span in milliseconds, coarsely: `now`, `12 s`, `5 min`, `3 h`, `2 d`.
pub fn span(milliseconds: u64) -> String {
    match milliseconds / 1000 {
        0 => "now".to_owned(),
        s @ 1..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// The first eight characters of a node id.
pub fn short(node: &str) -> String {
    node.chars().take(8).collect()
}

/// `n thing` or `n things`.
pub fn count(n: usize, thing: &str) -> String {
    if n == 1 {
        format!("1 {thing}")
    } else {
        format!("{n} {thing}s")
    }
}

/// Reading what the agent answered: a missing or odd value reads as empty, since a newer or
/// older agent may answer differently.
pub trait Read {
    /// The value at `key`.
    fn at(&self, key: &str) -> &Value;
    /// As text; empty if it is none.
    fn text(&self) -> &str;
    /// As a whole number; 0 if it is none.
    fn number(&self) -> u64;
    /// As a fraction.
    fn float(&self) -> Option<f64>;
    /// Its elements; none if it is no array.
    fn items(&self) -> &[Value];
}

impl Read for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&Value::Null)
    }
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }
    fn number(&self) -> u64 {
        self.as_u64().unwrap_or_default()
    }
    fn float(&self) -> Option<f64> {
        self.as_f64()
    }
    fn items(&self) -> &[Value] {
        self.as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(bytes(1000), "1000 B");
        assert_eq!(bytes(16 << 30), "16.0 GiB");
        assert_eq!(bytes(1 << 60), "1048576.0 TiB");
        assert_eq!(ms(0.1834), "0.18 ms");
        assert_eq!(ms(12.34), "12.3 ms");
        assert_eq!(ms(250.4), "250 ms");
        assert_eq!(ms(2504.0), "2.50 s");
        assert_eq!(span(900), "now");
        assert_eq!(span(90_000), "90 s");
        assert_eq!(span(7_200_000), "2 h");
        assert_eq!(count(1, "model"), "1 model");
        assert_eq!(count(0, "model"), "0 models");
    }
}
