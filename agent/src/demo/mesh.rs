//! The agents of a demo: processes of this program.

use super::engines::Engines;
use super::home::Home;
use super::show::Show;
use super::{DemoError, verdict};
use crate::config::{Config, EnginesConfig, GatewayConfig, MeshConfig};
use crate::engine::http::Http;
use crate::state::{AdminToken, AgentInfo, StateDir};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use unamesh_client::client::{ClientConfig, MeshClient};
use unamesh_proto::table::Liveness;
use unamesh_proto::timeouts::{LOAD_MAX, SHUTDOWN};
use unamesh_proto::wire::{Advert, Health};

/// Their names in the tables.
const NAMES: [&str; 3] = ["desk", "laptop", "tower"];
/// The name of the member that asks.
const CLIENT: &str = "phone";
/// An agent answers its local API within this, on a busy machine too.
const START: Duration = Duration::from_secs(20);
/// The agents know each other within this (it takes a fraction of a second).
const DISCOVERY: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of a log that are shown when an agent fails.
const LOG_LINES: usize = 6;

/// Three agents and a client.
pub struct Mesh {
    machines: Vec<Machine>,
    /// The member that asks.
    pub client: MeshClient,
    engines: Engines,
    discovery: Duration,
}

impl Mesh {
    /// Makes the mesh and waits until everybody knows everybody and the engines answer.
    pub async fn start(home: &Home, engines: Engines, show: &Show) -> Result<Mesh, DemoError> {
        let mut machines = Vec::new();
        for name in NAMES {
            machines.push(Machine::prepare(home, name, Some(&engines))?);
        }
        let guest = Machine::prepare(home, CLIENT, None)?;
        show.step("starting three agents")?;
        let [desk, others @ ..] = machines.as_mut_slice() else {
            return Err(nobody());
        };
        desk.run(&["init", "demo"]).await?;
        desk.start().await?;
        let link = desk.invite("agent", others.len()).await?;
        for machine in others.iter() {
            machine.run(&["join", &link]).await?;
        }
        let guests = desk.invite("client", 1).await?;
        let joined = guest.run(&["join", &guests, "--name", CLIENT]).await?;
        let began = Instant::now();
        for machine in others {
            machine.start().await?;
        }
        all_see_all(&machines).await?;
        let discovery = began.elapsed();
        show.step("waiting for the engines")?;
        let client = MeshClient::connect(ClientConfig {
            state_dir: guest.dir.clone(),
            seeds: texts(&joined["seeds"]),
            mdns: true,
        })?;
        let mesh = Mesh {
            machines,
            client,
            engines,
            discovery,
        };
        mesh.ready().await?;
        Ok(mesh)
    }

    /// The model to ask.
    pub fn model(&self) -> &str {
        self.engines.model()
    }

    /// For the report.
    pub fn facts(&self) -> verdict::Facts {
        verdict::Facts {
            peers: self.machines.len(),
            discovery: self.discovery,
            model: self.model().to_owned(),
            engine: self.engines.describe(),
        }
    }

    /// Kills the agent `name` with SIGKILL, and its engine if it is the demo's own.
    pub fn kill(&mut self, name: &str) {
        let table = self.client.peers();
        if let Some(machine) = self.machines.iter_mut().find(|m| m.name == name) {
            machine.kill();
            let advert = table
                .peers
                .iter()
                .map(|peer| &peer.advert)
                .find(|a| a.name == name);
            machine.gone = advert.map_or(0, |advert| advert.epoch);
        }
    }

    /// Starts what was killed and waits until all is as it was.
    pub async fn restore(&mut self) -> Result<(), DemoError> {
        for machine in self.machines.iter_mut().filter(|m| m.child.is_none()) {
            machine.start().await?;
        }
        all_see_all(&self.machines).await?;
        self.ready().await
    }

    /// Waits until the client can choose among all agents.
    async fn ready(&self) -> Result<(), DemoError> {
        let model = self.model();
        let mut changes = self.client.peer_changes();
        let ready = changes.wait_for(|table| {
            self.machines.iter().all(|machine| {
                let peers = table.peers.iter();
                peers
                    .filter(|peer| peer.advert.name == machine.name)
                    .any(|peer| {
                        peer.liveness == Liveness::Alive
                            && peer.advert.epoch > machine.gone
                            && serves(&peer.advert, model)
                    })
            })
        });
        let what = || format!("all agents offer {model:?}");
        within(LOAD_MAX, what, async { Ok(ready.await.is_ok()) })
            .await
            .map(drop)
    }

    /// Lets go of the processes: they outlive the demo.
    pub fn leave(mut self) {
        for machine in &mut self.machines {
            machine.child = None;
        }
    }

    /// What stays after `--keep`, for scripts.
    pub fn kept(&self) -> Value {
        let machine = |m: &Machine| {
            serde_json::json!({
                "name": m.name,
                "state": m.dir,
                "config": m.config(),
                "pid": m.pid(),
                "gateway": m.info().map(|info| format!("http://{}", info.gateway)),
            })
        };
        self.machines.iter().map(machine).collect()
    }

