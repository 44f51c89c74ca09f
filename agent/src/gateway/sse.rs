//! The token path: mesh events in, server-sent events out.
//!
//! [`ChunkWriter`] formats OpenAI chunks by hand into one buffer that lives as long as the
//! stream: everything that does not change from token to token is formatted once, and what
//! hyper gets is a slice of the buffer, whose memory is taken back when hyper has written it.
//! [`SseBody`] drives it and puts all events that are ready at once into one write.

use super::error::ApiError;
use super::headers::{PEER, SEAM, insert};
use super::json::{self, Members};
use super::request::Api;
use super::source::{ClientError, Event, PeerRef, Seam};
use axum::http::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use unamesh_proto::wire::{FinishReason, Usage};

/// Bytes after which a write goes out although more events are ready.
const WRITE: usize = 16 * 1024;
/// A silent stream tells this often that it lives; comments are ignored by every client.
const COMMENT_EVERY: Duration = Duration::from_secs(1);

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which API.
    pub api: Api,
    /// `chatcmpl-...`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// As requested.
    pub model: String,
}

impl Answer {
    /// The JSON `"id":..,"object":..,"created":..,"model":..` with the given object name.
    pub fn head(&self, object: &str) -> String {
        // A string always serializes.
        let model = serde_json::to_string(&self.model).unwrap_or_default();
        let (id, created) = (&self.id, self.created);
        format!("\"id\":\"{id}\",\"object\":\"{object}\",\"created\":{created},\"model\":{model}")
    }
}

/// Formats an answer's chunks.
pub struct ChunkWriter {
    buffer: BytesMut,
    api: Api,
    /// `data: {...,"choices":[{"index":0,`
    head: String,
    /// Closes a chunk after its choices.
    tail: &'static str,
    include_usage: bool,
    tokens: u32,
    commented: Instant,
}

impl ChunkWriter {
    /// A writer; a chat answer begins with the role.
    pub fn new(answer: &Answer, include_usage: bool) -> Self {
        let object = match answer.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        let mut writer = ChunkWriter {
            buffer: BytesMut::with_capacity(2 * 1024),
            api: answer.api,
            head: format!(
                "data: {{{},\"choices\":[{{\"index\":0,",
                answer.head(object)
            ),
            tail: if include_usage {
                "],\"usage\":null}\n\n"
            } else {
                "]}\n\n"
            },
            include_usage,
            tokens: 0,
            commented: Instant::now(),
        };
        if answer.api == Api::Chat {
            writer
                .raw("\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}");
        }
        writer
    }

    /// Writes an event; true: it was the last.
    pub fn event(&mut self, event: &Event) -> bool {
        match event {
            Event::Token {
                text,
                tokens,
                extra,
                ..
            } => {
                self.tokens = self.tokens.saturating_add(*tokens);
                self.token(text, extra);
            }
            Event::Progress { phase, done, total } => self.progress(phase.name(), *done, *total),
            Event::PeerChanged {
                from,
                to,
                seam,
                gap,
                ..
            } => self.seam(from, to, *seam, *gap),
            Event::Started { .. } => {}
            Event::Done { finish, usage } => {
                self.done(*finish, *usage);
                return true;
            }
            Event::Failed(error) => {
                self.failed(error.clone().into());
                return true;
            }
        }
        false
    }

    /// The stream ended without its terminal event: never pass that on as an end.
    pub fn cut(&mut self) {
        let (delivered, reason) = (String::new(), "the stream ended early".to_owned());
        self.failed(
            ClientError::Interrupted {
                delivered,
                tokens: self.tokens,
                reason,
            }
            .into(),
        );
    }

    /// What is to be written, if anything.
    pub fn take(&mut self) -> Option<Bytes> {
        // `split` keeps the rest of the allocation here; `reserve` in a later `put` reclaims
        // the front once hyper has dropped its slice.
        (!self.buffer.is_empty()).then(|| self.buffer.split().freeze())
    }

