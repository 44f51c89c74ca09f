//! GLM-ASR's WebSocket at `/v1/audio/stream`: sound goes up as it is spoken, partial and final
//! transcripts come down.
//!
//! ```text
//! {"type":"start","language","interim_results","punctuate"}  samples*  {"type":"end"}
//!     -> {"type":"partial"} {"type":"final","is_end_of_utterance"} {"type":"error","recoverable"}
//! ```
//!
//! The server cuts what it hears into sentences of its own and ends each with a `final`. The
//! transcript of our utterance is all of them, and over when one says so after our `end`, or
//! when the server closes after it. An error that is recoverable is noted and passed over.

use super::hearing::{HearCall, HearEvent, HearStream, RATE, Sound, Word, write};
use super::http::{HttpError, UrlError};
use super::openai::advert;
use super::refusal::unreachable;
use super::{Engine, EngineError, EngineInfo, EngineStream};
use futures_util::{SinkExt, StreamExt, stream};
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use unamesh_proto::limits::MAX_ENGINE_MESSAGE;
use unamesh_proto::timeouts::{ENGINE_CONNECT, ENGINE_HEALTH};
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};
use url::Url;

/// The name of its only model.
pub const MODEL: &str = "glm-asr";
/// How many streams it takes at the same time when nobody says.
const SLOTS: u16 = 2;

type Socket = WebSocketStream<TcpStream>;

/// An adapter to it.
pub struct GlmAsr {
    name: String,
    host: String,
    port: u16,
    /// `ws://HOST:PORT/v1/audio/stream`.
    address: String,
    key: Option<HeaderValue>,
    slots: u16,
}

impl GlmAsr {
    /// An adapter to the server at `url` (`http` or `ws`).
    ///
    /// # Errors
    /// The URL or the key cannot be used.
    pub fn new(
        name: String,
        url: &Url,
        key: Option<&str>,
        slots: Option<u16>,
    ) -> Result<Self, UrlError> {
        if !matches!(url.scheme(), "http" | "ws") {
            return Err(UrlError::Scheme(url.clone()));
        }
        let host = url
            .host_str()
            .ok_or_else(|| UrlError::NoHost(url.clone()))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let prefix = url.path().trim_end_matches('/');
        let key = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}")));
        let key = key.transpose().map_err(|_| UrlError::Key(url.clone()))?;
        Ok(GlmAsr {
            name,
            address: format!("ws://{host}:{port}{prefix}/v1/audio/stream"),
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port,
            key,
            slots: slots.unwrap_or(SLOTS),
        })
    }

    /// Connects and shakes hands: what a health check can ask of it.
    async fn open(&self) -> Result<Socket, HttpError> {
        let (host, port) = (self.host.as_str(), self.port);
        let dial = TcpStream::connect((host, port));
        let socket = tokio::time::timeout(ENGINE_CONNECT, dial)
            .await
            .map_err(|_| HttpError::Connect(format!("{host}:{port} does not answer")))?
            .and_then(|socket| socket.set_nodelay(true).map(|()| socket))
            .map_err(|e| HttpError::Connect(format!("{host}:{port}: {e}")))?;
        let broken = |e: WsError| HttpError::Broken(e.to_string());
        let mut request = self
            .address
            .as_str()
            .into_client_request()
            .map_err(broken)?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(AUTHORIZATION, key.clone());
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_ENGINE_MESSAGE))
            .max_frame_size(Some(MAX_ENGINE_MESSAGE));
        let shake = client_async_with_config(request, socket, Some(config));
        match tokio::time::timeout(ENGINE_HEALTH, shake).await {
            Ok(done) => done.map(|(socket, _)| socket).map_err(broken),
            Err(_) => Err(HttpError::Late(ENGINE_HEALTH)),
        }
    }
}

/// Whether its WebSocket answers at `url`.
pub async fn answers(url: &Url, limit: std::time::Duration) -> bool {
    let Ok(engine) = GlmAsr::new(String::new(), url, None, None) else {
        return false;
    };
    matches!(tokio::time::timeout(limit, engine.open()).await, Ok(Ok(_)))
}

#[async_trait::async_trait]
impl Engine for GlmAsr {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::GlmAsr
    }

    fn local_port(&self) -> Option<u16> {
        let local = self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        local.then_some(self.port)
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let open = self.open().await;
        open.map_err(|error| unreachable(&self.name, error))?;
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models: vec![ModelAdvert {
                kind: ModelKind::Stt,
                ..advert(MODEL.to_owned())
            }],
            voices: Vec::new(),
            version: String::new(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        let mut start: serde_json::Map<String, Value> = serde_json::Map::new();
        for (name, value) in call.extra()? {
            let value = serde_json::from_str(value.get()).unwrap_or_default();
            start.insert(name, value);
        }
        let language = if call.language.is_empty() {
            "auto"
        } else {
            call.bare_language()
        };
        start.insert("type".to_owned(), "start".into());
        start.insert("language".to_owned(), language.into());
        start.insert("interim_results".to_owned(), call.partials.into());
        start.entry("punctuate").or_insert(true.into());
        let socket = self.open().await;
        let socket = socket.map_err(|error| unreachable(&self.name, error))?;
        let mut hearing = Hearing {
            engine: self.name.clone(),
            socket,
            sound: Some(sound),
            text: String::new(),
            words: Vec::new(),
            confidence: None,
            finals: 0,
            over: false,
        };
        hearing
            .send(Message::text(Value::from(start).to_string()))
            .await?;
        Ok(stream::unfold(Box::new(hearing), |mut hearing| async move {
            let item = hearing.next().await?;
            Some((item, hearing))
        })
        .boxed())
    }
}

