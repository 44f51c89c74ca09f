//! Three hosts in a lab: a desk that asks, and two that answer.

use super::EngineProcess;
use crate::agent::Setup;
use crate::cluster::Cluster;
use crate::lab::Lab;
use std::time::Duration;

/// The hosts that answer.
pub const ANSWERERS: [usize; 2] = [1, 2];

/// A desk (host 0) without an engine, and the hosts 1 and 2 with an engine each. The fields drop
/// in this order.
pub struct Pair {
    /// The agents, in the order of the hosts.
    pub cluster: Cluster,
    /// Of hosts 1 and 2.
    engines: Vec<EngineProcess>,
    /// The network.
    pub lab: Lab,
    /// The model that both engines have.
    pub model: String,
}

impl Pair {
    /// Starts it; `line` is the engines' command line for a port, `slots` how many requests each
    /// of them runs at a time (0: as it says itself). `None` if the lab is to be skipped.
    pub async fn start(model: &str, slots: u16, line: impl Fn(u16) -> Vec<String>) -> Option<Self> {
        let lab = Lab::new(1 + ANSWERERS.len())?;
        let setup = |name, host| Setup {
            net: lab.net(host),
            mdns: true,
            ..Setup::new(name)
        };
        let (mut setups, mut engines) = (vec![setup("desk", 0)], Vec::new());
        for (host, name) in ANSWERERS.into_iter().zip(["laptop", "tower"]) {
            let engine = EngineProcess::start(lab.net(host), &line).await;
            let mut setup = setup(name, host).engine(engine.addr);
            // Belongs to the engine, which is the last entry of the configuration.
            setup.config = format!("slots = {slots}\n");
            setups.push(setup);
            engines.push(engine);
        }
        let pair = Self {
            cluster: Cluster::start(setups).await,
            engines,
            lab,
            model: model.to_owned(),
        };
        pair.whole().await;
        Some(pair)
    }

    /// The engine of a host.
    pub fn engine(&mut self, host: usize) -> &mut EngineProcess {
        &mut self.engines[host - 1]
    }

    /// Waits until the desk can choose both hosts, and tells how long that took.
    pub async fn whole(&self) -> Duration {
        self.cluster.chooses(0, &self.model, &ANSWERERS).await
    }
}
