//! What the tests of this crate's mesh parts share.
#![allow(clippy::unwrap_used)]

use unamesh_proto::NodeId;
use unamesh_proto::wire::{Advert, Hardware, NodeState, Role};

/// An advert of a node that has nothing.
pub fn advert(node: NodeId, seq: u64) -> Advert {
    Advert {
        node,
        name: "n".into(),
        version: "0".into(),
        epoch: 1,
        seq,
        wall_ms: 0,
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: Vec::new(),
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: Vec::new(),
        models: Vec::new(),
        voices: Vec::new(),
    }
}
