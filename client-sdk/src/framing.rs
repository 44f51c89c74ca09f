//! Records on QUIC streams.
//!
//! [`RecordReader`] polls quinn's stream directly into one reused buffer: no task, no lock and
//! (after the first record) no allocation between the network and the decoder. What a peer
//! claims is never believed with memory: a record's length is checked against its kind's class
//! when the header is in, and the buffer grows only with bytes that have arrived. Records of
//! kinds that this version does not know are skipped as they arrive, unbuffered.
//!
//! [`RecordWriter`] collects records and writes them at once, so that a stream's header and
//! its request leave in one packet.

use crate::endpoint::{CLOSE_NORMAL, close_code, link_error};
use crate::transport::LinkError;
use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_util::either::Either;
use tokio_util::io::poll_read_buf;
use unamesh_proto::limits::{MAX_RECORD, MAX_SMALL_RECORD};
use unamesh_proto::wire::codec::{self, HEADER};
use unamesh_proto::wire::{
    DecodeError, ErrorCode, RECORDS, Record, StreamHeader, StreamKind, VERSION, WireError,
};

/// Room made for the next read: two full packets.
const READ_ROOM: usize = 4096;

/// Why no further record can be read. The stream is of no more use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The stream was reset or its connection lost.
    #[error("{0}")]
    Stream(#[from] quinn::ReadError),
    /// The peer sent something that is no valid record; it was told to stop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream ended within a record, or before an expected one.
    #[error("the stream ended early")]
    Truncated,
    /// The peer answered with an error record instead of the expected one.
    #[error("{0}")]
    Refused(WireError),
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Stream(quinn::ReadError::ConnectionLost(e)) => link_error(&e),
            ReadError::Stream(quinn::ReadError::Reset(code)) => reset_error(code),
            ReadError::Stream(other) => LinkError::Lost(other.to_string()),
            ReadError::Decode(e) => LinkError::Protocol(e),
            ReadError::Truncated => LinkError::Lost(error.to_string()),
            ReadError::Refused(e) => LinkError::Refused(e),
        }
    }
}

/// What a write's failure means.
pub fn write_error(error: &quinn::WriteError) -> LinkError {
    match error {
        quinn::WriteError::ConnectionLost(e) => link_error(e),
        quinn::WriteError::Stopped(code) => reset_error(*code),
        other => LinkError::Lost(other.to_string()),
    }
}

/// A reset with an [`ErrorCode`] says why; any other is just the end.
fn reset_error(code: quinn::VarInt) -> LinkError {
    match u8::try_from(u64::from(code)) {
        Ok(known) if known != 0 => LinkError::Refused(WireError::new(
            ErrorCode::from_code(known),
            "the peer reset the stream",
        )),
        _ => LinkError::Lost(format!("the peer reset the stream with code {code}")),
    }
}

/// The largest body of `kind`, or `None` for a kind that this version does not know.
fn limit_of(kind: u16) -> Option<usize> {
    RECORDS
        .iter()
        .find(|(known, ..)| *known == kind)
        .map(|(_, _, limit)| *limit)
}

/// Reads records off one direction of a stream. Cancel-safe: a dropped future loses nothing.
#[derive(Debug)]
pub struct RecordReader {
    stream: RecvStream,
    buffer: BytesMut,
    /// Bytes of a record of an unknown kind that are still to be discarded.
    skip: usize,
    failed: Option<ReadError>,
}

impl RecordReader {
    /// Reads from `stream`, from its current position.
    pub fn new(stream: RecvStream) -> Self {
        RecordReader {
            stream,
            buffer: BytesMut::new(),
            skip: 0,
            failed: None,
        }
    }

