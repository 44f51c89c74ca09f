//! The OpenAI endpoints, above a scripted mesh.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod gateway_support;

use gateway_support::{
    Step, TestGateway, connect, done, hello, peer_ref, started, token, token_extra,
};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::time::Duration;
use unamesh_agent::gateway::source::{ClientError, Event, Seam};
use unamesh_proto::wire::InputKind;

const CHAT: &str = "/v1/chat/completions";

fn chat(more: Value) -> String {
    let mut body = json!({"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

#[tokio::test]
async fn a_streamed_chat_is_openai_chunks() {
    let script = vec![
        started(),
        token(0, "a \"b\"\n"),
        token(1, ""),
        token(2, "ü\u{2028}"),
        done(),
    ];
    let gateway = TestGateway::start(script).await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let reply = gateway.post(CHAT, body).await;

    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("x-unamesh-peer"), "my%20desk");
    assert_eq!(
        reply.header("x-unamesh-why"),
        "shortest predicted time to first token: 12 ms"
    );
    let records = reply.records();
    assert_eq!(records.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = records[..records.len() - 1]
        .iter()
        .map(|r| serde_json::from_str(r).unwrap())
        .collect();
    let id = chunks[0]["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-"));
    for chunk in &chunks {
        assert_eq!(chunk["id"], id);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["model"], "smollm2");
        assert!(chunk["created"].as_u64().unwrap() > 1_600_000_000);
    }
    let deltas: Vec<&Value> = chunks[..4]
        .iter()
        .map(|c| &c["choices"][0]["delta"])
        .collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(*deltas[1], json!({"content": "a \"b\"\n"}));
    assert_eq!(*deltas[2], json!({"content": "ü\u{2028}"}));
    assert_eq!(*deltas[3], json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert!(
        chunks[..4]
            .iter()
            .all(|c| c["usage"].is_null() && c.get("usage").is_some())
    );
    assert_eq!(chunks[4]["choices"], json!([]));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
    assert_eq!(chunks[4]["usage"], usage);
    assert_eq!(chunks.len(), 5);
}

#[tokio::test]
async fn a_whole_chat_is_one_object() {
    let gateway = TestGateway::start(hello()).await;
    let reply = gateway.post(CHAT, chat(json!({}))).await;
    assert_eq!(reply.status, 200);
    let answer = reply.json();
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "Hello"})
    );
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["usage"]["total_tokens"], 9);
    assert!(reply.headers.get("x-unamesh-seam").is_none());
}

#[tokio::test]
async fn completions_both_ways() {
    let gateway = TestGateway::start(hello()).await;
    let body = json!({"model": "smollm2", "prompt": "Once", "max_tokens": 5}).to_string();
    let reply = gateway.post("/v1/completions", body).await;
    assert_eq!(reply.json()["object"], "text_completion");
    assert_eq!(reply.json()["choices"][0]["text"], "Hello");
    let request = gateway.source.last();
    assert_eq!(
        (request.kind, request.input.as_str()),
        (InputKind::Text, "Once")
    );
    assert_eq!(request.sampling.max_tokens, Some(5));

    let body = json!({"model": "smollm2", "prompt": ["Once"], "stream": true}).to_string();
    let records = gateway.post("/v1/completions", body).await.records();
    let texts: Vec<Value> = records[..records.len() - 1]
        .iter()
        .map(|r| serde_json::from_str::<Value>(r).unwrap()["choices"][0]["text"].clone())
        .collect();
    assert_eq!(texts, ["Hel", "lo", ""]);
    assert_eq!(gateway.source.last().input, "Once");
}

