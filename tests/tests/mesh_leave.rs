//! Machines that leave on purpose: the lid closes, the process is told to end, its owner wants a
//! pause, the battery runs low. Real processes; what a client sees of each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use unamesh_agent::power::{KEEP_AWAKE_AFTER, POWER_POLL, SLEEP_DRAIN};
use unamesh_tests::cluster::{Cluster, Generation, Setup};
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::doubles::{FakeLogind, ScriptEngine};
use unamesh_tests::http::Reply;
use unamesh_tests::measure::{Samples, until};

const ROUNDS: usize = 10;
/// The largest gap between two tokens of an answer, in times of the 99th percentile of the gaps
/// of answers that nothing disturbed meanwhile.
const LARGEST_GAP: u32 = 2;
/// The share of answers that must keep to it.
const KEPT: f64 = 0.95;
/// From the last stream's move to the end of the inhibitor: a goodbye, said three times.
const RELEASE: Duration = Duration::from_millis(500);
/// From the wake until others choose the machine again.
const BACK: Duration = Duration::from_secs(1);
/// From SIGTERM to the end of the process, an answer handed over on the way.
const EXIT: Duration = Duration::from_secs(2);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A desk without an engine, and two machines with one each.
struct Mesh {
    cluster: Cluster,
    script: Script,
    engines: [ScriptEngine; 2],
}

impl Mesh {
    /// `wrappers`: the command lines before the two machines' agents; `config`: lines for both.
    async fn start(wrappers: [Vec<String>; 2], config: &str) -> Self {
        Self::start_with(Setup::new("desk"), wrappers, config, 100).await
    }

    /// The same with this desk, and answers of `tokens` tokens.
    async fn start_with(
        desk: Setup,
        wrappers: [Vec<String>; 2],
        config: &str,
        tokens: usize,
    ) -> Self {
        let script = Script {
            tokens,
            pace: Duration::from_millis(20),
            ..Script::default()
        };
        let engines = [
            ScriptEngine::start(script.clone()).await,
            ScriptEngine::start(script.clone()).await,
        ];
        let machine = |index: usize, name: &str| {
            let mut setup = Setup::new(name).engine(engines[index].addr);
            setup.wrapper.clone_from(&wrappers[index]);
            config.clone_into(&mut setup.config);
            setup
        };
        let setups = vec![desk, machine(0, "laptop"), machine(1, "tower")];
        let cluster = Cluster::start(setups).await;
        let mesh = Self {
            cluster,
            script,
            engines,
        };
        mesh.all_chosen().await;
        mesh
    }

    async fn all_chosen(&self) -> Duration {
        self.cluster.chooses(0, &self.script.model, &[1, 2]).await
    }

    async fn ask(&self) -> Answer {
        self.ask_at(0).await
    }

    async fn ask_at(&self, asked: usize) -> Answer {
        let asked = &self.cluster.agents[asked];
        Answer::new(Generation::start(asked, &self.script.model, "Count.").await)
    }
}

/// Gaps between tokens: all of undisturbed answers, the largest of each disturbed one.
#[derive(Default)]
struct Gaps {
    normal: Samples,
    largest: Samples,
}

impl Gaps {
    /// An answer that nothing disturbs.
    async fn undisturbed(&mut self, mesh: &Mesh) {
        let mut answer = mesh.ask().await;
        answer.read(mesh, usize::MAX).await;
        answer.gaps.iter().for_each(|gap| self.normal.push(*gap));
    }

    fn judge(&self, what: &str) {
        let normal = self.normal.percentile(0.99);
        println!("{what}: largest gap of each answer: {}", self.largest);
        println!("{what}: undisturbed: {}; p99 {normal:.1?}", self.normal);
        let kept = self.largest.percentile(KEPT);
        assert!(
            kept <= normal * LARGEST_GAP,
            "{what}: {kept:?}, normally {normal:?}"
        );
    }
}

/// What a client saw of one answer so far.
struct Answer {
    generation: Generation,
    text: String,
    tokens: usize,
    gaps: Vec<Duration>,
    last: Option<Instant>,
    /// Who answers (index in the cluster).
    answering: usize,
    moved: Option<Instant>,
    end: Option<Value>,
}

