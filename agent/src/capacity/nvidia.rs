//! NVIDIA GPUs through NVML, the library that comes with the driver.
//!
//! It is loaded when the agent runs, so the same program works on machines without it. A
//! driver that fails (updated under us, GPU lost) is let go and tried again after
//! [`RETRY`]; until then its GPUs are absent from adverts, since a figure that nobody
//! can read any more would attract requests.

use super::clip;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use unamesh_proto::limits;
use unamesh_proto::wire::Gpu;

/// After a failure, and to notice a driver that is installed while the agent runs.
const RETRY: Duration = Duration::from_secs(60);

/// The driver, if there is one.
pub struct Nvidia {
    library: Option<PathBuf>,
    driver: Option<Nvml>,
    /// Do not load before.
    retry_at: Option<Instant>,
    /// The last failure, so that each is logged once.
    failure: Option<String>,
}

impl Nvidia {
    /// `library`: the path of NVML; `None` = where the driver puts it. Loads nothing yet.
    pub fn new(library: Option<PathBuf>) -> Self {
        Nvidia {
            library,
            driver: None,
            retry_at: None,
            failure: None,
        }
    }

    /// Every GPU with its figures now; empty without a working driver.
    pub fn read(&mut self, now: Instant) -> Vec<Gpu> {
        if self.driver.is_none() && self.retry_at.is_none_or(|at| now >= at) {
            match load(self.library.as_ref()) {
                Ok(driver) => self.driver = Some(driver),
                Err(error) => self.failed(&error, now),
            }
        }
        let Some(driver) = &self.driver else {
            return Vec::new();
        };
        match gpus(driver) {
            Ok(gpus) => {
                self.failure = None;
                gpus
            }
            Err(error) => {
                self.driver = None;
                self.failed(&error, now);
                Vec::new()
            }
        }
    }

    /// What went wrong last; `None` while the driver works. Without an NVIDIA GPU the
    /// library is simply absent: that is no failure.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn failed(&mut self, error: &NvmlError, now: Instant) {
        self.retry_at = Some(now + RETRY);
        if matches!(error, NvmlError::LibloadingError(_)) && self.library.is_none() {
            tracing::debug!(%error, "no NVIDIA driver");
            return;
        }
        let text = error.to_string();
        if self.failure.as_ref() != Some(&text) {
            tracing::warn!(
                error = text,
                "the NVIDIA driver does not answer; its GPUs are not offered (does `nvidia-smi` work?)"
            );
            self.failure = Some(text);
        }
    }
}

fn load(library: Option<&PathBuf>) -> Result<Nvml, NvmlError> {
    match library {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::init(),
    }
}

fn gpus(driver: &Nvml) -> Result<Vec<Gpu>, NvmlError> {
    let count = driver
        .device_count()?
        .min(u32::try_from(limits::MAX_GPUS).unwrap_or(u32::MAX));
    (0..count).map(|index| gpu(driver, index)).collect()
}

/// Name and memory must be there; the rest is 0 where a card does not tell it.
fn gpu(driver: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = driver.device_by_index(index)?;
    let memory = device.memory_info()?;
    Ok(Gpu {
        name: clip(&device.name()?),
        memory_total: memory.total,
        memory_free: memory.free,
        utilization: optional(device.utilization_rates())?
            .map_or(0, |u| u8::try_from(u.gpu.min(100)).unwrap_or(100)),
        temperature: optional(device.temperature(TemperatureSensor::Gpu))?
            .map_or(0, |t| u8::try_from(t).unwrap_or(u8::MAX)),
        power_mw: optional(device.power_usage())?.unwrap_or(0),
    })
}

/// `None` for what this card or driver does not offer; other errors stand.
fn optional<T>(figure: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match figure {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NoPermission,
        ) => Ok(None),
        Err(e) => Err(e),
    }
}
