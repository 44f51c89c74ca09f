//! What the tests of this crate's mesh parts share.
#![allow(clippy::unwrap_used)]

use crate::ca::Ca;
use unamesh_client::clock;
use unamesh_client::identity::{Credentials, NodeKey};
use unamesh_proto::NodeId;
use unamesh_proto::advert::sign;
use unamesh_proto::wire::{Advert, Hardware, NodeState, Role, SignedAdvert};

/// A mesh with a real CA.
pub struct Mesh {
    _dir: tempfile::TempDir,
    ca: Ca,
}

/// A member of it.
pub struct Member(pub Credentials);

impl Mesh {
    pub fn new() -> Mesh {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(&dir.path().join("ca"), clock::wall()).unwrap();
        Mesh { _dir: dir, ca }
    }

    pub fn ca(&self) -> Vec<u8> {
        self.ca.certificate().to_vec()
    }

    pub fn member(&self, role: Role) -> Member {
        let key = NodeKey::generate();
        let certificate = self.ca.issue(key.id(), role, "n", clock::wall()).unwrap();
        Member(Credentials::new(key, certificate, self.ca(), "home".into()).unwrap())
    }
}

impl Member {
    pub fn node(&self) -> NodeId {
        self.0.node()
    }

    pub fn sign(&self, advert: Advert) -> SignedAdvert {
        sign(&advert, self.0.certificate.clone(), |bytes| {
            self.0.key.sign(bytes)
        })
        .unwrap()
    }
}

/// An advert of a node that has nothing.
pub fn advert(node: NodeId, seq: u64) -> Advert {
    Advert {
        node,
        name: "n".into(),
        version: "0".into(),
        epoch: 1,
        seq,
        wall_ms: clock::wall().as_millis(),
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
