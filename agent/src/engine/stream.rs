//! From the lines of an answer to engine events: one driver for all APIs.
//!
//! An API is a [`Protocol`]: a small machine that takes lines and knows no socket, so that it
//! is tested by feeding it lines. The driver sees to it that exactly one terminal item comes:
//! [`EngineEvent::Done`] or an error.

use super::http::Body;
use super::lines::Lines;
use super::refusal::cut;
use super::{EngineError, EngineEvent, EngineStream};
use futures_util::{StreamExt, stream};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

/// Events made by one line, in order.
pub type Out = VecDeque<EngineEvent>;

/// One API's stream format.
pub trait Protocol: Send + 'static {
    /// Takes one line that is not empty.
    ///
    /// # Errors
    /// The line is rubbish, or the engine reports an error. The stream is over.
    fn line(&mut self, line: &str, out: &mut Out) -> Result<(), EngineError>;

    /// The stream is over and no [`EngineEvent::Done`] came so far. Puts one into `out` if all
    /// that makes an answer complete was there.
    ///
    /// # Errors
    /// It ended too early.
    fn end(&mut self, out: &mut Out) -> Result<(), EngineError>;
}

/// The error of a stream that ended without its final object.
pub fn ended_early(engine: &str) -> EngineError {
    EngineError::Failed {
        engine: engine.to_owned(),
        reason: "the stream ended early".to_owned(),
    }
}

/// Reads `body` by `protocol`, after the events in `first`.
pub fn run(engine: String, first: Out, body: Body, protocol: impl Protocol) -> EngineStream {
    let running = Running {
        engine,
        lines: Lines::new(body),
        protocol,
        out: first,
        over: false,
    };
    stream::unfold(Box::new(running), |mut running| async move {
        let item = running.next().await?;
        Some((item, running))
    })
    .boxed()
}

/// A stream of what is known already.
pub fn ready(events: Vec<EngineEvent>) -> EngineStream {
    stream::iter(events.into_iter().map(Ok)).boxed()
}

struct Running<P> {
    engine: String,
    lines: Lines,
    protocol: P,
    out: Out,
    over: bool,
}

impl<P: Protocol> Running<P> {
    async fn next(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(event) = self.out.pop_front() {
                if matches!(event, EngineEvent::Done { .. }) {
                    self.over = true;
                    poll_fn(|cx| {
                        self.lines.finish(cx);
                        Poll::Ready(())
                    })
                    .await;
                }
                return Some(Ok(event));
            }
            if let Err(error) = self.advance().await {
                self.over = true;
                return Some(Err(error));
            }
        }
    }

    async fn advance(&mut self) -> Result<(), EngineError> {
        match self.lines.next().await.map_err(|e| cut(&self.engine, e))? {
            Some(line) => self.protocol.line(line, &mut self.out),
            None => {
                self.protocol.end(&mut self.out)?;
                match self.out.is_empty() {
                    true => Err(ended_early(&self.engine)),
                    false => Ok(()),
                }
            }
        }
    }
}
