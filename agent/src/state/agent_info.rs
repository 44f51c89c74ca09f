//! Where the running agent can be reached: written at its start, removed at its end.

use super::{StateDir, StateError};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

const FILE: &str = "agent.json";

/// What other commands need to know of the running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its process.
    pub pid: u32,
    /// Its node id.
    pub node: String,
    /// Its name for people.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// Where its gateway listens (TCP).
    pub gateway: SocketAddr,
    /// Where its data plane listens (UDP).
    pub quic: SocketAddr,
    /// Milliseconds since 1970.
    pub started_ms: u64,
}

impl AgentInfo {
    /// Tells other commands.
    ///
    /// # Errors
    /// They will not find the agent; it works all the same.
    pub fn write(&self, state: &StateDir) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| StateError::Corrupt {
            path: state.file(FILE),
            reason: e.to_string(),
        })?;
        state.write(FILE, &bytes)
    }

    /// What an agent wrote; it may have died since (see [`StateDir::is_locked`]).
    ///
    /// # Errors
    /// The file exists and is unreadable.
    pub fn read(state: &StateDir) -> Result<Option<Self>, StateError> {
        let Some(bytes) = state.read(FILE)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| StateError::Corrupt {
                path: state.file(FILE),
                reason: e.to_string(),
            })
    }

    /// The agent ends.
    ///
    /// # Errors
    /// The file is still there; the next start replaces it.
    pub fn remove(state: &StateDir) -> Result<(), StateError> {
        state.remove(FILE)
    }
}
