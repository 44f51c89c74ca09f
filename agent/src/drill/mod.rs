//! `unamesh drill`: a fire drill. Answers run, the agent that gives them fails, and what an
//! application sees of it is measured: the gap, what was lost, how well the parts fit.
//!
//! ```text
//!   answers ──► asked agent ──► agent that answers   ✗ at token n (another n each trial)
//!      ▲             │                                 kill, freeze, cut, hang, drain
//!      └─ arrival of tokens: gap, lost, doubled ◄─ another agent goes on
//! ```
//! - [`case`]: what can happen, and its bar.
//! - [`answer`]: one answer as it arrives; [`trial`]: some of them, and the fault.
//! - [`local`]: the mesh that the drill starts itself; [`real`]: the mesh that is there.
//! - [`report`]: figures and verdict; [`frozen`]: 24 requests to three peers, one of them
//!   frozen.
//!
//! The *gap* is from the last token before to the first after. What the backup takes to its
//! first token is the engine's affair (it reads the prompt anew); what is *beyond* it is the
//! mesh's: noticing, choosing, dispatching. All is measured outside of the agents by a client
//! that blocks on its socket.

pub mod answer;
pub mod case;
pub mod frozen;
pub mod local;
pub mod real;
pub mod report;
pub mod trial;

pub use case::Case;
pub use report::DrillReport;

use crate::local_mesh::LocalError;
use crate::starter::Starter;
use local::LocalStage;
use report::CaseReport;
use trial::Stage;

/// The earliest token at which a fault comes; as many are left after the latest.
const MARGIN: usize = 5;
/// Serving agents of a mesh of the drill's own.
const PEERS: usize = 2;

/// What is drilled.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In this order.
    pub cases: Vec<Case>,
    /// Of each case.
    pub trials: usize,
    /// At the same time.
    pub answers: usize,
    /// Of an answer.
    pub tokens: usize,
    /// By this the bars are multiplied: more than 1 on a machine that has other things to do.
    pub tolerance: f64,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<'a> {
    /// Something takes a moment.
    Say(&'a str),
    /// A trial is over, or, with 0, the first begins.
    Trial {
        /// Of which case.
        case: Case,
        /// So many are done.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// All trials of a case are done.
    Case(&'a CaseReport),
}

/// Takes steps; false: the drill is to end.
pub type Steps<'a> = &'a dyn Fn(Step<'_>) -> bool;

/// A drill on a mesh of its own, on `starter`'s engines if there is one. Blocks.
///
/// # Errors
/// Something does not start, or does not come back after a fault. Answers that fail are in
/// the report.
pub fn on_own_mesh(
    plan: &Plan,
    starter: Option<&Starter>,
    steps: Steps<'_>,
) -> Result<DrillReport, LocalError> {
    steps(Step::Say("starting two engines and three agents"));
    let mut stage = LocalStage::start(PEERS, plan.tokens, starter)?;
    let report = on(&mut stage, plan, steps).map_err(|e| stage.explain(e))?;
    Ok(DrillReport {
        engine_ttft_ms: starter.is_none().then_some(f64::from(local::TTFT_US) / 1e3),
        ..report
    })
}

/// A drill on `stage`. Blocks.
///
/// # Errors
/// A fault could not be played, or its end did not come.
pub fn on(stage: &mut dyn Stage, plan: &Plan, steps: Steps<'_>) -> Result<DrillReport, LocalError> {
    let mut report = DrillReport {
        trials: plan.trials,
        cases: Vec::new(),
        engine_ttft_ms: None,
        tolerance: plan.tolerance,
    };
    let (of, span) = (plan.trials, plan.tokens.saturating_sub(2 * MARGIN).max(1));
    for &case in &plan.cases {
        let mut trials = Vec::new();
        for done in 0..of {
            if !steps(Step::Trial { case, done, of }) {
                return Err(LocalError::new("drill", "interrupted"));
            }
            trials.push(trial::run(stage, case, MARGIN + done % span, plan.answers)?);
        }
        let case = CaseReport { case, trials };
        steps(Step::Case(&case));
        report.cases.push(case);
    }
    Ok(report)
}
