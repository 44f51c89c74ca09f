//! Records as they travel on the data plane: `PROTOCOL.md` lists every one of them.
//!
//! A QUIC bidirectional stream carries one request. Its first record is a [`StreamHeader`];
//! what follows depends on the [`StreamKind`]. The version is in the ALPN ([`ALPN`]): a peer
//! that offers only another one is refused in the handshake.

pub mod codec;
mod drill;
mod error;
mod generate;
mod node;
mod speak;
mod stream;
mod transcribe;
mod warm;

pub use codec::{Appended, Class, DecodeError, Record};
pub use drill::{Drill, DrillStarted, Fault};
pub use error::{ErrorCode, WireError};
pub use generate::{
    Accepted, Attach, Chunk, Done, Draining, FinishReason, GenFrame, GenerateRequest, InputKind,
    Phase, Progress, Sampling, Token, Usage,
};
pub use node::{
    Addr, Advert, EngineAdvert, EngineKind, Gpu, Hardware, Health, ModelAdvert, ModelKind,
    NodeState, PathKind, Residency, Role, SignedAdvert, Stats, VoiceAdvert,
};
pub use speak::{Grant, Sound, SpeakFrame, SpeakRequest, SpeechAccepted, SpeechDone, SpokenMark};
pub use stream::{
    JoinAccepted, JoinRequest, PeerGone, PeerUpdate, Probe, ProbeFor, ProbeReply, ProbedFor, Reach,
    SnapshotEnd, StreamHeader, StreamKind,
};
pub use transcribe::{
    HearAccepted, HearFrame, HearRequest, Missing, Partial, SilenceFor, SpeechBegan, Transcript,
    UpSound, UtteranceEnd, Word,
};
pub use warm::{WarmFrame, WarmModel, WarmRequest, Warmed, Warmth};

/// The ALPN of the data plane. A change that an old peer cannot ignore gets a new number.
pub const ALPN: &[u8] = b"unamesh/1";
/// The ALPN of the joining endpoint, which is open only while an invitation is.
pub const JOIN_ALPN: &[u8] = b"unamesh-join/1";
/// The version that a [`StreamHeader`] carries.
pub const VERSION: u16 = 1;

/// Every record kind of this version: `(kind, name, size limit in bytes)`.
pub const RECORDS: &[(u16, &str, usize)] = &[
    entry::<StreamHeader>(),
    entry::<WireError>(),
    entry::<Probe>(),
    entry::<ProbeReply>(),
    entry::<ProbeFor>(),
    entry::<ProbedFor>(),
    entry::<PeerUpdate>(),
    entry::<PeerGone>(),
    entry::<SnapshotEnd>(),
    entry::<GenerateRequest>(),
    entry::<Accepted>(),
    entry::<Progress>(),
    entry::<Token>(),
    entry::<Done>(),
    entry::<Draining>(),
    entry::<Attach>(),
    entry::<SignedAdvert>(),
    entry::<Advert>(),
    entry::<JoinRequest>(),
    entry::<JoinAccepted>(),
    entry::<Drill>(),
    entry::<DrillStarted>(),
    entry::<SpeakRequest>(),
    entry::<Grant>(),
    entry::<SpeechAccepted>(),
    entry::<SpokenMark>(),
    entry::<Sound>(),
    entry::<SpeechDone>(),
    entry::<HearRequest>(),
    entry::<UpSound>(),
    entry::<UtteranceEnd>(),
    entry::<HearAccepted>(),
    entry::<Partial>(),
    entry::<SpeechBegan>(),
    entry::<SilenceFor>(),
    entry::<Missing>(),
    entry::<Transcript>(),
    entry::<WarmRequest>(),
    entry::<Warmed>(),
];

const fn entry<R: Record>() -> (u16, &'static str, usize) {
    (R::KIND, R::NAME, R::CLASS.limit())
}
