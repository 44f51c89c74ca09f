//! Adapters against scripted servers that misbehave. These are doubles: each plays one fault,
//! none is an engine. The real llama.cpp is tested in the `tests` crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::request::tests::request;
use super::{Engine, EngineError, EngineEvent, EngineSpec, EngineStream, adapter};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use unamesh_proto::wire::{EngineKind, FinishReason, GenerateRequest, InputKind, Phase};

/// What the double does with the connection after the head of a request was read.
#[derive(Clone)]
pub(super) enum Act {
    /// Sends bytes.
    Say(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Says nothing more, keeps the connection; ends when the client closes it.
    Hang,
    /// Closes the connection, as a crashed engine does.
    Close,
}

/// A double that answers every request on `path` by `script`, and others with 404.
pub(super) struct Double {
    pub(super) url: url::Url,
    /// The bodies of requests.
    pub(super) asked: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
    /// Ends with the double.
    _task: JoinSet<()>,
    /// One message for each connection that the *client* closed while the double hung.
    pub(super) hung_up: tokio::sync::mpsc::UnboundedReceiver<()>,
}

impl Double {
    pub(super) async fn of(scripts: Vec<(&'static str, Vec<Act>)>) -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let (tx, hung_up) = tokio::sync::mpsc::unbounded_channel();
        let (bodies, asked) = tokio::sync::mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, scripts.clone(), bodies.clone(), tx.clone()));
            }
        });
        Double {
            url,
            asked,
            _task: task,
            hung_up,
        }
    }

    pub(super) fn engine(&self, kind: EngineKind) -> Arc<dyn Engine> {
        engine_at(&self.url, kind)
    }
}

pub(super) fn engine_at(url: &url::Url, kind: EngineKind) -> Arc<dyn Engine> {
    let (name, url) = ("double".to_owned(), url.clone());
    adapter(&EngineSpec {
        name,
        kind: Some(kind),
        url,
        slots: None,
        api_key: None,
    })
    .unwrap()
}

