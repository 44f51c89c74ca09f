//! What all adapters do to a request: what is left of its budget, what was delivered before,
//! and a JSON body that passes the caller's own JSON through untouched.

use super::EngineError;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use unamesh_proto::wire::{Chunk, GenerateRequest, Sampling};

/// Fields of a request that say how it is carried, not what it asks for: the adapter sets them.
const CARRIAGE: [&str; 7] = [
    "model",
    "messages",
    "prompt",
    "input",
    "stream",
    "stream_options",
    "n",
];

/// Fields that need the engine's chat endpoint: it parses tool calls, constrains the output or
/// reports probabilities, none of which a raw completion does.
const STRUCTURED: [&str; 12] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "reasoning_format",
    "chat_template_kwargs",
    "modalities",
];

/// The text that was delivered before, in one piece.
pub fn prefix_text(prefix: &[Chunk]) -> String {
    prefix.iter().map(|chunk| chunk.text.as_str()).collect()
}

/// The tokens that were delivered before.
pub fn prefix_tokens(prefix: &[Chunk]) -> u32 {
    prefix
        .iter()
        .fold(0, |sum, chunk| sum.saturating_add(chunk.tokens))
}

/// What a request may still make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// As much as the engine likes.
    Open,
    /// This many tokens, at least one.
    Left(u32),
    /// Nothing: the delivered prefix used it up.
    Spent,
}

/// `max_tokens` less the delivered prefix.
pub fn budget(request: &GenerateRequest) -> Budget {
    let Some(max) = request.sampling.max_tokens else {
        return Budget::Open;
    };
    match max.saturating_sub(prefix_tokens(&request.prefix)) {
        // With nothing delivered, 0 goes to the engine, which says what it thinks of it.
        0 if !request.prefix.is_empty() => Budget::Spent,
        left => Budget::Left(left),
    }
}

/// A request's other fields, by name, each as the caller wrote it.
pub type Extra = BTreeMap<String, Box<RawValue>>;

/// Reads [`GenerateRequest::extra`]; fields that the adapter sets itself are left out.
///
/// # Errors
/// It is no JSON object.
pub fn extra(request: &GenerateRequest) -> Result<Extra, EngineError> {
    let mut extra = object(&request.extra)?;
    extra.retain(|name, _| !CARRIAGE.contains(&name.as_str()));
    Ok(extra)
}

/// Reads other fields of a request; empty = none.
///
/// # Errors
/// It is no JSON object.
pub fn object(extra: &str) -> Result<Extra, EngineError> {
    if extra.is_empty() {
        return Ok(Extra::new());
    }
    serde_json::from_str(extra)
        .map_err(|e| invalid("extra", format!("the request's extra fields: {e}")))
}

/// Whether the request asks for more than text.
pub fn is_structured(extra: &Extra) -> bool {
    STRUCTURED.iter().any(|name| {
        extra
            .get(*name)
            .is_some_and(|value| !matches!(value.get(), "null" | "false" | "[]" | "{}"))
    })
}

/// Whether messages hold more than text. A quote within a JSON string is escaped, so that the
/// quoted words below occur only as keys and values of content parts.
pub fn has_media(messages: &str) -> bool {
    ["\"image_url\"", "\"input_audio\"", "\"file\""]
        .iter()
        .any(|part| messages.contains(part))
}

/// The messages of `input` as JSON, followed by what was delivered as a trailing assistant
/// message. With nothing delivered there is none: an empty one makes llama.cpp leave out the
/// generation header.
///
/// # Errors
/// The input is no JSON array.
pub fn messages(input: &str, delivered: &str) -> Result<Box<RawValue>, EngineError> {
    let wrong = |why: String| invalid("messages", format!("messages: {why}"));
    let text = input.trim();
    if !text.starts_with('[') {
        return Err(wrong("must be an array of chat messages".to_owned()));
    }
    let text = if delivered.is_empty() {
        text.to_owned()
    } else {
        let message = serde_json::json!({"role": "assistant", "content": delivered});
        let head = text.strip_suffix(']').unwrap_or(text).trim_end();
        let comma = if head == "[" { "" } else { "," };
        format!("{head}{comma}{message}]")
    };
    RawValue::from_string(text).map_err(|e| wrong(e.to_string()))
}

/// A JSON object under construction.
#[derive(Default)]
pub struct Object(Extra);

impl Object {
    /// Starts from the caller's fields; later ones win.
    pub fn over(extra: Extra) -> Self {
        Object(extra)
    }

    /// Sets a field.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub fn set(&mut self, name: &str, value: impl Serialize) -> Result<(), EngineError> {
        let value = serde_json::value::to_raw_value(&value)
            .map_err(|e| invalid(name, format!("{name}: {e}")))?;
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Sets a field if there is a value.
    ///
    /// # Errors
    /// As for [`Object::set`].
    pub fn maybe(&mut self, name: &str, value: Option<impl Serialize>) -> Result<(), EngineError> {
        value.map_or(Ok(()), |value| self.set(name, value))
    }

