//! The frozen-peer test: 24 requests to three peers, of which one fails. What counts is the
//! time until all are answered, against the same requests while nothing is wrong.
//!
//! The peer that fails is the one that would be chosen first. *At the start*: before the first
//! request; *midway*: in the middle of the answer that is half the way.

use super::answer::{Answer, Fault};
use super::case::Case;
use super::local::LocalStage;
use super::trial::Stage;
use crate::bench::stats::round;
use crate::bench::{Progress, Report};
use crate::cli::args::tolerance;
use crate::local_mesh::LocalError;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The most that a failure may stretch the whole.
const BAR: f64 = 1.15;
/// Half of the requests are answered within this.
const PATIENCE: Duration = Duration::from_secs(300);

/// `unamesh bench frozen`.
#[derive(Clone, Debug, clap::Args)]
pub struct FrozenArgs {
    /// Requests
    #[arg(long, default_value_t = 24)]
    pub requests: usize,
    /// Requests at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub parallel: u8,
    /// Tokens of an answer
    #[arg(long, default_value_t = 40)]
    pub tokens: usize,
    /// Multiplies the bar (1.15 times healthy) by this, for a machine that has other things to
    /// do: exit status 1 if it is missed
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = tolerance)]
    pub tolerance: f64,
}

/// What happens, and when.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    fault: Option<(Case, When)>,
}

#[derive(Clone, Copy, PartialEq)]
enum When {
    Start,
    Midway,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "healthy",
        fault: None,
    },
    Scenario {
        name: "frozen_at_start",
        fault: Some((Case::Freeze, When::Start)),
    },
    Scenario {
        name: "frozen_midway",
        fault: Some((Case::Freeze, When::Midway)),
    },
    Scenario {
        name: "killed_midway",
        fault: Some((Case::Kill, When::Midway)),
    },
];

/// Runs it.
///
/// # Errors
/// Something does not start, or does not come back.
pub fn run(args: &FrozenArgs, progress: &Progress) -> Result<Report, LocalError> {
    progress("starting three engines and four agents");
    let mut stage = LocalStage::start(3, args.tokens, None)?;
    let mut results = Map::new();
    let mut text = String::new();
    let (mut healthy, bar) = (f64::NAN, BAR * args.tolerance);
    let mut trouble = Vec::new();
    for scenario in SCENARIOS {
        progress(&format!("{} requests: {}", args.requests, scenario.name));
        let done = total(&mut stage, args, scenario);
        let (took, wrong) = done.map_err(|e| stage.explain(e))?;
        let took = took.as_secs_f64();
        if scenario.fault.is_none() {
            healthy = took;
        }
        let ratio = took / healthy;
        let fields = json!({"total_s": round(took), "ratio": round(ratio), "wrong": wrong});
        results.insert(scenario.name.to_owned(), fields);
        // Formatting into a String cannot fail.
        let _ = writeln!(
            text,
            "{:16} {took:6.2} s, {ratio:.3} of healthy, {wrong} wrong{}",
            scenario.name.replace('_', " "),
            if ratio > bar { "  (over the bar)" } else { "" },
        );
        if ratio > bar {
            let name = scenario.name;
            trouble.push(format!(
                "{name} takes {ratio:.2} times as long, the bar is {bar:.2}"
            ));
        }
        if wrong > 0 {
            trouble.push(format!("{}: {wrong} answers are wrong", scenario.name));
        }
    }
    let (requests, parallel) = (args.requests, args.parallel);
    let json = json!({"requests": requests, "parallel": parallel, "bar": bar, "runs": Value::Object(results)});
    Ok(Report {
        json,
        text,
        trouble: (!trouble.is_empty()).then(|| trouble.join(", ")),
    })
}

/// How long all requests take together, and how many answers were not as they should be.
fn total(
    stage: &mut LocalStage,
    args: &FrozenArgs,
    scenario: Scenario,
) -> Result<(Duration, usize), LocalError> {
    let first = stage.ranked()?.into_iter().next();
    let first = first.ok_or_else(|| LocalError::new("frozen", "no peer"))?;
    let midway = scenario.fault.is_some_and(|(_, when)| when == When::Midway);
    let question = stage.question()?;
    let expected = stage.expected().unwrap_or_default().to_owned();
    let (next, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (reached, due) = mpsc::channel::<String>();
    let reached = Mutex::new(Some(reached).filter(|_| midway));
    let fault = Fault::default();
    let began = Instant::now();
    if let Some((case, When::Start)) = scenario.fault {
        stage.strike(case, &first)?;
    }
    let struck = thread::scope(|scope| {
        for _ in 0..args.parallel {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= args.requests {
                        return;
                    }
                    let mut answer = Answer::read(&question, &fault, |tokens, node| {
                        if at >= args.requests / 2
                            && tokens >= args.tokens / 2
                            && let Ok(mut reached) = reached.lock()
                            && let Some(reached) = reached.take()
                        {
                            let _ = reached.send(node.to_owned());
                        }
                    });
                    answer.compare(&expected);
                    let bad = answer.failed.is_some() || answer.identical != Some(true);
                    wrong.fetch_add(usize::from(bad), Ordering::Relaxed);
                }
            });
        }
        match (scenario.fault, due.recv_timeout(PATIENCE)) {
            (Some((case, When::Midway)), Ok(node)) => stage.strike(case, &node).map(drop),
            _ => Ok(()),
        }
    });
    let took = began.elapsed();
    struck?;
    if let Some((case, _)) = scenario.fault {
        stage.mend(case)?;
    }
    Ok((took, wrong.into_inner()))
}
