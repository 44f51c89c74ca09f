//! One agent as a process of its own: the `unamesh` program with a state directory, a
//! configuration file and a log; started, asked, frozen, killed.
//!
//! The program is this package's own build of the agent's `main.rs` (`unamesh-under-test`), which
//! cargo makes together with the tests, so it is never a stale one.

use crate::http::{Net, Server};
use crate::measure::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// An agent answers its local API within this after its start, on a busy machine too.
pub const START: Duration = Duration::from_secs(10);
/// A process ends within this after SIGTERM.
pub const STOP: Duration = Duration::from_secs(10);

/// The program under test.
///
/// # Panics
/// If it is missing, with what to do.
#[must_use]
pub fn program() -> PathBuf {
    // target/PROFILE/deps/TEST-HASH -> target/PROFILE
    let test = std::env::current_exe().unwrap();
    let program = test
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("unamesh-under-test");
    assert!(
        program.is_file(),
        "{} is missing: run the tests with `cargo test --package unamesh-tests`, which builds it",
        program.display()
    );
    program
}

/// Runs a command of the program to its end.
pub async fn run(net: &Net, arguments: &[&str]) -> Output {
    command(net, &[]).args(arguments).output().await.unwrap()
}

/// The program, in `net`, below the command line `wrapper`.
fn command(net: &Net, wrapper: &[String]) -> Command {
    let program = program();
    let mut line: Vec<String> = Vec::new();
    if let Net::Namespace(name) = net {
        line.extend(["ip", "netns", "exec", name].map(str::to_owned));
    }
    line.extend_from_slice(wrapper);
    line.push(program.to_str().unwrap().to_owned());
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // Nothing of the developer's own mesh may leak into a test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNAMESH_")) {
        command.env_remove(name);
    }
    command
}

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub net: Net,
    /// Base URL of its one engine; `None`: it has none.
    pub engine: Option<SocketAddr>,
    /// Looks for others by multicast DNS.
    pub mdns: bool,
    /// More lines for its configuration file.
    pub config: String,
    /// A command line before the program's: `faketime`, `unshare`.
    pub wrapper: Vec<String>,
}

impl Setup {
    /// An agent on this host without an engine and without multicast DNS.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            net: Net::Host,
            engine: None,
            mdns: false,
            config: String::new(),
            wrapper: Vec::new(),
        }
    }

    /// In front of the engine at `addr`.
    #[must_use]
    pub fn engine(mut self, addr: SocketAddr) -> Self {
        self.engine = Some(addr);
        self
    }

    fn config(&self) -> String {
        let mut text = format!("name = {:?}\n", self.name);
        text.push_str("[gateway]\nlisten = \"127.0.0.1:0\"\n");
        // Every address, as in real life; on one host the loopback address is among them.
        let _ = write!(text, "[mesh]\nlisten = \"[::]:0\"\nmdns = {}\n", self.mdns);
        text.push_str("[engines]\ndetect = false\n");
        if let Some(addr) = self.engine {
            let _ = write!(
                text,
                "[[engine]]\nname = \"engine\"\nurl = \"http://{addr}\"\n"
            );
        }
        text.push_str(&self.config);
        text
    }
}

/// One machine's agent: its files, and its process while it runs.
pub struct Agent {
    /// How it is set up.
    pub setup: Setup,
    /// Its state directory.
    pub state: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Flags of `up`, over the configuration file.
    flags: Vec<String>,
    child: Option<Child>,
    info: Value,
}

impl Agent {
    /// Its files below `root`; nothing runs yet.
    #[must_use]
    pub fn new(root: &Path, setup: Setup) -> Self {
        let home = root.join(&setup.name);
        fs::create_dir_all(&home).unwrap();
        let config = home.join("unamesh.toml");
        fs::write(&config, setup.config()).unwrap();
        Self {
            state: home.join("state"),
            log: home.join("agent.log"),
            config,
            setup,
            flags: Vec::new(),
            child: None,
            info: Value::Null,
        }
    }

