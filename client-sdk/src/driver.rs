//! Performs what `unamesh_proto::session` decides, in the caller's own task.
//!
//! A [`Generation`] is a stream that the caller pulls: nothing is spawned and nothing is
//! buffered, so a slow caller slows the peer down (backpressure) and dropping the stream
//! cancels the request. One poll is: frames first (a caller that paused must not take its own
//! pause for a peer's silence), then news of the peer table, the timer, the client's end. What
//! has lain unread during such a pause ([`CALLER_PAUSE`]) teaches nothing of its peer. The timer is
//! re-armed lazily: every frame moves the deadlines back, but the timer wheel is only touched
//! when the old deadline fires.

use crate::activity::{Activity, RequestId};
use crate::client::{ClientError, Event, Request};
use crate::clock;
use crate::memory::Shared;
use crate::transport::{BoxFuture, FrameStream, LinkError, Open};
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use unamesh_proto::session::{AttemptId, Closed, Effect, Failure, How, Input, Output, Session};
use unamesh_proto::table::{Liveness, Snapshot};
use unamesh_proto::timeouts::CALLER_PAUSE;
use unamesh_proto::wire::{GenFrame, GenerateRequest, NodeState};
use unamesh_proto::{Mono, NodeId};

type Table = watch::Receiver<Arc<Snapshot>>;

/// A running request: a stream of [`Event`]s that ends after exactly one terminal event.
/// Dropping it cancels the request at once, down to the engine.
pub struct Generation {
    shared: Arc<Shared>,
    /// For logs and [`Activity`].
    id: RequestId,
    request: Arc<Request>,
    session: Session,
    links: Vec<Link>,
    events: VecDeque<Event>,
    news: BoxFuture<Option<Table>>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Mono>,
    /// The client ends.
    leaving: BoxFuture<()>,
    /// Until the terminal event.
    running: Option<TaskTrackerToken>,
    /// When the caller took the last event and did not look since.
    left: Option<Mono>,
    /// What comes has lain unread.
    late: bool,
    /// The text that was delivered, for an error that loses nothing.
    text: String,
    tokens: u32,
}

struct Link {
    attempt: AttemptId,
    node: NodeId,
    state: LinkState,
}

enum LinkState {
    Dialing(BoxFuture<Result<Box<dyn FrameStream>, LinkError>>),
    Open(Box<dyn FrameStream>),
}

impl Generation {
    pub(crate) fn new(shared: Arc<Shared>, request: Request) -> Self {
        let config = shared.begin(&request);
        let news = news(shared.table.clone());
        let mut generation = Generation {
            session: Session::new(config, clock::mono()),
            id: RequestId::random(),
            request: Arc::new(request),
            links: Vec::with_capacity(2),
            events: VecDeque::new(),
            news,
            timer: Box::pin(tokio::time::sleep(std::time::Duration::ZERO)),
            armed: None,
            leaving: Box::pin(shared.leaving.clone().cancelled_owned()),
            running: Some(shared.running.token()),
            left: None,
            late: false,
            text: String::new(),
            tokens: 0,
            shared,
        };
        generation.perform();
        generation
    }

    /// Names this request in logs and [`Activity`].
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Stops the request; the terminal event is [`ClientError::Cancelled`].
    pub fn cancel(&mut self) {
        self.input(Input::Cancel);
    }

    fn input(&mut self, input: Input) {
        self.session.handle(input, clock::mono());
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(effect) = self.session.poll() {
            match effect {
                Effect::Rank => {
                    let candidates = self.candidates();
                    self.session
                        .handle(Input::Candidates(candidates), clock::mono());
                }
                Effect::Hedge => {
                    if self.shared.may_hedge() {
                        self.session.handle(Input::Hedge, clock::mono());
                    }
                }
                Effect::Open {
                    attempt,
                    node,
                    engine,
                    model,
                    how,
                } => {
                    if matches!(how, How::Generate(_)) {
                        self.shared.dispatched(node, engine, clock::mono());
                    }
                    let open = self.request(engine, model, how);
                    let dial = self.shared.transport.open(node, open);
                    self.links.push(Link {
                        attempt,
                        node,
                        state: LinkState::Dialing(dial),
                    });
                }
                Effect::Reset(attempt) => self.links.retain(|l| l.attempt != attempt),
                Effect::Emit(output) => self.emit(output),
                Effect::Note(note) => self.shared.note(self.id, &note, clock::mono()),
            }
        }
    }

