//! Engines that the agent itself starts, watches, restarts and stops.
//!
//! A task owns the process. It ends with the agent: asked by SIGTERM to its whole process group,
//! killed after [`STOP_ENGINE`], killed at once if the task is dropped. Should the agent itself
//! be killed, the engine's standard input closes; the starter engine takes that as its end (any
//! other that does not is found again by its URL when the agent comes back, and adopted: ended
//! with the agent if it is surely the process that this agent started, see [`PidFile`], and left
//! alone else).
//!
//! An engine that exits is started again after a pause that doubles from [`RESTART_MIN`] to
//! [`RESTART_MAX`], with jitter, so that several agents with the same broken configuration do
//! not beat in time; running well for [`RESTART_RESET`] forgets the failures.

mod earlier;
mod process;

pub use earlier::PidFile;

use super::hearing::{HearCall, HearStream, Sound};
use super::speech::{SpeechCall, SpeechStream};
use super::{Engine, EngineError, EngineInfo, EngineStream};
use process::Process;
use rand::Rng;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::timeouts::{
    ENGINE_POLL, LOAD_MAX, RESTART_MAX, RESTART_MIN, RESTART_RESET, STOP_ENGINE,
};
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, Residency};

/// How to start an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program; looked up in `PATH` if it has no slash.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs; `None` = where the agent does.
    pub cwd: Option<PathBuf>,
    /// Variables over the agent's own.
    pub env: BTreeMap<String, String>,
}

/// Where its process is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Runs as this process, and has not answered yet.
    Starting {
        /// Process id.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// Runs as this process and has answered.
    Up {
        /// Process id.
        pid: u32,
    },
    /// An engine runs at its URL that this life of the agent did not start; it is used.
    Adopted,
    /// Not running: it is started again at the given time.
    Waiting {
        /// When.
        until: Instant,
        /// Why it does not run.
        reason: String,
    },
    /// The agent stops.
    Stopped,
}

/// A managed engine: an [`Engine`] whose process is looked after.
pub struct Managed {
    engine: Arc<dyn Engine>,
    state: watch::Sender<State>,
    /// Its models when they were last known, while it restarts.
    models: Mutex<Vec<ModelAdvert>>,
    restart: Notify,
    /// Where its process is written down, if it may outlive the agent.
    pid_file: Option<PidFile>,
}

impl Managed {
    /// Starts `command` and watches it; `engine` is the adapter that talks to it. Ends with
    /// `stop`; the task is tracked by `tasks`. What an earlier life left running by `pid_file` is
    /// ended like a process of its own.
    pub fn start(
        command: Command,
        engine: Arc<dyn Engine>,
        pid_file: Option<PidFile>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Managed> {
        let now = Instant::now();
        let managed = Arc::new(Managed {
            engine,
            state: watch::Sender::new(State::Waiting {
                until: now,
                reason: String::new(),
            }),
            models: Mutex::default(),
            restart: Notify::new(),
            pid_file,
        });
        tasks.spawn(Arc::clone(&managed).run(command, stop));
        managed
    }

    /// What its process does.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Changes of it.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    async fn run(self: Arc<Self>, command: Command, stop: CancellationToken) {
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let reason = self.run_once(&command, &stop).await;
            if stop.is_cancelled() {
                break;
            }
            failures = if began.elapsed() >= RESTART_RESET {
                0
            } else {
                failures + 1
            };
            let pause = backoff(failures);
            tracing::warn!(
                engine = self.name(),
                reason,
                ?pause,
                "engine ended, will be restarted"
            );
            self.state.send_replace(State::Waiting {
                until: Instant::now() + pause,
                reason,
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.state.send_replace(State::Stopped);
    }

    /// One life of the process; says why it ended. With `stop` it is ended in order; dropping
    /// the future kills it.
    async fn run_once(&self, command: &Command, stop: &CancellationToken) -> String {
        let adopted = stop.run_until_cancelled(self.adopt()).await;
        // Ours, and not of use any more: the agent stops, or it does not answer.
        if let Some(earlier) = self.pid_file.as_ref().and_then(PidFile::earlier) {
            earlier.stop(STOP_ENGINE).await;
        }
        if let Some(true) | None = adopted {
            return "the engine that ran at its URL went away".to_owned();
        }
        let mut process = match Process::spawn(command) {
            Ok(process) => process,
            Err(error) => return format!("{}: {error}", command.program.display()),
        };
        let pid = process.pid();
        if let Some(file) = &self.pid_file {
            file.write(pid);
        }
        tracing::info!(engine = self.name(), pid, "engine started");
        self.state.send_replace(State::Starting {
            pid,
            since: Instant::now(),
        });
        let reason = tokio::select! {
            // The process first: when it is gone, nothing else counts.
            biased;
            reason = process.ended() => return reason,
            () = stop.cancelled() => "the agent stops".to_owned(),
            () = self.restart.notified() => "it hung".to_owned(),
            () = self.never_answered() => "it did not answer for too long after its start".to_owned(),
        };
        process.stop(STOP_ENGINE).await;
        reason
    }

    /// If somebody else's engine answers: resolves with `true` when it no longer does.
    async fn adopt(&self) -> bool {
        if self.engine.describe().await.is_err() {
            return false;
        }
        tracing::info!(
            engine = self.name(),
            "an engine already answers at its URL: using it"
        );
        self.state.send_replace(State::Adopted);
        loop {
            tokio::time::sleep(ENGINE_POLL).await;
            if let Err(EngineError::Down { .. }) = self.engine.describe().await {
                return true;
            }
        }
    }

    async fn never_answered(&self) {
        tokio::time::sleep(LOAD_MAX).await;
        let mut states = self.state.subscribe();
        if !matches!(*states.borrow_and_update(), State::Starting { .. }) {
            std::future::pending::<()>().await;
        }
    }

    /// It answered: a process that was starting is up.
    fn answered(&self, info: &EngineInfo) {
        if info.health != Health::Starting {
            self.state.send_if_modified(|state| match *state {
                State::Starting { pid, .. } => {
                    *state = State::Up { pid };
                    true
                }
                _ => false,
            });
        }
        if !info.models.is_empty() {
            self.models().clone_from(&info.models);
        }
    }

    fn starting(&self) -> EngineInfo {
        let loading = |model: &ModelAdvert| ModelAdvert {
            residency: Residency::Loading,
            ..model.clone()
        };
        let models = self.models().iter().map(loading).collect();
        EngineInfo {
            health: Health::Starting,
            slots: 1,
            models,
            version: String::new(),
            voices: Vec::new(),
        }
    }

    fn models(&self) -> MutexGuard<'_, Vec<ModelAdvert>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Engine for Managed {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let said = self.engine.describe().await;
        match (said, self.state()) {
            (Ok(info), _) => {
                self.answered(&info);
                Ok(info)
            }
            (Err(EngineError::Down { .. } | EngineError::Busy { .. }), State::Starting { .. }) => {
                Ok(self.starting())
            }
            (Err(EngineError::Down { engine, .. }), State::Waiting { reason, .. })
                if !reason.is_empty() =>
            {
                Err(EngineError::Down { engine, reason })
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        self.engine.generate(request).await
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        self.engine.speak(call).await
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        self.engine.hear(call, sound).await
    }

    fn local_port(&self) -> Option<u16> {
        self.engine.local_port()
    }

    fn wedged(&self) {
        if matches!(self.state(), State::Up { .. }) {
            self.restart.notify_one();
        }
    }
}

/// The pause before restart number `failures`: doubled each time, and up to a half shorter.
fn backoff(failures: u32) -> Duration {
    let doubled = RESTART_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(RESTART_MAX)
        .mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