    /// Runs one of the program's commands as this machine's user would: with `--json`, and the
    /// JSON that it prints as the result.
    ///
    /// # Errors
    /// Its standard error, if it fails.
    pub async fn run(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut all = self.files().to_vec();
        all.push("--json");
        all.extend_from_slice(arguments);
        let output = run(&self.setup.net, &all).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{arguments:?}: {}: {stderr}", output.status));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| format!("{arguments:?}: no JSON: {e}: {stderr}"))
    }

    fn files(&self) -> [&str; 4] {
        [
            "--state",
            self.state.to_str().unwrap(),
            "--config",
            self.config.to_str().unwrap(),
        ]
    }

    /// From the next start on these settings go over the configuration file.
    pub fn set(&mut self, settings: &[(&str, &str)]) {
        let flag = |(key, value): &(&str, &str)| ["--set".to_owned(), format!("{key}={value}")];
        self.flags = settings.iter().flat_map(flag).collect();
    }

    /// Starts the process and returns at once.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.setup.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = command(&self.setup.net, &self.setup.wrapper)
            .args(self.files())
            .arg("up")
            .args(&self.flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts the process and waits until its local API answers.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until the local API of the running process answers, and tells how long.
    pub async fn ready(&mut self) -> Duration {
        let name = self.setup.name.clone();
        let (info, took) = until(&format!("{name} answers"), START, async || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten())
            {
                panic!("{name} ended with {status}:\n{}", self.log());
            }
            let info = self.read_info()?;
            self.server(&info).json("/unamesh/v1/status", None).await?;
            Ok(info)
        })
        .await;
        self.info = info;
        took
    }

    /// `agent.json`, if it is of the running process.
    fn read_info(&self) -> Result<Value, String> {
        let text = fs::read(self.state.join("agent.json")).map_err(|e| e.to_string())?;
        let info: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        // Below a wrapper the process has another id, but a fresh file is what counts there.
        let mine = self.setup.wrapper.is_empty();
        if mine && info["pid"].as_u64() != self.pid().map(|pid| pid.as_raw_nonzero().get() as u64) {
            return Err("agent.json is of an earlier process".into());
        }
        Ok(info)
    }

    fn server(&self, info: &Value) -> Server {
        let token = fs::read_to_string(self.state.join("admin.token")).unwrap_or_default();
        Server {
            net: self.setup.net.clone(),
            addr: info["gateway"]
                .as_str()
                .and_then(|addr| addr.parse().ok())
                .unwrap(),
            token: Some(token.trim().to_owned()),
        }
    }

    /// Its gateway, with the token of the local API.
    #[must_use]
    pub fn gateway(&self) -> Server {
        self.server(&self.info)
    }

    /// Its node id.
    #[must_use]
    pub fn node(&self) -> &str {
        self.info["node"].as_str().unwrap()
    }

    /// Where its data plane listens on this host.
    #[must_use]
    pub fn quic(&self) -> SocketAddr {
        let listen: SocketAddr = self.info["quic"]
            .as_str()
            .and_then(|a| a.parse().ok())
            .unwrap();
        SocketAddr::from(([127, 0, 0, 1], listen.port()))
    }

    /// What `path` of the local mesh API answers.
    ///
    /// # Errors
    /// See [`Server::json`].
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        self.gateway()
            .json(&format!("/unamesh/v1/{path}"), None)
            .await
    }

    /// What it wrote to its standard output and error so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether its process was started and not ended here.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.child
            .as_ref()?
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let pid = self
            .pid()
            .unwrap_or_else(|| panic!("{} does not run", self.setup.name));
        kill_process(pid, signal).unwrap();
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        match tokio::time::timeout(STOP, child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("{} does not end:\n{}", self.setup.name, self.log()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.setup.name, self.log());
        }
    }
}
