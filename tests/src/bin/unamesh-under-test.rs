//! The `unamesh` program, built together with the tests that start it.

fn main() -> std::process::ExitCode {
    unamesh_agent::cli::run(std::env::args_os())
}