#[tokio::test]
async fn a_request_arrives_whole() {
    let gateway = TestGateway::start(hello()).await;
    let messages = r#"[ {"role":"system","content":[{"type":"text","text":"Be kind."}], "x":1},
        {"role":"user","content":"\u00fc 1.0"} ]"#;
    let body = format!(
        r#"{{"model":"m","messages":{messages},"temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,
        "seed":-7,"max_completion_tokens":9,"stop":["a","b"],"presence_penalty":1,
        "frequency_penalty":-1,"repeat_penalty":1.1,"user":null,"logit_bias":{{"1": 2.50}},
        "future":"\"}}","n":1,"stream":false}}"#
    );
    assert_eq!(gateway.post(CHAT, body).await.status, 200);
    let request = gateway.source.last();
    assert_eq!(request.input, messages);
    assert_eq!(
        request.extra,
        r#"{"logit_bias":{"1": 2.50},"future":"\"}"}"#
    );
    let s = request.sampling;
    assert_eq!(
        (s.temperature, s.top_p, s.top_k, s.min_p),
        (Some(0.0), Some(0.5), Some(0), Some(0.1))
    );
    assert_eq!((s.seed, s.max_tokens), (Some(-7), Some(9)));
    assert_eq!(s.stop, ["a", "b"]);
    assert_eq!(
        (s.presence_penalty, s.frequency_penalty),
        (Some(1.0), Some(-1.0))
    );
    assert_eq!(s.repeat_penalty, Some(1.1));
    assert!(request.spliceable);
}

#[tokio::test]
async fn only_free_text_may_be_spliced() {
    let gateway = TestGateway::start(hello()).await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (more, spliceable) in [
        (json!({"tools": []}), true),
        (json!({"tools": tool}), true),
        (json!({"tools": tool, "tool_choice": "auto"}), true),
        (json!({"tools": tool, "tool_choice": "required"}), false),
        (
            json!({"tools": tool, "tool_choice": {"type": "function", "function": {"name": "f"}}}),
            false,
        ),
        (json!({"tools": tool, "tool_choice": "none"}), true),
        (json!({"response_format": {"type": "text"}}), true),
        (json!({"response_format": {"type": "json_object"}}), false),
        (json!({"grammar": "root ::= x"}), false),
    ] {
        assert_eq!(gateway.post(CHAT, chat(more.clone())).await.status, 200);
        assert_eq!(gateway.source.last().spliceable, spliceable, "{more}");
    }
}

#[tokio::test]
async fn a_conversation_keeps_its_session() {
    let gateway = TestGateway::start(hello()).await;
    let system = json!({"role": "system", "content": "Be kind."});
    let first = json!({"role": "user", "content": "Hi"});
    let mut sessions = Vec::new();
    for messages in [
        json!([system, first]),
        json!([system, first, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "?"}]),
        json!([system, {"role": "user", "content": "Bye"}]),
    ] {
        gateway
            .post(
                CHAT,
                json!({"model": "m", "messages": messages}).to_string(),
            )
            .await;
        sessions.push(gateway.source.last().session);
    }
    assert_eq!(sessions[0], sessions[1]);
    assert_ne!(sessions[0], sessions[2]);
    assert_ne!(sessions[0], 0);
}

#[tokio::test]
async fn tool_calls_and_logprobs_pass() {
    let call = |arguments: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
    let script = vec![
        started(),
        token_extra(
            0,
            "",
            json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function",
            "function": {"name": "f", "arguments": ""}}]}),
        ),
        token_extra(1, "", call("{\"x\"")),
        token_extra(2, "", call(":1}")),
        token_extra(3, "", json!({"logprobs": {"content": [{"token": "a"}]}})),
        done(),
    ];
    let gateway = TestGateway::start(script).await;
    let answer = gateway.post(CHAT, chat(json!({}))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]})
    );
    assert_eq!(choice["logprobs"]["content"][0]["token"], "a");

    let records = gateway
        .post(CHAT, chat(json!({"stream": true})))
        .await
        .records();
    let second: Value = serde_json::from_str(&records[2]).unwrap();
    assert_eq!(second["choices"][0]["delta"], call("{\"x\""));
    let fourth: Value = serde_json::from_str(&records[4]).unwrap();
    assert_eq!(fourth["choices"][0]["logprobs"]["content"][0]["token"], "a");
    assert_eq!(fourth["choices"][0]["delta"], json!({}));
}

