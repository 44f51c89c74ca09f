//! The kinds of engines that can be configured.

use serde::{Deserialize, Serialize};
use unamesh_proto::wire::EngineKind;

/// The API of a configured engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineApi {
    /// Asked of the engine itself.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// llama.cpp's server.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Ollama's own API.
    #[serde(rename = "ollama")]
    Ollama,
    /// Any OpenAI-style server.
    #[serde(rename = "openai")]
    OpenAi,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// LM Studio.
    #[serde(rename = "lmstudio")]
    LmStudio,
    /// An OpenAI-style server of speech.
    #[serde(rename = "openai-speech")]
    OpenAiSpeech,
    /// Piper's own HTTP server.
    #[serde(rename = "piper")]
    Piper,
    /// Chatterbox.
    #[serde(rename = "chatterbox")]
    Chatterbox,
    /// The Wyoming protocol; its URL is `tcp://HOST:PORT`.
    #[serde(rename = "wyoming")]
    Wyoming,
    /// GLM-ASR's WebSocket; its URL is `http://HOST:PORT`.
    #[serde(rename = "glm-asr")]
    GlmAsr,
    /// The voice of the operating system; needs no URL.
    #[serde(rename = "system")]
    System,
    /// An OpenAI-style server that transcribes only.
    #[serde(rename = "whisper")]
    Whisper,
}

impl EngineApi {
    /// The schemes of its URL; none if it needs no URL.
    pub const fn schemes(self) -> &'static [&'static str] {
        match self {
            EngineApi::Wyoming => &["tcp", "http"],
            EngineApi::GlmAsr => &["http", "ws"],
            EngineApi::System => &[],
            // `https` is refused where it is used, with a way out.
            _ => &["http", "https"],
        }
    }

    /// The kind on the wire; `None` = find out.
    pub const fn kind(self) -> Option<EngineKind> {
        match self {
            EngineApi::Auto => None,
            EngineApi::LlamaCpp => Some(EngineKind::LlamaCpp),
            EngineApi::Ollama => Some(EngineKind::Ollama),
            EngineApi::OpenAi => Some(EngineKind::OpenAi),
            EngineApi::Vllm => Some(EngineKind::Vllm),
            EngineApi::LmStudio => Some(EngineKind::LmStudio),
            EngineApi::OpenAiSpeech => Some(EngineKind::OpenAiSpeech),
            EngineApi::Piper => Some(EngineKind::Piper),
            EngineApi::Chatterbox => Some(EngineKind::Chatterbox),
            EngineApi::Wyoming => Some(EngineKind::Wyoming),
            EngineApi::GlmAsr => Some(EngineKind::GlmAsr),
            EngineApi::System => Some(EngineKind::System),
            EngineApi::Whisper => Some(EngineKind::Whisper),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind is written in the file as it is shown everywhere else.
    #[test]
    fn kinds_are_called_as_on_the_wire() {
        let written = |api: EngineApi| serde_json::to_value(api).ok();
        let kinds = (1..=12).map(EngineKind::from_code);
        let all = [
            EngineApi::LlamaCpp,
            EngineApi::Ollama,
            EngineApi::OpenAi,
            EngineApi::Vllm,
            EngineApi::LmStudio,
            EngineApi::OpenAiSpeech,
            EngineApi::Piper,
            EngineApi::Chatterbox,
            EngineApi::Wyoming,
            EngineApi::GlmAsr,
            EngineApi::System,
            EngineApi::Whisper,
        ];
        for (api, kind) in all.into_iter().zip(kinds) {
            assert_eq!(api.kind(), Some(kind));
            assert_eq!(written(api), Some(kind.to_string().into()));
        }
    }
}
