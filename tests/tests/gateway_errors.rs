//! What the gateway says to wrong requests and of a mesh that cannot answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod gateway_support;

use gateway_support::{Step, TestGateway, hello};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use unamesh_agent::gateway::source::{ClientError, Event};
use unamesh_proto::limits;
use unamesh_proto::wire::{ErrorCode, WireError};

const CHAT: &str = "/v1/chat/completions";

/// A chat body in which `field` has the given raw JSON.
fn with(field: &str, raw: &str) -> String {
    let mut body = String::from("{");
    for (key, value) in [
        ("model", r#""m""#),
        ("messages", r#"[{"role":"user","content":"x"}]"#),
    ] {
        if key != field {
            body.push_str(&format!("\"{key}\":{value},"));
        }
    }
    format!("{body}\"{field}\":{raw}}}")
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let gateway = TestGateway::start(hello()).await;
    let long_name = format!("\"{}\"", "m".repeat(limits::MAX_NAME + 1));
    let deep = format!("{}1{}", "[".repeat(90_000), "]".repeat(90_000));
    let stops = format!("[{}]", vec!["\"x\""; limits::MAX_STOPS + 1].join(","));
    let cases = [
        ("model", "null", "model", "missing_required_parameter"),
        ("model", "7", "model", "invalid_type"),
        ("model", r#""  ""#, "model", "invalid_value"),
        ("model", &long_name, "model", "invalid_value"),
        ("messages", "null", "messages", "missing_required_parameter"),
        ("messages", "[]", "messages", "invalid_value"),
        ("messages", "{}", "messages", "invalid_type"),
        ("messages", &deep, "messages", "invalid_value"),
        ("messages", "[1]", "messages[0]", "invalid_type"),
        (
            "messages",
            r#"[{"content":"x"}]"#,
            "messages[0].role",
            "missing_required_parameter",
        ),
        (
            "messages",
            r#"[{"role":"boss","content":"x"}]"#,
            "messages[0].role",
            "invalid_value",
        ),
        (
            "messages",
            r#"[{"role":"user"}]"#,
            "messages[0].content",
            "missing_required_parameter",
        ),
        (
            "messages",
            r#"[{"role":"user","content":1}]"#,
            "messages[0].content",
            "invalid_type",
        ),
        (
            "messages",
            r#"[{"role":"user","content":"\ud800"}]"#,
            "messages[0].content",
            "invalid_value",
        ),
        (
            "messages",
            r#"[{"role":"user","content":"x"},{"role":"user","content":[{"text":"y"}]}]"#,
            "messages[1].content[0].type",
            "missing_required_parameter",
        ),
        ("stream", r#""yes""#, "stream", "invalid_type"),
        ("stream_options", "true", "stream_options", "invalid_type"),
        (
            "stream_options",
            r#"{"include_usage":1}"#,
            "stream_options.include_usage",
            "invalid_type",
        ),
        ("temperature", "2.1", "temperature", "invalid_value"),
        ("temperature", r#""0""#, "temperature", "invalid_type"),
        ("temperature", "1e999", "temperature", "invalid_value"),
        ("top_p", "-0.1", "top_p", "invalid_value"),
        ("min_p", "1.1", "min_p", "invalid_value"),
        ("top_k", "1.5", "top_k", "invalid_value"),
        ("seed", "99999999999999999999", "seed", "invalid_value"),
        ("max_tokens", "0", "max_tokens", "invalid_value"),
        ("max_tokens", "-2", "max_tokens", "invalid_value"),
        (
            "max_completion_tokens",
            "99999999",
            "max_completion_tokens",
            "invalid_value",
        ),
        ("presence_penalty", "3", "presence_penalty", "invalid_value"),
        (
            "frequency_penalty",
            "[]",
            "frequency_penalty",
            "invalid_type",
        ),
        ("stop", "1", "stop", "invalid_type"),
        ("stop", "[1]", "stop[0]", "invalid_type"),
        ("stop", &stops, "stop", "invalid_value"),
        ("n", "2", "n", "unsupported_value"),
        ("tools", "{}", "tools", "invalid_type"),
        (
            "response_format",
            r#""json""#,
            "response_format",
            "invalid_type",
        ),
        ("x\":1,\"x", "2", "x", "invalid_value"),
    ];
    for (field, raw, param, code) in cases {
        let reply = gateway.post(CHAT, with(field, raw)).await;
        let (status, error) = reply.error();
        let got = (status, error["param"].as_str(), error["code"].as_str());
        assert_eq!(got, (400, Some(param), Some(code)), "{field}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_completion_takes_one_prompt() {
    let gateway = TestGateway::start(hello()).await;
    for (more, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [1, 2]}), "prompt"),
        (json!({"prompt": [[1]]}), "prompt[0]"),
        (json!({"prompt": "a", "echo": true}), "echo"),
        (json!({"prompt": "a", "best_of": 3}), "best_of"),
    ] {
        let mut body = more;
        body["model"] = json!("m");
        let (status, error) = gateway
            .post("/v1/completions", body.to_string())
            .await
            .error();
        assert_eq!(
            (status, error["param"].as_str()),
            (400, Some(param)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_body_that_is_no_json() {
    let gateway = TestGateway::start(hello()).await;
    for body in [&b""[..], b"{", b"[]", b"nope", b"{\"model\":}", b"\xff\xfe"] {
        let (status, error) = gateway.post(CHAT, body.to_vec()).await.error();
        assert_eq!(
            (status, &error["code"]),
            (400, &json!("invalid_json")),
            "{error}"
        );
    }
    let mut body = with("user", "\"?\"").into_bytes();
    let at = body.iter().position(|b| *b == b'?').unwrap();
    body[at] = 0xc3;
    let (status, error) = gateway.post(CHAT, body).await.error();
    assert_eq!((status, &error["param"]), (400, &json!("user")));

    let (status, error) = gateway
        .post(CHAT, vec![b' '; limits::MAX_HTTP_BODY + 1])
        .await
        .error();
    assert_eq!((status, &error["code"]), (413, &json!("body_too_large")));
}

#[tokio::test]
async fn a_body_without_a_length_is_bounded_too() {
    let gateway = TestGateway::start(hello()).await;
    let mut stream = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b' '; 1 << 20];
    let (mut read, mut write) = stream.split();
    let send = async {
        for _ in 0..=limits::MAX_HTTP_BODY >> 20 {
            let head = format!("{:x}\r\n", chunk.len());
            for part in [head.as_bytes(), &chunk, b"\r\n"] {
                if write.write_all(part).await.is_err() {
                    return; // It answered and hung up: as it should.
                }
            }
        }
    };
    let mut reply = [0; 12];
    let receive = async { read.read_exact(&mut reply).await.map(|_| ()) };
    let (_, received) = tokio::join!(send, receive);
    received.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 413");
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let gateway = TestGateway::start(hello()).await;
    let (status, error) = gateway.get("/v1/embeddings").await.error();
    assert_eq!((status, &error["code"]), (404, &json!("not_found")));
    let (status, error) = gateway.get(CHAT).await.error();
    assert_eq!(
        (status, &error["code"]),
        (405, &json!("method_not_allowed"))
    );
}

#[tokio::test]
async fn what_the_mesh_could_not_do() {
    let near = vec![(
        "mistral:7b".to_owned(),
        vec!["desk".to_owned(), "laptop".to_owned()],
    )];
    let model = || "mistral".to_owned();
    let cases = [
        (
            ClientError::NoPeer {
                model: model(),
                near: vec![],
            },
            503,
            "no_peer",
            json!(null),
            "install Ollama",
        ),
        (
            ClientError::NoPeer {
                model: model(),
                near: near.clone(),
            },
            503,
            "no_peer",
            json!(null),
            "desk, laptop",
        ),
        (
            ClientError::UnknownModel {
                model: model(),
                near,
            },
            404,
            "model_not_found",
            json!("model"),
            r#""mistral:7b" on desk, laptop"#,
        ),
        (
            ClientError::Busy {
                retry_after: Duration::from_millis(1200),
            },
            429,
            "busy",
            json!(null),
            "1200 ms",
        ),
        (
            ClientError::Invalid {
                field: Some("tools".to_owned()),
                message: "no tools".to_owned(),
            },
            400,
            "invalid_value",
            json!("tools"),
            "no tools",
        ),
        (
            ClientError::ContextExceeded {
                message: "9000 > 2048".to_owned(),
            },
            400,
            "context_length_exceeded",
            json!("messages"),
            "9000 > 2048",
        ),
        (
            ClientError::Refused(WireError::new(ErrorCode::EngineDown, "desk: gone")),
            502,
            "engine_down",
            json!(null),
            "desk: gone",
        ),
        (
            ClientError::Refused(
                WireError::new(ErrorCode::Unsupported, "no pictures").field("messages"),
            ),
            400,
            "unsupported",
            json!("messages"),
            "no pictures",
        ),
    ];
    for (error, status, code, param, text) in cases {
        let gateway = TestGateway::start(vec![Step::Say(Event::Failed(error))]).await;
        for stream in ["true", "false"] {
            let start = Instant::now();
            let reply = gateway.post(CHAT, with("stream", stream)).await;
            let (got, error) = reply.error();
            assert_eq!(
                (got, &error["code"], &error["param"]),
                (status, &json!(code), &param)
            );
            assert!(error["message"].as_str().unwrap().contains(text), "{error}");
            assert!(start.elapsed() < Duration::from_millis(300));
            if status == 429 {
                assert_eq!(reply.header("retry-after"), "2");
                assert_eq!(reply.header("retry-after-ms"), "1200");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_ends_before_it_began() {
    let gateway = TestGateway::start(vec![]).await;
    let (status, error) = gateway.post(CHAT, with("stream", "false")).await.error();
    assert_eq!((status, &error["code"]), (502, &json!("interrupted")));
    let error: Value = {
        let records = gateway.post(CHAT, with("stream", "true")).await.records();
        serde_json::from_str(records.last().unwrap()).unwrap()
    };
    assert_eq!(error["error"]["code"], "interrupted");
}
