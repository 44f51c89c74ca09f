//! What this machine has, and how much of it is free.
//!
//! A [`Sampler`] reads it when the node asks, every [`SAMPLE_EVERY`]:
//!
//! - processor and memory through sysinfo, refreshed by no more than `/proc/meminfo` (a
//!   container's own limit counts, not the host's memory);
//! - NVIDIA through the driver's own library ([`nvidia`]), loaded if it is there;
//! - AMD through sysfs ([`amd`]);
//! - Apple Silicon shares its memory with the GPU ([`apple`]);
//! - the power source ([`power`]).
//!
//! The processor's heat ([`thermal`]) is not advertised; [`crate::power::rules`] looks at it.
//!
//! **What is worth an advert.** Free memory, load and temperature jitter all the time. The
//! sampler keeps what it last reported and calls a sample new only when a figure has moved
//! from *that* by more than its threshold ([`differs`]): a figure that trembles about a
//! threshold reports once and then has to move a whole threshold further. What must not wait
//! (a GPU appears or is lost, power is unplugged) has no threshold.

pub mod amd;
pub mod apple;
pub mod nvidia;
pub mod power;
pub mod thermal;

use std::path::PathBuf;
use std::time::{Duration, Instant};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};
use unamesh_proto::limits;
use unamesh_proto::wire::{Gpu, Hardware};

/// How often the node asks: as often as it asks its engines, since both change together.
pub const SAMPLE_EVERY: Duration = unamesh_proto::timeouts::ENGINE_POLL;

/// Free memory has moved if it did by this part of the total.
const MEMORY_STEP: u64 = 20;
/// Utilization has moved if it did by this many points: it swings with every request.
const UTILIZATION_STEP: u8 = 25;
/// Temperature has moved if it did by this many degrees.
const TEMPERATURE_STEP: u8 = 5;
/// Power has moved if it did by this many milliwatts.
const POWER_STEP: u32 = 25_000;
/// The battery has moved if it did by this many points.
const BATTERY_STEP: u8 = 2;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The NVML library; `None` = where the driver puts it.
    pub nvml: Option<PathBuf>,
    /// `/sys`, or a tree like it.
    pub sysfs: PathBuf,
}

impl Default for Sources {
    /// The real ones; `UNAMESH_NVML_LIBRARY` names a library that is installed elsewhere.
    fn default() -> Self {
        Sources {
            nvml: std::env::var_os("UNAMESH_NVML_LIBRARY").map(PathBuf::from),
            sysfs: PathBuf::from("/sys"),
        }
    }
}

/// Reads the machine. Blocking, but short: well below a millisecond without a GPU.
pub struct Sampler {
    sources: Sources,
    system: Option<System>,
    /// Whether a control group limits this process's memory.
    limited: bool,
    nvidia: nvidia::Nvidia,
    power: power::PowerSource,
    /// As last read.
    current: Hardware,
    /// As last reported by [`Sampler::sample`].
    reported: Option<Hardware>,
}

impl Sampler {
    /// Looks once at what does not change (processor, total memory).
    pub fn new(sources: Sources) -> Self {
        // Without a `System` (an unsupported platform) memory stays 0 = unknown.
        let mut system = System::new().ok();
        let mut current = Hardware {
            os: std::env::consts::OS.to_owned(),
            cores: std::thread::available_parallelism()
                .map_or(1, |n| u16::try_from(n.get()).unwrap_or(u16::MAX)),
            battery: power::NO_BATTERY,
            ..Hardware::default()
        };
        let mut limited = false;
        if let Some(system) = &mut system {
            system.refresh_cpu_list(CpuRefreshKind::nothing());
            current.cpu = system
                .cpus()
                .first()
                .map(|cpu| clip(cpu.brand().trim()))
                .unwrap_or_default();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            limited = system
                .cgroup_limits()
                .is_some_and(|l| l.total_memory > 0 && l.total_memory < system.total_memory());
        }
        Sampler {
            nvidia: nvidia::Nvidia::new(sources.nvml.clone()),
            power: power::PowerSource::new(sources.sysfs.clone()),
            sources,
            system,
            limited,
            current,
            reported: None,
        }
    }

    /// Reads everything now. `Some` if it is worth an advert (always the first time);
    /// [`Sampler::hardware`] has the newest figures in any case.
    pub fn sample(&mut self) -> Option<Hardware> {
        let now = Instant::now();
        self.read_memory();
        self.current.gpus = self.nvidia.read(now);
        self.current.gpus.extend(amd::read(&self.sources.sysfs));
        self.current.unified = false;
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            self.current.unified = true;
            self.current.gpus.push(apple::gpu(
                &self.current.cpu,
                self.current.ram_total,
                self.current.ram_free,
            ));
        }
        self.current.gpus.truncate(limits::MAX_GPUS);
        let power = self.power.read(now);
        self.current.on_battery = power.on_battery;
        self.current.battery = power.battery;

        let new = self
            .reported
            .as_ref()
            .is_none_or(|old| differs(old, &self.current));
        new.then(|| {
            self.reported = Some(self.current.clone());
            self.current.clone()
        })
    }

    /// The figures of the last [`Sampler::sample`].
    pub fn hardware(&self) -> &Hardware {
        &self.current
    }

    /// Why a GPU driver that is installed gives no figures; `None` if all is well.
    pub fn driver_failure(&self) -> Option<&str> {
        self.nvidia.failure()
    }

    fn read_memory(&mut self) {
        let Some(system) = &mut self.system else {
            return;
        };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        self.current.ram_total = system.total_memory();
        self.current.ram_free = system.available_memory();
        if self.limited
            && let Some(limits) = system.cgroup_limits()
        {
            self.current.ram_total = self.current.ram_total.min(limits.total_memory);
            self.current.ram_free = self.current.ram_free.min(limits.free_memory);
        }
    }
}

/// Whether `new` is worth an advert after `old` was reported.
pub fn differs(old: &Hardware, new: &Hardware) -> bool {
    let fixed = |h: &Hardware| (h.ram_total, h.cores, h.unified, h.on_battery, h.gpus.len());
    fixed(old) != fixed(new)
        || old.cpu != new.cpu
        || memory_moved(old.ram_free, new.ram_free, new.ram_total)
        || old.battery.abs_diff(new.battery) >= BATTERY_STEP
        || old
            .gpus
            .iter()
            .zip(&new.gpus)
            .any(|(old, new)| gpu_differs(old, new))
}

fn gpu_differs(old: &Gpu, new: &Gpu) -> bool {
    old.name != new.name
        || old.memory_total != new.memory_total
        || memory_moved(old.memory_free, new.memory_free, new.memory_total)
        || old.utilization.abs_diff(new.utilization) >= UTILIZATION_STEP
        || old.temperature.abs_diff(new.temperature) >= TEMPERATURE_STEP
        || old.power_mw.abs_diff(new.power_mw) >= POWER_STEP
}

fn memory_moved(old: u64, new: u64, total: u64) -> bool {
    old.abs_diff(new) >= (total / MEMORY_STEP).max(1)
}

/// `name` cut to [`limits::MAX_NAME`] at a character.
fn clip(name: &str) -> String {
    let mut end = name.len().min(limits::MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
