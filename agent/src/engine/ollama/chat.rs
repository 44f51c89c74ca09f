//! The lines of `/api/chat` and `/api/generate`.

use crate::engine::refusal::{complaint, rubbish};
use crate::engine::stream::{Out, Protocol, ended_early};
use crate::engine::{EngineError, EngineEvent};
use serde::Deserialize;
use serde_json::{Value, json};
use unamesh_proto::wire::{Chunk, FinishReason, Usage};

/// Reads them. A line is a token; the last one counts them.
pub struct ChatLines {
    engine: String,
    model: String,
    /// Tokens of a replayed prefix: the server counts them to the prompt, we do not.
    replayed: u32,
}

impl ChatLines {
    /// A reader for an answer of `model` on `engine` after `replayed` tokens.
    pub fn new(engine: &str, model: &str, replayed: u32) -> Self {
        ChatLines {
            engine: engine.to_owned(),
            model: model.to_owned(),
            replayed,
        }
    }
}

impl Protocol for ChatLines {
    fn line(&mut self, line: &str, out: &mut Out) -> Result<(), EngineError> {
        let line: Line = serde_json::from_str(line).map_err(|e| rubbish(&self.engine, &e))?;
        if let Some(error) = line.error {
            return Err(complaint(&self.engine, &self.model, &error));
        }
        let Some(done) = line.done else {
            let reason = "sent a line without \"done\"".to_owned();
            return Err(EngineError::Failed {
                engine: self.engine.clone(),
                reason,
            });
        };
        let (text, thinking) = match line.message {
            Some(message) => (message.content, message.thinking),
            None => (line.response, line.thinking),
        };
        let extra = match thinking.filter(|text| !text.is_empty()) {
            Some(text) => json!({ "reasoning_content": text }).to_string(),
            None => String::new(),
        };
        let text = text.unwrap_or_default();
        if !text.is_empty() || !extra.is_empty() {
            let chunk = Chunk {
                text,
                ids: Vec::new(),
                tokens: 1,
            };
            out.push_back(EngineEvent::Chunk { chunk, extra });
        }
        if done {
            let usage = Usage {
                prompt_tokens: line.prompt_eval_count.saturating_sub(self.replayed),
                completion_tokens: line.eval_count,
            };
            let finish = match line.done_reason.as_deref() {
                Some("length") => FinishReason::Length,
                _ => FinishReason::Stop,
            };
            out.push_back(EngineEvent::Done { finish, usage });
        }
        Ok(())
    }

    fn end(&mut self, _out: &mut Out) -> Result<(), EngineError> {
        Err(ended_early(&self.engine))
    }
}

#[derive(Deserialize)]
struct Line {
    message: Option<Message>,
    response: Option<String>,
    thinking: Option<String>,
    done: Option<bool>,
    done_reason: Option<String>,
    #[serde(default)]
    prompt_eval_count: u32,
    #[serde(default)]
    eval_count: u32,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    thinking: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feed(lines: &[&str]) -> Result<Vec<EngineEvent>, EngineError> {
        let mut stream = ChatLines::new("e", "m", 0);
        let mut out = Out::new();
        lines
            .iter()
            .try_for_each(|line| stream.line(line, &mut out))?;
        Ok(out.into())
    }

    #[test]
    fn a_chat_and_its_final_object() {
        let events = feed(&[
            r#"{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}"#,
            r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"length","prompt_eval_count":3,"eval_count":1}"#,
        ])
        .unwrap();
        let chunk = Chunk {
            text: "Hi".into(),
            ids: Vec::new(),
            tokens: 1,
        };
        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 1,
        };
        assert_eq!(
            events,
            [
                EngineEvent::Chunk {
                    chunk,
                    extra: String::new()
                },
                EngineEvent::Done {
                    finish: FinishReason::Length,
                    usage
                },
            ]
        );
    }

    #[test]
    fn generate_says_response_and_thinking_is_extra() {
        let events = feed(&[
            r#"{"response":"a","done":false}"#,
            r#"{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
        ])
        .unwrap();
        assert!(matches!(&events[0], EngineEvent::Chunk { chunk, .. } if chunk.text == "a"));
        assert!(
            matches!(&events[1], EngineEvent::Chunk { extra, .. } if extra == r#"{"reasoning_content":"hm"}"#)
        );
    }

    #[test]
    fn errors() {
        for line in [r#"{"error":"runner died"}"#, "{}", "x", r#"{"done":fal"#] {
            assert!(
                matches!(feed(&[line]), Err(EngineError::Failed { .. })),
                "{line}"
            );
        }
        let gone = feed(&[r#"{"error":{"message":"model 'm' not found","code":404}}"#]);
        assert!(matches!(gone, Err(EngineError::UnknownModel { .. })));
    }
}
