//! One chat request at the gateway, over either of its APIs, checked token by token.
//!
//! The bundled test engine answers `t0 t1 t2 …`, as many as were asked for, so every text is
//! known beforehand; requests ask for different lengths, so that no answer passes for another.

use super::faults::BENCH;
use crate::http::{Reply, Server};
use rand::Rng;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Tokens of an answer.
const TOKENS: std::ops::RangeInclusive<u32> = 20..=120;
/// From one token to the next.
const PACE: Duration = Duration::from_millis(30);

/// How a request is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `POST /unamesh/v1/generate`: the mesh's events, a line each.
    Mesh,
    /// `POST /v1/chat/completions` with `stream`.
    OpenAi,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Chat {
    /// How it is put.
    pub api: Api,
    /// The length of the answer.
    pub tokens: u32,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Whole.
    Done,
    /// With an error of this code; what came before it is undamaged.
    Failed(String),
    /// Not as it may: in words.
    Wrong(String),
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Told {
    /// How it ended.
    pub end: End,
    /// Tokens that came.
    pub tokens: u32,
    /// From the question to the first token, if one came.
    pub first: Option<Duration>,
    /// The longest time from one token to the next, or from the last one to an error.
    pub gap: Duration,
}

/// What a line of the answer says.
enum Says {
    Text(String),
    Done,
    Failed(String),
    Nothing,
}

impl Chat {
    /// Some request.
    pub fn draw(random: &mut impl Rng) -> Self {
        Self {
            api: if random.random() {
                Api::Mesh
            } else {
                Api::OpenAi
            },
            tokens: random.random_range(TOKENS),
        }
    }

    fn token(index: u32) -> String {
        format!("t{index} ")
    }

    async fn send(&self, desk: &Server) -> Result<Reply, String> {
        let mut body = json!({"model": BENCH, "max_tokens": self.tokens,
            "bench_itl_us": u64::try_from(PACE.as_micros()).unwrap_or_default(),
            "messages": [{"role": "user", "content": "Count."}]});
        if self.api == Api::Mesh {
            return desk.send("/unamesh/v1/generate", Some(&body)).await;
        }
        body["stream"] = true.into();
        desk.send("/v1/chat/completions", Some(&body)).await
    }

    /// Asks, and reads to the end. Nothing may take longer than `patience`.
    pub async fn ask(&self, desk: &Server, patience: Duration) -> Told {
        let asked = Instant::now();
        let mut told = Told {
            end: End::Wrong(format!("nothing for {patience:?}")),
            tokens: 0,
            first: None,
            gap: Duration::ZERO,
        };
        let sent = timeout_at((asked + patience).into(), self.send(desk)).await;
        let mut reply = match sent {
            Err(_) => return told,
            Ok(Err(reason)) => {
                told.end = End::Wrong(reason);
                return told;
            }
            Ok(Ok(reply)) if reply.status() != 200 => {
                told.gap = asked.elapsed();
                told.end = refused(reply).await;
                return told;
            }
            Ok(Ok(reply)) => reply,
        };
        let mut last = asked;
        loop {
            let line = match timeout_at((last + patience).into(), reply.line()).await {
                Err(_) => return told,
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => {
                    told.end = End::Wrong("it ended without an end".to_owned());
                    return told;
                }
                Ok(Err(reason)) => {
                    told.end = End::Wrong(reason);
                    return told;
                }
            };
            match self.says(&line) {
                Says::Nothing => continue,
                Says::Text(text) if text == Self::token(told.tokens) => told.tokens += 1,
                Says::Text(text) => {
                    told.end = End::Wrong(format!("{text:?} in place of t{}", told.tokens));
                    return told;
                }
                Says::Done if told.tokens == self.tokens => {
                    told.end = after(reply).await.unwrap_or(End::Done);
                    return told;
                }
                Says::Done => {
                    let (tokens, all) = (told.tokens, self.tokens);
                    told.end = End::Wrong(format!("done after {tokens} of {all}"));
                    return told;
                }
                Says::Failed(code) => {
                    told.gap = told.gap.max(last.elapsed());
                    told.end = after(reply).await.unwrap_or(End::Failed(code));
                    return told;
                }
            }
            match told.first {
                None => told.first = Some(asked.elapsed()),
                Some(_) => told.gap = told.gap.max(last.elapsed()),
            }
            last = Instant::now();
        }
    }

    fn says(&self, line: &str) -> Says {
        let line = match (self.api, line.strip_prefix("data: ")) {
            (Api::OpenAi, Some("[DONE]")) => return Says::Done,
            (Api::OpenAi, Some(data)) => data,
            // A comment.
            (Api::OpenAi, None) => return Says::Nothing,
            (Api::Mesh, _) => line,
        };
        let Ok(said) = serde_json::from_str::<Value>(line) else {
            return Says::Failed(format!("no JSON: {line}"));
        };
        if said["error"].is_object() {
            return Says::Failed(code(&said));
        }
        let text = match self.api {
            Api::Mesh if said["event"] == "done" => return Says::Done,
            Api::Mesh => &said["text"],
            Api::OpenAi => &said["choices"][0]["delta"]["content"],
        };
        match text.as_str() {
            Some(text) if !text.is_empty() => Says::Text(text.to_owned()),
            _ => Says::Nothing,
        }
    }
}

fn code(said: &Value) -> String {
    said["error"]["code"].as_str().unwrap_or("none").to_owned()
}

async fn refused(reply: Reply) -> End {
    let status = reply.status();
    match reply.json().await {
        Ok(said) if said["error"]["code"].is_string() => End::Failed(code(&said)),
        other => End::Wrong(format!("status {status}: {other:?}")),
    }
}

/// What is wrong with what follows the end: nothing may but the end of the stream.
async fn after(mut reply: Reply) -> Option<End> {
    loop {
        match reply.line().await {
            Ok(None) => return None,
            Ok(Some(line)) if line.starts_with(':') || line == "data: [DONE]" => {}
            other => return Some(End::Wrong(format!("after the end: {other:?}"))),
        }
    }
}
