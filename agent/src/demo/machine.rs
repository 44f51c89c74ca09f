//! One agent of a demo: a process of this program.

use super::DemoError;
use super::home::Home;
use crate::config::{Config, EngineConfig, EnginesConfig, GatewayConfig, MeshConfig};
use crate::engine::http::Http;
use crate::state::{AdminToken, AgentInfo, StateDir};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// An agent answers its local API within this, on a busy machine too.
const START: Duration = Duration::from_secs(20);
/// How often that is looked at.
pub const LOOK: Duration = Duration::from_millis(10);
/// Lines of a log that are shown when an agent fails.
const LOG_LINES: usize = 6;
/// One agent. Dropping it kills the process, and its engine ends with it.
pub struct Machine {
    /// In the tables.
    pub name: &'static str,
    /// Its state directory, with its configuration and log.
    pub dir: PathBuf,
    child: Option<Child>,
    /// The epoch in which it was killed: adverts up to this one are those of a dead process.
    pub gone: u64,
    /// How many engines it has.
    pub engines: usize,
}

impl Machine {
    /// Its directory and configuration, with the engines that fit into the directory.
    pub fn prepare(
        home: &Home,
        name: &'static str,
        engines: impl FnOnce(&Path) -> Result<Vec<EngineConfig>, DemoError>,
    ) -> Result<Machine, DemoError> {
        let dir = home.member(name)?;
        let engine = engines(&dir)?;
        let machine = Machine {
            name,
            dir,
            child: None,
            gone: 0,
            engines: engine.len(),
        };
        let config = Config {
            name: name.to_owned(),
            gateway: GatewayConfig {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                ..GatewayConfig::default()
            },
            mesh: MeshConfig {
                // One port for its life, as a real machine has: restarted on the same one, an
                // agent tells those who knew it that their connections are void.
                listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, free_udp_port()?)),
                ..MeshConfig::default()
            },
            engines: EnginesConfig { detect: false },
            engine,
            ..Config::default()
        };
        let path = machine.config();
        let failed = |error: std::io::Error| DemoError::File {
            path: path.clone(),
            error,
        };
        let text = toml::to_string(&config).map_err(|e| failed(std::io::Error::other(e)))?;
        std::fs::write(&path, text).map_err(failed)?;
        Ok(machine)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// This program with the machine's own state and configuration, and nothing of the user's.
    fn command(&self, args: &[&str]) -> Result<Command, DemoError> {
        let program = std::env::current_exe().map_err(|error| DemoError::File {
            path: "this program".into(),
            error,
        })?;
        let mut command = Command::new(program);
        command
            .args(args)
            .arg("--state")
            .arg(&self.dir)
            .arg("--config")
            .arg(self.config());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNAMESH_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command that ends, and reads the JSON that it prints.
    pub async fn run(&self, args: &[&str]) -> Result<Value, DemoError> {
        let failed = |output: String| DemoError::Command {
            command: format!("{} ({})", args.first().unwrap_or(&""), self.name),
            output,
        };
        let mut command = self.command(args)?;
        let done = command
            .arg("--json")
            .output()
            .await
            .map_err(|e| failed(e.to_string()))?;
        if !done.status.success() {
            return Err(failed(
                String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            ));
        }
        serde_json::from_slice(&done.stdout).map_err(|e| failed(e.to_string()))
    }

    /// A link for `uses` members of `role`.
    pub async fn invite(&self, role: &str, uses: usize) -> Result<String, DemoError> {
        let uses = uses.to_string();
        let answer = self
            .run(&["invite", "--role", role, "--uses", &uses])
            .await?;
        Ok(answer["link"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts the agent and waits until it answers.
    pub async fn start(&mut self) -> Result<(), DemoError> {
        let path = self.log();
        let failed = |error: std::io::Error| DemoError::File {
            path: path.clone(),
            error,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        let mut command = self.command(&["up"])?;
        command.stdout(Stdio::null()).stderr(log);
        // Its own group: a Ctrl-C reaches the demo alone, which then stops everything in order.
        #[cfg(unix)]
        command.process_group(0);
        self.child = Some(command.spawn().map_err(failed)?);
        match tokio::time::timeout(START, self.answers()).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let (name, reason) = (self.name.to_owned(), last_lines(&path));
                Err(DemoError::Agent { name, reason })
            }
            Err(_) => {
                let what = format!(
                    "the agent {} answers (its log: {})",
                    self.name,
                    path.display()
                );
                Err(DemoError::Late { what, after: START })
            }
        }
    }

    /// Resolves with true once the agent wrote where it answers, with false if it ended.
    async fn answers(&mut self) -> bool {
        let pid = self.pid();
        loop {
            let child = self.child.as_mut();
            if child.is_none_or(|child| !matches!(child.try_wait(), Ok(None))) {
                return false;
            }
            if self.info().is_some_and(|info| Some(info.pid) == pid) {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it was killed and not started again.
    pub fn is_down(&self) -> bool {
        self.child.is_none()
    }

    /// Lets go of the process.
    pub fn leave(&mut self) {
        self.child = None;
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::Terminate);
    }

    /// Resolves when it has ended.
    pub async fn ended(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.wait().await;
        }
    }

    /// What its agent wrote of itself.
    pub fn info(&self) -> Option<AgentInfo> {
        AgentInfo::read(&StateDir::open(&self.dir).ok()?).ok()?
    }

    /// Its process, while it is not killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The peers that its agent lists as alive.
    pub async fn sees(&self) -> usize {
        let Some(client) = self.local() else { return 0 };
        match client.get::<Value>("/unamesh/v1/peers", START).await {
            Ok(Ok(Value::Array(peers))) => peers
                .iter()
                .filter(|peer| peer["liveness"] == "alive")
                .count(),
            _ => 0,
        }
    }

    /// Its local API.
    fn local(&self) -> Option<Http> {
        let info = self.info()?;
        let token = AdminToken::load(&StateDir::open(&self.dir).ok()?).ok()??;
        let url = format!("http://{}", info.gateway).parse().ok()?;
        Http::with_idle(&url, Some(token.reveal()), 0).ok()
    }

    /// Kills it with SIGKILL, and the engines that are the demo's own.
    pub fn kill(&mut self) {
        self.signal(Signal::Kill);
        for file in self.pid_files() {
            let pid = std::fs::read_to_string(&file).ok();
            if let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) {
                send(pid, Signal::Kill);
            }
            let _ = std::fs::remove_file(file);
        }
        // Dropping the handle has the runtime reap the process.
        self.child = None;
    }

    /// Where its engines wrote their process ids.
    fn pid_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|e| e == "pid"))
            .collect()
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            send(pid, signal);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.start_kill();
        }
    }
}

#[derive(Clone, Copy)]
enum Signal {
    Terminate,
    Kill,
}

#[cfg(unix)]
fn send(pid: u32, signal: Signal) {
    use rustix::process::{Pid, Signal as Unix, kill_process};
    let signal = match signal {
        Signal::Terminate => Unix::TERM,
        Signal::Kill => Unix::KILL,
    };
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        let _ = kill_process(pid, signal);
    }
}

/// Without signals the handles' drop is all there is.
#[cfg(not(unix))]
fn send(_pid: u32, _signal: Signal) {}

fn free_udp_port() -> Result<u16, DemoError> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let port = UdpSocket::bind(any).and_then(|socket| socket.local_addr());
    port.map(|addr| addr.port())
        .map_err(|error| DemoError::File {
            path: "udp".into(),
            error,
        })
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(LOG_LINES)..)
        .unwrap_or_default()
        .join("\n")
}
