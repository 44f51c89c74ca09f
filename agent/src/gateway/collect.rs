//! The whole answer at once: events in, one JSON object out.
//!
//! The caller sees nothing before the end. So an answer that broke off and must not be spliced
//! ([`ClientError::Incomplete`]: structured output, a tool call) is no loss: it is asked for again
//! from its start, [`limits::MAX_ASKED_AGAIN`] times at most, and what came before is dropped.

use super::error::ApiError;
use super::request::Api;
use super::source::{ClientError, Event, Generate, PeerRef, Request};
use super::sse::{self, Answer};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value, json};
use unamesh_proto::limits;
use unamesh_proto::wire::{FinishReason, Usage};

/// An answer that is not streamed.
pub struct Whole {
    /// The body.
    pub json: String,
    /// Who began it, and why.
    pub started: Option<(PeerRef, String)>,
    /// `x-unamesh-seam`: one entry for each change of the machine.
    pub seams: Vec<String>,
}

/// Asks `source` until there is an answer.
///
/// # Errors
/// The request failed; what was delivered before is not returned, only its length. If nobody
/// takes it again, the error tells how it broke off.
pub async fn whole(
    answer: &Answer,
    source: &dyn Generate,
    request: Request,
) -> Result<Whole, ApiError> {
    let mut broken = match once(answer, source.generate(request.clone())).await {
        Err(Ended::Incomplete(broken)) => broken,
        ended => return ended.map_err(ApiError::from),
    };
    for again in 1..=limits::MAX_ASKED_AGAIN {
        let tokens = broken.delivered_tokens.unwrap_or_default();
        let events = source.generate_again(request.clone(), tokens, again);
        broken = match once(answer, events).await {
            Err(Ended::Incomplete(broken)) => broken,
            Err(Ended::Failed(error)) if error.delivered_tokens.is_none() => break,
            ended => return ended.map_err(ApiError::from),
        };
    }
    Err(broken)
}

/// How there came to be no answer.
enum Ended {
    /// Asking again may help.
    Incomplete(ApiError),
    Failed(ApiError),
}

impl From<Ended> for ApiError {
    fn from(ended: Ended) -> Self {
        let (Ended::Incomplete(error) | Ended::Failed(error)) = ended;
        error
    }
}

impl From<ApiError> for Ended {
    fn from(error: ApiError) -> Self {
        Ended::Failed(error)
    }
}

async fn once(answer: &Answer, mut events: BoxStream<'static, Event>) -> Result<Whole, Ended> {
    let mut collected = Collected::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Token {
                text,
                tokens,
                extra,
                ..
            } => collected.token(&text, tokens, &extra)?,
            Event::PeerChanged {
                from,
                to,
                seam,
                gap,
                ..
            } => {
                collected.seams.push(sse::seam_text(&from, &to, seam, gap));
            }
            Event::Done { finish, usage } => return Ok(collected.finish(answer, finish, usage)),
            Event::Failed(error) => {
                let incomplete = matches!(error, ClientError::Incomplete { .. });
                let error = collected.failed(error);
                return Err(match incomplete {
                    true => Ended::Incomplete(error),
                    false => Ended::Failed(error),
                });
            }
            Event::Started { peer, why } => collected.started = Some((peer, why)),
            Event::Progress { .. } => {}
        }
    }
    Err(collected.cut().into())
}

#[derive(Default)]
struct Collected {
    text: String,
    tokens: u32,
    /// Bytes of other fields, which count against the same limit as the text.
    extra_bytes: usize,
    /// `tool_calls`, `reasoning_content`, ...: deltas merged into whole values.
    fields: Map<String, Value>,
    logprobs: Value,
    seams: Vec<String>,
    started: Option<(PeerRef, String)>,
}

