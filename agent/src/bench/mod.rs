//! `unamesh bench`: what the mesh costs and how fast it heals, measured on real processes.
//!
//! Every benchmark starts this program again as agents (own keys, own ports, one mesh, in a
//! temporary directory) and as test engines, and measures from outside with a blocking HTTP
//! client, so that the numbers are those of an application.
//!
//! - [`overhead`]: time to first token, per token, throughput: directly against the engine
//!   and through the mesh, in turn in the same run.
//! - [`start`]: how soon a started agent is used, a leaving one no longer.
//! - [`idle`]: what an agent costs that does nothing.
//! - A killed and a frozen agent are cases of the fire drill ([`crate::drill`]).
//! - [`engine`]: the test engine; [`stats`]: what they share. The agents are those of
//!   [`crate::local_mesh`].

pub mod engine;
pub mod idle;
pub mod overhead;
pub mod start;
pub mod stats;

pub use crate::local_mesh::LocalError as BenchError;

use crate::cli::args::tolerance;
use crate::drill::{self, Case, frozen};
use crate::starter::{self, Starter};
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
    Failover(FaultArgs),
    /// How soon a backup is asked when the answering agent freezes (SIGSTOP).
    Freeze(FaultArgs),
    /// 24 requests to three peers of which one freezes or is killed, against none.
    Frozen(frozen::FrozenArgs),
    /// From the start of an agent until another can choose it; from SIGTERM until none does.
    Start(start::StartArgs),
    /// Memory, processor and network of an idle mesh of three.
    Idle(idle::IdleArgs),
    /// The test engine of the other benchmarks.
    #[command(hide = true)]
    Engine(engine::EngineArgs),
}

/// `unamesh bench failover` and `unamesh bench freeze`: `unamesh drill --local` shows more.
#[derive(Clone, Debug, clap::Args)]
pub struct FaultArgs {
    /// How often
    #[arg(long, default_value_t = 20)]
    pub trials: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 40)]
    pub tokens: usize,
    /// Multiplies the bars by this, for a machine that has other things to do: exit status 1 if
    /// one is missed
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = tolerance)]
    pub tolerance: f64,
    /// On real engines: the starter's llama.cpp, installed if need be
    #[arg(long)]
    pub starter: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// For scripts: one object.
    pub json: Value,
    /// For people: lines.
    pub text: String,
    /// What is not as it should be.
    pub trouble: Option<String>,
}

/// Takes a line that says what is being done, for a terminal.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

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
        What::Failover(args) => fault(Case::Kill, &args, starter.as_ref(), &progress),
        What::Freeze(args) => fault(Case::Freeze, &args, starter.as_ref(), &progress),
        What::Frozen(args) => frozen::run(&args, &progress),
        What::Start(args) => start::run(&args, &progress),
        What::Idle(args) => idle::run(&args, &progress),
        What::Engine(_) => Err(BenchError::new("bench", "the engine is no benchmark")),
    });
    match measured.await {
        Ok(report) => report.map(Some),
        Err(e) => Err(BenchError::new("bench", e)),
    }
}

/// One case of the fire drill.
fn fault(
    case: Case,
    args: &FaultArgs,
    starter: Option<&Starter>,
    progress: &Progress,
) -> Result<Report, BenchError> {
    let plan = drill::Plan {
        cases: vec![case],
        trials: args.trials,
        answers: 1,
        tokens: args.tokens,
        tolerance: args.tolerance,
    };
    let report = drill::on_own_mesh(&plan, starter, &|step| {
        match step {
            drill::Step::Say(what) => progress(what),
            drill::Step::Trial { done, of, .. } => progress(&format!("trial {} of {of}", done + 1)),
            drill::Step::Case(_) => {}
        }
        true
    })?;
    let all = report.json();
    let mut json = all["cases"][case.name()].clone();
    json["trials"] = all["trials"].clone();
    let figure = |key: &str, p: &str| json[key][p].as_f64().unwrap_or(f64::NAN);
    let text = format!(
        "gap beyond the backup's own first token: p50 {} ms, p95 {} ms, max {} ms\n\
         from the fault to the backup's dispatch: p50 {} ms, p95 {} ms, max {} ms\n\
         {} trials; tokens lost {}, doubled {}, answers failed {}; noticed by: {}\n",
        figure("gap_beyond_ttft_ms", "p50"),
        figure("gap_beyond_ttft_ms", "p95"),
        figure("gap_beyond_ttft_ms", "max"),
        figure("dispatch_ms", "p50"),
        figure("dispatch_ms", "p95"),
        figure("dispatch_ms", "max"),
        json["trials"],
        json["tokens_lost"],
        json["tokens_doubled"],
        json["failed"],
        json["reasons"],
    );
    let trouble = report.trouble();
    Ok(Report {
        json,
        text,
        trouble,
    })
}
