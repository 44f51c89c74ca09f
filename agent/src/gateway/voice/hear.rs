//! `POST transcribe`: sound in, events out, at the same time.
//!
//! The body is read as far as the network brings it, one piece for each turn, so that events go
//! out between the pieces of a long recording. Nothing is held back: the client of the mesh keeps
//! an utterance until its transcript anyway, and has the bound.

use super::super::GatewayState;
use super::super::error::ApiError;
use super::super::mesh::{ndjson, stream_reply};
use super::super::openai::Reply;
use super::events;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;
use unamesh_client::speech::{Hear, HearEvent, Hearing};
use unamesh_proto::timeouts::HTTP_DRAIN;

/// What can be asked of a transcript, in the query.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HearQuery {
    model: String,
    language: String,
    prompt: String,
    partials: bool,
    /// The agent ends the utterance after so much silence; 0 = the end of the body does.
    vad_ms: u16,
    session: u64,
}

impl Default for HearQuery {
    fn default() -> Self {
        HearQuery {
            model: String::new(),
            language: String::new(),
            prompt: String::new(),
            partials: true,
            vad_ms: 0,
            session: 0,
        }
    }
}

impl From<HearQuery> for Hear {
    fn from(query: HearQuery) -> Self {
        Hear {
            model: query.model,
            language: query.language,
            prompt: query.prompt,
            session: query.session,
            partials: query.partials,
            vad_ms: query.vad_ms,
        }
    }
}

/// The body is raw PCM: s16le, 16 kHz, mono. Its end is the utterance's end.
pub(super) async fn transcribe(
    State(state): State<GatewayState>,
    query: Result<Query<HearQuery>, QueryRejection>,
    request: Request,
) -> Reply {
    let Query(query) = query.map_err(|e| ApiError::invalid("invalid_query", e.body_text()))?;
    let exchange = Exchange {
        hearing: state.client.transcribe(query.into()),
        sound: Some(request.into_body().into_data_stream()),
        half: None,
        over: None,
    };
    let lines = ndjson(exchange.map(|event| events::heard(&event)));
    Ok(stream_reply(
        "application/x-ndjson",
        Body::from_stream(lines),
    ))
}

/// The events of an utterance, whose sound is read as they are.
struct Exchange {
    hearing: Hearing,
    /// `None` after its end.
    sound: Option<BodyDataStream>,
    /// The first byte of a sample whose second has not come.
    half: Option<u8>,
    /// Runs from the last event on.
    over: Option<Pin<Box<Sleep>>>,
}

impl Exchange {
    /// Reads the next piece of the sound, if there is one.
    fn listen(&mut self, cx: &mut Context<'_>) {
        let Some(sound) = &mut self.sound else {
            return;
        };
        let Poll::Ready(piece) = sound.poll_next_unpin(cx) else {
            return;
        };
        match piece {
            Some(Ok(bytes)) => {
                self.hearing.push(&samples(&mut self.half, &bytes));
                // Then what it leads to, and then the next piece.
                cx.waker().wake_by_ref();
            }
            // A caller that broke off in the middle did not mean that to be all.
            Some(Err(_)) => {
                self.sound = None;
                self.hearing.cancel();
            }
            None => {
                self.sound = None;
                self.hearing.end();
            }
        }
    }
}

impl Stream for Exchange {
    type Item = HearEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<HearEvent>> {
        let this = &mut *self;
        this.listen(cx);
        if this.over.is_none()
            && let Some(event) = ready!(this.hearing.poll_next_unpin(cx))
        {
            return Poll::Ready(Some(event));
        }
        // A connection that closes with sound unread is reset, and with it the events that the
        // caller has not read: what is still sent is taken in for a moment.
        let over = this
            .over
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(HTTP_DRAIN)));
        if this.sound.is_some() {
            ready!(over.as_mut().poll(cx));
        }
        Poll::Ready(None)
    }
}

/// The samples that `bytes` complete; the first byte of one that they do not is kept in `half`.
pub fn samples(half: &mut Option<u8>, bytes: &[u8]) -> Vec<i16> {
    let mut bytes = bytes;
    let mut samples = Vec::with_capacity(bytes.len() / 2 + 1);
    if let (Some(first), [second, rest @ ..]) = (*half, bytes) {
        samples.push(i16::from_le_bytes([first, *second]));
        *half = None;
        bytes = rest;
    }
    let (pairs, rest) = bytes.as_chunks();
    samples.extend(pairs.iter().copied().map(i16::from_le_bytes));
    if let [first] = rest {
        *half = Some(*first);
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_do_not_depend_on_how_they_are_cut() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = samples(&mut None, &bytes);
        assert_eq!(whole.len(), 50);
        for size in [1, 3, 7, 50] {
            let mut half = None;
            let cut: Vec<i16> = bytes
                .chunks(size)
                .flat_map(|piece| samples(&mut half, piece))
                .collect();
            assert_eq!(cut, whole, "{size}");
            assert_eq!(half, None);
        }
        let mut half = None;
        assert_eq!(samples(&mut half, &[1, 2, 3]), [0x201]);
        assert!(samples(&mut half, &[]).is_empty());
        assert_eq!(half, Some(3));
    }
}
