//! A thousand answers, each of which loses what makes it at a random token, several at a time:
//! none may lose, double or move a token, and each must end once, whole.
//!
//! Homes of three agents over real QUIC in this process, triplets in front of deterministic
//! engines. Each answer draws its length, the token at which it is struck and how ([`Kind`]);
//! an agent, a path or a connection that is struck takes what else runs there with it. One
//! token in eight has no text of its own, as half a character.
//!
//! `UNAMESH_KILLS` is the number of answers (1000), `UNAMESH_SEED` makes the same draws again;
//! the seed is printed, and a failure names the draw of its answer and what it went through.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serve_support::peers::{peer, table, transport};
use serve_support::tap::Tap;
use serve_support::{Mesh, PATIENCE, Server};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::engine::EngineError;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::client::{Event, MeshClient, Request};
use unamesh_client::identity::Credentials;
use unamesh_proto::NodeId;
use unamesh_proto::table::{Peer, Snapshot};
use unamesh_proto::wire::Role;
use unamesh_tests::doubles::{EngineDouble, Failure, PathDouble, Script};
use unamesh_tests::measure::{Samples, setting};

/// Homes that run at the same time, for the sake of speed.
const HOMES: u64 = 6;
/// Answers at the same time in each: what is struck takes another answer with it at most.
const TOGETHER: usize = 2;
const TOKENS: std::ops::Range<u32> = 20..60;
const PACE: Duration = Duration::from_millis(4);
const RTT: Duration = Duration::from_millis(1);
/// A killed agent is back after this at most.
const DOWN_MS: std::ops::Range<u64> = 0..60;

/// How an answer is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The agent and its endpoint are dropped in the middle of everything.
    Killed,
    /// The same, and nothing of it gets out any more: the plug was pulled.
    Unplugged,
    /// The path is cut without a word; another one leads to the same agent.
    Rerouted,
    /// The agent's connections are closed.
    Closed,
    /// The one stream is reset.
    Reset,
    /// The engine fails.
    EngineFails,
    /// The engine's stream ends too early.
    EngineEnds,
}

const KINDS: [Kind; 7] = [
    Kind::Killed,
    Kind::Unplugged,
    Kind::Rerouted,
    Kind::Closed,
    Kind::Reset,
    Kind::EngineFails,
    Kind::EngineEnds,
];

/// What is drawn for one answer.
#[derive(Clone, Copy, Debug)]
struct Draw {
    /// Also its session, of which its text is a function.
    answer: u64,
    tokens: u32,
    /// After so many tokens; 0 is before the first.
    at: u32,
    kind: Kind,
    down: Duration,
}

impl Draw {
    fn new(answer: u64, random: &mut impl Rng) -> Self {
        let tokens = random.random_range(TOKENS);
        Draw {
            answer,
            tokens,
            at: random.random_range(0..tokens),
            kind: KINDS[random.random_range(0..KINDS.len())],
            down: Duration::from_millis(random.random_range(DOWN_MS)),
        }
    }
}

/// One machine.
struct Host {
    credentials: Credentials,
    engine: EngineDouble,
    server: Server,
    /// The only path to it.
    path: PathDouble,
    restarts: u64,
}

impl Host {
    async fn start(credentials: Credentials, engine: EngineDouble, restarts: u64) -> Self {
        let config = ServeConfig::default();
        let server = Server::restart(credentials.clone(), &[&engine], config).await;
        server.keep_connections();
        Host {
            path: PathDouble::to(server.addr).await,
            credentials,
            engine,
            server,
            restarts,
        }
    }

    async fn again(self, down: Duration) -> Self {
        let (credentials, engine, restarts) = (self.credentials, self.engine, self.restarts);
        self.server.crash().await;
        tokio::time::sleep(down).await;
        Host::start(credentials, engine, restarts + 1).await
    }
}

