//! What Ollama answers, as far as it is of use here.

use crate::engine::EngineError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use unamesh_proto::wire::{ModelAdvert, ModelKind, Residency, Stats};

/// `GET /api/version`.
#[derive(Deserialize)]
pub struct Version {
    pub version: String,
}

/// `GET /api/tags`.
#[derive(Deserialize)]
pub struct Tags {
    #[serde(default)]
    pub models: Vec<Model>,
}

/// An entry of `/api/tags`.
#[derive(Deserialize)]
pub struct Model {
    pub name: String,
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    family: String,
    quantization_level: String,
}

/// `POST /api/show`.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Show {
    capabilities: Vec<String>,
    model_info: BTreeMap<String, Value>,
}

impl Show {
    /// What the model was trained for, in tokens.
    fn trained_context(&self) -> u32 {
        let entry = self
            .model_info
            .iter()
            .find(|(key, _)| key.ends_with(".context_length"));
        entry
            .and_then(|(_, value)| value.as_u64())
            .and_then(|n| n.try_into().ok())
            .unwrap_or(0)
    }

    fn kind(&self) -> ModelKind {
        let has = |what| self.capabilities.iter().any(|c| c == what);
        if has("embedding") && !has("completion") {
            ModelKind::Embed
        } else {
            ModelKind::Llm
        }
    }
}

/// `GET /api/ps`.
#[derive(Deserialize)]
pub struct Ps {
    #[serde(default)]
    models: Vec<Running>,
}

#[derive(Deserialize)]
struct Running {
    name: String,
    #[serde(default)]
    expires_at: String,
    #[serde(default)]
    context_length: u32,
}

/// Which models are in memory.
pub struct Loaded(Vec<Running>);

impl Loaded {
    /// As `/api/ps` says.
    pub fn of(ps: Ps) -> Self {
        Loaded(ps.models)
    }

    /// Whether `model` is among them.
    pub fn has(&self, model: &str) -> bool {
        self.find(model).is_some()
    }

    fn find(&self, model: &str) -> Option<&Running> {
        self.0
            .iter()
            .find(|running| full_name(&running.name) == full_name(model))
    }
}

/// Ollama reads a name without a tag as `:latest`.
fn full_name(name: &str) -> String {
    if name
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'))
    {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// The year up to which `expires_at` means a time; beyond it stands for `keep_alive: -1`.
const PINNED_YEAR: i32 = 2100;

impl Model {
    /// The model as the mesh tells of it.
    pub fn advert(self, show: &Show, loaded: &Loaded) -> ModelAdvert {
        let running = loaded.find(&self.name);
        let pinned = running.is_some_and(|r| {
            r.expires_at
                .split('-')
                .next()
                .and_then(|y| y.parse::<i32>().ok())
                > Some(PINNED_YEAR)
        });
        let residency = match running {
            Some(_) if pinned => Residency::Pinned,
            Some(_) => Residency::Loaded,
            None => Residency::OnDisk,
        };
        let running_context = running.map(|r| r.context_length).filter(|n| *n > 0);
        ModelAdvert {
            engine: 0,
            name: self.name,
            digest: self.digest,
            family: self.details.family,
            quantization: self.details.quantization_level,
            size: self.size,
            // What a cold model will run with is Ollama's choice; what it can do is an upper bound.
            context: running_context.unwrap_or_else(|| show.trained_context()),
            kind: show.kind(),
            residency,
            load_eta_ms: 0,
            token_ids: false,
            stats: Stats::default(),
        }
    }
}

/// A message of Ollama's chat: `content` is a text there, never a list of parts.
#[derive(Serialize)]
pub struct Message {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct OpenAiMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

/// OpenAI messages without media as Ollama takes them.
///
/// # Errors
/// They are no chat messages.
pub fn plain_messages(messages: &RawValue) -> Result<Vec<Message>, EngineError> {
    let messages: Vec<OpenAiMessage> =
        serde_json::from_str(messages.get()).map_err(|e| EngineError::Invalid {
            message: format!("messages: {e}"),
            field: Some("messages".to_owned()),
        })?;
    let plain = |message: OpenAiMessage| Message {
        role: message.role,
        content: match message.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect(),
            None => String::new(),
        },
    };
    Ok(messages.into_iter().map(plain).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_on_disk_in_memory_and_pinned() {
        let advert = |ps: &str| {
            let tags = r#"{"name":"smollm2:latest","digest":"d","size":7,
                "details":{"family":"llama","quantization_level":"Q4_1"}}"#;
            let model: Model = serde_json::from_str(tags).unwrap();
            let show: Show = serde_json::from_str(
                r#"{"capabilities":["completion"],"model_info":{"llama.context_length":8192}}"#,
            )
            .unwrap();
            model.advert(&show, &Loaded::of(serde_json::from_str(ps).unwrap()))
        };
        let cold = advert(r#"{"models":[]}"#);
        assert_eq!((cold.residency, cold.context), (Residency::OnDisk, 8192));
        let warm = advert(
            r#"{"models":[{"name":"smollm2","expires_at":"2026-11-24T06:00:00Z","context_length":4096}]}"#,
        );
        assert_eq!((warm.residency, warm.context), (Residency::Loaded, 4096));
        let kept =
            advert(r#"{"models":[{"name":"smollm2:latest","expires_at":"2318-03-04T00:00:00Z"}]}"#);
        assert_eq!((kept.residency, kept.context), (Residency::Pinned, 8192));
    }

    #[test]
    fn content_parts_become_text() {
        let raw = r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":"c"}]"#;
        let raw = RawValue::from_string(raw.to_owned()).unwrap();
        let json = serde_json::to_string(&plain_messages(&raw).unwrap()).unwrap();
        assert_eq!(
            json,
            r#"[{"role":"user","content":"ab"},{"role":"assistant","content":"c"}]"#
        );
    }
}
