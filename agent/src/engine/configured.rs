//! Engines from the configuration: `[[engine]]` entries become adapters, with a process behind
//! those that have a command.

use super::hearing::{HearCall, HearStream, Sound};
use super::http::{Http, UrlError, shown};
use super::managed::{Command, Managed, PidFile};
use super::speech::{SpeechCall, SpeechStream};
use super::{Engine, EngineError, EngineInfo, EngineSpec, EngineStream, adapter};
use crate::config::EngineConfig;
use crate::state::StateDir;
use hyper::StatusCode;
use serde::de::IgnoredAny;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health};
use url::Url;

/// An entry cannot be used. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its URL is none.
    #[error("[[engine]] {name:?}: url {url:?}: {reason}; write it like \"http://127.0.0.1:8080\"")]
    Url {
        /// The engine.
        name: String,
        /// As written, less a name and a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The variable with its key is not set.
    #[error("[[engine]] {name:?}: the variable {variable} (api_key_env) is not set")]
    NoKey {
        /// The engine.
        name: String,
        /// The variable.
        variable: String,
    },
}

/// The engines of `entries`. Those with a command are started; their tasks are tracked by
/// `tasks` and end with `stop`; `state` keeps what may outlive the agent. `key` looks up a variable
/// of the environment.
///
/// # Errors
/// An entry cannot be used; nothing was started.
pub fn engines(
    entries: &[EngineConfig],
    state: &StateDir,
    key: impl Fn(&str) -> Option<String>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Vec<Arc<dyn Engine>>, EntryError> {
    let adapters: Vec<_> = entries
        .iter()
        .map(|e| one(e, &key))
        .collect::<Result<_, _>>()?;
    let manage = |index, entry: &EngineConfig, engine: Arc<dyn Engine>| match command(entry) {
        Some(command) => {
            let pid_file = Some(PidFile::new(state, index));
            Managed::start(command, engine, pid_file, tasks, stop.clone()) as Arc<dyn Engine>
        }
        None => engine,
    };
    let numbered = entries.iter().zip(adapters).enumerate();
    Ok(numbered
        .map(|(index, (entry, engine))| manage(index, entry, engine))
        .collect())
}

fn one(
    entry: &EngineConfig,
    key: impl Fn(&str) -> Option<String>,
) -> Result<Arc<dyn Engine>, EntryError> {
    let wrong = |reason: String| EntryError::Url {
        name: entry.name.clone(),
        url: shown(&entry.url).into_owned(),
        reason,
    };
    let kind = entry.kind.kind();
    // It is a program of this machine.
    let written = match (kind, entry.url.as_str()) {
        (Some(EngineKind::System), "") => "system:voice",
        (_, url) => url,
    };
    let url: Url = written
        .parse()
        .map_err(|e: url::ParseError| wrong(e.to_string()))?;
    let api_key = match entry.api_key_env.as_str() {
        "" => None,
        variable => Some(key(variable).ok_or_else(|| EntryError::NoKey {
            name: entry.name.clone(),
            variable: variable.to_owned(),
        })?),
    };
    let spec = EngineSpec {
        name: entry.name.clone(),
        kind,
        url: url.clone(),
        slots: (entry.slots > 0).then_some(entry.slots),
        api_key,
    };
    let usable = |error: UrlError| wrong(error.to_string());
    let engine = adapter(&spec).map_err(usable)?;
    if entry.health.is_empty() {
        return Ok(engine);
    }
    let http = Http::with_idle(&url, spec.api_key.as_deref(), 1).map_err(usable)?;
    let path = format!("/{}", entry.health.trim_start_matches('/'));
    Ok(Arc::new(Checked { engine, http, path }))
}

/// How to start the engine of an entry; `None` if it is only talked to.
pub(crate) fn command(entry: &EngineConfig) -> Option<Command> {
    let (program, args) = entry.command.split_first()?;
    Some(Command {
        program: program.into(),
        args: args.to_vec(),
        cwd: entry.cwd.clone(),
        env: entry.env.clone(),
    })
}

/// An engine with a health check of its own.
struct Checked {
    engine: Arc<dyn Engine>,
    http: Http,
    path: String,
}

#[async_trait::async_trait]
impl Engine for Checked {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        use super::http::HttpError;
        // Only the status counts; a health check may answer anything.
        match self.http.get::<IgnoredAny>(&self.path, ENGINE_HEALTH).await {
            Ok(Ok(_)) | Err(HttpError::Rubbish(_)) => self.engine.describe().await,
            Ok(Err((StatusCode::SERVICE_UNAVAILABLE, _))) => {
                let (health, models) = (Health::Starting, Vec::new());
                Ok(EngineInfo {
                    health,
                    slots: 1,
                    models,
                    version: String::new(),
                    voices: Vec::new(),
                })
            }
            Ok(Err((status, body))) => Err(super::refusal::refusal(self.name(), "", status, &body)),
            Err(error) => Err(super::refusal::unreachable(self.name(), error)),
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
        self.engine.wedged();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn build(entry: EngineConfig) -> Result<Vec<Arc<dyn Engine>>, EntryError> {
        let key = |name: &str| (name == "SET").then(|| "k".to_owned());
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        engines(&[entry], &state, key, &tasks, &stop)
    }

    fn entry(url: &str) -> EngineConfig {
        EngineConfig {
            name: "e".into(),
            url: url.into(),
            ..EngineConfig::default()
        }
    }

    #[test]
    fn entries_that_are_wrong_say_what_is() {
        let text = |entry| build(entry).err().unwrap().to_string();
        assert!(text(entry("8080")).contains("write it like"));
        assert!(text(entry("https://x")).contains("only http://"));
        for url in [
            "http://me:secret@h",
            "https://secret@h",
            "http://:secret@h:port/",
        ] {
            let text = text(entry(url));
            assert!(!text.contains("secret") && text.contains("...@h"), "{text}");
        }
        assert!(text(entry("http://me:secret@h")).contains("api_key_env"));
        let keyed = EngineConfig {
            api_key_env: "UNSET".into(),
            ..entry("http://x")
        };
        assert!(text(keyed).contains("UNSET"));
    }

    #[test]
    fn an_entry_becomes_an_engine() {
        let entry = EngineConfig {
            api_key_env: "SET".into(),
            ..entry("http://127.0.0.1:9")
        };
        let engines = build(entry).unwrap();
        assert_eq!((engines[0].name(), engines[0].local_port()), ("e", Some(9)));
    }

    #[test]
    fn speech_has_its_own_addresses() {
        use crate::config::EngineApi;
        let of = |kind, url| EngineConfig { kind, ..entry(url) };
        let wyoming = of(EngineApi::Wyoming, "tcp://127.0.0.1:10200");
        let system = of(EngineApi::System, "");
        for (entry, port) in [(wyoming, Some(10_200)), (system, None)] {
            let config = crate::config::Config {
                engine: vec![entry.clone()],
                ..Default::default()
            };
            assert_eq!(config.check(), Ok(()));
            assert_eq!(build(entry).unwrap()[0].local_port(), port);
        }
        assert!(build(of(EngineApi::Wyoming, "tcp://127.0.0.1")).is_err());
    }
}
