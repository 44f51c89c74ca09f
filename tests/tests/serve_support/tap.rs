//! A transport with a hand on each stream: it tells who was asked for an answer, and resets
//! the stream of one answer alone, as a connection that stays never does by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use unamesh_client::transport::{BoxFuture, FrameStream, LinkError, Open, Transport};
use unamesh_proto::wire::GenFrame;
use unamesh_proto::{GenerationId, NodeId};

/// Wraps another transport. Answers are told apart by their session. Clones share everything.
#[derive(Clone)]
pub struct Tap {
    inner: Arc<dyn Transport>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    asked: HashMap<u64, NodeId>,
    /// How often the streams of an answer were reset.
    resets: HashMap<u64, u64>,
    /// Whose a generation is, for reattachments.
    answers: HashMap<GenerationId, u64>,
}

impl Tap {
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        Tap {
            inner,
            seen: Arc::default(),
        }
    }

    /// Who was asked last for the answer to `session`.
    pub fn asked(&self, session: u64) -> Option<NodeId> {
        self.seen().asked.get(&session).copied()
    }

    /// Breaks the streams that run for `session` now.
    pub fn reset(&self, session: u64) {
        *self.seen().resets.entry(session).or_default() += 1;
    }

    /// Its answer is over.
    pub fn forget(&self, session: u64) {
        let mut seen = self.seen();
        seen.asked.remove(&session);
        seen.resets.remove(&session);
        seen.answers.retain(|_, of| *of != session);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Tap {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let tap = self.clone();
        let (session, resets) = {
            let mut seen = tap.seen();
            let session = match &open {
                Open::Generate(request) => request.session,
                Open::Attach(attach) | Open::Reattach(attach, _) => {
                    seen.answers.get(&attach.generation).copied().unwrap()
                }
            };
            seen.asked.insert(session, node);
            (session, seen.resets.get(&session).copied())
        };
        let opening = tap.inner.open(node, open);
        Box::pin(async move {
            let inner = Some(opening.await?);
            Ok(Box::new(Stream {
                inner,
                tap,
                session,
                resets,
            }) as Box<dyn FrameStream>)
        })
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.inner.warm(nodes);
    }
}

struct Stream {
    inner: Option<Box<dyn FrameStream>>,
    tap: Tap,
    session: u64,
    /// Before it was opened.
    resets: Option<u64>,
}

impl FrameStream for Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        if self.tap.seen().resets.get(&self.session).copied() != self.resets {
            self.inner = None;
        }
        let Some(inner) = &mut self.inner else {
            let reset = LinkError::Lost("the stream was reset".to_owned());
            return Poll::Ready(Some(Err(reset)));
        };
        let polled = inner.poll_frame(cx);
        if let Poll::Ready(Some(Ok(GenFrame::Accepted(accepted)))) = &polled {
            let mut seen = self.tap.seen();
            seen.answers.insert(accepted.generation, self.session);
        }
        polled
    }
}