    fn candidates(&self) -> Vec<unamesh_proto::rank::Candidate> {
        let sticky = self.shared.sticky(self.request.session);
        let mut need = self.request.need(sticky);
        need.prompt_tokens = need.prompt_tokens.saturating_add(self.tokens);
        need.digest = self.session.digest();
        need.needs_token_ids = self.tokens > 0;
        let mut ranked = self.shared.rank(&need, clock::mono()).ranked;
        // Beside an attempt that may recover, another model would be a change for nothing.
        let broken = !self.session.delivered().is_empty() && self.links.is_empty();
        if self.request.other_model && broken {
            ranked.extend(self.shared.others(&need, clock::mono()));
        }
        ranked
    }

    fn request(&self, engine: u16, model: String, how: How) -> Open {
        match how {
            How::Attach(attach) => Open::Attach(attach),
            How::Reattach { attach, heard } => Open::Reattach(attach, heard),
            How::Generate(prefix) => Open::Generate(Arc::new(GenerateRequest {
                model,
                engine,
                kind: self.request.kind,
                input: self.request.input.clone(),
                sampling: self.request.sampling.clone(),
                extra: self.request.extra.clone(),
                prefix,
                session: self.request.session,
            })),
        }
    }

    fn emit(&mut self, output: Output) {
        let event = match output {
            Output::Started { node, engine, why } => {
                self.shared.stick(self.request.session, (node, engine));
                Event::Started {
                    peer: self.shared.peer(node),
                    why,
                }
            }
            Output::Progress { phase, done, total } => Event::Progress { phase, done, total },
            Output::Token {
                index,
                text,
                tokens,
                extra,
            } => {
                self.text.push_str(&text);
                self.tokens = self.tokens.saturating_add(tokens);
                Event::Token {
                    index,
                    text,
                    tokens,
                    extra,
                }
            }
            Output::PeerChanged {
                from,
                to,
                engine,
                seam,
                gap,
                backup_ttft,
                reason,
            } => {
                self.shared.stick(self.request.session, (to, engine));
                let (from, to) = (self.shared.peer(from), self.shared.peer(to));
                self.shared.tell(Activity::PeerChanged {
                    request: self.id,
                    from: from.clone(),
                    to: to.clone(),
                    seam,
                    gap,
                    backup_ttft,
                    reason: reason.clone(),
                });
                Event::PeerChanged {
                    from,
                    to,
                    seam,
                    gap,
                    backup_ttft,
                    reason: reason.to_string(),
                }
            }
            Output::Done { finish, usage } => Event::Done { finish, usage },
            Output::Failed(failure) => Event::Failed(self.error(failure)),
        };
        if matches!(event, Event::Done { .. } | Event::Failed(_)) {
            self.running = None;
        }
        self.events.push_back(event);
    }

    fn error(&mut self, failure: Failure) -> ClientError {
        let delivered = std::mem::take(&mut self.text);
        let (request, tokens) = (self.id, self.tokens);
        match failure {
            Failure::NoPeer => self.shared.nobody_has(&self.request),
            Failure::Busy { retry_after } => ClientError::Busy { retry_after },
            Failure::Refused(error) => ClientError::from(error),
            Failure::Interrupted { reason } => {
                let words = reason.to_string();
                self.shared.tell(Activity::Interrupted {
                    request,
                    tokens,
                    reason,
                });
                ClientError::Interrupted {
                    delivered,
                    tokens,
                    reason: words,
                }
            }
            Failure::Incomplete { reason } => {
                let words = reason.to_string();
                self.shared.tell(Activity::Incomplete {
                    request,
                    tokens,
                    reason,
                });
                ClientError::Incomplete {
                    delivered,
                    tokens,
                    reason: words,
                }
            }
            Failure::Cancelled => ClientError::Cancelled,
        }
    }

