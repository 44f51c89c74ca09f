//! What a node says of itself.

use super::codec::{Class, Record, open_enum};
use crate::ids::NodeId;
use bincode::{Decode, Encode};
use std::net::{IpAddr, SocketAddr};

open_enum! {
    /// What a member may do.
    Role {
        /// Invites, revokes, changes settings of others.
        Admin = 1 "admin",
        /// Serves and gossips.
        Agent = 2 "agent",
        /// Uses.
        Client = 3 "client",
    }
}

impl Role {
    /// Whether it serves and gossips (an admin is an agent too).
    pub const fn is_agent(self) -> bool {
        matches!(self, Role::Admin | Role::Agent)
    }
}

open_enum! {
    /// Where a node is in its life.
    NodeState {
        /// Takes requests.
        Up = 1 "up",
        /// Finishes what it has; takes nothing new.
        Draining = 2 "draining",
        /// Said goodbye.
        Left = 3 "left",
    }
}

open_enum! {
    /// What API an engine speaks.
    EngineKind {
        /// llama.cpp's HTTP server.
        LlamaCpp = 1 "llama.cpp",
        /// Ollama's own API.
        Ollama = 2 "ollama",
        /// An OpenAI-style server of no known make.
        OpenAi = 3 "openai",
        /// vLLM.
        Vllm = 4 "vllm",
        /// LM Studio.
        LmStudio = 5 "lmstudio",
        /// An OpenAI-style server of speech: VibeVoice, Kokoro, speaches, ...
        OpenAiSpeech = 6 "openai-speech",
        /// Piper's own HTTP server.
        Piper = 7 "piper",
        /// Chatterbox.
        Chatterbox = 8 "chatterbox",
        /// The Wyoming protocol over TCP.
        Wyoming = 9 "wyoming",
        /// GLM-ASR's WebSocket.
        GlmAsr = 10 "glm-asr",
        /// The operating system's own voice.
        System = 11 "system",
        /// An OpenAI-style server that transcribes only: whisper.cpp, faster-whisper, ...
        Whisper = 12 "whisper",
    }
}

open_enum! {
    /// How an engine fares.
    Health {
        /// Answers.
        Ok = 1 "ok",
        /// Answers late, since it works. Busy is not dead.
        Busy = 2 "busy",
        /// Does not answer.
        Down = 3 "down",
        /// A managed engine that is being started.
        Starting = 4 "starting",
    }
}

open_enum! {
    /// What a model is for.
    ModelKind {
        /// Language model.
        Llm = 1 "llm",
        /// Text to speech.
        Tts = 2 "tts",
        /// Speech to text.
        Stt = 3 "stt",
        /// Embeddings.
        Embed = 4 "embed",
    }
}

open_enum! {
    /// Where a model is.
    Residency {
        /// Not on this machine.
        Absent = 1 "absent",
        /// On disk; the first request loads it.
        OnDisk = 2 "on_disk",
        /// Being loaded.
        Loading = 3 "loading",
        /// In memory.
        Loaded = 4 "loaded",
        /// In memory until told otherwise.
        Pinned = 5 "pinned",
    }
}

open_enum! {
    /// What network an address belongs to.
    PathKind {
        /// Loopback.
        Loopback = 1 "loopback",
        /// The home's own network.
        Lan = 2 "lan",
        /// Tailscale.
        Tailnet = 3 "tailnet",
        /// WireGuard.
        WireGuard = 4 "wireguard",
        /// Anything else.
        Other = 5 "other",
    }
}

/// Where a node's data plane can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Addr {
    /// IPv4-mapped for v4.
    pub ip: [u8; 16],
    /// UDP port.
    pub port: u16,
    /// Of what network.
    pub kind: PathKind,
}

impl Addr {
    /// From a socket address; an IPv6 scope is dropped, since it means nothing elsewhere.
    pub fn new(addr: SocketAddr) -> Self {
        let ip = match addr.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Addr {
            ip: ip.octets(),
            port: addr.port(),
            kind: kind_of(addr.ip()),
        }
    }

    /// As a socket address.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.ip).to_canonical(), self.port)
    }
}

/// The network of an address, as far as its range tells: Tailscale takes 100.64.0.0/10
/// (RFC 6598) and fd7a:115c:a1e0::/48. WireGuard has no range of its own and reads as `Lan`.
fn kind_of(ip: IpAddr) -> PathKind {
    match ip {
        IpAddr::V4(v4) if v4.is_loopback() => PathKind::Loopback,
        IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64 => PathKind::Tailnet,
        IpAddr::V4(v4) if v4.is_private() || v4.is_link_local() => PathKind::Lan,
        IpAddr::V6(v6) if v6.is_loopback() => PathKind::Loopback,
        IpAddr::V6(v6) if v6.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0] => PathKind::Tailnet,
        IpAddr::V6(v6) if v6.is_unique_local() || v6.is_unicast_link_local() => PathKind::Lan,
        _ => PathKind::Other,
    }
}

