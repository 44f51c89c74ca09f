//! The mesh of a demo: three agents and a member that asks.

use super::engines::Engines;
use super::home::Home;
use super::machine::{LOOK, Machine};
use super::show::Show;
use super::{DemoError, verdict};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::client::{ClientConfig, MeshClient};
use unamesh_proto::table::Liveness;
use unamesh_proto::timeouts::{LOAD_MAX, SHUTDOWN};
use unamesh_proto::wire::{Advert, EngineAdvert, Health};

/// Their names in the tables.
const NAMES: [&str; 3] = ["desk", "laptop", "tower"];
/// The name of the member that asks.
const CLIENT: &str = "phone";
/// The agents know each other within this (it takes a fraction of a second).
const DISCOVERY: Duration = Duration::from_secs(30);

/// Three agents and a client.
pub struct Mesh {
    machines: Vec<Machine>,
    /// The member that asks.
    pub client: MeshClient,
    engines: Engines,
    discovery: Duration,
}

impl Mesh {
    /// Makes the mesh and waits until everybody knows everybody and the engines answer.
    pub async fn start(home: &Home, engines: Engines, show: &Show) -> Result<Mesh, DemoError> {
        let mut machines = Vec::new();
        for (at, name) in NAMES.into_iter().enumerate() {
            let machine = Machine::prepare(home, name, |dir| engines.entries(at, dir));
            machines.push(machine?);
        }
        let guest = Machine::prepare(home, CLIENT, |_| Ok(Vec::new()))?;
        show.step("starting three agents")?;
        let [desk, others @ ..] = machines.as_mut_slice() else {
            return Err(nobody());
        };
        desk.run(&["init", "demo"]).await?;
        desk.start().await?;
        let link = desk.invite("agent", others.len()).await?;
        for machine in others.iter() {
            machine.run(&["join", &link]).await?;
        }
        let guests = desk.invite("client", 1).await?;
        let joined = guest.run(&["join", &guests, "--name", CLIENT]).await?;
        let began = Instant::now();
        for machine in others {
            machine.start().await?;
        }
        all_see_all(&machines).await?;
        let discovery = began.elapsed();
        show.step("waiting for the engines")?;
        let client = MeshClient::connect(ClientConfig {
            state_dir: guest.dir.clone(),
            seeds: texts(&joined["seeds"]),
            mdns: true,
        })?;
        let mesh = Mesh {
            machines,
            client,
            engines,
            discovery,
        };
        mesh.ready().await?;
        Ok(mesh)
    }

    /// The model to ask.
    pub fn model(&self) -> &str {
        self.engines.model()
    }

    /// For the report.
    pub fn facts(&self) -> verdict::Facts {
        verdict::Facts {
            peers: self.machines.len(),
            discovery: self.discovery,
            model: self.model().to_owned(),
            engine: self.engines.describe(),
        }
    }

    /// Kills the agent `name` with SIGKILL, and those of its engines that are the demo's own.
    pub fn kill(&mut self, name: &str) {
        let table = self.client.peers();
        if let Some(machine) = self.machines.iter_mut().find(|m| m.name == name) {
            machine.kill();
            let advert = table
                .peers
                .iter()
                .map(|peer| &peer.advert)
                .find(|a| a.name == name);
            machine.gone = advert.map_or(0, |advert| advert.epoch);
        }
    }

    /// Starts what was killed and waits until all is as it was.
    pub async fn restore(&mut self) -> Result<(), DemoError> {
        for machine in self.machines.iter_mut().filter(|m| m.is_down()) {
            machine.start().await?;
        }
        all_see_all(&self.machines).await?;
        self.ready().await
    }

    /// Waits until the client can choose among all agents.
    async fn ready(&self) -> Result<(), DemoError> {
        let model = self.model();
        let mut changes = self.client.peer_changes();
        let ready = changes.wait_for(|table| {
            self.machines.iter().all(|machine| {
                let peers = table.peers.iter();
                peers
                    .filter(|peer| peer.advert.name == machine.name)
                    .any(|peer| {
                        peer.liveness == Liveness::Alive
                            && peer.advert.epoch > machine.gone
                            && serves(&peer.advert, model)
                            && healthy(&peer.advert) >= machine.engines
                    })
            })
        });
        let what = || format!("all engines answer, {model:?} among them");
        within(LOAD_MAX, what, async { Ok(ready.await.is_ok()) })
            .await
            .map(drop)
    }

    /// Lets go of the processes: they outlive the demo.
    pub fn leave(mut self) {
        for machine in &mut self.machines {
            machine.leave();
        }
    }

    /// What stays after `--keep`, for scripts.
    pub fn kept(&self) -> Value {
        let machine = |m: &Machine| {
            serde_json::json!({
                "name": m.name,
                "state": m.dir,
                "config": m.config(),
                "pid": m.pid(),
                "gateway": m.info().map(|info| format!("http://{}", info.gateway)),
            })
        };
        self.machines.iter().map(machine).collect()
    }

    /// State directories, gateways and process ids of the agents that run.
    pub fn running(&self) -> impl Iterator<Item = (&Path, SocketAddr, u32)> {
        self.machines
            .iter()
            .filter_map(|m| Some((m.dir.as_path(), m.info()?.gateway, m.pid()?)))
    }

    /// Ends everything in order: the client, then the agents, which end their engines.
    pub async fn stop(mut self) {
        self.client.shutdown().await;
        for machine in &self.machines {
            machine.terminate();
        }
        let ended = async {
            for machine in &mut self.machines {
                machine.ended().await;
            }
        };
        // What does not end in time is killed by the drop.
        let _ = tokio::time::timeout(SHUTDOWN * 2, ended).await;
    }
}

/// How many of its engines answer.
fn healthy(advert: &Advert) -> usize {
    let ok = |e: &&EngineAdvert| e.health == Health::Ok;
    advert.engines.iter().filter(ok).count()
}

/// Whether one of its engines can answer for `model` now.
fn serves(advert: &Advert, model: &str) -> bool {
    let healthy = |index: u16| {
        advert
            .engines
            .get(usize::from(index))
            .is_some_and(|e| e.health == Health::Ok)
    };
    advert
        .models
        .iter()
        .any(|m| m.name == model && healthy(m.engine))
}

/// Waits until each agent lists all of them as alive.
async fn all_see_all(machines: &[Machine]) -> Result<(), DemoError> {
    let all = async {
        loop {
            let seen = futures_util::future::join_all(machines.iter().map(Machine::sees)).await;
            if seen.iter().all(|n| *n >= machines.len()) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within(
        DISCOVERY,
        || "the agents find each other (unamesh doctor)".to_owned(),
        all,
    )
    .await
}

async fn within<T>(
    limit: Duration,
    what: impl Fn() -> String,
    work: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    let late = || DemoError::Late {
        what: what(),
        after: limit,
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn nobody() -> DemoError {
    DemoError::Agent {
        name: NAMES.concat(),
        reason: "no agents".to_owned(),
    }
}
