//! A mesh of real agents, joined as a user joins machines (`init`, `invite`, `join`).
//!
//! The agents of one machine share two cores and many tests measure time: a [`Cluster`] holds
//! the [`turn`] until it is dropped, so that meshes of one test program run one after another.

pub use crate::agent::{Agent, Setup};

use crate::http::Reply;
use crate::measure::until;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// Agents of one machine know of each other within this.
pub const MEET: Duration = Duration::from_secs(10);

static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this program runs agents.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Agents of one mesh.
pub struct Cluster {
    /// In the order of their setups; the first made the mesh.
    pub agents: Vec<Agent>,
    /// Their files.
    pub root: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts an agent per setup and returns when each knows every other one.
    pub async fn start(setups: Vec<Setup>) -> Self {
        let turn = turn().await;
        let root = tempfile::Builder::new()
            .prefix("unamesh-test-")
            .tempdir()
            .unwrap();
        let agents = setups
            .into_iter()
            .map(|setup| Agent::new(root.path(), setup))
            .collect();
        let mut cluster = Self {
            agents,
            root,
            _turn: turn,
        };
        cluster.found().await;
        for index in 1..cluster.agents.len() {
            cluster.join(index).await;
            cluster.agents[index].start().await;
        }
        cluster.met().await;
        cluster
    }

    async fn found(&mut self) {
        let first = &mut self.agents[0];
        first.run(&["init"]).await.unwrap();
        first.start().await;
    }

    /// Makes the agent a member: an invitation of the first, accepted by it.
    pub async fn join(&self, index: usize) {
        let invitation = self.agents[0].run(&["invite"]).await.unwrap();
        let link = invitation["link"].as_str().unwrap();
        self.agents[index].run(&["join", link]).await.unwrap();
    }

    /// Waits until every running agent counts every other running one as alive.
    pub async fn met(&self) {
        let running: Vec<&Agent> = self.agents.iter().filter(|agent| agent.runs()).collect();
        for agent in &running {
            for other in running.iter().filter(|other| other.node() != agent.node()) {
                let what = format!("{} sees {}", agent.setup.name, other.setup.name);
                until(&what, MEET, async || {
                    peer_is(agent, other.node(), "alive").await
                })
                .await;
            }
        }
    }

    /// Waits until `index` would choose `chosen` for `model`.
    pub async fn chooses(&self, index: usize, model: &str, chosen: &[usize]) -> Duration {
        let agent = &self.agents[index];
        let mut nodes: Vec<&str> = chosen.iter().map(|&i| self.agents[i].node()).collect();
        nodes.sort_unstable();
        let what = format!("{} can choose {chosen:?} for {model}", agent.setup.name);
        let (_, took) = until(&what, MEET, async || {
            let ranked = ranked(agent, model).await?;
            let mut found: Vec<&str> = ranked.iter().map(String::as_str).collect();
            found.sort_unstable();
            if found == nodes {
                Ok(())
            } else {
                Err(format!("now {found:?}"))
            }
        })
        .await;
        took
    }

    /// The agent with this node id.
    #[must_use]
    pub fn index_of(&self, node: &str) -> usize {
        self.agents
            .iter()
            .position(|agent| agent.node() == node)
            .unwrap()
    }
}

/// Whether `agent` lists `node` with `liveness`.
async fn peer_is(agent: &Agent, node: &str, liveness: &str) -> Result<(), String> {
    let peers = agent.api("peers").await?;
    let peer = peers
        .as_array()
        .into_iter()
        .flatten()
        .find(|peer| peer["node"] == node);
    match peer {
        Some(peer) if peer["liveness"] == liveness => Ok(()),
        Some(peer) => Err(format!("is {}", peer["liveness"])),
        None => Err("not listed".into()),
    }
}

/// The nodes that `agent` ranks for `model`, best first.
///
/// # Errors
/// It did not answer.
pub async fn ranked(agent: &Agent, model: &str) -> Result<Vec<String>, String> {
    let why = agent.api(&format!("why?model={model}")).await?;
    let ranked = why["ranked"].as_array().cloned().unwrap_or_default();
    Ok(ranked
        .iter()
        .filter_map(|c| c["node"].as_str().map(str::to_owned))
        .collect())
}

/// A generation as the local mesh API tells it: one client event a line.
pub struct Generation {
    reply: Reply,
}

impl Generation {
    /// Asks `agent` for an answer of `model`.
    pub async fn start(agent: &Agent, model: &str, prompt: &str) -> Self {
        let body = json!({"model": model, "temperature": 0,
            "messages": [{"role": "user", "content": prompt}]});
        Self::ask(agent, &body).await
    }

    /// Asks `agent` with this request.
    pub async fn ask(agent: &Agent, body: &Value) -> Self {
        let reply = agent
            .gateway()
            .send("/unamesh/v1/generate", Some(body))
            .await
            .unwrap();
        assert_eq!(reply.status(), 200);
        Self { reply }
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Value> {
        let line = self.reply.line().await.unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }
}
