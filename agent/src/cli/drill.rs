//! `unamesh drill`: see [`crate::drill`].

use super::args::DrillArgs;
use super::chat::{first_model, read_line};
use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::mesh::Mesh;
use super::output::{BOLD, DIM, GOOD, Out, printable};
use super::text::{Read, short};
use crate::drill::real::RealStage;
use crate::drill::{self, Case, DrillReport, Plan, Step};
use crate::local_mesh::LocalError;
use crate::starter;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unamesh_proto::wire::Role;

/// Trials of each case where nothing says how many.
const TRIALS_LOCAL: u16 = 10;
/// The same on the real mesh, where each takes some seconds.
const TRIALS_REAL: u16 = 3;
/// Width of the bar.
const BAR: usize = 24;

pub(super) async fn run(context: &Context, args: DrillArgs) -> Result<(), CliError> {
    let out = context.out;
    let plan = plan(&args);
    // What to look at if nobody was made to fail.
    let mut look = Vec::new();
    let report = if args.local {
        let starter = if args.starter {
            let installed = starter::install(&starter::Quiet).await;
            Some(installed.map_err(|e| CliError::new("starter", e.to_string()))?)
        } else {
            None
        };
        blocking(out, move |steps| {
            drill::on_own_mesh(&plan, starter.as_ref(), steps)
        })
        .await?
    } else {
        let (mut stage, model) = stage(context, &args).await?;
        look.push(context.command(&format!("why {}", printable(&model))));
        look.push(context.command("peers"));
        blocking(out, move |steps| drill::on(&mut stage, &plan, steps))
            .await
            .map_err(|error| leave_out(context, error))?
    };
    if out.json {
        out.value(&report.json())?;
    } else {
        out.print(&report.table(&out))?;
    }
    match report.trouble() {
        Some(trouble) => {
            let error = CliError::new("drill", trouble);
            let look = look.into_iter().filter(|_| report.idle().is_some());
            Err(look.fold(error, CliError::next))
        }
        None if out.json => Ok(()),
        None => out.line(&format!(
            "{GOOD}Nothing was lost, and every bar is met.{GOOD:#}"
        )),
    }
}

fn plan(args: &DrillArgs) -> Plan {
    let mut cases = args.cases.clone();
    cases.dedup();
    if cases.is_empty() {
        cases = Case::ALL.to_vec();
    }
    let usual = if args.local {
        TRIALS_LOCAL
    } else {
        TRIALS_REAL
    };
    Plan {
        cases,
        trials: usize::from(args.trials.unwrap_or(usual)),
        answers: usize::from(args.answers),
        tokens: usize::from(args.tokens),
        tolerance: args.tolerance,
    }
}

/// Runs `work` on a thread that may block. Ctrl-C ends it after the trial that runs, so that
/// nothing stays frozen.
async fn blocking(
    out: Out,
    work: impl FnOnce(drill::Steps<'_>) -> Result<DrillReport, LocalError> + Send + 'static,
) -> Result<DrillReport, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let mut working = tokio::task::spawn_blocking(move || {
        work(&|step| {
            show(out, &step);
            !asked.load(Ordering::Relaxed)
        })
    });
    let done = tokio::select! {
        done = &mut working => done,
        _ = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            // Whatever it says: it was told to stop.
            drop(working.await);
            return Err(CliError::interrupted());
        }
    };
    let failed = |error: &dyn std::fmt::Display| CliError::new("drill", error.to_string());
    done.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}

/// A bar on a terminal, a line for each case in a pipe.
fn show(out: Out, step: &Step<'_>) {
    if out.json {
        return;
    }
    let live = std::io::stderr().is_terminal() && !out.plain;
    match step {
        Step::Say(what) if live => out.note(&format!("\r\x1b[2K{DIM}{what} ...{DIM:#}")),
        Step::Say(what) => out.note(&format!("{what}\n")),
        Step::Trial { case, done, of } if live => {
            let full = BAR * done / (*of).max(1);
            out.note(&format!(
                "\r\x1b[2K{:7}{GOOD}{}{GOOD:#}{DIM}{}{DIM:#} {done}/{of}",
                case.name(),
                "\u{2588}".repeat(full),
                "\u{2591}".repeat(BAR - full),
            ));
        }
        Step::Trial { .. } => {}
        Step::Case(_) if live => out.note("\r\x1b[2K"),
        Step::Case(case) => out.note(&format!("{}\n", case.summary())),
    }
}

/// A machine refused, or did not come back: the way to go on without it.
fn leave_out(context: &Context, error: CliError) -> CliError {
    if error.silent {
        return error;
    }
    error.next(context.command("drill --peer NAME"))
}

