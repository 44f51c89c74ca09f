//! Model lists of OpenAI-style servers.

use serde::Deserialize;
use unamesh_proto::wire::{ModelAdvert, ModelKind, Residency, Stats};

/// `GET /v1/models`.
#[derive(Deserialize)]
pub struct List {
    pub data: Vec<Model>,
}

/// One of them.
#[derive(Deserialize)]
pub struct Model {
    id: String,
    /// vLLM's.
    max_model_len: Option<u32>,
}

impl Model {
    /// As the mesh tells of it.
    pub fn advert(self) -> ModelAdvert {
        let context = self.max_model_len.unwrap_or(0);
        ModelAdvert {
            context,
            ..advert(self.id)
        }
    }
}

/// `GET /api/v0/models`: LM Studio's own list says more than `/v1/models`.
#[derive(Deserialize)]
pub struct LmList {
    pub data: Vec<LmModel>,
}

/// One of them.
#[derive(Deserialize)]
pub struct LmModel {
    id: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    quantization: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    max_context_length: u32,
    loaded_context_length: Option<u32>,
}

impl LmModel {
    /// As the mesh tells of it.
    pub fn advert(self) -> ModelAdvert {
        let loaded = self.state == "loaded";
        ModelAdvert {
            family: self.arch,
            quantization: self.quantization,
            context: self
                .loaded_context_length
                .unwrap_or(self.max_context_length),
            kind: if self.kind == "embeddings" {
                ModelKind::Embed
            } else {
                ModelKind::Llm
            },
            residency: if loaded {
                Residency::Loaded
            } else {
                Residency::OnDisk
            },
            ..advert(self.id)
        }
    }
}

/// What a name alone tells. Servers that list a model and say no more have it in memory.
pub fn advert(name: String) -> ModelAdvert {
    let lower = name.to_ascii_lowercase();
    let has = |word: &str| lower.contains(word);
    let kind = match () {
        () if has("embed") => ModelKind::Embed,
        () if has("whisper") || has("-asr") || has("parakeet") || has("moonshine") => {
            ModelKind::Stt
        }
        () if has("tts") || has("kokoro") || has("vibevoice") || has("piper") => ModelKind::Tts,
        () => ModelKind::Llm,
    };
    ModelAdvert {
        engine: 0,
        name,
        digest: String::new(),
        family: String::new(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: false,
        stats: Stats::default(),
    }
}
