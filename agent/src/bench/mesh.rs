//! A mesh of real agents for a benchmark: this program again, a process each, with own keys,
//! state and ports, joined as a user joins machines (`init`, `invite`, `join`).

use super::BenchError;
use super::http;
use super::process::{Process, program, until};
use serde_json::Value;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// An agent answers within this after its start.
const START: Duration = Duration::from_secs(10);
/// Agents know of each other and of their engines within this.
const MEET: Duration = Duration::from_secs(20);

/// How an agent is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// More of its configuration file: engines.
    pub config: String,
    /// Finds others by multicast DNS instead of a configured address.
    pub mdns: bool,
}

impl Setup {
    /// In front of one OpenAI-style engine.
    pub fn openai(engine: SocketAddr) -> Self {
        let config = format!(
            "[[engine]]\nname = \"bench\"\nkind = \"openai\"\nurl = \"http://{engine}\"\nslots = 256\n"
        );
        Setup {
            config,
            mdns: false,
        }
    }
}

/// An agent.
pub struct Agent {
    /// Its name.
    pub name: String,
    home: PathBuf,
    process: Option<Process>,
    /// Its gateway.
    pub gateway: SocketAddr,
    /// Its node id.
    pub node: String,
    /// Of its local API.
    pub token: String,
}

impl Agent {
    /// Its running process.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&mut self) -> Result<&mut Process, BenchError> {
        let stopped = || BenchError::new(&self.name, "it does not run");
        self.process.as_mut().ok_or_else(stopped)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts its process; does not wait.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&mut self) -> Result<(), BenchError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("agent.log"))
            .map_err(BenchError::during(&self.name))?;
        let errors = log.try_clone().map_err(BenchError::during(&self.name))?;
        let child = self
            .command()?
            .arg("up")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(BenchError::during(&self.name))?;
        self.process = Some(Process(child));
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let log = fs::read_to_string(self.home.join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Starts it and waits until its API answers.
    ///
    /// # Errors
    /// It ends or does not answer; says where its log is.
    pub fn start(&mut self) -> Result<(), BenchError> {
        self.spawn()?;
        self.ready()
    }

    /// Waits until the API of its process answers.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn ready(&mut self) -> Result<(), BenchError> {
        let what = format!("{} answers", self.name);
        until(&what, START, || {
            if let Some(Process(child)) = &mut self.process
                && let Ok(Some(status)) = child.try_wait()
            {
                let log = self.log_tail();
                return Err(BenchError::new(
                    &self.name,
                    format!("ended with {status}: {log}"),
                ));
            }
            Ok(self.find().ok().filter(|()| self.api("status").is_ok()))
        })
    }

    /// Reads where the running process listens.
    fn find(&mut self) -> Result<(), BenchError> {
        let state = self.state();
        let read =
            |file: &str| fs::read_to_string(state.join(file)).map_err(BenchError::during(file));
        let info: Value =
            serde_json::from_str(&read("agent.json")?).map_err(BenchError::during("agent.json"))?;
        let own = self.process.as_ref().map(|p| u64::from(p.id()));
        let gateway = info["gateway"].as_str().and_then(|a| a.parse().ok());
        match (gateway, info["node"].as_str()) {
            (Some(gateway), Some(node)) if info["pid"].as_u64() == own => {
                self.node = node.to_owned();
                self.gateway = gateway;
                self.token = read("admin.token")?.trim().to_owned();
                Ok(())
            }
            _ => Err(BenchError::new(
                &self.name,
                "agent.json is of an earlier process",
            )),
        }
    }

    /// What `GET path` of its mesh API answers.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn api(&self, path: &str) -> Result<Value, BenchError> {
        let target = format!("/unamesh/v1/{path}");
        let (status, body) = http::once(self.gateway, &target, Some(&self.token), None)
            .map_err(BenchError::during(&target))?;
        if status != 200 {
            return Err(BenchError::new(&target, format!("HTTP {status}")));
        }
        serde_json::from_slice(&body).map_err(BenchError::during(&target))
    }

    /// The nodes that it ranks for `model`, best first.
    ///
    /// # Errors
    /// As [`Agent::api`].
    pub fn ranked(&self, model: &str) -> Result<Vec<String>, BenchError> {
        let why = self.api(&format!("why?model={model}"))?;
        let ranked = why["ranked"].as_array().cloned().unwrap_or_default();
        let nodes = ranked
            .iter()
            .filter_map(|c| c["node"].as_str().map(str::to_owned));
        Ok(nodes.collect())
    }

    /// Runs one of the program's commands for this machine: the JSON that it prints.
    fn run(&self, arguments: &[&str]) -> Result<Value, BenchError> {
        let what = format!("{}: unamesh {}", self.name, arguments.join(" "));
        let output = self
            .command()?
            .arg("--json")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(BenchError::during(&what))?;
        if !output.status.success() {
            return Err(BenchError::new(
                &what,
                String::from_utf8_lossy(&output.stderr),
            ));
        }
        serde_json::from_slice(&output.stdout).map_err(BenchError::during(&what))
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    fn command(&self) -> Result<Command, BenchError> {
        let mut command = program()?;
        command.arg("--state").arg(self.state());
        command.arg("--config").arg(self.home.join("unamesh.toml"));
        Ok(command)
    }
}

