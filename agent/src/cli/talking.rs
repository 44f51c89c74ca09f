//! A spoken conversation over the way to the mesh that a command has ([`Mesh`]): a WebSocket to
//! this machine's agent, or a client of its own.

use super::error::CliError;
use super::local::{Local, SocketStream};
use super::mesh::Mesh;
use crate::gateway::voice::hear::samples;
use crate::gateway::voice::{events, talk};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as Wire;
use unamesh_client::converse::{Conversation, TurnEvent};
use unamesh_proto::limits::MAX_SOCKET_MESSAGE;

/// Samples of a message: as many as one may have. A recording comes in larger pieces.
const MESSAGE: usize = MAX_SOCKET_MESSAGE / size_of::<i16>();

/// What comes of a conversation.
pub(super) enum Heard {
    /// The next sound: 24 kHz, mono.
    Sound(Vec<i16>),
    /// An event as the mesh API writes it.
    Event(Value),
}

/// A conversation. Dropping it ends it.
pub(super) enum Talking {
    /// Over the agent.
    Agent {
        /// Commands and sound.
        up: Box<SplitSink<SocketStream, Wire>>,
        /// Events and sound.
        down: Box<SplitStream<SocketStream>>,
        /// Half a sample.
        half: Option<u8>,
    },
    /// Over the mesh.
    Client(Box<Conversation>),
}

impl Mesh {
    /// Opens a conversation with the command `start`, whose fields `start` has.
    ///
    /// # Errors
    /// The agent does not answer, or the command is wrong.
    pub(super) async fn converse(&self, mut start: Value) -> Result<Talking, CliError> {
        start["command"] = json!("start");
        let text = start.to_string();
        match self {
            Mesh::Agent(local) => agent(local, text).await,
            Mesh::Client(client) => match talk::command(&text) {
                Ok(talk::Command::Start(start)) => {
                    Ok(Talking::Client(Box::new(client.converse((*start).into()))))
                }
                Ok(_) => Err(CliError::new("protocol", "that starts no conversation")),
                Err(e) => Err(CliError::new(e.code, e.message)),
            },
        }
    }
}

async fn agent(local: &Local, start: String) -> Result<Talking, CliError> {
    let (up, down) = local.socket("converse").await?.split();
    let mut talking = Talking::Agent {
        up: Box::new(up),
        down: Box::new(down),
        half: None,
    };
    talking.send(Wire::Text(start.into())).await?;
    Ok(talking)
}

impl Talking {
    /// The next that comes; `None`: the agent ended it.
    ///
    /// # Errors
    /// The agent went away, or refused a command.
    pub(super) async fn next(&mut self) -> Result<Option<Heard>, CliError> {
        match self {
            Talking::Client(conversation) => {
                Ok(conversation.next().await.map(|event| match event {
                    TurnEvent::Pcm(pcm) => Heard::Sound(pcm),
                    event => Heard::Event(events::turn(&event)),
                }))
            }
            Talking::Agent { down, half, .. } => loop {
                let text = match down.next().await {
                    None | Some(Ok(Wire::Close(_))) => return Ok(None),
                    Some(Ok(Wire::Binary(bytes))) => {
                        return Ok(Some(Heard::Sound(samples(half, &bytes))));
                    }
                    Some(Ok(Wire::Text(text))) => text,
                    Some(Ok(_)) => continue,
                    Some(Err(e)) => return Err(lost(&e)),
                };
                let event: Value = serde_json::from_str(&text)
                    .map_err(|e| CliError::new("protocol", format!("an event is no JSON: {e}")))?;
                return match event["event"].as_str() {
                    Some("refused") => Err(CliError::new(
                        "refused",
                        event["message"].as_str().unwrap_or("refused"),
                    )),
                    _ => Ok(Some(Heard::Event(event))),
                };
            },
        }
    }

    /// Says something: 16 kHz, mono.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn push(&mut self, pcm: &[i16]) -> Result<(), CliError> {
        match self {
            Talking::Client(conversation) => {
                conversation.push(pcm);
                Ok(())
            }
            Talking::Agent { .. } => {
                for part in pcm.chunks(MESSAGE) {
                    let bytes = events::to_bytes(part);
                    self.send(Wire::Binary(bytes.into())).await?;
                }
                Ok(())
            }
        }
    }

    /// The user has finished speaking.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn end(&mut self) -> Result<(), CliError> {
        match self {
            Talking::Client(conversation) => {
                conversation.end_utterance();
                Ok(())
            }
            Talking::Agent { .. } => self.command(json!({"command": "end"})).await,
        }
    }

    /// The user typed this.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn text(&mut self, text: &str) -> Result<(), CliError> {
        match self {
            Talking::Client(conversation) => {
                conversation.text(text);
                Ok(())
            }
            Talking::Agent { .. } => self.command(json!({"command": "text", "text": text})).await,
        }
    }

    /// The answer is to end now.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn barge_in(&mut self) -> Result<(), CliError> {
        match self {
            Talking::Client(conversation) => {
                conversation.barge_in();
                Ok(())
            }
            Talking::Agent { .. } => self.command(json!({"command": "barge_in"})).await,
        }
    }

    async fn command(&mut self, command: Value) -> Result<(), CliError> {
        self.send(Wire::Text(command.to_string().into())).await
    }

    async fn send(&mut self, message: Wire) -> Result<(), CliError> {
        match self {
            Talking::Agent { up, .. } => up.send(message).await.map_err(|e| lost(&e)),
            Talking::Client(_) => Ok(()),
        }
    }
}

fn lost(error: &tokio_tungstenite::tungstenite::Error) -> CliError {
    let message = format!("the agent on this machine went away: {error}");
    CliError::new("agent_lost", message)
}
