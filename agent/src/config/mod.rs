//! What the owner of a machine may decide: one TOML file, `UNAMESH_*` variables over it,
//! command-line flags over both.
//!
//! [`keys::KEYS`] is the one list of keys. It prints the documented default file
//! (`unamesh up --print-config`), names the environment variables, applies them and the
//! flags, and is what an unknown key of a file is compared with; a test holds it against the
//! structs here. A file is checked key by key before it is deserialized, so that a typing
//! error is reported with its line and the key that was probably meant.

mod api;
pub mod keys;
mod load;
mod near;

pub use api::EngineApi;
pub use keys::{documented_default, unknown_variable};
pub use load::{ConfigError, Sources};

use crate::engine::http::{UrlError, shown};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use unamesh_proto::{limits, timeouts};

/// The default port: TCP for the gateway, UDP for the data plane.
pub const PORT: u16 = 11400;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// For people; empty = the host's name.
    pub name: String,
    /// The local HTTP API.
    pub gateway: GatewayConfig,
    /// The mesh.
    pub mesh: MeshConfig,
    /// Finding engines.
    pub engines: EnginesConfig,
    /// Engines that are named, not found.
    pub engine: Vec<EngineConfig>,
    /// Serving others.
    pub serve: ServeConfig,
    /// Sleep, battery and heat.
    pub power: PowerConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The program itself.
    pub runtime: RuntimeConfig,
}

/// `[gateway]`: the local HTTP API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where it listens (TCP); port 0 = any free one.
    pub listen: SocketAddr,
    /// Callers from other machines need no token.
    pub open: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            open: false,
        }
    }
}

/// `[mesh]`: the other machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeshConfig {
    /// Where the data plane listens (UDP); port 0 = any free one.
    pub listen: SocketAddr,
    /// UDP port of the gossip swarm; 0 = any free one.
    pub swarm_port: u16,
    /// UDP port of the joining endpoint, open only while an invitation is; 0 = any free one.
    pub join_port: u16,
    /// `host:port` of data planes to try besides those that are found.
    pub seeds: Vec<String>,
    /// Announce this node and look for others by multicast DNS.
    pub mdns: bool,
    /// Where others reach the data plane, if not at this machine's own addresses.
    pub advertise: Vec<SocketAddr>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)),
            swarm_port: 0,
            join_port: 0,
            seeds: Vec::new(),
            mdns: true,
            advertise: Vec::new(),
        }
    }
}

/// `[engines]`: finding what computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnginesConfig {
    /// Look for engines on their standard ports of this machine.
    pub detect: bool,
}

impl Default for EnginesConfig {
    fn default() -> Self {
        EnginesConfig { detect: true }
    }
}

/// `[[engine]]`: one engine by name. With `command` the agent starts, watches and stops it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Unique on this machine; appears in adverts.
    pub name: String,
    /// What API it speaks.
    pub kind: EngineApi,
    /// Its base URL, `http://127.0.0.1:8080`.
    pub url: String,
    /// Program and arguments; empty = somebody else runs it.
    pub command: Vec<String>,
    /// The command's working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// Variables for the command, over the agent's own environment.
    pub env: BTreeMap<String, String>,
    /// Requests at the same time; 0 = what the engine says, else 1.
    pub slots: u16,
    /// The variable that holds the API key, so that no key stands in a file; empty = none.
    pub api_key_env: String,
    /// A path to ask for health; empty = the API's own.
    pub health: String,
}

/// `[serve]`: answering others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// A generation is kept this long (ms) after its client's connection was lost.
    pub grace_ms: u64,
    /// Requests that may wait for a slot of one engine.
    pub queue: usize,
    /// At shutdown, running answers get this long (ms) to move or end.
    pub drain_ms: u64,
    /// Administrators of the mesh may have this agent play a fault for a few seconds.
    pub drill: bool,
}

impl ServeConfig {
    /// [`ServeConfig::grace_ms`] as a duration.
    pub const fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// [`ServeConfig::drain_ms`] as a duration.
    pub const fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        ServeConfig {
            grace_ms: millis(timeouts::GRACE),
            queue: limits::MAX_QUEUE,
            drain_ms: millis(timeouts::SHUTDOWN),
            drill: false,
        }
    }
}

