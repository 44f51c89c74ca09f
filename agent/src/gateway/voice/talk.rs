//! `GET converse`: a spoken conversation over a WebSocket.
//!
//! Binary messages are sound: s16le mono, 16 kHz up, 24 kHz down. Text messages are JSON: commands
//! up, events down ([`super::events::turn`]). The first message is the command `start`; then
//! `end` (the utterance is over), `text` (a turn that was typed) and `barge_in` may come at any
//! time. Whoever closes the socket ends the conversation and all that works on it.

use super::super::GatewayState;
use super::super::error::ApiError;
use super::super::openai::Reply;
use super::super::takeover::{self, Socket};
use super::{events, hear};
use axum::extract::{Request, State};
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as Wire};
use tokio_util::sync::CancellationToken;
use unamesh_client::client::MeshClient;
use unamesh_client::converse::{Conversation, ConverseConfig, Message, TurnEvent};
use unamesh_client::speech::{Hear, Say};
use unamesh_proto::limits::MAX_SOCKET_MESSAGE;
use unamesh_proto::timeouts::HTTP_BODY;
use unamesh_proto::wire::Sampling;

/// What the caller may say in text.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Opens the conversation.
    Start(Box<Start>),
    /// The user has finished speaking.
    End,
    /// The user typed this.
    Text {
        /// It.
        text: String,
    },
    /// The answer is to end now.
    BargeIn,
}

