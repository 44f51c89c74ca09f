//! `unamesh doctor`: what is wrong, and how to repair it.
//!
//! [`machine`] looks at what can be seen without an agent (state, identity, configuration,
//! ports, GPU drivers, engines), [`multicast`] sends and hears a real announcement, [`mesh`]
//! asks the running agent about its peers, engines and clocks. Every finding that is not
//! fine carries the commands that repair it.

mod machine;
mod mesh;
mod multicast;

use super::context::Context;
use super::error::CliError;
use super::local::{CLIENT_ONLY, Local};
use super::output::{BAD, BOLD, DIM, GOOD, WARN, printable};
use serde_json::{Value, json};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Fine,
    /// Works, but not as well as it could.
    Warn,
    /// Does not work.
    Fail,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Level::Fine => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// For scripts, snake_case.
    check: &'static str,
    level: Level,
    message: String,
    /// Commands, or steps, that repair it.
    fix: Vec<String>,
}

impl Finding {
    fn fine(check: &'static str, message: impl Into<String>) -> Self {
        Finding {
            check,
            level: Level::Fine,
            message: message.into(),
            fix: Vec::new(),
        }
    }

    fn warn(check: &'static str, message: impl Into<String>) -> Self {
        Finding {
            level: Level::Warn,
            ..Finding::fine(check, message)
        }
    }

    fn fail(check: &'static str, message: impl Into<String>) -> Self {
        Finding {
            level: Level::Fail,
            ..Finding::fine(check, message)
        }
    }

    fn fix(mut self, step: impl Into<String>) -> Self {
        self.fix.push(step.into());
        self
    }

    fn json(&self) -> Value {
        json!({
            "check": self.check,
            "level": self.level.name(),
            "message": self.message,
            "fix": self.fix,
        })
    }
}

pub(super) async fn run(context: &Context) -> Result<(), CliError> {
    let agent = Local::find(context);
    let reachable = match &agent {
        Ok(local) => local.get("status").await.map(|status| (local, status)),
        Err(error) => Err(error.clone()),
    };
    let mut findings = machine::state(context)?;
    let config = machine::configuration(context, &mut findings)?;
    machine::environment(&mut findings);
    machine::gpu(&mut findings);
    let mdns = config.mesh.mdns;
    match reachable {
        Ok((local, status)) => {
            findings.push(Finding::fine(
                "agent",
                format!("the agent runs (process {})", local.info.pid),
            ));
            let heard = multicast::check(mdns, &mut findings).await;
            mesh::check(context, local, &status, heard, &mut findings).await?;
        }
        Err(error) if error.code == CLIENT_ONLY => {
            findings.push(Finding::fine("agent", error.message));
            multicast::check(mdns, &mut findings).await;
            findings.push(mesh::as_client(context).await);
        }
        Err(error) => {
            // That there is no mesh either is said already.
            if error.code != "not_paired" {
                findings.push(no_agent(error));
            }
            multicast::check(mdns, &mut findings).await;
            machine::ports(context, &config, &mut findings).await;
            machine::engines(&config, &mut findings).await;
        }
    }
    report(context, &findings)
}

fn no_agent(error: CliError) -> Finding {
    error
        .next
        .into_iter()
        .fold(Finding::fail("agent", error.message), Finding::fix)
}

fn report(context: &Context, findings: &[Finding]) -> Result<(), CliError> {
    let worst = findings
        .iter()
        .map(|f| f.level)
        .max()
        .unwrap_or(Level::Fine);
    if context.out.json {
        let list: Vec<Value> = findings.iter().map(Finding::json).collect();
        context
            .out
            .value(&json!({"ok": worst < Level::Fail, "findings": list}))?;
    } else {
        context.out.print(&render(findings))?;
    }
    match worst {
        // Everything was said; the exit status is for scripts.
        Level::Fail => Err(CliError {
            silent: true,
            ..CliError::new("unwell", "")
        }),
        _ => Ok(()),
    }
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let (mark, style) = match finding.level {
            Level::Fine => ("ok  ", GOOD),
            Level::Warn => ("warn", WARN),
            Level::Fail => ("FAIL", BAD),
        };
        let message = printable(&finding.message);
        text.push_str(&format!("{style}{mark}{style:#}  {message}\n"));
        for (at, step) in finding.fix.iter().enumerate() {
            let lead = if at == 0 { "fix:" } else { " or:" };
            let step = printable(step);
            text.push_str(&format!("      {DIM}{lead}{DIM:#} {BOLD}{step}{BOLD:#}\n"));
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (failed, warned) = (count(Level::Fail), count(Level::Warn));
    text.push_str(&match (failed, warned) {
        (0, 0) => format!("\n{GOOD}All is well.{GOOD:#}\n"),
        (0, _) => format!("\n{WARN}It works; {warned} could be better.{WARN:#}\n"),
        (_, 0) => format!("\n{BAD}{failed} to repair.{BAD:#}\n"),
        _ => format!("\n{BAD}{failed} to repair{BAD:#}, {warned} could be better.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_carry_their_fix() {
        let findings = [
            Finding::fine("a", "fine"),
            Finding::warn("b", "so so").fix("do this").fix("or that"),
            Finding::fail("c", "broken").fix("repair"),
        ];
        let text = anstream::adapter::strip_str(&render(&findings)).to_string();
        assert_eq!(
            text,
            "ok    fine\nwarn  so so\n      fix: do this\n       or: or that\nFAIL  broken\n      \
             fix: repair\n\n1 to repair, 1 could be better.\n"
        );
        let json = findings[1].json();
        assert_eq!(
            (json["level"].as_str(), json["fix"][1].as_str()),
            (Some("warn"), Some("or that"))
        );
    }
}