impl Answer {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            text: String::new(),
            tokens: 0,
            gaps: Vec::new(),
            last: None,
            answering: 0,
            moved: None,
            end: None,
        }
    }

    /// Reads until it has `tokens` tokens or its end.
    async fn read(&mut self, mesh: &Mesh, tokens: usize) {
        let index = |peer: &Value| mesh.cluster.index_of(peer["node"].as_str().unwrap());
        while self.tokens < tokens {
            let next = timeout(PATIENCE, self.generation.next()).await.unwrap();
            let Some(event) = next else { return };
            match event["event"].as_str().unwrap() {
                "started" => self.answering = index(&event["peer"]),
                "peer_changed" => {
                    self.answering = index(&event["to"]);
                    self.moved = Some(Instant::now());
                }
                "token" => {
                    assert_eq!(event["index"], self.tokens, "in order, none twice");
                    self.tokens += 1;
                    self.text.push_str(event["text"].as_str().unwrap());
                    let now = Instant::now();
                    self.gaps.extend(self.last.map(|last| now - last));
                    self.last = Some(now);
                }
                "done" | "failed" => self.end = Some(event),
                _ => {}
            }
        }
    }

    /// Reads to the end: whole, and moved.
    async fn goes_on(&mut self, mesh: &Mesh, gaps: &mut Gaps) {
        let from = self.answering;
        self.read(mesh, usize::MAX).await;
        let log = || mesh.cluster.agents[from].log();
        assert_eq!(self.text, mesh.script.answer(), "{:?}", self.end);
        assert_eq!(self.end.as_ref().unwrap()["event"], "done");
        assert!(self.moved.is_some() && self.answering != from, "{}", log());
        gaps.largest.push(*self.gaps.iter().max().unwrap());
    }
}

/// The local API's events of one agent.
struct Events(Reply);

impl Events {
    async fn of(agent: &unamesh_tests::agent::Agent) -> Self {
        let reply = agent.gateway().send("/unamesh/v1/events", None).await;
        Self(reply.unwrap())
    }

    /// The next event called `name`.
    async fn next(&mut self, name: &str) -> Value {
        let found = async {
            loop {
                let line = self.0.line().await.unwrap().unwrap();
                let Some(text) = line.strip_prefix("data: ") else {
                    continue;
                };
                let event: Value = serde_json::from_str(text).unwrap();
                if event["event"] == name {
                    return event;
                }
            }
        };
        let waited = timeout(PATIENCE, found).await;
        waited.unwrap_or_else(|_| panic!("no event {name}"))
    }
}

async fn state(mesh: &Mesh, index: usize) -> Value {
    mesh.cluster.agents[index].api("status").await.unwrap()
}

