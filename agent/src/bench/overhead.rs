//! What the mesh adds.
//!
//! Three ways to one engine, in turn within each round, so that whatever else the machine does
//! hits them alike: straight to the engine; through another agent's gateway (gateway -> QUIC
//! -> the engine's agent -> engine); through the gateway of the engine's own agent.
//!
//! The added time to first token is, by round, the median of a way less the median of the
//! direct way; its `p50` is the median over the rounds. `p99` is stricter: the 99th percentile
//! of all requests of the way less the *median* of all direct ones, so that it counts the
//! engine's and the machine's own outliers too.

use super::engine::MODEL;
use super::stats::{self, Samples, round};
use super::{BenchError, Progress, Report};
use crate::local_mesh::http::{self, Connection};
use crate::local_mesh::process::TestEngine;
use crate::local_mesh::{Mesh, Setup};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Clients at the same time for the throughput.
const CLIENTS: [usize; 3] = [1, 16, 128];
/// Requests before the first round: connections, caches, the engine's measured speed.
const WARM_UP: u32 = 50;
/// What stands before the first token's text in an event.
const FIRST: &[u8] = b"\"content\":\"t";

/// `unamesh bench overhead`.
#[derive(Clone, Debug, clap::Args)]
pub struct OverheadArgs {
    /// Rounds.
    #[arg(long, default_value_t = 7)]
    pub runs: u32,
    /// Requests of each way in a round.
    #[arg(long, default_value_t = 25)]
    pub requests: u32,
    /// Tokens of an answer whose time to first token or rate is measured.
    #[arg(long, default_value_t = 8)]
    pub tokens: u32,
    /// Tokens of an answer whose time per token is measured.
    #[arg(long, default_value_t = 512)]
    pub stream_tokens: u32,
    /// Seconds of load for each number of clients; 0: none.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Worker threads of each agent [default: the configuration's]
    #[arg(long)]
    pub workers: Option<usize>,
}

/// One way to the engine.
struct Way {
    addr: SocketAddr,
    connection: Connection,
}

impl Way {
    fn open(addr: SocketAddr) -> Result<Self, BenchError> {
        let connection = Connection::open(addr).map_err(BenchError::during(addr))?;
        Ok(Way { addr, connection })
    }

    /// A chat request for it.
    fn request(&self, tokens: u32, more: &str) -> Vec<u8> {
        let body = format!(
            "{{\"model\":\"{MODEL}\",\"stream\":true,\"max_tokens\":{tokens}{more},\
             \"messages\":[{{\"role\":\"user\",\"content\":\"Count, please.\"}}]}}"
        );
        http::request(self.addr, "/v1/chat/completions", None, Some(&body))
    }

    /// Asks, and tells when the first token and the end came.
    fn ask(&mut self, request: &[u8]) -> Result<Answer, BenchError> {
        let failed = BenchError::during(self.addr);
        answer(&mut self.connection, request).map_err(failed)
    }
}

struct Answer {
    first: Duration,
    total: Duration,
}

fn answer(connection: &mut Connection, request: &[u8]) -> std::io::Result<Answer> {
    let start = Instant::now();
    let status = connection.send(request)?;
    let mut first = None;
    let mut body = Vec::with_capacity(4096);
    while let Some(piece) = connection.piece()? {
        // The marker may lie across two pieces.
        let from = body.len().saturating_sub(FIRST.len());
        body.extend_from_slice(piece);
        let fresh = body.get(from..).unwrap_or_default();
        if first.is_none() && http::find(fresh, FIRST).is_some() {
            first = Some(start.elapsed());
        }
    }
    let total = start.elapsed();
    match first {
        Some(first) if status == 200 && body.ends_with(b"data: [DONE]\n\n") => {
            Ok(Answer { first, total })
        }
        _ => {
            let text = String::from_utf8_lossy(&body).into_owned();
            Err(std::io::Error::other(format!("HTTP {status}: {text}")))
        }
    }
}

