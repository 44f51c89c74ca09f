//! The llama.cpp adapter and the starter engines against a real llama.cpp server with a real
//! model: exact continuation at every kind of cut, cancellation, health, errors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use futures_util::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use unamesh_agent::engine::{Engine, EngineError, EngineEvent, EngineStream};
use unamesh_agent::starter::{Lines, MODEL, RunningEngine, install};
use unamesh_proto::wire::{
    Chunk, EngineKind, FinishReason, GenerateRequest, Health, InputKind, Sampling, Usage,
};

/// At most this long for what happens at once on an idle machine.
const SOON: Duration = Duration::from_secs(10);

async fn start(extra: &[&str]) -> RunningEngine {
    let starter = install(&Lines::default()).await.unwrap();
    RunningEngine::start(&starter, extra).await.unwrap()
}

fn ask(question: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: MODEL.into(),
        engine: 0,
        kind: InputKind::Chat,
        input: serde_json::json!([{"role": "user", "content": question}]).to_string(),
        sampling: Sampling {
            temperature: Some(0.0),
            max_tokens: Some(max_tokens),
            ..Sampling::default()
        },
        extra: String::new(),
        prefix: Vec::new(),
        session: 0,
    }
}

struct Answer {
    exact: bool,
    chunks: Vec<Chunk>,
    extras: Vec<String>,
    finish: FinishReason,
    usage: Usage,
}

impl Answer {
    fn tokens(&self) -> u32 {
        self.chunks.iter().map(|chunk| chunk.tokens).sum()
    }

    fn text(&self) -> String {
        self.chunks
            .iter()
            .map(|chunk| chunk.text.as_str())
            .collect()
    }
}

async fn run(engine: &dyn Engine, request: GenerateRequest) -> Answer {
    let stream = engine.generate(Arc::new(request)).await.unwrap();
    read(stream).await
}

async fn read(mut stream: EngineStream) -> Answer {
    let Some(Ok(EngineEvent::Started { exact })) = stream.next().await else {
        panic!("no start")
    };
    let (mut chunks, mut extras) = (Vec::new(), Vec::new());
    loop {
        match stream.next().await.unwrap().unwrap() {
            EngineEvent::Chunk { chunk, extra } => {
                chunks.push(chunk);
                extras.push(extra);
            }
            EngineEvent::Done { finish, usage } => {
                return Answer {
                    exact,
                    chunks,
                    extras,
                    finish,
                    usage,
                };
            }
            _ => {}
        }
    }
}

/// Continuing on another server says what the first would have said, wherever it was cut: also
/// within a word, and after a character that takes several tokens.
#[tokio::test]
async fn a_continuation_on_a_twin_is_exact() {
    let (first, twin) = tokio::join!(start(&[]), start(&[]));
    let questions = [
        ("Tell me about the sea and foxes.", 48),
        ("Say hi with an emoji of a fox and Japanese text 日本語", 40),
    ];
    for (question, max) in questions {
        let whole = run(&*first.engine, ask(question, max)).await;
        assert!(whole.exact);
        assert_eq!(whole.usage.completion_tokens, max, "{}", whole.text());
        for cut in [1, 2, 3, 5, 8, 13, whole.chunks.len() - 1] {
            let mut request = ask(question, max);
            request.prefix = whole.chunks[..cut].to_vec();
            let rest = run(&*twin.engine, request).await;
            assert!(rest.exact, "{question}: cut at {cut}");
            assert_eq!(rest.chunks, whole.chunks[cut..], "{question}: cut at {cut}");
            assert_eq!(rest.finish, whole.finish);
            assert_eq!(rest.usage.prompt_tokens, whole.usage.prompt_tokens);
            let before: u32 = whole.chunks[..cut].iter().map(|chunk| chunk.tokens).sum();
            assert_eq!(
                before + rest.usage.completion_tokens,
                whole.usage.completion_tokens
            );
        }
    }
    tokio::join!(first.stop(), twin.stop());
}

/// A budget that the prefix used up ends at once, without the engine.
#[tokio::test]
async fn budgets_and_ends() {
    let engine = start(&[]).await;
    let whole = run(&*engine.engine, ask("What is 2+2?", 400)).await;
    assert_eq!(whole.finish, FinishReason::Stop, "{}", whole.text());
    // The end-of-text token is counted and belongs to no piece.
    assert_eq!(whole.tokens() + 1, whole.usage.completion_tokens);

    let mut request = ask("What is 2+2?", 4);
    request.prefix = whole.chunks[..4].to_vec();
    let spent = run(&*engine.engine, request).await;
    assert_eq!(
        (spent.finish, spent.chunks.len()),
        (FinishReason::Length, 0)
    );

    let mut stopped = ask("Count from 1 to 9 with commas.", 60);
    stopped.sampling.stop = vec!["3".into()];
    let stopped = run(&*engine.engine, stopped).await;
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert!(!stopped.text().contains('3'), "{}", stopped.text());

    let mut raw = ask("", 8);
    raw.kind = InputKind::Text;
    raw.input = "The capital of France is".into();
    let raw = run(&*engine.engine, raw).await;
    assert!(raw.text().contains("Paris"), "{}", raw.text());
    engine.stop().await;
}

