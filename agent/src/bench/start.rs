//! How soon a started agent is used, and a leaving one no longer.
//!
//! On one host (multicast DNS on the loopback interface): from the start of the third
//! agent's process until the first can choose it; from its SIGTERM until the first does not
//! choose it any more. The network lab of the tests measures the same between hosts.

use super::engine::MODEL;
use super::stats::Samples;
use super::{BenchError, Progress, Report};
use crate::local_mesh::http::{self, Connection};
use crate::local_mesh::process::{Signal, TestEngine, until};
use crate::local_mesh::{Agent, Mesh, Setup};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than it may ever take.
const LIMIT: Duration = Duration::from_secs(20);

/// `unamesh bench start`.
#[derive(Clone, Debug, clap::Args)]
pub struct StartArgs {
    /// How often.
    #[arg(long, default_value_t = 20)]
    pub trials: usize,
}

/// Runs it.
///
/// # Errors
/// See [`BenchError`].
pub fn run(args: &StartArgs, progress: &Progress) -> Result<Report, BenchError> {
    progress("starting two test engines and three agents");
    let engines = [TestEngine::start()?, TestEngine::start()?];
    let with_mdns = |setup: Setup| Setup {
        mdns: true,
        ..setup
    };
    let setups = [
        with_mdns(Setup::default()),
        with_mdns(Setup::openai(engines[0].addr)),
        with_mdns(Setup::openai(engines[1].addr)),
    ];
    let mut mesh = Mesh::start(&setups, MODEL)?;
    let [first, _, third] = mesh.agents.as_mut_slice() else {
        return Err(BenchError::new("bench", "three agents expected"));
    };
    let mut watch = Watch::open(first)?;
    let (mut joined, mut left) = (Samples::default(), Samples::default());
    for trial in 1..=args.trials {
        progress(&format!("trial {trial} of {}", args.trials));
        let start = Instant::now();
        third.process()?.signal(Signal::Terminate)?;
        watch.until(&third.node, false)?;
        left.push_ms(start.elapsed());
        third.process()?.ended()?;

        let start = Instant::now();
        third.spawn()?;
        watch.until(&third.node, true)?;
        joined.push_ms(start.elapsed());
        third.ready()?;
    }
    let json = json!({
        "trials": args.trials,
        "start_to_chosen_ms": joined.json(),
        "term_to_unchosen_ms": left.json(),
    });
    let text = format!(
        "start until it can be chosen: p50 {:.1} ms, p95 {:.1} ms\n\
         SIGTERM until nobody chooses it: p50 {:.1} ms, p95 {:.1} ms\n",
        joined.median(),
        joined.percentile(0.95),
        left.median(),
        left.percentile(0.95)
    );
    Ok(Report {
        json,
        text,
        trouble: None,
    })
}

/// Asks an agent for its ranking again and again on one connection.
struct Watch {
    connection: Connection,
    request: Vec<u8>,
}

impl Watch {
    fn open(agent: &Agent) -> Result<Self, BenchError> {
        let target = format!("/unamesh/v1/why?model={MODEL}");
        Ok(Watch {
            connection: Connection::open(agent.gateway).map_err(BenchError::during(&target))?,
            request: http::request(agent.gateway, &target, Some(&agent.token), None),
        })
    }

    /// Waits until `node` is chosen first-hand: ranked and not draining, or not.
    fn until(&mut self, node: &str, chosen: bool) -> Result<(), BenchError> {
        until("the ranking follows", LIMIT, || {
            let failed = |e| BenchError::new("why", e);
            self.connection.send(&self.request).map_err(failed)?;
            let body = self.connection.rest().map_err(failed)?;
            let why: Value = serde_json::from_slice(&body).map_err(BenchError::during("why"))?;
            let ranked = why["ranked"].as_array().into_iter().flatten();
            let found = ranked
                .filter(|c| c["draining"] != true)
                .any(|c| c["node"] == node);
            Ok((found == chosen).then_some(()))
        })
    }
}
