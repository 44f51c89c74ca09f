//! What people see of a demo. With `--json` nothing but the report.

use super::ask::{Answer, Change};
use super::mesh::Mesh;
use super::verdict::Report;
use super::{DemoError, Told};
use crate::cli::error::CliError;
use crate::cli::output::{BAD, BOLD, DIM, GOOD, PLAIN, Table, WARN, cell};
use crate::cli::output::{Out, printable};
use crate::cli::text::{ms, short};
use crate::engine::detect::Found;
use crate::starter::{Bars, Lines, Progress, Quiet};
use anstyle::Style;
use serde_json::Value;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;
use unamesh_proto::table::Liveness;

/// Writes the story.
pub struct Show {
    out: Out,
    silent: bool,
}

impl Show {
    /// To `out`.
    pub fn new(out: Out) -> Self {
        Show {
            silent: out.json,
            out,
        }
    }

    /// One that writes nothing.
    pub fn silent(&self) -> Show {
        Show {
            out: self.out,
            silent: true,
        }
    }

    /// For the installation: bars on a terminal.
    pub fn progress(&self) -> Box<dyn Progress> {
        if self.out.json {
            Box::new(Quiet)
        } else if std::io::stderr().is_terminal() {
            Box::new(Bars::default())
        } else {
            Box::new(Lines::default())
        }
    }

    /// Something takes a moment.
    pub fn step(&self, what: &str) -> Result<(), DemoError> {
        self.print(&format!("{DIM}{what} ...{DIM:#}\n"))
    }

    /// Another engine than the starter engines is used.
    pub fn using(&self, found: &Found, model: &str) -> Result<(), DemoError> {
        self.print(&format!(
            "{DIM}using {} at {} with {model} (it is yours and stays up; --starter takes the \
             starter engines){DIM:#}\n",
            found.kind, found.url,
        ))
    }

    /// The table of peers.
    pub fn peers(&self, mesh: &Mesh) -> Result<(), DemoError> {
        let mut table =
            Table::new(&["NAME", "NODE", "STATE", "PATH", "RTT", "ENGINE", "MODEL"]).numbers(&[4]);
        for peer in &mesh.client.peers().peers {
            let advert = &peer.advert;
            let path = peer.paths.first();
            let engine = advert.engines.first();
            let model = advert.models.first();
            let alive = peer.liveness == Liveness::Alive;
            table.row(vec![
                cell(advert.name.clone(), BOLD),
                cell(short(&advert.node.to_string()), DIM),
                cell(
                    if alive { "up" } else { "silent" },
                    if alive { GOOD } else { WARN },
                ),
                cell(path.map_or_else(String::new, |p| p.addr.to_string()), PLAIN),
                cell(
                    path.and_then(|p| p.rtt).map_or_else(String::new, in_ms),
                    PLAIN,
                ),
                cell(engine.map_or_else(String::new, |e| e.name.clone()), PLAIN),
                cell(model.map_or_else(String::new, |m| m.name.clone()), PLAIN),
            ]);
        }
        let found = in_ms(mesh.facts().discovery);
        self.print(&format!(
            "\n{}{DIM}found each other in {found}{DIM:#}\n",
            table.render(&self.out)
        ))
    }

    /// The next question, number `done` of `kills`.
    pub fn question(&self, question: &str, done: u32, kills: u32) -> Result<(), DemoError> {
        let number = if kills > 1 {
            format!("{DIM}[{} of {kills}] {DIM:#}", done + 1)
        } else {
            String::new()
        };
        self.print(&format!("\n{number}{BOLD}> {question}{BOLD:#}\n"))
    }

    /// Who answers.
    pub fn started(&self, name: &str, why: &str) -> Result<(), DemoError> {
        self.print(&format!("{DIM}{name} answers: {why}{DIM:#}\n"))
    }

    /// A piece of the answer.
    pub fn piece(&self, text: &str, after_seam: bool) -> Result<(), DemoError> {
        let style = if after_seam { GOOD } else { PLAIN };
        self.print(&styled(text, style))
    }

    /// Another agent goes on, since the one before was killed (or fell silent by itself).
    pub fn seam(&self, change: &Change, by_kill: bool) -> Result<(), DemoError> {
        let (from, to, gap) = (&change.from, &change.to, in_ms(change.gap));
        let what = if by_kill { "killed" } else { "fell silent" };
        self.print(&format!(
            "{BAD}[{from} {what}]{BAD:#}{DIM}[{gap}]{DIM:#}{GOOD}[{to} goes on]{GOOD:#}"
        ))
    }

