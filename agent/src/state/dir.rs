//! The directory: opening, atomic writes, the lock, the epoch.

use super::{AgentInfo, StateError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unamesh_proto::Wall;

/// No state file is larger: 1,024 peers with 8 addresses are some 400 kB.
pub(super) const MAX_FILE: u64 = 4 * 1024 * 1024;

/// An existing state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StateDir(Arc<PathBuf>);

/// Held by the one agent that runs with a state directory; released when dropped, and by the
/// system if the process dies.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Where the state of this user belongs: `~/.local/share/unamesh` on Linux,
    /// `~/Library/Application Support/unamesh` on macOS, `%LOCALAPPDATA%\unamesh` on Windows.
    ///
    /// # Errors
    /// [`StateError::NoHome`].
    pub fn default_path() -> Result<PathBuf, StateError> {
        directories::ProjectDirs::from("", "", "unamesh")
            .map(|dirs| dirs.data_local_dir().to_owned())
            .ok_or(StateError::NoHome)
    }

    /// Opens `path`, making it (mode 0700) if it does not exist.
    ///
    /// # Errors
    /// It cannot be made, or is no directory.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path).map_err(|e| StateError::of(path, &e))?;
        let absolute = std::path::absolute(path).map_err(|e| StateError::of(path, &e))?;
        Ok(StateDir(Arc::new(absolute)))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of the file `name` in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes the lock of the running agent.
    ///
    /// On a read-only file system nobody else can write either; then the lock file is opened
    /// for reading if it exists, and the agent runs without a lock if it does not.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another agent has it; others if it cannot be tried.
    pub fn lock(&self) -> Result<Option<StateLock>, StateError> {
        let path = self.file("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        private(&mut options);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => match File::open(&path) {
                Ok(file) => file,
                Err(_) => return Ok(None),
            },
            Err(e) => return Err(StateError::of(&path, &e)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(TryLockError::WouldBlock) => {
                let pid = AgentInfo::read(self).ok().flatten().map(|agent| agent.pid);
                Err(StateError::Locked {
                    dir: self.path().to_owned(),
                    pid,
                })
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(None),
            Err(TryLockError::Error(e)) => Err(StateError::of(&path, &e)),
        }
    }

    /// Whether an agent runs with this directory at the moment.
    pub fn is_locked(&self) -> bool {
        File::open(self.file("lock"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Whether an agent once ran with this directory and surely none does now. (False where
    /// nobody can tell: a file system without locks.)
    pub fn is_abandoned(&self) -> bool {
        File::open(self.file("lock")).is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    /// The contents of `name`; `None` if there is no such file.
    ///
    /// # Errors
    /// It exists and cannot be read, or is larger than any state file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StateError::of(&path, &e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| StateError::of(&path, &e))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(StateError::Corrupt {
                path,
                reason: "far too large".into(),
            });
        }
        Ok(Some(bytes))
    }

    /// Replaces `name` by `bytes`, all or nothing, readable by this user alone.
    ///
    /// # Errors
    /// The old contents stand.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.file(name);
        // The process id keeps apart two processes that write without the lock (`init`, `up`).
        let temporary = self.file(&format!(".{name}.{}", std::process::id()));
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            private(&mut options);
            let mut file = options.open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        })();
        written.map_err(|e| {
            // Half a file on a full disk only takes space.
            let _ = std::fs::remove_file(&temporary);
            StateError::of(&path, &e)
        })
    }

    /// Removes `name`, if it exists.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match std::fs::remove_file(&path) {
            // A read-only file system refuses even what is not there.
            Err(e) if path.exists() => Err(StateError::of(&path, &e)),
            _ => Ok(()),
        }
    }

    /// An epoch above every earlier one: the wall clock in milliseconds, or one more than the
    /// last if the clock stands behind it.
    ///
    /// The second value says why it could not be written down; the epoch is still good unless
    /// the clock is set back before the next start.
    pub fn next_epoch(&self, now: Wall) -> (u64, Option<StateError>) {
        let last = match self.read("epoch") {
            Ok(bytes) => bytes
                .and_then(|b| String::from_utf8(b).ok())
                .and_then(|text| text.trim().parse::<u64>().ok())
                .unwrap_or(0),
            Err(_) => 0,
        };
        let epoch = now.as_millis().max(last.saturating_add(1));
        (
            epoch,
            self.write("epoch", epoch.to_string().as_bytes()).err(),
        )
    }

    /// Reads a JSON file that is only worth having. A damaged one is moved to `name.damaged`
    /// and reads as absent.
    pub(super) fn read_or_fresh<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let damaged = match self.read(name) {
            Ok(None) => return None,
            Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
                Ok(value) => return Some(value),
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        let path = self.file(name);
        tracing::warn!(path = %path.display(), reason = damaged, "starting without this file");
        let _ = std::fs::rename(&path, self.file(&format!("{name}.damaged")));
        None
    }
}

/// Readable and writable by this user alone.
fn private(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    #[cfg(not(unix))]
    let _ = options;
}
