//! Kills on real llama.cpp, at random tokens of real answers, in the lab: the desk asks, and
//! the agent that answers (every fifth time its engine) is killed in the middle. Temperature 0,
//! so the text must be that of the uninterrupted answer to the same prompt.
//!
//! llama.cpp reads a prompt in batches with other kernels than it makes tokens with, unless a
//! batch is at most 32 (`--ubatch 32`, as the starter engines set it): only then is a
//! continuation by another machine the same text at temperature 0. The second test measures
//! llama.cpp's own default beside it, and asserts no share.
//!
//! `UNAMESH_REAL_KILLS` is the number of kills (30; the default configuration gets a fifth);
//! `UNAMESH_SEED` draws the same again. The long run, about six minutes:
//!
//! ```sh
//! UNAMESH_REAL_KILLS=200 cargo test --package unamesh-tests --test real_kills -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use unamesh_tests::cluster::Generation;
use unamesh_tests::measure::{Samples, setting};
use unamesh_tests::real::{MODEL, starter};
use unamesh_tests::soak::Pair;

/// Tokens of an answer at most.
const TOKENS: u32 = 40;
/// Between two events of an answer, on a machine that starts engines meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the answers that have the uninterrupted text.
const SAME: f64 = 0.99;
/// One kill in so many is the engine's.
const ENGINE_EVERY: u64 = 5;

const PROMPTS: [&str; 20] = [
    "Tell me about the sea and foxes.",
    "Why is the sky blue?",
    "Write a short poem about a lighthouse.",
    "List five fruits and a colour for each.",
    "Explain how a bicycle stays upright.",
    "What is the capital of France, and what is it known for?",
    "Say hi with an emoji of a fox and Japanese text 日本語",
    "Count from one to twenty in words.",
    "Give me a recipe for pancakes.",
    "Describe a thunderstorm to somebody who never saw one.",
    "Write a Python function that reverses a list.",
    "What should I pack for a week in the mountains?",
    "Tell a joke about a cat and a printer.",
    "Translate 'good morning' into German, French and Spanish.",
    "How do bees make honey?",
    "Summarise the story of Little Red Riding Hood.",
    "What is a prime number? Give examples.",
    "Write a polite letter to a neighbour about noise.",
    "Name three inventions of the nineteenth century.",
    "Explain photosynthesis to a child.",
];

/// One answer.
#[derive(Default)]
struct Told {
    text: String,
    pieces: u64,
    changes: Vec<Value>,
    done: bool,
    gap: Duration,
}

/// Asks the desk; after `strike.0` pieces the host that answers is struck: its engine if
/// `strike.1`, else its agent. Tells who was.
async fn ask(pair: &mut Pair, prompt: &str, strike: Option<(u64, bool)>) -> (Told, Option<usize>) {
    let body = json!({"model": MODEL, "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": prompt}]});
    let mut generation = Generation::ask(&pair.cluster.agents[0], &body).await;
    let (mut told, mut answering, mut struck) = (Told::default(), None, None);
    let mut last: Option<Instant> = None;
    while let Some(event) = timeout(PATIENCE, generation.next()).await.unwrap() {
        assert!(!told.done, "after the end: {event}");
        match event["event"].as_str().unwrap() {
            "started" => answering = event["peer"]["node"].as_str().map(str::to_owned),
            "token" => {
                assert_eq!(event["index"], told.pieces, "lost, doubled or out of order");
                told.pieces += 1;
                told.text.push_str(event["text"].as_str().unwrap());
                told.gap = told
                    .gap
                    .max(last.map(|at| at.elapsed()).unwrap_or_default());
                last = Some(Instant::now());
            }
            "peer_changed" => {
                answering = event["to"]["node"].as_str().map(str::to_owned);
                told.changes.push(event);
            }
            "done" => told.done = true,
            "failed" => panic!("{event}"),
            _ => {}
        }
        if let Some((at, engine)) = strike
            && told.pieces >= at
            && struck.is_none()
        {
            let host = pair.cluster.index_of(answering.as_ref().unwrap());
            struck = Some(host);
            if engine {
                pair.engine(host).kill().await;
            } else {
                pair.cluster.agents[host].kill().await;
            }
        }
    }
    assert!(told.done, "it ended without an end");
    (told, struck)
}