    /// Polls every link once; true if one of them moved the session.
    fn poll_links(&mut self, cx: &mut Context<'_>) -> bool {
        for at in 0..self.links.len() {
            let Some(link) = self.links.get_mut(at) else {
                break;
            };
            let attempt = link.attempt;
            let input = match &mut link.state {
                LinkState::Dialing(dial) => match dial.as_mut().poll(cx) {
                    Poll::Pending => continue,
                    Poll::Ready(Ok(frames)) => {
                        link.state = LinkState::Open(frames);
                        Input::Opened(attempt)
                    }
                    Poll::Ready(Err(error)) => self.close(at, error),
                },
                LinkState::Open(frames) => match frames.poll_frame(cx) {
                    Poll::Pending => continue,
                    Poll::Ready(Some(Ok(frame))) => {
                        if let GenFrame::Accepted(accepted) = &frame {
                            // The other side's log names the generation alone.
                            tracing::debug!(
                                request = %self.id, peer = %link.node.short(),
                                generation = ?accepted.generation, "accepted"
                            );
                        }
                        Input::Frame(attempt, frame)
                    }
                    Poll::Ready(Some(Err(error))) => self.close(at, error),
                    Poll::Ready(None) => {
                        self.links.remove(at);
                        Input::Closed(attempt, Closed::Ended)
                    }
                },
            };
            self.input(input);
            return true;
        }
        false
    }

    fn close(&mut self, at: usize, error: LinkError) -> Input {
        let link = self.links.remove(at);
        tracing::debug!(request = %self.id, peer = %link.node.short(), %error, "stream closed");
        let closed = match error {
            LinkError::Unreachable { reason, .. } => Closed::Unreachable(reason),
            LinkError::Lost(reason) => Closed::Lost(reason),
            LinkError::Refused(error) => Closed::Refused(error),
            LinkError::Protocol(error) => Closed::Protocol(error.to_string()),
        };
        Input::Closed(link.attempt, closed)
    }

    /// Takes in a new peer table; true if it moved the session.
    fn poll_news(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(table) = self.news.as_mut().poll(cx) else {
            return false;
        };
        let Some(table) = table else {
            // The table's owner has shut down; what runs goes on with what is known.
            self.news = Box::pin(std::future::pending());
            return false;
        };
        let snapshot = table.borrow().clone();
        self.news = news(table);
        let going = |node: NodeId| match snapshot.get(&node) {
            Some(peer) if peer.advert.state != NodeState::Up => Some(Input::PeerGoing(node)),
            Some(peer) if peer.liveness != Liveness::Down => None,
            _ => Some(Input::PeerDown(node)),
        };
        let inputs: Vec<Input> = self.session.peers().filter_map(going).collect();
        for input in inputs {
            self.input(input);
        }
        if self.session.is_waiting() {
            let candidates = self.candidates();
            self.input(Input::Candidates(candidates));
        }
        true
    }

    /// Tells the session whether the caller reads what comes as it comes.
    fn read_late(&mut self, late: bool) {
        if std::mem::replace(&mut self.late, late) != late {
            self.input(Input::Late(late));
        }
    }

    /// Wakes the session when it is time; true if it did.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.session.next_wake() else {
            return false;
        };
        if self.armed.is_none_or(|armed| due < armed) {
            self.timer.as_mut().reset(clock::instant(due));
            self.armed = Some(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.armed = None;
        if clock::mono() >= due {
            self.input(Input::Wake);
        }
        true
    }

    /// Ends the session when the client does; true if it did.
    fn poll_leaving(&mut self, cx: &mut Context<'_>) -> bool {
        let left = self.leaving.as_mut().poll(cx).is_ready();
        if left {
            self.input(Input::Leave);
        }
        left
    }
}

fn news(mut table: Table) -> BoxFuture<Option<Table>> {
    Box::pin(async move { table.changed().await.ok().map(|()| table) })
}

impl Drop for Generation {
    /// What a request that nobody wants any more has learned and spent is told all the same.
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let left = self.left.take();
        if left.is_some_and(|left| clock::mono().since(left) > CALLER_PAUSE) {
            self.read_late(true);
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                self.left = Some(clock::mono());
                return Poll::Ready(Some(event));
            }
            if self.session.is_ended() {
                return Poll::Ready(None);
            }
            let moved = self.poll_links(cx)
                || self.poll_news(cx)
                || self.poll_timer(cx)
                || self.poll_leaving(cx);
            if !moved {
                self.read_late(false);
                return Poll::Pending;
            }
        }
    }
}
