//! What llama.cpp answers, as far as it is of use here.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use unamesh_proto::wire::{ModelAdvert, ModelKind, Residency, Stats};

/// `GET /props`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Props {
    pub total_slots: u16,
    #[serde(default)]
    model_path: String,
    #[serde(default)]
    model_ftype: String,
    #[serde(default)]
    chat_template: String,
    #[serde(default)]
    pub build_info: String,
    default_generation_settings: Settings,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Settings {
    /// Of one slot.
    #[serde(default)]
    n_ctx: u32,
}

impl Props {
    /// Whether the template has the model think before it answers.
    pub fn reasons(&self) -> bool {
        ["<think>", "<|channel|>", "[THINK]", "reasoning_content"]
            .iter()
            .any(|mark| self.chat_template.contains(mark))
    }

    fn file_name(&self) -> &str {
        self.model_path
            .rsplit(['/', '\\'])
            .next()
            .unwrap_or_default()
    }
}

/// `GET /v1/models`.
#[derive(Deserialize)]
pub struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    meta: Option<Meta>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Meta {
    vocab_type: i64,
    n_vocab: u64,
    n_ctx_train: u64,
    n_embd: u64,
    n_params: u64,
    size: u64,
}

/// `GET /slots`.
#[derive(Deserialize)]
pub struct Slots(pub Vec<Slot>);

#[derive(Deserialize)]
pub struct Slot {
    #[serde(default)]
    pub is_processing: bool,
}

/// `POST /apply-template`.
#[derive(Deserialize)]
pub struct Rendered {
    pub prompt: String,
}

/// `POST /detokenize`.
#[derive(Deserialize)]
pub struct Content {
    pub content: String,
}

/// `POST /tokenize`.
#[derive(Deserialize)]
pub struct Tokens {
    pub tokens: Vec<u32>,
}

/// The advert of the server's model; `None` if it lists none.
pub fn advert(props: &Props, models: Models) -> Option<ModelAdvert> {
    let model = models.data.into_iter().next()?;
    let meta = model.meta.unwrap_or_default();
    let has_template = !props.chat_template.is_empty();
    let is_embedder = !has_template && model.id.to_ascii_lowercase().contains("embed");
    Some(ModelAdvert {
        engine: 0,
        digest: digest(props, &meta),
        // The id is an alias or the path of the file.
        name: model
            .id
            .rsplit(['/', '\\'])
            .next()
            .unwrap_or_default()
            .to_owned(),
        family: String::new(),
        quantization: props.model_ftype.clone(),
        size: meta.size,
        context: props.default_generation_settings.n_ctx,
        kind: if is_embedder {
            ModelKind::Embed
        } else {
            ModelKind::Llm
        },
        residency: Residency::Pinned,
        load_eta_ms: 0,
        token_ids: true,
        stats: Stats::default(),
    })
}

/// llama.cpp tells no digest of its file. Two servers with the same file agree on the name of
/// that file, on what its header says of the weights (parameters, bytes, vocabulary, width,
/// trained context, quantization) and on its chat template: a hash of these stands for the
/// file. Renamed copies do not match; they are found by the model's name then.
fn digest(props: &Props, meta: &Meta) -> String {
    if props.model_path.is_empty() || meta.n_params == 0 {
        return String::new();
    }
    let text = format!(
        "{}\n{} {} {} {} {} {}\n{}\n{}",
        props.file_name(),
        meta.n_params,
        meta.size,
        meta.n_vocab,
        meta.vocab_type,
        meta.n_embd,
        meta.n_ctx_train,
        props.model_ftype,
        props.chat_template,
    );
    let hash = Sha256::digest(text.as_bytes());
    format!(
        "gguf-header:{}",
        data_encoding::HEXLOWER.encode(&hash[..16])
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn props(path: &str) -> Props {
        serde_json::from_value(serde_json::json!({
            "total_slots": 2, "model_path": path, "model_ftype": "Q4_1",
            "chat_template": "{{ messages }}", "build_info": "b1",
            "default_generation_settings": {"n_ctx": 2048, "params": {}}
        }))
        .unwrap()
    }

    fn models(size: u64) -> Models {
        serde_json::from_value(serde_json::json!({
            "data": [{"id": "/models/smol.gguf", "meta": {"n_params": 134515008u64,
                "size": size, "n_vocab": 49152, "vocab_type": 2, "n_embd": 576,
                "n_ctx_train": 8192, "n_ctx": 2048}}]
        }))
        .unwrap()
    }

    #[test]
    fn the_same_file_has_the_same_digest_wherever_it_lies() {
        let here = advert(&props("/a/smol.gguf"), models(7)).unwrap();
        let there = advert(&props("C:\\b\\smol.gguf"), models(7)).unwrap();
        assert_eq!(here.digest, there.digest);
        assert_ne!(
            here.digest,
            advert(&props("/a/smol.gguf"), models(8)).unwrap().digest
        );
        assert_ne!(
            here.digest,
            advert(&props("/a/other.gguf"), models(7)).unwrap().digest
        );
        assert_eq!((here.name.as_str(), here.context), ("smol.gguf", 2048));
    }
}
