//! One starter engine that runs: for tests and measurements that want a real engine.

use super::{Starter, StarterError};
use crate::engine::managed::{Command, Managed, State};
use crate::engine::{Engine, EngineSpec, adapter};
use std::net::TcpListener;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::timeouts::{ENGINE_START_POLL, LOAD_MAX};
use unamesh_proto::wire::{EngineKind, Health};

/// The starter model's name in the API.
pub const MODEL: &str = "smollm2-135m";

/// A real llama.cpp server on a free port. It ends with [`RunningEngine::stop`], and at the
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
    /// Starts one with `extra` arguments of the start script and waits until it answers.
    ///
    /// # Errors
    /// [`StarterError::Engine`].
    pub async fn start(starter: &Starter, extra: &[&str]) -> Result<RunningEngine, StarterError> {
        let failed = |why: String| StarterError::Engine(why);
        let port = free_port().map_err(|e| failed(e.to_string()))?;
        let url: url::Url = format!("http://127.0.0.1:{port}")
            .parse()
            .map_err(|e: url::ParseError| failed(e.to_string()))?;
        let spec = EngineSpec {
            name: format!("starter-{port}"),
            kind: Some(EngineKind::LlamaCpp),
            url: url.clone(),
            slots: None,
            api_key: None,
        };
        let talks = adapter(&spec).map_err(|e| failed(e.to_string()))?;
        let extra: Vec<String> = extra.iter().map(|arg| (*arg).to_owned()).collect();
        let args = starter.command(port, &extra).split_off(1);
        let command = Command {
            program: starter.python.clone(),
            args,
            ..Command::default()
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let engine = Managed::start(command, talks, &tasks, stop.clone());
        let running = RunningEngine {
            engine,
            url,
            tasks,
            stop,
        };
        match tokio::time::timeout(LOAD_MAX, running.answers()).await {
            Ok(Ok(())) => Ok(running),
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("it did not answer in time".to_owned())),
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

/// A port of the loopback interface that is free now.
///
/// # Errors
/// None is.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
