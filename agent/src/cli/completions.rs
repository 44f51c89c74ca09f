//! `unamesh completions`: a script for the shell.

use super::args::{Cli, CompletionsArgs};
use super::context::Context;
use super::error::CliError;
use clap::CommandFactory;

pub(super) fn run(context: &Context, args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "unamesh", &mut script);
    context.out.print(&String::from_utf8_lossy(&script))
}