/// What the desk lists of a machine; null if it does not.
async fn listed(mesh: &Mesh, index: usize) -> Value {
    let peers = mesh.cluster.agents[0].api("peers").await.unwrap();
    let node = mesh.cluster.agents[index].node();
    let found = peers.as_array().unwrap().iter().find(|p| p["node"] == node);
    found.cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_lid_that_closes_mid_answer_is_not_felt() {
    let logind = [FakeLogind::start().await, FakeLogind::start().await];
    let wrappers = [logind[0].wrapper(), logind[1].wrapper()];
    let mesh = Mesh::start(wrappers, "").await;
    let mut gaps = Gaps::default();
    let (mut released, mut back) = <(Samples, Samples)>::default();
    for round in 0..ROUNDS {
        gaps.undisturbed(&mesh).await;
        let mut answer = mesh.ask().await;
        answer.read(&mesh, 10 + 7 * round).await;
        let lid = answer.answering;
        let (logind, agent) = (&logind[lid - 1], &mesh.cluster.agents[lid]);
        let mut events = Events::of(agent).await;
        let epoch = state(&mesh, lid).await["epoch"].as_u64().unwrap();
        timeout(PATIENCE, logind.until_held("delay", 1))
            .await
            .unwrap();

        let closed = Instant::now();
        logind.prepare_for_sleep(true).await;
        answer.goes_on(&mesh, &mut gaps).await;
        assert_eq!(events.next("sleeping").await["active"], 1);
        assert_eq!(events.next("draining").await["why"], "sleep");
        timeout(PATIENCE, logind.until_held("delay", 0))
            .await
            .unwrap();
        let release = logind.inhibitors().last().unwrap().released.unwrap();
        released.push(release.saturating_duration_since(answer.moved.unwrap()));
        assert!(release - closed < SLEEP_DRAIN, "{:?}", release - closed);
        let gone = listed(&mesh, lid).await;
        assert!(gone.is_null(), "asleep, and still listed: {gone}");

        let opened = Instant::now();
        logind.prepare_for_sleep(false).await;
        mesh.all_chosen().await;
        back.push(opened.elapsed());
        assert_eq!(events.next("woke").await["noticed_by"], "system");
        events.next("returned").await;
        let renewed = listed(&mesh, lid).await["epoch"].as_u64().unwrap();
        assert!(renewed > epoch, "{renewed} after {epoch}");
    }
    gaps.judge("lid");
    println!("lid: inhibitor closed after the move: {released}");
    println!("wake: chosen again: {back}");
    assert!(released.percentile(1.0) <= RELEASE, "{released}");
    assert!(back.percentile(1.0) <= BACK, "{back}");
}

#[tokio::test]
async fn sigterm_mid_answer_is_not_felt() {
    let mut mesh = Mesh::start(Default::default(), "").await;
    let (mut gaps, mut exits) = <(Gaps, Samples)>::default();
    for round in 0..ROUNDS {
        gaps.undisturbed(&mesh).await;
        let mut answer = mesh.ask().await;
        answer.read(&mesh, 10 + 7 * round).await;
        let leaving = answer.answering;
        let told = Instant::now();
        mesh.cluster.agents[leaving].signal(Signal::TERM);
        answer.goes_on(&mesh, &mut gaps).await;
        let status = mesh.cluster.agents[leaving].ended().await;
        assert!(status.success(), "{status}");
        exits.push(told.elapsed());
        mesh.cluster.agents[leaving].start().await;
        mesh.all_chosen().await;
    }
    gaps.judge("SIGTERM");
    println!("SIGTERM: the answer is over and the process has ended: {exits}");
}

/// Tokens of an answer that takes longer than an agent waits for its tasks to end.
const LONG: usize = 350;

/// A mesh that gives long answers, and time for them at SIGTERM.
async fn patient() -> Mesh {
    let serve = "[serve]\ndrain_ms = 30000\n";
    let mut desk = Setup::new("desk");
    serve.clone_into(&mut desk.config);
    // Below the engine's table: one that stays has room for what moves to it.
    let config = format!("slots = 2\n{serve}");
    Mesh::start_with(desk, Default::default(), &config, LONG).await
}

#[tokio::test]
async fn those_who_leave_finish_the_answers_of_their_own_applications() {
    let mut mesh = patient().await;
    let (desk, laptop) = (0, 1);
    for by_signal in [true, false] {
        // One is computed by the application's own machine, and moves by the leave; the other
        // one elsewhere all the time.
        let mut own = mesh.ask_at(laptop).await;
        own.read(&mesh, 10).await;
        assert_eq!(own.answering, laptop, "its own engine is the nearest");
        let mut other = mesh.ask().await;
        other.read(&mesh, 10).await;
        for index in [laptop, desk] {
            let agent = &mesh.cluster.agents[index];
            if by_signal {
                agent.signal(Signal::TERM);
            } else {
                agent.run(&["drain", "--deadline", "30s"]).await.unwrap();
            }
        }
        let mut gaps = Gaps::default();
        tokio::join!(own.goes_on(&mesh, &mut gaps), other.read(&mesh, usize::MAX));
        assert_eq!(other.text, mesh.script.answer(), "{:?}", other.end);
        for index in [laptop, desk] {
            let over = Instant::now();
            let status = mesh.cluster.agents[index].ended().await;
            assert!(status.success() && over.elapsed() < EXIT, "{status}");
            mesh.cluster.agents[index].start().await;
        }
        mesh.cluster.met().await;
        mesh.all_chosen().await;
    }
}

#[tokio::test]
async fn at_the_deadline_a_leaving_desk_says_what_was_delivered() {
    let mut mesh = patient().await;
    // Not by a command: a busy machine takes long to start one.
    let drain = json!({"deadline_ms": 300});
    let mut answer = mesh.ask().await;
    answer.read(&mesh, 20).await;
    let gateway = mesh.cluster.agents[0].gateway();
    let drained = gateway.json("/unamesh/v1/drain", Some(&drain)).await;
    drained.unwrap();
    answer.read(&mesh, usize::MAX).await;
    let error = &answer.end.as_ref().expect("a silent end")["error"];
    assert_eq!(error["code"], "interrupted", "{:?}", answer.end);
    assert_eq!(error["delivered_tokens"], answer.tokens);
    assert!(mesh.script.answer().starts_with(&answer.text));
    assert!(mesh.cluster.agents[0].ended().await.success());

    mesh.cluster.agents[0].start().await;
    mesh.all_chosen().await;
    let desk = &mesh.cluster.agents[0];
    let body = json!({"model": mesh.script.model, "stream": true, "temperature": 0,
        "messages": [{"role": "user", "content": "Count."}]});
    let gateway = desk.gateway();
    let chunks = gateway.send("/v1/chat/completions", Some(&body)).await;
    let (mut chunks, mut last) = (chunks.unwrap(), String::new());
    let drained = gateway.json("/unamesh/v1/drain", Some(&drain)).await;
    drained.unwrap();
    while let Some(line) = timeout(PATIENCE, chunks.line()).await.unwrap().unwrap() {
        last = line;
    }
    let last = last.strip_prefix("data: ").unwrap();
    let last: Value = serde_json::from_str(last).expect("an error is no [DONE]");
    assert_eq!(last["error"]["code"], "interrupted", "{last}");
    assert!(mesh.cluster.agents[0].ended().await.success());
}

#[tokio::test]
async fn an_idle_agent_ends_at_once() {
    let mut mesh = Mesh::start(Default::default(), "").await;
    let told = Instant::now();
    let status = mesh.cluster.agents[1].terminate().await;
    println!("SIGTERM, idle: ended after {:?}", told.elapsed());
    assert!(
        status.success() && told.elapsed() < EXIT,
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn a_pause_ends_by_itself_or_when_told() {
    let mut mesh = Mesh::start(Default::default(), "").await;
    let mut gaps = Gaps::default();
    let mut answer = mesh.ask().await;
    answer.read(&mesh, 20).await;
    let pausing = answer.answering;
    let other = 3 - pausing;
    let agent = &mesh.cluster.agents[pausing];
    assert!(agent.run(&["drain", "--stop"]).await.is_err(), "no pause");

    let reply = agent.run(&["drain", "--for", "10m"]).await.unwrap();
    assert_eq!(reply["state"], "draining");
    answer.goes_on(&mesh, &mut gaps).await;
    let status = state(&mesh, pausing).await;
    assert_eq!(status["draining"]["why"], "asked");
    assert_eq!(status["draining"]["returns"], true);
    let left = status["draining"]["left_ms"].as_u64().unwrap();
    assert!((500_000..600_000).contains(&left), "{left}");
    mesh.cluster.chooses(0, &mesh.script.model, &[other]).await;
    assert_eq!(listed(&mesh, pausing).await["state"], "draining");

    let reply = agent.run(&["drain", "--stop"]).await.unwrap();
    assert_eq!(
        (&reply["state"], &reply["draining"]),
        (&"up".into(), &Value::Null)
    );
    let back = mesh.all_chosen().await;
    assert!(back < BACK, "{back:?}");

    let mut events = Events::of(agent).await;
    agent.run(&["drain", "--for", "1s"]).await.unwrap();
    assert_eq!(events.next("draining").await["returns"], true);
    events.next("returned").await;
    mesh.all_chosen().await;

    // A leave in the middle of a pause is for good.
    agent.run(&["drain", "--for", "10m"]).await.unwrap();
    let status = mesh.cluster.agents[pausing].terminate().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_machine_stays_awake_while_it_answers() {
    let logind = FakeLogind::start().await;
    let wrappers = [logind.wrapper(), logind.wrapper()];
    let mesh = Mesh::start(wrappers, "[power]\nkeep_awake = true\n").await;
    assert_eq!(logind.held("block"), 0, "nothing to do");
    let mut answer = mesh.ask().await;
    answer.read(&mesh, 5).await;
    timeout(BACK, logind.until_held("block", 1)).await.unwrap();
    answer.read(&mesh, usize::MAX).await;
    let over = Instant::now();
    let inhibitors = logind.inhibitors();
    let lock = inhibitors.iter().find(|i| i.mode == "block").unwrap();
    assert_eq!(
        (lock.what.as_str(), lock.who.as_str()),
        ("sleep:idle", "UnaMesh")
    );
    timeout(PATIENCE, logind.until_held("block", 0))
        .await
        .unwrap();
    let after = over.elapsed();
    println!("keep_awake: released {after:?} after the answer");
    assert!(after + BACK > KEEP_AWAKE_AFTER && after < KEEP_AWAKE_AFTER + BACK);
}

#[tokio::test]
async fn without_a_bus_that_is_said_once() {
    let nowhere = || ["env", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus"];
    let wrapper = || nowhere().map(str::to_owned).to_vec();
    let config = "[power]\nkeep_awake = true\n";
    let mesh = Mesh::start([wrapper(), wrapper()], config).await;
    let mut answer = mesh.ask().await;
    answer.read(&mesh, usize::MAX).await;
    assert_eq!(answer.text, mesh.script.answer());
    let log = mesh.cluster.agents[answer.answering].log();
    for words in ["no word of sleep", "may fall asleep"] {
        assert_eq!(log.matches(words).count(), 1, "{words:?} in\n{log}");
    }
}

/// A command line that shows its program the tree `sys` as `/sys`.
fn with_sys(sys: &Path) -> Vec<String> {
    let script = r#"mount --bind "$0" /sys && exec "$@""#;
    let words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        sys.to_str().unwrap(),
    ];
    words.map(str::to_owned).to_vec()
}

#[tokio::test]
async fn a_low_battery_sends_answers_elsewhere() {
    let sys = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = sys.path().join("class/power_supply").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (path, text) in [
        ("AC/type", "Mains\n"),
        ("AC/online", "0\n"),
        ("BAT0/type", "Battery\n"),
        ("BAT0/capacity", "80\n"),
        ("BAT0/status", "Discharging\n"),
    ] {
        write(path, text);
    }
    let mesh = Mesh::start([with_sys(sys.path()), Vec::new()], "").await;
    let laptop = &mesh.cluster.agents[1];
    let mut events = Events::of(laptop).await;
    write("BAT0/capacity", "14\n");
    let began = Instant::now();
    assert_eq!(events.next("draining").await["why"], "battery");
    assert!(began.elapsed() < POWER_POLL + BACK, "{:?}", began.elapsed());
    mesh.cluster.chooses(0, &mesh.script.model, &[2]).await;
    let status = state(&mesh, 1).await;
    assert_eq!(status["draining"]["left_ms"], Value::Null);
    write("AC/online", "1\n");
    write("BAT0/status", "Charging\n");
    events.next("returned").await;
    mesh.all_chosen().await;
}

/// A command line that shows its program a wall clock that is off by what `clock` says.
fn with_clock(clock: &Path) -> Vec<String> {
    std::fs::write(clock, "+0").unwrap();
    let library = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = library
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file())
        .expect("no libfaketime here: apt-get install faketime");
    vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ]
}

#[tokio::test]
async fn a_clock_that_is_set_ends_no_answer() {
    let files = tempfile::tempdir().unwrap();
    let clock = files.path().join("clock");
    let mut desk = Setup::new("desk");
    desk.wrapper = with_clock(&clock);
    let mesh = Mesh::start_with(desk, Default::default(), "", 100).await;
    let mut events = Events::of(&mesh.cluster.agents[0]).await;
    let mut answer = mesh.ask().await;
    answer.read(&mesh, 5).await;
    std::fs::write(&clock, "+10").unwrap();
    assert_eq!(events.next("woke").await["noticed_by"], "clocks");
    answer.read(&mesh, usize::MAX).await;
    assert_eq!(answer.text, mesh.script.answer(), "{:?}", answer.end);
    assert!(answer.moved.is_none(), "its machine was awake all the time");
    let asked: usize = mesh.engines.iter().map(|engine| engine.asked().len()).sum();
    assert_eq!(asked, 1, "nothing was computed again");
}

#[tokio::test]
async fn a_sleep_that_nobody_announced_is_noticed() {
    let files = tempfile::tempdir().unwrap();
    let clock = files.path().join("clock");
    let wrapper = with_clock(&clock);
    let mesh = Mesh::start([wrapper, Vec::new()], "").await;
    let epoch = state(&mesh, 1).await["epoch"].as_u64().unwrap();
    let mut events = Events::of(&mesh.cluster.agents[1]).await;
    std::fs::write(&clock, "+1h").unwrap();
    let woke = events.next("woke").await;
    assert_eq!(woke["noticed_by"], "clocks");
    let slept = woke["slept_ms"].as_u64().unwrap();
    assert!((3_590_000..3_610_000).contains(&slept), "{slept}");
    let renewed = async || {
        let seen = listed(&mesh, 1).await["epoch"].as_u64();
        seen.filter(|seen| *seen > epoch)
            .ok_or("the old epoch".to_owned())
    };
    until("the desk hears the new epoch", BACK, renewed).await;
    mesh.all_chosen().await;
    let mut answer = mesh.ask().await;
    answer.read(&mesh, usize::MAX).await;
    assert_eq!(answer.text, mesh.script.answer());
    assert!(mesh.engines.iter().any(|engine| !engine.asked().is_empty()));
}
