//! Which engine answers at a URL, and which answer on the standard ports.
//!
//! Each API is recognized by an answer that only it gives: Ollama by `/api/version`, llama.cpp
//! by the slots in `/props`, LM Studio by its own model list, vLLM by the owner that it writes
//! into `/v1/models`; engines of speech by their lists of voices, Chatterbox by
//! `/api/model-info`, GLM-ASR by its WebSocket, Wyoming by its `info`; what has a model list and
//! none of these is OpenAI-style, for speech if the list says that its models do nothing else.
//! An agent's own gateway marks its list: taken for an engine, it would send a request in circles.

use super::http::{Http, HttpError};
use super::openai_speech::{HEARS, SPEAKS, read_voices};
use super::{EngineSpec, glm_asr, piper, wyoming};
use hyper::StatusCode;
use serde_json::Value;
use std::collections::BTreeSet;
use unamesh_proto::timeouts::DETECT;
use unamesh_proto::wire::EngineKind;
use url::Url;

/// Where engines listen by default on the own machine, and what detection calls them.
/// Two stand there by the name of the protocol's usual program; detection adds the port.
pub const STANDARD: [(&str, u16); 11] = [
    ("ollama", 11434),
    ("llama.cpp", 8080),
    ("lmstudio", 1234),
    ("vllm", 8000),
    ("openai-speech", 8880),
    ("piper", 11402),
    ("chatterbox", 8004),
    ("glm-asr", GLM_ASR),
    ("whisper", WHISPER),
    ("wyoming-piper", WYOMING[0]),
    ("wyoming-whisper", WYOMING[1]),
];

/// These cannot be told by an answer to HTTP, so they are asked for where they usually are.
const GLM_ASR: u16 = 8081;
const WHISPER: u16 = 11401;
const WYOMING: [u16; 2] = [10200, 10300];

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
    if has(http, "/api/model-info", Value::is_object).await {
        return Some(EngineKind::Chatterbox);
    }
    if has(http, "/v1/audio/voices", |v| read_voices(v).is_some()).await {
        return Some(EngineKind::OpenAiSpeech);
    }
    match http.get::<Value>("/v1/models", DETECT).await {
        Ok(Ok(list)) if !list[GATEWAY_MARK].is_null() => None,
        Ok(Ok(list)) if list["data"][0]["owned_by"] == "vllm" => Some(EngineKind::Vllm),
        Ok(Ok(Value::Object(list))) if list.get("data").is_some_and(Value::is_array) => {
            Some(by_tasks(&list["data"]))
        }
        Err(HttpError::Connect(_) | HttpError::Late(_)) => None,
        _ => speech(http).await,
    }
}

/// Servers of speech write into their list what each model does; others do not.
fn by_tasks(models: &Value) -> EngineKind {
    let models = models.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = |tasks: &[&str]| {
        let does = |model: &Value| {
            model["task"]
                .as_str()
                .is_some_and(|task| tasks.contains(&task))
        };
        !models.is_empty() && models.iter().all(does)
    };
    if all(&[HEARS]) {
        EngineKind::Whisper
    } else if all(&[HEARS, SPEAKS]) {
        EngineKind::OpenAiSpeech
    } else {
        EngineKind::OpenAi
    }
}

/// Engines of speech that have no list of models.
async fn speech(http: &Http) -> Option<EngineKind> {
    if let Ok(Ok(list)) = http.get::<Value>("/voices", DETECT).await {
        if piper::is_list(&list) {
            return Some(EngineKind::Piper);
        }
        if read_voices(&list).is_some() {
            return Some(EngineKind::OpenAiSpeech);
        }
    }
    // A path that exists and is not for GET; small servers know no other sign of life.
    let transcribes = http.status("/v1/audio/transcriptions", DETECT).await;
    let standard = http.local_port() == Some(WHISPER);
    match transcribes {
        Ok(StatusCode::METHOD_NOT_ALLOWED) => Some(EngineKind::Whisper),
        Ok(_) if standard && has(http, "/health", |_| true).await => Some(EngineKind::Whisper),
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
        if WYOMING.contains(&port) {
            let url = Url::parse(&format!("tcp://127.0.0.1:{port}")).ok()?;
            let kind = EngineKind::Wyoming;
            return wyoming::answers(&url, DETECT).await.then(|| Found {
                name: name(kind, port),
                kind,
                url,
            });
        }
        let url = Url::parse(&format!("http://127.0.0.1:{port}")).ok()?;
        let http = Http::with_idle(&url, None, 0).ok()?;
        let kind = match identify(&http).await {
            None if port == GLM_ASR && glm_asr::answers(&url, DETECT).await => EngineKind::GlmAsr,
            kind => kind?,
        };
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
