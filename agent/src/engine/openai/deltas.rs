//! The event stream of OpenAI-style servers.

use crate::engine::lines::{Sse, sse};
use crate::engine::refusal::{complaint, rubbish};
use crate::engine::stream::{Out, Protocol, ended_early};
use crate::engine::{EngineError, EngineEvent};
use serde::Deserialize;
use serde_json::{Map, Value};
use unamesh_proto::wire::{Chunk, FinishReason, Usage};

/// Reads the event stream of `/v1/chat/completions` and `/v1/completions`.
///
/// A delta's text becomes a chunk of one token (these servers send a token a delta); its other
/// fields go on as JSON. The answer is complete with a finish reason; usage may follow it, then
/// `[DONE]`.
pub struct ChatStream {
    engine: String,
    model: String,
    /// Tokens of a replayed prefix: the server counts them to the prompt, we do not.
    replayed: u32,
    finish: Option<FinishReason>,
    usage: Usage,
    tokens: u32,
    done: bool,
}

impl ChatStream {
    /// A reader for an answer of `model` on `engine` after `replayed` tokens.
    pub fn new(engine: &str, model: &str, replayed: u32) -> Self {
        ChatStream {
            engine: engine.to_owned(),
            model: model.to_owned(),
            replayed,
            finish: None,
            usage: Usage::default(),
            tokens: 0,
            done: false,
        }
    }

    fn event(&mut self, data: &str, out: &mut Out) -> Result<(), EngineError> {
        let event: Event = serde_json::from_str(data).map_err(|e| rubbish(&self.engine, &e))?;
        if let Some(error) = event.error {
            return Err(complaint(&self.engine, &self.model, &error));
        }
        if let Some(usage) = event.usage {
            self.usage.prompt_tokens = usage.prompt_tokens.saturating_sub(self.replayed);
            self.usage.completion_tokens = usage.completion_tokens;
        }
        // A request has one answer (`n` is not passed on): other indexes do not occur.
        let Some(choice) = event.choices.into_iter().flatten().next() else {
            return Ok(());
        };
        if let Some(reason) = &choice.finish_reason {
            if matches!(reason.as_str(), "abort" | "error") {
                return Err(ended_early(&self.engine));
            }
            self.finish = Some(finish(reason));
        }
        let (text, extra) = choice.piece();
        if text.is_empty() && extra.is_empty() {
            return Ok(());
        }
        self.tokens = self.tokens.saturating_add(1);
        let chunk = Chunk {
            text,
            ids: Vec::new(),
            tokens: 1,
        };
        out.push_back(EngineEvent::Chunk { chunk, extra });
        Ok(())
    }

    fn finished(&mut self, finish: FinishReason, out: &mut Out) {
        self.done = true;
        if self.usage.completion_tokens == 0 {
            self.usage.completion_tokens = self.tokens;
        }
        out.push_back(EngineEvent::Done {
            finish,
            usage: self.usage,
        });
    }
}

impl Protocol for ChatStream {
    fn line(&mut self, line: &str, out: &mut Out) -> Result<(), EngineError> {
        match sse(line) {
            Sse::Data(data) if data.trim() == "[DONE]" => {
                // `[DONE]` itself says that nothing is missing.
                let finish = self.finish.unwrap_or(FinishReason::Stop);
                self.finished(finish, out);
                Ok(())
            }
            Sse::Data(data) => self.event(data, out),
            Sse::Error(error) => {
                let error = serde_json::from_str(error).unwrap_or_else(|_| Value::from(error));
                Err(complaint(&self.engine, &self.model, &error))
            }
            // Not an event stream at all: an error object with status 200, or rubbish.
            Sse::Other if line.starts_with('{') => self.event(line, out),
            Sse::Other => Ok(()),
        }
    }

    fn end(&mut self, out: &mut Out) -> Result<(), EngineError> {
        match self.finish {
            Some(finish) => {
                self.finished(finish, out);
                Ok(())
            }
            None => Err(ended_early(&self.engine)),
        }
    }
}

