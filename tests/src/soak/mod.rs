//! Meshes under load: a desk that asks, two hosts in a lab whose engines are processes of their
//! own, chat clients at the desk's gateway, and faults that are drawn.
//!
//! - [`Pair`]: the mesh. Its engines can hang (SIGSTOP) and die (SIGKILL) like real ones.
//! - [`chat`]: one request over either API, checked token by token.
//! - [`faults`]: what is done to the hosts, one after another.
//! - [`vitals`]: memory and descriptors of a process over time.
//! - [`tally`]: what came of all requests, as a table.

pub mod chat;
pub mod faults;
mod pair;
mod process;
pub mod tally;
pub mod vitals;

pub use pair::Pair;
pub use process::EngineProcess;
