//! The `unamesh` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    unamesh_agent::cli::run(std::env::args_os())
}