/// OpenAI's word for an end.
fn finish(reason: &str) -> FinishReason {
    match reason {
        "length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    }
}

#[derive(Deserialize)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    /// Of `/v1/completions`.
    text: Option<String>,
    logprobs: Option<Value>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Choice {
    /// The text, and the other fields as JSON (empty if there are none).
    fn piece(self) -> (String, String) {
        let mut other = Map::new();
        let mut text = self.text.unwrap_or_default();
        if let Some(delta) = self.delta {
            if let Some(content) = delta.content {
                text = content;
            }
            // Some servers send every field with every delta, empty.
            let carries = |(name, value): &(String, Value)| {
                let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
                name != "role" && !empty
            };
            other.extend(delta.other.into_iter().filter(carries));
        }
        if let Some(logprobs) = self.logprobs {
            other.insert("logprobs".to_owned(), logprobs);
        }
        let extra = if other.is_empty() {
            String::new()
        } else {
            Value::Object(other).to_string()
        };
        (text, extra)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feed(lines: &[&str]) -> (Vec<EngineEvent>, Result<(), EngineError>) {
        let mut stream = ChatStream::new("e", "m", 0);
        let mut out = Out::new();
        let result = lines
            .iter()
            .try_for_each(|line| stream.line(line, &mut out));
        let result = match (result, stream.done) {
            (Ok(()), false) => stream.end(&mut out),
            (result, _) => result,
        };
        (out.into(), result)
    }

    fn piece(text: &str, extra: &str) -> EngineEvent {
        let chunk = Chunk {
            text: text.into(),
            ids: Vec::new(),
            tokens: 1,
        };
        EngineEvent::Chunk {
            chunk,
            extra: extra.into(),
        }
    }

    fn done(finish: FinishReason, prompt_tokens: u32, completion_tokens: u32) -> EngineEvent {
        EngineEvent::Done {
            finish,
            usage: Usage {
                prompt_tokens,
                completion_tokens,
            },
        }
    }

    #[test]
    fn a_chat_stream() {
        let (events, result) = feed(&[
            r#"data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{"content":"Hi \"you\"","tool_calls":[]}}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
            "data: [DONE]",
        ]);
        result.unwrap();
        assert_eq!(
            events,
            [piece("Hi \"you\"", ""), done(FinishReason::Length, 3, 1)]
        );
    }

    #[test]
    fn other_fields_go_on_as_json() {
        let (events, _) = feed(&[
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x"}],"content":null}}]}"#,
            r#"data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content":[]}}]}"#,
            r#"data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
        ]);
        assert_eq!(
            events,
            [
                piece("", r#"{"tool_calls":[{"id":"x","index":0}]}"#),
                piece("a", r#"{"logprobs":{"content":[]}}"#),
                done(FinishReason::ToolCalls, 0, 2),
            ]
        );
    }

    #[test]
    fn completions_have_text() {
        let (events, _) = feed(&[
            r#"data: {"choices":[{"text":"-","index":0,"logprobs":null,"finish_reason":null}]}"#,
            r#"data: {"choices":[{"text":"","finish_reason":"stop"}]}"#,
        ]);
        assert_eq!(events, [piece("-", ""), done(FinishReason::Stop, 0, 1)]);
    }

    #[test]
    fn an_early_end_is_a_failure() {
        let (events, result) = feed(&[r#"data: {"choices":[{"delta":{"content":"a"}}]}"#]);
        assert_eq!(events.len(), 1);
        assert_eq!(result, Err(ended_early("e")));
        // What vLLM says of a request that it gave up.
        let aborted = r#"data: {"choices":[{"delta":{},"finish_reason":"abort"}]}"#;
        assert_eq!(feed(&[aborted]).1, Err(ended_early("e")));
    }

    #[test]
    fn a_replayed_prefix_is_no_part_of_the_prompt() {
        let mut stream = ChatStream::new("e", "m", 4);
        let mut out = Out::new();
        for line in [
            r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}"#,
            "data: [DONE]",
        ] {
            stream.line(line, &mut out).unwrap();
        }
        assert_eq!(Vec::from(out), [done(FinishReason::Stop, 8, 3)]);
    }

    #[test]
    fn errors_within_the_stream() {
        for line in [
            r#"data: {"error":{"message":"out of memory","code":500}}"#,
            r#"{"error":{"message":"out of memory","code":500}}"#,
            r#"error: {"message":"out of memory","code":500}"#,
            r#"data: {"choices":[{"delta":{"cont"#,
            "data: rubbish",
        ] {
            let (_, result) = feed(&[line]);
            assert!(
                matches!(result, Err(EngineError::Failed { .. })),
                "{line}: {result:?}"
            );
        }
    }
}
