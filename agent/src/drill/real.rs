//! The mesh that is there: the agents of a home play the faults themselves.
//!
//! The agent of this machine asks the one that answers, over an administration stream, to
//! fail for a few seconds ([`unamesh_proto::wire::Drill`]). It ends by itself, whatever
//! becomes of us. A machine is only touched if its owner allows it (`serve.drill`) and whoever
//! runs the drill said yes to it; an answer that comes from another one passes untouched.

use super::case::Case;
use super::trial::Stage;
use crate::local_mesh::LocalError;
use crate::local_mesh::agent::Door;
use crate::local_mesh::process::until;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So long a peer plays dead: longer than any bound on silence, and than what a slow engine
/// may take between two tokens.
const PLAYS: Duration = Duration::from_secs(4);
/// After that it is as before within this.
const BACK: Duration = Duration::from_secs(30);

/// Agents that may be touched, as the agent of this machine sees them.
pub struct RealStage {
    door: Door,
    request: Value,
    /// Node ids.
    allowed: BTreeSet<String>,
    /// Who plays, and until when.
    playing: Option<(String, Instant)>,
}

impl RealStage {
    /// Asks the agent at `door` for answers of `model` in `tokens` tokens; `allowed`: the
    /// node ids that may be touched.
    pub fn new(door: Door, model: &str, tokens: usize, allowed: BTreeSet<String>) -> Self {
        let request = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the sea and foxes."}],
            "max_tokens": tokens,
            "temperature": 0,
        });
        RealStage {
            door,
            request,
            allowed,
            playing: None,
        }
    }
}

impl Stage for RealStage {
    fn door(&self) -> Result<Door, LocalError> {
        Ok(self.door.clone())
    }

    fn request(&self) -> &Value {
        &self.request
    }

    fn expected(&self) -> Option<&str> {
        None
    }

    fn strike(&mut self, case: Case, node: &str) -> Result<bool, LocalError> {
        if !self.allowed.contains(node) {
            return Ok(false);
        }
        let asked = json!({"node": node, "fault": case.name(), "for_ms": PLAYS.as_millis() as u64});
        self.door.call("drill", Some(&asked))?;
        self.playing = Some((node.to_owned(), Instant::now() + PLAYS));
        Ok(true)
    }

    fn mend(&mut self, _case: Case) -> Result<(), LocalError> {
        let Some((node, ends)) = self.playing.take() else {
            return Ok(());
        };
        std::thread::sleep(ends.saturating_duration_since(Instant::now()));
        until("the peer is back", BACK, || {
            let peers = self.door.call("peers", None)?;
            let mut peers = peers.as_array().into_iter().flatten();
            let peer = peers.find(|p| p["node"] == node.as_str());
            let back = peer.is_some_and(|p| p["liveness"] == "alive" && p["state"] == "up");
            Ok(back.then_some(()))
        })
    }
}
