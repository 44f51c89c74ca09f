//! What the machine of a running request hears of: its streams, the peer table, the time.
//!
//! All drivers poll in this order: that the caller looks again after a pause of its own
//! ([`CALLER_PAUSE`]; what has lain unread since teaches nothing of its peer), then frames first (a caller that paused must not take its own pause
//! for a peer's silence), that all of them are read, then news of the peer table, then the timer, which is re-armed lazily
//! (every frame moves the deadlines back, but the timer wheel is only touched when the old deadline
//! fires), then the client's end.

use crate::activity::RequestId;
use crate::clock;
use crate::memory::Shared;
use crate::transport::{BoxFuture, LinkError};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use unamesh_proto::session::{AttemptId, Closed};
use unamesh_proto::table::{Liveness, Snapshot};
use unamesh_proto::timeouts::CALLER_PAUSE;
use unamesh_proto::wire::NodeState;
use unamesh_proto::{Mono, NodeId};

type Table = watch::Receiver<Arc<Snapshot>>;
type Dial<L> = BoxFuture<Result<Box<L>, LinkError>>;

/// What happened outside. `F` is a frame.
pub(crate) enum Happening<F> {
    /// The attempt's request is on its way.
    Opened(AttemptId),
    /// A frame came, from this peer.
    Frame(AttemptId, NodeId, F),
    /// The attempt's stream is over, and is forgotten.
    Closed(AttemptId, Closed),
    /// Whether the frames that come next have lain unread, because the caller did not look.
    Late(bool),
    /// The peer table changed.
    Table(Arc<Snapshot>),
    /// The time that was waited for has come.
    Time,
    /// The client ends.
    Leave,
}

/// The streams of a request's attempts, and all else that its machine waits for. `L` is a stream.
pub(crate) struct Outside<L: ?Sized> {
    request: RequestId,
    links: Vec<Link<L>>,
    /// When the caller took something and did not look since.
    left: Option<Mono>,
    /// What comes has lain unread.
    late: bool,
    news: BoxFuture<Option<Table>>,
    alarm: Alarm,
    leaving: BoxFuture<()>,
    /// Until the terminal event.
    running: Option<TaskTrackerToken>,
}

struct Link<L: ?Sized> {
    attempt: AttemptId,
    node: NodeId,
    state: State<L>,
}

enum State<L: ?Sized> {
    Dialing(Dial<L>),
    Open(Box<L>),
}

impl<L: ?Sized> Outside<L> {
    /// Without streams. `request` is for logs.
    pub fn new(request: RequestId, shared: &Shared) -> Self {
        Outside {
            request,
            links: Vec::with_capacity(2),
            left: None,
            late: false,
            news: news(shared.table.clone()),
            alarm: Alarm::new(),
            leaving: Box::pin(shared.leaving.clone().cancelled_owned()),
            running: Some(shared.running.token()),
        }
    }

    /// The request is over: who waits for the client's end need not wait for it.
    pub fn over(&mut self) {
        self.running = None;
    }

    /// The caller took something then; when it looks again, the next poll tells.
    pub fn left(&mut self, then: Mono) {
        self.left.get_or_insert(then);
    }

    /// A stream is being opened.
    pub fn dial(&mut self, attempt: AttemptId, node: NodeId, dial: Dial<L>) {
        self.links.push(Link {
            attempt,
            node,
            state: State::Dialing(dial),
        });
    }

    /// Drops the attempt's stream.
    pub fn reset(&mut self, attempt: AttemptId) {
        self.links.retain(|l| l.attempt != attempt);
    }

    /// No stream is open or being opened.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The attempt's stream, once it is open.
    pub fn link(&mut self, attempt: AttemptId) -> Option<&mut L> {
        let link = self.links.iter_mut().find(|l| l.attempt == attempt)?;
        match &mut link.state {
            State::Open(link) => Some(link),
            State::Dialing(_) => None,
        }
    }

