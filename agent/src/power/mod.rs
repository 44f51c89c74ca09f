//! What the lid, the battery and the heat of this machine mean for the node.
//!
//! ```text
//!   logind, IOKit, Windows ──► Sleeping(hold), Woke ─────────┐
//!   sysfs, polled ──► rules ──► OnBattery, OnMains, Hot, Cool ┴─► node::sleep ──► presence
//!   answers that run ──► awake ──► the system's lock against sleep
//! ```
//! The system's own code is one small file a system ([`os`]), with three things in each:
//! `watch` tells of sleep before it happens and of the wake after it, [`Hold`] keeps the
//! machine awake until it is dropped, `Awake` keeps it awake while there is work. Where a
//! system tells nothing, everything else works: a sleep is noticed afterwards by the clocks
//! ([`slept`]).

pub mod awake;
pub mod rules;
pub mod slept;

#[cfg_attr(target_os = "linux", path = "logind.rs")]
#[cfg_attr(target_os = "macos", path = "macos.rs")]
#[cfg_attr(windows, path = "windows.rs")]
#[cfg_attr(
    not(any(target_os = "linux", target_os = "macos", windows)),
    path = "elsewhere.rs"
)]
mod os;

use crate::config::PowerConfig;
use rules::Rules;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::wire::Hardware;

/// How long running answers get to move before the machine sleeps. The goodbye comes after it, in
/// some 100 ms: logind waits 5 s (`InhibitDelayMaxSec`) and macOS 30 s for both, Windows 2 s.
pub const SLEEP_DRAIN: Duration = Duration::from_millis(if cfg!(windows) { 1200 } else { 2000 });
/// How often battery and heat are looked at: both move slowly.
pub const POWER_POLL: Duration = Duration::from_secs(5);
/// The machine is kept awake this long after its last answer: a conversation has pauses.
pub const KEEP_AWAKE_AFTER: Duration = Duration::from_secs(10);
/// A part of the system that was missing or went away (a bus that starts later, say) is asked
/// again after this.
const RETRY_EVERY: Duration = Duration::from_secs(60);
/// Events that may wait for the node: it acts on each within seconds, and they are rare.
const EVENTS: usize = 8;

/// What happens to the machine.
#[derive(Debug)]
pub enum PowerEvent {
    /// It is about to sleep, and does when the hold is dropped or the system's patience ends.
    Sleeping(Hold),
    /// It was asleep, or did not fall asleep after all.
    Woke,
    /// It runs on battery, which has less than `[power] drain_below`.
    OnBattery {
        /// What is left.
        percent: u8,
    },
    /// It is on mains again, or charged well above the limit.
    OnMains,
    /// It is hotter than `[power] drain_above_c`.
    Hot {
        /// How hot.
        celsius: u8,
    },
    /// It has cooled down well below the limit.
    Cool,
}

/// Keeps the machine from sleeping until it is dropped (for seconds: see [`SLEEP_DRAIN`]).
#[derive(Debug)]
pub struct Hold {
    /// Its drop tells the system.
    _os: Option<os::Hold>,
}

/// The system does not offer it, or not to this user. Nothing else is affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// Starts watching. The tasks are tracked by `tasks` and end with `stop`. `sysfs` is `/sys`, or
/// a tree like it; `hardware` tells of graphics cards.
pub fn watch(
    config: &PowerConfig,
    sysfs: PathBuf,
    hardware: watch::Receiver<Hardware>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> mpsc::Receiver<PowerEvent> {
    let (events, heard) = mpsc::channel(EVENTS);
    let rules = Rules::new(config.drain_below, config.drain_above_c);
    if rules.are_any() {
        let follow = rules::follow(rules, sysfs, hardware, events.clone(), stop.clone());
        tasks.spawn(follow);
    }
    tasks.spawn(os::watch(events, stop.clone()));
    heard
}
