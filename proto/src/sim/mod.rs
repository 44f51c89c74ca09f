//! The seeded simulator: a virtual clock, lossy links, faults.

pub mod gossip;
pub mod session;
pub mod speech;
