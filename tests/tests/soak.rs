//! The soak: three hosts in the lab, sixteen chat clients at the desk, and a drawn fault every
//! five seconds at one of the two hosts that answer. Every answer must be whole, every wait
//! within its bound, and the desk, which lives through all of it, must not grow.
//!
//! Three minutes by default. `UNAMESH_SOAK_S` is the length in seconds, `UNAMESH_SEED` draws
//! the same faults and requests again. The whole soak, half an hour:
//!
//! ```sh
//! UNAMESH_SOAK_S=1800 cargo test --release --package unamesh-tests --test soak -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use unamesh_proto::timeouts;
use unamesh_tests::agent::program;
use unamesh_tests::home::Watch;
use unamesh_tests::http::Server;
use unamesh_tests::measure::{setting, until};
use unamesh_tests::soak::Pair;
use unamesh_tests::soak::chat::{Api, Chat, End};
use unamesh_tests::soak::faults::{BENCH, Fault};
use unamesh_tests::soak::tally::{Tally, kinds};
use unamesh_tests::soak::vitals::Patient;

const CLIENTS: u64 = 16;
/// Both hosts together have room for all clients, and each alone has too.
const SLOTS: u16 = 32;
/// From the beginning of one fault to that of the next.
const EVERY: Duration = Duration::from_secs(5);
/// A client that got an error asks again after this.
const PAUSE: Duration = Duration::from_millis(200);
/// Nothing that a client waits for may take longer. On a machine so busy that live peers seem
/// silent the hedges are spent, and one that is dead is only found out by `SILENCE_SURE`; then
/// another is dialed.
const BOUND: Duration = timeouts::SILENCE_SURE.saturating_add(timeouts::DIAL);
/// Of a hundred answers the slowest waits about so long: an engine's stall that nobody has
/// learned yet, and the backup after it.
const USUAL: Duration = timeouts::STALL_MIN.saturating_mul(2);
/// A host that has just come back answers within this.
const COMES_BACK: Duration = Duration::from_secs(3);
/// The desk's cable is out for so long.
const CUT_OFF: Duration = Duration::from_secs(3);
/// So often both hosts are killed, one after the other.
const ROUNDS: usize = 10;
/// Nobody is left for so long.
const OUTAGE: Duration = Duration::from_secs(15);
/// An answer whose peers are gone ends within this: their connections break (`IDLE`), the
/// attempts that are left dial in vain (`DIAL`), nobody comes (`WAIT_FOR_PEER`).
const GIVES_UP: Duration = Duration::from_secs(15);
/// A wait that a test does not sit out.
const HANGS: Duration = Duration::from_secs(30);
/// The desk's memory may grow by this after it has warmed up.
const GROWTH_KB: u64 = 5 * 1024;
/// It has warmed up after this, or after a third of the soak.
const WARM: Duration = Duration::from_secs(300);
/// Descriptors of an idle desk that may come and go: connections to peers.
const SPARE_FILES: usize = 8;
/// Backups beside an engine that only looked hung, of all requests.
const HEDGES: f64 = 0.1;

fn bench_engine(port: u16) -> Vec<String> {
    let program = program().to_str().unwrap().to_owned();
    let listen = format!("127.0.0.1:{port}");
    let words = [&program, "bench", "engine", "--listen", &listen];
    words.map(str::to_owned).to_vec()
}

/// Sixteen clients that ask until told to stop.
struct Clients {
    tally: Arc<Mutex<Tally>>,
    until: Instant,
    tasks: JoinSet<()>,
}

impl Clients {
    fn start(desk: &Server, seed: u64, until: Instant) -> Self {
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let mut tasks = JoinSet::new();
        for client in 0..CLIENTS {
            let (desk, tally) = (desk.clone(), Arc::clone(&tally));
            let mut random = ChaCha8Rng::seed_from_u64(seed ^ (client + 1));
            tasks.spawn(async move {
                while Instant::now() < until {
                    let chat = Chat::draw(&mut random);
                    let told = chat.ask(&desk, HANGS).await;
                    let pause = told.end != End::Done;
                    tally.lock().unwrap().take(chat, told);
                    if pause {
                        sleep(PAUSE).await;
                    }
                }
            });
        }
        Self {
            tally,
            until,
            tasks,
        }
    }

    async fn ended(mut self) -> Tally {
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.tally.lock().unwrap())
    }
}

/// Faults until the clients stop, each begun when the last one is over and the desk can choose
/// both hosts again.
async fn faults(pair: &mut Pair, patient: &mut Patient, seed: u64, clients: &Clients) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut next = Instant::now() + EVERY;
    while next < clients.until {
        sleep_until(next.into()).await;
        let begun = Instant::now();
        let (fault, host) = Fault::draw(&mut random);
        fault.strike(pair, host).await;
        let whole = pair.whole().await;
        let look = patient.look();
        let wrong = clients.tally.lock().unwrap().wrong.len();
        println!("{look}: {fault:?} at {host}, both again after {whole:.1?}, wrong: {wrong}");
        next = (begun + EVERY).max(Instant::now());
    }
}