/// One GPU. Figures that the driver does not give are 0.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Gpu {
    /// As the driver names it.
    pub name: String,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes free now.
    pub memory_free: u64,
    /// Busy, percent 0..=100.
    pub utilization: u8,
    /// Degrees Celsius.
    pub temperature: u8,
    /// Milliwatts drawn.
    pub power_mw: u32,
}

/// What a machine has.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Hardware {
    /// `linux`, `macos`, `windows`, ...
    pub os: String,
    /// The processor's name.
    pub cpu: String,
    /// Logical cores.
    pub cores: u16,
    /// Bytes of main memory.
    pub ram_total: u64,
    /// Bytes available now.
    pub ram_free: u64,
    /// GPU and CPU share the memory (Apple Silicon).
    pub unified: bool,
    /// At most [`crate::limits::MAX_GPUS`].
    pub gpus: Vec<Gpu>,
    /// Runs on battery now.
    pub on_battery: bool,
    /// Percent; 255 = no battery.
    pub battery: u8,
}

/// One engine.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct EngineAdvert {
    /// Its name in the configuration, or what detection called it.
    pub name: String,
    /// What API it speaks.
    pub kind: EngineKind,
    /// How it fares.
    pub health: Health,
    /// Requests at the same time.
    pub slots: u16,
    /// Of these, in use.
    pub busy: u16,
    /// Requests that wait.
    pub queue: u16,
}

/// What was measured on one model. `samples` 0 = nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Encode, Decode, serde::Serialize)]
pub struct Stats {
    /// Milliseconds to the first token with an empty prompt (intercept).
    pub ttft_ms: f32,
    /// Milliseconds more for every 1,000 prompt tokens (slope); 0 = not learned.
    pub ttft_per_ktok_ms: f32,
    /// Milliseconds between tokens.
    pub itl_ms: f32,
    /// Milliseconds to load a cold model; 0 = never seen.
    pub load_ms: f32,
    /// Seconds since the last sample.
    pub age_s: u32,
    /// How many samples.
    pub samples: u32,
}

/// One model on one engine.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ModelAdvert {
    /// Index into [`Advert::engines`].
    pub engine: u16,
    /// The engine's name for it.
    pub name: String,
    /// A digest of the weights, empty if unknown. Equal digests answer alike.
    pub digest: String,
    /// `llama`, `qwen2`, ...; empty if unknown.
    pub family: String,
    /// `Q4_K_M`, ...; empty if unknown.
    pub quantization: String,
    /// Bytes on disk; 0 = unknown.
    pub size: u64,
    /// Context in tokens as the engine runs it; 0 = unknown.
    pub context: u32,
    /// What it is for.
    pub kind: ModelKind,
    /// Where it is.
    pub residency: Residency,
    /// Milliseconds until it is loaded, while it loads.
    pub load_eta_ms: u32,
    /// The engine takes and gives token ids: a seam can be exact.
    pub token_ids: bool,
    /// What was measured.
    pub stats: Stats,
}

/// One voice on one engine.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VoiceAdvert {
    /// Index into [`Advert::engines`].
    pub engine: u16,
    /// The engine's name for it.
    pub name: String,
    /// BCP 47, empty if unknown.
    pub language: String,
}

/// What a node says of itself. Ordered by (`epoch`, `seq`); newest wins.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Advert {
    /// Who. Must be the key that signed it.
    pub node: NodeId,
    /// For people; not unique.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Rises at every start and wake: wall-clock milliseconds at that time, or one more than
    /// the last.
    pub epoch: u64,
    /// Rises with every advert of an epoch.
    pub seq: u64,
    /// The sender's clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// Where it is in its life.
    pub state: NodeState,
    /// While draining: milliseconds until it leaves.
    pub drain_ms: u32,
    /// As in its certificate.
    pub role: Role,
    /// Where its data plane listens, best first.
    pub addrs: Vec<Addr>,
    /// UDP port of its gossip swarm at the same addresses; 0 = none.
    pub swarm_port: u16,
    /// What the machine has.
    pub hardware: Hardware,
    /// At most [`crate::limits::MAX_ENGINES`].
    pub engines: Vec<EngineAdvert>,
    /// At most [`crate::limits::MAX_MODELS`].
    pub models: Vec<ModelAdvert>,
    /// At most [`crate::limits::MAX_VOICES`].
    pub voices: Vec<VoiceAdvert>,
}

impl Record for Advert {
    const KIND: u16 = 0x0051;
    const NAME: &'static str = "Advert";
    const CLASS: Class = Class::Medium;
}

/// An [`Advert`] that anybody in the mesh can check and pass on. The unit of gossip.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedAdvert {
    /// The signer's certificate, DER: proves membership.
    pub certificate: Vec<u8>,
    /// An [`Advert`] record, header included. Kept as bytes, since the signature covers them.
    pub payload: Vec<u8>,
    /// Ed25519 over `"unamesh advert v1" || payload`.
    pub signature: [u8; 64],
}

impl Record for SignedAdvert {
    const KIND: u16 = 0x0050;
    const NAME: &'static str = "SignedAdvert";
    const CLASS: Class = Class::Medium;
}