    /// The answer is complete.
    pub fn answered(&self) -> Result<(), DemoError> {
        self.print("\n")
    }

    /// What the kill cost.
    pub fn killed(&self, answer: &Answer) -> Result<(), DemoError> {
        let Some(change) = &answer.change else {
            return Ok(());
        };
        self.print(&format!(
            "{DIM}{}; gap {}, of which {} is {}'s own time to its first token; seam {}{DIM:#}\n",
            answer.credit(),
            in_ms(change.gap),
            in_ms(change.backup_ttft),
            change.to,
            change.seam.name(),
        ))
    }

    /// The uninterrupted runs are made now.
    pub fn comparing(&self) -> Result<(), DemoError> {
        self.print(&format!(
            "\n{DIM}asking again without a kill, to compare ...{DIM:#}\n"
        ))
    }

    /// The result; `mesh` is what stays, or null.
    pub fn told(&self, told: &Told, mesh: Value) -> Result<(), DemoError> {
        if self.out.json {
            let mut report = match told {
                Told::Text(report) => report.json(),
                Told::Aloud(report) => report.json(),
            };
            report["mesh"] = mesh;
            return self.out.value(&report).map_err(DemoError::Output);
        }
        match told {
            Told::Text(report) => self.report(report),
            Told::Aloud(report) => self.print(&report.text(&self.out)),
        }
    }

    fn report(&self, report: &Report) -> Result<(), DemoError> {
        let (runs, identical) = (report.runs.len(), report.identical());
        let lost: u32 = report.runs.iter().map(|run| run.lost).sum();
        let doubled: u32 = report.runs.iter().map(|run| run.doubled).sum();
        let style = if report.is_good() { GOOD } else { BAD };
        let same = match (runs, identical) {
            (1, 1) => "the text equals the uninterrupted run".to_owned(),
            (1, _) => "the text differs from the uninterrupted run".to_owned(),
            _ => format!("{identical} of {runs} texts equal the uninterrupted run"),
        };
        self.print(&format!(
            "{style}{lost} tokens lost, {doubled} doubled; {same}{style:#}\n"
        ))?;
        if runs > 1 {
            let gap = report.gaps(|c| c.gap);
            let beyond = report.gaps(|c| c.gap.saturating_sub(c.backup_ttft));
            self.print(&format!(
                "gap: median {}, p95 {}; beyond the backup's own time to its first token: median {}, \
                 p95 {}\n",
                ms(gap.0), ms(gap.1), ms(beyond.0), ms(beyond.1),
            ))?;
        }
        self.print(&format!(
            "{DIM}{} on {}{DIM:#}\n",
            report.facts.model, report.facts.engine
        ))
    }

    /// A line beside the story.
    pub fn aside(&self, text: &str) -> Result<(), DemoError> {
        self.print(&format!("{DIM}{}{DIM:#}\n", printable(text)))
    }

    /// The agent that speaks was killed.
    pub fn silenced(&self, name: &str) -> Result<(), DemoError> {
        self.print(&format!("{BAD}[{name} killed]{BAD:#}"))
    }

    /// Another one goes on.
    pub fn goes_on(&self, name: &str) -> Result<(), DemoError> {
        self.print(&format!("{GOOD}[{name} goes on]{GOOD:#}"))
    }

    /// The mesh stays: how to use it and how to end it.
    pub fn kept(&self, mesh: &Mesh, home: &Path) -> Result<(), DemoError> {
        let mut text = "\nThe mesh stays up:\n".to_owned();
        let mut pids = String::new();
        for (state, gateway, pid) in mesh.running() {
            text.push_str(&format!(
                "  {BOLD}unamesh --state {} chat{BOLD:#}  {DIM}http://{gateway}/v1{DIM:#}\n",
                state.display()
            ));
            pids.push_str(&format!(" {pid}"));
        }
        text.push_str(&format!(
            "To end it:\n  {BOLD}kill{pids}; rm -r {}{BOLD:#}\n",
            home.display()
        ));
        self.print(&text)
    }

    fn print(&self, text: &str) -> Result<(), DemoError> {
        if self.silent {
            return Ok(());
        }
        self.out
            .print(text)
            .map_err(|error: CliError| DemoError::Output(error))
    }
}

fn styled(text: &str, style: Style) -> String {
    let text = printable(text);
    format!("{style}{text}{style:#}")
}

fn in_ms(duration: Duration) -> String {
    ms(duration.as_secs_f64() * 1000.0)
}
