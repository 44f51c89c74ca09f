//! The agents of one mesh: made by `init`, `invite` and `join`, and waited for.

use super::LocalError;
use super::agent::{Agent, Place, Setup};
use super::process::until;
use super::relay::Relay;
use serde_json::Value;
use std::time::Duration;

/// Agents know of each other and of their engines within this.
const MEET: Duration = Duration::from_secs(20);

/// Agents of one mesh, each in a directory of its own below one that goes with them.
pub struct Mesh {
    /// In the order of their setups; the first made the mesh.
    pub agents: Vec<Agent>,
    /// Between them, if there is one.
    pub relay: Option<Relay>,
    _root: tempfile::TempDir,
}

impl Mesh {
    /// Starts an agent for each setup and returns when the first can choose every one whose
    /// setup names an engine for `model`.
    ///
    /// # Errors
    /// One does not come up, join or find the others.
    pub fn start(setups: &[Setup], model: &str) -> Result<Self, LocalError> {
        let places = places(setups)?;
        Self::at(setups, &places, None, model)
    }

    /// As [`Mesh::start`], with a relay between the agents in which they can be cut off.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub fn start_relayed(setups: &[Setup], model: &str) -> Result<Self, LocalError> {
        let mut places = places(setups)?;
        let relay = Relay::start(places.iter().map(|place| place.listen).collect())
            .map_err(LocalError::during("the relay"))?;
        for (place, front) in places.iter_mut().zip(relay.fronts()) {
            place.front = Some(*front);
        }
        Self::at(setups, &places, Some(relay), model)
    }

    fn at(
        setups: &[Setup],
        places: &[Place],
        relay: Option<Relay>,
        model: &str,
    ) -> Result<Self, LocalError> {
        let root = tempfile::Builder::new()
            .prefix("unamesh-local-")
            .tempdir()
            .map_err(LocalError::during("a directory for the agents"))?;
        let first_place = places.first().map(|p| p.front.unwrap_or(p.listen));
        let mut agents: Vec<Agent> = Vec::new();
        for (at, (setup, place)) in setups.iter().zip(places).enumerate() {
            let seed = first_place.filter(|_| at > 0 && !setup.mdns);
            let mut agent = Agent::create(root.path(), at, setup, *place, seed)?;
            match agents.first() {
                None => agent.run(&["init"])?,
                Some(first) => {
                    let invitation = first.run(&["invite"])?;
                    let link = invitation["link"].as_str().unwrap_or_default();
                    agent.run(&["join", link])?
                }
            };
            agent.start()?;
            agents.push(agent);
        }
        let mesh = Mesh {
            agents,
            relay,
            _root: root,
        };
        let serving = setups
            .iter()
            .filter(|s| s.config.contains("[[engine]]"))
            .count();
        mesh.chooses(model, serving)?;
        Ok(mesh)
    }

    /// Waits until the first agent knows agent `at` as it runs now: its entry may still be
    /// that of an earlier process.
    ///
    /// # Errors
    /// It does not hear of it.
    pub fn knows(&self, at: usize) -> Result<(), LocalError> {
        let (Some(first), Some(other)) = (self.agents.first(), self.agents.get(at)) else {
            return Err(LocalError::new("local mesh", "no such agent"));
        };
        let epoch = |agent: &Agent| -> Result<Option<u64>, LocalError> {
            let peers = agent.api("peers")?;
            let mut peers = peers.as_array().into_iter().flatten();
            let entry = peers.find(|p| p["node"] == other.node.as_str());
            Ok(entry.and_then(|p| p["epoch"].as_u64()))
        };
        let own = epoch(other)?;
        let what = format!("{} knows the new {}", first.name, other.name);
        until(&what, MEET, || Ok((epoch(first)? == own).then_some(())))
    }

    /// Waits until the first agent can choose `count` agents for `model`.
    ///
    /// # Errors
    /// It cannot.
    pub fn chooses(&self, model: &str, count: usize) -> Result<(), LocalError> {
        let what = format!("{count} agents can be chosen for {model}");
        let mut why = Value::Null;
        let chosen = until(&what, MEET, || {
            if let Some(first) = self.agents.first() {
                why = first.api(&format!("why?model={model}"))?;
            }
            let ranked = why["ranked"].as_array().map_or(0, Vec::len);
            Ok((ranked == count).then_some(()))
        });
        chosen.map_err(|e| LocalError::new(e, &why["rejected"]))
    }
}

fn places(setups: &[Setup]) -> Result<Vec<Place>, LocalError> {
    setups.iter().map(|_| Place::free()).collect()
}
