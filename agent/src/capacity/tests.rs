#![allow(clippy::unwrap_used, clippy::panic)]

use super::power::{NO_BATTERY, Power, of_pmset, of_sysfs, of_win32_battery};
use super::*;
use std::path::Path;
use std::process::Command;

/// Compiles the fake driver with `defines` and returns its path.
#[cfg(target_os = "linux")]
fn fake_nvml(dir: &Path, defines: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capacity/testdata/fake_nvml.c");
    let library = dir.join("libnvidia-ml.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args(defines)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[cfg(target_os = "linux")]
mod nvidia_driver {
    use super::*;
    use crate::capacity::nvidia::Nvidia;

    #[test]
    fn two_gpus() {
        let dir = tempfile::tempdir().unwrap();
        let mut nvidia = Nvidia::new(Some(fake_nvml(dir.path(), &[])));
        let gpus = nvidia.read(Instant::now());
        assert_eq!(gpus.len(), 2);
        assert_eq!(
            gpus[0],
            Gpu {
                name: "Fake GeForce RTX 3060".into(),
                memory_total: 12 << 30,
                memory_free: 8 << 30,
                utilization: 42,
                temperature: 61,
                power_mw: 123_456,
            }
        );
        assert_eq!((gpus[1].utilization, gpus[1].memory_total), (100, 24 << 30));
        assert_eq!(nvidia.failure(), None);
    }

    #[test]
    fn a_card_without_sensors_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let library = fake_nvml(dir.path(), &["-DGPUS=1", "-DNO_SENSORS"]);
        let gpus = Nvidia::new(Some(library)).read(Instant::now());
        assert_eq!(gpus.len(), 1);
        assert_eq!(
            (gpus[0].utilization, gpus[0].power_mw, gpus[0].temperature),
            (0, 0, 61)
        );
    }

    #[test]
    fn a_driver_that_does_not_start_is_named_and_retried_later() {
        let dir = tempfile::tempdir().unwrap();
        let library = fake_nvml(dir.path(), &["-DINIT_RESULT=9"]);
        let mut nvidia = Nvidia::new(Some(library));
        let start = Instant::now();
        assert!(nvidia.read(start).is_empty());
        assert!(
            nvidia.failure().unwrap().contains("driver"),
            "{:?}",
            nvidia.failure()
        );

        // Repaired: used after the pause, not before.
        let fixed = fake_nvml(dir.path(), &["-DGPUS=1", "-Wl,-soname,repaired"]);
        assert!(fixed.exists());
        assert!(nvidia.read(start + Duration::from_secs(59)).is_empty());
        assert_eq!(nvidia.read(start + Duration::from_secs(60)).len(), 1);
        assert_eq!(nvidia.failure(), None);
    }

    #[test]
    fn a_lost_gpu_is_no_longer_offered() {
        let dir = tempfile::tempdir().unwrap();
        let library = fake_nvml(dir.path(), &["-DLOST_AFTER=2"]);
        let mut sampler = Sampler::new(Sources {
            nvml: Some(library),
            sysfs: dir.path().into(),
        });
        assert_eq!(sampler.sample().unwrap().gpus.len(), 2);
        assert_eq!(sampler.sample().unwrap().gpus.len(), 0, "reported at once");
        assert!(sampler.nvidia.failure().is_some());
    }

    #[test]
    fn no_library_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut absent = Nvidia::new(Some(dir.path().join("none.so")));
        assert!(absent.read(Instant::now()).is_empty());
        assert!(
            absent.failure().is_some(),
            "a library named by the user should be there"
        );
        if !Path::new("/proc/driver/nvidia").exists() {
            let mut standard = Nvidia::new(None);
            assert!(standard.read(Instant::now()).is_empty());
            assert_eq!(standard.failure(), None);
        }
    }
}

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn amd_gpus_are_read_from_sysfs() {
    let dir = tree(&[
        ("class/drm/version", "drm 1.1.0"),
        // An integrated Intel GPU and a socket: neither counts.
        ("class/drm/card0/device/vendor", "0x8086\n"),
        ("class/drm/card1-DP-1/device/vendor", "0x1002\n"),
        ("class/drm/renderD128/device/vendor", "0x1002\n"),
        ("class/drm/card10/device/vendor", "0x1002\n"),
        ("class/drm/card10/device/device", "0x744c\n"),
        (
            "class/drm/card10/device/mem_info_vram_total",
            "25753026560\n",
        ),
        ("class/drm/card10/device/mem_info_vram_used", "1073741824\n"),
        ("class/drm/card10/device/gpu_busy_percent", "7\n"),
        ("class/drm/card10/device/power/runtime_status", "active\n"),
        (
            "class/drm/card10/device/hwmon/hwmon3/temp1_input",
            "48000\n",
        ),
        (
            "class/drm/card10/device/hwmon/hwmon3/power1_average",
            "31000000\n",
        ),
        // A sleeping card keeps its memory and is not asked for sensors.
        ("class/drm/card2/device/vendor", "0x1002\n"),
        ("class/drm/card2/device/product_name", "Radeon Pro W7900\n"),
        (
            "class/drm/card2/device/mem_info_vram_total",
            "48301604864\n",
        ),
        ("class/drm/card2/device/power/runtime_status", "suspended\n"),
        ("class/drm/card2/device/gpu_busy_percent", "99\n"),
        // A card under another driver: nothing can be said.
        ("class/drm/card3/device/vendor", "0x1002\n"),
        // Rubbish in a file is a figure that is not given.
        ("class/drm/card4/device/vendor", "0x1002\n"),
        ("class/drm/card4/device/mem_info_vram_total", "1000\n"),
        ("class/drm/card4/device/mem_info_vram_used", "lots\n"),
        ("class/drm/card4/device/hwmon/hwmon0/temp1_input", "-5000\n"),
    ]);
    let gpus = amd::read(dir.path());
    let names: Vec<&str> = gpus.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["Radeon Pro W7900", "AMD GPU", "AMD GPU 0x744c"]);
    assert_eq!(
        (gpus[0].utilization, gpus[0].memory_free),
        (0, 48_301_604_864)
    );
    assert_eq!((gpus[1].memory_free, gpus[1].temperature), (1000, 0));
    assert_eq!(gpus[2].memory_free, 25_753_026_560 - 1_073_741_824);
    assert_eq!(
        (gpus[2].utilization, gpus[2].temperature, gpus[2].power_mw),
        (7, 48, 31_000)
    );
    assert!(amd::read(Path::new("/nonexistent")).is_empty());
}