/// How the conversation is held; only the language model has to be named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    model: String,
    #[serde(default)]
    system: String,
    #[serde(default)]
    history: Vec<Message>,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
    seed: Option<i64>,
    #[serde(default)]
    other_model: bool,
    /// How it hears.
    #[serde(default)]
    hear: Ear,
    /// How it speaks; `null`: answers are text.
    #[serde(default = "spoken")]
    voice: Option<Mouth>,
    /// Silence that ends an utterance; 0: the command `end` does.
    silence_ms: Option<u64>,
    /// Sound may be so far ahead of the ear.
    ahead_ms: Option<u64>,
    #[serde(default = "yes")]
    warm_up: bool,
    #[serde(default)]
    session: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ear {
    model: String,
    language: String,
    prompt: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mouth {
    model: String,
    voice: String,
    language: String,
    speed_percent: u16,
    other_voice: Option<bool>,
}

fn spoken() -> Option<Mouth> {
    Some(Mouth::default())
}

fn yes() -> bool {
    true
}

impl From<Start> for ConverseConfig {
    fn from(start: Start) -> Self {
        let usual = ConverseConfig::new(start.model);
        ConverseConfig {
            system: start.system,
            history: start.history,
            sampling: Sampling {
                temperature: start.temperature,
                max_tokens: start.max_tokens,
                seed: start.seed,
                ..Sampling::default()
            },
            other_model: start.other_model,
            stt: Hear {
                model: start.hear.model,
                language: start.hear.language,
                prompt: start.hear.prompt,
                ..Hear::default()
            },
            voice: start.voice.map(|mouth| Say {
                // Who did not ask for a voice does not mind another one.
                other_voice: mouth.other_voice.unwrap_or(mouth.voice.is_empty()),
                model: mouth.model,
                voice: mouth.voice,
                language: mouth.language,
                speed_percent: mouth.speed_percent,
                ..Say::new("")
            }),
            silence: start
                .silence_ms
                .map_or(usual.silence, Duration::from_millis),
            ahead: start.ahead_ms.map_or(usual.ahead, Duration::from_millis),
            warm_up: start.warm_up,
            session: start.session,
            ..usual
        }
    }
}

/// Reads a command.
///
/// # Errors
/// 400: what is wrong with it.
pub fn command(text: &str) -> Result<Command, ApiError> {
    serde_json::from_str(text).map_err(|e| ApiError::invalid("invalid_command", e.to_string()))
}

pub(super) async fn converse(State(state): State<GatewayState>, request: Request) -> Reply {
    let GatewayState { client, stop, .. } = state;
    takeover::websocket(request, |socket| hold(client, stop, socket))
}

async fn hold(client: MeshClient, stop: CancellationToken, socket: Socket) {
    let (mut down, mut up) = socket.split();
    let start = match tokio::time::timeout(HTTP_BODY, up.next()).await {
        Ok(Some(Ok(Wire::Text(text)))) => command(&text),
        Ok(Some(Err(WsError::Capacity(_)))) => return refuse(&mut down, &too_long()).await,
        _ => Err(ApiError::invalid(
            "invalid_command",
            "the first message has to be `start`",
        )),
    };
    let mut talk = match start {
        Ok(Command::Start(start)) => Talk {
            conversation: client.converse((*start).into()),
            half: None,
        },
        Ok(_) => return refuse(&mut down, "the first command has to be `start`").await,
        Err(error) => return refuse(&mut down, &error.message).await,
    };
    loop {
        let sent = tokio::select! {
            event = talk.conversation.next() => match event {
                Some(event) => down.send(wire(&event)).await,
                None => break,
            },
            message = up.next() => match message {
                // Nothing behind it can be read.
                Some(Err(WsError::Capacity(_))) => return refuse(&mut down, &too_long()).await,
                Some(Ok(Wire::Close(_)) | Err(_)) | None => break,
                Some(Ok(message)) => match talk.take(&message) {
                    Ok(()) => Ok(()),
                    Err(error) => down.send(refusal(&error.message)).await,
                },
            },
            () = stop.cancelled() => break,
        };
        if sent.is_err() {
            return;
        }
    }
    // Whoever left first, there may be nobody to say it to.
    let _ = down.close().await;
}

struct Talk {
    conversation: Conversation,
    /// Of a sample whose second byte comes with the next message.
    half: Option<u8>,
}

impl Talk {
    fn take(&mut self, message: &Wire) -> Result<(), ApiError> {
        match message {
            Wire::Binary(bytes) => {
                let samples = hear::samples(&mut self.half, bytes);
                self.conversation.push(&samples);
            }
            Wire::Text(text) => match command(text)? {
                Command::Start(_) => {
                    let message = "the conversation has started already";
                    return Err(ApiError::invalid("invalid_command", message));
                }
                Command::End => self.conversation.end_utterance(),
                Command::Text { text } => self.conversation.text(&text),
                Command::BargeIn => self.conversation.barge_in(),
            },
            // Pings are answered by the protocol itself.
            _ => {}
        }
        Ok(())
    }
}

fn wire(event: &TurnEvent) -> Wire {
    match event {
        TurnEvent::Pcm(pcm) => Wire::Binary(events::to_bytes(pcm).into()),
        event => text(&events::turn(event)),
    }
}

fn refusal(message: &str) -> Wire {
    text(&json!({"event": "refused", "message": message}))
}

fn too_long() -> String {
    let limit = MAX_SOCKET_MESSAGE / 1024;
    format!("a message has at most {limit} KiB: send sound in pieces, and the newest of a history")
}

async fn refuse(down: &mut SplitSink<Socket, Wire>, message: &str) {
    // Whoever began wrongly may be gone already.
    let _ = down.send(refusal(message)).await;
    let _ = down.close().await;
}

fn text(value: &Value) -> Wire {
    Wire::Text(value.to_string().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn start(text: &str) -> ConverseConfig {
        match command(text).unwrap() {
            Command::Start(start) => (*start).into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_start_needs_a_model_alone() {
        let least = start(r#"{"command":"start","model":"m"}"#);
        let usual = ConverseConfig::new("m");
        assert_eq!(format!("{least:?}"), format!("{usual:?}"));
        let text = start(r#"{"command":"start","model":"m","voice":null,"silence_ms":0}"#);
        assert!(text.voice.is_none() && text.silence.is_zero());
        let more = start(
            r#"{"command":"start","model":"m","max_tokens":40,"voice":{"voice":"joe"},
                "history":[{"role":"user","content":"Hi."}],"hear":{"language":"en"}}"#,
        );
        assert_eq!(more.sampling.max_tokens, Some(40));
        assert_eq!(
            more.history,
            [Message::new(unamesh_client::converse::Role::User, "Hi.")]
        );
        assert_eq!(more.stt.language, "en");
        assert!(
            more.voice
                .is_some_and(|v| v.voice == "joe" && !v.other_voice)
        );
    }

    #[test]
    fn commands() {
        assert!(matches!(command(r#"{"command":"end"}"#), Ok(Command::End)));
        let barge_in = command(r#"{"command":"barge_in"}"#);
        assert!(matches!(barge_in, Ok(Command::BargeIn)));
        let typed = command(r#"{"command":"text","text":"Hi."}"#).unwrap();
        assert!(matches!(typed, Command::Text { text } if text == "Hi."));
        for wrong in ["", "{}", r#"{"command":"dance"}"#, r#"{"command":"start"}"#] {
            assert_eq!(
                command(wrong).unwrap_err().code,
                "invalid_command",
                "{wrong}"
            );
        }
    }
}
