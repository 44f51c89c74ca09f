//! One trial: some answers run, and at a given token of the first the agent that gives it
//! fails.

use super::answer::{Answer, Fault};
use super::case::Case;
use crate::local_mesh::LocalError;
use crate::local_mesh::agent::Door;
use serde_json::Value;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Where faults can be played: a mesh on this machine, or the real one.
pub trait Stage {
    /// The agent that is asked.
    fn door(&self) -> Result<Door, LocalError>;

    /// What it is asked.
    fn request(&self) -> &Value;

    /// The uninterrupted answer, if it is known.
    fn expected(&self) -> Option<&str>;

    /// Has `node` fail; false if that is not allowed.
    ///
    /// # Errors
    /// It could not be done: the drill ends.
    fn strike(&mut self, case: Case, node: &str) -> Result<bool, LocalError>;

    /// Waits until all is as it was before the last fault.
    ///
    /// # Errors
    /// It does not become so: the drill ends.
    fn mend(&mut self, case: Case) -> Result<(), LocalError>;
}

/// What one trial showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trial {
    /// Somebody failed; not so where the first answer was over before, or came from a node
    /// that was not to be touched.
    pub struck: bool,
    /// All answers.
    pub answers: Vec<Answer>,
}

/// Runs `answers` answers and strikes at token `at` of the first.
///
/// # Errors
/// As [`Stage`]'s functions. An answer that fails is no error but a result.
pub fn run(
    stage: &mut dyn Stage,
    case: Case,
    at: usize,
    answers: usize,
) -> Result<Trial, LocalError> {
    let (door, request) = (stage.door()?, stage.request().clone());
    let fault = Fault::default();
    let (reached, due) = mpsc::channel::<String>();
    let (struck, mut answers) = thread::scope(|scope| {
        let (door, request, fault) = (&door, &request, &fault);
        let first = scope.spawn(move || {
            let mut reached = Some(reached);
            Answer::read(door, request, fault, |tokens, node| {
                if tokens >= at
                    && let Some(reached) = reached.take()
                {
                    // Nobody waits any more only if this is over.
                    let _ = reached.send(node.to_owned());
                }
            })
        });
        let others = (1..answers)
            .map(|_| scope.spawn(move || Answer::read(door, request, fault, |_, _| {})));
        let others: Vec<_> = others.collect();
        // An error: the answer was over before.
        let struck = due.recv().map_or(Ok(false), |node| {
            // Before, not after: it may be healed before the call returns.
            let _ = fault.struck.set((Instant::now(), node.clone()));
            stage.strike(case, &node)
        });
        let all = [first].into_iter().chain(others);
        let all: Vec<Answer> = all
            .map(|answer| answer.join().unwrap_or_else(|_| broken()))
            .collect();
        (struck, all)
    });
    let struck = struck?;
    if struck {
        stage.mend(case)?;
    } else {
        answers.iter_mut().for_each(Answer::untouched);
    }
    if let Some(expected) = stage.expected() {
        for answer in &mut answers {
            answer.compare(expected);
        }
    }
    Ok(Trial { struck, answers })
}

/// A reader that panicked.
fn broken() -> Answer {
    Answer {
        failed: Some("its reader broke".to_owned()),
        ..Answer::default()
    }
}
