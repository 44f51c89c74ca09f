//! A double of an OpenAI-style server of speech, as a program of its own would be: over HTTP.
//!
//! It hums what it is to say ([`wave`]), piece by piece at a given pace, and understands of
//! everything that it hears the same words.

use super::voice_double::wave;
use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unamesh_client::audio::wav::stream_header;

/// Samples a second of its speech.
pub const RATE: u32 = 24_000;
/// The sound of one character.
const PER_CHAR: Duration = Duration::from_millis(60);
/// The sound of one piece.
const PIECE: Duration = Duration::from_millis(100);

/// How it behaves.
#[derive(Clone, Debug)]
pub struct SpeechScript {
    /// The voice that it lists.
    pub voice: String,
    /// Seconds of speech that it makes in one.
    pub pace: f64,
    /// What it understands.
    pub heard: String,
}

impl Default for SpeechScript {
    fn default() -> Self {
        SpeechScript {
            voice: "hum".to_owned(),
            pace: 1000.0,
            heard: "What do foxes eat?".to_owned(),
        }
    }
}

/// A running double. Dropping it stops it.
pub struct SpeechServer {
    /// Where it listens.
    pub addr: SocketAddr,
    _server: JoinSet<()>,
}

impl SpeechServer {
    /// Starts one on a free port.
    pub async fn start(script: SpeechScript) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(script);
        let voices = json!({"voices": [{"voice_id": script.voice}]});
        let models = json!({"data": [{"id": "tts-1"}, {"id": "whisper-1"}]});
        let heard = json!({"text": script.heard});
        let app = Router::new()
            .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
            .route("/v1/models", get(|| async { Json(models) }))
            .route("/v1/audio/voices", get(|| async { Json(voices) }))
            .route(
                "/v1/audio/transcriptions",
                post(|_: Bytes| async { Json(heard) }),
            )
            .route(
                "/v1/audio/speech",
                post(move |Json(asked): Json<Value>| async move { speak(&script, &asked) }),
            );
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        SpeechServer {
            addr,
            _server: server,
        }
    }

    /// Its entry in an agent's configuration.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[[engine]]\nname = \"speech\"\nkind = \"openai-speech\"\nurl = \"http://{}\"\n\
             slots = 4\n",
            self.addr
        )
    }
}

/// The length of a text's sound.
#[must_use]
pub fn length(text: &str) -> Duration {
    PER_CHAR * u32::try_from(text.chars().count()).unwrap()
}

fn speak(script: &SpeechScript, asked: &Value) -> axum::response::Response {
    let text = asked["input"].as_str().unwrap_or_default();
    let sound = wave(text, length(text), RATE);
    let bytes: Vec<u8> = sound.iter().flat_map(|s| s.to_le_bytes()).collect();
    let wav = asked["response_format"] == "wav";
    let head = if wav { stream_header(RATE) } else { Vec::new() };
    let size = 2 * (PIECE.as_secs_f64() * f64::from(RATE)) as usize;
    let mut pieces = vec![head];
    pieces.extend(bytes.chunks(size).map(<[u8]>::to_vec));
    let wait = PIECE.div_f64(script.pace);
    let paced = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(wait).await;
        Ok::<_, Infallible>(Bytes::from(piece))
    });
    Body::from_stream(paced).into_response()
}