/// Agents of one mesh, each in a directory of its own below one that goes with them.
pub struct Mesh {
    /// In the order of their setups; the first made the mesh.
    pub agents: Vec<Agent>,
    _root: tempfile::TempDir,
}

impl Mesh {
    /// Starts an agent for each setup and returns when the first can choose every one whose
    /// setup names an engine for `model`.
    ///
    /// # Errors
    /// One does not come up, join or find the others.
    pub fn start(setups: &[Setup], model: &str) -> Result<Self, BenchError> {
        let root = tempfile::Builder::new()
            .prefix("unamesh-bench-")
            .tempdir()
            .map_err(BenchError::during("a directory for the agents"))?;
        let mut agents: Vec<Agent> = Vec::new();
        for (at, setup) in setups.iter().enumerate() {
            let seeds = match agents.first() {
                Some(first) if !setup.mdns => quic(first)?,
                _ => String::new(),
            };
            let mut agent = create(root.path(), at, setup, &seeds)?;
            match agents.first() {
                None => agent.run(&["init"])?,
                Some(first) => {
                    let invitation = first.run(&["invite"])?;
                    let link = invitation["link"].as_str().unwrap_or_default();
                    agent.run(&["join", link])?
                }
            };
            agent.start()?;
            agents.push(agent);
        }
        let mesh = Mesh {
            agents,
            _root: root,
        };
        let serving = setups
            .iter()
            .filter(|s| s.config.contains("[[engine]]"))
            .count();
        mesh.chooses(model, serving)?;
        Ok(mesh)
    }

    /// Waits until the first agent knows agent `at` as it runs now: its entry may still be
    /// that of an earlier process.
    ///
    /// # Errors
    /// It does not hear of it.
    pub fn knows(&self, at: usize) -> Result<(), BenchError> {
        let (Some(first), Some(other)) = (self.agents.first(), self.agents.get(at)) else {
            return Err(BenchError::new("bench", "no such agent"));
        };
        let epoch = |agent: &Agent| -> Result<Option<u64>, BenchError> {
            let peers = agent.api("peers")?;
            let mut peers = peers.as_array().into_iter().flatten();
            let entry = peers.find(|p| p["node"] == other.node.as_str());
            Ok(entry.and_then(|p| p["epoch"].as_u64()))
        };
        let own = epoch(other)?;
        let what = format!("{} knows the new {}", first.name, other.name);
        until(&what, MEET, || Ok((epoch(first)? == own).then_some(())))
    }

    /// Waits until the first agent can choose `count` agents for `model`.
    ///
    /// # Errors
    /// It cannot.
    pub fn chooses(&self, model: &str, count: usize) -> Result<(), BenchError> {
        let what = format!("{count} agents can be chosen for {model}");
        until(&what, MEET, || {
            let ranked = self.agents.first().map(|first| first.ranked(model));
            let ranked = ranked.transpose()?.unwrap_or_default();
            Ok((ranked.len() == count).then_some(()))
        })
    }
}

/// The address of an agent's data plane on this host.
fn quic(agent: &Agent) -> Result<String, BenchError> {
    let text = fs::read_to_string(agent.state().join("agent.json"))
        .map_err(BenchError::during("agent.json"))?;
    let info: Value = serde_json::from_str(&text).map_err(BenchError::during("agent.json"))?;
    let quic: Option<SocketAddr> = info["quic"].as_str().and_then(|a| a.parse().ok());
    let quic = quic.ok_or_else(|| BenchError::new("agent.json", "no QUIC address"))?;
    Ok(format!("\"127.0.0.1:{}\"", quic.port()))
}

fn create(root: &Path, at: usize, setup: &Setup, seeds: &str) -> Result<Agent, BenchError> {
    let name = format!("bench-{}", ["a", "b", "c", "d"].get(at).unwrap_or(&"x"));
    let home = root.join(&name);
    fs::create_dir_all(&home).map_err(BenchError::during(&name))?;
    // The same after a restart, as an owner's is.
    let port = free_udp_port().map_err(BenchError::during("a UDP port"))?;
    let config = format!(
        "name = \"{name}\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n[mesh]\nlisten = \"127.0.0.1:{port}\"\n\
         mdns = {}\nseeds = [{seeds}]\n[engines]\ndetect = false\n{}",
        setup.mdns, setup.config
    );
    fs::write(home.join("unamesh.toml"), config).map_err(BenchError::during(&name))?;
    Ok(Agent {
        name,
        home,
        process: None,
        gateway: SocketAddr::from(([127, 0, 0, 1], 0)),
        node: String::new(),
        token: String::new(),
    })
}

fn free_udp_port() -> std::io::Result<u16> {
    Ok(std::net::UdpSocket::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
