//! Small adverts and records for tests, simulations and fuzzing.

pub mod records;

use crate::ids::NodeId;
use crate::wire::{
    Addr, Advert, EngineAdvert, EngineKind, Hardware, Health, ModelAdvert, ModelKind, NodeState,
    Residency, Role, SignedAdvert, Stats,
};
use std::net::{Ipv4Addr, SocketAddr};

/// A node id that sorts by `n`.
pub fn node(n: u32) -> NodeId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
}

/// `10.0.x.y:11400`, different for each `n` below 65,536.
pub fn addr(n: u32) -> SocketAddr {
    let [_, _, x, y] = n.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, x, y), 11400))
}

/// An engine with four free slots.
pub fn engine(name: &str) -> EngineAdvert {
    EngineAdvert {
        name: name.to_owned(),
        kind: EngineKind::LlamaCpp,
        health: Health::Ok,
        slots: 4,
        busy: 0,
        queue: 0,
    }
}

/// A loaded language model on engine `engine`: 100 ms to the first token, measured.
pub fn model(name: &str, engine: u16) -> ModelAdvert {
    ModelAdvert {
        engine,
        name: name.to_owned(),
        digest: format!("sha256:{name}"),
        family: "llama".to_owned(),
        quantization: "Q4_K_M".to_owned(),
        size: 4_400_000_000,
        context: 8192,
        kind: ModelKind::Llm,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: true,
        stats: Stats {
            ttft_ms: 100.0,
            ttft_per_ktok_ms: 100.0,
            itl_ms: 20.0,
            load_ms: 3000.0,
            age_s: 10,
            samples: 30,
        },
    }
}

/// What `node` says as number `seq` of `epoch`: up, one engine, one model `m`.
pub fn advert_of(node: NodeId, epoch: u64, seq: u64) -> Advert {
    Advert {
        node,
        name: format!("node-{}", node.short()),
        version: "0.1.0".to_owned(),
        epoch,
        seq,
        wall_ms: WALL_MS,
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: vec![Addr::new(addr(u32::from_be_bytes([
            node.0[0], node.0[1], node.0[2], node.0[3],
        ])))],
        swarm_port: 11401,
        hardware: Hardware {
            os: "linux".to_owned(),
            cores: 8,
            battery: 255,
            ..Hardware::default()
        },
        engines: vec![engine("llama")],
        models: vec![model("m", 0)],
        voices: Vec::new(),
    }
}

/// The wall clock of [`advert_of`].
pub const WALL_MS: u64 = 1_800_000_000_000;

/// A stand-in where the signature is not looked at.
pub fn unsigned() -> SignedAdvert {
    SignedAdvert {
        certificate: Vec::new(),
        payload: Vec::new(),
        signature: [0; 64],
    }
}
