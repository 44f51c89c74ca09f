//! Speech in the mesh API of a gateway above a mesh that has none: who may ask, what is wrong with
//! a request, and what somebody without an engine is told.

#![allow(clippy::unwrap_used, reason = "test code")]

mod gateway_support;

use gateway_support::{TestGateway, hello};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use unamesh_proto::limits::MAX_SOCKET_MESSAGE;

fn last_line(body: &[u8]) -> Value {
    let text = std::str::from_utf8(body).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn the_token_opens_it() {
    let gateway = TestGateway::start(hello()).await;
    for (method, path) in [
        ("GET", "voices"),
        ("POST", "speak"),
        ("POST", "transcribe"),
        ("GET", "converse"),
    ] {
        let request = gateway.request(method, &format!("/unamesh/v1/{path}"));
        let reply = gateway.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(reply.error().1["code"], "token_required", "{path}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let gateway = TestGateway::start(hello()).await;
    for (body, param) in [
        (r#"{"input":"  "}"#, json!("input")),
        (r#"{"input":"Hi.","speed":40}"#, json!("speed")),
        ("{", json!(null)),
    ] {
        let (status, error) = gateway.mesh("POST", "speak", body).await.error();
        assert_eq!((status, &error["param"]), (400, &param), "{body}");
    }
    let (status, error) = gateway
        .mesh("POST", "transcribe?voice=joe", "")
        .await
        .error();
    assert_eq!((status, &error["code"]), (400, &json!("invalid_query")));
    let (status, error) = gateway.mesh("GET", "converse", "").await.error();
    assert_eq!((status, &error["code"]), (400, &json!("websocket_wanted")));
}

/// A frame whose head promises too much is not read, and its sender is told.
#[tokio::test]
async fn a_message_that_is_too_long_is_refused_in_words() {
    let gateway = TestGateway::start(hello()).await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let ask = format!(
        "GET /unamesh/v1/converse HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        gateway.addr,
        gateway.token()
    );
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut frame = vec![0x81, 0x80 | 127];
    frame.extend((MAX_SOCKET_MESSAGE as u64 + 1).to_be_bytes());
    frame.extend([0; 4]);
    let mut told = Vec::new();
    while !told.ends_with(b"\r\n\r\n") {
        assert!(socket.read_buf(&mut told).await.unwrap() > 0);
    }
    socket.write_all(&frame).await.unwrap();
    socket.read_to_end(&mut told).await.unwrap();
    let told = String::from_utf8_lossy(&told);
    assert!(
        told.contains("refused") && told.contains("64 KiB"),
        "{told}"
    );
}

/// Both sides of it: the end of a body is the end of an utterance, whose events are lines.
#[tokio::test]
async fn without_an_engine_it_says_how_to_begin() {
    let gateway = TestGateway::start(hello()).await;
    assert_eq!(gateway.mesh("GET", "voices", "").await.json(), json!([]));
    let said = gateway.mesh("POST", "speak", r#"{"input":"Hi."}"#).await;
    let heard = gateway.mesh("POST", "transcribe", vec![0; 32_000]).await;
    for (reply, engine) in [(said, "wyoming_piper"), (heard, "wyoming_faster_whisper")] {
        let failed = last_line(&reply.body);
        assert_eq!(failed["event"], "failed", "{failed}");
        assert_eq!(failed["error"]["code"], "no_peer", "{failed}");
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains(engine), "{message}");
    }
}
