//! A home to do things to, so that a scenario reads as what happens in it:
//!
//! ```no_run
//! use unamesh_tests::home::Home;
//! use unamesh_tests::impair::WIFI;
//! # async fn scenario() {
//! let Some(home) = Home::lab(3).link(1, WIFI).start().await else {
//!     return; // told to skip the lab
//! };
//! let answer = home.ask(0).at_token(30, |peer| home.cut(peer)).await;
//! answer.is_whole();
//! # }
//! ```
//!
//! Host 0 is the desk, which has no engine; the others (laptop, tower, …) have the engine double
//! of [`Script`] each, all alike. [`Home::lab`] makes them hosts of a [`Lab`];
//! [`Home::here`] makes them processes of this host, without root, where a network has no faults
//! but processes can be killed and frozen.

mod answer;
mod faults;
mod watch;

pub use answer::{Answer, Ask, End};
pub use watch::Watch;

use crate::agent::Setup;
use crate::cluster::{Agent, Cluster, MEET};
use crate::doubles::ScriptEngine;
use crate::doubles::script_engine::Script;
use crate::impair::{Impairment, Way};
use crate::lab::{Lab, Port};
use crate::measure::until;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What hosts are called, in this order.
const NAMES: [&str; 6] = ["desk", "laptop", "tower", "attic", "cellar", "shed"];

/// What a home will be.
#[derive(Clone, Debug)]
pub struct Builder {
    hosts: usize,
    lab: bool,
    links: Vec<(Port, Impairment)>,
    second: Vec<usize>,
    seed: u64,
    engines: Vec<usize>,
    script: Script,
    config: String,
}

/// Agents that know each other, their engines, and the network between them. The fields drop in
/// this order.
pub struct Home {
    /// The agents, in the order of the hosts.
    pub cluster: Cluster,
    engines: Vec<(usize, ScriptEngine)>,
    /// What every engine answers.
    pub script: Script,
    lab: Option<Lab>,
}

impl Home {
    /// `hosts` machines in a network lab, which find each other by multicast DNS.
    #[must_use]
    pub fn lab(hosts: usize) -> Builder {
        Builder {
            lab: true,
            ..Self::here(hosts)
        }
    }

    /// `hosts` agents as processes of this machine.
    ///
    /// # Panics
    /// If there are more hosts than names.
    #[must_use]
    pub fn here(hosts: usize) -> Builder {
        assert!(hosts <= NAMES.len(), "no more than {} names", NAMES.len());
        Builder {
            hosts,
            lab: false,
            links: Vec::new(),
            second: Vec::new(),
            seed: 1,
            engines: (1..hosts).collect(),
            script: Script::default(),
            config: String::new(),
        }
    }
}

impl Builder {
    /// The cable of a host is like this, both ways, once the mesh has formed.
    #[must_use]
    pub fn link(mut self, port: impl Into<Port>, impairment: Impairment) -> Self {
        self.links.push((port.into(), impairment));
        self
    }

    /// These hosts have an interface on a second network too.
    #[must_use]
    pub fn second(mut self, hosts: &[usize]) -> Self {
        self.second = hosts.to_vec();
        self
    }

    /// The luck of all cables comes from it.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// These hosts have an engine, and no others.
    #[must_use]
    pub fn engines(mut self, hosts: &[usize]) -> Self {
        self.engines = hosts.to_vec();
        self
    }

    /// What every engine does.
    #[must_use]
    pub fn script(mut self, script: Script) -> Self {
        self.script = script;
        self
    }

    /// More lines for every agent's configuration file.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config = lines.to_owned();
        self
    }

    /// Builds it, and returns when all agents know each other and the engines; `None` if the lab
    /// is to be skipped.
    pub async fn start(self) -> Option<Home> {
        let lab = match self.lab {
            true => Some(Lab::with(self.hosts, &self.second, self.seed)?),
            false => None,
        };
        let (mut setups, mut engines) = (Vec::new(), Vec::new());
        for (host, name) in NAMES.iter().enumerate().take(self.hosts) {
            let mut setup = Setup::new(name);
            setup.config.clone_from(&self.config);
            if let Some(lab) = &lab {
                (setup.net, setup.mdns) = (lab.net(host), true);
            }
            if self.engines.contains(&host) {
                let listener = setup.net.listen().await.unwrap();
                let engine = ScriptEngine::serve(listener, self.script.clone());
                setup = setup.engine(engine.addr);
                engines.push((host, engine));
            }
            setups.push(setup);
        }
        let home = Home {
            cluster: Cluster::start(setups).await,
            engines,
            script: self.script,
            lab,
        };
        home.whole().await;
        for (port, impairment) in self.links {
            home.network().impair(port, Way::Both, impairment);
        }
        Some(home)
    }
}

impl Home {
    /// The agent of a host.
    #[must_use]
    pub fn agent(&self, host: usize) -> &Agent {
        &self.cluster.agents[host]
    }

