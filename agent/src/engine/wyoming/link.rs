//! A connection to a Wyoming server.

use super::frame::{Frame, Frames};
use crate::engine::EngineError;
use crate::engine::http::{HttpError, UrlError};
use crate::engine::speech::{blames_voice, unknown_voice};
use serde_json::Value;
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use unamesh_proto::timeouts::ENGINE_CONNECT;
use url::Url;

/// Bytes that are read at once: a third of a second of speech.
const READ: usize = 16 * 1024;

/// wyoming-piper lists every voice that there is as installed, and says these when it can neither
/// find nor download one.
const NO_VOICE: [&str; 3] = ["VoiceNotFoundError", "URLError", "HTTPError"];

/// Where a server is.
pub struct At {
    host: String,
    port: u16,
}

impl At {
    /// # Errors
    /// The URL names no host or no port.
    pub fn new(url: &Url) -> Result<At, UrlError> {
        let missing = || UrlError::NoHost(url.clone());
        let host = url.host_str().ok_or_else(missing)?;
        let port = url.port_or_known_default().ok_or_else(missing)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(At { host, port })
    }

    /// The port, if the host is this machine by its loopback address.
    pub fn local_port(&self) -> Option<u16> {
        let loopback = |ip: IpAddr| ip.is_loopback();
        let local = self.host == "localhost" || self.host.parse().is_ok_and(loopback);
        local.then_some(self.port)
    }

    /// Connects, on behalf of `engine`.
    ///
    /// # Errors
    /// [`HttpError::Connect`].
    pub async fn connect(&self, engine: &str) -> Result<Link, HttpError> {
        let dial = TcpStream::connect((self.host.as_str(), self.port));
        let socket = tokio::time::timeout(ENGINE_CONNECT, dial).await;
        let (host, port) = (&self.host, self.port);
        let socket = socket
            .map_err(|_| HttpError::Connect(format!("{host}:{port} does not answer")))?
            .and_then(|socket| socket.set_nodelay(true).map(|()| socket))
            .map_err(|e| HttpError::Connect(format!("{host}:{port}: {e}")))?;
        Ok(Link {
            engine: engine.to_owned(),
            socket,
            frames: Frames::default(),
            buffer: vec![0; READ],
        })
    }
}

/// A connection.
pub struct Link {
    engine: String,
    socket: TcpStream,
    frames: Frames,
    buffer: Vec<u8>,
}

impl Link {
    /// Sends events, as one write.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, frames: &[Frame]) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.write(&mut bytes);
        }
        let sent = self.socket.write_all(&bytes).await;
        sent.map_err(|e| self.failed(&e.to_string()))
    }

    /// The next event; `None` at the end. May be cancelled: nothing that came is lost.
    ///
    /// # Errors
    /// The connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<Frame>, EngineError> {
        loop {
            match self.frames.next() {
                Ok(None) => {}
                Ok(frame) => return Ok(frame),
                Err(error) => return Err(self.failed(&error.to_string())),
            }
            match self.socket.read(&mut self.buffer).await {
                Ok(0) => return Ok(None),
                Ok(read) => self.frames.push(&self.buffer[..read]),
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        }
    }

    /// What an `error` event means.
    pub fn complaint(&self, frame: &Frame, voice: &str) -> EngineError {
        let text = frame.text("text");
        let missing = !voice.is_empty() && NO_VOICE.contains(&frame.text("code"));
        if missing || blames_voice(&text.to_ascii_lowercase(), voice) {
            return unknown_voice(&self.engine, voice);
        }
        crate::engine::refusal::complaint(&self.engine, "", &Value::from(text))
    }

    /// The error of a server that did not do as it should.
    pub fn failed(&self, reason: &str) -> EngineError {
        EngineError::Failed {
            engine: self.engine.clone(),
            reason: reason.to_owned(),
        }
    }
}
