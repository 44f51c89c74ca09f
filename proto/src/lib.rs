//! The wire format and the deterministic logic of UnaMesh.
//!
//! Nothing in this crate opens a socket, reads a clock or draws a random number: time
//! ([`time::Mono`], [`time::Wall`]) and randomness are arguments, and every state machine is
//! driven as `machine.handle(input, now)` followed by draining `machine.poll()`. That makes
//! a failing run reproducible from its seed.
//!
//! The parts, in reading order:
//! - [`ids`], [`time`], [`limits`], [`timeouts`]: the vocabulary.
//! - [`wire`]: records as they travel (see `PROTOCOL.md` beside this crate).
//! - [`advert`]: what a node says of itself, signed.
//! - [`table`]: what this node believes of the others.
//! - [`rank`]: which peer answers first, and why.
//! - [`session`]: one request from its first dial to its one terminal event.
//! - [`breaker`]: which engines failed lately.
//! - [`stalls`]: how long an engine takes, so that one that hangs is told from one that works.
//! - [`hedge`]: how many backups may run on suspicion.
//! - [`stops`]: stop sequences, over every seam.
//! - [`journal`]: what a serving agent keeps so that a client can reattach.
//! - [`speech`]: a microphone's frames as datagrams, text cut for a speech engine, and both ways
//!   of speech from the first dial to the one terminal event.
//! - [`jitter`]: a microphone's frames at their receiver.
//! - [`estimate`], [`vram`]: measured speeds, and whether a model fits.
#![cfg_attr(feature = "sim", doc = "- [`sim`]: the seeded simulator.")]

pub mod advert;
pub mod breaker;
pub mod estimate;
pub mod hedge;
pub mod ids;
pub mod jitter;
pub mod journal;
pub mod learned;
pub mod limits;
pub mod rank;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
pub mod speech;
pub mod stalls;
pub mod stops;
pub mod table;
#[cfg(any(test, feature = "sim"))]
pub mod testing;
pub mod time;
pub mod timeouts;
pub mod vram;
pub mod wire;

pub use ids::{GenerationId, MeshId, NodeId};
pub use time::{Mono, Wall};
