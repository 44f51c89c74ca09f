//! One starter engine that runs: for tests and measurements that want a real engine.

use super::{Starter, StarterError};
use crate::config::EngineConfig;
use crate::engine::configured::command;
use crate::engine::managed::{Managed, State};
use crate::engine::{Engine, EngineSpec, adapter};
use std::net::TcpListener;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::timeouts::{ENGINE_START_POLL, LOAD_MAX};
use unamesh_proto::wire::Health;

/// The starter model's name in the API.
pub const MODEL: &str = "smollm2-135m";

/// A real engine. It ends with [`RunningEngine::stop`], and at the
/// latest when this is dropped.
pub struct RunningEngine {
    /// The adapter, with the process behind it.
    pub engine: Arc<Managed>,
    /// Where it answers.
    pub url: url::Url,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl RunningEngine {
    /// Starts llama.cpp with `extra` arguments of the start script and waits until it answers.
    ///
    /// # Errors
    /// [`StarterError::Engine`].
    pub async fn start(starter: &Starter, extra: &[&str]) -> Result<RunningEngine, StarterError> {
        let port = free_port().map_err(failed)?;
        let extra: Vec<String> = extra.iter().map(|arg| (*arg).to_owned()).collect();
        RunningEngine::of(&starter.entry(&format!("starter-{port}"), port, &extra)).await
    }

    /// Starts the engine of an entry that has a command, and waits until it answers.
    ///
    /// # Errors
    /// [`StarterError::Engine`].
    pub async fn of(entry: &EngineConfig) -> Result<RunningEngine, StarterError> {
        let url: url::Url = entry.url.parse().map_err(failed)?;
        let spec = EngineSpec {
            name: entry.name.clone(),
            kind: entry.kind.kind(),
            url: url.clone(),
            slots: (entry.slots > 0).then_some(entry.slots),
            api_key: None,
        };
        let talks = adapter(&spec).map_err(failed)?;
        let command = command(entry).ok_or_else(|| failed("it has no command"))?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let engine = Managed::start(command, talks, None, &tasks, stop.clone());
        let running = RunningEngine {
            engine,
            url,
            tasks,
            stop,
        };
        match tokio::time::timeout(LOAD_MAX, running.answers()).await {
            Ok(Ok(())) => Ok(running),
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("it did not answer in time")),
        }
    }

    async fn answers(&self) -> Result<(), String> {
        loop {
            if let Ok(info) = self.engine.describe().await
                && info.health == Health::Ok
            {
                return Ok(());
            }
            if let State::Waiting { reason, .. } = self.engine.state()
                && !reason.is_empty()
            {
                return Err(reason);
            }
            tokio::time::sleep(ENGINE_START_POLL).await;
        }
    }

    /// Ends it and waits until it is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for RunningEngine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn failed(why: impl ToString) -> StarterError {
    StarterError::Engine(why.to_string())
}

/// A port of the loopback interface that is free now.
///
/// # Errors
/// None is.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
