//! Who gets in, and the mesh API behind the token.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod gateway_support;

use gateway_support::{PATIENCE, TestGateway, connect, hello};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::sync::Arc;

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let gateway = TestGateway::start(hello()).await;
    let port = gateway.addr.port();
    for (header, value, status) in [
        ("host", format!("localhost:{port}"), 200),
        ("host", format!("[::1]:{port}"), 200),
        ("host", "evil.example".to_owned(), 403),
        ("host", format!("192.168.1.5:{port}"), 403),
        ("host", String::new(), 400),
        ("origin", "http://localhost:3000".to_owned(), 200),
        ("origin", "https://evil.example".to_owned(), 403),
        ("origin", "http://localhost.evil.example".to_owned(), 403),
        ("origin", "null".to_owned(), 403),
        ("sec-fetch-site", "cross-site".to_owned(), 403),
        ("sec-fetch-site", "same-site".to_owned(), 200),
    ] {
        let mut request = gateway
            .request("GET", "/v1/models")
            .body(Full::default())
            .unwrap();
        request.headers_mut().insert(header, value.parse().unwrap());
        let reply = gateway.send(request).await;
        assert_eq!(reply.status.as_u16(), status, "{header}: {value}");
        if status != 200 {
            reply.error();
        }
    }
}

#[tokio::test]
async fn the_mesh_api_wants_the_token() {
    let gateway = TestGateway::start(hello()).await;
    let token = gateway.token();
    for (token, status) in [
        (format!("Bearer {token}"), 200),
        (format!("bearer {token}"), 200),
        (format!("Bearer {token}x"), 401),
        ("Bearer ".to_owned(), 401),
        (token.to_owned(), 401),
        ("Bearé".to_owned(), 401),
    ] {
        let mut request = gateway
            .request("GET", "/unamesh/v1/status")
            .body(Full::default())
            .unwrap();
        let value = hyper::header::HeaderValue::from_bytes(token.as_bytes()).unwrap();
        request.headers_mut().insert("authorization", value);
        assert_eq!(
            gateway.send(request).await.status.as_u16(),
            status,
            "{token}"
        );
    }
    let reply = gateway.get("/unamesh/v1/nothing").await;
    assert_eq!(reply.error().1["code"], "token_required");
    assert_eq!(reply.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn the_table_as_json() {
    let gateway = TestGateway::start(hello()).await;
    let peers = gateway.mesh("GET", "peers", "").await.json();
    assert_eq!(peers.as_array().unwrap().len(), 2);
    assert_eq!(
        (&peers[0]["name"], &peers[0]["me"]),
        (&json!("desk"), &json!(true))
    );
    assert_eq!(peers[1]["models"][0]["name"], "smollm2");
    assert_eq!(peers[1]["engines"][0]["kind"], "llama.cpp");
    assert_eq!(peers[1]["hardware"]["battery"], json!(0));

    let models = gateway.mesh("GET", "models", "").await.json();
    assert_eq!(models[1]["model"], "smollm2");
    assert_eq!(models[1]["peers"][1]["name"], "laptop");

    let why = gateway
        .mesh("GET", "why?model=org%2Fx&prompt_tokens=5", "")
        .await
        .json();
    assert_eq!(
        (&why["model"], &why["chosen"]),
        (&json!("org/x"), &json!(null))
    );
    let (status, error) = gateway.mesh("GET", "why", "").await.error();
    assert_eq!((status, &error["param"]), (400, &json!("model")));
}

#[tokio::test]
async fn commands() {
    let gateway = TestGateway::start(hello()).await;
    assert_eq!(
        gateway.mesh("GET", "status", "").await.json()["name"],
        "desk"
    );
    assert_eq!(gateway.mesh("GET", "engines", "").await.json(), json!([]));
    assert_eq!(
        gateway.mesh("POST", "ping", "").await.json()[0]["name"],
        json!(null)
    );
    let (status, error) = gateway
        .mesh("POST", "ping", r#"{"node":"nobody"}"#)
        .await
        .error();
    assert_eq!((status, &error["code"]), (404, &json!("not_found")));
    let invite = gateway
        .mesh("POST", "invite", r#"{"role":"client","uses":2}"#)
        .await
        .json();
    assert_eq!(
        invite,
        json!({"role": "client", "uses": 2, "valid_for_s": 600})
    );
    for (body, param) in [
        (r#"{"role":"boss"}"#, json!("role")),
        (r#"{"uses":0}"#, json!("uses")),
        (r#"{"x":0}"#, json!(null)),
    ] {
        let (status, error) = gateway.mesh("POST", "invite", body).await.error();
        assert_eq!((status, &error["param"]), (400, &param));
    }
    let drain = gateway
        .mesh("POST", "drain", r#"{"deadline_ms":5}"#)
        .await
        .json();
    assert_eq!(drain["deadline_ms"], 5);
}

#[tokio::test]
async fn generate_is_the_events_line_by_line() {
    let gateway = TestGateway::start(hello()).await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let text = json!({"model": "m", "prompt": "x"});
    for body in [chat, text] {
        let reply = gateway.mesh("POST", "generate", body.to_string()).await;
        assert_eq!(reply.header("content-type"), "application/x-ndjson");
        let text = reply.text();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let kinds: Vec<&Value> = lines.iter().map(|l| &l["event"]).collect();
        assert_eq!(kinds, ["started", "token", "token", "done"]);
        assert_eq!(lines[0]["peer"]["name"], "my desk");
        assert_eq!(
            lines[2],
            json!({"event":"token","index":1,"text":"lo","tokens":1,"extra":null})
        );
        assert_eq!(lines[3]["usage"]["completion_tokens"], 2);
    }
    let (status, error) = gateway
        .mesh("POST", "generate", r#"{"model":"m"}"#)
        .await
        .error();
    assert_eq!(
        (status, &error["code"]),
        (400, &json!("missing_required_parameter"))
    );
}

#[tokio::test]
async fn events_stream_until_the_agent_stops() {
    let gateway = TestGateway::start(hello()).await;
    let (mut sender, _connection) = connect(gateway.addr).await;
    let request = gateway
        .request("GET", "/unamesh/v1/events")
        .header("authorization", format!("Bearer {}", gateway.token()))
        .body(Full::default())
        .unwrap();
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap();
        frame.map(|f| String::from_utf8(f.unwrap().into_data().unwrap().to_vec()).unwrap())
    };
    assert_eq!(next().await.unwrap(), ": unamesh events\n\n");
    gateway
        .events
        .send(Arc::new(json!({"event": "joined"})))
        .unwrap();
    assert_eq!(next().await.unwrap(), "data: {\"event\":\"joined\"}\n\n");
    gateway.stop().await;
    assert_eq!(next().await, None);
}
