//! Which engine answers at a URL, and which answer on the standard ports.
//!
//! Each API is recognized by an answer that only it gives: Ollama by `/api/version`, llama.cpp
//! by the slots in `/props`, LM Studio by its own model list, vLLM by the owner that it writes
//! into `/v1/models`; what has a model list and none of these is OpenAI-style. An agent's own
//! gateway marks its list: taken for an engine, it would send a request in circles.

use super::EngineSpec;
use super::http::Http;
use serde_json::Value;
use std::collections::BTreeSet;
use unamesh_proto::timeouts::DETECT;
use unamesh_proto::wire::EngineKind;
use url::Url;

/// Where engines listen by default on the own machine, and what detection calls them.
pub const STANDARD: [(&str, u16); 4] = [
    ("ollama", 11434),
    ("llama.cpp", 8080),
    ("lmstudio", 1234),
    ("vllm", 8000),
];

/// Stands in the model list of an agent's gateway beside `data`.
pub const GATEWAY_MARK: &str = "unamesh";

/// An engine that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What to call it: its kind (`ollama`, `llama.cpp`, ...), with the port if it is no standard one.
    pub name: String,
    /// What API it speaks.
    pub kind: EngineKind,
    /// Where.
    pub url: Url,
}

impl Found {
    /// How to talk to it.
    pub fn into_spec(self) -> EngineSpec {
        EngineSpec {
            name: self.name,
            kind: Some(self.kind),
            url: self.url,
            slots: None,
            api_key: None,
        }
    }
}

/// What API answers at `http`; `None` if none does, or none that we speak.
pub async fn identify(http: &Http) -> Option<EngineKind> {
    if has(http, "/api/version", |v| v["version"].is_string()).await {
        return Some(EngineKind::Ollama);
    }
    if has(http, "/props", |v| v["total_slots"].is_u64()).await {
        return Some(EngineKind::LlamaCpp);
    }
    if has(http, "/api/v0/models", |v| v["data"].is_array()).await {
        return Some(EngineKind::LmStudio);
    }
    match http.get::<Value>("/v1/models", DETECT).await {
        Ok(Ok(list)) if !list[GATEWAY_MARK].is_null() => None,
        Ok(Ok(list)) if list["data"][0]["owned_by"] == "vllm" => Some(EngineKind::Vllm),
        Ok(Ok(list)) if list["data"].is_array() => Some(EngineKind::OpenAi),
        _ => None,
    }
}

async fn has(http: &Http, path: &str, is_it: impl Fn(&Value) -> bool) -> bool {
    matches!(http.get::<Value>(path, DETECT).await, Ok(Ok(answer)) if is_it(&answer))
}

/// Looks at the standard ports of this machine, all at once, except those in `taken` (engines
/// that are configured).
pub async fn standard_ports(taken: &BTreeSet<u16>) -> Vec<Found> {
    ports(
        STANDARD
            .iter()
            .map(|(_, port)| *port)
            .filter(|port| !taken.contains(port)),
    )
    .await
}

async fn ports(ports: impl Iterator<Item = u16>) -> Vec<Found> {
    let looks = ports.map(|port| async move {
        let url = Url::parse(&format!("http://127.0.0.1:{port}")).ok()?;
        let http = Http::with_idle(&url, None, 0).ok()?;
        let kind = identify(&http).await?;
        Some(Found {
            name: name(kind, port),
            kind,
            url,
        })
    });
    futures_util::future::join_all(looks)
        .await
        .into_iter()
        .flatten()
        .collect()
}

fn name(kind: EngineKind, port: u16) -> String {
    match STANDARD.iter().find(|(_, standard)| *standard == port) {
        Some((usual, _)) if *usual == kind.to_string() => kind.to_string(),
        _ => format!("{kind}-{port}"),
    }
}