/// The desk answers its clients and is well; nobody has panicked.
fn assert_sound(pair: &Pair, tally: &Tally) {
    for agent in &pair.cluster.agents {
        let log = agent.log();
        let panic = log.lines().find(|line| line.contains("panicked"));
        assert_eq!(panic, None, "{}", agent.setup.name);
    }
    assert_eq!(tally.wrong, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_notice_no_fault() {
    let (length, seed) = (
        Duration::from_secs(setting("UNAMESH_SOAK_S", 180)),
        setting("UNAMESH_SEED", rand::random()),
    );
    println!("UNAMESH_SOAK_S={} UNAMESH_SEED={seed}", length.as_secs());
    let Some(mut pair) = Pair::start(BENCH, SLOTS, bench_engine).await else {
        return;
    };
    let desk = pair.cluster.agents[0].gateway();
    let watch = Watch::start(&pair.cluster.agents[0]).await;
    let mut patient = Patient::new(pair.cluster.agents[0].pid().unwrap());
    let idle = patient.look();
    println!("{idle}: idle");

    let clients = Clients::start(&desk, seed, Instant::now() + length);
    faults(&mut pair, &mut patient, seed, &clients).await;
    let tally = clients.ended().await;

    let what = format!("the desk has its {} descriptors again", idle.files);
    until(&what, HANGS, async || match patient.look().files {
        files if files <= idle.files + SPARE_FILES => Ok(()),
        files => Err(format!("now {files}")),
    })
    .await;
    let hedges = pair.cluster.agents[0].api("status").await.unwrap()["hedges"].take();
    let (warm, end) = (patient.since(WARM.min(length / 3)), patient.look());
    print!("{tally}");
    for (kind, count) in kinds(&watch.events()) {
        println!("{count:7} {kind}");
    }
    println!("hedges            {hedges}");
    println!("idle  {idle}\nwarm  {warm}\nend   {end}");

    assert_sound(&pair, &tally);
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    assert!(tally.slowest() <= BOUND, "{:?}", tally.slowest());
    for waits in [&tally.firsts, &tally.gaps] {
        let usual = waits.percentile(0.99);
        assert!(usual <= USUAL, "{usual:?}");
    }
    assert!(
        hedges["wasted_share"].as_f64().unwrap() <= HEDGES,
        "{hedges}"
    );
    let growth = end.rss_kb.saturating_sub(warm.rss_kb);
    assert!(growth <= GROWTH_KB, "the desk grew by {growth} kB");
}

/// When nobody is left, an answer ends with an error that has a code, and what came of it is
/// right; when somebody is back, answers are whole again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_anybody_answers_end_with_typed_errors() {
    let seed = setting("UNAMESH_SEED", rand::random());
    println!("UNAMESH_SEED={seed}");
    let Some(mut pair) = Pair::start(BENCH, SLOTS, bench_engine).await else {
        return;
    };
    let desk = pair.cluster.agents[0].gateway();
    let clients = Clients::start(&desk, seed, Instant::now() + OUTAGE + 3 * EVERY);
    sleep(EVERY).await;
    for host in [1, 2] {
        pair.cluster.agents[host].kill().await;
    }
    sleep(OUTAGE).await;
    for host in [1, 2] {
        pair.cluster.agents[host].start().await;
    }
    println!("both again after {:.1?}", pair.whole().await);
    let tally = clients.ended().await;
    print!("{tally}");
    assert_sound(&pair, &tally);
    assert!(!tally.failed.is_empty(), "somebody answered");
    assert!(tally.slowest() <= GIVES_UP, "{:?}", tally.slowest());
    let last = Chat::draw(&mut ChaCha8Rng::seed_from_u64(seed));
    assert_eq!(last.ask(&desk, HANGS).await.end, End::Done);
}

/// The desk's own cable is out for a while, which to the desk is both hosts falling silent
/// together: answers wait and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_desk_that_was_cut_off_goes_on() {
    let seed = setting("UNAMESH_SEED", rand::random());
    println!("UNAMESH_SEED={seed}");
    let Some(pair) = Pair::start(BENCH, SLOTS, bench_engine).await else {
        return;
    };
    let desk = pair.cluster.agents[0].gateway();
    let watch = Watch::start(&pair.cluster.agents[0]).await;
    let clients = Clients::start(&desk, seed, Instant::now() + 4 * EVERY);
    for _ in 0..2 {
        sleep(EVERY).await;
        pair.lab.cut(0);
        sleep(CUT_OFF).await;
        pair.lab.mend(0);
        println!("both again after {:.1?}", pair.whole().await);
    }
    let tally = clients.ended().await;
    print!("{tally}");
    for (kind, count) in kinds(&watch.events()) {
        println!("{count:7} {kind}");
    }
    assert_sound(&pair, &tally);
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
}

/// A host that was killed is back, and at once the other one is killed: whoever asks then gets
/// an answer from the one that is back, whose engine it had to hear of in the meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_has_just_come_back_stands_in() {
    let Some(mut pair) = Pair::start(BENCH, SLOTS, bench_engine).await else {
        return;
    };
    let desk = pair.cluster.agents[0].gateway();
    let chat = Chat {
        api: Api::OpenAi,
        tokens: 5,
    };
    for round in 0..ROUNDS {
        pair.cluster.agents[2].kill().await;
        pair.cluster.agents[2].start().await;
        pair.cluster.agents[1].kill().await;
        let asked = Instant::now();
        let answers = async || match chat.ask(&desk, HANGS).await.end {
            End::Done => Ok(()),
            other => Err(format!("{other:?}")),
        };
        until("an answer", COMES_BACK, answers).await;
        println!("round {round}: answered after {:.1?}", asked.elapsed());
        pair.cluster.agents[1].start().await;
        pair.cluster.met().await;
        pair.whole().await;
    }
}