/// Runs it.
///
/// # Errors
/// See [`BenchError`].
pub fn run(args: &OverheadArgs, progress: &Progress) -> Result<Report, BenchError> {
    progress("starting a test engine and two agents");
    let engine = TestEngine::start()?;
    let mut setups = [Setup::default(), Setup::openai(engine.addr)];
    if let Some(workers) = args.workers {
        for setup in &mut setups {
            let _ = write!(setup.config, "[runtime]\nworkers = {workers}\n");
        }
    }
    let mut mesh = Mesh::start(&setups, MODEL)?;
    let mut ways = [
        Way::open(engine.addr)?,
        Way::open(mesh.gateway(0)?)?,
        Way::open(mesh.gateway(1)?)?,
    ];
    let first = first_token(args, &mut ways, progress)?;
    let token = per_token(args, &mut ways, progress)?;
    let latency = token_latency(args, &mut ways, progress)?;
    let [direct, remote, _] = &ways;
    let rate = rates(args, remote, progress)?;
    let direct_rate = rates(args, direct, progress)?;
    let rss = mesh.rss_mb()?;
    let json = json!({
        "direct_ttft_ms": {"p50": first.direct.0, "p99": first.direct.1},
        "remote_added_ttft_ms": {"p50": first.remote.0, "p99": first.remote.1},
        "local_added_ttft_ms": {"p50": first.local.0, "p99": first.local.1},
        "added_per_token_us": token[0],
        "local_added_per_token_us": token[1],
        "added_token_latency_us": latency[0],
        "local_added_token_latency_us": latency[1],
        "requests_per_s": rate,
        "direct_requests_per_s": direct_rate,
        "rss_mb": rss,
        "runs": args.runs,
        "requests": args.requests,
    });
    let text = text(&json);
    Ok(Report {
        json,
        text,
        trouble: None,
    })
}

/// (p50, p99) of each way in milliseconds; of the mesh's ways what they add.
struct FirstToken {
    direct: (f64, f64),
    remote: (f64, f64),
    local: (f64, f64),
}

fn first_token(
    args: &OverheadArgs,
    ways: &mut [Way; 3],
    progress: &Progress,
) -> Result<FirstToken, BenchError> {
    let requests = ways.each_ref().map(|way| way.request(args.tokens, ""));
    for _ in 0..WARM_UP {
        for (way, request) in ways.iter_mut().zip(&requests) {
            way.ask(request)?;
        }
    }
    let mut medians: [Samples; 3] = Default::default();
    let mut all: [Samples; 3] = Default::default();
    for run in 1..=args.runs {
        progress(&format!(
            "time to first token, round {run} of {}",
            args.runs
        ));
        let mut round: [Samples; 3] = Default::default();
        for _ in 0..args.requests {
            for at in 0..ways.len() {
                let (way, request) = (&mut ways[at], &requests[at]);
                round[at].push_ms(way.ask(request)?.first);
            }
        }
        let base = round[0].median();
        medians[0].push(base);
        medians[1].push(round[1].median() - base);
        medians[2].push(round[2].median() - base);
        for (all, round) in all.iter_mut().zip(&round) {
            all.extend(round);
        }
    }
    let base = all[0].median();
    let added = |at: usize| {
        let p99 = all[at].percentile(0.99) - base;
        (round(medians[at].median()), round(p99))
    };
    Ok(FirstToken {
        direct: (round(medians[0].median()), round(all[0].percentile(0.99))),
        remote: added(1),
        local: added(2),
    })
}

/// Microseconds that a token costs more, remotely and locally, when they come back to back.
fn per_token(
    args: &OverheadArgs,
    ways: &mut [Way; 3],
    progress: &Progress,
) -> Result<[f64; 2], BenchError> {
    progress("time per token, back to back");
    let requests = ways.each_ref().map(|w| w.request(args.stream_tokens, ""));
    let mut times: [Samples; 3] = Default::default();
    for _ in 0..args.runs.max(1) * 3 {
        for at in 0..ways.len() {
            let answer = ways[at].ask(&requests[at])?;
            let rest = (answer.total - answer.first).as_secs_f64() * 1e6;
            times[at].push(rest / f64::from(args.stream_tokens.max(2) - 1));
        }
    }
    let base = times[0].median();
    Ok([
        round(times[1].median() - base),
        round(times[2].median() - base),
    ])
}

