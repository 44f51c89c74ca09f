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

use super::engine;
use super::http::{self, Connection};
use super::mesh::{Agent, Mesh, Setup};
use super::process::{Signal, TestEngine};
use super::stats::{Samples, ms, round};
use super::{BenchError, Progress, Report};
use crate::starter::{self, Starter};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between tokens of the test engine: 50 tokens a second, a home's usual speed.
const ITL_US: u32 = 20_000;
/// Before its first token.
const TTFT_US: u32 = 30_000;
/// The earliest token at which the fault comes; as many are left after the latest.
const MARGIN: usize = 5;

/// `unamesh bench failover` and `unamesh bench freeze`.
#[derive(Clone, Debug, clap::Args)]
pub struct FaultArgs {
    /// How often
    #[arg(long, default_value_t = 20)]
    pub trials: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 40)]
    pub tokens: usize,
    /// On real engines: the starter's llama.cpp, installed if need be
    #[arg(long)]
    pub starter: bool,
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
    /// Pieces that are missing, and that came again or too late.
    lost: usize,
    doubled: usize,
    /// The text is that of an uninterrupted run.
    identical: bool,
}

/// Runs it; on `starter`'s engines if there is one.
///
/// # Errors
/// See [`BenchError`]; an answer that does not go on is one.
pub fn run(
    fault: Fault,
    args: &FaultArgs,
    starter: Option<&Starter>,
    progress: &Progress,
) -> Result<Report, BenchError> {
    progress("starting two engines and three agents");
    let mut lab = Lab::start(args.tokens, starter)?;
    let mut trials = Vec::new();
    for at in 0..args.trials {
        progress(&format!("trial {} of {}", at + 1, args.trials));
        let span = args.tokens.saturating_sub(2 * MARGIN).max(1);
        let done = lab.trial(fault, MARGIN + at % span);
        trials.push(done.map_err(|e| lab.explain(e))?);
        lab.mesh.chooses(lab.model, 2)?;
    }
    Ok(report(fault, &trials))
}

/// Three agents and what they are asked.
struct Lab {
    mesh: Mesh,
    /// The test engines; none where the agents start theirs themselves.
    engines: Vec<TestEngine>,
    model: &'static str,
    request: Value,
    /// The uninterrupted answer.
    expected: String,
}

impl Lab {
    fn start(tokens: usize, starter: Option<&Starter>) -> Result<Self, BenchError> {
        let mut setups = vec![Setup::default()];
        let mut engines = Vec::new();
        for _ in 0..2 {
            setups.push(match starter {
                Some(starter) => {
                    let port = starter::free_port().map_err(BenchError::during("a port"))?;
                    let config = starter
                        .config("starter", port)
                        .map_err(BenchError::during("the starter engine's configuration"))?;
                    Setup {
                        config,
                        mdns: false,
                    }
                }
                None => {
                    let engine = TestEngine::start()?;
                    let setup = Setup::openai(engine.addr);
                    engines.push(engine);
                    setup
                }
            });
        }
        let model = if starter.is_some() {
            starter::MODEL
        } else {
            engine::MODEL
        };
        let mesh = Mesh::start(&setups, model)?;
        let request = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": tokens,
            "temperature": 0,
            "bench_ttft_us": TTFT_US,
            "bench_itl_us": ITL_US,
        });
        let mut lab = Lab {
            mesh,
            engines,
            model,
            request,
            expected: String::new(),
        };
        lab.expected = lab.uninterrupted()?;
        Ok(lab)
    }

    /// Adds what the asked agent logged: it decided what was done.
    fn explain(&self, error: BenchError) -> BenchError {
        let log = self.mesh.agents.first().map(Agent::log_tail);
        BenchError::new(error, log.unwrap_or_default())
    }

    fn uninterrupted(&self) -> Result<String, BenchError> {
        let mut stream = self.ask()?;
        let mut text = String::new();
        loop {
            let event = stream.next()?;
            text.push_str(event["text"].as_str().unwrap_or_default());
            match event["event"].as_str() {
                Some("done") => return Ok(text),
                Some("failed") => return Err(BenchError::new("the answer to compare with", event)),
                _ => {}
            }
        }
    }

    fn ask(&self) -> Result<Stream, BenchError> {
        let asked = self.mesh.agents.first();
        let asked = asked.ok_or_else(|| BenchError::new("bench", "no agent"))?;
        Stream::start(asked, &self.request)
    }

    fn trial(&mut self, fault: Fault, strike_at: usize) -> Result<Trial, BenchError> {
        let mut stream = self.ask()?;
        let mut seen = Seen::new();
        let mut victim = None;
        loop {
            let event = stream.next()?;
            match event["event"].as_str().unwrap_or_default() {
                "started" => victim = self.position(&event["peer"]["node"]),
                "token" => {
                    seen.token(&event);
                    if seen.tokens == strike_at && seen.struck.is_none() {
                        let at =
                            victim.ok_or_else(|| BenchError::new("bench", "nobody answers"))?;
                        seen.struck = Some(Instant::now());
                        self.strike(fault, at)?;
                    }
                }
                "peer_changed" => seen.change = Some(event),
                "done" => break,
                "failed" => return Err(BenchError::new("an answer did not go on", event)),
                _ => {}
            }
        }
        if let Some(at) = victim {
            self.mend(fault, at)?;
        }
        seen.judge(&self.expected)
    }

    /// Which agent a node is.
    fn position(&self, node: &Value) -> Option<usize> {
        self.mesh
            .agents
            .iter()
            .position(|agent| node == agent.node.as_str())
    }

    /// Agent `at`, and its engine if that is a process of ours: one that the agent manages
    /// dies with it.
    fn parts(&mut self, at: usize) -> Result<(&mut Agent, Option<&mut TestEngine>), BenchError> {
        let engine = at.checked_sub(1).and_then(|at| self.engines.get_mut(at));
        let agent = self.mesh.agents.get_mut(at);
        let agent = agent.ok_or_else(|| BenchError::new("bench", "no such agent"))?;
        Ok((agent, engine))
    }

    fn strike(&mut self, fault: Fault, at: usize) -> Result<(), BenchError> {
        let (agent, engine) = self.parts(at)?;
        if fault == Fault::Freeze {
            return agent.process()?.signal(Signal::Freeze);
        }
        agent.kill();
        if let Some(engine) = engine {
            engine.kill();
        }
        Ok(())
    }

    fn mend(&mut self, fault: Fault, at: usize) -> Result<(), BenchError> {
        let (agent, engine) = self.parts(at)?;
        if fault == Fault::Freeze {
            return agent.process()?.signal(Signal::Thaw);
        }
        if let Some(engine) = engine {
            engine.restart()?;
        }
        agent.start()?;
        self.mesh.knows(at)
    }
}