/// `[power]`: sleep, battery and heat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerConfig {
    /// On battery with less than this (percent) the node serves nobody; 0 = never mind.
    pub drain_below: u8,
    /// Hotter than this (degrees Celsius) the node serves nobody; 0 = never mind.
    pub drain_above_c: u8,
    /// The machine does not fall asleep by itself while it answers.
    pub keep_awake: bool,
}

impl Default for PowerConfig {
    fn default() -> Self {
        PowerConfig {
            drain_below: 15,
            drain_above_c: 0,
            keep_awake: false,
        }
    }
}

/// `[log]`: to standard error. Prompts, answers and keys are never logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,unamesh_client=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[runtime]`: the program itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Worker threads.
    pub workers: usize,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        // Engines do the computing. One thread carries thousands of requests a second, as many
        // as two beside busy engines, and a token never waits for another thread to wake: the
        // local path takes a third less (`unamesh bench overhead --workers 1` and `2`).
        // Whatever may block (drivers, files) runs on threads of its own.
        RuntimeConfig { workers: 1 }
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// The most worker threads that may be configured.
const MAX_WORKERS: usize = 64;

impl Config {
    /// The node's name for people: as configured, else the host's.
    pub fn node_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let host = sysinfo::System::host_name().unwrap_or_default();
        let label = host.split('.').next().unwrap_or_default().trim();
        if label.is_empty() {
            "unamesh".to_owned()
        } else {
            label.to_owned()
        }
    }

    /// What types alone do not rule out.
    ///
    /// # Errors
    /// `(key, message)` of the first value that cannot work; the message says what can.
    pub fn check(&self) -> Result<(), (String, String)> {
        let bad = |key: &str, message: String| Err((key.to_owned(), message));
        if self.name.len() > limits::MAX_NAME || self.name.contains(char::is_control) {
            return bad(
                "name",
                format!("must be printable and at most {} bytes", limits::MAX_NAME),
            );
        }
        for seed in &self.mesh.seeds {
            if !is_host_port(seed) {
                return bad(
                    "mesh.seeds",
                    format!("{seed:?} is not host:port, for example \"192.168.1.20:{PORT}\""),
                );
            }
        }
        if self.mesh.advertise.len() > limits::MAX_ADDRS {
            return bad(
                "mesh.advertise",
                format!("must be at most {} addresses", limits::MAX_ADDRS),
            );
        }
        if self.serve.queue > limits::MAX_QUEUE {
            return bad(
                "serve.queue",
                format!("must be at most {}", limits::MAX_QUEUE),
            );
        }
        if self.power.drain_below > 100 {
            return bad("power.drain_below", "must be 0 to 100 percent".to_owned());
        }
        if !(1..=MAX_WORKERS).contains(&self.runtime.workers) {
            return bad("runtime.workers", format!("must be 1 to {MAX_WORKERS}"));
        }
        self.check_engines()
    }

    fn check_engines(&self) -> Result<(), (String, String)> {
        if self.engine.len() > limits::MAX_ENGINES {
            return Err((
                "engine".into(),
                format!("at most {} engines", limits::MAX_ENGINES),
            ));
        }
        let mut names = std::collections::BTreeSet::new();
        for (at, engine) in self.engine.iter().enumerate() {
            let bad =
                |field: &str, message: String| Err((format!("engine[{at}].{field}"), message));
            if engine.name.is_empty() || engine.name.len() > limits::MAX_NAME {
                return bad("name", format!("must have 1 to {} bytes", limits::MAX_NAME));
            }
            if !names.insert(&engine.name) {
                return bad(
                    "name",
                    format!("{:?} is used twice; names must differ", engine.name),
                );
            }
            let schemes = engine.kind.schemes();
            if schemes.is_empty() && engine.url.is_empty() {
                continue;
            }
            match url::Url::parse(&engine.url) {
                Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                    return bad("url", UrlError::Credentials.to_string());
                }
                Ok(url) if schemes.contains(&url.scheme()) && url.has_host() => {}
                _ => {
                    return bad(
                        "url",
                        format!(
                            "{:?} is no base URL; write for example \"http://127.0.0.1:8080\"",
                            shown(&engine.url)
                        ),
                    );
                }
            }
            if !engine.health.is_empty() && !engine.health.starts_with('/') {
                return bad("health", format!("{:?} must start with /", engine.health));
            }
        }
        Ok(())
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && port.parse::<u16>().is_ok_and(|p| p > 0)
            && (!host.contains(':') || text.parse::<SocketAddr>().is_ok())
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
