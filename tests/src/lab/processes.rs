//! The processes that live in a network namespace.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Sends `signal` to every process in `namespace`, and tells how many there are.
pub fn signal_all(namespace: &str, signal: Signal) -> usize {
    let Ok(wanted) = fs::metadata(Path::new("/run/netns").join(namespace)) else {
        return 0;
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // A process may end while it is looked at.
        let net = fs::metadata(entry.path().join("ns/net")).ok()?;
        ((net.dev(), net.ino()) == (wanted.dev(), wanted.ino())).then_some(pid)
    });
    pids.filter_map(Pid::from_raw)
        .filter(|pid| kill_process(*pid, signal).is_ok())
        .count()
}