/// What needs the chat endpoint gets it, and its other fields come through.
#[tokio::test]
async fn more_than_text_goes_through_the_chat_endpoint() {
    let engine = start(&[]).await;
    let mut request = ask("Say hi.", 6);
    request.extra = r#"{"logprobs":true,"top_logprobs":1}"#.into();
    let answer = run(&*engine.engine, request).await;
    let first: serde_json::Value = serde_json::from_str(&answer.extras[0]).unwrap();
    assert!(
        first["logprobs"]["content"][0]["logprob"].is_number(),
        "{first}"
    );
    assert_eq!(answer.tokens(), answer.usage.completion_tokens);

    let mut request = ask("A person named Bo, aged 7.", 60);
    request.extra = r#"{"response_format":{"type":"json_schema","json_schema":{"schema":{
        "type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},
        "required":["name","age"]}}}}"#
        .into();
    let answer = run(&*engine.engine, request).await;
    let object: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert!(object["age"].is_i64(), "{object}");
    engine.stop().await;
}

/// Dropping the stream stops the engine's work: its slot is free at once.
#[tokio::test]
async fn dropping_a_stream_frees_the_slot() {
    let engine = start(&["--parallel", "1"]).await;
    let mut stream = engine
        .engine
        .generate(Arc::new(ask("Tell a very long story.", 1500)))
        .await
        .unwrap();
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    let info = engine.engine.describe().await.unwrap();
    assert_eq!(info.health, Health::Busy);
    drop(stream);
    let dropped = Instant::now();
    while engine.engine.describe().await.unwrap().health != Health::Ok {
        assert!(dropped.elapsed() < SOON, "the slot is still taken");
    }
    engine.stop().await;
}

/// What the server says of itself; that two servers with one file agree on its digest.
#[tokio::test]
async fn it_describes_itself() {
    let (one, two) = tokio::join!(start(&[]), start(&["--parallel", "1"]));
    let info = one.engine.describe().await.unwrap();
    assert_eq!(one.engine.kind(), EngineKind::LlamaCpp);
    assert_eq!((info.slots, info.models.len()), (2, 1));
    let model = &info.models[0];
    assert_eq!(
        (model.name.as_str(), model.quantization.as_str()),
        (MODEL, "Q4_1")
    );
    assert!(
        model.token_ids && model.context >= 2048 && model.size > 90_000_000,
        "{model:?}"
    );
    assert!(!model.digest.is_empty());
    assert_eq!(
        model.digest,
        two.engine.describe().await.unwrap().models[0].digest
    );
    tokio::join!(one.stop(), two.stop());
}

/// Wrong requests are told apart from failures.
#[tokio::test]
async fn errors_name_what_is_wrong() {
    let engine = start(&[]).await;
    let refused = async |request| match engine.engine.generate(Arc::new(request)).await {
        Ok(stream) => stream.collect::<Vec<_>>().await.pop().unwrap().unwrap_err(),
        Err(error) => error,
    };
    let long = refused(ask(&"word ".repeat(9000), 5)).await;
    assert!(
        matches!(long, EngineError::ContextExceeded { tokens: 9000.., .. }),
        "{long:?}"
    );
    let mut nonsense = ask("hi", 5);
    nonsense.input = r#"[{"role":"user"}]"#.into();
    let nonsense = refused(nonsense).await;
    assert!(
        matches!(nonsense, EngineError::Invalid { .. }),
        "{nonsense:?}"
    );
    let mut typed = ask("hi", 5);
    typed.extra = r#"{"n_probs":"many"}"#.into();
    let typed = refused(typed).await;
    assert!(
        matches!(&typed, EngineError::Invalid { field: Some(f), .. } if f == "n_probs"),
        "{typed:?}"
    );
    engine.stop().await;
}

/// An engine killed in the middle of an answer is an error, and it is started again.
#[tokio::test]
async fn a_killed_engine_fails_its_stream_and_comes_back() {
    use unamesh_agent::engine::managed::State;
    let engine = start(&[]).await;
    let mut stream = engine
        .engine
        .generate(Arc::new(ask("Tell a very long story.", 1500)))
        .await
        .unwrap();
    for _ in 0..5 {
        stream.next().await.unwrap().unwrap();
    }
    let State::Up { pid } = engine.engine.state() else {
        panic!("not up")
    };
    let killed = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    let last = stream.collect::<Vec<_>>().await.pop().unwrap();
    assert!(matches!(last, Err(EngineError::Failed { .. })), "{last:?}");
    let mut states = engine.engine.states();
    states
        .wait_for(|state| matches!(state, State::Starting { pid: again, .. } if *again != pid))
        .await
        .unwrap();
    while engine.engine.describe().await.map(|info| info.health) != Ok(Health::Ok) {}
    engine.stop().await;
}
