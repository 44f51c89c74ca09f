//! Requests over QUIC: one bidirectional stream each, polled in place.

use super::Pool;
use super::entry::InUse;
use crate::endpoint::{CLOSE_NORMAL, link_error};
use crate::framing::{RecordReader, RecordWriter};
use crate::transport::{
    BoxFuture, FrameStream, HearLink, LeaseLink, LinkError, Open, SpeakLink, Transport,
};
use futures_util::FutureExt;
use quinn::{Connection, RecvStream, SendStream};
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use unamesh_proto::wire::{
    DecodeError, ErrorCode, GenFrame, HearRequest, Record, SpeakRequest, StreamHeader, StreamKind,
    VERSION, WarmFrame, WarmRequest, WireError,
};
use unamesh_proto::{NodeId, timeouts};

/// The [`Transport`] over a [`Pool`]'s connections.
pub struct QuicTransport(pub Arc<Pool>);

impl Transport for QuicTransport {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let pool = self.0.clone();
        Box::pin(async move {
            let opened = match &open {
                Open::Reattach(_, after) => open_bi(pool.connection_since(node, *after)).await?,
                _ => open_at(&pool, node).await?,
            };
            let in_use = InUse::new(pool.entry(node));
            let stream: QuicStream<GenFrame> = match &open {
                Open::Generate(request) => {
                    QuicStream::begin(opened, in_use, StreamKind::Generate, &**request).await?
                }
                Open::Attach(attach) | Open::Reattach(attach, _) => {
                    QuicStream::begin(opened, in_use, StreamKind::Attach, attach).await?
                }
            };
            Ok(Box::new(stream) as Box<dyn FrameStream>)
        })
    }

    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        let pool = self.0.clone();
        Box::pin(async move {
            let opened = open_at(&pool, node).await?;
            let in_use = InUse::new(pool.entry(node));
            let stream = QuicStream::begin(opened, in_use, StreamKind::Speak, &*request).await?;
            Ok(Box::new(stream) as Box<dyn SpeakLink>)
        })
    }

    fn hear(
        &self,
        node: NodeId,
        request: HearRequest,
    ) -> BoxFuture<Result<Box<dyn HearLink>, LinkError>> {
        let pool = self.0.clone();
        Box::pin(async move {
            let opened = open_at(&pool, node).await?;
            let in_use = InUse::new(pool.entry(node));
            let kind = StreamKind::Transcribe;
            let stream = QuicStream::begin(opened, in_use, kind, &request).await?;
            Ok(Box::new(stream) as Box<dyn HearLink>)
        })
    }

    fn lease(
        &self,
        node: NodeId,
        request: WarmRequest,
    ) -> BoxFuture<Result<Box<dyn LeaseLink>, LinkError>> {
        let pool = self.0.clone();
        Box::pin(async move {
            let opened = open_at(&pool, node).await?;
            let in_use = InUse::new(pool.entry(node));
            let stream = QuicStream::begin(opened, in_use, StreamKind::Warm, &request).await?;
            Ok(Box::new(stream) as Box<dyn LeaseLink>)
        })
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.0.warm(nodes);
    }
}

type Opened = (Connection, SendStream, RecvStream);

/// A stream at `node`, with nothing sent yet.
async fn open_at(pool: &Arc<Pool>, node: NodeId) -> Result<Opened, LinkError> {
    match open_bi(pool.connection(node)).await {
        // It broke just now, with nothing sent: once more on a new connection.
        Err(LinkError::Lost(_)) => open_bi(pool.connection(node)).await,
        other => other,
    }
}

async fn open_bi(
    connection: impl Future<Output = Result<Connection, LinkError>>,
) -> Result<Opened, LinkError> {
    let connection = connection.await?;
    // Waits only if the peer's limit of streams is used up.
    match tokio::time::timeout(timeouts::DIAL, connection.open_bi()).await {
        Ok(Ok((send, recv))) => Ok((connection, send, recv)),
        Ok(Err(e)) => Err(link_error(&e)),
        Err(_) => Err(LinkError::Refused(WireError::new(
            ErrorCode::Limit,
            "every stream that the peer allows on this connection is in use",
        ))),
    }
}

/// What an agent sends on one kind of stream.
pub(super) trait Frame: Sized {
    /// `None` is known and of no use here (a later version may send it): it is skipped.
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, DecodeError>;

    /// Nothing may follow it.
    fn is_terminal(&self) -> bool;
}

impl Frame for GenFrame {
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        GenFrame::decode(kind, body)
    }

    fn is_terminal(&self) -> bool {
        GenFrame::is_terminal(self)
    }
}

impl Frame for WarmFrame {
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        WarmFrame::decode(kind, body)
    }

    fn is_terminal(&self) -> bool {
        WarmFrame::is_terminal(self)
    }
}

/// One request. Polls quinn's stream in place: no task and no channel in between.
pub(super) struct QuicStream<F> {
    pub(super) connection: Connection,
    pub(super) writer: RecordWriter,
    reader: RecordReader,
    state: Delivered,
    _in_use: InUse,
    frames: PhantomData<fn() -> F>,
}

#[derive(PartialEq)]
enum Delivered {
    Some,
    /// The terminal frame: the agent is done too.
    All,
    /// An error, or the stream's end without a terminal frame.
    Broken,
}

impl<F> QuicStream<F> {
    /// Sends a stream's header and its request in one write: one packet, where they fit.
    async fn begin<R: Record>(
        (connection, send, recv): Opened,
        in_use: InUse,
        kind: StreamKind,
        request: &R,
    ) -> Result<Self, LinkError> {
        let mut stream = QuicStream {
            connection,
            writer: RecordWriter::new(send),
            reader: RecordReader::new(recv),
            state: Delivered::Some,
            _in_use: in_use,
            frames: PhantomData,
        };
        let version = VERSION;
        stream.writer.push(&StreamHeader { version, kind })?;
        stream.writer.write(request).await?;
        Ok(stream)
    }
}

impl<F: Frame> QuicStream<F> {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<F, LinkError>>> {
        while self.state == Delivered::Some {
            let frame = match ready!(self.reader.poll_record(cx)) {
                Ok(Some((kind, body))) => match F::decode(kind, &body) {
                    Ok(Some(frame)) => Ok(frame),
                    Ok(None) => continue,
                    Err(e) => Err(LinkError::Protocol(e)),
                },
                Ok(None) => break,
                Err(e) => Err(e.into()),
            };
            match &frame {
                Ok(frame) if frame.is_terminal() => self.state = Delivered::All,
                Ok(_) => {}
                Err(_) => self.state = Delivered::Broken,
            }
            return Poll::Ready(Some(frame));
        }
        if self.state == Delivered::Some {
            self.state = Delivered::Broken;
        }
        Poll::Ready(None)
    }
}

impl FrameStream for QuicStream<GenFrame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        self.poll_next(cx)
    }
}

impl LeaseLink for QuicStream<WarmFrame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WarmFrame, LinkError>>> {
        self.poll_next(cx)
    }
}

impl<F> Drop for QuicStream<F> {
    /// The agent stops the engine's work when either direction ends early: STOP_SENDING wakes
    /// its writer, the reset its reader.
    fn drop(&mut self) {
        if self.state == Delivered::All {
            self.writer.finish();
            // The end usually came with the last frame; reading it spares a STOP_SENDING.
            let _ = self.reader.next().now_or_never();
        } else {
            self.writer.cancel();
            self.reader.stop(CLOSE_NORMAL);
        }
    }
}
