//! Speech over QUIC: sound to the sample, grants, the failures of an engine. The engines are
//! doubles ([`unamesh_tests::doubles::VoiceDouble`]).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod faults;
mod grants;
#[path = "../serve_support/mod.rs"]
mod serve_support;
mod sound;
