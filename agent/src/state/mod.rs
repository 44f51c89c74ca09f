//! What survives a restart, in one directory that one agent owns.
//!
//! | file | what | lost means |
//! |---|---|---|
//! | `lock` | held while an agent runs ([`StateLock`]) | - |
//! | `node.key`, `node.crt`, `ca.crt`, `mesh.json` | identity, written by `unamesh-client` | join again |
//! | `epoch` | the last epoch used ([`StateDir::next_epoch`]) | the wall clock replaces it |
//! | `admin.token` | opens the local mesh API ([`AdminToken`]) | a new one is made |
//! | `agent.json` | where the running agent listens ([`AgentInfo`]) | - |
//! | `speeds.json` | measured speeds ([`SpeedStore`]) | measured again |
//! | `learned.json` | how paths and engines of the mesh fare ([`keep_learned`]) | learned again |
//! | `seeds.json` | what the inviter named, written by `unamesh-client` | the same |
//! | `peers.json` | addresses that worked ([`LastGood`]) | mDNS and seeds find them |
//!
//! Files are mode 0600 in a directory of mode 0700 and are replaced atomically (a new file,
//! synced, renamed over the old one), so that a crash or a full disk leaves the old contents.
//! Identity is needed to start. Everything else is only worth having: when the disk is full
//! or read-only the agent says so once and goes on with what it has in memory.

mod agent_info;
mod dir;
mod keep;
mod last_good;
mod learned;
mod secret;
mod speeds;

pub use agent_info::AgentInfo;
pub use dir::{StateDir, StateLock};
pub use last_good::LastGood;
pub use learned::keep_learned;
pub use secret::AdminToken;
pub use speeds::SpeedStore;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why something could not be kept or read. The files are as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The disk is full or the quota is used up.
    #[error("no space left to write {}: free some space on that disk, or choose another directory with --state DIR", .0.display())]
    Full(PathBuf),
    /// The file system is read-only.
    #[error("{} is on a read-only file system: remount it writable, or choose another directory with --state DIR", .0.display())]
    ReadOnly(PathBuf),
    /// This user may not.
    #[error("no permission for {}: `sudo chown -R $(id -un) {}`, or choose another directory with --state DIR", .0.display(), parent(.0).display())]
    Denied(PathBuf),
    /// Another agent runs with this directory.
    #[error("another agent{} already runs with {}: use that one (`unamesh status`), stop it, or give this one its own directory with --state DIR", pid.map(|p| format!(" (process {p})")).unwrap_or_default(), dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Its process, if it has said.
        pid: Option<u32>,
    },
    /// The file holds something else than it should.
    #[error("{} is damaged ({reason}): move it away and run the command again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system does not say where this user's data belongs.
    #[error(
        "this user has no home directory: choose a directory with --state DIR or UNAMESH_STATE"
    )]
    NoHome,
    /// Anything else that the system reports.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl StateError {
    /// Sorts what the system said about `path`.
    pub fn of(path: &Path, error: &std::io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StateError::Full(path),
            ErrorKind::ReadOnlyFilesystem => StateError::ReadOnly(path),
            ErrorKind::PermissionDenied => StateError::Denied(path),
            _ => StateError::Io {
                path,
                reason: error.to_string(),
            },
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
