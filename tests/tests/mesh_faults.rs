//! What goes wrong at the edges of a mesh, on real processes: each case does no harm to the
//! others, and its message says what to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use unamesh_client::identity::Credentials;
use unamesh_proto::timeouts;
use unamesh_tests::agent::run;
use unamesh_tests::cluster::{Agent, Cluster, MEET, Setup, ranked, turn};
use unamesh_tests::doubles::ScriptEngine;
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::http::{Net, Server};
use unamesh_tests::measure::until;

/// A whole answer of the scripted model by way of `agent`, or the error object.
async fn ask(agent: &Agent, model: &str) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Count."}]});
    let reply = agent
        .gateway()
        .send("/v1/chat/completions", Some(&body))
        .await
        .unwrap();
    let (status, mut value) = (reply.status(), reply.json().await.unwrap());
    value["status"] = status.into();
    value
}

async fn answers(agent: &Agent) {
    let script = Script::default();
    let what = format!("{} gets an answer", agent.setup.name);
    until(&what, MEET, async || {
        let answer = ask(agent, &script.model).await;
        let text = &answer["choices"][0]["message"]["content"];
        if *text == script.answer() {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
}

/// A desk, and a laptop with the scripted engine.
async fn pair() -> (Cluster, ScriptEngine) {
    let engine = ScriptEngine::start(Script::default()).await;
    let setups = vec![Setup::new("desk"), Setup::new("laptop").engine(engine.addr)];
    let cluster = Cluster::start(setups).await;
    cluster.chooses(0, &Script::default().model, &[1]).await;
    (cluster, engine)
}

/// Starts `agent`, which must end by itself with an error, and returns what it said.
async fn refuses(agent: &mut Agent) -> String {
    agent.spawn();
    let status = agent.ended().await;
    let said = agent.log();
    assert!(!status.success(), "it went on: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn says(text: &str, parts: &[&str]) {
    let lower = text.to_lowercase();
    for part in parts {
        assert!(
            lower.contains(&part.to_lowercase()),
            "does not say {part:?}: {text}"
        );
    }
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_near_names_and_their_machines() {
    let (cluster, _engine) = pair().await;
    let answer = ask(&cluster.agents[0], "scirpt").await;
    assert_eq!(answer["status"], 404, "{answer}");
    assert_eq!(answer["error"]["code"], "model_not_found", "{answer}");
    assert_eq!(answer["error"]["param"], "model", "{answer}");
    says(
        answer["error"]["message"].as_str().unwrap(),
        &["scirpt", "script", "laptop"],
    );
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_way_out() {
    let _turn = turn().await;
    let root = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(root.path(), Setup::new("desk"));
    agent.run(&["init"]).await.unwrap();

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = tcp.local_addr().unwrap();
    agent.set(&[("gateway.listen", &taken.to_string())]);
    says(
        &refuses(&mut agent).await,
        &[
            &taken.port().to_string(),
            "gateway",
            "in use",
            "another port",
        ],
    );

    let udp = UdpSocket::bind("[::]:0").unwrap();
    let taken = udp.local_addr().unwrap();
    agent.set(&[("mesh.listen", &taken.to_string())]);
    says(
        &refuses(&mut agent).await,
        &[&taken.port().to_string(), "mesh", "taken"],
    );

    agent.set(&[]);
    agent.start().await;
}

#[tokio::test]
async fn one_state_directory_serves_one_agent() {
    let (cluster, _engine) = pair().await;
    let desk = &cluster.agents[0];
    let state = desk.state.to_str().unwrap();
    let line = ["--state", state, "up", "--gateway", "127.0.0.1:0"];
    let output = run(&Net::Host, &line).await;
    assert!(!output.status.success());
    says(
        &String::from_utf8_lossy(&output.stderr),
        &["already", state],
    );
    answers(desk).await;
}

#[tokio::test]
async fn a_read_only_or_full_disk_is_named_and_does_not_stop_an_agent() {
    let _turn = turn().await;
    let root = tempfile::tempdir().unwrap();
    let engine = ScriptEngine::start(Script::default()).await;
    let gateway = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut agent = Agent::new(root.path(), Setup::new("desk").engine(engine.addr));
    agent.set(&[("gateway.listen", &gateway.to_string())]);
    agent.run(&["init"]).await.unwrap();
    let state = agent.state.to_str().unwrap().to_owned();
    // Root may write anywhere: it takes a mount of its own to stop it.
    let mounted = |script: &str| {
        let script = format!("{script} && exec \"$@\"").replace("STATE", &state);
        ["unshare", "--mount", "sh", "-c", &script, "sh"]
            .map(str::to_owned)
            .to_vec()
    };
    let disks = [
        (
            "read-only",
            "mount --bind STATE STATE && mount -o remount,ro,bind STATE",
        ),
        (
            "space",
            "cp -a STATE STATE.kept && mount -t tmpfs -o size=64k none STATE && \
             cp -a STATE.kept/. STATE && { cat /dev/zero > STATE/fill 2>/dev/null || true; }",
        ),
    ];
    for (word, script) in disks {
        agent.setup.wrapper = mounted(script);
        agent.spawn();
        // It cannot write down where it listens, but it works.
        let server = Server {
            net: Net::Host,
            addr: gateway,
            token: None,
        };
        let question = json!({"model": "script", "messages": [{"role": "user", "content": "?"}]});
        until("it answers", MEET, async || {
            server.json("/v1/chat/completions", Some(&question)).await
        })
        .await;
        says(&agent.log(), &[&state, word]);
        assert!(agent.terminate().await.success(), "{}", agent.log());
    }
}

#[tokio::test]
async fn two_agents_with_one_key_are_noticed() {
    let (cluster, _engine) = pair().await;
    // A machine restored from a backup of another one, say.
    let twin = Setup::new("twin");
    let mut twin = Agent::new(cluster.root.path(), twin);
    copy(&cluster.agents[1].state, &twin.state);
    twin.spawn();
    let desk = &cluster.agents[0];
    until("somebody is told of the twin", MEET, async || {
        let told = format!("{}{}{}", desk.log(), cluster.agents[1].log(), twin.log());
        if told.contains("another agent runs with the same key") {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await;
    // Whatever the twins do, the mesh has one entry for the key and goes on.
    let peers = desk.api("peers").await.unwrap();
    let entries = peers.as_array().unwrap().iter();
    assert_eq!(
        entries
            .filter(|p| p["node"] == cluster.agents[1].node())
            .count(),
        1
    );
    drop(twin);
    answers(desk).await;
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success());
    // These are of the running process, not of the machine.
    std::fs::remove_file(to.join("agent.json")).unwrap();
}

#[tokio::test]
async fn a_peer_of_another_mesh_stays_outside() {
    let (cluster, _engine) = pair().await;
    let mut stranger = Agent::new(cluster.root.path(), Setup::new("stranger"));
    stranger.run(&["init"]).await.unwrap();
    stranger.set(&[("mesh.seeds", &cluster.agents[0].quic().to_string())]);
    stranger.start().await;
    until("the stranger says why it stays outside", MEET, async || {
        let log = stranger.log().to_lowercase();
        if log.contains("two meshes") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(
        stranger
            .api("peers")
            .await
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        cluster.agents[0]
            .api("peers")
            .await
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        ranked(&stranger, "script").await.unwrap(),
        Vec::<String>::new()
    );
    answers(&cluster.agents[0]).await;
}

#[tokio::test]
async fn an_old_protocol_version_is_refused_by_name() {
    let (cluster, _engine) = pair().await;
    let [desk, laptop] = &cluster.agents[..] else {
        panic!("two agents")
    };
    let reason = dial(&laptop.state, desk, b"unamesh/0").await.unwrap_err();
    // TLS alert 120: no application protocol in common.
    says(&reason, &["120"]);
    dial(&laptop.state, desk, b"unamesh/1").await.unwrap();
    answers(desk).await;
}

/// Dials `agent` as the member whose state this is, in protocol version `alpn`.
async fn dial(state: &Path, agent: &Agent, alpn: &[u8]) -> Result<(), String> {
    let credentials = Credentials::load(state).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(credentials.ca.clone()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivatePkcs8KeyDer::from(credentials.key.to_pkcs8().to_vec());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![credentials.certificate.clone().into()], key.into())
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let name = format!("{}.unamesh.internal", agent.node());
    let connecting = endpoint.connect_with(config, agent.quic(), &name).unwrap();
    connecting.await.map(|_| ()).map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_clock_that_is_off_by_a_day_does_no_harm() {
    for offset in ["+1d", "-1d"] {
        let engine = ScriptEngine::start(Script::default()).await;
        let mut laptop = Setup::new("laptop").engine(engine.addr);
        laptop.wrapper = faketime(offset);
        let cluster = Cluster::start(vec![Setup::new("desk"), laptop]).await;
        answers(&cluster.agents[0]).await;
        // Ages and time-outs must not depend on it either.
        let start = Instant::now();
        while start.elapsed() < timeouts::TABLE_DOWN + timeouts::ADVERT_EVERY {
            answers(&cluster.agents[0]).await;
        }
    }
}

/// Shifts the wall clock of a process; its monotonic clock stays.
fn faketime(offset: &str) -> Vec<String> {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = libraries
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no libfaketime here: apt-get install faketime"));
    let set = |name: &str, value: &str| format!("{name}={value}");
    vec![
        "env".into(),
        set("LD_PRELOAD", library.to_str().unwrap()),
        set("FAKETIME", offset),
        set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}
