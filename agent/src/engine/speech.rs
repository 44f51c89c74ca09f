//! Speech from an engine: what is asked for and what comes.

use super::EngineError;
use super::request::{Extra, object};
use futures_util::stream::BoxStream;
use hyper::StatusCode;
use unamesh_proto::limits::MAX_NAME;

/// A text to speak.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeechCall {
    /// The model as the engine calls it; empty = its only one.
    pub model: String,
    /// The voice as the engine calls it; empty = the engine's default.
    pub voice: String,
    /// BCP 47; empty = the voice's own.
    pub language: String,
    /// What to say, in one piece: mostly one chunk of
    /// [`unamesh_proto::limits::MAX_SPOKEN_CHUNK`] characters.
    pub text: String,
    /// 1.0 = as usual; `None` = say nothing of it.
    pub speed: Option<f32>,
    /// A JSON object of other fields for the engine; empty = none.
    pub extra: String,
}

impl SpeechCall {
    /// [`SpeechCall::extra`], read.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn extra(&self) -> Result<Extra, EngineError> {
        object(&self.extra)
    }

    /// The error of a text in which there is nothing to say; engines answer it with anything.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.text.trim().is_empty() {
            return Err(nothing_to_say());
        }
        Ok(())
    }

    /// Whether there is something to say for certain; signs alone are spoken by some engines.
    pub fn audible(&self) -> bool {
        self.text.chars().any(char::is_alphanumeric)
    }
}

/// What comes out of an engine that speaks.
#[derive(Clone, Debug, PartialEq)]
pub enum SpeechEvent {
    /// The first event: what the samples are.
    Format {
        /// Samples a second, as the engine makes them.
        rate: u32,
    },
    /// The next samples, mono, as they come.
    Pcm(Vec<i16>),
    /// Where a part of the text is in the sound, from engines that tell.
    Timing {
        /// First byte of the text.
        from: u32,
        /// Byte after the last.
        to: u32,
        /// First sample.
        start: u64,
        /// Sample after the last.
        end: u64,
    },
    /// The end. Nothing follows.
    Done {
        /// All of them.
        samples: u64,
    },
}

/// Running speech: [`SpeechEvent::Format`], samples, and one terminal item, which is
/// [`SpeechEvent::Done`] or an error. Dropping it closes the engine's connection.
pub type SpeechStream = BoxStream<'static, Result<SpeechEvent, EngineError>>;

/// A voice of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// As the engine calls it.
    pub name: String,
    /// BCP 47, empty if unknown.
    pub language: String,
}

impl Voice {
    /// A voice whose language stands in its name as Piper's (`en_US-joe-medium`) and Kokoro's
    /// (`af_bella`) do, or is unknown.
    pub fn named(name: &str) -> Voice {
        let language = match name.split_once('-') {
            Some((tag, _)) if is_tag(tag) => tag.replace('_', "-"),
            _ => kokoro_language(name).to_owned(),
        };
        let name = name.to_owned();
        Voice { name, language }
    }

    /// A voice with its language as engines write it, `en_US` or `en-US`.
    pub fn new(name: &str, language: &str) -> Voice {
        let language = language.replace('_', "-");
        let name = name.to_owned();
        Voice { name, language }
    }

    /// Whether an advert can carry it.
    pub fn fits(&self) -> bool {
        let name = 1..=MAX_NAME;
        name.contains(&self.name.len()) && self.language.len() <= MAX_NAME
    }
}

/// `en_US`, `sr_RS`, ...
fn is_tag(tag: &str) -> bool {
    let (language, region) = tag.split_once('_').unwrap_or((tag, "XX"));
    (2..=3).contains(&language.len())
        && language.bytes().all(|b| b.is_ascii_lowercase())
        && region.len() == 2
        && region.bytes().all(|b| b.is_ascii_uppercase())
}

/// Kokoro's voices start with a letter for the language and one for the speaker's sex.
fn kokoro_language(name: &str) -> &'static str {
    match name.as_bytes() {
        [language, b'f' | b'm', b'_', ..] => match language {
            b'a' => "en-US",
            b'b' => "en-GB",
            b'e' => "es",
            b'f' => "fr",
            b'h' => "hi",
            b'i' => "it",
            b'j' => "ja",
            b'p' => "pt-BR",
            b'z' => "zh",
            _ => "",
        },
        _ => "",
    }
}

/// Refuses a voice that the engine does not list: many speak in another one instead, and a
/// switch of the voice must never be a surprise. Mixtures (`af_bella+af_sky`) and engines that
/// list none are left to the engine.
///
/// # Errors
/// [`EngineError::UnknownVoice`].
pub fn check_voice(engine: &str, voice: &str, known: &[Voice]) -> Result<(), EngineError> {
    let listed = || known.iter().any(|v| v.name.eq_ignore_ascii_case(voice));
    if voice.is_empty() || voice.contains('+') || known.is_empty() || listed() {
        return Ok(());
    }
    Err(unknown_voice(engine, voice))
}

/// The error of a text without words.
pub fn nothing_to_say() -> EngineError {
    EngineError::Invalid {
        message: "there is no text to speak".to_owned(),
        field: Some("text".to_owned()),
    }
}

/// The engine has no such voice (any more).
pub fn unknown_voice(engine: &str, voice: &str) -> EngineError {
    EngineError::UnknownVoice {
        engine: engine.to_owned(),
        voice: voice.to_owned(),
    }
}

/// As [`super::refusal::refusal`], for an engine that speaks: it may miss the voice.
pub fn refused(engine: &str, call: &SpeechCall, status: StatusCode, body: &[u8]) -> EngineError {
    let words = String::from_utf8_lossy(body).to_ascii_lowercase();
    if status.is_client_error() && blames_voice(&words, &call.voice) {
        return unknown_voice(engine, &call.voice);
    }
    super::refusal::refusal(engine, &call.model, status, body)
}

/// Whether `words`, in lower case, say that the voice is missing.
pub fn blames_voice(words: &str, voice: &str) -> bool {
    const MISSING: [&str; 7] = [
        "not found",
        "no voice",
        "unknown",
        "invalid",
        "not exist",
        "not available",
        "unsupported",
    ];
    let missing = MISSING.iter().any(|word| words.contains(word));
    !voice.is_empty() && words.contains("voice") && missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_read_from_names() {
        let of = |name| Voice::named(name).language;
        assert_eq!(of("en_US-joe-medium"), "en-US");
        assert_eq!(of("de-thorsten"), "de");
        assert_eq!(of("af_bella"), "en-US");
        assert_eq!((of("Carter"), of("x-y"), of("")), Default::default());
    }

    #[test]
    fn a_voice_that_is_not_listed_is_refused() {
        let known = [Voice::named("Carter")];
        assert!(check_voice("e", "carter", &known).is_ok());
        assert!(check_voice("e", "", &known).is_ok());
        assert!(check_voice("e", "Gone", &[]).is_ok());
        assert_eq!(
            check_voice("e", "Gone", &known),
            Err(unknown_voice("e", "Gone"))
        );
    }
}
