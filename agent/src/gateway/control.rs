//! What the mesh API needs from the agent around it; implemented by [`crate::node`].

use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use unamesh_proto::wire::{Fault, Role};

/// The agent as its local API sees it. Every value is JSON that the command line and scripts
/// read; the README documents the keys.
#[async_trait::async_trait]
pub trait Control: Send + Sync + 'static {
    /// `GET status`: this agent (identity, addresses, uptime, load, counters).
    fn status(&self) -> Value;

    /// `GET engines`: the engines of this machine and how they fare.
    fn engines(&self) -> Value;

    /// `GET events`: what happens from now on (peers, engines, requests). A slow reader
    /// misses events and is told how many.
    fn events(&self) -> broadcast::Receiver<Arc<Value>>;

    /// `POST ping`: probes one peer (by name or node id) or all of them, over every path.
    ///
    /// # Errors
    /// No such peer.
    async fn ping(&self, node: Option<String>) -> Result<Value, ControlError>;

    /// `POST invite`: opens an invitation.
    ///
    /// # Errors
    /// This agent holds no CA, or may not invite.
    async fn invite(&self, invite: InviteOptions) -> Result<Value, ControlError>;

    /// `POST drain`: a planned leave, a pause, or the end of one.
    ///
    /// # Errors
    /// It leaves already, or there is no pause to end.
    async fn drain(&self, drain: Drain) -> Result<Value, ControlError>;

    /// `POST drill`: has another node play a fault for a moment.
    ///
    /// # Errors
    /// There is no such node, or it refuses; nothing was done.
    async fn drill(&self, _ask: DrillAsk) -> Result<Value, ControlError> {
        Err(ControlError::conflict("this agent asks nobody to fail"))
    }
}

/// A planned leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Take nothing new, let what runs move or end within this, then end the process.
    Leave(Duration),
    /// Take nothing new for this long; what runs moves. Then take requests again.
    Pause(Duration),
    /// End a pause now.
    Stop,
}

/// A fault that another node is to play.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillAsk {
    /// Who: its name or node id.
    pub node: String,
    /// Which.
    pub fault: Fault,
    /// For how long.
    pub long: Duration,
}

/// What an invitation allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InviteOptions {
    /// The role of who joins with it.
    pub role: Role,
    /// How long it is good for.
    pub valid_for: Duration,
    /// How many may join with it.
    pub uses: u32,
}

/// Why the agent did not do it. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// The HTTP status.
    pub status: u16,
    /// For scripts, snake_case.
    pub code: &'static str,
    /// For people: what is wrong and the way out.
    pub message: String,
}

impl ControlError {
    /// The thing named does not exist (404).
    pub fn not_found(message: impl Into<String>) -> Self {
        ControlError {
            status: 404,
            code: "not_found",
            message: message.into(),
        }
    }

    /// Not in this state of the agent (409).
    pub fn conflict(message: impl Into<String>) -> Self {
        ControlError {
            status: 409,
            code: "conflict",
            message: message.into(),
        }
    }

    /// Another node does not do it (403).
    pub fn refused(message: impl Into<String>) -> Self {
        ControlError {
            status: 403,
            code: "refused",
            message: message.into(),
        }
    }

    /// It tried and failed (500).
    pub fn failed(message: impl Into<String>) -> Self {
        ControlError {
            status: 500,
            code: "failed",
            message: message.into(),
        }
    }
}
