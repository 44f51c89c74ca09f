//! What an engine's error means: one place that reads the error objects of all APIs.
//!
//! They come as `{"error": "text"}` (Ollama), `{"error": {"message", "type", "code", "param"}}`
//! (OpenAI, llama.cpp, LM Studio), `{"object": "error", "message", ...}` (older vLLM) or
//! `{"detail": ...}` (FastAPI), with an error status, with status 200, or as a line of a stream.

use super::EngineError;
use super::http::HttpError;
use super::lines::LineError;
use hyper::StatusCode;
use serde_json::Value;

/// The engine's words are cut to this many bytes; what follows is a stack trace, mostly.
const MAX_WORDS: usize = 600;

/// Reads the body of an answer whose status is no success.
pub fn refusal(engine: &str, model: &str, status: StatusCode, body: &[u8]) -> EngineError {
    let words = match serde_json::from_slice::<Value>(body) {
        Ok(value) => Words::read(&value),
        Err(_) => {
            let page = String::from_utf8_lossy(body);
            Words {
                message: title(&page).unwrap_or(&page).to_owned(),
                ..Words::default()
            }
        }
    };
    words.judge(engine, model, status.as_u16())
}

/// What a page for people says above all.
fn title(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title>")?;
    rest.split_once("</title>").map(|(title, _)| title.trim())
}

/// Reads an error object found in an answer whose status was a success: `error` is what the
/// field of that name holds.
pub fn complaint(engine: &str, model: &str, error: &Value) -> EngineError {
    let words = Words::read_error(error);
    let status = words.status;
    words.judge(engine, model, status)
}

/// A line was not of the API.
pub fn rubbish(engine: &str, error: &serde_json::Error) -> EngineError {
    // Not the error's own text: it quotes the line, which is somebody's conversation.
    let reason = match error.classify() {
        serde_json::error::Category::Eof => "the stream ended within a line".to_owned(),
        _ => format!(
            "sent a line that is not of its API (column {})",
            error.column()
        ),
    };
    EngineError::Failed {
        engine: engine.to_owned(),
        reason,
    }
}

/// A stream could not be read further.
pub fn cut(engine: &str, error: LineError) -> EngineError {
    EngineError::Failed {
        engine: engine.to_owned(),
        reason: error.to_string(),
    }
}

/// An exchange failed before anything was delivered.
pub fn unreachable(engine: &str, error: HttpError) -> EngineError {
    let engine = engine.to_owned();
    match error {
        HttpError::Connect(reason) => EngineError::Down { engine, reason },
        HttpError::Late(_) => EngineError::Busy { engine },
        other => EngineError::Failed {
            engine,
            reason: other.to_string(),
        },
    }
}

#[derive(Default)]
struct Words {
    message: String,
    /// `type` and `code`, as far as they are words.
    kinds: Vec<String>,
    field: Option<String>,
    /// A numeric `code`; 0 = none.
    status: u16,
    prompt_tokens: u32,
    context: u32,
}

impl Words {
    fn read(body: &Value) -> Words {
        match body.get("error").or_else(|| body.get("detail")) {
            Some(error) => Words::read_error(error),
            None => Words::read_error(body),
        }
    }

