//! How fast an answer heals.
//!
//! Three agents: the first has no engine and is asked, the other two have one each. In every
//! trial an answer is started, and at a token that differs by trial the agent that answers is
//! killed together with its engine, or frozen. Measured from outside, by the arrival of the
//! tokens:
//!
//! - kill: the gap from the last token before to the first after, less the backup's own time
//!   to first token for that prefix (as the client saw it from its dispatch).
//! - freeze: from SIGSTOP until the backup was dispatched: the first token after it, less the
//!   backup's own time to first token.
//!
//! With the test engine every token is known, so a lost, doubled or moved one is counted; with
//! `--starter` (llama.cpp) the text is compared with an uninterrupted run at temperature 0.

use super::engine::MODEL;
use super::http::{self, Connection};
use super::mesh::{Agent, Mesh, Setup, Signal, TestEngine};
use super::stats::{Samples, ms, round};
use super::{BenchError, Progress, Report};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between tokens of the test engine: 50 tokens a second, a home's usual speed.
const ITL_US: u32 = 20_000;
/// Before its first token.
const TTFT_US: u32 = 30_000;
/// The earliest token at which an agent is killed.
const FIRST_KILL: usize = 5;

/// `unamesh bench failover` and `unamesh bench freeze`.
#[derive(Clone, Debug, clap::Args)]
pub struct FaultArgs {
    /// How often.
    #[arg(long, default_value_t = 20)]
    pub trials: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 40)]
    pub tokens: usize,
}

/// What happens to the agent that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, its engine too.
    Kill,
    /// SIGSTOP.
    Freeze,
}

/// What one trial showed.
struct Trial {
    /// From the last token before to the first after.
    gap: Duration,
    /// From the fault to the first token after.
    outage: Duration,
    backup_ttft: Duration,
    seam: String,
    reason: String,
    /// Tokens that are missing, and that came again.
    lost: usize,
    doubled: usize,
}

/// Runs it.
///
/// # Errors
/// See [`BenchError`]; an answer that does not go on is one.
pub fn run(fault: Fault, args: &FaultArgs, progress: &Progress) -> Result<Report, BenchError> {
    progress("starting two test engines and three agents");
    let mut engines = [TestEngine::start()?, TestEngine::start()?];
    let setups = [
        Setup::default(),
        Setup::openai(engines[0].addr),
        Setup::openai(engines[1].addr),
    ];
    let mut mesh = Mesh::start(&setups, MODEL)?;
    let mut trials = Vec::new();
    for at in 0..args.trials {
        progress(&format!("trial {} of {}", at + 1, args.trials));
        let token = FIRST_KILL + at % args.tokens.saturating_sub(FIRST_KILL + 5).max(1);
        trials.push(trial(fault, args.tokens, token, &mut mesh, &mut engines)?);
        mesh.chooses(MODEL, 2)?;
    }
    Ok(report(fault, &trials))
}

fn trial(
    fault: Fault,
    tokens: usize,
    kill_at: usize,
    mesh: &mut Mesh,
    engines: &mut [TestEngine; 2],
) -> Result<Trial, BenchError> {
    let (asked, servers) = mesh.agents.split_at_mut(1);
    let asked = asked
        .first()
        .ok_or_else(|| BenchError::new("bench", "no agent"))?;
    let mut stream = Stream::start(asked, tokens)?;
    let mut victim = None;
    let mut struck = None;
    let mut last = Instant::now();
    let mut seen = Vec::new();
    let mut changed = None;
    loop {
        let event = stream.next()?;
        let now = Instant::now();
        match event["event"].as_str().unwrap_or_default() {
            "started" => victim = position(servers, &event["peer"]["node"]),
            "token" => {
                if let (Some((change, None)), Some(struck)) = (&mut changed, struck) {
                    let _: &Value = change;
                    changed = Some((change.take(), Some((now - last, now - struck))));
                }
                last = now;
                seen.extend(words(&event["text"]));
                if seen.len() >= kill_at && struck.is_none() {
                    let at = victim.ok_or_else(|| BenchError::new("bench", "nobody answers"))?;
                    struck = Some(Instant::now());
                    strike(fault, servers, engines, at)?;
                }
            }
            "peer_changed" => changed = Some((event, None)),
            "done" => break,
            "failed" => return Err(BenchError::new("an answer did not go on", event)),
            _ => {}
        }
    }
    if let Some(at) = victim {
        mend(fault, servers, engines, at)?;
    }
    let Some((change, Some((gap, outage)))) = changed else {
        return Err(BenchError::new(
            "bench",
            "the answer came from one agent to its end",
        ));
    };
    let millis = |key: &str| change[key].as_f64().unwrap_or(0.0);
    let (lost, doubled) = compare(&seen, tokens);
    Ok(Trial {
        gap,
        outage,
        backup_ttft: Duration::from_secs_f64(millis("backup_ttft_ms") / 1e3),
        seam: change["seam"].as_str().unwrap_or_default().to_owned(),
        reason: change["reason"].as_str().unwrap_or_default().to_owned(),
        lost,
        doubled,
    })
}

/// The events of an answer, from the mesh API.
struct Stream {
    connection: Connection,
    unread: Vec<u8>,
}

