//! The real things: llama.cpp with a small model, as the starter engines set it up, and the
//! `openai` Python package. [`speech`]: real engines that speak and hear.

pub mod speech;

use crate::agent::program;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::OnceCell;
use unamesh_agent::starter::{self, Quiet, Starter};

pub use unamesh_agent::starter::MODEL;

/// What `real_openai` is tested with.
const OPENAI: &str = "openai==3.54.0";

/// The Python of a virtual environment that has the `openai` package; made on first use, kept
/// in the build directory.
pub async fn openai_python() -> &'static Path {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    PYTHON
        .get_or_init(async || environment("openai", &[OPENAI]).await)
        .await
}

/// The Python of the virtual environment `name` in the build directory, made with `packages`
/// unless it has them.
async fn environment(name: &str, packages: &[&str]) -> PathBuf {
    let target = program()
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .to_owned();
    let venv = target.join("tmp").join(format!("{name}-venv"));
    let python = venv.join("bin/python");
    let marker = venv.join("holds");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|held| held == wanted) {
        return python;
    }
    succeed(
        "python3",
        &["-m", "venv", "--clear", venv.to_str().unwrap()],
    )
    .await;
    let install = [&["-m", "pip", "-q", "install"], packages].concat();
    succeed(python.to_str().unwrap(), &install).await;
    std::fs::write(&marker, wanted).unwrap();
    python
}

async fn succeed(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().await;
    let status = status.unwrap_or_else(|e| panic!("{program}: {e} (apt-get install python3-venv)"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// A running `tests/python/openai_client.py`: what it prints, line by line.
pub struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Starts it with these arguments.
    pub async fn start(arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/openai_client.py");
        let mut child = Command::new(openai_python().await)
            .arg(script)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// The next object that it prints; `None` at its end.
    ///
    /// # Panics
    /// If it fails.
    pub async fn next(&mut self) -> Option<Value> {
        if let Some(line) = self.lines.next_line().await.unwrap() {
            return Some(serde_json::from_str(&line).unwrap());
        }
        let status = self.child.wait().await.unwrap();
        assert!(status.success(), "openai_client.py: {status}");
        None
    }

    /// The last object that it prints.
    pub async fn last(mut self) -> Value {
        let mut last = Value::Null;
        while let Some(value) = self.next().await {
            last = value;
        }
        last
    }
}

/// The starter engines; fetched on first use, into the user's cache folder.
pub async fn starter() -> &'static Starter {
    static STARTER: OnceCell<Starter> = OnceCell::const_new();
    STARTER
        .get_or_init(async || starter::install(&Quiet).await.unwrap())
        .await
}

/// Configuration of one more llama.cpp server, which the agent that has it runs.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn engine(starter: &Starter) -> String {
    starter
        .config("starter", starter::free_port().unwrap())
        .unwrap()
}