/// What came of one answer.
struct Seen {
    tokens: usize,
    text: String,
    /// Index of the piece that should come next.
    next: u64,
    doubled: usize,
    lost: usize,
    last: Instant,
    struck: Option<Instant>,
    change: Option<Value>,
    /// Gap and outage, once the backup's first token is there.
    healed: Option<(Duration, Duration)>,
}

impl Seen {
    fn new() -> Self {
        Seen {
            tokens: 0,
            text: String::new(),
            next: 0,
            doubled: 0,
            lost: 0,
            last: Instant::now(),
            struck: None,
            change: None,
            healed: None,
        }
    }

    fn token(&mut self, event: &Value) {
        let now = Instant::now();
        if let (Some(_), Some(struck), None) = (&self.change, self.struck, self.healed) {
            self.healed = Some((now - self.last, now - struck));
        }
        self.last = now;
        self.tokens += 1;
        self.text
            .push_str(event["text"].as_str().unwrap_or_default());
        let index = event["index"].as_u64().unwrap_or_default();
        self.doubled += usize::from(index < self.next);
        self.lost += usize::try_from(index.saturating_sub(self.next)).unwrap_or(usize::MAX);
        self.next = self.next.max(index + 1);
    }

    fn judge(self, expected: &str) -> Result<Trial, BenchError> {
        let (Some(change), Some((gap, outage))) = (&self.change, self.healed) else {
            return Err(BenchError::new(
                "bench",
                "the answer came from one agent to its end",
            ));
        };
        let text = |key: &str| change[key].as_str().unwrap_or_default().to_owned();
        let ttft = change["backup_ttft_ms"].as_f64().unwrap_or_default();
        let (lost, doubled) = compare(&self.text, expected);
        Ok(Trial {
            gap,
            outage,
            backup_ttft: Duration::from_secs_f64(ttft.max(0.0) / 1e3),
            seam: text("seam"),
            reason: text("reason"),
            lost: self.lost.max(lost),
            doubled: self.doubled.max(doubled),
            identical: self.text == expected,
        })
    }
}

/// The events of an answer, from the mesh API.
struct Stream {
    connection: Connection,
    unread: Vec<u8>,
}

impl Stream {
    fn start(agent: &Agent, body: &Value) -> Result<Self, BenchError> {
        let what = "generate";
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

/// Words of the test engine's answer (`t0 t1 t2 ...`) that are missing, and that came too
/// often or out of order. A real model's text has none of these words and counts as whole; it
/// is compared as a whole.
fn compare(text: &str, expected: &str) -> (usize, usize) {
    let words = |text: &str| -> Vec<usize> {
        let words = text.split_ascii_whitespace();
        words
            .filter_map(|word| word.strip_prefix('t')?.parse().ok())
            .collect()
    };
    let (seen, expected) = (words(text), words(expected));
    let lost = expected.iter().filter(|word| !seen.contains(word)).count();
    let mut next = 0;
    let mut doubled = 0;
    for word in seen {
        doubled += usize::from(word < next);
        next = next.max(word + 1);
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
    let identical = trials.iter().filter(|t| t.identical).count();
    let json = json!({
        "trials": trials.len(),
        "gap_ms": gap.json(),
        "backup_ttft_ms": ttft.json(),
        "gap_beyond_ttft_ms": beyond.json(),
        "dispatch_ms": dispatched.json(),
        "tokens_lost": lost,
        "tokens_doubled": doubled,
        "exact_seams": exact,
        "identical": identical,
        "reasons": reasons,
    });
    let what = match fault {
        Fault::Kill => ("gap beyond the backup's own first token", &beyond),
        Fault::Freeze => ("from SIGSTOP to the backup's dispatch", &dispatched),
    };
    let text = format!(
        "{}: p50 {} ms, p95 {} ms, max {} ms of {} trials\n\
         tokens lost {lost}, doubled {doubled}; identical text {identical}; noticed by: {}\n",
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
        let expected = "t0 t1 t2 ";
        assert_eq!(compare("t0 t1 t2 ", expected), (0, 0));
        assert_eq!(compare("t0 t2 ", expected), (1, 0));
        assert_eq!(compare("t0 t1 t1 t2 ", expected), (0, 1));
        assert_eq!(compare("t1 t0 t2 ", expected), (0, 1));
        assert_eq!(compare("the sea", "the sea"), (0, 0));
    }
}
