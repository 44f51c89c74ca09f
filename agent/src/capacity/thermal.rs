//! How hot the processor is. Only Linux tells every user; elsewhere nothing is known.

use std::path::Path;

/// Drivers of processors' sensors (`class/hwmon/*/name`).
const SENSORS: [&str; 4] = ["coretemp", "k10temp", "zenpower", "cpu_thermal"];

/// The hottest sensor of the processor in degrees Celsius: `class/hwmon/*/temp*_input` of the
/// drivers that belong to processors, and `class/thermal/*/temp` of zones named after them
/// (small boards have only those). `None` without any.
pub fn of_sysfs(sysfs: &Path) -> Option<u8> {
    let entries = |class: &str| {
        let found = std::fs::read_dir(sysfs.join("class").join(class));
        found.into_iter().flatten().flatten().map(|e| e.path())
    };
    let sensors = entries("hwmon")
        .filter(|path| SENSORS.contains(&text(&path.join("name")).as_str()))
        .flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten())
        .filter(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with("temp") && name.ends_with("_input")
        })
        .map(|file| file.path());
    let zones = entries("thermal")
        .filter(|path| {
            let kind = text(&path.join("type"));
            ["x86_pkg_temp", "cpu", "soc"]
                .iter()
                .any(|of| kind.starts_with(of))
        })
        .map(|path| path.join("temp"));
    let degrees = |file: std::path::PathBuf| {
        let millis: i64 = text(&file).parse().ok()?;
        u8::try_from(millis / 1000).ok()
    };
    sensors.chain(zones).filter_map(degrees).max()
}

fn text(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().to_owned()
}
