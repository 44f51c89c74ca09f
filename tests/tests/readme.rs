//! The README says what the program does: its commands, its configuration, and the blocks that
//! CI runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use clap::CommandFactory;
use std::path::{Path, PathBuf};
use unamesh_agent::cli::args::Cli;
use unamesh_agent::config::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The lines after the comment `<!-- MARK -->`, up to the next empty line.
fn section(mark: &str) -> Vec<String> {
    let readme = readme();
    let comment = format!("<!-- {mark} -->");
    let (_, after) = readme
        .split_once(&comment)
        .unwrap_or_else(|| panic!("README.md has no {comment}"));
    let lines = after.lines().skip(1).take_while(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// The code block after the comment, empty lines included.
fn block(mark: &str) -> String {
    let readme = readme();
    let (_, after) = readme.split_once(&format!("<!-- {mark} -->\n```")).unwrap();
    let (_, code) = after.split_once('\n').unwrap();
    code.split_once("\n```").unwrap().0.to_owned()
}

#[test]
fn the_table_of_commands_is_complete() {
    let first_cell = |row: &String| row.split('`').nth(1).map(str::to_owned);
    let mut told: Vec<String> = section("table: commands")
        .iter()
        .filter_map(first_cell)
        .collect();
    let command = Cli::command();
    let visible = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut real: Vec<String> = visible
        .map(|command| command.get_name().to_owned())
        .collect();
    told.sort();
    real.sort();
    assert_eq!(told, real);
}

#[test]
fn the_configuration_parses_and_is_valid() {
    let config = Config::parse(&block("check: config"), Path::new("README.md")).unwrap();
    config.check().unwrap();
    // What the comments call a default is one.
    let default = Config::default();
    assert_eq!(config.gateway.listen, default.gateway.listen);
    assert_eq!(config.mesh.listen, default.mesh.listen);
    assert_eq!(config.engines, default.engines);
}

#[test]
fn the_commands_that_ci_runs_are_there() {
    assert_eq!(block("run: demo"), "cargo run --release -- demo");
    let script = block("run: test");
    assert!(root().join(script).is_file());
}

#[test]
fn files_that_it_links_to_exist() {
    let readme = readme();
    for link in readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        if !link.starts_with("http") && !link.starts_with('#') {
            let file = link.split('#').next().unwrap();
            assert!(root().join(file).exists(), "README.md links to {link}");
        }
    }
}
