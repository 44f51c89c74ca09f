//! Percentiles, and what the kernel counts of a process.

use std::fs;
use std::time::Duration;

/// Measured values of one kind.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a duration in milliseconds.
    pub fn push_ms(&mut self, duration: Duration) {
        self.0.push(ms(duration));
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Samples) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that a share `p` (0 to 1) of the samples does not exceed (nearest rank); NaN
    /// without samples.
    pub fn percentile(&self, p: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (p * sorted.len() as f64).ceil() as usize;
        let at = rank.clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// `{"p50":..,"p95":..,"p99":..,"max":..,"n":..}`, rounded to microseconds of the unit.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "p50": round(self.median()),
            "p95": round(self.percentile(0.95)),
            "p99": round(self.percentile(0.99)),
            "max": round(self.percentile(1.0)),
            "n": self.0.len(),
        })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Samples(values.into_iter().collect())
    }
}

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Three digits behind the point.
pub fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Resident memory of a process in MB; `None` where /proc does not tell.
pub fn rss_mb(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kb: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kb * 1024.0 / 1e6)
}

/// Time that a process's threads have spent on a core; `None` where /proc does not tell.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end in between.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        total += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let samples: Samples = (1..=20).rev().map(f64::from).collect();
        assert_eq!(samples.median(), 10.0);
        assert_eq!(samples.percentile(0.95), 19.0);
        assert_eq!(samples.percentile(1.0), 20.0);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_counts_this_process() {
        let me = std::process::id();
        assert!(rss_mb(me).unwrap() > 1.0);
        assert!(cpu_time(me).unwrap() > Duration::ZERO);
    }
}
