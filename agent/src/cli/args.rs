//! What can be typed.

mod voice;

use crate::bench::BenchArgs;
use crate::demo::DemoArgs;
use crate::drill::Case;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

pub use voice::{SayArgs, TalkArgs, TranscribeArgs, VoicesArgs};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "unamesh",
    version,
    about = "A private mesh of the AI engines in your home",
    long_about = "A private mesh of the AI engines in your home.\n\n\
                  First machine:  unamesh init && unamesh up\n\
                  Every other:    unamesh join LINK && unamesh up   (the link: `unamesh invite`)\n\
                  Then:           unamesh chat",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Directory of keys and measurements; each agent on a machine needs its own
    #[arg(long, global = true, env = "UNAMESH_STATE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,
    /// Configuration file [default: config.toml in the state or the user's config directory]
    #[arg(long, global = true, env = "UNAMESH_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// One JSON value on standard output, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// No colours and no lines in tables, also on a terminal
    #[arg(long, global = true)]
    pub plain: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this machine's agent (until Ctrl-C or SIGTERM)
    Up(UpArgs),
    /// Start a new mesh with this machine as its first member
    Init(InitArgs),
    /// Print a link with which another machine can join
    Invite(InviteArgs),
    /// Make this machine a member of a mesh
    Join(JoinArgs),
    /// Show this machine's agent
    Status,
    /// List the machines of the mesh
    Peers,
    /// List every model of the mesh and where it is
    Models(ModelsArgs),
    /// List the engines of this machine
    Engines,
    /// Ask a model; the answer survives the machine that gives it
    Chat(ChatArgs),
    /// Say a text; the speech goes on when its machine goes away
    Say(SayArgs),
    /// Write down what is said in a recording
    Transcribe(TranscribeArgs),
    /// Talk with a model: with the microphone, or with recordings
    Talk(TalkArgs),
    /// List who can speak, and where
    Voices(VoicesArgs),
    /// Show which machine a request for a model would go to, and why
    Why(WhyArgs),
    /// Measure the round trip to other machines over every path
    Ping(PingArgs),
    /// Follow what happens: suspicions, backups, migrations, peers, engines (until Ctrl-C)
    Events,
    /// Let this machine hand over what it does and leave the mesh, or pause
    Drain(DrainArgs),
    /// Find what is wrong, and how to repair it
    Doctor,
    /// Three agents, a question, and an answer that survives its machine
    Demo(DemoArgs),
    /// Fire drill: machines fail on purpose while they answer, and what is noticed of it is shown
    #[command(
        after_help = "On the real mesh it runs on an admin's machine (the one that ran `init`, or \
                      one that joined by\n`invite --role admin`), and only machines whose owner set \
                      `drill = true` under [serve] play a fault."
    )]
    Drill(DrillArgs),
    /// Measure what the mesh costs, and how fast it heals
    Bench(BenchArgs),
    /// Print a completion script: unamesh completions bash > ~/.local/share/bash-completion/completions/unamesh
    Completions(CompletionsArgs),
}

/// `unamesh up`.
#[derive(Debug, Default, Args)]
pub struct UpArgs {
    /// This machine's name in tables
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the HTTP API listens
    #[arg(long, value_name = "ADDR:PORT")]
    pub gateway: Option<String>,
    /// Where the data plane listens (UDP)
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// A machine to try besides those that are found; may be repeated
    #[arg(long = "seed", value_name = "HOST:PORT")]
    pub seeds: Vec<String>,
    /// Neither announce nor look by multicast DNS
    #[arg(long)]
    pub no_mdns: bool,
    /// Do not look for engines on standard ports
    #[arg(long)]
    pub no_detect: bool,
    /// What to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Any key of the configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the documented default configuration and end
    #[arg(long)]
    pub print_config: bool,
}

/// `unamesh init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The mesh's name
    #[arg(default_value = "home")]
    pub mesh: String,
}

/// `unamesh invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    /// agent (serves), client (only asks) or admin (may invite)
    #[arg(long, default_value = "agent", value_parser = ["agent", "client", "admin"])]
    pub role: String,
    /// How long the link is good for
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub valid_for: Duration,
    /// How many machines may join with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub uses: u32,
}

/// `unamesh join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The link that `unamesh invite` printed
    pub link: String,
    /// This machine's name in tables [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// `unamesh models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Only models whose name contains this
    pub filter: Option<String>,
}

