//! Deterministic stand-ins for parts that are slow, random or absent in a test.

pub mod cut_engine;
pub mod ear_double;
pub mod engine_double;
pub mod fake_logind;
pub mod ollama_over_llama;
pub mod path_double;
pub mod script_engine;
pub mod speech_server;
pub mod talk;
pub mod voice_double;

pub use cut_engine::CutEngine;
pub use ear_double::{EarDouble, EarFailure, EarScript};
pub use engine_double::{EngineDouble, Failure, Script};
pub use fake_logind::FakeLogind;
pub use ollama_over_llama::OllamaOverLlama;
pub use path_double::PathDouble;
pub use script_engine::ScriptEngine;
pub use voice_double::{VoiceDouble, VoiceFailure, VoiceScript};