struct Home {
    /// Each is taken out while it is down.
    hosts: Vec<(NodeId, Mutex<Option<Host>>)>,
    /// At most one machine is down.
    one: Mutex<()>,
    script: Script,
    tap: Tap,
    client: MeshClient,
    table: watch::Sender<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Home {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let script = Script {
            tokens: TOKENS.end,
            delay: PACE,
            first_delay: PACE,
            slots: 2 * TOGETHER as u16,
            halves: 8,
            ..Script::default()
        };
        let (mut hosts, mut peers) = (Vec::new(), Vec::new());
        for name in ["desk", "laptop", "tower"] {
            let engine = EngineDouble::new(name, script.clone());
            let host = Host::start(mesh.member(Role::Agent), engine, 0).await;
            peers.push(peer(&host.server, &[host.path.addr], RTT));
            hosts.push((host.server.node, Mutex::new(Some(host))));
        }
        let table = watch::Sender::new(table(peers));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = transport(&mesh, &table, &tasks, &stop);
        // As an agent: every peer is kept connected and probed.
        transport.0.warm_all(true);
        let tap = Tap::new(transport);
        let client = MeshClient::over(table.subscribe(), Arc::new(tap.clone()));
        Home {
            hosts,
            one: Mutex::new(()),
            script,
            tap,
            client,
            table,
            tasks,
            stop,
        }
    }

    fn script(&self, draw: &Draw) -> Script {
        Script {
            tokens: draw.tokens,
            ..self.script.clone()
        }
    }

    /// Strikes `node`, or only what it does for one answer.
    async fn strike(&self, draw: &Draw, node: NodeId) {
        let (_, host) = self.hosts.iter().find(|(n, _)| *n == node).unwrap();
        let error = || EngineError::Failed {
            engine: "double".to_owned(),
            reason: "struck".to_owned(),
        };
        let _one = self.one.lock().await;
        let mut place = host.lock().await;
        let mut host = place.take().unwrap();
        match draw.kind {
            Kind::Killed => host = host.again(draw.down).await,
            Kind::Unplugged => {
                host.path.cut();
                host = host.again(draw.down).await;
            }
            Kind::Rerouted => {
                host.path.cut();
                host.path = PathDouble::to(host.server.addr).await;
            }
            Kind::Closed => host.server.hang_up(),
            Kind::Reset => self.tap.reset(draw.answer),
            Kind::EngineFails => host.engine.strike(draw.answer, Failure::Error(error())),
            Kind::EngineEnds => host.engine.strike(draw.answer, Failure::EndEarly),
        }
        if matches!(draw.kind, Kind::Killed | Kind::Unplugged | Kind::Rerouted) {
            let mut peer = Peer::clone(&peer(&host.server, &[host.path.addr], RTT));
            Arc::make_mut(&mut peer.advert).epoch += host.restarts;
            self.publish(Arc::new(peer));
        }
        *place = Some(host);
    }

    fn publish(&self, new: Arc<Peer>) {
        self.table.send_modify(|now| {
            let mut next = Snapshot::clone(now);
            next.version += 1;
            for peer in &mut next.peers {
                if peer.advert.node == new.advert.node {
                    *peer = Arc::clone(&new);
                }
            }
            *now = Arc::new(next);
        });
    }

    /// Asks, strikes and reads to the end.
    async fn answer(&self, draw: Draw) -> Told {
        let mut request = Request::chat("double", "[]");
        request.session = draw.answer;
        request.sampling.max_tokens = Some(draw.tokens);
        let mut generation = self.client.generate(request);
        let (now, struck) = oneshot::channel();
        let strike = async {
            if let Ok(node) = struck.await {
                self.strike(&draw, node).await;
            }
        };
        let read = async {
            let (mut told, mut now) = (Told::default(), Some(now));
            loop {
                if told.frames >= draw.at
                    && let Some(now) = now.take()
                {
                    // Before the first token it is who was asked.
                    let node = told.node.or_else(|| self.tap.asked(draw.answer));
                    now.send(node.unwrap()).unwrap();
                }
                match timeout(PATIENCE, generation.next()).await {
                    Ok(Some(event)) => told.take(event),
                    Ok(None) => return told,
                    Err(_) => {
                        told.wrong(format!("nothing for {PATIENCE:?}"));
                        return told;
                    }
                }
            }
        };
        let (mut told, ()) = tokio::join!(read, strike);
        self.tap.forget(draw.answer);
        told.judge(&self.script(&draw).answer(draw.answer));
        told
    }

    async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait())
            .await
            .expect("the client's tasks end");
        for (_, host) in self.hosts {
            let host = host.into_inner().unwrap();
            timeout(PATIENCE, host.engine.until(|seen| seen.running == 0))
                .await
                .expect("no engine works for nobody");
            host.server.shutdown().await;
        }
    }
}