    /// The engine of a host.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn engine(&self, host: usize) -> &ScriptEngine {
        let found = self.engines.iter().find(|(of, _)| *of == host);
        &found
            .unwrap_or_else(|| panic!("host {host} has no engine"))
            .1
    }

    /// The answers that begin from now on follow this script, of the same model.
    pub fn play(&mut self, script: Script) {
        for (_, engine) in &self.engines {
            engine.play(&script);
        }
        self.script = script;
    }

    /// The network.
    ///
    /// # Panics
    /// If this home is not in a lab.
    #[must_use]
    pub fn network(&self) -> &Lab {
        self.lab.as_ref().expect("a home in a lab: Home::lab")
    }

    /// Asks at a host for an answer: how to go on is told to the [`Ask`], awaiting it yields the
    /// [`Answer`].
    pub fn ask(&self, host: usize) -> Ask<'_> {
        Ask::new(self, host)
    }

    /// Whether a host's gateway gives a whole answer, asked as any OpenAI client asks.
    ///
    /// # Errors
    /// It refuses, or the answer is another one.
    pub async fn answers(&self, host: usize) -> Result<(), String> {
        let question = json!({"model": self.script.model,
            "messages": [{"role": "user", "content": "Count."}]});
        let server = self.agent(host).gateway();
        let answer = server.json("/v1/chat/completions", Some(&question)).await?;
        let text = &answer["choices"][0]["message"]["content"];
        if *text == self.script.answer() {
            Ok(())
        } else {
            Err(format!("answered {text}"))
        }
    }

    /// Notes the events of a host's agent from now on.
    pub async fn watch(&self, host: usize) -> Watch {
        Watch::start(self.agent(host)).await
    }

    /// How a host lists another: `alive`, `suspect`, `down`; an empty text if it does not.
    ///
    /// # Errors
    /// Its agent does not answer.
    pub async fn liveness(&self, host: usize, other: usize) -> Result<String, String> {
        let peers = self.agent(host).api("peers").await?;
        let mut peers = peers.as_array().into_iter().flatten();
        let found = peers.find(|peer| peer["node"] == self.agent(other).node());
        let liveness = found.and_then(|peer| peer["liveness"].as_str());
        Ok(liveness.unwrap_or_default().to_owned())
    }

    /// How many nodes a host lists, itself and ghosts included.
    ///
    /// # Panics
    /// If its agent does not answer.
    pub async fn listed(&self, host: usize) -> usize {
        let peers = self.agent(host).api("peers").await.unwrap();
        peers.as_array().map_or(0, Vec::len)
    }

    /// Waits until a host lists another so, and tells how long that took.
    pub async fn until_listed(&self, host: usize, other: usize, wanted: &str) -> Duration {
        let what = format!("host {host} lists {other} as {wanted}");
        let listed = async || match self.liveness(host, other).await? {
            liveness if liveness == wanted => Ok(()),
            liveness => Err(format!("now {liveness:?}")),
        };
        until(&what, MEET, listed).await.1
    }

    /// Waits until every running agent lists and reaches all others and host 0 can choose every
    /// engine that runs, and tells how long that took.
    pub async fn whole(&self) -> Duration {
        let begun = Instant::now();
        self.cluster.met().await;
        // A peer is listed as alive until it is found out: after a fault only an answer tells.
        let running = self.cluster.agents.iter().filter(|agent| agent.runs());
        join_all(running.map(|agent| async move {
            let what = format!("{} reaches all others", agent.setup.name);
            until(&what, MEET, async || reaches_all(agent).await).await;
        }))
        .await;
        self.usable().await;
        begun.elapsed()
    }

    /// Waits until host 0 can choose every engine whose agent runs, as far as it knows.
    pub async fn usable(&self) {
        let running = |host: &usize| self.agent(*host).runs();
        let engines = self.engines.iter().map(|(host, _)| *host);
        let engines: Vec<usize> = engines.filter(running).collect();
        self.cluster.chooses(0, &self.script.model, &engines).await;
    }

    /// The host whose agent is this `{"node": …}`.
    fn host_of(&self, peer: &Value) -> usize {
        self.cluster.index_of(peer["node"].as_str().unwrap())
    }
}

/// Whether every peer that `agent` does not list as down answers a ping on some path.
async fn reaches_all(agent: &Agent) -> Result<(), String> {
    let server = agent.gateway();
    let peers = server.json("/unamesh/v1/ping", Some(&json!({}))).await?;
    let silent = |peer: &&Value| {
        let mut paths = peer["paths"].as_array().into_iter().flatten();
        peer["liveness"] != "down" && !paths.any(|path| path["error"].is_null())
    };
    match peers.as_array().into_iter().flatten().find(silent) {
        None => Ok(()),
        Some(peer) => Err(format!("{peer}")),
    }
}
