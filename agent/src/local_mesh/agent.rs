//! One agent of a local mesh.

use super::LocalError;
use super::http;
use super::process::{Process, program, until};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// An agent answers within this after its start.
const START: Duration = Duration::from_secs(10);

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

/// The local API of an agent.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where it listens.
    pub gateway: SocketAddr,
    /// What it wants to see.
    pub token: String,
}

impl Door {
    /// What `GET path` of the mesh API answers; with a `body`, `POST path`.
    ///
    /// # Errors
    /// It does not answer, or refuses: with its reason.
    pub fn call(&self, path: &str, body: Option<&Value>) -> Result<Value, LocalError> {
        let target = format!("/unamesh/v1/{path}");
        let body = body.map(Value::to_string);
        let (status, answer) =
            http::once(self.gateway, &target, Some(&self.token), body.as_deref())
                .map_err(LocalError::during(&target))?;
        let answer: Value = serde_json::from_slice(&answer).map_err(LocalError::during(&target))?;
        match (status, answer["error"]["message"].as_str()) {
            (200, _) => Ok(answer),
            (_, Some(message)) => Err(LocalError::new(path, message)),
            (status, None) => Err(LocalError::new(path, format!("HTTP {status}"))),
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
    pub fn process(&mut self) -> Result<&mut Process, LocalError> {
        let stopped = || LocalError::new(&self.name, "it does not run");
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
    pub fn spawn(&mut self) -> Result<(), LocalError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("agent.log"))
            .map_err(LocalError::during(&self.name))?;
        let errors = log.try_clone().map_err(LocalError::during(&self.name))?;
        let child = self
            .command()?
            .arg("up")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(LocalError::during(&self.name))?;
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
    pub fn start(&mut self) -> Result<(), LocalError> {
        self.spawn()?;
        self.ready()
    }

    /// Waits until the API of its process answers.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn ready(&mut self) -> Result<(), LocalError> {
        let what = format!("{} answers", self.name);
        until(&what, START, || {
            if let Some(Process(child)) = &mut self.process
                && let Ok(Some(status)) = child.try_wait()
            {
                let log = self.log_tail();
                return Err(LocalError::new(
                    &self.name,
                    format!("ended with {status}: {log}"),
                ));
            }
            Ok(self.find().ok().filter(|()| self.api("status").is_ok()))
        })
    }

    /// Reads where the running process listens.
    fn find(&mut self) -> Result<(), LocalError> {
        let state = self.state();
        let read =
            |file: &str| fs::read_to_string(state.join(file)).map_err(LocalError::during(file));
        let info: Value =
            serde_json::from_str(&read("agent.json")?).map_err(LocalError::during("agent.json"))?;
        let own = self.process.as_ref().map(|p| u64::from(p.id()));
        let gateway = info["gateway"].as_str().and_then(|a| a.parse().ok());
        match (gateway, info["node"].as_str()) {
            (Some(gateway), Some(node)) if info["pid"].as_u64() == own => {
                self.node = node.to_owned();
                self.gateway = gateway;
                self.token = read("admin.token")?.trim().to_owned();
                Ok(())
            }
            _ => Err(LocalError::new(
                &self.name,
                "agent.json is of an earlier process",
            )),
        }
    }

    /// What `GET path` of its mesh API answers.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn api(&self, path: &str) -> Result<Value, LocalError> {
        self.door().call(path, None)
    }

    /// Where it is asked, for those who keep no hold of it.
    pub fn door(&self) -> Door {
        Door {
            gateway: self.gateway,
            token: self.token.clone(),
        }
    }

    /// The nodes that it ranks for `model`, best first.
    ///
    /// # Errors
    /// As [`Agent::api`].
    pub fn ranked(&self, model: &str) -> Result<Vec<String>, LocalError> {
        let why = self.api(&format!("why?model={model}"))?;
        let ranked = why["ranked"].as_array().cloned().unwrap_or_default();
        let nodes = ranked
            .iter()
            .filter_map(|c| c["node"].as_str().map(str::to_owned));
        Ok(nodes.collect())
    }

    /// Runs one of the program's commands for this machine: the JSON that it prints.
    ///
    /// # Errors
    /// It fails; says what it wrote.
    pub fn run(&self, arguments: &[&str]) -> Result<Value, LocalError> {
        let what = format!("{}: unamesh {}", self.name, arguments.join(" "));
        let output = self
            .command()?
            .arg("--json")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(LocalError::during(&what))?;
        if !output.status.success() {
            return Err(LocalError::new(
                &what,
                String::from_utf8_lossy(&output.stderr),
            ));
        }
        serde_json::from_slice(&output.stdout).map_err(LocalError::during(&what))
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    fn command(&self) -> Result<Command, LocalError> {
        let mut command = program()?;
        command.arg("--state").arg(self.state());
        command.arg("--config").arg(self.home.join("unamesh.toml"));
        Ok(command)
    }
}

/// Where an agent's data plane is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Where it listens: the same after a restart, as an owner's is.
    pub listen: SocketAddr,
    /// Where others find it, if that is elsewhere.
    pub front: Option<SocketAddr>,
}

impl Place {
    /// A free one.
    pub fn free() -> Result<Self, LocalError> {
        let socket = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let listen = socket.map_err(LocalError::during("a UDP port"))?;
        Ok(Place {
            listen,
            front: None,
        })
    }
}

impl Agent {
    /// Writes the configuration of agent `at` in a directory of its own below `root`; `seed`:
    /// where it finds the others.
    pub(super) fn create(
        root: &Path,
        at: usize,
        setup: &Setup,
        place: Place,
        seed: Option<SocketAddr>,
    ) -> Result<Agent, LocalError> {
        let name = format!("local-{}", ["a", "b", "c", "d"].get(at).unwrap_or(&"x"));
        let home = root.join(&name);
        fs::create_dir_all(&home).map_err(LocalError::during(&name))?;
        let list = |addr: Option<SocketAddr>| {
            let addr = addr.map(|addr| format!("\"{addr}\""));
            addr.unwrap_or_default()
        };
        let config = format!(
            "name = \"{name}\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n[mesh]\nlisten = \"{}\"\n\
             advertise = [{}]\nmdns = {}\nseeds = [{}]\n[engines]\ndetect = false\n{}",
            place.listen,
            list(place.front),
            setup.mdns,
            list(seed),
            setup.config
        );
        fs::write(home.join("unamesh.toml"), config).map_err(LocalError::during(&name))?;
        Ok(Agent {
            name,
            home,
            process: None,
            gateway: SocketAddr::from(([127, 0, 0, 1], 0)),
            node: String::new(),
            token: String::new(),
        })
    }
}
