//! What a process holds: memory, descriptors, threads.

use rustix::process::Pid;
use std::fs;
use std::time::{Duration, Instant};

/// One look.
#[derive(Clone, Copy, Debug)]
pub struct Vitals {
    /// Since the first look.
    pub at: Duration,
    /// Resident memory in kB.
    pub rss_kb: u64,
    /// Open descriptors.
    pub files: usize,
    /// Threads.
    pub threads: u64,
}

/// A process that is looked at again and again.
pub struct Patient {
    pid: Pid,
    since: Instant,
    /// The looks, oldest first.
    pub looks: Vec<Vitals>,
}

impl Patient {
    /// Of the process `pid`, which lives on.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            since: Instant::now(),
            looks: Vec::new(),
        }
    }

    /// Looks now.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn look(&mut self) -> Vitals {
        let home = format!("/proc/{}", self.pid.as_raw_nonzero());
        let status = fs::read_to_string(format!("{home}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap()
        };
        let vitals = Vitals {
            at: self.since.elapsed(),
            rss_kb: number("VmRSS:"),
            files: fs::read_dir(format!("{home}/fd")).unwrap().count(),
            threads: number("Threads:"),
        };
        self.looks.push(vitals);
        vitals
    }

    /// The first look at or after `at`; the last if there is none.
    ///
    /// # Panics
    /// If nobody has looked.
    #[must_use]
    pub fn since(&self, at: Duration) -> Vitals {
        let later = self.looks.iter().find(|look| look.at >= at);
        *later.or(self.looks.last()).unwrap()
    }
}

impl std::fmt::Display for Vitals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (at, mb) = (self.at.as_secs(), self.rss_kb as f64 / 1024.0);
        let (files, threads) = (self.files, self.threads);
        write!(
            f,
            "{at:5} s: {mb:.1} MB, {files} descriptors, {threads} threads"
        )
    }
}