    /// Bytes waiting.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    fn token(&mut self, text: &str, extra: &str) {
        let extra = Extra::read(extra);
        if text.is_empty() && extra.is_empty() {
            return; // Half a character or a special token: nothing to show.
        }
        self.buffer.put_slice(self.head.as_bytes());
        match self.api {
            Api::Chat => {
                self.buffer.put_slice(b"\"delta\":{");
                let mut separator = "";
                if !text.is_empty() {
                    self.buffer.put_slice(b"\"content\":");
                    self.string(text);
                    separator = ",";
                }
                for (key, value) in extra.delta() {
                    self.buffer.put_slice(separator.as_bytes());
                    self.string(key);
                    self.buffer.put_u8(b':');
                    json::push_line(value, &mut self.buffer);
                    separator = ",";
                }
                self.buffer.put_u8(b'}');
            }
            Api::Completion => {
                self.buffer.put_slice(b"\"text\":");
                self.string(text);
            }
        }
        if let Some(logprobs) = extra.logprobs() {
            self.buffer.put_slice(b",\"logprobs\":");
            json::push_line(logprobs, &mut self.buffer);
        }
        self.buffer.put_slice(b",\"finish_reason\":null}");
        self.buffer.put_slice(self.tail.as_bytes());
    }

    fn done(&mut self, finish: FinishReason, usage: Usage) {
        let empty = match self.api {
            Api::Chat => "\"delta\":{}",
            Api::Completion => "\"text\":\"\"",
        };
        self.raw(&format!(
            "{empty},\"finish_reason\":\"{}\"}}",
            finish_name(finish)
        ));
        if self.include_usage {
            let end = self.head.find("\"choices\"").unwrap_or(self.head.len());
            self.buffer.put_slice(&self.head.as_bytes()[..end]);
            let usage = usage_json(usage, self.tokens);
            self.buffer
                .put_slice(format!("\"choices\":[],\"usage\":{usage}}}\n\n").as_bytes());
        }
        self.buffer.put_slice(b"data: [DONE]\n\n");
    }

    /// No `[DONE]` follows: whoever ignores the error object must not take it for an end.
    fn failed(&mut self, mut error: ApiError) {
        error.delivered_tokens = Some(self.tokens);
        self.buffer
            .put_slice(format!("data: {}\n\n", error.json()).as_bytes());
    }

    fn seam(&mut self, from: &PeerRef, to: &PeerRef, seam: Seam, gap: Duration) {
        let line = format!(
            ": unamesh peer-changed {}\n\n",
            seam_text(from, to, seam, gap)
        );
        self.buffer.put_slice(line.as_bytes());
    }

    fn progress(&mut self, phase: &str, done: u32, total: u32) {
        if self.commented.elapsed() >= COMMENT_EVERY {
            self.commented = Instant::now();
            self.buffer
                .put_slice(format!(": unamesh {phase} {done}/{total}\n\n").as_bytes());
        }
    }

    fn raw(&mut self, choice: &str) {
        self.buffer.put_slice(self.head.as_bytes());
        self.buffer.put_slice(choice.as_bytes());
        self.buffer.put_slice(self.tail.as_bytes());
    }

    fn string(&mut self, text: &str) {
        // A string always serializes, and a BytesMut grows.
        let _ = serde_json::to_writer((&mut self.buffer).writer(), text);
    }
}

/// Other delta fields of a token. What does not parse (a peer sent it) is left out.
pub struct Extra<'a>(Members<'a>);

impl<'a> Extra<'a> {
    /// Reads the JSON object of a token event; empty = none.
    pub fn read(extra: &'a str) -> Self {
        if extra.is_empty() {
            return Extra(Members(Vec::new()));
        }
        Extra(serde_json::from_str(extra).unwrap_or_else(|e| {
            tracing::debug!(error = %e, "a token's extra fields are no JSON object");
            Members(Vec::new())
        }))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    /// The fields of the delta.
    pub fn delta(&self) -> impl Iterator<Item = (&str, &'a str)> {
        let fields = self
            .0
            .0
            .iter()
            .filter(|(key, _)| !matches!(key.as_ref(), "logprobs" | "content"));
        fields.map(|(key, value)| (key.as_ref(), value.get()))
    }

    /// Belongs to the choice, not to its delta.
    pub fn logprobs(&self) -> Option<&'a str> {
        self.0
            .0
            .iter()
            .find(|(key, _)| key == "logprobs")
            .map(|(_, value)| value.get())
    }
}

/// OpenAI's word for it; what a later version adds reads as `stop`.
pub fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Unknown(_) => FinishReason::Stop.name(),
        known => known.name(),
    }
}

