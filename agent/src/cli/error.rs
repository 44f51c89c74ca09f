//! What went wrong, and the command to type next.

use crate::config::ConfigError;
use crate::state::StateError;
use serde_json::{Value, json};

/// Exit status of a command that failed.
pub const FAILED: u8 = 1;
/// Exit status when no agent runs here.
pub const NO_AGENT: u8 = 3;
/// Exit status of a program that was stopped by Ctrl-C (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Why a command did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// For scripts, snake_case.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to type now; empty if the message says it.
    pub next: Vec<String>,
    /// The exit status.
    pub exit: u8,
    /// Nobody is there to read it: the reader of standard output went away, or the user
    /// stopped us.
    pub silent: bool,
}

impl CliError {
    /// An error without a next command.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        CliError {
            code: code.into(),
            message: message.into(),
            next: Vec::new(),
            exit: FAILED,
            silent: false,
        }
    }

    /// Adds a command to type.
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }

    /// Replaces the exit status.
    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// A command of a later build.
    pub fn not_built(command: &str) -> Self {
        CliError::new(
            "not_built",
            format!("`unamesh {command}` is not part of this build"),
        )
        .next("unamesh --help")
    }

    /// The reader of our output went away (`unamesh peers | head -1`): that is its right.
    pub fn closed_pipe() -> Self {
        CliError {
            silent: true,
            exit: 0,
            ..CliError::new("closed_pipe", "")
        }
    }

    /// Ctrl-C.
    pub fn interrupted() -> Self {
        CliError {
            silent: true,
            exit: INTERRUPTED,
            ..CliError::new("interrupted", "")
        }
    }

    /// As `--json` prints it.
    pub fn json(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message, "next": self.next}})
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        let code = match &error {
            StateError::Full(_) => "disk_full",
            StateError::ReadOnly(_) => "read_only",
            StateError::Denied(_) => "denied",
            StateError::Locked { .. } => "already_running",
            StateError::Corrupt { .. } => "damaged",
            StateError::NoHome => "no_home",
            StateError::Io { .. } => "io",
        };
        CliError::new(code, error.to_string())
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::new("config", error.to_string())
    }
}