    /// The next record's kind and body; `None` when the peer finished the stream after a whole
    /// record. The body shares the reader's buffer: drop it soon, so that it can be reused.
    ///
    /// # Errors
    /// See [`ReadError`]; every later call returns the same one.
    pub fn poll_record(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(u16, Bytes)>, ReadError>> {
        self.poll_within(cx, |kind, len| match limit_of(kind) {
            Some(limit) if len > limit => Err(DecodeError::TooLarge { kind, len, limit }),
            _ => Ok(()),
        })
    }

    /// As [`RecordReader::poll_record`].
    ///
    /// # Errors
    /// As [`RecordReader::poll_record`].
    pub async fn next(&mut self) -> Result<Option<(u16, Bytes)>, ReadError> {
        poll_fn(|cx| self.poll_record(cx)).await
    }

    /// The next record, which must be an `R`; its header is checked before its body is
    /// buffered. A [`WireError`] in its place is returned as [`ReadError::Refused`].
    ///
    /// # Errors
    /// See [`ReadError`]; the end of the stream is one.
    pub async fn expect<R: Record>(&mut self) -> Result<R, ReadError> {
        let (_, body) = self.expect_among(&[R::KIND], R::NAME).await?;
        self.decode(&body)
    }

    /// As [`RecordReader::expect`], where an `A` or a `B` may stand.
    ///
    /// # Errors
    /// As [`RecordReader::expect`].
    pub async fn expect_either<A: Record, B: Record>(&mut self) -> Result<Either<A, B>, ReadError> {
        let (kind, body) = self.expect_among(&[A::KIND, B::KIND], A::NAME).await?;
        if kind == A::KIND {
            self.decode(&body).map(Either::Left)
        } else {
            self.decode(&body).map(Either::Right)
        }
    }

    async fn expect_among(
        &mut self,
        kinds: &[u16],
        expected: &'static str,
    ) -> Result<(u16, Bytes), ReadError> {
        let fits = |kind, len| {
            let awaited = kinds.contains(&kind) || kind == WireError::KIND;
            let limit = match limit_of(kind) {
                Some(limit) if awaited => limit,
                Some(_) => return Err(DecodeError::Unexpected { expected, kind }),
                None => MAX_RECORD,
            };
            if len > limit {
                Err(DecodeError::TooLarge { kind, len, limit })
            } else {
                Ok(())
            }
        };
        match poll_fn(|cx| self.poll_within(cx, fits)).await? {
            Some((kind, body)) if kinds.contains(&kind) => Ok((kind, body)),
            Some((_, body)) => Err(ReadError::Refused(self.decode(&body)?)),
            None => Err(self.fail(ReadError::Truncated)),
        }
    }

    fn decode<R: Record>(&mut self, body: &[u8]) -> Result<R, ReadError> {
        codec::body(body).map_err(|e| self.fail(e.into()))
    }

    /// Tells the peer to stop sending, for `code`, and discards what comes.
    pub fn stop(&mut self, code: quinn::VarInt) {
        // The only error is that it ended already.
        let _ = self.stream.stop(code);
    }

    /// Reads to the end of the stream, where nothing more may come. What comes all the same is
    /// not buffered: it would be memory that no other bound counts.
    ///
    /// # Errors
    /// The peer reset this direction, the connection is over, or a known record began.
    pub async fn ended(&mut self) -> Result<(), ReadError> {
        // A large request has left a large buffer.
        self.buffer = BytesMut::from(self.buffer.as_ref());
        let none = |kind, _| match limit_of(kind) {
            Some(_) => Err(DecodeError::Unexpected {
                expected: "the end",
                kind,
            }),
            None => Ok(()),
        };
        poll_fn(|cx| self.poll_within(cx, none)).await.map(drop)
    }

    fn poll_within(
        &mut self,
        cx: &mut Context<'_>,
        fits: impl Fn(u16, usize) -> Result<(), DecodeError>,
    ) -> Poll<Result<Option<(u16, Bytes)>, ReadError>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        loop {
            match self.take(&fits) {
                Ok(Some(record)) => return Poll::Ready(Ok(Some(record))),
                Ok(None) => {}
                Err(e) => return Poll::Ready(Err(self.fail(e.into()))),
            }
            // Reclaims the buffer if nobody holds a body any more, else moves to a new one.
            self.buffer.reserve(READ_ROOM);
            let read = ready!(poll_read_buf(
                Pin::new(&mut self.stream),
                cx,
                &mut self.buffer
            ));
            match read.map_err(stream_error) {
                Ok(0) if self.buffer.is_empty() && self.skip == 0 => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(self.fail(ReadError::Truncated))),
                Ok(_) => {}
                Err(e) => return Poll::Ready(Err(self.fail(e))),
            }
        }
    }

    /// Takes the first whole record off the buffer; `None` while there is none.
    fn take(
        &mut self,
        fits: &impl Fn(u16, usize) -> Result<(), DecodeError>,
    ) -> Result<Option<(u16, Bytes)>, DecodeError> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
            let Some(head) = self.buffer.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let (kind, len) = codec::header(*head);
            if len > MAX_RECORD {
                return Err(DecodeError::TooLarge {
                    kind,
                    len,
                    limit: MAX_RECORD,
                });
            }
            fits(kind, len)?;
            if limit_of(kind).is_none() {
                self.skip = HEADER + len;
                continue;
            }
            if self.buffer.len() < HEADER + len {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            return Ok(Some((kind, self.buffer.split_to(len).freeze())));
        }
    }

    /// Remembers the end, tells the peer if it is to blame, and lets the buffer go.
    fn fail(&mut self, error: ReadError) -> ReadError {
        if matches!(error, ReadError::Decode(_)) {
            self.stop(close_code(ErrorCode::Protocol));
        }
        self.buffer = BytesMut::new();
        self.failed = Some(error.clone());
        error
    }
}

