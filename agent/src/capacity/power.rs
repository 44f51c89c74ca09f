//! Mains or battery.
//!
//! Linux tells in sysfs, for the price of a few small files. macOS and Windows tell without
//! unsafe code only through a program (`pmset`, PowerShell), which is therefore asked
//! rarely.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// [`Power::battery`] of a machine that has none.
pub const NO_BATTERY: u8 = 255;

/// Where the power comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Runs on battery now.
    pub on_battery: bool,
    /// Percent; [`NO_BATTERY`] = none.
    pub battery: u8,
}

impl Power {
    /// A machine without a battery.
    pub const MAINS: Power = Power {
        on_battery: false,
        battery: NO_BATTERY,
    };
}

/// Reads the power source, no more often than it costs nothing.
pub struct PowerSource {
    sysfs: PathBuf,
    last: Power,
    next: Option<Instant>,
}

/// How often the system is asked.
const EVERY: Duration = if cfg!(target_os = "linux") {
    Duration::ZERO
} else if cfg!(target_os = "macos") {
    // `pmset` takes 10 ms of processor time.
    Duration::from_secs(20)
} else {
    // PowerShell takes most of a second.
    Duration::from_secs(300)
};

impl PowerSource {
    /// `sysfs`: `/sys`, or a tree like it (only Linux has one).
    pub fn new(sysfs: PathBuf) -> Self {
        PowerSource {
            sysfs,
            last: Power::MAINS,
            next: None,
        }
    }

    /// The power source as of `now`, or a little before.
    pub fn read(&mut self, now: Instant) -> Power {
        if self.next.is_none_or(|next| now >= next) {
            self.last = read(&self.sysfs);
            self.next = Some(now + EVERY);
        }
        self.last
    }
}

#[cfg(target_os = "macos")]
fn read(_sysfs: &Path) -> Power {
    program("pmset", &["-g", "batt"]).map_or(Power::MAINS, |text| of_pmset(&text))
}

#[cfg(windows)]
fn read(_sysfs: &Path) -> Power {
    let script = "Get-CimInstance Win32_Battery | \
                  ForEach-Object { \"$($_.BatteryStatus) $($_.EstimatedChargeRemaining)\" }";
    program(
        "powershell",
        &["-NoProfile", "-NonInteractive", "-Command", script],
    )
    .map_or(Power::MAINS, |text| of_win32_battery(&text))
}

#[cfg(not(any(target_os = "macos", windows)))]
fn read(sysfs: &Path) -> Power {
    of_sysfs(sysfs)
}

#[cfg(any(target_os = "macos", windows))]
fn program(name: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(name)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()
}

/// `class/power_supply/*`: a `Battery` with its `capacity` and `status`, `Mains` with
/// `online`. The battery of a mouse has the scope `Device` and does not count; of several
/// batteries the mean is taken.
pub fn of_sysfs(sysfs: &Path) -> Power {
    let Ok(entries) = std::fs::read_dir(sysfs.join("class/power_supply")) else {
        return Power::MAINS;
    };
    let (mut percents, mut discharging, mut mains) = (Vec::new(), false, None);
    for entry in entries.flatten() {
        let text = |name: &str| {
            let text = std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        match text("type").as_str() {
            "Battery" if text("scope") != "Device" => {
                percents.extend(text("capacity").parse::<u32>().ok().map(|p| p.min(100)));
                discharging |= text("status") == "Discharging";
            }
            "Mains" | "USB" => {
                if let Ok(online) = text("online").parse::<u8>() {
                    mains = Some(mains.unwrap_or(false) || online > 0);
                }
            }
            _ => {}
        }
    }
    if percents.is_empty() {
        return Power::MAINS;
    }
    let mean = percents.iter().sum::<u32>() / u32::try_from(percents.len()).unwrap_or(1);
    Power {
        // A charger that says it delivers settles it: a full battery under load "discharges".
        on_battery: mains.map_or(discharging, |online| !online && discharging),
        battery: u8::try_from(mean).unwrap_or(100),
    }
}

/// The output of `pmset -g batt`:
/// `Now drawing from 'Battery Power'` and `-InternalBattery-0 (id=1)  85%; discharging; ...`.
pub fn of_pmset(text: &str) -> Power {
    let percent = text
        .lines()
        .find(|line| line.contains("InternalBattery"))
        .and_then(|line| line.split('%').next())
        .and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse::<u8>().ok());
    match percent {
        Some(percent) => Power {
            on_battery: text.contains("'Battery Power'"),
            battery: percent.min(100),
        },
        None => Power::MAINS,
    }
}

/// `BatteryStatus EstimatedChargeRemaining` of `Win32_Battery`; status 1 = discharging,
/// 4 and 5 = low and critical, which are on battery too.
pub fn of_win32_battery(text: &str) -> Power {
    let mut words = text.split_whitespace().map(str::parse::<u8>);
    match (words.next(), words.next()) {
        (Some(Ok(status)), Some(Ok(percent))) => Power {
            on_battery: matches!(status, 1 | 4 | 5),
            battery: percent.min(100),
        },
        _ => Power::MAINS,
    }
}
