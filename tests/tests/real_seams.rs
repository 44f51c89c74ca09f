//! Answers of a real llama.cpp server that change machine behind an exact piece: what the caller
//! gets is what he would have got without. The network is left out (`direct`), the engines are
//! real; `cut_engine` breaks the first one off, `ollama_over_llama` speaks Ollama's API.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use unamesh_agent::engine::{Engine, EngineSpec, adapter};
use unamesh_agent::starter::RunningEngine;
use unamesh_client::client::{ClientError, Request};
use unamesh_proto::session::Seam;
use unamesh_proto::wire::{EngineKind, FinishReason};
use unamesh_tests::direct::{Direct, Got, chat};
use unamesh_tests::doubles::{CutEngine, OllamaOverLlama};
use unamesh_tests::real::{MODEL, starter};

/// Two engines, the first of which can be cut.
struct Pair {
    first: Arc<CutEngine>,
    second: Arc<CutEngine>,
    mesh: Direct,
}

impl Pair {
    async fn of(first: Arc<dyn Engine>, second: Arc<dyn Engine>) -> Self {
        let (first, second) = (CutEngine::around(first), CutEngine::around(second));
        let both = [&first, &second].map(|e| Arc::clone(e) as Arc<dyn Engine>);
        let mesh = Direct::start(both.into()).await;
        Pair {
            first,
            second,
            mesh,
        }
    }

    /// The answer that breaks off behind `pieces` pieces and goes on at the second engine.
    async fn cut(&self, request: &Request, pieces: usize) -> Got {
        self.first.cut_after(pieces);
        self.mesh.ask(request.clone()).await
    }
}

/// llama.cpp servers as the starter engines set them up, and with more arguments.
async fn llamas(extra: &[&str]) -> [RunningEngine; 2] {
    let start = async || RunningEngine::start(starter().await, extra).await.unwrap();
    let (first, second) = tokio::join!(start(), start());
    [first, second]
}

async fn end(engines: [RunningEngine; 2]) {
    let [first, second] = engines;
    tokio::join!(first.stop(), second.stop());
}

fn managed(engine: &RunningEngine) -> Arc<dyn Engine> {
    Arc::clone(&engine.engine) as Arc<dyn Engine>
}

