//! One trial: some answers run, and at a given token of the first the agent that gives it
//! fails.

use super::answer::{Answer, Fault, Question};
use super::case::Case;
use crate::local_mesh::LocalError;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Where faults can be played: a mesh on this machine, or the real one.
pub trait Stage {
    /// What is asked in the next trial, and who is to answer.
    ///
    /// # Errors
    /// There is no agent to ask.
    fn question(&mut self) -> Result<Question, LocalError>;

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
    /// The name of who began the first answer although it was not to be touched.
    pub instead: Option<String>,
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
    let question = stage.question()?;
    let fault = Fault::default();
    let (reached, due) = mpsc::channel::<String>();
    let (struck, mut answers) = thread::scope(|scope| {
        let (question, fault) = (&question, &fault);
        let first = scope.spawn(move || {
            let mut reached = Some(reached);
            Answer::read(question, fault, |tokens, node| {
                if tokens >= at
                    && let Some(reached) = reached.take()
                {
                    // Nobody waits any more only if this is over.
                    let _ = reached.send(node.to_owned());
                }
            })
        });
        let others =
            (1..answers).map(|_| scope.spawn(move || Answer::read(question, fault, |_, _| {})));
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
    let instead = instead(struck, &fault, &answers);
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
    Ok(Trial {
        struck,
        instead,
        answers,
    })
}

/// Who answered at the moment of a fault that was not played.
fn instead(struck: bool, fault: &Fault, answers: &[Answer]) -> Option<String> {
    // Without a moment of the fault the answer was over before.
    let spared = !struck && fault.struck.get().is_some();
    let first = answers.first().filter(|_| spared)?;
    Some(first.began.clone())
}

/// A reader that panicked.
fn broken() -> Answer {
    Answer {
        failed: Some("its reader broke".to_owned()),
        ..Answer::default()
    }
}