    fn read_error(error: &Value) -> Words {
        let number = |key| error.get(key).and_then(Value::as_u64);
        let small = |key| number(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let word = |key| error.get(key).and_then(Value::as_str).map(str::to_owned);
        let (message, field) = match error {
            Value::String(text) => (text.clone(), None),
            Value::Array(list) if list.iter().any(|fault| fault["msg"].is_string()) => faults(list),
            other => (word("message").unwrap_or_else(|| other.to_string()), None),
        };
        let field = word("param").or(field).or_else(|| quoted_field(&message));
        Words {
            message,
            kinds: [word("type"), word("code")].into_iter().flatten().collect(),
            field,
            status: number("code")
                .and_then(|n| u16::try_from(n).ok())
                .unwrap_or(0),
            prompt_tokens: small("n_prompt_tokens"),
            context: small("n_ctx"),
        }
    }

    fn judge(self, engine: &str, model: &str, status: u16) -> EngineError {
        let engine = engine.to_owned();
        let says = |text: &str| self.message.to_ascii_lowercase().contains(text);
        let is = |kind: &str| self.kinds.iter().any(|k| k == kind);
        if is("exceed_context_size_error")
            || is("context_length_exceeded")
            || says("maximum context length")
            || says("exceeds the available context")
        {
            return EngineError::ContextExceeded {
                tokens: self.prompt_tokens,
                context: self.context,
            };
        }
        let no_model = is("model_not_found") || (says("model") && says("not found"));
        let message = shorten(&self.message);
        match status {
            404 if no_model || says("does not exist") => EngineError::UnknownModel {
                engine,
                model: model.to_owned(),
            },
            404 | 405 | 501 => EngineError::Unsupported {
                engine,
                what: message,
            },
            401 | 403 => EngineError::Failed {
                engine,
                reason: format!("refuses the API key: {message}"),
            },
            429 | 503 => EngineError::Busy { engine },
            400..=499 if says("does not support") => EngineError::Unsupported {
                engine,
                what: message,
            },
            400..=499 => EngineError::Invalid {
                message,
                field: self.field,
            },
            0 => EngineError::Failed {
                engine,
                reason: message,
            },
            _ => EngineError::Failed {
                engine,
                reason: format!("status {status}: {message}"),
            },
        }
    }
}

/// FastAPI's list of what is wrong with which field, and the first of these. It quotes what it was
/// given as well, which is somebody's text and stays out of it.
fn faults(list: &[Value]) -> (String, Option<String>) {
    let place = |fault: &Value| {
        let steps = fault["loc"].as_array().into_iter().flatten();
        let names = steps
            .filter_map(Value::as_str)
            .filter(|name| *name != "body");
        names.collect::<Vec<_>>().join(".")
    };
    let mut field = None;
    let words = list.iter().filter_map(|fault| {
        let (place, msg) = (place(fault), fault["msg"].as_str()?);
        if place.is_empty() {
            return Some(msg.to_owned());
        }
        let words = format!("{place}: {msg}");
        field.get_or_insert(place);
        Some(words)
    });
    (words.collect::<Vec<_>>().join("; "), field)
}

/// llama.cpp names the field in its text: `Field 'temperature': ...`.
fn quoted_field(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("Field '")?;
    let (field, _) = rest.split_once('\'')?;
    Some(field.to_owned())
}

fn shorten(text: &str) -> String {
    let mut end = text.len().min(MAX_WORDS);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> EngineError {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        refusal("e", "m", status, body.as_bytes())
    }

    #[test]
    fn llama_cpp_names_the_field() {
        let body = r#"{"error":{"code":400,"message":"Field 'n_predict': [json.exception.type_error.302] type must be number, but is string","type":"invalid_request_error"}}"#;
        let EngineError::Invalid { field, .. } = read(400, body) else {
            unreachable!()
        };
        assert_eq!(field.as_deref(), Some("n_predict"));
    }

    #[test]
    fn a_context_too_small_in_all_tongues() {
        let llama = r#"{"error":{"code":400,"message":"request (9001 tokens) exceeds the available context size (2048 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9001,"n_ctx":2048}}"#;
        assert_eq!(
            read(400, llama),
            EngineError::ContextExceeded {
                tokens: 9001,
                context: 2048
            }
        );
        let vllm = r#"{"object":"error","message":"This model's maximum context length is 2048 tokens. However, you requested 9001.","type":"BadRequestError","param":null,"code":400}"#;
        assert_eq!(
            read(400, vllm),
            EngineError::ContextExceeded {
                tokens: 0,
                context: 0
            }
        );
    }

    #[test]
    fn unknown_models() {
        let unknown = EngineError::UnknownModel {
            engine: "e".into(),
            model: "m".into(),
        };
        assert_eq!(read(404, r#"{"error":"model 'm' not found"}"#), unknown);
        let vllm = r#"{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}"#;
        assert_eq!(read(404, vllm), unknown);
    }

    #[test]
    fn busy_is_neither_dead_nor_wrong() {
        let busy = EngineError::Busy { engine: "e".into() };
        assert_eq!(read(429, ""), busy);
        let loading =
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
        assert_eq!(read(503, loading), busy);
    }

    #[test]
    fn the_rest() {
        assert!(matches!(
            read(500, "<html>oops"),
            EngineError::Failed { .. }
        ));
        assert!(matches!(
            read(404, "File Not Found"),
            EngineError::Unsupported { .. }
        ));
        assert!(matches!(read(401, "{}"), EngineError::Failed { .. }));
        let mid_stream = complaint("e", "m", &Value::from("llama runner stopped"));
        assert!(matches!(mid_stream, EngineError::Failed { .. }));
    }

    #[test]
    fn fastapi_names_the_field_and_the_text_is_not_repeated() {
        let body = r#"{"detail":[
            {"type":"missing","loc":["body","voice"],"msg":"Field required",
             "input":{"input":"my secret"}},
            {"type":"float_type","loc":["body","speed"],"msg":"Input should be a number",
             "input":"my secret"}]}"#;
        let expected = EngineError::Invalid {
            message: "voice: Field required; speed: Input should be a number".into(),
            field: Some("voice".into()),
        };
        assert_eq!(read(422, body), expected);
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let EngineError::Failed { reason, .. } = read(500, &"é".repeat(2000)) else {
            unreachable!()
        };
        assert!(reason.len() < MAX_WORDS + 20);
    }
}