/// `unamesh chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The model [default: the first that is loaded]
    pub model: Option<String>,
    /// The question; without it, one that is piped in, else a conversation
    pub prompt: Option<String>,
    /// What the model is told before
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 = always the likeliest token
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f32>,
    /// End the answer after so many tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// The random seed
    #[arg(long, value_name = "N")]
    pub seed: Option<i64>,
    /// Show which machine answers, and why
    #[arg(long, short)]
    pub verbose: bool,
}

/// `unamesh why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The model
    pub model: String,
    /// Length of the prompt that is asked about
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub prompt_tokens: u32,
}

/// `unamesh ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// A machine's name or node id [default: every machine]
    pub node: Option<String>,
    /// How many times
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
}

/// `unamesh drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Running answers get this long to move or end; then the agent stops
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub deadline: Duration,
    /// Stay in the mesh and take nothing new for this long, then take requests again
    #[arg(long = "for", value_name = "TIME", value_parser = duration, conflicts_with = "deadline")]
    pub pause: Option<Duration>,
    /// End a pause now
    #[arg(long, conflicts_with_all = ["deadline", "pause"])]
    pub stop: bool,
}

/// `unamesh drill`.
#[derive(Clone, Debug, Args)]
pub struct DrillArgs {
    /// On a mesh of its own on this machine: three agents with test engines
    #[arg(long)]
    pub local: bool,
    /// With --local: the starter's llama.cpp instead of test engines, installed if need be
    #[arg(long, requires = "local")]
    pub starter: bool,
    /// How often each case is played [default: 10; on the real mesh 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub trials: Option<u16>,
    /// What happens to the machine that answers [default: all of these, one after the other]
    #[arg(long = "case", value_name = "CASE", value_enum, value_delimiter = ',')]
    pub cases: Vec<Case>,
    /// Answers at the same time
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub answers: u8,
    /// Length of an answer in tokens
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(16..=1024))]
    pub tokens: u16,
    /// On the real mesh: the model to ask [default: the first that is loaded]
    #[arg(long, conflicts_with = "local")]
    pub model: Option<String>,
    /// On the real mesh: a machine that is to fail, by name or node id; may be repeated
    /// [default: every one that serves the model]; they take turns
    #[arg(long = "peer", value_name = "NAME", conflicts_with = "local")]
    pub peers: Vec<String>,
    /// Multiplies the bars by this, for a machine that has other things to do: exit status 1 if
    /// one is missed
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = tolerance)]
    pub tolerance: f64,
    /// Do not ask before touching another machine
    #[arg(long, short)]
    pub yes: bool,
}

/// `unamesh completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// By how much a bar may be exceeded: `1.5`.
pub(crate) fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(times) if (1.0..=100.0).contains(&times) => Ok(times),
        _ => Err("expected a number from 1 to 100".to_owned()),
    }
}

/// `90s`, `10m`, `2h`, `1d`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let number: u64 = digits.trim().parse().map_err(|_| expected_time())?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected_time()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(expected_time)
}

fn expected_time() -> String {
    "expected a time such as 30s, 10m, 2h or 1d".to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_leave_a_pause_and_its_end_exclude_each_other() {
        let parse = |line: &str| {
            let words = ["unamesh", "drain"]
                .into_iter()
                .chain(line.split_whitespace());
            Cli::try_parse_from(words).map(|cli| match cli.command {
                Command::Drain(args) => (args.deadline.as_secs(), args.pause, args.stop),
                other => unreachable!("{other:?}"),
            })
        };
        assert_eq!(parse("").unwrap(), (30, None, false));
        let ten = Some(Duration::from_secs(600));
        assert_eq!(parse("--for 10m").unwrap(), (30, ten, false));
        assert_eq!(parse("--stop").unwrap(), (30, None, true));
        for both in [
            "--for 1m --stop",
            "--for 1m --deadline 5s",
            "--stop --deadline 5s",
        ] {
            assert!(parse(both).is_err(), "{both}");
        }
    }

    #[test]
    fn times() {
        for (text, ms) in [
            ("500ms", 500),
            ("7", 7_000),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in [
            "",
            "m",
            "-1s",
            "1.5h",
            "1 fortnight",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