async fn serve(
    mut socket: TcpStream,
    scripts: Vec<(&'static str, Vec<Act>)>,
    bodies: tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
    hung_up: tokio::sync::mpsc::UnboundedSender<()>,
) {
    while let Some((path, body)) = read_request(&mut socket).await {
        let _ = bodies.send(body);
        let script = scripts
            .iter()
            .find(|(at, _)| *at == path)
            .map(|(_, acts)| acts.clone());
        let script = script.unwrap_or_else(|| vec![Act::Say(reply(404, "{}"))]);
        for act in script {
            match act {
                Act::Say(bytes) => {
                    if socket.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Act::Pause(time) => tokio::time::sleep(time).await,
                Act::Hang => {
                    let mut byte = [0];
                    let _ = socket.read(&mut byte).await;
                    let _ = hung_up.send(());
                    return;
                }
                Act::Close => return,
            }
        }
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|l| {
        l.to_ascii_lowercase()
            .strip_prefix("content-length: ")
            .and_then(|n| n.parse().ok())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).await.ok()?;
    Some((head.split(' ').nth(1)?.to_owned(), body))
}

pub(super) fn reply(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head of a streamed answer.
pub(super) fn head() -> Act {
    Act::Say(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec(),
    )
}

pub(super) fn chunk(bytes: &[u8]) -> Act {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    Act::Say(framed)
}

/// The end of a chunked answer.
pub(super) fn end() -> Act {
    Act::Say(b"0\r\n\r\n".to_vec())
}

const TOKEN: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const CHAT: &str = "/v1/chat/completions";

fn chat() -> Arc<GenerateRequest> {
    Arc::new(request(
        InputKind::Chat,
        r#"[{"role":"user","content":"hi"}]"#,
    ))
}

/// All texts, and how it ended.
async fn read(mut stream: EngineStream) -> (Vec<String>, Result<FinishReason, EngineError>) {
    let mut texts = Vec::new();
    loop {
        match stream
            .next()
            .await
            .expect("a stream ends with a terminal item")
        {
            Ok(EngineEvent::Chunk { chunk, .. }) => texts.push(chunk.text),
            Ok(EngineEvent::Done { finish, .. }) => {
                assert!(stream.next().await.is_none(), "something follows Done");
                return (texts, Ok(finish));
            }
            Ok(_) => {}
            Err(error) => {
                assert!(stream.next().await.is_none(), "something follows an error");
                return (texts, Err(error));
            }
        }
    }
}

async fn play(acts: Vec<Act>) -> (Vec<String>, Result<FinishReason, EngineError>) {
    let double = Double::of(vec![(CHAT, acts)]).await;
    let engine = double.engine(EngineKind::OpenAi);
    match engine.generate(chat()).await {
        Ok(stream) => read(stream).await,
        Err(error) => (Vec::new(), Err(error)),
    }
}

fn is_failed(result: &Result<FinishReason, EngineError>) -> bool {
    matches!(result, Err(EngineError::Failed { .. }))
}

#[tokio::test]
async fn double_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: url::Url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    drop(listener);
    for kind in [EngineKind::OpenAi, EngineKind::LlamaCpp, EngineKind::Ollama] {
        let engine = engine_at(&url, kind);
        assert!(
            matches!(engine.describe().await, Err(EngineError::Down { .. })),
            "{kind}"
        );
        let refused = engine.generate(chat()).await.err();
        assert!(
            matches!(refused, Some(EngineError::Down { .. })),
            "{kind}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn double_that_closes_in_the_middle_of_the_stream() {
    let half = Act::Say(b"5\r\nda".to_vec());
    let (texts, result) = play(vec![head(), chunk(TOKEN), half, Act::Close]).await;
    assert_eq!(texts, ["a"]);
    assert!(is_failed(&result), "{result:?}");
    let (_, result) = play(vec![Act::Close]).await;
    assert!(is_failed(&result), "{result:?}");
}

#[tokio::test]
async fn double_whose_stream_ends_without_a_final_object() {
    let (texts, result) = play(vec![head(), chunk(TOKEN), end()]).await;
    assert_eq!(texts, ["a"]);
    assert!(is_failed(&result), "{result:?}");
}

#[tokio::test]
async fn double_that_answers_rubbish() {
    for rubbish in [
        &b"data: <html>\n\n"[..],
        b"data: {\"choices\":7}\n\n",
        b"data: \xff\xfe\n\n",
        b"{\n",
    ] {
        let (texts, result) = play(vec![head(), chunk(TOKEN), chunk(rubbish), end()]).await;
        assert_eq!(texts, ["a"]);
        assert!(is_failed(&result), "{result:?}");
    }
    let (_, result) = play(vec![Act::Say(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec())]).await;
    assert!(is_failed(&result), "{result:?}");
}

#[tokio::test]
async fn double_that_cuts_a_character_between_chunks_and_one_that_never_completes_it() {
    let line =
        "data: {\"choices\":[{\"delta\":{\"content\":\"日\"},\"finish_reason\":\"stop\"}]}\n\n";
    let at = line.find('日').unwrap() + 1;
    let (a, b) = line.as_bytes().split_at(at);
    let whole = vec![
        head(),
        chunk(a),
        Act::Pause(Duration::from_millis(5)),
        chunk(b),
        end(),
    ];
    assert_eq!(
        play(whole).await,
        (vec!["日".to_owned()], Ok(FinishReason::Stop))
    );
    let (_, result) = play(vec![head(), chunk(a), end()]).await;
    assert!(is_failed(&result), "{result:?}");
}

#[tokio::test]
async fn double_with_an_endless_line() {
    let mut acts = vec![head()];
    acts.extend((0..40).map(|_| chunk(&[b'x'; 64 * 1024])));
    let (_, result) = play(acts).await;
    let Err(EngineError::Failed { reason, .. }) = result else {
        panic!("{result:?}")
    };
    assert!(reason.contains("exceeds"), "{reason}");
}

#[tokio::test]
async fn double_that_reports_an_error_with_status_200() {
    let (_, result) = play(vec![Act::Say(reply(
        200,
        r#"{"error":{"message":"no memory"}}"#,
    ))])
    .await;
    let Err(EngineError::Failed { reason, .. }) = result else {
        panic!("{result:?}")
    };
    assert_eq!(reason, "no memory");
}

#[tokio::test]
async fn double_that_refuses() {
    let (_, busy) = play(vec![Act::Say(reply(429, "{}"))]).await;
    assert!(matches!(busy, Err(EngineError::Busy { .. })));
    let (_, wrong) = play(vec![Act::Say(reply(
        400,
        r#"{"error":{"message":"bad","param":"stop"}}"#,
    ))])
    .await;
    assert_eq!(
        wrong,
        Err(EngineError::Invalid {
            message: "bad".into(),
            field: Some("stop".into())
        })
    );
}

#[tokio::test]
async fn double_that_hangs_sees_the_connection_close_when_the_stream_is_dropped() {
    let mut double = Double::of(vec![(CHAT, vec![head(), chunk(TOKEN), Act::Hang])]).await;
    let engine = double.engine(EngineKind::OpenAi);
    let mut stream = engine.generate(chat()).await.unwrap();
    assert_eq!(
        stream.next().await,
        Some(Ok(EngineEvent::Started { exact: true }))
    );
    assert!(matches!(
        stream.next().await,
        Some(Ok(EngineEvent::Chunk { .. }))
    ));
    assert!(double.hung_up.try_recv().is_err());
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), double.hung_up.recv())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn double_that_hangs_before_its_headers_sees_a_dropped_request() {
    let mut double = Double::of(vec![(CHAT, vec![Act::Hang])]).await;
    let engine = double.engine(EngineKind::OpenAi);
    let waiting = tokio::time::timeout(Duration::from_millis(50), engine.generate(chat())).await;
    assert!(waiting.is_err());
    tokio::time::timeout(Duration::from_secs(5), double.hung_up.recv())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn double_that_hangs_at_its_health_check_is_late_not_down() {
    let double = Double::of(vec![("/v1/models", vec![Act::Hang])]).await;
    let asked = double.engine(EngineKind::OpenAi).describe().await;
    assert!(matches!(asked, Err(EngineError::Busy { .. })), "{asked:?}");
}

#[tokio::test]
async fn double_that_closes_idle_connections_is_asked_again_on_a_new_one() {
    let body = r#"{"data":[{"id":"m"}]}"#;
    let once = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: url::Url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let mut double = JoinSet::new();
    double.spawn(async move {
        // Each connection answers one request and closes at the head of the second.
        while let Ok((mut socket, _)) = listener.accept().await {
            read_request(&mut socket).await;
            socket.write_all(once.as_bytes()).await.unwrap();
            let _ = socket.read_u8().await;
        }
    });
    let engine = engine_at(&url, EngineKind::OpenAi);
    for _ in 0..3 {
        assert_eq!(engine.describe().await.unwrap().models[0].name, "m");
    }
}

/// Follows Ollama's wire rules: newline-delimited JSON, headers with the first token.
async fn ollama_double(ps: &'static str, chat: Vec<Act>) -> Double {
    let tags = r#"{"models":[{"name":"m:latest","digest":"abc","size":7,"details":{"family":"llama","quantization_level":"Q4_1"}}]}"#;
    let show = r#"{"capabilities":["completion"],"model_info":{"llama.context_length":8192}}"#;
    let say = |body: &str| vec![Act::Say(reply(200, body))];
    Double::of(vec![
        ("/api/version", say(r#"{"version":"0.12.10"}"#)),
        ("/api/tags", say(tags)),
        ("/api/ps", say(ps)),
        ("/api/show", say(show)),
        ("/api/chat", chat),
    ])
    .await
}

const OLLAMA_TOKEN: &[u8] =
    b"{\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n";
const OLLAMA_DONE: &[u8] = b"{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":3,\"eval_count\":1}\n";

#[tokio::test]
async fn ollama_double_describes_and_answers() {
    let chat_acts = vec![head(), chunk(OLLAMA_TOKEN), chunk(OLLAMA_DONE), end()];
    let double = ollama_double(r#"{"models":[{"name":"m:latest"}]}"#, chat_acts).await;
    let engine = double.engine(EngineKind::Ollama);
    let info = engine.describe().await.unwrap();
    assert_eq!(
        (info.version.as_str(), info.models[0].digest.as_str()),
        ("0.12.10", "abc")
    );
    let (texts, result) = read(engine.generate(chat()).await.unwrap()).await;
    assert_eq!(
        (texts, result),
        (vec!["a".to_owned()], Ok(FinishReason::Stop))
    );
}

#[tokio::test]
async fn ollama_double_that_loads_says_so() {
    let slow = vec![
        Act::Pause(Duration::from_millis(900)),
        head(),
        chunk(OLLAMA_TOKEN),
        chunk(OLLAMA_DONE),
        end(),
    ];
    let double = ollama_double(r#"{"models":[]}"#, slow).await;
    let mut stream = double
        .engine(EngineKind::Ollama)
        .generate(chat())
        .await
        .unwrap();
    assert_eq!(
        stream.next().await,
        Some(Ok(EngineEvent::Started { exact: true }))
    );
    let loading = EngineEvent::Progress {
        phase: Phase::Loading,
        done: 0,
        total: 0,
    };
    assert_eq!(stream.next().await, Some(Ok(loading)));
    assert_eq!(
        read(stream).await,
        (vec!["a".to_owned()], Ok(FinishReason::Stop))
    );
}

#[tokio::test]
async fn ollama_double_that_fails_in_the_middle() {
    let acts = vec![
        head(),
        chunk(OLLAMA_TOKEN),
        chunk(b"{\"error\":\"runner died\"}\n"),
        end(),
    ];
    let double = ollama_double(r#"{"models":[]}"#, acts).await;
    let (texts, result) = read(
        double
            .engine(EngineKind::Ollama)
            .generate(chat())
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(texts, ["a"]);
    assert!(is_failed(&result), "{result:?}");
}

#[tokio::test]
async fn each_api_is_recognized() {
    type Case = (&'static [(&'static str, &'static str)], Option<EngineKind>);
    let cases: [Case; 6] = [
        (
            &[
                ("/api/version", r#"{"version":"1"}"#),
                ("/v1/models", r#"{"data":[]}"#),
            ],
            Some(EngineKind::Ollama),
        ),
        (
            &[
                ("/props", r#"{"total_slots":1}"#),
                ("/v1/models", r#"{"data":[]}"#),
            ],
            Some(EngineKind::LlamaCpp),
        ),
        (
            &[
                ("/api/v0/models", r#"{"data":[]}"#),
                ("/v1/models", r#"{"data":[]}"#),
            ],
            Some(EngineKind::LmStudio),
        ),
        (
            &[("/v1/models", r#"{"data":[{"id":"m","owned_by":"vllm"}]}"#)],
            Some(EngineKind::Vllm),
        ),
        (&[("/index.html", "<html>")], None),
        // An agent's gateway, its own or another's.
        (
            &[(
                "/v1/models",
                r#"{"object":"list","data":[{"id":"m"}],"unamesh":{"version":"0"}}"#,
            )],
            None,
        ),
    ];
    for (answers, kind) in cases {
        let say =
            |(path, body): &(&'static str, &'static str)| (*path, vec![Act::Say(reply(200, body))]);
        let double = Double::of(answers.iter().map(say).collect()).await;
        let http = super::http::Http::new(&double.url, None).unwrap();
        assert_eq!(super::detect::identify(&http).await, kind);
    }
}

/// A request in the middle of an answer.
fn resumed(ids: &[u32]) -> Arc<GenerateRequest> {
    let mut request = GenerateRequest::clone(&chat());
    request.prefix = vec![unamesh_proto::wire::Chunk {
        text: "The sea".into(),
        ids: ids.to_vec(),
        tokens: 1,
    }];
    Arc::new(request)
}

fn delta(text: &str) -> Act {
    let line = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":{text:?}}}}}]}}\n\n\
         data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
    );
    chunk(line.as_bytes())
}

#[tokio::test]
async fn double_that_begins_anew_declines_to_go_on() {
    let double = Double::of(vec![(CHAT, vec![head(), delta("1, 2, 3"), end()])]).await;
    let engine = double.engine(EngineKind::OpenAi);
    for _ in 0..2 {
        let refused = engine.generate(resumed(&[])).await.err();
        assert!(
            matches!(refused, Some(EngineError::Unsupported { .. })),
            "{refused:?}"
        );
    }
    // A new answer it takes.
    let (texts, _) = read(engine.generate(chat()).await.unwrap()).await;
    assert_eq!(texts, ["1, 2, 3"]);
}

#[tokio::test]
async fn double_that_goes_on_is_asked_to() {
    let double = Double::of(vec![(CHAT, vec![head(), delta(", 7"), end()])]).await;
    let engine = double.engine(EngineKind::OpenAi);
    let mut stream = engine.generate(resumed(&[])).await.unwrap();
    let started = EngineEvent::Started { exact: false };
    assert_eq!(stream.next().await, Some(Ok(started)));
    assert_eq!(read(stream).await.0, [", 7"]);
}

/// Ids of another vocabulary, or counted wrongly: the server reads something else out of them.
#[tokio::test]
async fn llama_cpp_double_that_reads_other_words_gets_the_text() {
    let done =
        b"data: {\"content\":\" is\",\"tokens\":[3],\"stop\":true,\"tokens_predicted\":1}\n\n";
    let words = [
        (r#"{"content":"The sea"}"#, true),
        (r#"{"content":"Der Hund"}"#, false),
    ];
    for (read_back, exact) in words {
        let double = Double::of(vec![
            (
                "/apply-template",
                vec![Act::Say(reply(200, r#"{"prompt":"p"}"#))],
            ),
            ("/detokenize", vec![Act::Say(reply(200, read_back))]),
            ("/completion", vec![head(), chunk(done), end()]),
        ])
        .await;
        let engine = double.engine(EngineKind::LlamaCpp);
        let mut stream = engine.generate(resumed(&[7])).await.unwrap();
        let started = EngineEvent::Started { exact };
        assert_eq!(stream.next().await, Some(Ok(started)), "{read_back}");
        assert_eq!(read(stream).await.0, [" is"]);
    }
}