    /// State directories, gateways and process ids of the agents that run.
    pub fn running(&self) -> impl Iterator<Item = (&Path, SocketAddr, u32)> {
        self.machines
            .iter()
            .filter_map(|m| Some((m.dir.as_path(), m.info()?.gateway, m.pid()?)))
    }

    /// Ends everything in order: the client, then the agents, which end their engines.
    pub async fn stop(mut self) {
        self.client.shutdown().await;
        for machine in &self.machines {
            machine.signal(Signal::Terminate);
        }
        let ended = async {
            for machine in &mut self.machines {
                if let Some(child) = &mut machine.child {
                    let _ = child.wait().await;
                }
            }
        };
        // What does not end in time is killed by the drop.
        let _ = tokio::time::timeout(SHUTDOWN * 2, ended).await;
    }
}

/// One agent. Dropping it kills the process, and its engine ends with it.
struct Machine {
    name: &'static str,
    dir: PathBuf,
    child: Option<Child>,
    /// The epoch in which it was killed: adverts up to this one are those of a dead process.
    gone: u64,
}

impl Machine {
    /// Its directory and configuration.
    fn prepare(
        home: &Home,
        name: &'static str,
        engines: Option<&Engines>,
    ) -> Result<Machine, DemoError> {
        let dir = home.member(name)?;
        let machine = Machine {
            name,
            dir,
            child: None,
            gone: 0,
        };
        let entry = engines
            .map(|engines| engines.entry(&machine.pid_file()))
            .transpose()?;
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
            engine: entry.into_iter().collect(),
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

    fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("engine.pid")
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
    async fn run(&self, args: &[&str]) -> Result<Value, DemoError> {
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
    async fn invite(&self, role: &str, uses: usize) -> Result<String, DemoError> {
        let uses = uses.to_string();
        let answer = self
            .run(&["invite", "--role", role, "--uses", &uses])
            .await?;
        Ok(answer["link"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts the agent and waits until it answers.
    async fn start(&mut self) -> Result<(), DemoError> {
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
        let child = command.spawn().map_err(failed)?;
        let pid = child.id();
        self.child = Some(child);
        let what = || {
            format!(
                "the agent {} answers (its log: {})",
                self.name,
                path.display()
            )
        };
        let child = &mut self.child;
        let info = (&self.dir, pid);
        let up = async {
            loop {
                if child
                    .as_mut()
                    .is_none_or(|c| !matches!(c.try_wait(), Ok(None)))
                {
                    return Err(());
                }
                if read_info(info.0).is_some_and(|found| Some(found.pid) == info.1) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(START, up).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err(DemoError::Agent {
                name: self.name.to_owned(),
                reason: last_lines(&path),
            }),
            Err(_) => Err(DemoError::Late {
                what: what(),
                after: START,
            }),
        }
    }

    fn info(&self) -> Option<AgentInfo> {
        read_info(&self.dir)
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The peers that its agent lists as alive.
    async fn sees(&self) -> usize {
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

    fn kill(&mut self) {
        let engine = std::fs::read_to_string(self.pid_file()).ok();
        self.signal(Signal::Kill);
        if let Some(pid) = engine.and_then(|text| text.trim().parse().ok()) {
            send(pid, Signal::Kill);
        }
        let _ = std::fs::remove_file(self.pid_file());
        // Dropping the handle has the runtime reap the process.
        self.child = None;
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

/// Whether one of its engines can answer for `model` now.
fn serves(advert: &Advert, model: &str) -> bool {
    let healthy = |index: u16| {
        advert
            .engines
            .get(usize::from(index))
            .is_some_and(|e| e.health == Health::Ok)
    };
    advert
        .models
        .iter()
        .any(|m| m.name == model && healthy(m.engine))
}

/// Waits until each agent lists all of them as alive.
async fn all_see_all(machines: &[Machine]) -> Result<(), DemoError> {
    let all = async {
        loop {
            let seen = futures_util::future::join_all(machines.iter().map(Machine::sees)).await;
            if seen.iter().all(|n| *n >= machines.len()) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within(
        DISCOVERY,
        || "the agents find each other (unamesh doctor)".to_owned(),
        all,
    )
    .await
}

async fn within<T>(
    limit: Duration,
    what: impl Fn() -> String,
    work: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    let late = || DemoError::Late {
        what: what(),
        after: limit,
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

fn free_udp_port() -> Result<u16, DemoError> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let port = UdpSocket::bind(any).and_then(|socket| socket.local_addr());
    port.map(|addr| addr.port()).map_err(|error| DemoError::File { path: "udp".into(), error })
}

fn read_info(dir: &Path) -> Option<AgentInfo> {
    AgentInfo::read(&StateDir::open(dir).ok()?).ok()?
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

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn nobody() -> DemoError {
    DemoError::Agent {
        name: NAMES.concat(),
        reason: "no agents".to_owned(),
    }
}
