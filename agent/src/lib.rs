//! The UnaMesh agent: fronts the engines of one machine, tells the mesh what it can do, and
//! serves it over QUIC.
//!
//! - [`config`]: the TOML file, the environment and the flags over it.
//! - [`state`]: what survives a restart (measured speeds, last-good addresses, epoch).
//! - [`ca`]: the mesh's certificate authority, invitations, the joining endpoint.
//! - [`capacity`]: CPU, memory, GPUs, power.
//! - [`engine`]: adapters to the engines, detection, engines that the agent itself runs.
//! - [`serve`]: admission, generations and their journals, the QUIC streams.
//! - [`swarm`]: gossip between the agents.
//! - [`node`]: puts all of it together and owns every task.
//! - [`gateway`]: the local HTTP API.
//! - [`cli`]: the commands; [`demo`], [`mod@bench`], [`drill`], [`starter`] behind four of them;
//!   [`local_mesh`]: a mesh on one machine, for those.

pub mod bench;
pub mod ca;
pub mod capacity;
pub mod cli;
pub mod config;
pub mod demo;
pub mod drill;
pub mod engine;
pub mod gateway;
pub mod local_mesh;
pub mod node;
pub mod power;
pub mod serve;
pub mod starter;
pub mod state;
pub mod swarm;
