//! `unamesh demo`: three agents on this machine, one question, and an answer that survives the
//! death of the agent that gives it.
//!
//! Everything is real: each agent is a process of this program with a key, a port and an engine
//! of its own; they are made members by `init`, `invite` and `join`, find each other by mDNS and
//! gossip, and are asked by a member with the role `client` that runs in this process. The agent
//! that answers is killed with SIGKILL, and its engine with it, in the middle of the answer.
//!
//! - [`engines`]: what computes: an engine that answers here already, or the starter engines.
//! - [`home`]: the directory of the demo, the machines' state and configuration in it.
//! - [`machine`]: an agent as a process; [`mesh`]: all of them: start, wait until they know each
//!   other, kill, restart.
//! - [`ask`]: one question, with a kill at a given token, and what came of it.
//! - [`voice`]: the same of a spoken turn: a question and its answer as sound.
//! - [`verdict`]: counts tokens, compares with an uninterrupted run, makes the report.
//! - [`show`]: what people see.

mod ask;
mod engines;
mod home;
mod machine;
mod mesh;
mod show;
mod verdict;
mod voice;

use crate::cli::error::CliError;
use crate::cli::output::Out;
use crate::starter::StarterError;
use ask::{Asker, Kill};
use clap::{Args, ValueHint};
use engines::Engines;
use home::Home;
use mesh::Mesh;
use serde_json::Value;
use show::Show;
use std::path::PathBuf;
use std::time::Duration;
use unamesh_client::client::ClientError;
use verdict::{Report, Run};

/// The question, unless another is asked: the small model has enough to say about it.
const QUESTION: &str = "Tell me about the sea and foxes.";

/// `unamesh demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Leave the mesh up at the end, to play with
    #[arg(long)]
    pub keep: bool,
    /// How many times to kill the agent that answers, each time at another token
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub kills: u32,
    /// What to ask; may be repeated, the kills take turns
    #[arg(long = "question", value_name = "TEXT", default_values_t = [QUESTION.to_owned()])]
    pub questions: Vec<String>,
    /// Length of an answer in tokens, at most
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = clap::value_parser!(u32).range(16..=1024))]
    pub max_tokens: u32,
    /// Ask and answer aloud: Piper speaks, Whisper hears (340 MB more to install), and the agent
    /// that speaks is killed
    #[arg(long, conflicts_with = "kills")]
    pub voice: bool,
    /// With --voice: the file of the answer [default: demo.wav]
    #[arg(long, short, value_name = "FILE", requires = "voice", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Use the starter engines, also where another engine answers
    #[arg(long)]
    pub starter: bool,
    /// Micro-batch of the starter engines; 0 = llama.cpp's default, with which the texts may differ
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub ubatch: u32,
}

