//! Speech for a client elsewhere: frames out, grants in.
//!
//! The task polls the engine's stream itself, as that of a generation does, and writes what is
//! ready in one piece. It gives way to other tasks after each, since a piece costs a millisecond
//! of encoding. Grants are read when no frame may go: before that none is missing.
//!
//! A client that cancels, or whose connection is lost, takes the task with it, and so the
//! engine's connection: nothing is reattached to. One that takes nothing for
//! [`super::super::ServeConfig::reader_stall`] is closed; one that grants nothing is playing, and
//! gets progress ([`super::speaking`] bounds that).

use super::super::Service;
use super::super::client::{Client, Gone};
use super::super::encoder::Encoder;
use super::speaking::Speaking;
use bytes::Bytes;
use std::future::{pending, poll_fn};
use std::task::{Context, Poll};
use unamesh_client::framing::{ReadError, RecordReader};
use unamesh_proto::timeouts;
use unamesh_proto::wire::{DecodeError, ErrorCode, Grant, Record, WireError, codec};

/// Frames that are written in one piece: 320 ms of sound, a millisecond or two to encode.
const BATCH: usize = 16;

/// What the task waits for.
enum Happened {
    /// The client grants.
    Granted(Grant),
    /// Frames are in the batch; whether the last one is.
    Made(Result<bool, DecodeError>),
    /// The client's words are none.
    Broken(WireError),
    Gone,
}

/// Serves `speaking` to `client`, whose words `reader` reads, to its end.
pub(in super::super) async fn speak(
    service: &Service,
    mut speaking: Speaking,
    mut client: Client,
    mut reader: RecordReader,
) {
    let stall = service.config().reader_stall;
    let mut encoder = Encoder::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut listens = false;
    loop {
        let happened = tokio::select! {
            biased;
            made = poll_fn(|cx| poll_fill(&mut speaking, &mut encoder, &mut batch, cx)) => {
                Happened::Made(made)
            }
            _ = client.gone() => Happened::Gone,
            grant = grant(&mut reader, &mut listens) => grant,
        };
        match happened {
            Happened::Granted(grant) => {
                speaking.grant(grant);
                // A client that only grants must not keep the thread.
                tokio::task::coop::consume_budget().await;
            }
            Happened::Made(Ok(last)) => {
                let written = tokio::select! {
                    biased;
                    written = client.write(&mut batch, stall) => written,
                    () = service.leaving().stopped() => return client.reset(ErrorCode::Draining),
                };
                match written {
                    Ok(()) if last => return delivered(client).await,
                    Ok(()) => batch.clear(),
                    Err(Gone::Stalled) => return client.reset(ErrorCode::Limit),
                    Err(_) => return client.cancel(),
                }
                tokio::task::yield_now().await;
            }
            Happened::Made(Err(error)) => {
                // No engine can cause it: packets and names are bounded.
                tracing::error!(%error, "a frame of speech cannot be encoded");
                return client.reset(ErrorCode::EngineFailed);
            }
            Happened::Broken(error) => {
                drop(speaking);
                client.refuse(error, stall).await;
                return;
            }
            Happened::Gone => return client.cancel(),
        }
    }
}

/// Waits until the end has arrived, or is of no use any more. An agent that stops does too.
async fn delivered(mut client: Client) {
    client.finish();
    drop(tokio::time::timeout(timeouts::FINISHED_GRACE, client.gone()).await);
}

/// Takes what `speaking` has ready. Pending while there is nothing; true with the last frame.
fn poll_fill(
    speaking: &mut Speaking,
    encoder: &mut Encoder,
    batch: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, DecodeError>> {
    let mut last = false;
    while batch.len() < BATCH
        && !last
        && let Poll::Ready(Some(frame)) = speaking.poll_next(cx)
    {
        last = frame.is_terminal();
        batch.push(encoder.written(|out| frame.encode(out))?);
    }
    match batch.is_empty() {
        true => Poll::Pending,
        false => Poll::Ready(Ok(last)),
    }
}

/// The client's next word. Pending for good once it has said all (`listens`).
async fn grant(reader: &mut RecordReader, listens: &mut bool) -> Happened {
    if *listens {
        return pending().await;
    }
    match reader.next().await {
        Ok(Some((Grant::KIND, body))) => match codec::body(&body) {
            Ok(grant) => Happened::Granted(grant),
            Err(error) => broken(&error),
        },
        Ok(Some((kind, _))) => broken(&DecodeError::Unexpected {
            expected: Grant::NAME,
            kind,
        }),
        Ok(None) => {
            *listens = true;
            pending().await
        }
        Err(ReadError::Decode(error)) => broken(&error),
        Err(ReadError::Truncated) => broken(&ReadError::Truncated),
        Err(ReadError::Stream(_) | ReadError::Refused(_)) => Happened::Gone,
    }
}

fn broken(error: &impl std::fmt::Display) -> Happened {
    Happened::Broken(WireError::new(ErrorCode::Protocol, error.to_string()))
}