/// What came of the kills.
#[derive(Default)]
struct Outcome {
    kills: u64,
    same: u64,
    seams: BTreeMap<String, usize>,
    gaps: Samples,
}

async fn kills(extra: &[&str], count: u64, seed: u64) -> Option<Outcome> {
    let starter = starter().await;
    let extra: Vec<String> = extra.iter().map(|&word| word.to_owned()).collect();
    let line = |port| starter.command(port, &extra);
    let mut pair = Pair::start(MODEL, 0, line).await?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut whole = Vec::new();
    for prompt in PROMPTS.iter().take(usize::try_from(count).unwrap()) {
        whole.push(ask(&mut pair, prompt, None).await.0);
    }
    let mut outcome = Outcome::default();
    for kill in 0..count {
        let number = usize::try_from(kill).unwrap() % PROMPTS.len();
        let (prompt, whole) = (PROMPTS[number], &whole[number]);
        let at = random.random_range(1..whole.pieces);
        let engine = kill % ENGINE_EVERY == ENGINE_EVERY - 1;
        let (told, host) = ask(&mut pair, prompt, Some((at, engine))).await;
        let host = host.unwrap();
        outcome.take(kill, prompt, at, whole, &told);
        if engine {
            pair.engine(host).again().await;
        } else {
            pair.cluster.agents[host].start().await;
        }
        pair.whole().await;
    }
    Some(outcome)
}

impl Outcome {
    fn take(&mut self, kill: u64, prompt: &str, at: u64, whole: &Told, told: &Told) {
        self.kills += 1;
        self.gaps.push(told.gap);
        for change in &told.changes {
            let seam = format!("{}: {}", change["seam"], change["reason"]);
            *self.seams.entry(seam).or_default() += 1;
        }
        if told.text == whole.text {
            self.same += 1;
            return;
        }
        let pairs = whole.text.char_indices().zip(told.text.chars());
        let same = pairs.take_while(|((_, a), b)| a == b).count();
        let rest = |text: &str| text.chars().skip(same).take(30).collect::<String>();
        println!(
            "kill {kill}, {prompt:?}, at piece {at} of {}: after {same} characters {:?} instead of \
             {:?}; {:?}",
            whole.pieces,
            rest(&told.text),
            rest(&whole.text),
            told.changes
        );
    }

    fn report(&self, name: &str) {
        println!("{name}: the same text in {} of {}", self.same, self.kills);
        println!("{name}: largest pause of each answer: {}", self.gaps);
        for (seam, count) in &self.seams {
            println!("{name}: {count:4} {seam}");
        }
    }
}

fn drawn() -> (u64, u64) {
    let drawn = (
        setting("UNAMESH_REAL_KILLS", 30),
        setting("UNAMESH_SEED", rand::random()),
    );
    println!("UNAMESH_REAL_KILLS={} UNAMESH_SEED={}", drawn.0, drawn.1);
    drawn
}

#[tokio::test]
async fn kills_on_llama_cpp_change_no_text() {
    let (count, seed) = drawn();
    let Some(outcome) = kills(&[], count, seed).await else {
        return;
    };
    outcome.report("--ubatch 32");
    assert!(outcome.same as f64 >= SAME * count as f64);
}

#[tokio::test]
async fn the_default_batch_of_llama_cpp_for_comparison() {
    let (count, seed) = drawn();
    let Some(outcome) = kills(&["--ubatch", "0"], count.div_ceil(5), seed).await else {
        return;
    };
    outcome.report("default batch");
}