/// Microseconds that a token arrives later, remotely and locally, when the engine makes one
/// every two milliseconds and stamps each with the time at which it left.
fn token_latency(
    args: &OverheadArgs,
    ways: &mut [Way; 3],
    progress: &Progress,
) -> Result<[f64; 2], BenchError> {
    progress("delay of a token in a paced stream");
    let more = ",\"bench_itl_us\":2000,\"bench_stamp\":true";
    let requests = ways.each_ref().map(|way| way.request(50, more));
    let mut delays: [Samples; 3] = Default::default();
    for _ in 0..args.runs.max(1) {
        for at in 0..ways.len() {
            let way = &mut ways[at];
            let failed = BenchError::during(way.addr);
            let delay = stamped(&mut way.connection, &requests[at]).map_err(failed)?;
            delays[at].extend(&delay);
        }
    }
    let base = delays[0].median();
    Ok([
        round(delays[1].median() - base),
        round(delays[2].median() - base),
    ])
}

/// The delay of each token of an answer in microseconds, the first excluded.
fn stamped(connection: &mut Connection, request: &[u8]) -> std::io::Result<Samples> {
    connection.send(request)?;
    let mut delays = Samples::default();
    while let Some(piece) = connection.piece()? {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(piece);
        for stamp in text.split('@').skip(1) {
            let digits = stamp.split(|c: char| !c.is_ascii_digit()).next();
            if let Some(left) = digits.and_then(|d| d.parse::<u64>().ok()) {
                delays.push(now.as_micros() as f64 - left as f64);
            }
        }
    }
    Ok(delays)
}

/// Requests a second by number of clients.
fn rates(args: &OverheadArgs, way: &Way, progress: &Progress) -> Result<Value, BenchError> {
    let mut rates = Map::new();
    if args.seconds <= 0.0 {
        return Ok(Value::Object(rates));
    }
    let request = way.request(args.tokens, "");
    for clients in CLIENTS {
        progress(&format!("{clients} clients at {}", way.addr));
        let rate = load(
            way.addr,
            &request,
            clients,
            Duration::from_secs_f64(args.seconds),
        )?;
        rates.insert(clients.to_string(), json!(rate.round()));
    }
    Ok(Value::Object(rates))
}

fn load(
    addr: SocketAddr,
    request: &[u8],
    clients: usize,
    duration: Duration,
) -> Result<f64, BenchError> {
    let start = Instant::now();
    let client = || -> std::io::Result<u32> {
        let mut connection = Connection::open(addr)?;
        let mut done = 0;
        while start.elapsed() < duration {
            answer(&mut connection, request)?;
            done += 1;
        }
        Ok(done)
    };
    let counts: Vec<std::io::Result<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let died = || Err(std::io::Error::other("a client died"));
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| died()))
            .collect()
    });
    let took = start.elapsed().as_secs_f64();
    let mut total = 0;
    for count in counts {
        total += count.map_err(BenchError::during(addr))?;
    }
    Ok(f64::from(total) / took)
}

fn text(json: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:34}{value}");
    };
    let pair = |key: &str| format!("p50 {} ms   p99 {} ms", json[key]["p50"], json[key]["p99"]);
    line("first token, engine directly", pair("direct_ttft_ms"));
    line("  added by the mesh (remote)", pair("remote_added_ttft_ms"));
    line(
        "  added by the gateway (local)",
        pair("local_added_ttft_ms"),
    );
    line(
        "added per token, back to back",
        format!("{} us", json["added_per_token_us"]),
    );
    line(
        "added delay of a paced token",
        format!("{} us", json["added_token_latency_us"]),
    );
    for clients in CLIENTS.map(|c| c.to_string()) {
        let rate = |key: &str| json[key][&clients].clone();
        let (mesh, direct) = (rate("requests_per_s"), rate("direct_requests_per_s"));
        line(
            &format!("requests/s, {clients} clients"),
            format!("{mesh} (directly {direct})"),
        );
    }
    line(
        "memory of the larger agent",
        format!("{} MB", json["rss_mb"]),
    );
    out
}

impl Mesh {
    /// The gateway of agent `at`.
    fn gateway(&self, at: usize) -> Result<SocketAddr, BenchError> {
        let missing = || BenchError::new("bench", "no such agent");
        self.agents.get(at).map(|a| a.gateway).ok_or_else(missing)
    }

    /// Resident memory of the largest agent.
    fn rss_mb(&mut self) -> Result<f64, BenchError> {
        let mut most = 0.0_f64;
        for agent in &mut self.agents {
            most = most.max(stats::rss_mb(agent.process()?.id()).unwrap_or(0.0));
        }
        Ok(round(most))
    }
}