fn ask(question: &str, max_tokens: u32, more: Value) -> Request {
    let mut body = json!({"model": MODEL, "temperature": 0, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": question}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    chat(&body)
}

/// It changed machine, and this is how. (On a busy machine it may do so more than once.)
fn all_are(got: &Got, seam: Seam) -> bool {
    !got.seams.is_empty() && got.seams.iter().all(|s| *s == seam)
}

const QUESTIONS: [(&str, u32); 4] = [
    ("Tell me about the sea and foxes.", 40),
    ("Write a haiku about a river, then explain it.", 40),
    (
        "Say hi with an emoji of a fox 🦊 and Japanese text 日本語",
        36,
    ),
    ("Write a small Python function that adds two numbers.", 40),
];

/// Cuts every question at about `cuts` pieces; how many answers were the same, of how many. Each
/// is asked in words of its own, so that the second engine has to read all of what it continues:
/// what its cache holds it would not compute by the kernels in question.
async fn same_text(pair: &Pair, cuts: u32) -> (usize, usize) {
    let (mut same, mut all) = (0, 0);
    for (question, max) in QUESTIONS {
        for at in (1..max).step_by((max / cuts) as usize) {
            let request = ask(&format!("({at}) {question}"), max, json!({}));
            let whole = pair.mesh.ask(request.clone()).await;
            let at = at as usize;
            if at >= whole.pieces.len() {
                continue;
            }
            let got = pair.cut(&request, at).await;
            assert!(
                all_are(&got, Seam::Exact),
                "{question} cut at {at}: {got:?}"
            );
            let (finish, usage) = got.done();
            all += 1;
            if got.text() == whole.text() {
                same += 1;
                // The whole answer is counted, the prompt once.
                assert_eq!((finish, usage), whole.done(), "{question} cut at {at}");
            } else {
                println!("cut at {at}: {:?}\n  {:?}", got.text(), whole.text());
                // Up to the seam it is what was delivered.
                assert_eq!(got.pieces[..at], whole.pieces[..at]);
            }
        }
    }
    (same, all)
}

#[tokio::test]
async fn a_twin_goes_on_exactly() {
    let engines = llamas(&[]).await;
    let pair = Pair::of(managed(&engines[0]), managed(&engines[1])).await;
    let (same, all) = same_text(&pair, 10).await;
    println!("micro-batch 32: {same} of {all} answers are the same");
    assert!(same * 100 >= all * 99, "{same} of {all}");
    end(engines).await;
}

/// llama.cpp's default reads a replayed prefix by other kernels than it made it with: published,
/// not promised.
#[tokio::test]
async fn the_default_micro_batch_is_less_exact() {
    let engines = llamas(&["--ubatch", "0"]).await;
    let pair = Pair::of(managed(&engines[0]), managed(&engines[1])).await;
    let (same, all) = same_text(&pair, 10).await;
    println!("default micro-batch: {same} of {all} answers are the same");
    assert!(all > 0);
    end(engines).await;
}

/// Wherever the cut is, within the sequence too, and whether or not the first engine knows of
/// stop sequences.
#[tokio::test]
async fn a_stop_sequence_over_the_seam_stops_and_is_not_shown() {
    let engines = llamas(&[]).await;
    let pair = Pair::of(managed(&engines[0]), managed(&engines[1])).await;
    let question = "Count from 1 to 9 with commas.";
    let free = pair.mesh.ask(ask(question, 24, json!({}))).await;
    let stop: String = free.pieces[6..10]
        .iter()
        .map(|(text, _)| text.as_str())
        .collect();
    let request = ask(question, 24, json!({"stop": [stop]}));
    let end_at = free.text().find(&stop).unwrap();
    for deaf in [false, true] {
        pair.first.ignore_stops(deaf);
        for at in 0..10 {
            let got = pair.cut(&request, at).await;
            assert_eq!(got.text(), free.text()[..end_at], "cut at {at}, {stop:?}");
            assert_eq!(got.done().0, FinishReason::Stop);
        }
    }
    end(engines).await;
}

/// Sampling goes over with the request; the budget is what is left of it.
#[tokio::test]
async fn the_settings_carry_over() {
    let engines = llamas(&[]).await;
    let pair = Pair::of(managed(&engines[0]), managed(&engines[1])).await;
    let more = json!({"temperature": 0.8, "seed": 7, "top_p": 0.9, "top_k": 20, "min_p": 0.05,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "repeat_penalty": 1.1,
        "stop": ["###"], "logit_bias": [[15, -1.0]]});
    let request = ask("Tell me about the sea.", 20, more);
    let got = pair.cut(&request, 9).await;
    let asked = pair.second.asked();
    assert!(!asked.is_empty());
    for asked in asked {
        assert_eq!(asked.sampling, request.sampling);
        assert_eq!(
            (&asked.extra, &asked.input),
            (&request.extra, &request.input)
        );
        let prefix: String = asked.prefix.iter().map(|c| c.text.as_str()).collect();
        assert!(got.text().starts_with(&prefix));
    }
    assert_eq!(got.done().1.completion_tokens, 20);
    assert_eq!(got.done().0, FinishReason::Length);

    // Everything was delivered but the end: no engine need be asked for that.
    let request = ask("Tell me about the sea.", 12, json!({}));
    let whole = pair.mesh.ask(request.clone()).await;
    let got = pair.cut(&request, whole.pieces.len()).await;
    assert_eq!(got.text(), whole.text());
    assert_eq!(got.done().0, FinishReason::Length);
    assert_eq!(got.done().1.completion_tokens, 12);
    end(engines).await;
}

/// Structured output and tool calls begin again elsewhere, or end as incomplete.
#[tokio::test]
async fn what_has_a_form_is_never_spliced() {
    let engines = llamas(&[]).await;
    let pair = Pair::of(managed(&engines[0]), managed(&engines[1])).await;
    let schema = json!({"type": "object", "required": ["name", "age"], "properties":
        {"name": {"type": "string"}, "age": {"type": "integer"}}});
    let format = json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "person", "schema": schema}}});
    let tool = json!({"tool_choice": "required", "tools": [{"type": "function", "function":
        {"name": "add_person", "description": "Adds a person.", "parameters": schema}}]});
    for more in [format, tool] {
        let request = ask("A person named Bo, aged 7.", 100, more);
        let whole = pair.mesh.ask(request.clone()).await;
        assert!(matches!(whole.end, Some(Ok(_))), "{:?}", whole.end);
        let again = pair.cut(&request, 0).await;
        assert_eq!(
            again.pieces, whole.pieces,
            "nothing was delivered: from the start"
        );
        let cut = pair.cut(&request, 3).await;
        assert_eq!(cut.pieces, whole.pieces[..3]);
        assert!(
            matches!(cut.end, Some(Err(ClientError::Incomplete { .. }))),
            "{:?}",
            cut.end
        );
    }
    end(engines).await;
}