impl Stream {
    fn start(agent: &Agent, tokens: usize) -> Result<Self, BenchError> {
        let what = "generate";
        let body = json!({
            "model": MODEL,
            "messages": [{"role": "user", "content": "Count, please."}],
            "max_tokens": tokens,
            "bench_ttft_us": TTFT_US,
            "bench_itl_us": ITL_US,
        });
        let mut connection = Connection::open(agent.gateway).map_err(BenchError::during(what))?;
        let (target, token) = ("/unamesh/v1/generate", Some(agent.token.as_str()));
        let request = http::request(agent.gateway, target, token, Some(&body.to_string()));
        match connection
            .send(&request)
            .map_err(BenchError::during(what))?
        {
            200 => Ok(Stream {
                connection,
                unread: Vec::new(),
            }),
            status => Err(BenchError::new(what, format!("HTTP {status}"))),
        }
    }

    fn next(&mut self) -> Result<Value, BenchError> {
        let what = "generate";
        loop {
            if let Some(end) = http::find(&self.unread, b"\n") {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(BenchError::during(what));
            }
            match self.connection.piece().map_err(BenchError::during(what))? {
                Some(piece) => self.unread.extend_from_slice(piece),
                None => return Err(BenchError::new(what, "the events ended without a last one")),
            }
        }
    }
}

fn position(servers: &[Agent], node: &Value) -> Option<usize> {
    servers.iter().position(|agent| node == agent.node.as_str())
}

fn strike(
    fault: Fault,
    servers: &mut [Agent],
    engines: &mut [TestEngine; 2],
    at: usize,
) -> Result<(), BenchError> {
    let (Some(agent), Some(engine)) = (servers.get_mut(at), engines.get_mut(at)) else {
        return Err(BenchError::new("bench", "no such agent"));
    };
    match fault {
        Fault::Kill => {
            agent.kill();
            engine.kill();
            Ok(())
        }
        Fault::Freeze => agent.process()?.signal(Signal::Freeze),
    }
}

fn mend(
    fault: Fault,
    servers: &mut [Agent],
    engines: &mut [TestEngine; 2],
    at: usize,
) -> Result<(), BenchError> {
    let (Some(agent), Some(engine)) = (servers.get_mut(at), engines.get_mut(at)) else {
        return Err(BenchError::new("bench", "no such agent"));
    };
    match fault {
        Fault::Kill => {
            engine.restart()?;
            agent.start()
        }
        Fault::Freeze => agent.process()?.signal(Signal::Thaw),
    }
}

/// `t5 t6 ` -> 5, 6.
fn words(text: &Value) -> Vec<usize> {
    let words = text.as_str().unwrap_or_default().split_ascii_whitespace();
    words
        .filter_map(|word| word.strip_prefix('t')?.parse().ok())
        .collect()
}

/// How many of `0..tokens` are missing, and how many came too often or out of order.
fn compare(seen: &[usize], tokens: usize) -> (usize, usize) {
    let lost = (0..tokens).filter(|token| !seen.contains(token)).count();
    let mut next = 0;
    let mut doubled = 0;
    for &token in seen {
        if token < next {
            doubled += 1;
        }
        next = next.max(token + 1);
    }
    (lost, doubled)
}

fn report(fault: Fault, trials: &[Trial]) -> Report {
    let of = |value: &dyn Fn(&Trial) -> f64| trials.iter().map(value).collect::<Samples>();
    let gap = of(&|t| ms(t.gap));
    let ttft = of(&|t| ms(t.backup_ttft));
    let beyond = of(&|t| ms(t.gap) - ms(t.backup_ttft));
    let dispatched = of(&|t| ms(t.outage) - ms(t.backup_ttft));
    let sum = |value: fn(&Trial) -> usize| trials.iter().map(value).sum::<usize>();
    let (lost, doubled) = (sum(|t| t.lost), sum(|t| t.doubled));
    let mut reasons: Vec<&str> = trials.iter().map(|t| t.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let exact = trials.iter().filter(|t| t.seam == "exact").count();
    let json = json!({
        "trials": trials.len(),
        "gap_ms": gap.json(),
        "backup_ttft_ms": ttft.json(),
        "gap_beyond_ttft_ms": beyond.json(),
        "dispatch_ms": dispatched.json(),
        "tokens_lost": lost,
        "tokens_doubled": doubled,
        "exact_seams": exact,
        "reasons": reasons,
    });
    let what = match fault {
        Fault::Kill => ("gap beyond the backup's own first token", &beyond),
        Fault::Freeze => ("from SIGSTOP to the backup's dispatch", &dispatched),
    };
    let text = format!(
        "{}: p50 {} ms, p95 {} ms, max {} ms of {} trials\n\
         tokens lost {lost}, doubled {doubled}; noticed by: {}\n",
        what.0,
        round(what.1.median()),
        round(what.1.percentile(0.95)),
        round(what.1.percentile(1.0)),
        trials.len(),
        reasons.join("; "),
    );
    Report { json, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_doubled_tokens_are_counted() {
        assert_eq!(words(&json!("t3 t4 ")), [3, 4]);
        assert_eq!(compare(&[0, 1, 2], 3), (0, 0));
        assert_eq!(compare(&[0, 2, 3], 4), (1, 0));
        assert_eq!(compare(&[0, 1, 1, 2], 3), (0, 1));
        assert_eq!(compare(&[1, 0], 2), (0, 1));
    }
}
