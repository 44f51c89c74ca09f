//! The client's end of a stream, as a serving task sees it.

use super::drills::Drills;
use super::encoder::Encoder;
use super::listener::Line;
use bytes::Bytes;
use quinn::{ConnectionError, SendStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use unamesh_client::endpoint::{CLOSE_NORMAL, close_code};
use unamesh_client::framing::RecordReader;
use unamesh_client::transport::BoxFuture;
use unamesh_proto::wire::{ErrorCode, GenFrame, WireError};

/// Why nobody listens any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The client reset or stopped the stream, or closed the connection: it wants no more.
    Cancelled,
    /// The connection broke; the client may come back.
    Lost,
    /// Everything was delivered, up to the end.
    Delivered,
    /// The client takes nothing, for too long.
    Stalled,
}

/// A client that listens.
pub(super) struct Client {
    line: Arc<Line>,
    send: SendStream,
    gone: BoxFuture<Gone>,
    drills: Arc<Drills>,
}

impl Client {
    /// The client on a stream of `line`, from which everything was read that it has to
    /// say.
    pub fn new(
        line: Arc<Line>,
        send: SendStream,
        reader: RecordReader,
        drills: Arc<Drills>,
    ) -> Self {
        let reset = said_all(reader);
        Self::with(line, send, drills, reset)
    }

    /// The client on a stream of `line`, which goes on talking: whoever reads that sees
    /// a reset of it. One that wants no more stops the other direction too.
    pub fn talking(line: Arc<Line>, send: SendStream, drills: Arc<Drills>) -> Self {
        Self::with(line, send, drills, std::future::pending())
    }

    fn with(
        line: Arc<Line>,
        send: SendStream,
        drills: Arc<Drills>,
        reset: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        line.listening.fetch_add(1, Ordering::Relaxed);
        let gone = Box::pin(gone(Arc::clone(&line), send.stopped(), reset));
        Client {
            line,
            send,
            gone,
            drills,
        }
    }

    /// Resolves when nobody listens any more. Must not be awaited again afterwards.
    pub async fn gone(&mut self) -> Gone {
        self.gone.as_mut().await
    }

    /// Writes `records` without copying them; they are consumed as far as they were written.
    /// Cancel-safe in so far as what was not written is still in `records`.
    ///
    /// # Errors
    /// Nobody listens, or nothing was taken for `stall`.
    pub async fn write(&mut self, records: &mut [Bytes], stall: Duration) -> Result<(), Gone> {
        if self.drills.is_silent() {
            tokio::select! {
                () = self.drills.over() => {}
                gone = self.gone.as_mut() => return Err(gone),
            }
        }
        let mut rest = records;
        while !rest.is_empty() {
            let written = tokio::select! {
                biased;
                written = self.send.write_chunks(rest) => written,
                gone = self.gone.as_mut() => return Err(gone),
                () = tokio::time::sleep(stall) => return Err(Gone::Stalled),
            };
            match written {
                Ok(written) => rest = rest.get_mut(written.chunks..).unwrap_or_default(),
                Err(_) => return Err(verdict(&self.line)),
            }
        }
        Ok(())
    }

    /// Says that nothing more comes; [`Client::gone`] then resolves with the delivery.
    pub fn finish(&mut self) {
        // The only error is that it is over already, which `gone` tells.
        let _ = self.send.finish();
    }

    /// Gives up because nobody wants it.
    pub fn cancel(mut self) {
        let _ = self.send.reset(CLOSE_NORMAL);
    }

    /// Gives up for `code`.
    pub fn reset(mut self, code: ErrorCode) {
        let _ = self.send.reset(close_code(code));
    }

    /// Ends the stream with `error`.
    pub async fn refuse(mut self, error: WireError, stall: Duration) {
        if let Ok(record) = Encoder::default().record(&GenFrame::Error(error))
            && self.write(&mut [record], stall).await.is_ok()
        {
            self.finish();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.line.listening.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resolves with the end of a direction that has nothing more to say: a record more is as good
/// as a reset.
async fn said_all(mut reader: RecordReader) {
    if reader.ended().await.is_ok() {
        // Finished in good order: it only listens.
        std::future::pending::<()>().await;
    }
}

/// Waits for the end of either direction.
async fn gone(
    line: Arc<Line>,
    stopped: impl Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>> + Send,
    reset: impl Future<Output = ()> + Send,
) -> Gone {
    tokio::select! {
        stopped = stopped => match stopped {
            Ok(None) => Gone::Delivered,
            _ => verdict(&line),
        },
        () = reset => verdict(&line),
    }
}

/// What the end of a stream means: a connection that was closed on purpose takes its requests
/// with it; one that broke, or made room, may be followed by another.
fn verdict(line: &Line) -> Gone {
    match line.connection.close_reason() {
        None => Gone::Cancelled,
        Some(ConnectionError::LocallyClosed) if line.was_replaced() => Gone::Lost,
        Some(ConnectionError::ApplicationClosed(_) | ConnectionError::LocallyClosed) => {
            Gone::Cancelled
        }
        Some(_) => Gone::Lost,
    }
}
