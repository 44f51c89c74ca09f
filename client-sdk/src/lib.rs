//! The UnaMesh client: find the mesh, keep warm connections to its best peers, and run
//! requests that survive the peer that answers them.
//!
//! - [`identity`]: the node's key and certificate on disk.
//! - [`tls`], [`endpoint`]: mutual TLS on quinn, as every connection of the mesh uses it.
//! - [`framing`]: records on QUIC streams.
//! - [`pool`]: one warm connection a peer, dialed over all of its paths at once.
//! - [`transport`]: how a request reaches a peer (QUIC, or in process on an agent).
//! - [`driver`]: performs what `unamesh_proto::session` decides.
//! - [`speech`]: texts to be spoken, utterances to be transcribed.
//! - [`converse`]: a conversation: hearing, thinking and speaking, turn by turn.
//! - [`activity`]: what happens behind the answers, for logs and consoles.
//! - [`client`]: [`MeshClient`](client::MeshClient), the public API.
//! - `memory`: what a client remembers from request to request.
//! - `outside`: what a running request waits for: streams, the peer table, the time.
//! - [`watch`]: the peer table of a client that is no gossip member.
//! - [`audio`]: speech as samples, packets and files.
//! - [`invite`], [`join`]: becoming a member.
#![cfg_attr(feature = "mdns", doc = "- [`mdns`]: DNS-SD announcing and browsing.")]

pub mod activity;
pub mod audio;
pub mod client;
pub mod clock;
pub mod converse;
pub mod driver;
pub mod endpoint;
pub mod framing;
pub mod identity;
pub mod invite;
pub mod join;
#[cfg(feature = "mdns")]
pub mod mdns;
mod memory;
mod outside;
pub mod pool;
pub mod speech;
pub mod tls;
pub mod transport;
pub mod watch;

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod test_ca;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, missing_docs)]
mod test_net;
