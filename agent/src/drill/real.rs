//! The mesh that is there: the agents of a home play the faults themselves.
//!
//! The agent of this machine asks the one that answers, over an administration stream, to
//! fail for a few seconds ([`unamesh_proto::wire::Drill`]). It ends by itself, whatever
//! becomes of us. A machine is only touched if its owner allows it (`serve.drill`) and whoever
//! runs the drill said yes to it. Those take turns: each is asked to begin the answers of a
//! trial, whoever would rank first. Answers that another one begins nonetheless pass untouched.

use super::answer::Question;
use super::case::Case;
use super::trial::Stage;
use crate::local_mesh::LocalError;
use crate::local_mesh::agent::Door;
use crate::local_mesh::process::until;
use serde_json::{Value, json};
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
    allowed: Vec<String>,
    /// Trials so far.
    turns: usize,
    /// Who plays, and until when.
    playing: Option<(String, Instant)>,
}

impl RealStage {
    /// Asks the agent at `door` for answers of `model` in `tokens` tokens; `allowed`: the
    /// node ids that may be touched.
    pub fn new(door: Door, model: &str, tokens: usize, allowed: Vec<String>) -> Self {
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
            turns: 0,
            playing: None,
        }
    }
}

impl Stage for RealStage {
    fn question(&mut self) -> Result<Question, LocalError> {
        let turn = self.turns.checked_rem(self.allowed.len());
        self.turns += 1;
        Ok(Question {
            door: self.door.clone(),
            body: self.request.clone(),
            first: turn.and_then(|turn| self.allowed.get(turn).cloned()),
        })
    }

    fn expected(&self) -> Option<&str> {
        None
    }

    fn strike(&mut self, case: Case, node: &str) -> Result<bool, LocalError> {
        if !self.allowed.iter().any(|allowed| allowed == node) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn those_that_may_be_touched_take_turns_and_nobody_else_is() {
        let door = Door {
            gateway: ([127, 0, 0, 1], 0).into(),
            token: String::new(),
        };
        let allowed = vec!["a".to_owned(), "b".to_owned()];
        let mut stage = RealStage::new(door, "m", 40, allowed);
        let mut first = || stage.question().unwrap().first.unwrap();
        assert_eq!([first(), first(), first()], ["a", "b", "a"]);
        assert_eq!(stage.strike(Case::Kill, "c"), Ok(false));
    }
}
