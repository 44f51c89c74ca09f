//! The bundled test engine: an OpenAI-style server without a model. It answers at once with
//! tokens that are known beforehand (`t0 t1 t2 ...`), so that what a benchmark measures is the
//! mesh, and so that a lost, doubled or moved token shows.
//!
//! A request may say how the engine behaves: `bench_ttft_us` (before the first token),
//! `bench_itl_us` (between tokens), `bench_stamp` (each token carries the wall clock at which
//! it left: `t7@1700000000000000 `). An answer goes on after a trailing assistant message, as
//! real engines do, to the character; asked to go on with a count (an agent tries out whether
//! it can), it goes on with a comma. After `POST /bench/hang` it makes no more tokens, though it
//! takes requests and calls itself well, until `POST /bench/go`.

use super::BenchError;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use unamesh_proto::limits;

/// The model that it claims to have.
pub const MODEL: &str = "bench";
/// Tokens of an answer whose request sets no limit.
const TOKENS: u32 = 64;

/// A hung engine looks this often whether it may go on.
const HUNG_LOOK: Duration = Duration::from_millis(5);

/// `unamesh bench engine`.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// Serves until standard input ends, so that it never outlives who started it. The first line
/// on standard output is `{"listen":"ip:port"}`.
///
/// # Errors
/// The address is taken.
pub async fn serve(args: &EngineArgs) -> Result<(), BenchError> {
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(BenchError::during("the test engine cannot listen"))?;
    let addr = listener
        .local_addr()
        .map_err(BenchError::during("the test engine cannot listen"))?;
    let mut out = std::io::stdout();
    writeln!(out, "{{\"listen\":\"{addr}\"}}")
        .and_then(|()| out.flush())
        .map_err(BenchError::during("standard output"))?;
    let hung = Arc::new(AtomicBool::new(false));
    let mut connections = JoinSet::new();
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = stdin.read(&mut ignored) => {
                if matches!(read, Ok(0) | Err(_)) {
                    return Ok(());
                }
            }
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // Without it the second token waits for the acknowledgement of the first.
                let _ = stream.set_nodelay(true);
                let hung = Arc::clone(&hung);
                connections.spawn(async move {
                    let answer = service_fn(|request| answer(Arc::clone(&hung), request));
                    // A client that hangs up is no event for an engine.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

type Answer = Response<Either<Full<Bytes>, Tokens>>;

async fn answer(hung: Arc<AtomicBool>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let chat = request.uri().path().ends_with("/chat/completions");
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => whole(StatusCode::OK, "{\"status\":\"ok\"}"),
        (&Method::GET, "/v1/models") => whole(
            StatusCode::OK,
            "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":0,\"owned_by\":\"unamesh\"}]}",
        ),
        (&Method::POST, path @ ("/bench/hang" | "/bench/go")) => {
            hung.store(path.ends_with("hang"), Ordering::Relaxed);
            whole(StatusCode::OK, "{}")
        }
        (&Method::POST, "/v1/chat/completions" | "/v1/completions") => {
            match Limited::new(request.into_body(), limits::MAX_HTTP_BODY)
                .collect()
                .await
            {
                Ok(body) => generate(hung, chat, &body.to_bytes()),
                Err(_) => refuse("the body broke off"),
            }
        }
        _ => whole(
            StatusCode::NOT_FOUND,
            "{\"error\":{\"message\":\"no such path\"}}",
        ),
    })
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    bench_ttft_us: u64,
    #[serde(default)]
    bench_itl_us: u64,
    #[serde(default)]
    bench_stamp: bool,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<String>,
}

fn generate(hung: Arc<AtomicBool>, chat: bool, body: &[u8]) -> Answer {
    let asked: Asked = match serde_json::from_slice(body) {
        Ok(asked) => asked,
        Err(e) => return refuse(&e.to_string()),
    };
    if !asked.stream {
        return refuse("the test engine only streams");
    }
    let prefix = asked.messages.last().filter(|m| m.role == "assistant");
    let first = prefix.and_then(|m| m.content.as_deref()).map_or(0, |text| {
        u32::try_from(text.split_ascii_whitespace().count()).unwrap_or(u32::MAX)
    });
    let text = prefix
        .and_then(|m| m.content.as_deref())
        .unwrap_or_default();
    let between = match text.chars().last() {
        _ if text.contains(',') => ",",
        Some(last) if !last.is_whitespace() => " ",
        _ => "",
    };
    let tokens = Tokens::new(hung, chat, first, between, &asked);
    let mut response = Response::new(Either::Right(tokens));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refuse(message: &str) -> Answer {
    let body = serde_json::json!({"error": {"message": message, "type": "invalid_request_error"}});
    whole(StatusCode::BAD_REQUEST, body.to_string())
}

fn whole(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The streamed body: a write for each token, as engines do.
struct Tokens {
    hung: Arc<AtomicBool>,
    chat: bool,
    next: u32,
    end: u32,
    first: u32,
    /// What is missing between the prefix and the first token.
    between: &'static str,
    itl: Duration,
    stamp: bool,
    wait: Option<Pin<Box<Sleep>>>,
    /// The last write went out; let the connection flush it before the next.
    flushing: bool,
    finished: bool,
    buffer: BytesMut,
}

impl Tokens {
    fn new(
        hung: Arc<AtomicBool>,
        chat: bool,
        first: u32,
        between: &'static str,
        asked: &Asked,
    ) -> Self {
        let count = asked.max_tokens.unwrap_or(TOKENS).min(limits::MAX_TOKENS);
        let ttft = Duration::from_micros(asked.bench_ttft_us);
        Tokens {
            hung,
            chat,
            next: first,
            end: first.saturating_add(count),
            first,
            between,
            itl: Duration::from_micros(asked.bench_itl_us),
            stamp: asked.bench_stamp,
            wait: sleep(ttft),
            flushing: false,
            finished: false,
            buffer: BytesMut::with_capacity(1024),
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // A BytesMut grows; formatting into it cannot fail.
        let _ = std::fmt::Write::write_fmt(&mut self.buffer, text);
    }

    fn token(&mut self) {
        let next = self.next;
        let between = std::mem::take(&mut self.between);
        let object = if self.chat {
            "\"delta\":{\"content\":\""
        } else {
            "\"text\":\""
        };
        self.put(format_args!(
            "data: {{\"choices\":[{{\"index\":0,{object}{between}t{next}"
        ));
        if self.stamp {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            self.put(format_args!("@{}", now.as_micros()));
        }
        let close = if self.chat { " \"}" } else { " \"" };
        self.put(format_args!("{close},\"finish_reason\":null}}]}}\n\n"));
        self.next += 1;
    }

    fn finish(&mut self) {
        let count = self.end - self.first;
        let empty = if self.chat {
            "\"delta\":{}"
        } else {
            "\"text\":\"\""
        };
        self.put(format_args!(
            "data: {{\"choices\":[{{\"index\":0,{empty},\"finish_reason\":\"length\"}}]}}\n\n\
             data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":8,\"completion_tokens\":{count},\
             \"total_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
            count.saturating_add(8)
        ));
        self.finished = true;
    }
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        if self.wait.is_none() && std::mem::take(&mut self.flushing) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
            if self.hung.load(Ordering::Relaxed) {
                self.wait = sleep(HUNG_LOOK);
            }
        }
        if self.next < self.end {
            self.token();
            if self.next < self.end {
                self.wait = sleep(self.itl);
                self.flushing = self.wait.is_none();
            }
        } else {
            self.finish();
        }
        let bytes = self.buffer.split().freeze();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// Nothing for no time at all: a timer's resolution is a millisecond.
fn sleep(duration: Duration) -> Option<Pin<Box<Sleep>>> {
    (!duration.is_zero()).then(|| Box::pin(tokio::time::sleep(duration)))
}