/// Only administrators may have others fail.
fn may_drill(context: &Context, status: &Value) -> Result<(), CliError> {
    let (name, role) = (status.at("name").text(), status.at("role").text());
    if role == Role::Admin.name() {
        return Ok(());
    }
    let message = format!(
        "{} is a member with the role {}, and only an admin may have other machines fail: run it \
         on the machine that ran `init`, or on one that joined by `invite --role admin`",
        printable(name),
        printable(role)
    );
    Err(CliError::new("forbidden", message).next(context.command("drill --local")))
}

/// The real mesh, and the model that is asked: which machines may be touched is asked before
/// anything happens.
async fn stage(context: &Context, args: &DrillArgs) -> Result<(RealStage, String), CliError> {
    let local = Local::find(context)?;
    may_drill(context, &local.get("status").await?)?;
    let (me, door) = (local.info.node.clone(), local.door());
    let mesh = Mesh::Agent(Box::new(local));
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(context, &mesh).await?,
    };
    let why = mesh.why(&model, 0).await?;
    let serving = why.at("ranked").items();
    // A machine with two engines stands there twice.
    let others: BTreeSet<(&str, &str)> = serving
        .iter()
        .map(|c| (c.at("node").text(), c.at("name").text()))
        .filter(|(node, _)| *node != me)
        .collect();
    let others: Vec<(&str, &str)> = others.into_iter().collect();
    if others.is_empty() {
        let message = format!(
            "no other machine serves {}: there is nobody to fail, and nobody to go on",
            printable(&model)
        );
        return Err(CliError::new("no_peers", message)
            .next(context.command("peers"))
            .next(context.command("drill --local")));
    }
    let chosen = choose(&others, &args.peers)?;
    let chosen = if args.yes {
        chosen
    } else {
        confirm(context, chosen).await?
    };
    let allowed = chosen.iter().map(|(node, _)| (*node).to_owned()).collect();
    let stage = RealStage::new(door, &model, usize::from(args.tokens), allowed);
    Ok((stage, model))
}

/// Those of `others` that `wanted` names; all of them, if it names none.
fn choose<'a>(
    others: &[(&'a str, &'a str)],
    wanted: &[String],
) -> Result<Vec<(&'a str, &'a str)>, CliError> {
    let is = |wanted: &str, (node, name): &(&str, &str)| {
        *name == wanted || (wanted.len() >= 4 && node.starts_with(&wanted.to_lowercase()))
    };
    let unknown = wanted
        .iter()
        .find(|wanted| !others.iter().any(|other| is(wanted, other)));
    if let Some(unknown) = unknown {
        let names: Vec<&str> = others.iter().map(|(_, name)| *name).collect();
        let message = format!(
            "no other machine that serves the model is called {unknown:?}; there are: {}",
            printable(&names.join(", "))
        );
        return Err(CliError::new("not_found", message));
    }
    let named =
        |other: &&(&str, &str)| wanted.is_empty() || wanted.iter().any(|wanted| is(wanted, other));
    Ok(others.iter().filter(named).copied().collect())
}

/// Asks before other machines are touched: those for which the answer is yes. Where nobody can
/// be asked, refuses.
async fn confirm<'a>(
    context: &Context,
    chosen: Vec<(&'a str, &'a str)>,
) -> Result<Vec<(&'a str, &'a str)>, CliError> {
    if !std::io::stdin().is_terminal() || context.out.json {
        let names: Vec<&str> = chosen.iter().map(|(_, name)| *name).collect();
        let message = format!(
            "this makes other machines fail on purpose, for seconds at a time ({}), and asks \
             first; there is nobody to ask here",
            printable(&names.join(", "))
        );
        let next = context.command("drill --yes");
        return Err(CliError::new("needs_yes", message).next(next));
    }
    let mut kept = Vec::new();
    for (node, name) in chosen {
        context.out.note(&format!(
            "Have {BOLD}{}{BOLD:#} ({}) fail on purpose, a few seconds at a time? [y/N] ",
            printable(name),
            short(node),
        ));
        let answer = read_line().await?.unwrap_or_default();
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            kept.push((node, name));
        }
    }
    if kept.is_empty() {
        let message = "every machine is left alone: there is nothing to drill";
        return Err(CliError::new("declined", message).next(context.command("drill --local")));
    }
    Ok(kept)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_chosen_by_name_or_node() {
        let others = [("abcdef", "desk"), ("bcdefg", "tower")];
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            choose(&others, &wanted).map(|c| c.iter().map(|(_, name)| *name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["desk", "tower"]);
        assert_eq!(names(&["tower"]).unwrap(), ["tower"]);
        assert_eq!(names(&["abcd"]).unwrap(), ["desk"]);
        assert!(
            names(&["tower", "cellar"])
                .unwrap_err()
                .message
                .contains("cellar")
        );
        assert!(names(&["ab"]).is_err());
    }
}