struct Hearing {
    engine: String,
    socket: Socket,
    /// Gone once it has ended.
    sound: Option<Sound>,
    /// Of all finals.
    text: String,
    words: Vec<Word>,
    /// The lowest of them.
    confidence: Option<f32>,
    finals: u32,
    over: bool,
}

enum Heard {
    Sound(Option<Vec<i16>>),
    Message(Option<Result<Message, WsError>>),
}

impl Hearing {
    async fn next(&mut self) -> Option<Result<HearEvent, EngineError>> {
        while !self.over {
            match self.step().await {
                Ok(Some(event)) => {
                    self.over = matches!(event, HearEvent::Final { .. });
                    return Some(Ok(event));
                }
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    async fn step(&mut self) -> Result<Option<HearEvent>, EngineError> {
        let heard = match &mut self.sound {
            Some(sound) => tokio::select! {
                samples = sound.recv() => Heard::Sound(samples),
                message = self.socket.next() => Heard::Message(message),
            },
            None => Heard::Message(self.socket.next().await),
        };
        match heard {
            Heard::Sound(Some(samples)) => {
                let mut bytes = Vec::new();
                write(&samples, &mut bytes);
                self.send(Message::binary(bytes)).await?;
                Ok(None)
            }
            Heard::Sound(None) => {
                self.sound = None;
                self.send(Message::text(json!({"type": "end"}).to_string()))
                    .await?;
                Ok(Some(HearEvent::Progress))
            }
            Heard::Message(Some(Ok(Message::Text(text)))) => self.message(&text),
            // What it did not come to would be missing.
            Heard::Message(Some(Ok(Message::Close(Some(close)))))
                if !matches!(close.code, CloseCode::Normal | CloseCode::Away) =>
            {
                Err(self.failed(format!("closed with code {}", u16::from(close.code))))
            }
            Heard::Message(None | Some(Ok(Message::Close(_)))) => match self.sound {
                None if self.finals > 0 => Ok(Some(self.transcript())),
                _ => Err(self.failed("closed without a transcript".to_owned())),
            },
            Heard::Message(Some(Ok(_))) => Ok(None),
            Heard::Message(Some(Err(error))) => Err(self.failed(error.to_string())),
        }
    }

    fn message(&mut self, text: &str) -> Result<Option<HearEvent>, EngineError> {
        let message: Value =
            serde_json::from_str(text).map_err(|e| super::refusal::rubbish(&self.engine, &e))?;
        let said = message["text"].as_str().unwrap_or_default().trim();
        match message["type"].as_str() {
            Some("partial") => Ok(Some(HearEvent::Partial {
                text: self.with(said),
            })),
            Some("final") => {
                self.take(&message, said)?;
                let ends = message["is_end_of_utterance"] != false && self.sound.is_none();
                Ok(Some(match ends {
                    true => self.transcript(),
                    false => HearEvent::Partial {
                        text: self.text.clone(),
                    },
                }))
            }
            Some("error") if message["recoverable"] == true => {
                tracing::debug!(engine = self.engine, code = %message["code"], "goes on");
                Ok(Some(HearEvent::Progress))
            }
            Some("error") => Err(super::refusal::complaint(&self.engine, MODEL, &message)),
            _ => Ok(None),
        }
    }

    fn take(&mut self, message: &Value, said: &str) -> Result<(), EngineError> {
        self.text = self.with(said);
        // The server's clock runs on over its sentences.
        self.words.extend(Word::read_all(&message["words"]));
        if self.text.len() > MAX_ENGINE_MESSAGE || self.words.len() > MAX_ENGINE_MESSAGE {
            return Err(self.failed("its transcript has no end".to_owned()));
        }
        self.finals += 1;
        if let Some(new) = message["confidence"].as_f64() {
            let new = (new as f32).clamp(0.0, 1.0);
            self.confidence = Some(self.confidence.map_or(new, |old| old.min(new)));
        }
        Ok(())
    }

    /// All finals and `said`.
    fn with(&self, said: &str) -> String {
        match (self.text.is_empty(), said.is_empty()) {
            (true, _) => said.to_owned(),
            (_, true) => self.text.clone(),
            _ => format!("{} {said}", self.text),
        }
    }

    fn transcript(&mut self) -> HearEvent {
        HearEvent::Final {
            text: std::mem::take(&mut self.text),
            language: String::new(),
            words: std::mem::take(&mut self.words),
            confidence: self.confidence,
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), EngineError> {
        let sent = self.socket.send(message).await;
        sent.map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, reason: String) -> EngineError {
        let engine = self.engine.clone();
        EngineError::Failed { engine, reason }
    }
}

/// Samples a second that it takes; the same as ours.
const _: () = assert!(RATE == 16_000);
