//! Speech in the mesh API: what local programs speak and hear with.
//!
//! - `POST speak`: a text in JSON; its sound as NDJSON events ([`events`]).
//! - `POST transcribe`: raw PCM in while events come out ([`hear`]).
//! - `GET voices`: who can speak.
//! - `GET converse`: a conversation over a WebSocket ([`talk`]).
//!
//! Audio at this edge is mono, 16 bits, little-endian: 24 kHz down, 16 kHz up. A caller that goes
//! away ends the work: its stream is dropped, and with it the engine's request.

pub mod events;
pub mod hear;
pub mod talk;

use super::GatewayState;
use super::error::ApiError;
use super::mesh::{ndjson, stream_reply};
use super::openai::{Reply, json_reply, read_body};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value};
use unamesh_client::speech::Say;
use unamesh_proto::speech::text::is_spoken;

/// What the speed of a voice may be multiplied with.
const SPEEDS: std::ops::RangeInclusive<f32> = 0.25..=4.0;

/// The routes, relative to `/unamesh/v1`.
pub fn routes() -> Router<GatewayState> {
    Router::new()
        .route("/voices", get(voices))
        .route("/speak", post(speak))
        .route("/transcribe", post(hear::transcribe))
        .route("/converse", get(talk::converse))
}

async fn voices(State(state): State<GatewayState>) -> Reply {
    Ok(json_reply(
        events::voices(&state.client.voices()).to_string(),
    ))
}

async fn speak(State(state): State<GatewayState>, request: Request) -> Reply {
    let body = read_body(request).await?;
    let spoken = state.client.speak(say(&body)?);
    let lines = ndjson(spoken.map(|event| events::spoken(&event)));
    Ok(stream_reply(
        "application/x-ndjson",
        Body::from_stream(lines),
    ))
}

/// As OpenAI's `/v1/audio/speech` has it, with more of our own.
#[derive(Deserialize)]
struct SpeakBody {
    input: String,
    #[serde(default)]
    voice: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    language: String,
    speed: Option<f32>,
    /// Another voice may speak, or go on, where nobody has (no longer) the one asked for.
    #[serde(default)]
    other_voice: bool,
    /// Keeps engines warm; 0 = none.
    #[serde(default)]
    session: u64,
    /// For the engine.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// From a body to a request.
///
/// # Errors
/// 400, with the field to blame.
pub fn say(body: &[u8]) -> Result<Say, ApiError> {
    let body: SpeakBody = serde_json::from_slice(body)
        .map_err(|e| ApiError::invalid("invalid_json", e.to_string()))?;
    if !is_spoken(&body.input) {
        let message = "nothing to say: input has no letter or digit that is spoken";
        return Err(ApiError::field("input", message));
    }
    let speed = body.speed.unwrap_or(1.0);
    if !SPEEDS.contains(&speed) {
        let message = format!("speed must be from 0.25 to 4, got {speed}");
        return Err(ApiError::field("speed", message));
    }
    let extra = if body.other.is_empty() {
        String::new()
    } else {
        Value::Object(body.other).to_string()
    };
    Ok(Say {
        model: body.model,
        voice: body.voice,
        language: body.language,
        speed_percent: (speed * 100.0).round() as u16,
        extra,
        session: body.session,
        other_voice: body.other_voice,
        ..Say::new(body.input)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_body_as_openai_has_it() {
        let body =
            br#"{"input":"Hello.","voice":"joe","model":"tts-1","speed":1.2,"cfg_weight":0.5}"#;
        let asked = say(body).unwrap();
        assert_eq!(
            (
                asked.text.as_str(),
                asked.voice.as_str(),
                asked.model.as_str()
            ),
            ("Hello.", "joe", "tts-1")
        );
        assert_eq!(asked.speed_percent, 120);
        assert_eq!(asked.extra, r#"{"cfg_weight":0.5}"#);
        assert_eq!(say(br#"{"input":"a"}"#).unwrap().extra, "");
    }

    #[test]
    fn the_field_to_blame_is_named() {
        for (body, field) in [
            (r#"{"input":" "}"#, Some("input")),
            (r#"{"input":"..."}"#, Some("input")),
            (r#"{"input":"a","speed":9}"#, Some("speed")),
            (r#"{"voice":"joe"}"#, None),
        ] {
            let error = say(body.as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), field, "{body}");
            assert_eq!(error.status.as_u16(), 400, "{body}");
        }
    }
}
