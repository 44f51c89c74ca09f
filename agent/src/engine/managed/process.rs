//! A child process in its own process group.

use super::Command;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin};

/// What is kept of the child's error output, to say why it ended.
const TAIL: usize = 4096;

/// A running process. Dropping it kills its group.
pub struct Process {
    child: Child,
    pid: u32,
    /// Held open: its end is how a child learns that the agent is gone.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, never written to"))]
    stdin: Option<ChildStdin>,
    stderr: Option<ChildStderr>,
    tail: Vec<u8>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(command: &Command) -> std::io::Result<Process> {
        let mut builder = tokio::process::Command::new(&command.program);
        builder
            .args(&command.args)
            .envs(&command.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(cwd) = &command.cwd {
            builder.current_dir(cwd);
        }
        // Its own group: it can be stopped with all its children, and a Ctrl-C in the terminal
        // reaches the agent alone, which then stops it in order.
        #[cfg(unix)]
        builder.process_group(0);
        let mut child = builder.spawn()?;
        let pid = child.id().unwrap_or(0);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        Ok(Process {
            child,
            pid,
            stdin,
            stderr,
            tail: Vec::new(),
        })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets go of its standard input, as the end of the agent does.
    #[cfg(test)]
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Resolves with the reason when it has ended. Reads its error output meanwhile, so that it
    /// never blocks on a full pipe.
    pub async fn ended(&mut self) -> String {
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                status = self.child.wait() => {
                    self.drain(&mut buffer).await;
                    return self.obituary(status);
                }
                read = read_some(&mut self.stderr, &mut buffer) => {
                    self.keep(buffer.get(..read).unwrap_or_default());
                }
            }
        }
    }

    /// Asks it to end, and kills it after `grace`. Resolves when it is gone.
    pub async fn stop(mut self, grace: Duration) {
        self.signal_group(Signal::Terminate);
        if tokio::time::timeout(grace, self.ended()).await.is_ok() {
            return;
        }
        tracing::warn!(pid = self.pid, ?grace, "does not end, killing it");
        self.signal_group(Signal::Kill);
        let _ = self.child.start_kill();
        // Nothing withstands that but a process that hangs in the kernel.
        let _ = tokio::time::timeout(grace, self.child.wait()).await;
    }

    /// What was written before the end may still be in the pipe.
    async fn drain(&mut self, buffer: &mut [u8]) {
        const LAST_WORDS: Duration = Duration::from_millis(50);
        while let Ok(read @ 1..) =
            tokio::time::timeout(LAST_WORDS, read_some(&mut self.stderr, buffer)).await
        {
            self.keep(buffer.get(..read).unwrap_or_default());
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }

    fn obituary(&self, status: std::io::Result<ExitStatus>) -> String {
        let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        let text = String::from_utf8_lossy(&self.tail);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{status}: {}", line.trim()),
            None => status,
        }
    }

    fn signal_group(&self, signal: Signal) {
        signal_group(self.pid, signal);
    }
}

/// Signals the process `pid` and all of its group, which it leads.
#[cfg(unix)]
pub fn signal_group(pid: u32, signal: Signal) {
    use rustix::process::{Pid, Signal as Unix, kill_process_group};
    let signal = match signal {
        Signal::Terminate => Unix::TERM,
        Signal::Kill => Unix::KILL,
    };
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already, which is what we want.
        let _ = kill_process_group(group, signal);
    }
}

/// Without process groups there is no gentle way; the drop kills the child.
#[cfg(not(unix))]
pub fn signal_group(_pid: u32, _signal: Signal) {}

impl Drop for Process {
    fn drop(&mut self) {
        // Also after its leader ended: what it started belongs to the engine.
        self.signal_group(Signal::Kill);
    }
}

/// What ends a process.
#[derive(Clone, Copy)]
pub enum Signal {
    /// Asked to.
    Terminate,
    /// At once.
    Kill,
}

/// How many bytes came; pending for ever once the pipe is closed or broken.
async fn read_some(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    if let Some(pipe) = from
        && let Ok(read @ 1..) = pipe.read(buffer).await
    {
        return read;
    }
    *from = None;
    std::future::pending().await
}
