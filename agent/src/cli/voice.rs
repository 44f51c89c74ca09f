//! Speech over the way to the mesh that a command has ([`Mesh`]): the same JSON events from this
//! machine's agent and from a client of its own.

use super::context::Context;
use super::error::CliError;
use super::local::Lines;
use super::mesh::Mesh;
use super::text::Read as _;
use crate::gateway::voice::{self, events};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use unamesh_client::speech::{Hear, Hearing, Speech};

/// Decoded pieces of a recording, or why there are no more.
pub(super) type Pieces = mpsc::Receiver<Result<Vec<i16>, CliError>>;

impl Mesh {
    /// Who can speak.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(super) async fn voices(&self) -> Result<Value, CliError> {
        match self {
            Mesh::Agent(local) => local.get("voices").await,
            Mesh::Client(client) => Ok(events::voices(&client.voices())),
        }
    }

    /// Has a text spoken: the body of `POST speak`. Dropping it cancels.
    ///
    /// # Errors
    /// The agent does not answer, or the body is wrong.
    pub(super) async fn speak(&self, body: &Value) -> Result<Speaking, CliError> {
        match self {
            Mesh::Agent(local) => Ok(Speaking::Agent(local.lines("speak", body).await?)),
            Mesh::Client(client) => {
                let say = voice::say(body.to_string().as_bytes())
                    .map_err(|e| CliError::new(e.code, e.message))?;
                Ok(Speaking::Client(Box::new(client.speak(say))))
            }
        }
    }

    /// Has `pieces` (16 kHz mono) transcribed, taken as fast as they are sent. Dropping it cancels.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub(super) async fn hear(&self, hear: &Hear, pieces: Pieces) -> Result<Listening, CliError> {
        match self {
            Mesh::Client(client) => Ok(Listening::Client {
                hearing: Box::new(client.transcribe(hear.clone())),
                pieces: Some(pieces),
            }),
            Mesh::Agent(local) => {
                let query = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("model", &hear.model)
                    .append_pair("language", &hear.language)
                    .append_pair("prompt", &hear.prompt)
                    .append_pair("partials", &hear.partials.to_string())
                    .append_pair("vad_ms", &hear.vad_ms.to_string())
                    .finish();
                let broken = Broken::default();
                let (path, body) = (format!("transcribe?{query}"), upload(pieces, &broken));
                match local.exchange(&path, body).await {
                    Ok(lines) => Ok(Listening::Agent { lines, broken }),
                    Err(error) => Err(take(&broken).unwrap_or(error)),
                }
            }
        }
    }
}

/// Speech that comes.
pub(super) enum Speaking {
    /// From the agent.
    Agent(Lines),
    /// From the mesh.
    Client(Box<Speech>),
}

impl Speaking {
    /// The next event as the mesh API writes it; `None` after the last.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CliError> {
        match self {
            Speaking::Agent(lines) => lines.next().await,
            Speaking::Client(speech) => Ok(speech.next().await.map(|e| events::spoken(&e))),
        }
    }
}

/// A recording that is heard.
pub(super) enum Listening {
    /// By the agent.
    Agent {
        /// The events.
        lines: Lines,
        /// Why the recording broke off.
        broken: Broken,
    },
    /// By the mesh.
    Client {
        /// The utterance.
        hearing: Box<Hearing>,
        /// `None` after their end.
        pieces: Option<Pieces>,
    },
}

/// Why a body was not sent to its end: hyper tells only that it was not.
type Broken = Arc<Mutex<Option<CliError>>>;

impl Listening {
    /// The next event as the mesh API writes it; `None` after the last.
    ///
    /// # Errors
    /// The recording cannot be read on, or the agent went away.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CliError> {
        match self {
            Listening::Agent { lines, broken } => {
                let next = lines.next().await;
                match take(broken) {
                    Some(error) => Err(error),
                    None => next,
                }
            }
            Listening::Client { hearing, pieces } => loop {
                let piece = async {
                    match pieces.as_mut() {
                        Some(pieces) => pieces.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    event = hearing.next() => return Ok(event.map(|e| events::heard(&e))),
                    piece = piece => match piece {
                        Some(piece) => hearing.push(&piece?),
                        None => {
                            hearing.end();
                            *pieces = None;
                        }
                    },
                }
            },
        }
    }
}

fn take(broken: &Broken) -> Option<CliError> {
    broken.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The pieces as a request's body, which breaks off where they do.
fn upload(pieces: Pieces, broken: &Broken) -> super::local::Body {
    let broken = Arc::clone(broken);
    let frames = stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    })
    .map(move |piece| match piece {
        Ok(piece) => Ok(Frame::data(Bytes::from(events::to_bytes(&piece)))),
        Err(error) => {
            let reason = std::io::Error::other(error.message.clone());
            *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Err(reason)
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What a request of speech failed of, and what to type now. `speaks` = a speaker was sought, else
/// a listener.
pub(super) fn failed(context: &Context, speaks: bool, error: &Value) -> CliError {
    let code = error.at("code").text();
    let failed = CliError::new(code, error.at("message").text());
    match code {
        "voice_not_found" => failed.next(context.command("voices")),
        "no_peer" | "model_not_found" | "unknown_model" if speaks => failed
            .next(context.command("voices"))
            .next(context.command("engines")),
        "no_peer" | "model_not_found" | "unknown_model" => failed
            .next(context.command("models"))
            .next(context.command("engines")),
        _ => failed,
    }
}

/// The agent ended its answer without a last event.
pub(super) fn lost(context: &Context) -> CliError {
    let message = "the agent on this machine went away in the middle";
    CliError::new("agent_lost", message).next(context.command("status"))
}

/// What the mesh API wants for a text; fields that are `None` are left to it.
pub(super) fn speak_body(text: &str, fields: [(&str, Option<Value>); 5]) -> Value {
    let mut body = json!({"input": text});
    for (name, value) in fields {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}