impl Collected {
    fn token(&mut self, text: &str, tokens: u32, extra: &str) -> Result<(), ApiError> {
        self.text.push_str(text);
        self.tokens = self.tokens.saturating_add(tokens);
        self.extra_bytes += extra.len();
        if self.text.len() + self.extra_bytes > limits::MAX_HTTP_ANSWER {
            let reason = format!(
                "the answer exceeds {} bytes; stream it",
                limits::MAX_HTTP_ANSWER
            );
            return Err(self.failed(ClientError::Incomplete {
                delivered: String::new(),
                tokens: self.tokens,
                reason,
            }));
        }
        let extra = sse::Extra::read(extra);
        for (key, value) in extra.delta() {
            let entry = self.fields.entry(key).or_insert(Value::Null);
            merge(entry, serde_json::from_str(value).unwrap_or_default());
        }
        if let Some(logprobs) = extra.logprobs() {
            merge(
                &mut self.logprobs,
                serde_json::from_str(logprobs).unwrap_or_default(),
            );
        }
        Ok(())
    }

    fn cut(&self) -> ApiError {
        let reason = "the stream ended early".to_owned();
        self.failed(ClientError::Interrupted {
            delivered: String::new(),
            tokens: self.tokens,
            reason,
        })
    }

    fn failed(&self, error: ClientError) -> ApiError {
        let mut error = ApiError::from(error);
        if self.tokens > 0 {
            error.delivered_tokens = Some(self.tokens);
        }
        error
    }

    fn finish(mut self, answer: &Answer, finish: FinishReason, usage: Usage) -> Whole {
        let finish = sse::finish_name(finish);
        let (object, choice) = match answer.api {
            Api::Chat => {
                let mut message = Map::new();
                message.insert("role".to_owned(), "assistant".into());
                let calls = self.fields.contains_key("tool_calls") && self.text.is_empty();
                let content = if calls {
                    Value::Null
                } else {
                    Value::from(self.text)
                };
                message.insert("content".to_owned(), content);
                message.extend(self.fields.into_iter().filter(|(key, _)| key != "role"));
                drop_indexes(message.get_mut("tool_calls"));
                let message = Value::Object(message);
                (
                    "chat.completion",
                    json!({
                        "index": 0, "message": message, "logprobs": self.logprobs.take(), "finish_reason": finish
                    }),
                )
            }
            Api::Completion => (
                "text_completion",
                json!({
                    "index": 0, "text": self.text, "logprobs": self.logprobs.take(), "finish_reason": finish
                }),
            ),
        };
        let json = format!(
            "{{{},\"choices\":[{choice}],\"usage\":{}}}",
            answer.head(object),
            sse::usage_json(usage, self.tokens)
        );
        Whole {
            json,
            started: self.started,
            seams: self.seams,
        }
    }
}

/// Adds a delta to what came before, as OpenAI's clients do: strings grow, elements of an
/// array meet by their `index`, members of objects by their name; `index` and `type` are set.
fn merge(into: &mut Value, delta: Value) {
    match (into, delta) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => text.push_str(&more),
        (Value::Object(members), Value::Object(more)) => {
            for (key, value) in more {
                if matches!(key.as_str(), "index" | "type") {
                    members.insert(key, value);
                } else {
                    merge(members.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(elements), Value::Array(more)) => {
            for element in more {
                let index = element.get("index").cloned();
                let same =
                    index.and_then(|i| elements.iter_mut().find(|e| e.get("index") == Some(&i)));
                match same {
                    Some(earlier) => merge(earlier, element),
                    None => elements.push(element),
                }
            }
        }
        (into, value) => *into = value,
    }
}

/// `index` stands in streamed tool calls only.
fn drop_indexes(calls: Option<&mut Value>) {
    for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(members) = call.as_object_mut() {
            members.remove("index");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_merge_by_index() {
        let mut value = Value::Null;
        for delta in [
            json!([{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]),
            json!([{"index":0,"function":{"arguments":"{\"x\""}}]),
            json!([{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}}]),
            json!([{"index":0,"type":"function","function":{"arguments":":1}"}}]),
        ] {
            merge(&mut value, delta);
        }
        drop_indexes(Some(&mut value));
        assert_eq!(
            value,
            json!([
                {"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
                {"id":"b","function":{"name":"g","arguments":"{}"}}
            ])
        );
    }
}