#[test]
fn the_hottest_sensor_of_the_processor_counts() {
    let dir = tree(&[
        ("class/hwmon/hwmon0/name", "nvme\n"),
        ("class/hwmon/hwmon0/temp1_input", "99000\n"),
        ("class/hwmon/hwmon1/name", "k10temp\n"),
        ("class/hwmon/hwmon1/temp1_input", "61500\n"),
        ("class/hwmon/hwmon1/temp1_max", "95000\n"),
        ("class/hwmon/hwmon1/temp3_input", "rubbish\n"),
        ("class/thermal/thermal_zone0/type", "acpitz\n"),
        ("class/thermal/thermal_zone0/temp", "97000\n"),
        ("class/thermal/thermal_zone1/type", "cpu-thermal\n"),
        ("class/thermal/thermal_zone1/temp", "64999\n"),
    ]);
    assert_eq!(thermal::of_sysfs(dir.path()), Some(64));
    assert_eq!(thermal::of_sysfs(&dir.path().join("none")), None);
}

#[test]
fn unified_memory_is_shared_with_the_system() {
    let gpu = apple::gpu("Apple M3", 16_000_000_000, 9_000_000_000);
    assert_eq!(gpu.name, "Apple M3 GPU");
    assert_eq!(
        (gpu.memory_total, gpu.memory_free),
        (7_500_000_000, 7_500_000_000)
    );
    assert_eq!(
        apple::gpu("Apple M3", 16_000_000_000, 2 << 30).memory_free,
        2 << 30
    );
    assert_eq!(
        apple::gpu("Apple M1", 4_000_000_000, 2 << 30).memory_total,
        0
    );
}

