//! The process of an engine that outlived the agent which started it.
//!
//! Every start is written down: the process's id, with its start time and the boot, since ids are
//! used again. In its next life the agent uses what still runs, and ends it as its own.
//! On Linux alone; elsewhere such an engine is left running.

use super::process::{Signal, signal_group};
use crate::state::StateDir;
use std::time::Duration;

/// How often an ending process is looked at: it is no child, so nothing tells of its end.
const LOOK: Duration = Duration::from_millis(50);

/// Where one engine's process is written down.
#[derive(Clone, Debug)]
pub struct PidFile {
    state: StateDir,
    file: String,
}

impl PidFile {
    /// For the engine number `index` of the configuration.
    pub fn new(state: &StateDir, index: usize) -> PidFile {
        PidFile {
            state: state.clone(),
            file: format!("engine-{index}.pid"),
        }
    }

    /// The process `pid` was started.
    pub fn write(&self, pid: u32) {
        let Some(life) = life(pid) else { return };
        if let Err(error) = self.state.write(&self.file, life.as_bytes()) {
            tracing::warn!(pid, %error, "an engine could outlive a crash of this agent");
        }
    }

    /// The process that was written down last, if it still runs. A stale file does no harm: no
    /// other process ever has the same life.
    pub fn earlier(&self) -> Option<Earlier> {
        let written = String::from_utf8(self.state.read(&self.file).ok()??).ok()?;
        let pid = written.split(' ').next()?.parse().ok()?;
        let earlier = Earlier { pid, life: written };
        earlier.lives().then_some(earlier)
    }
}

/// A process that an earlier life of this agent started, the leader of its group.
#[derive(Debug)]
pub struct Earlier {
    pid: u32,
    life: String,
}

impl Earlier {
    /// Asks it to end, and kills it after `grace`.
    pub async fn stop(self, grace: Duration) {
        tracing::info!(pid = self.pid, "stopping the engine of an earlier life");
        self.signal(Signal::Terminate);
        let gone = async {
            while self.lives() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(grace, gone).await.is_err() {
            tracing::warn!(pid = self.pid, ?grace, "does not end, killing it");
            self.signal(Signal::Kill);
        }
    }

    fn signal(&self, signal: Signal) {
        if self.lives() {
            signal_group(self.pid, signal);
        }
    }

    fn lives(&self) -> bool {
        life(self.pid).is_some_and(|life| life == self.life)
    }
}

/// `PID START BOOT` of a running leader of a process group: no two processes share it.
#[cfg(target_os = "linux")]
fn life(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state parent group ...`; the name may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let (state, group, start) = (fields.first()?, fields.get(2)?, fields.get(19)?);
    if matches!(*state, "Z" | "X") || *group != pid.to_string() {
        return None;
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{pid} {start} {}", boot.trim()))
}

#[cfg(not(target_os = "linux"))]
fn life(_pid: u32) -> Option<String> {
    None
}
