//! Hearing for a client elsewhere: frames out, sound in, by the stream and by datagrams.
//!
//! The task polls the engine's stream itself, as that of a generation does. A client that cancels
//! or whose connection is lost takes the task with it, and so the engine's connection: nothing is
//! reattached to, since the client has kept the sound. Sound that comes while a frame is being
//! written waits: the stream's in its window, a datagram in its box.

use super::super::super::Service;
use super::super::super::client::{Client, Gone};
use super::super::super::encoder::Encoder;
use super::{Hearing, Mic};
use bytes::Bytes;
use std::future::{pending, poll_fn};
use std::task::{Context, Poll};
use unamesh_client::endpoint::CLOSE_NORMAL;
use unamesh_client::framing::{ReadError, RecordReader};
use unamesh_proto::timeouts;
use unamesh_proto::wire::{
    DecodeError, ErrorCode, Record, UpSound, UtteranceEnd, WireError, codec,
};

/// Frames that are written in one piece.
const BATCH: usize = 16;

/// What the task waits for.
enum Happened {
    /// Frames are in the batch; whether the last one is.
    Made(Result<bool, DecodeError>),
    Sound(UpSound),
    End(UtteranceEnd),
    Datagram(Bytes),
    /// The client's words are none.
    Broken(WireError),
    Gone,
}

/// Serves `hearing` to `client`, whose words `reader` reads and whose datagrams come to `mic`, to
/// its end.
pub(in super::super::super) async fn hear(
    service: &Service,
    mut hearing: Hearing,
    mut client: Client,
    mut reader: RecordReader,
    mut mic: Mic,
) {
    let stall = service.config().reader_stall;
    let mut encoder = Encoder::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut silent = false;
    loop {
        let happened = tokio::select! {
            biased;
            made = poll_fn(|cx| poll_fill(&mut hearing, &mut encoder, &mut batch, cx)) => {
                Happened::Made(made)
            }
            _ = client.gone() => Happened::Gone,
            datagram = mic.next() => Happened::Datagram(datagram),
            said = said(&mut reader, &mut silent) => said,
        };
        match happened {
            Happened::Sound(UpSound { seq, opus }) => hearing.sound(seq, &opus),
            Happened::End(UtteranceEnd { frames }) => {
                // What has arrived before the end counts before it.
                while let Some(datagram) = mic.try_next() {
                    hearing.live(&datagram);
                }
                hearing.end(frames);
            }
            Happened::Datagram(datagram) => hearing.live(&datagram),
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
            }
            Happened::Made(Err(error)) => {
                // Only an engine's own words can be that long.
                let error = WireError::new(ErrorCode::EngineFailed, error.to_string());
                drop(hearing);
                return client.refuse(error, stall).await;
            }
            Happened::Broken(error) => {
                drop(hearing);
                return client.refuse(error, stall).await;
            }
            Happened::Gone => return client.cancel(),
        }
        // A client that sends without a pause must not keep the thread.
        tokio::task::coop::consume_budget().await;
    }
}

/// Waits until the end has arrived, or is of no use any more. The client may go on sending until
/// it has: nobody reads that. An agent that stops waits too: its word that it does is the end.
async fn delivered(mut client: Client, mut reader: RecordReader) {
    client.finish();
    reader.stop(CLOSE_NORMAL);
    drop(tokio::time::timeout(timeouts::FINISHED_GRACE, client.gone()).await);
}

/// Takes what `hearing` has ready. Pending while there is nothing; true with the last frame.
fn poll_fill(
    hearing: &mut Hearing,
    encoder: &mut Encoder,
    batch: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, DecodeError>> {
    let mut last = false;
    while batch.len() < BATCH
        && !last
        && let Poll::Ready(Some(frame)) = hearing.poll_next(cx)
    {
        last = frame.is_terminal();
        batch.push(encoder.written(|out| frame.encode(out))?);
    }
    match batch.is_empty() {
        true => Poll::Pending,
        false => Poll::Ready(Ok(last)),
    }
}

/// The client's next word. Pending for good once it has said all (`silent`).
async fn said(reader: &mut RecordReader, silent: &mut bool) -> Happened {
    if *silent {
        return pending().await;
    }
    let decoded = match reader.next().await {
        Ok(Some((UpSound::KIND, body))) => codec::body(&body).map(Happened::Sound),
        Ok(Some((UtteranceEnd::KIND, body))) => codec::body(&body).map(Happened::End),
        Ok(Some((kind, _))) => Err(DecodeError::Unexpected {
            expected: UpSound::NAME,
            kind,
        }),
        Ok(None) => {
            *silent = true;
            return pending().await;
        }
        Err(ReadError::Decode(error)) => Err(error),
        Err(ReadError::Truncated) => return broken(&ReadError::Truncated),
        Err(ReadError::Stream(_) | ReadError::Refused(_)) => return Happened::Gone,
    };
    decoded.unwrap_or_else(|error| broken(&error))
}

fn broken(error: &impl std::fmt::Display) -> Happened {
    Happened::Broken(WireError::new(ErrorCode::Protocol, error.to_string()))
}
