//! Transcription by an engine: what is asked for and what comes.

use super::EngineError;
use super::request::{Extra, object};
use futures_util::stream::BoxStream;
use serde_json::Value;
use tokio::sync::mpsc;

/// Samples a second of the sound that engines are given.
pub const RATE: u32 = 16_000;

/// An utterance to transcribe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HearCall {
    /// The model as the engine calls it; empty = its only one.
    pub model: String,
    /// BCP 47; empty = find out.
    pub language: String,
    /// Words that may occur; empty = none.
    pub prompt: String,
    /// Partial transcripts are of use.
    pub partials: bool,
    /// A JSON object of other fields for the engine; empty = none.
    pub extra: String,
}

impl HearCall {
    /// [`HearCall::extra`], read.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn extra(&self) -> Result<Extra, EngineError> {
        object(&self.extra)
    }

    /// Whisper and most others know languages without regions: `en` of `en-US`.
    pub fn bare_language(&self) -> &str {
        self.language.split(['-', '_']).next().unwrap_or_default()
    }
}

/// The sound: mono at [`RATE`], closed at the end of the utterance. Whoever drops the sender
/// without having sent all of it drops the [`HearStream`] too.
pub type Sound = mpsc::Receiver<Vec<i16>>;

/// What comes out of an engine that transcribes.
#[derive(Clone, Debug, PartialEq)]
pub enum HearEvent {
    /// Alive, nothing to deliver.
    Progress,
    /// All that is understood so far; replaces what came before.
    Partial {
        /// It.
        text: String,
    },
    /// The end. Nothing follows.
    Final {
        /// The whole; empty if nothing was said.
        text: String,
        /// BCP 47; empty if the engine does not tell.
        language: String,
        /// Its words with their times, if the engine tells.
        words: Vec<Word>,
        /// 0..=1, if the engine tells.
        confidence: Option<f32>,
    },
}

impl HearEvent {
    /// A final transcript of which only the text is known.
    pub fn bare(text: &str) -> HearEvent {
        HearEvent::Final {
            text: text.trim().to_owned(),
            language: String::new(),
            words: Vec::new(),
            confidence: None,
        }
    }
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// It.
    pub text: String,
    /// From the beginning of the utterance.
    pub start_ms: u32,
    /// Likewise.
    pub end_ms: u32,
}

impl Word {
    /// Reads `{"word" | "text", "start" | "start_time" (s) | "start_ms", ...}`.
    pub fn read(word: &Value) -> Option<Word> {
        let text = word["word"].as_str().or_else(|| word["text"].as_str())?;
        let time = |bare: &str| {
            let seconds = word[bare]
                .as_f64()
                .or_else(|| word[format!("{bare}_time")].as_f64());
            let ms = word[format!("{bare}_ms")].as_f64();
            // The cast saturates.
            ms.or(seconds.map(|s| s * 1000.0))
                .map(|ms| ms.round() as u32)
        };
        Some(Word {
            text: text.trim().to_owned(),
            start_ms: time("start")?,
            end_ms: time("end")?,
        })
    }

    /// Reads an array of them; what is none is left out.
    pub fn read_all(words: &Value) -> Vec<Word> {
        let words = words.as_array().map(Vec::as_slice).unwrap_or_default();
        words.iter().filter_map(Word::read).collect()
    }
}

/// A running transcription: partial transcripts and one terminal item, which is
/// [`HearEvent::Final`] or an error. Dropping it closes the engine's connection.
pub type HearStream = BoxStream<'static, Result<HearEvent, EngineError>>;

/// Appends `samples` as the bytes that engines read.
pub fn write(samples: &[i16], out: &mut Vec<u8>) {
    out.reserve(samples.len() * 2);
    out.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
}