/// An engine of its API at `addr`, for which nothing is known beforehand.
fn engine_at(kind: EngineKind, addr: SocketAddr) -> Arc<dyn Engine> {
    let url = format!("http://{addr}").parse().unwrap();
    let spec = EngineSpec {
        name: kind.to_string(),
        kind: Some(kind),
        url,
        slots: None,
        api_key: None,
    };
    adapter(&spec).unwrap()
}

fn addr(engine: &RunningEngine) -> SocketAddr {
    engine.url.socket_addrs(|| None).unwrap()[0]
}

/// From and to engines that read text: nothing doubled or missing at the seam, wherever it is,
/// and with temperature 0 nearly always the same words.
#[tokio::test]
async fn engines_without_token_ids_continue() {
    let engines = llamas(&["--parallel", "1"]).await;
    let mut ollamas = Vec::new();
    for engine in &engines {
        ollamas.push(OllamaOverLlama::start(addr(engine), MODEL).await);
    }
    let llama = |at: usize| managed(&engines[at]);
    let ollama = |at: usize| engine_at(EngineKind::Ollama, ollamas[at].addr);
    let openai = |at: usize| engine_at(EngineKind::OpenAi, addr(&engines[at]));
    let pairs = [
        ("ollama to llama.cpp", ollama(0), llama(1)),
        ("ollama to ollama", ollama(0), ollama(1)),
        ("llama.cpp to ollama", llama(0), ollama(1)),
        ("llama.cpp to openai", llama(0), openai(1)),
    ];
    for (what, first, second) in pairs {
        let pair = Pair::of(first, second).await;
        let (mut same, mut all) = (0, 0);
        for (question, max) in QUESTIONS {
            let request = ask(question, max, json!({}));
            let whole = pair.mesh.ask(request.clone()).await;
            let cuts = [1, 2, 7, 12, 19];
            for at in cuts.into_iter().filter(|at| *at < whole.pieces.len()) {
                let got = pair.cut(&request, at).await;
                assert!(
                    all_are(&got, Seam::Continued),
                    "{what}, {question} cut at {at}: {got:?}"
                );
                assert_eq!(got.pieces[..at], whole.pieces[..at]);
                all += 1;
                if got.text() == whole.text() {
                    same += 1;
                } else {
                    println!("{what}, {at}: {:?}\n  {:?}", got.text(), whole.text());
                }
                assert_eq!(got.done().0, whole.done().0);
            }
        }
        println!("{what}: {same} of {all} answers are the same");
        assert!(same * 10 >= all * 8, "{what}: {same} of {all}");
    }
    end(engines).await;
}
