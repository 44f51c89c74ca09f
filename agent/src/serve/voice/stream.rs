//! Speech and hearing for a client elsewhere: frames out, its words in.
//!
//! The task polls the engine's stream itself, as that of a generation does, and writes what is
//! ready in one piece. It gives way to other tasks after each, since a piece of speech costs a
//! millisecond of encoding. The client's words are read when there is no frame: a grant is not
//! missed before, and sound waits in the stream's window.
//!
//! A client that cancels, or whose connection is lost, takes the task with it, and so the
//! engine's connection: nothing is reattached to, since the client has kept what it heard and
//! said. One that takes nothing for [`super::super::ServeConfig::reader_stall`] is closed.

use super::super::Service;
use super::super::client::{Client, Gone};
use super::super::encoder::Encoder;
use bytes::Bytes;
use std::future::{pending, poll_fn};
use std::task::{Context, Poll};
use unamesh_client::endpoint::CLOSE_NORMAL;
use unamesh_client::framing::{ReadError, RecordReader};
use unamesh_proto::timeouts;
use unamesh_proto::wire::{DecodeError, ErrorCode, HearFrame, SpeakFrame, WireError};

/// Frames that are written in one piece: 320 ms of sound, a millisecond or two to encode.
const BATCH: usize = 16;

/// What is served on a stream.
pub(in super::super) trait Served {
    /// What the client is told.
    type Frame: Frame;

    /// The next frame; `None` after the terminal one.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Frame>>;

    /// Takes in a record of the client's.
    ///
    /// # Errors
    /// It is none that may come on such a stream, or malformed.
    fn said(&mut self, kind: u16, body: &[u8]) -> Result<(), DecodeError>;
}

/// What a client is told.
pub(in super::super) trait Frame {
    /// Appends it as its record.
    ///
    /// # Errors
    /// It exceeds its class.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError>;

    /// Nothing follows it.
    fn is_terminal(&self) -> bool;
}

/// What the task waits for.
enum Happened {
    /// Frames are in the batch; whether the last one is.
    Made(Result<bool, DecodeError>),
    /// The client's next record.
    Said(u16, Bytes),
    /// Its words are none.
    Broken(ReadError),
    Gone,
}

/// Serves `served` to `client`, whose words `reader` reads, to its end.
pub(in super::super) async fn serve(
    service: &Service,
    mut served: impl Served,
    mut client: Client,
    mut reader: RecordReader,
) {
    let stall = service.config().reader_stall;
    let mut encoder = Encoder::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut listens = false;
    let error = loop {
        let happened = tokio::select! {
            biased;
            made = poll_fn(|cx| poll_fill(&mut served, &mut encoder, &mut batch, cx)) => {
                Happened::Made(made)
            }
            _ = client.gone() => Happened::Gone,
            said = said(&mut reader, &mut listens) => said,
        };
        match happened {
            Happened::Made(Ok(last)) => {
                let written = tokio::select! {
                    biased;
                    written = client.write(&mut batch, stall) => written,
                    () = service.leaving().stopped() => return client.reset(ErrorCode::Draining),
                };
                match written {
                    Ok(()) if last => return delivered(client, reader).await,
                    Ok(()) => batch.clear(),
                    Err(Gone::Stalled) => return client.reset(ErrorCode::Limit),
                    Err(_) => return client.cancel(),
                }
                tokio::task::yield_now().await;
            }
            // Only an engine's own words can be that long.
            Happened::Made(Err(error)) => {
                break WireError::new(ErrorCode::EngineFailed, error.to_string());
            }
            Happened::Said(kind, body) => {
                if let Err(error) = served.said(kind, &body) {
                    break broken(&error);
                }
                // A client that talks without a pause must not keep the thread.
                tokio::task::coop::consume_budget().await;
            }
            Happened::Broken(error) => break broken(&error),
            Happened::Gone => return client.cancel(),
        }
    };
    drop(served);
    client.refuse(error, stall).await;
}

/// Waits until the end has arrived, or is of no use any more. The client may go on talking until
/// it has: nobody reads that. An agent that stops waits too: its word that it does is the end.
async fn delivered(mut client: Client, mut reader: RecordReader) {
    client.finish();
    reader.stop(CLOSE_NORMAL);
    drop(tokio::time::timeout(timeouts::FINISHED_GRACE, client.gone()).await);
}

/// Takes what `served` has ready. Pending while there is nothing; true with the last frame.
fn poll_fill(
    served: &mut impl Served,
    encoder: &mut Encoder,
    batch: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, DecodeError>> {
    let mut last = false;
    while batch.len() < BATCH
        && !last
        && let Poll::Ready(Some(frame)) = served.poll_next(cx)
    {
        last = frame.is_terminal();
        batch.push(encoder.written(|out| frame.encode(out))?);
    }
    match batch.is_empty() {
        true => Poll::Pending,
        false => Poll::Ready(Ok(last)),
    }
}

/// The client's next record. Pending for good once it has said all (`listens`).
async fn said(reader: &mut RecordReader, listens: &mut bool) -> Happened {
    if *listens {
        return pending().await;
    }
    match reader.next().await {
        Ok(Some((kind, body))) => Happened::Said(kind, body),
        Ok(None) => {
            *listens = true;
            pending().await
        }
        Err(error @ (ReadError::Decode(_) | ReadError::Truncated)) => Happened::Broken(error),
        Err(ReadError::Stream(_) | ReadError::Refused(_)) => Happened::Gone,
    }
}

fn broken(error: &impl std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::Protocol, error.to_string())
}

impl Frame for SpeakFrame {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        SpeakFrame::encode(self, out)
    }

    fn is_terminal(&self) -> bool {
        SpeakFrame::is_terminal(self)
    }
}

impl Frame for HearFrame {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        HearFrame::encode(self, out)
    }

    fn is_terminal(&self) -> bool {
        HearFrame::is_terminal(self)
    }
}
