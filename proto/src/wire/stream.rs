//! What opens a stream, probes, the peer table for clients, joining.

use super::codec::{Class, Record, open_enum};
use super::node::{NodeState, Role, SignedAdvert};
use crate::ids::NodeId;
use bincode::{Decode, Encode};

open_enum! {
    /// What a stream is for.
    StreamKind {
        /// One [`Probe`], one [`ProbeReply`]; or one [`ProbeFor`], one [`ProbedFor`].
        Probe = 1 "probe",
        /// The peer table: a snapshot of [`PeerUpdate`]s, [`SnapshotEnd`], then deltas.
        Watch = 2 "watch",
        /// A [`super::GenerateRequest`] and its frames.
        Generate = 3 "generate",
        /// Embeddings (part 5).
        Embed = 4 "embed",
        /// A [`super::SpeakRequest`], [`super::Grant`]s, and the speech.
        Speak = 5 "speak",
        /// A [`super::HearRequest`], the sound, and its transcript.
        Transcribe = 6 "transcribe",
        /// A whole voice turn (part 3).
        Converse = 7 "converse",
        /// Goes on with a generation: an [`super::Attach`] and the frames after it.
        Attach = 8 "attach",
        /// A named HTTP service (part 5).
        Tunnel = 9 "tunnel",
        /// Administration of another node: a [`super::Drill`]; more in part 4.
        Admin = 10 "admin",
        /// Each side sends its [`SignedAdvert`] once; a goodbye is an advert in state `left`.
        Exchange = 11 "exchange",
        /// A [`super::WarmRequest`]: its models are kept warm while the stream is open.
        Warm = 12 "warm",
    }
}

/// The first record of every stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StreamHeader {
    /// [`super::VERSION`].
    pub version: u16,
    /// What follows.
    pub kind: StreamKind,
}

impl Record for StreamHeader {
    const KIND: u16 = 0x0001;
    const NAME: &'static str = "StreamHeader";
}

/// Asks for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Probe {
    /// Chosen by the sender, returned unchanged.
    pub nonce: u64,
    /// The sender's wall clock in milliseconds since 1970, for `doctor`'s skew check.
    pub wall_ms: u64,
}

impl Record for Probe {
    const KIND: u16 = 0x0011;
    const NAME: &'static str = "Probe";
}

/// Answers a [`Probe`] at once, before any queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProbeReply {
    /// As in the probe.
    pub nonce: u64,
    /// The replier's wall clock in milliseconds since 1970.
    pub wall_ms: u64,
    /// The replier's state.
    pub state: NodeState,
}

impl Record for ProbeReply {
    const KIND: u16 = 0x0012;
    const NAME: &'static str = "ProbeReply";
}

open_enum! {
    /// What came of a [`ProbeFor`].
    Reach {
        /// It answered, after the question came.
        Reached = 1 "reached",
        /// It did not answer within [`crate::timeouts::PROBE_TIMEOUT`].
        Silent = 2 "silent",
        /// The asked one does not know it and probed nobody.
        Stranger = 3 "stranger",
    }
}

/// Asks an agent to probe another for the sender, who cannot reach it. The asked one probes
/// only whom it knows, where it knows it to be: the question names no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProbeFor {
    /// Chosen by the sender, returned unchanged.
    pub nonce: u64,
    /// Whom to probe.
    pub node: NodeId,
}

impl Record for ProbeFor {
    const KIND: u16 = 0x0013;
    const NAME: &'static str = "ProbeFor";
}

/// Answers a [`ProbeFor`]. Who does not know that record answers with an error, which is no
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProbedFor {
    /// As in the question.
    pub nonce: u64,
    /// What came of it.
    pub reach: Reach,
    /// If it was reached: the round trip in microseconds.
    pub rtt_us: u32,
}

impl Record for ProbedFor {
    const KIND: u16 = 0x0014;
    const NAME: &'static str = "ProbedFor";
}

/// One entry of the peer table, as the sending agent sees it. Of a node that left: its signed
/// goodbye, so that a watcher knows it from the node itself.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PeerUpdate {
    /// The peer's own signed word; the receiver checks it like any other.
    pub advert: SignedAdvert,
    /// The sender's round trip to it in microseconds; 0 = itself or unknown.
    pub rtt_us: u32,
    /// Milliseconds since the sender last heard of it.
    pub age_ms: u32,
}

impl Record for PeerUpdate {
    const KIND: u16 = 0x0020;
    const NAME: &'static str = "PeerUpdate";
    const CLASS: Class = Class::Medium;
}

/// A peer left or went down, as the sending agent sees it: a hint. What proves that it left is
/// its goodbye, in the [`PeerUpdate`] before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerGone {
    /// Who.
    pub node: NodeId,
    /// True: it said goodbye. False: it fell silent.
    pub left: bool,
}

impl Record for PeerGone {
    const KIND: u16 = 0x0021;
    const NAME: &'static str = "PeerGone";
}

/// The snapshot is complete; what follows are deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotEnd {
    /// Entries sent.
    pub peers: u32,
}

impl Record for SnapshotEnd {
    const KIND: u16 = 0x0022;
    const NAME: &'static str = "SnapshotEnd";
}

/// Asks to become a member (ALPN [`super::JOIN_ALPN`]). The private key stays at home.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinRequest {
    /// The invitation's one-time secret.
    pub secret: [u8; 32],
    /// The Ed25519 key to certify.
    pub public_key: NodeId,
    /// Ed25519 signature by that key over `"unamesh join v1" || secret || public_key`:
    /// proves possession.
    pub proof: [u8; 64],
    /// The device's name, for people.
    pub name: String,
}

impl Record for JoinRequest {
    const KIND: u16 = 0x0060;
    const NAME: &'static str = "JoinRequest";
}

/// The new member's papers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JoinAccepted {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The mesh's CA certificate, DER. Its SHA-256 must equal the link's fingerprint.
    pub ca: Vec<u8>,
    /// The role in the certificate.
    pub role: Role,
    /// The mesh's name, for people.
    pub mesh_name: String,
    /// Where members listen: `ip:port` texts, the inviter first.
    pub seeds: Vec<String>,
}

impl Record for JoinAccepted {
    const KIND: u16 = 0x0061;
    const NAME: &'static str = "JoinAccepted";
}
