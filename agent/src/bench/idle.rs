//! What an agent costs that does nothing, in a mesh of three.
//!
//! Memory and processor time come from /proc. For the traffic, the benchmark runs itself in a
//! network namespace of its own where it may (`unshare`), so that what crosses the loopback
//! interface there is the mesh's alone; `nft` counts the UDP of it, without the agents' polling
//! of their engines over TCP.

use super::engine::MODEL;
use super::stats::{Samples, cpu_time, round, rss_mb};
use super::{BenchError, Progress, Report};
use crate::local_mesh::process::{TestEngine, program};
use crate::local_mesh::{Mesh, Setup};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const AGENTS: usize = 3;

/// `unamesh bench idle`.
#[derive(Clone, Debug, clap::Args)]
pub struct IdleArgs {
    /// How long to look.
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
    /// How long to let the mesh settle before.
    #[arg(long, default_value_t = 5.0)]
    pub settle: f64,
    /// Already in a namespace of its own.
    #[arg(long, hide = true)]
    pub alone: bool,
}

/// Runs it.
///
/// # Errors
/// See [`BenchError`].
pub fn run(args: &IdleArgs, progress: &Progress) -> Result<Report, BenchError> {
    if !args.alone
        && let Some(json) = in_namespace(args, progress)?
    {
        return Ok(report(json));
    }
    progress("starting three agents with a test engine each");
    let engines = [
        TestEngine::start()?,
        TestEngine::start()?,
        TestEngine::start()?,
    ];
    let setups = engines.each_ref().map(|engine| Setup {
        mdns: true,
        ..Setup::openai(engine.addr)
    });
    let mut mesh = Mesh::start(&setups, MODEL)?;
    std::thread::sleep(Duration::from_secs_f64(args.settle));
    progress(&format!("looking for {} s", args.seconds));
    let counter = Counter::start(args.alone);
    let mut pids = Vec::new();
    for agent in &mut mesh.agents {
        pids.push(agent.process()?.id());
    }
    let cpu = |pids: &[u32]| pids.iter().map(|&pid| cpu_time(pid)).collect::<Vec<_>>();
    let (start, before) = (Instant::now(), (cpu(&pids), counter.bytes()));
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    let (took, after) = (start.elapsed().as_secs_f64(), (cpu(&pids), counter.bytes()));

    let shares = before.0.iter().zip(&after.0);
    let shares: Samples = shares
        .filter_map(|(a, b)| Some((b.as_ref()?.saturating_sub(*a.as_ref()?)).as_secs_f64()))
        .map(|seconds| seconds / took * 100.0)
        .collect();
    let memory: Samples = pids.iter().filter_map(|&pid| rss_mb(pid)).collect();
    let traffic = before.1.zip(after.1).map(|(a, b)| {
        // Each byte is sent by one node and received by another.
        2.0 * b.saturating_sub(a) as f64 / took / AGENTS as f64
    });
    Ok(report(json!({
        "rss_mb": {"p50": round(memory.median()), "max": round(memory.percentile(1.0))},
        "cpu_percent": {"p50": round(shares.median()), "max": round(shares.percentile(1.0))},
        "traffic_bytes_per_s": traffic.map(f64::round),
        "traffic_counted_by": counter.name(),
        "seconds": round(took),
    })))
}

/// This benchmark in a network namespace; `None` where that is not allowed.
fn in_namespace(args: &IdleArgs, progress: &Progress) -> Result<Option<Value>, BenchError> {
    let probe = Command::new("unshare")
        .args(["--map-root-user", "--net", "true"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        progress("no network namespace here: the traffic of other programs is counted too");
        return Ok(None);
    }
    let program = program()?.get_program().to_owned();
    progress(&format!(
        "measuring in a network namespace, about {:.0} s",
        args.seconds + args.settle + 5.0
    ));
    let what = "bench idle in a network namespace";
    let script = "ip link set lo up && ip link set lo multicast on && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-c", script, "sh"])
        .arg(program)
        .args(["--json", "bench", "idle", "--alone"])
        .args(["--seconds", &args.seconds.to_string()])
        .args(["--settle", &args.settle.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(BenchError::during(what))?;
    if !output.status.success() {
        return Err(BenchError::new(what, output.status));
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(BenchError::during(what))
}

/// What counts the traffic.
enum Counter {
    /// UDP that leaves a socket in this namespace.
    Nft,
    /// Everything on the loopback interface, other programs' traffic included.
    Loopback,
}

impl Counter {
    fn start(alone: bool) -> Self {
        if !alone {
            return Counter::Loopback;
        }
        let rules = "add table inet unamesh_bench
            add chain inet unamesh_bench out { type filter hook output priority 0; }
            add rule inet unamesh_bench out meta l4proto udp counter";
        let added = Command::new("nft")
            .arg(rules)
            .stderr(Stdio::null())
            .status();
        if added.is_ok_and(|status| status.success()) {
            return Counter::Nft;
        }
        Counter::Loopback
    }

    fn name(&self) -> &'static str {
        match self {
            Counter::Nft => "nft, UDP with IP headers",
            Counter::Loopback => "loopback interface, all programs",
        }
    }

    fn bytes(&self) -> Option<u64> {
        match self {
            Counter::Nft => {
                let output = Command::new("nft")
                    .args(["list", "table", "inet", "unamesh_bench"])
                    .output()
                    .ok()?;
                let text = String::from_utf8(output.stdout).ok()?;
                let (_, after) = text.split_once(" bytes ")?;
                after.split_ascii_whitespace().next()?.parse().ok()
            }
            Counter::Loopback => {
                let text = fs::read_to_string("/proc/net/dev").ok()?;
                let line = text.lines().find_map(|l| l.trim().strip_prefix("lo:"))?;
                line.split_ascii_whitespace().nth(8)?.parse().ok()
            }
        }
    }
}

fn report(json: Value) -> Report {
    let text = format!(
        "memory          p50 {} MB, most {} MB\n\
         processor       p50 {} %, most {} % of a core\n\
         traffic a node  {} bytes/s, sent and received ({})\n",
        json["rss_mb"]["p50"],
        json["rss_mb"]["max"],
        json["cpu_percent"]["p50"],
        json["cpu_percent"]["max"],
        json["traffic_bytes_per_s"],
        json["traffic_counted_by"].as_str().unwrap_or_default(),
    );
    Report {
        json,
        text,
        trouble: None,
    }
}
