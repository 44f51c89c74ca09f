//! The `unamesh` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a bug. Half an agent would still look alive to the mesh; of a dead one the
    // others take over the work, and a service manager starts it again.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    unamesh_agent::cli::run(std::env::args_os())
}
