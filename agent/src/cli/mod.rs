//! The `unamesh` command. One file a subcommand; in the order of a call's way:
//!
//! - [`args`]: what can be typed; [`context`]: what every command needs to know.
//! - [`local`]: asks the running agent over its mesh API; [`mesh`]: that, or the mesh itself
//!   on a machine that is only a client.
//!   `voice`, `talking`: the same of speech; [`sound`]: recordings, files and devices.
//! - [`output`], [`text`]: tables and colours on a terminal, plain columns in a pipe, one
//!   JSON object with `--json`; `live`: a line that changes; [`chart`]: bars on a time axis.
//! - [`error`]: what went wrong, and the command to type next.
//!
//! Most commands are clients of the agent that runs on this machine: they know nothing of
//! the mesh that the agent would not tell a script. `up` is that agent; `init` and `join`
//! work without it.

pub mod args;
mod bench;
pub mod chart;
mod chat;
mod completions;
pub mod context;
mod demo;
mod doctor;
mod drain;
mod drill;
mod engines;
pub mod error;
mod events;
mod init;
mod invite;
mod join;
mod live;
pub mod local;
mod logs;
mod mesh;
mod models;
pub mod output;
mod peers;
mod ping;
mod say;
pub mod sound;
mod status;
mod talk;
mod talking;
pub mod text;
mod transcribe;
mod up;
mod voice;
mod voices;
mod why;

use args::{Cli, Command};
use clap::Parser;
use context::Context;
use error::CliError;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command line `args` (the program's name first).
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" for clap; a closed pipe is none for us.
            let _ = error.print();
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return ExitCode::from(code);
        }
    };
    let Cli { global, command } = cli;
    let context = Context::new(global);
    match dispatch(&context, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            context.out.error(&error);
            ExitCode::from(error.exit)
        }
    }
}

fn dispatch(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Up(args) => up::run(context, &args),
        Command::Init(args) => init::run(context, &args),
        Command::Completions(args) => completions::run(context, &args),
        Command::Join(args) => client(join::run(context, &args)),
        Command::Status => client(status::run(context)),
        Command::Peers => client(peers::run(context)),
        Command::Models(args) => client(models::run(context, &args)),
        Command::Engines => client(engines::run(context)),
        Command::Why(args) => client(why::run(context, &args)),
        Command::Ping(args) => client(ping::run(context, &args)),
        Command::Chat(args) => client(chat::run(context, args)),
        Command::Say(args) => client(say::run(context, args)),
        Command::Transcribe(args) => client(transcribe::run(context, args)),
        Command::Talk(args) => client(talk::run(context, args)),
        Command::Voices(args) => client(voices::run(context, &args)),
        Command::Invite(args) => client(invite::run(context, &args)),
        Command::Events => client(events::run(context)),
        Command::Drain(args) => client(drain::run(context, &args)),
        Command::Doctor => client(doctor::run(context)),
        Command::Demo(args) => client(demo::run(context, &args)),
        Command::Drill(args) => client(drill::run(context, args)),
        Command::Bench(args) => client(bench::run(context, args)),
    }
}

/// Runs a command that only asks: one thread is enough. What it leaves behind (a thread that
/// waits for a line of standard input) does not keep the program.
fn client(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new("runtime", format!("cannot start: {e}")))?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