/// The `usage` object; `counted` stands in where the engine told nothing.
pub fn usage_json(usage: Usage, counted: u32) -> String {
    let completion = if usage.completion_tokens == 0 {
        counted
    } else {
        usage.completion_tokens
    };
    let total = u64::from(usage.prompt_tokens) + u64::from(completion);
    format!(
        "{{\"prompt_tokens\":{},\"completion_tokens\":{completion},\"total_tokens\":{total}}}",
        usage.prompt_tokens
    )
}

/// `from=desk to=laptop seam=exact gap_ms=143.2`: one line, names made harmless.
pub fn seam_text(from: &PeerRef, to: &PeerRef, seam: Seam, gap: Duration) -> String {
    let (from, to, seam) = (plain(&from.name), plain(&to.name), seam.name());
    let gap = gap.as_secs_f64() * 1e3;
    format!("from={from} to={to} seam={seam} gap_ms={gap:.1}")
}

/// A name for a header or a comment: visible ASCII stays, anything else is percent-encoded.
pub fn plain(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What is said after a streamed answer.
#[derive(Debug, Default)]
pub struct Trailers {
    /// Who answers now.
    peer: String,
    seams: Vec<String>,
}

impl Trailers {
    /// Of an answer that `peer` begins.
    pub fn new(peer: String) -> Self {
        Trailers {
            peer,
            seams: Vec::new(),
        }
    }

    fn hear(&mut self, event: &Event) {
        if let Event::PeerChanged {
            from,
            to,
            seam,
            gap,
            ..
        } = event
        {
            self.peer = plain(&to.name);
            self.seams.push(seam_text(from, to, *seam, *gap));
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        insert(&mut headers, PEER, &self.peer);
        if !self.seams.is_empty() {
            insert(&mut headers, SEAM, &self.seams.join(", "));
        }
        headers
    }
}

/// The body of a streamed answer. Dropping it (hyper does when the client is gone) drops the
/// events, which cancels the generation.
pub struct SseBody {
    events: BoxStream<'static, Event>,
    writer: ChunkWriter,
    first: Option<Event>,
    ended: bool,
    /// Taken when they are sent.
    trailers: Option<Trailers>,
    /// The first token's way to the client.
    urgent: Urgent,
}

/// hyper writes when a body has nothing more at once. The first token must not wait for those
/// behind it to be formatted, so the body pauses once after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urgent {
    /// No token came yet.
    Awaited,
    /// Handed to hyper; pause before anything else.
    Handed,
    /// Written; from here on what is ready goes together.
    Written,
}

impl SseBody {
    /// Streams `first` (already taken from `events`), then `events`.
    pub fn new(
        events: BoxStream<'static, Event>,
        first: Option<Event>,
        writer: ChunkWriter,
        trailers: Option<Trailers>,
    ) -> Self {
        SseBody {
            events,
            writer,
            first,
            ended: false,
            trailers,
            urgent: Urgent::Awaited,
        }
    }

    /// Whether trailers follow.
    pub fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// For axum.
    pub fn boxed(self) -> UnsyncBoxBody<Bytes, Infallible> {
        UnsyncBoxBody::new(self)
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let event = match self.first.take() {
            Some(first) => Some(first),
            None => ready!(self.events.as_mut().poll_next(cx)),
        };
        self.ended = match event {
            Some(event) => {
                if self.urgent == Urgent::Awaited && matches!(event, Event::Token { .. }) {
                    self.urgent = Urgent::Handed;
                }
                if let Some(trailers) = &mut self.trailers {
                    trailers.hear(&event);
                }
                self.writer.event(&event)
            }
            None => {
                self.writer.cut();
                true
            }
        };
        Poll::Ready(())
    }
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let urgent = this.urgent;
        if urgent == Urgent::Handed {
            this.urgent = Urgent::Written;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while !this.ended && this.writer.waiting() < WRITE && this.urgent == urgent {
            if this.step(cx).is_pending() {
                break;
            }
        }
        match this.writer.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if this.ended => {
                let trailers = this
                    .trailers
                    .take()
                    .map(|t| Ok(Frame::trailers(t.headers())));
                Poll::Ready(trailers)
            }
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.writer.waiting() == 0 && self.trailers.is_none()
    }
}