/// Why the demo did not come to its end. What it started is stopped again.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The starter engines are not there.
    #[error(transparent)]
    Starter(#[from] StarterError),
    /// A file could not be written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A command of this program failed.
    #[error("`unamesh {command}` failed: {output}")]
    Command {
        /// Its name.
        command: String,
        /// What it said.
        output: String,
    },
    /// An agent ended or never began to answer.
    #[error("the agent {name} does not run: {reason}")]
    Agent {
        /// Its name.
        name: String,
        /// The end of its log.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("waited {} s in vain: {what}", after.as_secs())]
    Late {
        /// For what.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The question was not answered.
    #[error("the question was not answered: {0}")]
    Client(#[from] ClientError),
    /// Every answer was over before the kill.
    #[error("the answers are too short to be interrupted; ask for more: --question TEXT")]
    TooShort,
    /// No sound came of the question or of its answer, or nothing was understood.
    #[error("the spoken turn failed: {0}")]
    Voice(String),
    /// The output could not be written.
    #[error("{}", .0.message)]
    Output(CliError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// Runs the demo and writes to `out`.
///
/// # Errors
/// See [`DemoError`].
pub async fn run(args: &DemoArgs, out: Out) -> Result<(), DemoError> {
    let show = Show::new(out);
    let mut home = Home::create()?;
    let mut mesh = None;
    let story = async {
        let engines = Engines::choose(args, &show).await?;
        let mesh = mesh.insert(Mesh::start(&home, engines, &show).await?);
        let report = if args.voice {
            Told::Aloud(Box::new(voice::tell(args, mesh, &show).await?))
        } else {
            Told::Text(tell(args, mesh, &show).await?)
        };
        if args.keep {
            mesh.restore().await?;
        }
        Ok(report)
    };
    let told = tokio::select! {
        told = story => told,
        () = told_to_stop() => Err(DemoError::Interrupted),
    };
    match (told, mesh) {
        (Ok(report), Some(mesh)) if args.keep => {
            home.keep();
            show.told(&report, mesh.kept())?;
            show.kept(&mesh, home.path())?;
            mesh.leave();
            Ok(())
        }
        (told, mesh) => {
            if let Some(mesh) = mesh {
                mesh.stop().await;
            }
            show.told(&told?, Value::Null)
        }
    }
}

/// How a demo came out.
enum Told {
    Text(Report),
    Aloud(Box<voice::Report>),
}

/// Resolves on Ctrl-C, and where there are signals on SIGTERM and SIGHUP too.
async fn told_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (term, hup) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        );
        if let (Ok(mut term), Ok(mut hup)) = (term, hup) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// The kills, and then the same questions without one.
async fn tell(args: &DemoArgs, mesh: &mut Mesh, show: &Show) -> Result<Report, DemoError> {
    show.peers(mesh)?;
    let mut runs = Vec::new();
    let mut plan = Plan::new(args);
    while let Some((question, at)) = plan.next() {
        if !runs.is_empty() {
            mesh.restore().await?;
        }
        show.question(question, plan.done(), args.kills)?;
        let asker = Asker::new(mesh, question, args.max_tokens);
        let answer = asker.ask(Some(Kill { after_tokens: at }), show).await?;
        if plan.learn(&answer)? {
            show.killed(&answer)?;
            runs.push(Run::new(question.to_owned(), at, answer));
        }
    }
    show.comparing()?;
    for question in &args.questions {
        let whole = Asker::new(mesh, question, args.max_tokens)
            .ask(None, &show.silent())
            .await?;
        for run in runs.iter_mut().filter(|run| run.question == *question) {
            run.compare(&whole);
        }
    }
    Ok(Report::new(mesh.facts(), runs))
}

/// Which question is asked next, and after how many tokens its answer is broken off.
struct Plan<'a> {
    questions: &'a [String],
    wanted: u32,
    done: u32,
    /// Tokens of the shortest answer so far.
    shortest: u32,
    /// Answers in a row that were over before the kill.
    missed: u32,
    at: u32,
}

impl<'a> Plan<'a> {
    /// The first kill, when nothing is known of the answers' length.
    const FIRST: u32 = 14;
    /// Tokens at the end that are left alone: the kill itself takes a moment.
    const TAIL: u32 = 4;
    const MAX_MISSED: u32 = 5;

    fn new(args: &'a DemoArgs) -> Self {
        Plan {
            questions: &args.questions,
            wanted: args.kills,
            done: 0,
            shortest: args.max_tokens,
            missed: 0,
            at: 0,
        }
    }

    fn done(&self) -> u32 {
        self.done
    }

    fn next(&mut self) -> Option<(&'a str, u32)> {
        if self.done >= self.wanted {
            return None;
        }
        let turn = usize::try_from(self.done)
            .ok()?
            .checked_rem(self.questions.len())?;
        // The first one where an answer is well under way; the others spread over its length.
        let last = self.shortest.saturating_sub(Self::TAIL).max(1);
        self.at = match self.done {
            0 => Self::FIRST.min(last).saturating_sub(self.missed * 2).max(1),
            done => 1 + (last - 1) * done / self.wanted.max(2),
        };
        self.questions
            .get(turn)
            .map(|question| (question.as_str(), self.at))
    }

    /// Takes in how long an answer was. False: it was over before the kill, and does not count.
    fn learn(&mut self, answer: &ask::Answer) -> Result<bool, DemoError> {
        self.shortest = self.shortest.min(answer.tokens()).max(1);
        if answer.change.is_some() {
            (self.done, self.missed) = (self.done + 1, 0);
            return Ok(true);
        }
        self.missed += 1;
        if self.missed > Self::MAX_MISSED {
            Err(DemoError::TooShort)
        } else {
            Ok(false)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ask::{Answer, Change, Piece};
    use clap::Parser;
    use unamesh_proto::session::Seam;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn args(line: &[&str]) -> DemoArgs {
        Typed::parse_from([&["demo"], line].concat()).demo
    }

    fn answer(tokens: u32, interrupted: bool) -> Answer {
        let piece = |index| Piece {
            index,
            text: "x".into(),
            tokens: 1,
            after_seam: false,
        };
        let change = Change {
            from: "a".into(),
            to: "b".into(),
            seam: Seam::Exact,
            gap: Duration::ZERO,
            backup_ttft: Duration::ZERO,
            reason: String::new(),
        };
        Answer {
            pieces: (0..tokens).map(piece).collect(),
            shares: Vec::new(),
            change: interrupted.then_some(change),
            other_changes: 0,
        }
    }

    #[test]
    fn twenty_kills_at_different_tokens_in_turn_over_the_questions() {
        let args = args(&["--kills", "20", "--question", "a", "--question", "b"]);
        let mut plan = Plan::new(&args);
        let mut asked = Vec::new();
        while let Some((question, at)) = plan.next() {
            asked.push((question.to_owned(), at));
            assert!(plan.learn(&answer(90, true)).unwrap());
        }
        assert_eq!(asked.len(), 20);
        assert_eq!(
            asked[..3].iter().map(|a| a.0.as_str()).collect::<String>(),
            "aba"
        );
        let mut points: Vec<u32> = asked.iter().skip(1).map(|a| a.1).collect();
        assert!(points.iter().all(|at| (1..=86).contains(at)), "{points:?}");
        points.dedup();
        assert_eq!(points.len(), 19);
    }

    #[test]
    fn short_answers_are_broken_off_earlier_and_then_given_up() {
        let args = args(&[]);
        let mut plan = Plan::new(&args);
        assert_eq!(plan.next().unwrap().1, Plan::FIRST);
        assert!(!plan.learn(&answer(9, false)).unwrap());
        assert!(plan.next().unwrap().1 <= 5);
        for _ in 0..4 {
            assert!(!plan.learn(&answer(9, false)).unwrap());
        }
        assert!(plan.learn(&answer(9, false)).is_err());
    }
}