#[tokio::test]
async fn extra_fields_of_a_hostile_peer_cannot_break_the_stream() {
    let raw = |extra: &str| {
        Step::Say(Event::Token {
            index: 0,
            text: "x".into(),
            tokens: 1,
            extra: extra.into(),
        })
    };
    let script = vec![
        started(),
        raw("{\"a\":\n\n1,\r\n\"b\":[\n2]}"),
        raw("}\n\ndata: [DONE]\n\n"),
        raw("[1]"),
        done(),
    ];
    let gateway = TestGateway::start(script).await;
    let records = gateway
        .post(CHAT, chat(json!({"stream": true})))
        .await
        .records();
    let deltas: Vec<Value> = records[1..4]
        .iter()
        .map(|r| serde_json::from_str::<Value>(r).unwrap()["choices"][0]["delta"].clone())
        .collect();
    assert_eq!(deltas[0], json!({"content": "x", "a": 1, "b": [2]}));
    assert_eq!(deltas[1], json!({"content": "x"}));
    assert_eq!(deltas[2], json!({"content": "x"}));
    assert_eq!(records.len(), 6);
}

fn failover() -> Vec<Step> {
    let changed = Event::PeerChanged {
        from: peer_ref(1, "my desk"),
        to: peer_ref(2, "laptop"),
        seam: Seam::Exact,
        gap: Duration::from_micros(143_250),
        backup_ttft: Duration::from_millis(60),
        reason: "connection lost".to_owned(),
    };
    vec![
        started(),
        token(0, "Hel"),
        Step::Say(changed),
        token(1, "lo"),
        done(),
    ]
}

#[tokio::test]
async fn a_failover_is_a_comment_and_a_header() {
    let gateway = TestGateway::start(failover()).await;
    let records = gateway
        .post(CHAT, chat(json!({"stream": true})))
        .await
        .records();
    assert_eq!(
        records[2],
        ": unamesh peer-changed from=my%20desk to=laptop seam=exact gap_ms=143.2"
    );
    let reply = gateway.post(CHAT, chat(json!({}))).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "Hello");
    assert_eq!(
        reply.header("x-unamesh-seam"),
        "from=my%20desk to=laptop seam=exact gap_ms=143.2"
    );
}

#[tokio::test]
async fn who_reads_trailers_gets_the_failover_there_too() {
    let gateway = TestGateway::start(failover()).await;
    let trailers = async |te: Option<&str>| {
        let mut request = gateway.request("POST", CHAT);
        if let Some(te) = te {
            request = request.header("te", te);
        }
        let request = request
            .body(Full::from(chat(json!({"stream": true}))))
            .unwrap();
        let (mut sender, _connection) = connect(gateway.addr).await;
        let response = sender.send_request(request).await.unwrap();
        let announced = response.headers().contains_key("trailer");
        let body = response.into_body().collect().await.unwrap();
        (announced, body.trailers().cloned())
    };
    let (announced, got) = trailers(Some("gzip, Trailers")).await;
    let got = got.unwrap();
    assert!(announced);
    assert_eq!(got["x-unamesh-peer"], "laptop");
    assert_eq!(
        got["x-unamesh-seam"],
        "from=my%20desk to=laptop seam=exact gap_ms=143.2"
    );
    assert_eq!(trailers(None).await, (false, None));
}

#[tokio::test]
async fn another_model_goes_on_only_if_the_caller_says_so() {
    let gateway = TestGateway::start(hello()).await;
    let post = async |word: Option<&str>| {
        let mut request = gateway.request("POST", CHAT);
        if let Some(word) = word {
            request = request.header("x-unamesh-failover", word);
        }
        gateway
            .send(request.body(Full::from(chat(json!({})))).unwrap())
            .await
    };
    for (word, allowed) in [
        (None, false),
        (Some("same-model"), false),
        (Some("other-model"), true),
    ] {
        assert_eq!(post(word).await.status, 200);
        assert_eq!(gateway.source.last().other_model, allowed);
    }
    let (status, error) = post(Some("any")).await.error();
    assert_eq!(
        (status, &error["param"]),
        (400, &json!("x-unamesh-failover"))
    );
}

#[tokio::test]
async fn a_failure_in_the_middle_is_never_a_silent_end() {
    let interrupted = ClientError::Interrupted {
        delivered: "Hel".to_owned(),
        tokens: 1,
        reason: "desk: connection lost".to_owned(),
    };
    let failed = vec![
        started(),
        token(0, "Hel"),
        Step::Say(Event::Failed(interrupted)),
    ];
    let cut = vec![started(), token(0, "Hel")];
    for script in [failed, cut] {
        let gateway = TestGateway::start(script).await;
        let records = gateway
            .post(CHAT, chat(json!({"stream": true})))
            .await
            .records();
        let last: Value = serde_json::from_str(records.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "interrupted");
        assert_eq!(last["error"]["type"], "server_error");
        assert_eq!(last["error"]["delivered_tokens"], 1);
        assert_eq!(records.len(), 3);

        let (status, error) = gateway.post(CHAT, chat(json!({}))).await.error();
        assert_eq!((status, &error["code"]), (502, &json!("interrupted")));
        assert_eq!(error["delivered_tokens"], 1);
    }
}