/// quinn wraps its own error into an [`io::Error`] for the generic read.
fn stream_error(error: io::Error) -> ReadError {
    match error.downcast::<quinn::ReadError>() {
        Ok(inner) => ReadError::Stream(inner),
        Err(_) => ReadError::Stream(quinn::ReadError::ClosedStream),
    }
}

/// Writes records to one direction of a stream.
#[derive(Debug)]
pub struct RecordWriter {
    stream: SendStream,
    scratch: Vec<u8>,
    /// Of `scratch`: what [`RecordWriter::poll_flush`] has written.
    written: usize,
}

impl RecordWriter {
    /// Writes to `stream`.
    pub fn new(stream: SendStream) -> Self {
        RecordWriter {
            stream,
            scratch: Vec::new(),
            written: 0,
        }
    }

    /// Queues `record` for the next [`RecordWriter::flush`].
    ///
    /// # Errors
    /// It exceeds its class; nothing was queued.
    pub fn push<R: Record>(&mut self, record: &R) -> Result<(), DecodeError> {
        codec::encode(record, &mut self.scratch)
    }

    /// Writes what was queued, in one piece.
    ///
    /// # Errors
    /// The stream or its connection is over.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// As [`RecordWriter::flush`], as far as the stream takes it now; more may be queued
    /// meanwhile. After an error nothing is queued.
    ///
    /// # Errors
    /// The stream or its connection is over.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let outcome = loop {
            let rest = &self.scratch[self.written..];
            if rest.is_empty() {
                break Ok(());
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(bytes) => self.written += bytes,
                Err(e) => break Err(write_error(&e)),
            }
        };
        self.scratch.clear();
        self.scratch.shrink_to(MAX_SMALL_RECORD);
        self.written = 0;
        Poll::Ready(outcome)
    }

    /// Writes `record`, after what was queued.
    ///
    /// # Errors
    /// It exceeds its class, or the stream or its connection is over.
    pub async fn write<R: Record>(&mut self, record: &R) -> Result<(), LinkError> {
        self.push(record)?;
        self.flush().await
    }

    /// Writes records that were encoded before, without copying them.
    ///
    /// # Errors
    /// The stream or its connection is over.
    pub async fn write_bytes(&mut self, records: Bytes) -> Result<(), LinkError> {
        self.stream
            .write_chunk(records)
            .await
            .map_err(|e| write_error(&e))
    }

    /// Says that nothing more comes. What was written is still delivered.
    pub fn finish(&mut self) {
        // The only error is that it ended already.
        let _ = self.stream.finish();
    }

    /// Gives up for `code`; what was not delivered yet is dropped.
    pub fn reset(&mut self, code: ErrorCode) {
        let _ = self.stream.reset(close_code(code));
    }

    /// Gives up because the answer is no longer wanted.
    pub fn cancel(&mut self) {
        let _ = self.stream.reset(CLOSE_NORMAL);
    }

    /// Resolves when the peer no longer wants to read (a cancelled request), or the
    /// connection is over. Does not resolve while the stream is in use.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let stopped = self.stream.stopped();
        async move {
            // Acknowledged to its end, stopped or lost: in each case nobody listens any more.
            let _ = stopped.await;
        }
    }
}

/// Opens a stream of `kind` and sends its header together with `first`.
///
/// # Errors
/// The connection is over, or `first` exceeds its class.
pub async fn open<R: Record>(
    connection: &quinn::Connection,
    kind: StreamKind,
    first: &R,
) -> Result<(RecordWriter, RecordReader), LinkError> {
    let (send, recv) = connection.open_bi().await.map_err(|e| link_error(&e))?;
    let mut writer = RecordWriter::new(send);
    writer.push(&StreamHeader {
        version: VERSION,
        kind,
    })?;
    writer.write(first).await?;
    Ok((writer, RecordReader::new(recv)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "framing_tests.rs"]
mod tests;
