//! `unamesh bench`: what the mesh costs and how fast it heals, measured on real processes.
//!
//! Every benchmark starts this program again as agents (own keys, own ports, one mesh, in a
//! temporary directory) and as test engines, and measures from outside with a blocking HTTP
//! client, so that the numbers are those of an application.
//!
//! - [`overhead`]: time to first token, per token, throughput: directly against the engine
//!   and through the mesh, in turn in the same run.
//! - [`faults`]: a killed and a frozen agent.
//! - [`start`]: how soon a started agent is used, a leaving one no longer.
//! - [`idle`]: what an agent costs that does nothing.
//! - [`engine`]: the test engine; [`process`], [`mesh`], [`http`], [`stats`]: what they share.

pub mod engine;
pub mod faults;
pub mod http;
pub mod idle;
pub mod mesh;
pub mod overhead;
pub mod process;
pub mod start;
pub mod stats;

use crate::starter;
use serde_json::Value;
use std::sync::Arc;

/// `unamesh bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub what: What,
}

/// What to measure.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum What {
    /// What the mesh adds to an engine's time to first token, per token, and to its load.
    Overhead(overhead::OverheadArgs),
    /// The gap in an answer whose agent is killed (SIGKILL).
    Failover(faults::FaultArgs),
    /// How soon a backup is asked when the answering agent freezes (SIGSTOP).
    Freeze(faults::FaultArgs),
    /// From the start of an agent until another can choose it; from SIGTERM until none does.
    Start(start::StartArgs),
    /// Memory, processor and network of an idle mesh of three.
    Idle(idle::IdleArgs),
    /// The test engine of the other benchmarks.
    #[command(hide = true)]
    Engine(engine::EngineArgs),
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// For scripts: one object.
    pub json: Value,
    /// For people: lines.
    pub text: String,
}

/// Takes a line that says what is being done, for a terminal.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct BenchError {
    what: String,
    reason: String,
}

impl BenchError {
    /// `what` failed for `reason`.
    pub fn new(what: impl ToString, reason: impl ToString) -> Self {
        BenchError {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    /// For `map_err`.
    pub fn during<E: std::fmt::Display>(what: impl ToString) -> impl FnOnce(E) -> Self {
        move |error| BenchError::new(what, error)
    }
}

/// Runs a benchmark; `None` for the test engine, which has nothing to report.
///
/// # Errors
/// Something did not start or answer; says what.
pub async fn run(args: BenchArgs, progress: Progress) -> Result<Option<Report>, BenchError> {
    let what = match args.what {
        What::Engine(args) => return engine::serve(&args).await.map(|()| None),
        what => what,
    };
    let starter = match &what {
        What::Failover(args) | What::Freeze(args) if args.starter => {
            let installed = starter::install(&starter::Quiet).await;
            Some(installed.map_err(BenchError::during("the starter engines"))?)
        }
        _ => None,
    };
    // The measuring threads block on their sockets, on purpose.
    let measured = tokio::task::spawn_blocking(move || match what {
        What::Overhead(args) => overhead::run(&args, &progress),
        What::Failover(args) => {
            faults::run(faults::Fault::Kill, &args, starter.as_ref(), &progress)
        }
        What::Freeze(args) => {
            faults::run(faults::Fault::Freeze, &args, starter.as_ref(), &progress)
        }
        What::Start(args) => start::run(&args, &progress),
        What::Idle(args) => idle::run(&args, &progress),
        What::Engine(_) => Err(BenchError::new("bench", "the engine is no benchmark")),
    });
    match measured.await {
        Ok(report) => report.map(Some),
        Err(e) => Err(BenchError::new("bench", e)),
    }
}
