//! An engine as a process of its own.

use crate::http::{Net, Server};
use crate::measure::until;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// An engine answers its health check within this, on a busy machine too.
const START: Duration = Duration::from_secs(60);

/// A program that serves an engine's API on a loopback port of its host. It ends when this is
/// dropped.
pub struct EngineProcess {
    /// Where it answers, the same after each start.
    pub addr: SocketAddr,
    net: Net,
    line: Vec<String>,
    child: Option<Child>,
}

impl EngineProcess {
    /// Starts the command line that `line` makes of a free port of `net`.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(net: Net, line: impl FnOnce(u16) -> Vec<String>) -> Self {
        let free = net.inside(|| TcpListener::bind("127.0.0.1:0")?.local_addr());
        let addr = free.unwrap();
        let mut engine = Self {
            addr,
            line: line(addr.port()),
            net,
            child: None,
        };
        engine.again().await;
        engine
    }

    /// Starts it after [`EngineProcess::kill`], and waits until it is healthy.
    ///
    /// # Panics
    /// If it does not become so.
    pub async fn again(&mut self) {
        let mut line = Vec::new();
        if let Net::Namespace(name) = &self.net {
            line.extend(["ip", "netns", "exec", name].map(str::to_owned));
        }
        line.extend_from_slice(&self.line);
        let child = Command::new(&line[0])
            .args(&line[1..])
            // These engines end when it closes.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.unwrap());
        let server = Server {
            net: self.net.clone(),
            addr: self.addr,
            token: None,
        };
        until("the engine is healthy", START, async || {
            match server.send("/health", None).await?.status() {
                200 => Ok(()),
                status => Err(format!("status {status}")),
            }
        })
        .await;
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill(&mut self) {
        self.child.take().unwrap().kill().await.unwrap();
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).unwrap();
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}
