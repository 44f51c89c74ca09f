//! `unamesh bench`: see [`crate::bench`].

use super::context::Context;
use super::error::CliError;
use super::output::DIM;
use crate::bench::{self, BenchArgs};
use std::sync::Arc;

pub(super) async fn run(context: &Context, args: BenchArgs) -> Result<(), CliError> {
    let out = context.out;
    let progress: bench::Progress = Arc::new(move |line: &str| {
        if !out.json {
            out.note(&format!("{DIM}{line}{DIM:#}\n"));
        }
    });
    let report = bench::run(args, progress)
        .await
        .map_err(|e| CliError::new("bench", e.to_string()))?;
    let Some(report) = report else { return Ok(()) };
    if out.json {
        out.value(&report.json)?;
    } else {
        out.print(&report.text)?;
    }
    let missed = |trouble| Err(CliError::new("bench", trouble));
    report.trouble.map_or(Ok(()), missed)
}
