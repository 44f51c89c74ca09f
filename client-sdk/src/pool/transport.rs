//! Requests over QUIC.

use super::Pool;
use super::entry::InUse;
use crate::endpoint::{CLOSE_NORMAL, link_error};
use crate::framing::{RecordReader, RecordWriter};
use crate::transport::{BoxFuture, FrameStream, LinkError, Open, Transport};
use futures_util::FutureExt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use unamesh_proto::wire::{ErrorCode, GenFrame, StreamHeader, StreamKind, VERSION, WireError};
use unamesh_proto::{NodeId, timeouts};

/// The [`Transport`] over a [`Pool`]'s connections.
pub struct QuicTransport(pub Arc<Pool>);

impl Transport for QuicTransport {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let pool = self.0.clone();
        Box::pin(async move {
            let stream = open_stream(&pool, node, &open).await?;
            Ok(Box::new(stream) as Box<dyn FrameStream>)
        })
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.0.warm(nodes);
    }
}

async fn open_stream(pool: &Arc<Pool>, node: NodeId, open: &Open) -> Result<QuicStream, LinkError> {
    let (send, recv) = match open {
        Open::Reattach(_, after) => open_bi(pool.connection_since(node, *after)).await?,
        _ => match open_bi(pool.connection(node)).await {
            // It broke just now, with nothing sent: once more on a new connection.
            Err(LinkError::Lost(_)) => open_bi(pool.connection(node)).await?,
            other => other?,
        },
    };
    let mut stream = QuicStream {
        writer: RecordWriter::new(send),
        reader: RecordReader::new(recv),
        state: Delivered::Some,
        _in_use: InUse::new(pool.entry(node)),
    };
    // Header and request leave in one write: one packet, where they fit.
    let header = |kind| StreamHeader {
        version: VERSION,
        kind,
    };
    match open {
        Open::Generate(request) => {
            stream.writer.push(&header(StreamKind::Generate))?;
            stream.writer.write(request.as_ref()).await?;
        }
        Open::Attach(attach) | Open::Reattach(attach, _) => {
            stream.writer.push(&header(StreamKind::Attach))?;
            stream.writer.write(attach).await?;
        }
    }
    Ok(stream)
}

async fn open_bi(
    connection: impl Future<Output = Result<quinn::Connection, LinkError>>,
) -> Result<(quinn::SendStream, quinn::RecvStream), LinkError> {
    let connection = connection.await?;
    // Waits only if the peer's limit of streams is used up.
    match tokio::time::timeout(timeouts::DIAL, connection.open_bi()).await {
        Ok(opened) => opened.map_err(|e| link_error(&e)),
        Err(_) => Err(LinkError::Refused(WireError::new(
            ErrorCode::Limit,
            "every stream that the peer allows on this connection is in use",
        ))),
    }
}

/// One request. Polls quinn's stream in place: no task and no channel in between.
struct QuicStream {
    writer: RecordWriter,
    reader: RecordReader,
    state: Delivered,
    _in_use: InUse,
}

#[derive(PartialEq)]
enum Delivered {
    Some,
    /// The terminal frame: the agent is done too.
    All,
    /// An error, or the stream's end without a terminal frame.
    Broken,
}

impl FrameStream for QuicStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        while self.state == Delivered::Some {
            let frame = match ready!(self.reader.poll_record(cx)) {
                Ok(Some((kind, body))) => match GenFrame::decode(kind, &body) {
                    Ok(Some(frame)) => Ok(frame),
                    // Known, but of no use here (a later version may send it): skipped.
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

impl Drop for QuicStream {
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
