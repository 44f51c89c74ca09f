//! Addresses at which peers last answered, so that a start finds the mesh without multicast.

use super::{StateDir, StateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use unamesh_proto::{NodeId, Wall, limits};

const FILE: &str = "peers.json";

/// The last-good cache. Bounded by [`limits::MAX_PEERS`] and [`limits::MAX_PATHS`]; the peer
/// that was heard of longest ago makes room.
#[derive(Debug)]
pub struct LastGood {
    state: Option<StateDir>,
    peers: BTreeMap<String, Entry>,
    changed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Newest first.
    addrs: Vec<SocketAddr>,
    /// Wall clock of the last answer, milliseconds.
    seen_ms: u64,
}

impl LastGood {
    /// What `state` remembers. A damaged file is moved away.
    pub fn load(state: &StateDir) -> Self {
        let mut peers: BTreeMap<String, Entry> = state.read_or_fresh(FILE).unwrap_or_default();
        peers.retain(|node, _| node.parse::<NodeId>().is_ok());
        let mut this = LastGood {
            state: Some(state.clone()),
            peers,
            changed: false,
        };
        this.bound();
        this
    }

    /// Nothing remembered, nothing kept.
    pub fn in_memory() -> Self {
        LastGood {
            state: None,
            peers: BTreeMap::new(),
            changed: false,
        }
    }

    /// `node` answered at `addr`.
    pub fn worked(&mut self, node: NodeId, addr: SocketAddr, now: Wall) {
        let entry = self.peers.entry(node.to_string()).or_default();
        entry.seen_ms = now.as_millis();
        // Only a new order is worth a write; the time alone is not.
        if entry.addrs.first() != Some(&addr) {
            entry.addrs.retain(|a| *a != addr);
            entry.addrs.insert(0, addr);
            self.changed = true;
            self.bound();
        }
    }

    /// `node` was revoked or removed.
    pub fn forget(&mut self, node: &NodeId) {
        self.changed |= self.peers.remove(&node.to_string()).is_some();
    }

    /// Every address to try, the peer heard of last first.
    pub fn candidates(&self) -> Vec<(NodeId, SocketAddr)> {
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.seen_ms));
        peers
            .into_iter()
            .filter_map(|(node, entry)| Some((node.parse().ok()?, &entry.addrs)))
            .flat_map(|(node, addrs): (NodeId, _)| addrs.iter().map(move |addr| (node, *addr)))
            .collect()
    }

    /// Writes it down, if there is something new. Blocks on the disk.
    ///
    /// # Errors
    /// Nothing is lost while the agent runs; the next call tries again.
    pub fn save(&mut self) -> Result<(), StateError> {
        let Some(state) = self.state.as_ref().filter(|_| self.changed) else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(&self.peers).map_err(|e| StateError::Corrupt {
            path: state.file(FILE),
            reason: e.to_string(),
        })?;
        state.write(FILE, &bytes)?;
        self.changed = false;
        Ok(())
    }

    fn bound(&mut self) {
        for entry in self.peers.values_mut() {
            entry.addrs.truncate(limits::MAX_PATHS);
        }
        while self.peers.len() > limits::MAX_PEERS {
            let oldest = self.peers.iter().min_by_key(|(_, entry)| entry.seen_ms);
            let oldest = oldest.map(|(node, _)| node.clone());
            let Some(oldest) = oldest else { break };
            self.peers.remove(&oldest);
        }
    }
}
