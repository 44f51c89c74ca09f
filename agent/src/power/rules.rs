//! When a low battery or heat makes the node stop serving, and when it serves again.
//!
//! ```text
//!             on battery, below the limit                      above the limit
//!   charged ───────────────────────────────► low      cool ──────────────────────► hot
//!       ▲   on mains, or RESUME_ABOVE points  │        ▲   COOLER_BY degrees below  │
//!       └───────────── above the limit ───────┘        └────────────────────────────┘
//! ```
//! A rule that has just changed its mind waits [`SETTLED`] before it does again, so that a
//! loose plug or a fan does not make a node come and go.

use super::{POWER_POLL, PowerEvent};
use crate::capacity::power::{NO_BATTERY, Power, PowerSource};
use crate::capacity::thermal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use unamesh_client::clock;
use unamesh_proto::Mono;
use unamesh_proto::wire::Hardware;

/// A battery that was low serves again this many points above the limit.
const RESUME_ABOVE: u8 = 5;
/// A machine that was hot serves again this many degrees below the limit.
const COOLER_BY: u8 = 8;
/// The shortest time between two changes of one rule.
const SETTLED: Duration = Duration::from_secs(10);

/// One look at the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The power source.
    pub power: Power,
    /// The hottest part, in degrees; `None`: nothing tells.
    pub celsius: Option<u8>,
}

/// The rules and what they say now.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    drain_below: u8,
    drain_above_c: u8,
    low: Switch,
    hot: Switch,
}

/// One rule's verdict.
#[derive(Clone, Copy, Debug, Default)]
struct Switch {
    on: bool,
    changed: Option<Mono>,
}

impl Switch {
    /// True if this changed it.
    fn set(&mut self, on: bool, now: Mono) -> bool {
        let settled = self.changed.is_none_or(|at| now.since(at) >= SETTLED);
        let change = on != self.on && settled;
        if change {
            (self.on, self.changed) = (on, Some(now));
        }
        change
    }
}

impl Rules {
    /// Below how many percent on battery, and above how many degrees, the node stops serving;
    /// 0: never.
    pub fn new(drain_below: u8, drain_above_c: u8) -> Self {
        Rules {
            drain_below,
            drain_above_c,
            low: Switch::default(),
            hot: Switch::default(),
        }
    }

    /// Whether there is anything to look at.
    pub fn are_any(&self) -> bool {
        self.drain_below > 0 || self.drain_above_c > 0
    }

    /// What `reading`, taken at `now`, changes.
    pub fn judge(&mut self, reading: Reading, now: Mono) -> impl Iterator<Item = PowerEvent> {
        let low = self.is_low(reading.power);
        let power = self.low.set(low, now).then_some(if low {
            let percent = reading.power.battery;
            PowerEvent::OnBattery { percent }
        } else {
            PowerEvent::OnMains
        });
        let celsius = reading.celsius.unwrap_or(0);
        let hot = self.is_hot(celsius);
        let heat = self.hot.set(hot, now).then_some(if hot {
            PowerEvent::Hot { celsius }
        } else {
            PowerEvent::Cool
        });
        power.into_iter().chain(heat)
    }

    fn is_low(&self, power: Power) -> bool {
        let margin = if self.low.on { RESUME_ABOVE } else { 0 };
        let limit = self.drain_below.saturating_add(margin);
        // Once low, the limit itself is not yet above it.
        let below = power.battery < limit || (self.low.on && power.battery == limit);
        self.drain_below > 0 && power.on_battery && power.battery != NO_BATTERY && below
    }

    fn is_hot(&self, celsius: u8) -> bool {
        let margin = if self.hot.on { COOLER_BY } else { 0 };
        self.drain_above_c > 0 && celsius > self.drain_above_c.saturating_sub(margin)
    }
}

/// Looks every [`POWER_POLL`] and tells what changed, until `stop`.
pub(super) async fn follow(
    mut rules: Rules,
    sysfs: PathBuf,
    hardware: watch::Receiver<Hardware>,
    events: mpsc::Sender<PowerEvent>,
    stop: CancellationToken,
) {
    let mut source = PowerSource::new(sysfs.clone());
    loop {
        let sysfs = sysfs.clone();
        // Files of sysfs may wait for a controller; elsewhere a program is asked.
        let look = tokio::task::spawn_blocking(move || {
            let power = source.read(Instant::now());
            (source, power, thermal::of_sysfs(&sysfs))
        });
        let Ok((used, power, processor)) = look.await else {
            return;
        };
        source = used;
        // As last published, which may be some degrees ago.
        let cards = hardware.borrow().gpus.iter().map(|g| g.temperature).max();
        let celsius = processor.max(cards);
        for event in rules.judge(Reading { power, celsius }, clock::mono()) {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let pause = tokio::time::sleep(POWER_POLL);
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    fn battery(battery: u8) -> Reading {
        Reading {
            power: Power {
                on_battery: true,
                battery,
            },
            celsius: None,
        }
    }

    fn heat(celsius: u8) -> Reading {
        Reading {
            power: Power::MAINS,
            celsius: Some(celsius),
        }
    }

    /// The verdicts as words.
    fn say(rules: &mut Rules, reading: Reading, seconds: u64) -> String {
        let words = rules.judge(reading, at(seconds)).map(|e| format!("{e:?}"));
        words.collect()
    }

    #[test]
    fn a_low_battery_stops_serving_until_it_is_charged_or_on_mains() {
        let mut rules = Rules::new(15, 0);
        assert_eq!(say(&mut rules, battery(15), 0), "");
        assert_eq!(say(&mut rules, battery(14), 5), "OnBattery { percent: 14 }");
        assert_eq!(say(&mut rules, battery(14), 10), "", "told once");
        // A solar panel charges it slowly: five points above the limit are not yet enough.
        assert_eq!(say(&mut rules, battery(20), 100), "");
        assert_eq!(say(&mut rules, battery(21), 200), "OnMains");
        assert_eq!(say(&mut rules, battery(15), 300), "");
        assert_eq!(say(&mut rules, battery(9), 400), "OnBattery { percent: 9 }");
        let plugged = Reading {
            power: Power {
                on_battery: false,
                battery: 9,
            },
            celsius: None,
        };
        assert_eq!(say(&mut rules, plugged, 405), "", "a loose plug waits");
        assert_eq!(say(&mut rules, plugged, 410), "OnMains");
    }

    #[test]
    fn heat_has_a_margin_too() {
        let mut rules = Rules::new(0, 80);
        assert_eq!(say(&mut rules, heat(80), 0), "");
        assert_eq!(say(&mut rules, heat(81), 5), "Hot { celsius: 81 }");
        assert_eq!(say(&mut rules, heat(73), 60), "");
        assert_eq!(say(&mut rules, heat(72), 65), "Cool");
    }

    #[test]
    fn zero_is_never_and_a_desktop_has_no_battery() {
        let mut rules = Rules::new(0, 0);
        assert!(!rules.are_any());
        let worst = Reading {
            celsius: Some(120),
            ..battery(0)
        };
        assert_eq!(say(&mut rules, worst, 0), "");
        let none = Reading {
            power: Power::MAINS,
            celsius: None,
        };
        assert_eq!(say(&mut Rules::new(100, 1), none, 0), "");
    }
}