    /// Sets the fields that all APIs call the same, and the penalty that they do not.
    ///
    /// # Errors
    /// As for [`Object::set`].
    pub fn sampling(&mut self, s: &Sampling, repeat_penalty: &str) -> Result<(), EngineError> {
        self.maybe("temperature", s.temperature.map(exact))?;
        self.maybe("top_p", s.top_p.map(exact))?;
        self.maybe("top_k", s.top_k)?;
        self.maybe("min_p", s.min_p.map(exact))?;
        self.maybe("seed", s.seed)?;
        self.maybe("presence_penalty", s.presence_penalty.map(exact))?;
        self.maybe("frequency_penalty", s.frequency_penalty.map(exact))?;
        self.maybe(repeat_penalty, s.repeat_penalty.map(exact))?;
        self.maybe("stop", (!s.stop.is_empty()).then_some(&s.stop))
    }

    /// As the body of a request.
    ///
    /// # Errors
    /// As for [`Object::set`].
    pub fn body(&self) -> Result<Bytes, EngineError> {
        serde_json::to_vec(&self.0)
            .map(Bytes::from)
            .map_err(|e| EngineError::Invalid {
                message: e.to_string(),
                field: None,
            })
    }
}

impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// 0.7 stays 0.7 (and does not become 0.699999988079071, which an engine would echo).
fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn invalid(field: &str, message: String) -> EngineError {
    EngineError::Invalid {
        message,
        field: Some(field.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use unamesh_proto::wire::InputKind;

    pub(crate) fn request(kind: InputKind, input: &str) -> GenerateRequest {
        GenerateRequest {
            model: "m".into(),
            engine: 0,
            kind,
            input: input.into(),
            sampling: Sampling::default(),
            extra: String::new(),
            prefix: Vec::new(),
            session: 0,
        }
    }

    fn chunk(text: &str, tokens: u32) -> Chunk {
        Chunk {
            text: text.into(),
            ids: Vec::new(),
            tokens,
        }
    }

    #[test]
    fn the_budget_includes_what_was_delivered() {
        let mut r = request(InputKind::Chat, "[]");
        assert_eq!(budget(&r), Budget::Open);
        r.sampling.max_tokens = Some(10);
        assert_eq!(budget(&r), Budget::Left(10));
        r.prefix = vec![chunk("a", 4), chunk("b", 3)];
        assert_eq!(budget(&r), Budget::Left(3));
        r.prefix.push(chunk("c", 3));
        assert_eq!(budget(&r), Budget::Spent);
    }

    #[test]
    fn a_trailing_message_only_when_something_was_delivered() {
        let input = r#" [{"role":"user","content":"[x]"}] "#;
        assert_eq!(
            messages(input, "").unwrap().get(),
            r#"[{"role":"user","content":"[x]"}]"#
        );
        let sent = messages(input, "He said \"no").unwrap();
        let sent: serde_json::Value = serde_json::from_str(sent.get()).unwrap();
        assert_eq!(sent[1]["content"], "He said \"no");
        assert_eq!(sent.as_array().unwrap().len(), 2);
    }

    #[test]
    fn messages_that_are_none() {
        for wrong in ["", "{}", "[", "[1", "\"hi\"", "[]]"] {
            let error = messages(wrong, "").unwrap_err();
            let EngineError::Invalid { field, .. } = error else {
                unreachable!()
            };
            assert_eq!(field.as_deref(), Some("messages"), "{wrong}");
        }
    }

    #[test]
    fn what_needs_the_chat_endpoint() {
        let structured = |json: &str| {
            let mut r = request(InputKind::Chat, "[]");
            r.extra = json.into();
            is_structured(&extra(&r).unwrap())
        };
        assert!(structured(r#"{"tools":[{"type":"function"}]}"#));
        assert!(structured(r#"{"response_format":{"type":"json_object"}}"#));
        assert!(!structured(r#"{"tools":[],"logprobs":false,"user":"me"}"#));
        assert!(has_media(
            r#"[{"content":[{"type":"image_url","image_url":{}}]}]"#
        ));
        assert!(!has_media(r#"[{"content":"what is \"image_url\"?"}]"#));
    }

    #[test]
    fn the_callers_json_arrives_as_written() {
        let mut r = request(InputKind::Chat, "[]");
        r.extra = r#"{"response_format":{"z":1,"a":1.50},"stream":false,"model":"x"}"#.into();
        let mut object = Object::over(extra(&r).unwrap());
        r.sampling.temperature = Some(0.7);
        object.sampling(&r.sampling, "repeat_penalty").unwrap();
        assert_eq!(
            std::str::from_utf8(&object.body().unwrap()).unwrap(),
            r#"{"response_format":{"z":1,"a":1.50},"temperature":0.7}"#
        );
    }
}
