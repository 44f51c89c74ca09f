//! What the tests of the workspace share.
//!
//! - [`doubles`]: deterministic stand-ins; each says in its name that it is one.

pub mod doubles;
