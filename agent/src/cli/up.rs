//! `unamesh up`: the agent of this machine, until it is told to stop.
//!
//! SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal is closed) let it leave the mesh in
//! order: running answers move to another machine or end, every peer is told. Another signal
//! after that ends it at once.

use super::args::UpArgs;
use super::context::Context;
use super::error::CliError;
use super::logs;
use super::output::{BOLD, DIM};
use crate::config::{self, Config};
use crate::node::{Agent, StartError};
use crate::state::StateDir;
use serde_json::json;
use std::time::Duration;

/// Makes TLS libraries write session secrets to a file: libp2p's honours it.
const KEY_LOG: &str = "SSLKEYLOGFILE";
/// Signals within this time of the first are the same wish: a supervisor tells the process
/// and its group, a terminal sends SIGINT and SIGHUP.
const ONE_WISH: Duration = Duration::from_millis(500);
/// Tasks that block (a disk, a driver) may take this long to notice the end.
const LINGER: Duration = Duration::from_secs(1);

pub(super) fn run(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    if args.print_config {
        return context.out.print(&config::documented_default());
    }
    let config = Config::load(&context.sources(flags(args)?)?)?;
    without_key_log()?;
    let state = context.state()?;
    logs::init(&config.log, context.out.plain)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.runtime.workers)
        .thread_name("unamesh")
        .enable_all()
        .build()
        .map_err(|e| CliError::new("runtime", format!("cannot start: {e}")))?;
    let result = runtime.block_on(serve(context, config, state));
    runtime.shutdown_timeout(LINGER);
    result
}

async fn serve(context: &Context, config: Config, state: StateDir) -> Result<(), CliError> {
    // Before anything is open, so that a signal during the start is not lost.
    let mut stop = Stop::new()?;
    let drain = config.serve.drain();
    let starting = Box::pin(Agent::start(config, state));
    let agent = tokio::select! {
        agent = starting => agent.map_err(|e| refused(context, &e))?,
        () = stop.signal() => return Err(CliError::interrupted()),
    };
    // Nobody reads our output: the agent runs all the same.
    let _ = announce(context, &agent);
    tokio::select! {
        () = stop.signal() => {}
        () = agent.drained() => {}
    }
    let leaving = Box::pin(agent.shutdown(drain));
    let hurry = async {
        tokio::time::sleep(ONE_WISH).await;
        stop.forget();
        stop.signal().await;
    };
    tokio::select! {
        () = leaving => Ok(()),
        () = hurry => Err(CliError::interrupted()),
    }
}

/// One line for people, one object for programs that start an agent and wait for it.
fn announce(context: &Context, agent: &Agent) -> Result<(), CliError> {
    if context.out.json {
        return context.out.value(&json!({
            "node": agent.node(),
            "gateway": agent.gateway(),
            "quic": agent.quic(),
            "pid": std::process::id(),
        }));
    }
    context.out.line(&format!(
        "{BOLD}up{BOLD:#}: http://{} {DIM}(OpenAI API: /v1; node {}, data udp {}; Ctrl-C ends){DIM:#}",
        agent.gateway(),
        agent.node().short(),
        agent.quic(),
    ))
}

fn refused(context: &Context, error: &StartError) -> CliError {
    let failed = |code: &str| CliError::new(code, error.to_string());
    match error {
        StartError::State(error) => error.clone().into(),
        StartError::Identity(_) => failed("not_paired")
            .next(context.command("init"))
            .next(context.command("join LINK")),
        StartError::Role(_) => failed("role").next(context.command("chat")),
        StartError::Gateway { .. } => failed("port_taken")
            .next(context.command("up --gateway 127.0.0.1:0"))
            .next(context.command("doctor")),
        StartError::Endpoint(_) | StartError::Swarm(_) => failed("port_taken")
            .next(context.command("up --listen [::]:0"))
            .next(context.command("doctor")),
        _ => failed("start").next(context.command("doctor")),
    }
}

/// The signals that end an agent.
#[cfg(unix)]
struct Stop([tokio::signal::unix::Signal; 3]);

#[cfg(unix)]
impl Stop {
    fn new() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind)
                .map_err(|e| CliError::new("signals", format!("cannot listen for signals: {e}")))
        };
        Ok(Stop([
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// Signals that came until now do not count.
    fn forget(&mut self) {
        use futures_util::FutureExt;
        for signal in &mut self.0 {
            while signal.recv().now_or_never().flatten().is_some() {}
        }
    }

    async fn signal(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Stop;

#[cfg(not(unix))]
impl Stop {
    fn new() -> Result<Self, CliError> {
        Ok(Stop)
    }

    fn forget(&mut self) {}

    async fn signal(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler the system ends us by itself.
            std::future::pending::<()>().await;
        }
    }
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
