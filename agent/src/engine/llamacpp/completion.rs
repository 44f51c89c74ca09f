//! The event stream of `/completion`.

use crate::engine::lines::{Sse, sse};
use crate::engine::refusal::{complaint, rubbish};
use crate::engine::stream::{Out, Protocol, ended_early};
use crate::engine::{EngineError, EngineEvent};
use serde::Deserialize;
use serde_json::Value;
use unamesh_proto::wire::{Chunk, FinishReason, Phase, Usage};

/// Reads it.
pub struct Completion {
    engine: String,
    model: String,
    /// Token ids of a replayed prefix: the server counts them to the prompt, we do not.
    replayed: u32,
    /// Tokens that came so far, those of `held` excluded.
    predicted: u32,
    /// Ids of tokens without text; they go with the next piece.
    held: Vec<u32>,
}

impl Completion {
    /// A reader for an answer after `replayed` token ids.
    pub fn new(engine: &str, model: &str, replayed: u32) -> Self {
        Completion {
            engine: engine.to_owned(),
            model: model.to_owned(),
            replayed,
            predicted: 0,
            held: Vec::new(),
        }
    }

    fn event(&mut self, data: &str, out: &mut Out) -> Result<(), EngineError> {
        let event: Event = serde_json::from_str(data).map_err(|e| rubbish(&self.engine, &e))?;
        if let Some(error) = event.error {
            return Err(complaint(&self.engine, &self.model, &error));
        }
        if let Some(progress) = event.prompt_progress {
            let phase = Phase::Prefilling;
            let (done, total) = (progress.processed, progress.total);
            out.push_back(EngineEvent::Progress { phase, done, total });
            return Ok(());
        }
        let Some(content) = event.content else {
            let reason = "sent an event without content".to_owned();
            return Err(EngineError::Failed {
                engine: self.engine.clone(),
                reason,
            });
        };
        // Half a character, or what may become a stop sequence, is held back by the server: a
        // piece stands for all tokens since the last one. A token without text waits for the
        // next piece; the last such one is the end of the text and belongs to none: replayed, it
        // would have the model go on after its end.
        self.held.extend(event.tokens);
        if !content.is_empty() {
            let tokens = event.tokens_predicted.saturating_sub(self.predicted);
            self.predicted = event.tokens_predicted;
            let chunk = Chunk {
                text: content,
                ids: std::mem::take(&mut self.held),
                tokens,
            };
            out.push_back(EngineEvent::Chunk {
                chunk,
                extra: String::new(),
            });
        }
        if event.stop {
            let usage = Usage {
                prompt_tokens: event.tokens_evaluated.saturating_sub(self.replayed),
                completion_tokens: event.tokens_predicted,
            };
            let finish = match event.stop_type.as_deref() {
                Some("limit") => FinishReason::Length,
                _ => FinishReason::Stop,
            };
            out.push_back(EngineEvent::Done { finish, usage });
        }
        Ok(())
    }
}

impl Protocol for Completion {
    fn line(&mut self, line: &str, out: &mut Out) -> Result<(), EngineError> {
        match sse(line) {
            Sse::Data(data) => self.event(data, out),
            Sse::Error(error) => {
                let error = serde_json::from_str(error).unwrap_or_else(|_| Value::from(error));
                Err(complaint(&self.engine, &self.model, &error))
            }
            Sse::Other if line.starts_with('{') => self.event(line, out),
            Sse::Other => Ok(()),
        }
    }

    fn end(&mut self, _out: &mut Out) -> Result<(), EngineError> {
        Err(ended_early(&self.engine))
    }
}

#[derive(Deserialize)]
struct Event {
    content: Option<String>,
    #[serde(default)]
    tokens: Vec<u32>,
    #[serde(default)]
    stop: bool,
    #[serde(default)]
    tokens_predicted: u32,
    #[serde(default)]
    tokens_evaluated: u32,
    stop_type: Option<String>,
    prompt_progress: Option<Progress>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Progress {
    #[serde(default)]
    total: u32,
    #[serde(default)]
    processed: u32,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feed(lines: &[&str]) -> Result<Vec<EngineEvent>, EngineError> {
        let mut stream = Completion::new("e", "m", 2);
        let mut out = Out::new();
        lines
            .iter()
            .try_for_each(|line| stream.line(line, &mut out))?;
        Ok(out.into())
    }

    fn piece(text: &str, ids: &[u32], tokens: u32) -> EngineEvent {
        let chunk = Chunk {
            text: text.into(),
            ids: ids.to_vec(),
            tokens,
        };
        EngineEvent::Chunk {
            chunk,
            extra: String::new(),
        }
    }

    /// Recorded from a real server, shortened.
    #[test]
    fn a_recorded_stream() {
        let events = feed(&[
            r#"data: {"index":0,"content":"","tokens":[0],"stop":false,"id_slot":-1,"tokens_predicted":0,"tokens_evaluated":28,"prompt_progress":{"total":28,"cache":0,"processed":14,"time_ms":201}}"#,
            r#"data: {"index":0,"content":"Hi","tokens":[7],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":28}"#,
            r#"data: {"index":0,"content":"🌍","tokens":[231],"stop":false,"id_slot":-1,"tokens_predicted":4,"tokens_evaluated":28}"#,
            r#"data: {"index":0,"content":"","tokens":[],"id_slot":0,"stop":true,"model":"m","tokens_predicted":5,"tokens_evaluated":28,"stop_type":"eos","timings":{}}"#,
        ])
        .unwrap();
        let usage = Usage {
            prompt_tokens: 26,
            completion_tokens: 5,
        };
        assert_eq!(
            events,
            [
                EngineEvent::Progress {
                    phase: Phase::Prefilling,
                    done: 14,
                    total: 28
                },
                piece("Hi", &[7], 1),
                piece("🌍", &[231], 3),
                EngineEvent::Done {
                    finish: FinishReason::Stop,
                    usage
                },
            ]
        );
    }

    #[test]
    fn tokens_without_text_go_with_the_next_piece_and_the_end_with_none() {
        let events = feed(&[
            r#"data: {"content":"","tokens":[5],"stop":false,"tokens_predicted":1}"#,
            r#"data: {"content":"a","tokens":[6],"stop":false,"tokens_predicted":2}"#,
            r#"data: {"content":"","tokens":[2],"stop":false,"tokens_predicted":3}"#,
            r#"data: {"content":"","tokens":[],"stop":true,"tokens_predicted":3,"stop_type":"eos"}"#,
        ])
        .unwrap();
        assert_eq!(events[0], piece("a", &[5, 6], 2));
        assert!(
            matches!(events[1], EngineEvent::Done { usage, .. } if usage.completion_tokens == 3)
        );
    }

    #[test]
    fn text_in_the_last_event_is_not_lost() {
        let events = feed(&[
            r#"data: {"content":"x","tokens":[1],"stop":true,"tokens_predicted":1,"stop_type":"limit"}"#,
        ])
        .unwrap();
        assert_eq!(events[0], piece("x", &[1], 1));
        assert!(matches!(
            events[1],
            EngineEvent::Done {
                finish: FinishReason::Length,
                ..
            }
        ));
    }

    #[test]
    fn what_is_no_completion() {
        for line in [
            "data: {}",
            "data: 7",
            "{\"error\":\"no\"}",
            "error: {\"code\":500}",
        ] {
            assert!(
                matches!(feed(&[line]), Err(EngineError::Failed { .. })),
                "{line}"
            );
        }
    }
}
