//! Hearing over real QUIC and in process: what is understood, when it is told, and what happens
//! to an utterance at a bad client and at a bad engine. The engine is a double whose transcript
//! tells of every sample.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod clients;
mod engines;
mod pauses;
#[path = "../serve_support/mod.rs"]
mod serve_support;
mod sound;
