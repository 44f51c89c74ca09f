//! AMD GPUs through what the `amdgpu` driver shows in sysfs: no library, no privileges.
//!
//! `/sys/class/drm/cardN/device` holds `vendor` (0x1002), `mem_info_vram_total`,
//! `mem_info_vram_used`, `gpu_busy_percent`, `product_name` (some cards) and a `hwmon`
//! directory with temperature (m°C) and power (µW). A card that sleeps
//! (`power/runtime_status`) is not asked for sensors: that would wake it every two seconds.

use super::clip;
use std::fs;
use std::path::{Path, PathBuf};
use unamesh_proto::limits;
use unamesh_proto::wire::Gpu;

const VENDOR_AMD: &str = "0x1002";

/// Every AMD GPU below `sysfs` (`/sys`), in the order of the card numbers.
pub fn read(sysfs: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(sysfs.join("class/drm")) else {
        return Vec::new();
    };
    let mut cards: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            // `card0` is a GPU; `card0-HDMI-A-1` is one of its sockets.
            let number = entry
                .file_name()
                .to_str()?
                .strip_prefix("card")?
                .parse()
                .ok()?;
            Some((number, entry.path().join("device")))
        })
        .collect();
    cards.sort();
    cards
        .iter()
        .filter_map(|(_, device)| gpu(device))
        .take(limits::MAX_GPUS)
        .collect()
}

fn gpu(device: &Path) -> Option<Gpu> {
    if text(&device.join("vendor"))? != VENDOR_AMD {
        return None;
    }
    // Without it the driver is not amdgpu, and nothing can be said of the card.
    let total: u64 = number(&device.join("mem_info_vram_total"))?;
    let used: u64 = number(&device.join("mem_info_vram_used")).unwrap_or(0);
    let mut gpu = Gpu {
        name: name(device),
        memory_total: total,
        memory_free: total.saturating_sub(used),
        ..Gpu::default()
    };
    let asleep = text(&device.join("power/runtime_status")).is_some_and(|s| s == "suspended");
    if !asleep {
        let busy: u64 = number(&device.join("gpu_busy_percent")).unwrap_or(0);
        gpu.utilization = u8::try_from(busy.min(100)).unwrap_or(100);
        if let Some(sensors) = sensors(device) {
            let milli: i64 = number(&sensors.join("temp1_input")).unwrap_or(0);
            gpu.temperature = u8::try_from(milli / 1000).unwrap_or(0);
            let micro: u64 = ["power1_average", "power1_input"]
                .iter()
                .find_map(|file| number(&sensors.join(file)))
                .unwrap_or(0);
            gpu.power_mw = u32::try_from(micro / 1000).unwrap_or(u32::MAX);
        }
    }
    Some(gpu)
}

fn name(device: &Path) -> String {
    match text(&device.join("product_name")) {
        Some(name) if !name.is_empty() => clip(&name),
        _ => {
            let id = text(&device.join("device")).unwrap_or_default();
            clip(format!("AMD GPU {id}").trim())
        }
    }
}

/// The card's sensor directory, `hwmon/hwmonN`.
fn sensors(device: &Path) -> Option<PathBuf> {
    fs::read_dir(device.join("hwmon"))
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .min()
}

fn text(file: &Path) -> Option<String> {
    fs::read_to_string(file)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn number<T: std::str::FromStr>(file: &Path) -> Option<T> {
    text(file)?.parse().ok()
}