/// One answer as it arrived.
#[derive(Clone, Default)]
struct Told {
    text: String,
    frames: u32,
    /// Who answers.
    node: Option<NodeId>,
    last: Option<Instant>,
    gap: Duration,
    changes: Vec<String>,
    ends: Vec<String>,
    whole: bool,
    wrong: String,
}

impl Told {
    fn wrong(&mut self, what: impl std::fmt::Display) {
        let _ = writeln!(self.wrong, "  {what}");
    }

    fn take(&mut self, event: Event) {
        if !self.ends.is_empty() {
            self.wrong(format!("after the end: {event:?}"));
        }
        match event {
            Event::Started { peer, .. } => self.node = Some(peer.node),
            Event::Token { index, text, .. } => {
                if index != self.frames {
                    self.wrong(format!("token {index} in place of {}", self.frames));
                }
                self.frames += 1;
                self.text.push_str(&text);
                let now = Instant::now();
                let gap = self.last.map(|last| now - last).unwrap_or_default();
                self.gap = self.gap.max(gap);
                self.last = Some(now);
            }
            Event::PeerChanged {
                to, seam, reason, ..
            } => {
                self.node = Some(to.node);
                self.changes.push(format!("{seam:?}: {reason}"));
            }
            Event::Done { .. } => {
                self.whole = true;
                self.ends.push("done".to_owned());
            }
            Event::Failed(error) => self.ends.push(error.to_string()),
            Event::Progress { .. } => {}
        }
    }

    fn judge(&mut self, expected: &str) {
        if self.ends.len() != 1 || !self.whole {
            self.wrong(format!("ended with {:?}", self.ends));
        }
        for change in &self.changes {
            if !change.starts_with("Exact") {
                let _ = writeln!(self.wrong, "  {change}");
            }
        }
        if self.text != expected {
            let text = self.text.clone();
            self.wrong(format!("said {text:?}\n  not  {expected:?}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_kills_lose_nothing() {
    let (count, seed) = (
        setting("UNAMESH_KILLS", 1000),
        setting("UNAMESH_SEED", rand::random()),
    );
    println!("UNAMESH_KILLS={count} UNAMESH_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let draws: Vec<Draw> = (1..=count).map(|n| Draw::new(n, &mut random)).collect();
    let started = Instant::now();
    let homes = (0..HOMES).map(|home| {
        let mine = draws.iter().filter(move |draw| draw.answer % HOMES == home);
        live(mine.copied().collect())
    });
    let told = join_all(homes).await.concat();
    let took = started.elapsed();
    report(&told, took);
    let wrong: String = told
        .iter()
        .filter(|(_, told)| !told.wrong.is_empty())
        .map(|(draw, told)| format!("{draw:?} {:?}\n{}", told.changes, told.wrong))
        .collect();
    assert!(wrong.is_empty(), "UNAMESH_SEED={seed}:\n{wrong}");
}

/// The answers of one home.
async fn live(draws: Vec<Draw>) -> Vec<(Draw, Told)> {
    let home = Home::start().await;
    let told = stream::iter(draws)
        .map(async |draw| (draw, home.answer(draw).await))
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    home.shutdown().await;
    told
}

fn report(told: &[(Draw, Told)], took: Duration) {
    println!("{} answers in {took:.1?}", told.len());
    let mut kinds: BTreeMap<Kind, (usize, Samples)> = BTreeMap::new();
    let mut seams: BTreeMap<&str, usize> = BTreeMap::new();
    for (draw, told) in told {
        let (changes, gaps) = kinds.entry(draw.kind).or_default();
        *changes += told.changes.len();
        gaps.push(told.gap);
        for change in &told.changes {
            *seams.entry(change).or_default() += 1;
        }
    }
    for (kind, (changes, gaps)) in kinds {
        println!("{kind:?}: {changes} changes of peer; largest gap of each: {gaps}");
    }
    for (seam, count) in seams {
        println!("{count:5} {seam}");
    }
    let clean = told
        .iter()
        .filter(|(_, told)| told.wrong.is_empty())
        .count();
    println!("whole and exact: {clean} of {}", told.len());
}
