//! The client of the mesh API against a server that answers what it is told to.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::args::Global;
use super::context::Context;
use super::error::{CliError, NO_AGENT};
use super::local::Local;
use super::output::{BAD, Out, Table, cell};
use crate::ca::{CA_DIR, Ca};
use crate::engine::{Engine, EngineError, EngineInfo, EngineStream};
use crate::node::Agent;
use crate::state::{AdminToken, AgentInfo, StateDir, StateLock};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::any;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unamesh_client::clock;
use unamesh_client::identity::{Credentials, NodeKey};
use unamesh_proto::wire::{
    EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind, Residency, Role, Stats,
};

/// A state directory as a running agent leaves it, and the agent's answers.
struct Fake {
    dir: tempfile::TempDir,
    state: StateDir,
    _lock: Option<StateLock>,
    _server: JoinSet<()>,
}

impl Fake {
    async fn answering(status: u16, body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let fake = Fake::at(addr);
        let token = AdminToken::load(&fake.state).unwrap().unwrap();
        let expected = format!("Bearer {}", token.reveal());
        let app = Router::new().fallback(any(move |request: Request| async move {
            assert_eq!(request.headers()["authorization"], expected.as_str());
            (StatusCode::from_u16(status).unwrap(), body)
        }));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Fake {
            _server: server,
            ..fake
        }
    }

    fn at(gateway: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        AdminToken::load_or_create(&state).unwrap();
        let info = AgentInfo {
            pid: 4711,
            node: "n".into(),
            name: "desk".into(),
            version: "0".into(),
            gateway,
            quic: "[::]:2".parse().unwrap(),
            started_ms: 0,
        };
        info.write(&state).unwrap();
        let lock = state.lock().unwrap();
        Fake {
            dir,
            state,
            _lock: lock,
            _server: JoinSet::new(),
        }
    }

    fn context(&self) -> Context {
        Context::new(Global {
            state: Some(self.dir.path().into()),
            ..Global::default()
        })
    }
}

#[tokio::test]
async fn an_answer_is_json() {
    let fake = Fake::answering(200, r#"{"a":1}"#).await;
    let local = Local::find(&fake.context()).unwrap();
    assert_eq!(local.get("status").await.unwrap(), json!({"a": 1}));
    assert_eq!(
        local.post("ping", &json!({})).await.unwrap(),
        json!({"a": 1})
    );
}

#[tokio::test]
async fn a_refusal_is_the_agents_own_words() {
    let body = r#"{"error":{"message":"no such peer","code":"not_found","param":null}}"#;
    let fake = Fake::answering(404, body).await;
    let error = Local::find(&fake.context())
        .unwrap()
        .get("ping")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("not_found", "no such peer")
    );
}

#[tokio::test]
async fn rubbish_is_no_answer() {
    let fake = Fake::answering(200, "<html>").await;
    let error = Local::find(&fake.context())
        .unwrap()
        .get("status")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.exit),
        ("agent_silent", NO_AGENT)
    );
    assert!(error.next[0].ends_with(" doctor"), "{error:?}");
}

#[tokio::test]
async fn lines_arrive_one_by_one_and_end() {
    let fake = Fake::answering(200, "{\"n\":1}\n\n{\"n\":2}\n").await;
    let local = Local::find(&fake.context()).unwrap();
    let mut lines = local.lines("generate", &json!({})).await.unwrap();
    assert_eq!(lines.next().await.unwrap(), Some(json!({"n": 1})));
    assert_eq!(lines.next().await.unwrap(), Some(json!({"n": 2})));
    assert_eq!(lines.next().await.unwrap(), None);
}

/// Without an agent the next command depends on whether this machine is in a mesh.
#[test]
fn no_agent_says_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let context = Context::new(Global {
        state: Some(dir.path().join("none")),
        ..Global::default()
    });
    let find = |context: &Context| -> CliError { Local::find(context).err().unwrap() };
    let error = find(&context);
    assert_eq!((error.code.as_str(), error.exit), ("not_paired", NO_AGENT));
    assert!(error.next[0].contains(" init && "), "{error:?}");
    assert!(
        !dir.path().join("none").exists(),
        "asking makes no directory"
    );

    let state = StateDir::open(&dir.path().join("none")).unwrap();
    state.write("mesh.json", b"{}").unwrap();
    let error = find(&context);
    assert_eq!(error.code, "no_agent");
    assert!(error.next[0].ends_with(" up"), "{error:?}");

    let _lock = state.lock().unwrap();
    assert_eq!(
        find(&context).code,
        "agent_unknown",
        "it runs on a full disk, say"
    );
}

/// A dead agent's file remains; a hanging agent's lock does too.
#[tokio::test]
async fn a_dead_agent_is_told_from_one_that_does_not_answer() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = unused.local_addr().unwrap();
    drop(unused);
    let mut fake = Fake::at(addr);
    let local = Local::find(&fake.context()).unwrap();
    let error = local.get("status").await.unwrap_err();
    assert_eq!(error.code, "agent_silent");
    assert!(error.message.contains("process 4711"), "{error:?}");
    fake._lock = None;
    assert_eq!(local.get("status").await.unwrap_err().code, "no_agent");
    // Not even asked: another program may have its port by now, and would be told the token.
    let error = Local::find(&fake.context()).err().unwrap();
    assert_eq!(error.code, "no_agent");
}

