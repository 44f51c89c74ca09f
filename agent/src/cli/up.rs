//! `unamesh up`: the agent of this machine, until it is told to stop.

use super::args::UpArgs;
use super::context::Context;
use super::error::CliError;
use super::logs;
use crate::config::{self, Config};

/// Makes TLS libraries write session secrets to a file: libp2p's honours it.
const KEY_LOG: &str = "SSLKEYLOGFILE";

pub(super) fn run(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    if args.print_config {
        return context.out.print(&config::documented_default());
    }
    let config = Config::load(&context.sources(flags(args)?)?)?;
    without_key_log()?;
    logs::init(&config.log, context.out.json)?;
    Err(CliError::not_built("up"))
}

/// The flags as keys of the configuration.
fn flags(args: &UpArgs) -> Result<Vec<(String, String)>, CliError> {
    let mut flags = Vec::new();
    for pair in &args.set {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            CliError::new("config", format!("--set {pair}: expected KEY=VALUE"))
                .next("unamesh up --set gateway.listen=127.0.0.1:11500")
        })?;
        flags.push((key.trim().to_owned(), value.to_owned()));
    }
    let mut set = |key: &str, value: Option<String>| {
        flags.extend(value.map(|value| (key.to_owned(), value)));
    };
    set("name", args.name.clone());
    set("gateway.listen", args.gateway.clone());
    set("mesh.listen", args.listen.clone());
    set(
        "mesh.seeds",
        (!args.seeds.is_empty()).then(|| args.seeds.join(",")),
    );
    set("mesh.mdns", args.no_mdns.then(|| "false".to_owned()));
    set("engines.detect", args.no_detect.then(|| "false".to_owned()));
    set("log.level", args.log.clone());
    Ok(flags)
}

/// Starts this program again without [`KEY_LOG`], in the same process: no thread runs yet,
/// and changing one's own environment is not safe in any other way.
///
/// # Errors
/// The variable is set and cannot be got rid of.
fn without_key_log() -> Result<(), CliError> {
    if std::env::var_os(KEY_LOG).is_none() {
        return Ok(());
    }
    #[cfg(unix)]
    let reason = {
        use std::os::unix::process::CommandExt;
        let program = std::env::current_exe().unwrap_or_else(|_| "unamesh".into());
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| "unamesh".into());
        // Returns only if it failed.
        std::process::Command::new(program)
            .arg0(name)
            .args(arguments)
            .env_remove(KEY_LOG)
            .exec()
            .to_string()
    };
    #[cfg(not(unix))]
    let reason = "this system cannot drop it for a running program";
    let message = format!(
        "{KEY_LOG} is set, which would write this agent's session keys to a file: {reason}"
    );
    Err(CliError::new("key_log", message).next(format!("unset {KEY_LOG}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_keys() {
        let args = UpArgs {
            name: Some("desk".into()),
            seeds: vec!["a:1".into(), "b:2".into()],
            no_mdns: true,
            set: vec!["serve.queue=3".into()],
            ..UpArgs::default()
        };
        let sources = config::Sources {
            flags: flags(&args).unwrap(),
            ..Default::default()
        };
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.name, "desk");
        assert_eq!(config.mesh.seeds, ["a:1", "b:2"]);
        assert_eq!(config.serve.queue, 3);
        assert!(!config.mesh.mdns);
        let args = UpArgs {
            set: vec!["serve.queue".into()],
            ..UpArgs::default()
        };
        assert!(flags(&args).unwrap_err().message.contains("KEY=VALUE"));
    }
}