#[test]
fn power_on_linux() {
    let laptop = |online: &'static str, status: &'static str| {
        let dir = tree(&[
            ("class/power_supply/AC/type", "Mains\n"),
            ("class/power_supply/AC/online", online),
            ("class/power_supply/BAT0/type", "Battery\n"),
            ("class/power_supply/BAT0/capacity", "80\n"),
            ("class/power_supply/BAT0/status", status),
            ("class/power_supply/BAT1/type", "Battery\n"),
            ("class/power_supply/BAT1/capacity", "60\n"),
            ("class/power_supply/hidpp/type", "Battery\n"),
            ("class/power_supply/hidpp/scope", "Device\n"),
            ("class/power_supply/hidpp/capacity", "5\n"),
            ("class/power_supply/hidpp/status", "Discharging\n"),
        ]);
        of_sysfs(dir.path())
    };
    assert_eq!(
        laptop("0\n", "Discharging\n"),
        Power {
            on_battery: true,
            battery: 70
        }
    );
    assert_eq!(
        laptop("1\n", "Discharging\n"),
        Power {
            on_battery: false,
            battery: 70
        }
    );
    assert_eq!(
        laptop("1\n", "Charging\n"),
        Power {
            on_battery: false,
            battery: 70
        }
    );
    assert_eq!(of_sysfs(tree(&[("x", "")]).path()), Power::MAINS);
}

#[test]
fn power_on_macos_and_windows() {
    let on = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t85%; discharging; 4:12 remaining present: true\n";
    assert_eq!(
        of_pmset(on),
        Power {
            on_battery: true,
            battery: 85
        }
    );
    let off = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true\n";
    assert_eq!(
        of_pmset(off),
        Power {
            on_battery: false,
            battery: 100
        }
    );
    assert_eq!(of_pmset("Now drawing from 'AC Power'\n"), Power::MAINS);
    assert_eq!(
        of_win32_battery("1 43\r\n"),
        Power {
            on_battery: true,
            battery: 43
        }
    );
    assert_eq!(
        of_win32_battery("2 99\r\n"),
        Power {
            on_battery: false,
            battery: 99
        }
    );
    assert_eq!(of_win32_battery("\r\n"), Power::MAINS);
}

#[test]
fn this_machine_has_a_processor_and_memory() {
    let mut sampler = Sampler::new(Sources {
        nvml: None,
        sysfs: "/nonexistent".into(),
    });
    let hardware = sampler.sample().unwrap();
    assert!(hardware.cores > 0 && hardware.ram_total > 1 << 28);
    assert!(hardware.ram_free > 0 && hardware.ram_free <= hardware.ram_total);
    assert_eq!(hardware.battery, NO_BATTERY);
}

#[test]
fn jitter_is_not_news_but_a_step_is() {
    let base = Hardware {
        ram_total: 1000,
        ram_free: 500,
        battery: 50,
        gpus: vec![Gpu {
            memory_total: 1000,
            memory_free: 500,
            ..Gpu::default()
        }],
        ..Hardware::default()
    };
    let changed = |change: fn(&mut Hardware)| {
        let mut new = base.clone();
        change(&mut new);
        differs(&base, &new)
    };
    assert!(!changed(|_| {}));
    assert!(!changed(|h| h.ram_free += 49));
    assert!(changed(|h| h.ram_free += 50));
    assert!(!changed(|h| h.gpus[0].memory_free -= 49));
    assert!(changed(|h| h.gpus[0].memory_free -= 50));
    assert!(!changed(|h| h.gpus[0].utilization = 24));
    assert!(changed(|h| h.gpus[0].utilization = 25));
    assert!(!changed(|h| h.gpus[0].power_mw = 20_000));
    assert!(changed(|h| h.on_battery = true));
    assert!(changed(|h| h.gpus.clear()));
    assert!(!changed(|h| h.battery = 51));
    assert!(changed(|h| h.battery = 48));
}

/// A creeping figure reports once a threshold, measured from what was last reported.
#[test]
fn a_creeping_figure_reports_once_a_threshold() {
    let mut reported = Hardware {
        ram_total: 1000,
        ram_free: 1000,
        ..Hardware::default()
    };
    let mut reports = 0;
    for free in (500..1000).rev() {
        let new = Hardware {
            ram_free: free,
            ..reported.clone()
        };
        if differs(&reported, &new) {
            reported = new;
            reports += 1;
        }
    }
    assert_eq!(reports, 10);
}
