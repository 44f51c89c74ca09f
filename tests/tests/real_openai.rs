//! The `openai` Python package, unchanged, against the gateway of a mesh whose engines are real
//! llama.cpp servers: streaming and not, and through the death of the agent that answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::Value;
use std::time::Duration;
use unamesh_tests::cluster::{Cluster, Setup};
use unamesh_tests::measure::until;
use unamesh_tests::real::{Client, MODEL, engine, starter};

const PROMPT: &str = "Write three sentences about the sea.";
/// A request reaches an engine within this.
const BUSY: Duration = Duration::from_secs(10);

/// A desk without an engine, and two machines with a llama.cpp of their own.
struct Mesh {
    cluster: Cluster,
    url: String,
}

impl Mesh {
    async fn start() -> Self {
        let starter = starter().await;
        let machine = |name: &str| Setup {
            config: engine(starter),
            ..Setup::new(name)
        };
        let setups = vec![Setup::new("desk"), machine("laptop"), machine("tower")];
        let cluster = Cluster::start(setups).await;
        cluster.chooses(0, MODEL, &[1, 2]).await;
        let url = format!("http://{}/v1", cluster.agents[0].gateway().addr);
        Self { cluster, url }
    }

    /// Starts a command of `openai_client.py`.
    async fn openai(&self, command: &str, prompt: &[&str]) -> Client {
        let mut arguments = vec![self.url.as_str(), command, MODEL];
        arguments.extend_from_slice(prompt);
        Client::start(&arguments).await
    }
}

#[tokio::test]
async fn the_package_works_unchanged() {
    let mesh = Mesh::start().await;
    let listed = Client::start(&[&mesh.url, "models"]).await.last().await;
    assert!(
        listed["models"].as_array().unwrap().contains(&MODEL.into()),
        "{listed}"
    );

    let whole = mesh.openai("chat", &[PROMPT]).await.last().await;
    assert!(whole["text"].as_str().unwrap().len() > 40, "{whole}");
    assert!(
        ["stop", "length"]
            .map(Into::into)
            .contains(&whole["finish"]),
        "{whole}"
    );
    assert!(
        (10..=60).contains(&whole["tokens"].as_u64().unwrap()),
        "{whole}"
    );

    let streamed = mesh.openai("stream", &[PROMPT]).await.last().await;
    assert_eq!(streamed, whole);
}

#[tokio::test]
async fn errors_are_the_packages_own_exceptions() {
    let mesh = Mesh::start().await;
    let mut client = mesh.openai("errors", &[]).await;
    let mut raised = Vec::new();
    while let Some(case) = client.next().await {
        raised.push(case);
    }
    let of = |name: &str| raised.iter().find(|case| case["case"] == name).unwrap();
    let check = |name: &str, class: &str, param: Option<&str>| {
        let case = of(name);
        assert_eq!(case["raised"], class, "{case}");
        if let Some(param) = param {
            assert_eq!(case["param"], param, "{case}");
        }
    };
    check("unknown model", "NotFoundError", Some("model"));
    check("temperature", "BadRequestError", Some("temperature"));
    check("max_tokens", "BadRequestError", Some("max_tokens"));
    check("messages", "BadRequestError", Some("messages"));
    check("context", "BadRequestError", None);
    assert_eq!(of("unknown model")["code"], "model_not_found");
    assert_eq!(of("context")["code"], "context_length_exceeded");
}

#[tokio::test]
async fn a_stream_survives_the_death_of_its_agent() {
    let mut mesh = Mesh::start().await;
    let expected = mesh.openai("chat", &[PROMPT]).await.last().await;
    let mut client = mesh.openai("stream", &[PROMPT]).await;
    let answering = client.next().await.unwrap();
    let victim = mesh.cluster.index_of(answering["node"].as_str().unwrap());
    let (mut deltas, mut last) = (0, Value::Null);
    while let Some(event) = client.next().await {
        deltas += 1;
        if deltas == 12 {
            mesh.cluster.agents[victim].kill().await;
        }
        last = event;
    }
    assert_eq!(last, expected);
}

#[tokio::test]
async fn an_answer_in_one_piece_survives_it_too() {
    let mut mesh = Mesh::start().await;
    let expected = mesh.openai("chat", &[PROMPT]).await.last().await;
    let mut client = mesh.openai("chat", &[PROMPT]).await;
    // The headers come with the answer, so who gives it is seen from its status.
    let (victim, _) = until("somebody answers", BUSY, async || {
        for index in [1, 2] {
            let status = mesh.cluster.agents[index].api("status").await?;
            if status["active"].as_u64() > Some(0) {
                return Ok(index);
            }
        }
        Err("all idle".into())
    })
    .await;
    mesh.cluster.agents[victim].kill().await;
    let said = client.next().await.unwrap();
    // It may have died before the first token: then nothing was continued.
    if let Some(seam) = said["seam"].as_str() {
        assert!(seam.contains(" seam=exact gap_ms="), "{said}");
    }
    assert!(
        said["peer"].is_string() && said["why"].is_string(),
        "{said}"
    );
    assert_eq!(client.last().await, expected);
}
