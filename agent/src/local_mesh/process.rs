//! Processes that end with their handle: this program again, and the test engine.

use super::{LocalError, http};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process ends within this after SIGTERM.
const STOP: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(2);

/// A process that ends with this value.
pub struct Process(pub(super) Child);

impl Process {
    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended, or this system has no such signals.
    pub fn signal(&self, signal: Signal) -> Result<(), LocalError> {
        send(self.0.id(), signal)
    }

    /// Waits for the end after SIGTERM.
    ///
    /// # Errors
    /// It does not end.
    pub fn ended(&mut self) -> Result<(), LocalError> {
        until("an agent ends after SIGTERM", STOP, || {
            Ok(self.0.try_wait().ok().flatten().map(|_| ()))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: leave.
    Terminate,
    /// SIGSTOP: freeze.
    Freeze,
    /// SIGCONT: thaw.
    Thaw,
}

/// Sends `signal` to any process of this user.
///
/// # Errors
/// It has ended, or this system has no such signals.
#[cfg(unix)]
pub fn send(pid: u32, signal: Signal) -> Result<(), LocalError> {
    use rustix::process::{self, Pid};
    let signal = match signal {
        Signal::Terminate => process::Signal::TERM,
        Signal::Freeze => process::Signal::STOP,
        Signal::Thaw => process::Signal::CONT,
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| LocalError::new("signal", "no such process"))?;
    process::kill_process(pid, signal).map_err(LocalError::during("signal"))
}

/// Signals are Unix's.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub fn send(_: u32, _: Signal) -> Result<(), LocalError> {
    Err(LocalError::new("signal", "this system has no such signals"))
}

/// The bundled test engine as a process.
pub struct TestEngine {
    process: Process,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl TestEngine {
    /// Starts one on any free port.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start() -> Result<Self, LocalError> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Kills it and starts it again on the same port.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self) -> Result<(), LocalError> {
        self.process.kill();
        *self = Self::start_at(self.addr)?;
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// It makes no more tokens, though it takes requests and says that it is well; or does again.
    ///
    /// # Errors
    /// It does not answer.
    pub fn hang(&self, hung: bool) -> Result<(), LocalError> {
        let target = if hung { "/bench/hang" } else { "/bench/go" };
        let said = http::once(self.addr, target, None, Some(""));
        said.map(drop)
            .map_err(LocalError::during("the test engine"))
    }

    fn start_at(addr: SocketAddr) -> Result<Self, LocalError> {
        let what = "the test engine";
        let mut child = program()?
            .args(["bench", "engine", "--listen", &addr.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(LocalError::during(what))?;
        let stdout = child.stdout.take();
        let process = Process(child);
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(LocalError::during(what))?;
        }
        let said: Value = serde_json::from_str(&line).map_err(LocalError::during(what))?;
        let addr = said["listen"].as_str().and_then(|a| a.parse().ok());
        let addr = addr.ok_or_else(|| LocalError::new(what, "it said no address"))?;
        Ok(TestEngine { process, addr })
    }
}

/// This program again, without what this run was configured with.
pub fn program() -> Result<Command, LocalError> {
    let what = "the path of this program";
    let mut command = Command::new(std::env::current_exe().map_err(LocalError::during(what))?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UNAMESH_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Looks at `condition` every [`POLL`] until it yields something.
///
/// # Errors
/// `limit` passed, or the condition says that waiting is of no use.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>, LocalError>,
) -> Result<T, LocalError> {
    let start = Instant::now();
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            return Err(LocalError::new(what, format!("not within {limit:?}")));
        }
        std::thread::sleep(POLL);
    }
}