#[test]
fn a_table_in_a_pipe_is_one_line_a_row() {
    let mut table = Table::new(&["NAME", "N"]).numbers(&[1]);
    table.row(vec![cell("de\x1b[2Jsk\n", BAD), "7".into()]);
    table.row(vec!["attic".into(), "12".into()]);
    let text = table.render(&Out::piped());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        !text.contains('\x1b'),
        "neither colours nor a peer's own escapes: {text:?}"
    );
    assert!(text.is_ascii() || text.contains('\u{fffd}'));
    assert!(table.render(&Out::terminal()).contains("\x1b["));
}

#[test]
fn errors_are_json_for_scripts() {
    let error = CliError::new("no_agent", "none").next("unamesh up");
    let expected =
        json!({"error": {"code": "no_agent", "message": "none", "next": ["unamesh up"]}});
    assert_eq!(error.json(), expected);
}

/// An engine with one model that answers nothing: its description is enough.
struct Described;

#[async_trait::async_trait]
impl Engine for Described {
    fn name(&self) -> &str {
        "described"
    }
    fn kind(&self) -> EngineKind {
        EngineKind::LlamaCpp
    }
    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let model = ModelAdvert {
            engine: 0,
            name: "m".into(),
            digest: "d".into(),
            family: "f".into(),
            quantization: "q".into(),
            size: 1,
            context: 1,
            kind: ModelKind::Llm,
            residency: Residency::Loaded,
            load_eta_ms: 0,
            token_ids: true,
            stats: Stats::default(),
        };
        Ok(EngineInfo {
            health: Health::Ok,
            slots: 1,
            models: vec![model],
            version: String::new(),
            voices: Vec::new(),
        })
    }
    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(EngineError::Busy {
            engine: "described".into(),
        })
    }
}

/// Every key in `value`, however deep.
fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                into.insert(key.clone());
                keys(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        _ => {}
    }
}

/// A real agent, asked as the commands ask it: PROTOCOL.md names every key it answers with.
#[tokio::test]
async fn the_keys_of_every_answer_are_documented() {
    let document = include_str!("../../../proto/PROTOCOL.md");
    let (_, section) = document.split_once("## JSON output").unwrap();
    let words = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .map(str::to_owned)
            .collect()
    };
    let stats = words(section.lines().last().unwrap());

    let (dir, attic) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    crate::ca::init(dir.path(), "home", "desk", clock::wall()).unwrap();
    let agent = described(dir.path(), Vec::new()).await;
    // Somebody to be pinged.
    let ca = Ca::load(&dir.path().join(CA_DIR)).unwrap();
    let key = NodeKey::generate();
    let certificate = ca.issue(key.id(), Role::Agent, "attic", clock::wall());
    let papers = (certificate.unwrap(), ca.certificate().to_vec());
    let member = Credentials::new(key, papers.0, papers.1, "home".to_owned()).unwrap();
    member.save(attic.path()).unwrap();
    let other = described(attic.path(), vec![agent.quic().to_string()]).await;
    let context = Context::new(Global {
        state: Some(dir.path().into()),
        ..Global::default()
    });
    let found = async {
        loop {
            if let Ok(local) = Local::find(&context)
                && let Ok(models) = local.get("models").await
                && models != json!([])
                && let Ok(Value::Array(peers)) = local.get("peers").await
                && peers.len() == 2
            {
                return local;
            }
            tokio::task::yield_now().await;
        }
    };
    let local = tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap();
    let invite = json!({"role": "client", "valid_for_s": 5, "uses": 1});
    let answers = [
        ("status", local.get("status").await),
        ("peers", local.get("peers").await),
        ("models", local.get("models").await),
        ("engines", local.get("engines").await),
        ("why", local.get("why?model=m").await),
        ("ping", local.post("ping", &json!({})).await),
        ("invite", local.post("invite", &invite).await),
        (
            "drain",
            local.post("drain", &json!({"deadline_ms": 1})).await,
        ),
    ];
    for (command, answer) in answers {
        let row = section
            .lines()
            .find(|l| l.starts_with(&format!("| `{command}")))
            .unwrap();
        let documented = &words(row) | &stats;
        let answer = answer.unwrap();
        // The commands make their tables of it: an object here would read as an empty list.
        let is_list = answer.as_array().is_some_and(|rows| !rows.is_empty());
        assert_eq!(is_list, row.contains("| array"), "{command}: {answer}");
        let mut found = BTreeSet::new();
        keys(&answer, &mut found);
        let missing: Vec<_> = found.difference(&documented).collect();
        assert!(
            missing.is_empty(),
            "{command}: PROTOCOL.md does not name {missing:?}"
        );
        assert!(!found.is_empty(), "{command}");
    }
    tokio::join!(
        agent.shutdown(Duration::ZERO),
        other.shutdown(Duration::ZERO)
    );
}

/// A member of the mesh in `dir`, with an engine.
async fn described(dir: &Path, seeds: Vec<String>) -> Agent {
    let mut config = crate::config::Config::default();
    config.gateway.listen = "127.0.0.1:0".parse().unwrap();
    config.mesh.listen = "127.0.0.1:0".parse().unwrap();
    (config.mesh.seeds, config.mesh.mdns) = (seeds, false);
    config.engines.detect = false;
    let state = StateDir::open(dir).unwrap();
    Agent::start_with(config, state, vec![Arc::new(Described)])
        .await
        .unwrap()
}