    /// The next thing that happens; [`Happening::Time`] once `due` has come. `frame` polls a
    /// stream.
    pub fn poll<F>(
        &mut self,
        due: Option<Mono>,
        cx: &mut Context<'_>,
        frame: impl Fn(&mut L, &mut Context<'_>) -> Poll<Option<Result<F, LinkError>>>,
    ) -> Poll<Happening<F>> {
        let paused = |left| clock::mono().since(left) > CALLER_PAUSE;
        if self.left.take().is_some_and(paused) && !std::mem::replace(&mut self.late, true) {
            return Poll::Ready(Happening::Late(true));
        }
        for at in 0..self.links.len() {
            if let Poll::Ready(happening) = self.poll_link(at, cx, &frame) {
                return Poll::Ready(happening);
            }
        }
        if std::mem::take(&mut self.late) {
            return Poll::Ready(Happening::Late(false));
        }
        if let Some(snapshot) = self.poll_news(cx) {
            return Poll::Ready(Happening::Table(snapshot));
        }
        if due.is_some_and(|due| self.alarm.poll(due, cx)) {
            return Poll::Ready(Happening::Time);
        }
        self.leaving.as_mut().poll(cx).map(|()| Happening::Leave)
    }

    fn poll_link<F>(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
        frame: impl Fn(&mut L, &mut Context<'_>) -> Poll<Option<Result<F, LinkError>>>,
    ) -> Poll<Happening<F>> {
        let Some(link) = self.links.get_mut(at) else {
            return Poll::Pending;
        };
        let attempt = link.attempt;
        let error = match &mut link.state {
            State::Dialing(dial) => match std::task::ready!(dial.as_mut().poll(cx)) {
                Ok(stream) => {
                    link.state = State::Open(stream);
                    return Poll::Ready(Happening::Opened(attempt));
                }
                Err(error) => Some(error),
            },
            State::Open(stream) => match std::task::ready!(frame(stream, cx)) {
                Some(Ok(frame)) => {
                    return Poll::Ready(Happening::Frame(attempt, link.node, frame));
                }
                Some(Err(error)) => Some(error),
                None => None,
            },
        };
        let link = self.links.remove(at);
        if let Some(error) = &error {
            tracing::debug!(
                request = %self.request, peer = %link.node.short(), %error, "stream closed"
            );
        }
        let closed = error.map_or(Closed::Ended, closed);
        Poll::Ready(Happening::Closed(attempt, closed))
    }

    fn poll_news(&mut self, cx: &mut Context<'_>) -> Option<Arc<Snapshot>> {
        let Poll::Ready(table) = self.news.as_mut().poll(cx) else {
            return None;
        };
        let Some(table) = table else {
            // The table's owner has shut down; what runs goes on with what is known.
            self.news = Box::pin(std::future::pending());
            return None;
        };
        let snapshot = table.borrow().clone();
        self.news = news(table);
        Some(snapshot)
    }
}

/// A timer that is re-armed lazily.
pub(crate) struct Alarm {
    timer: Pin<Box<Sleep>>,
    armed: Option<Mono>,
}

impl Alarm {
    /// Not armed. Needs a runtime.
    pub fn new() -> Self {
        Alarm {
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            armed: None,
        }
    }

    /// Whether `due` has come; else the task is woken then.
    pub fn poll(&mut self, due: Mono, cx: &mut Context<'_>) -> bool {
        loop {
            if self.armed.is_none_or(|armed| due < armed) {
                self.timer.as_mut().reset(clock::instant(due));
                self.armed = Some(due);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.armed = None;
            if clock::mono() >= due {
                return true;
            }
        }
    }
}

/// What the peer table says of a peer that is at work.
pub(crate) enum Going {
    /// It leaves or left.
    Leaves,
    /// Nobody reaches it.
    Down,
}

/// Those of `peers` that leave, left or are down.
pub(crate) fn going(
    snapshot: &Snapshot,
    peers: impl Iterator<Item = NodeId>,
) -> Vec<(NodeId, Going)> {
    let going = |node| match snapshot.get(&node) {
        Some(peer) if peer.advert.state != NodeState::Up => Some((node, Going::Leaves)),
        Some(peer) if peer.liveness != Liveness::Down => None,
        _ => Some((node, Going::Down)),
    };
    peers.filter_map(going).collect()
}

fn news(mut table: Table) -> BoxFuture<Option<Table>> {
    Box::pin(async move { table.changed().await.ok().map(|()| table) })
}

fn closed(error: LinkError) -> Closed {
    match error {
        LinkError::Unreachable { reason, .. } => Closed::Unreachable(reason),
        LinkError::Lost(reason) => Closed::Lost(reason),
        LinkError::Refused(error) => Closed::Refused(error),
        LinkError::Protocol(error) => Closed::Protocol(error.to_string()),
    }
}