fn incomplete() -> Vec<Step> {
    let incomplete = ClientError::Incomplete {
        delivered: "{".to_owned(),
        tokens: 1,
        reason: "it fell silent".to_owned(),
    };
    vec![
        started(),
        token(0, "{"),
        Step::Say(Event::Failed(incomplete)),
    ]
}

#[tokio::test]
async fn what_is_not_streamed_is_asked_for_again_if_it_must_not_be_spliced() {
    let gateway = TestGateway::start(incomplete()).await;
    *gateway.source.again.lock().unwrap() = vec![hello()];
    let response = gateway.post(CHAT, chat(json!({}))).await;
    let body = response.json();
    assert_eq!(body["choices"][0]["message"]["content"], "Hello");
    assert_eq!(body["usage"]["completion_tokens"], 2, "of the last alone");
    assert_eq!(gateway.source.count(), 2);

    // Within a bound, and not if nobody takes it again.
    let gone = ClientError::NoPeer {
        model: "smollm2".to_owned(),
        near: Vec::new(),
    };
    let nobody = vec![Step::Say(Event::Failed(gone))];
    for (again, count) in [(vec![], 3), (vec![nobody], 2)] {
        let gateway = TestGateway::start(incomplete()).await;
        *gateway.source.again.lock().unwrap() = again;
        let (status, error) = gateway.post(CHAT, chat(json!({}))).await.error();
        assert_eq!((status, &error["code"]), (502, &json!("incomplete")));
        assert_eq!(gateway.source.count(), count);
    }

    // What is streamed has been seen.
    let gateway = TestGateway::start(incomplete()).await;
    let streamed = chat(json!({"stream": true}));
    gateway.post(CHAT, streamed).await.records();
    assert_eq!(gateway.source.count(), 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels() {
    let waiting = vec![Step::Hang];
    let streaming = vec![started(), token(0, "Hel"), Step::Hang];
    for (script, read_head) in [(waiting, false), (streaming, true)] {
        let gateway = TestGateway::start(script).await;
        let (mut sender, connection) = connect(gateway.addr).await;
        let body = Full::from(chat(json!({"stream": true})));
        let request = gateway.request("POST", CHAT).body(body).unwrap();
        let response = sender.send_request(request);
        if read_head {
            let mut body = response.await.unwrap().into_body();
            assert!(body.frame().await.is_some());
            gateway.source.until_running(1).await;
        } else {
            let sent = tokio::spawn(response);
            gateway.source.until_running(1).await;
            sent.abort();
        }
        connection.abort();
        gateway.source.until_running(0).await;
    }
}

#[tokio::test]
async fn a_shutdown_lets_an_idle_gateway_go_at_once() {
    let gateway = TestGateway::start(hello()).await;
    let (_sender, _connection) = connect(gateway.addr).await;
    gateway.get("/health").await;
    gateway.stop().await;
}

#[tokio::test]
async fn models_health_and_root() {
    let gateway = TestGateway::start(hello()).await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["org/tiny:q4", "smollm2"]);
    assert_eq!(
        list["data"][1]["unamesh"]["peers"],
        json!(["desk", "laptop"])
    );
    for path in ["/v1/models/org/tiny:q4", "/v1/models/org%2Ftiny%3Aq4"] {
        assert_eq!(gateway.get(path).await.json()["id"], "org/tiny:q4");
    }
    let (status, error) = gateway.get("/v1/models/nope").await.error();
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));

    let health = gateway.get("/health").await.json();
    assert_eq!(
        (&health["status"], &health["peers"], &health["models"]),
        (&json!("ok"), &json!(2), &json!(2))
    );
    assert!(gateway.get("/").await.text().contains("UnaMesh"));
}
