//! A mesh of real agents on this machine, to be measured and to be broken: this program again,
//! a process each, with own keys, state and ports, joined as a user joins machines.
//!
//! - [`Mesh`]: the agents of one mesh; [`agent`]: one of them, a process.
//! - [`process`]: processes that end with their handle, signals, the test engine.
//! - [`relay`]: what stands between the agents where a cable is to be cut.
//! - [`http`]: the client that asks them; it blocks, and costs as little as a client can.

pub mod agent;
pub mod http;
mod mesh;
pub mod process;
pub mod relay;

pub use agent::{Agent, Setup};
pub use mesh::Mesh;

/// Why the mesh is not there, or does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct LocalError {
    what: String,
    reason: String,
}

impl LocalError {
    /// `what` failed for `reason`.
    pub fn new(what: impl ToString, reason: impl ToString) -> Self {
        LocalError {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    /// For `map_err`.
    pub fn during<E: std::fmt::Display>(what: impl ToString) -> impl FnOnce(E) -> Self {
        move |error| LocalError::new(what, error)
    }
}
