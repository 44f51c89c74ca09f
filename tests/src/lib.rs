//! What the workspace's tests share: meshes of real agent processes, engines whose every token
//! is known beforehand, hosts in network namespaces, and llama.cpp.
//!
//! - [`agent`]: an agent as a process: started, asked, frozen, killed.
//! - [`cluster`]: some of them, joined to a mesh.
//! - [`direct`]: serving agents in this process, without a network.
//! - [`doubles`]: deterministic stand-ins; each says in its name that it is one.
//! - [`home`]: a mesh, its engines and its network as a scenario sees them: ask, cut, freeze.
//! - [`impair`]: what a bad network does to packets, as seeded arithmetic.
//! - [`lab`]: hosts on a switch, as network namespaces, with cables that obey [`impair`].
//! - [`real`]: llama.cpp by way of the starter engines, and the `openai` Python package.
//! - [`soak`]: meshes under load, with drawn faults.
//! - [`http`]: just enough of an HTTP client, which can also reach into a namespace.
//! - [`measure`]: percentiles, deadlines.
//!
//! Nothing here waits for luck: ports are chosen by the system, and every wait polls for its
//! condition until a named deadline.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "all of this is test code: a failed assumption ends the test with its reason"
)]

pub mod agent;
pub mod cluster;
pub mod direct;
pub mod doubles;
pub mod home;
pub mod http;
pub mod impair;
pub mod lab;
pub mod measure;
pub mod real;
pub mod soak;
