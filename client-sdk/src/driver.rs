//! Performs what `unamesh_proto::session` decides, in the caller's own task.
//!
//! A [`Generation`] is a stream that the caller pulls: nothing is spawned and nothing is
//! buffered, so a slow caller slows the peer down (backpressure) and dropping the stream
//! cancels the request. What it waits for, and in which order, is in [`crate::outside`].

use crate::activity::{Activity, RequestId};
use crate::client::{ClientError, Event, Request};
use crate::clock;
use crate::memory::{Held, Shared};
use crate::outside::{Going, Happening, Outside, going};
use crate::transport::{FrameStream, Open};
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use unamesh_proto::Mono;
use unamesh_proto::session::{Config, Effect, Failure, How, Input, Output, Reason, Session};
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::{GenFrame, GenerateRequest, ModelKind};

/// A running request: a stream of [`Event`]s that ends after exactly one terminal event.
/// Dropping it cancels the request at once, down to the engine.
pub struct Generation {
    shared: Arc<Shared>,
    /// For logs and [`Activity`].
    id: RequestId,
    request: Arc<Request>,
    session: Session,
    outside: Outside<dyn FrameStream>,
    events: VecDeque<Event>,
    /// The text that was delivered, for an error that loses nothing.
    text: String,
    tokens: u32,
}

impl Generation {
    pub(crate) fn new(shared: Arc<Shared>, request: Request) -> Self {
        let config = Config {
            spliceable: request.spliceable,
            silence: shared.begin(),
            prompt_tokens: request.need(None).prompt_tokens,
        };
        let id = RequestId::random();
        let mut generation = Generation {
            session: Session::new(config, clock::mono()),
            id,
            request: Arc::new(request),
            outside: Outside::new(id, &shared),
            events: VecDeque::new(),
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
                    self.outside.dial(attempt, node, dial);
                }
                Effect::Reset(attempt) => self.outside.reset(attempt),
                Effect::Emit(output) => self.emit(output),
                Effect::Note(note) => self.shared.note(self.id, &note, clock::mono()),
            }
        }
    }

    fn candidates(&self) -> Vec<unamesh_proto::rank::Candidate> {
        let sticky = self.shared.sticky(self.request.session, ModelKind::Llm);
        let mut need = self.request.need(sticky);
        need.prompt_tokens = need.prompt_tokens.saturating_add(self.tokens);
        need.digest = self.session.digest();
        need.needs_token_ids = self.tokens > 0;
        let mut ranked = self.shared.rank(&need, clock::mono()).ranked;
        // Beside an attempt that may recover, another model would be a change for nothing.
        let broken = !self.session.delivered().is_empty() && self.outside.is_empty();
        if self.request.other_model && broken {
            ranked.extend(self.shared.others(&need, clock::mono()));
        }
        if let Some(first) = self.request.first
            && self.session.delivered().is_empty()
        {
            // Stable: the others keep their order.
            ranked.sort_by_key(|candidate| candidate.node != first);
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
                self.stick((node, engine));
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
                self.stick((to, engine));
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
            self.outside.over();
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
                self.shared.tell(Activity::Interrupted {
                    request,
                    tokens,
                    reason: reason.clone(),
                });
                match reason {
                    Reason::Leaving => ClientError::Left { delivered, tokens },
                    reason => ClientError::Interrupted {
                        delivered,
                        tokens,
                        reason: reason.to_string(),
                    },
                }
            }
            Failure::Incomplete { reason } => {
                self.shared.tell(Activity::Incomplete {
                    request,
                    tokens,
                    reason: reason.clone(),
                });
                match reason {
                    Reason::Leaving => ClientError::Left { delivered, tokens },
                    reason => ClientError::Incomplete {
                        delivered,
                        tokens,
                        reason: reason.to_string(),
                    },
                }
            }
            Failure::Cancelled => ClientError::Cancelled,
        }
    }

    /// The conversation's cache is there now.
    fn stick(&self, held: Held) {
        self.shared
            .stick(self.request.session, ModelKind::Llm, held);
    }

    /// The peer table changed.
    fn table(&mut self, snapshot: &Snapshot) {
        for (node, going) in going(snapshot, self.session.peers()) {
            self.input(match going {
                Going::Leaves => Input::PeerGoing(node),
                Going::Down => Input::PeerDown(node),
            });
        }
        if self.session.is_waiting() {
            let candidates = self.candidates();
            self.input(Input::Candidates(candidates));
        }
    }

    fn happened(&mut self, happening: Happening<GenFrame>) {
        match happening {
            Happening::Opened(attempt) => self.input(Input::Opened(attempt)),
            Happening::Frame(attempt, node, frame) => {
                if let GenFrame::Accepted(accepted) = &frame {
                    // The other side's log names the generation alone.
                    tracing::debug!(
                        request = %self.id, peer = %node.short(),
                        generation = ?accepted.generation, "accepted"
                    );
                }
                self.input(Input::Frame(attempt, frame));
            }
            Happening::Closed(attempt, closed) => self.input(Input::Closed(attempt, closed)),
            Happening::Late(late) => self.input(Input::Late(late)),
            Happening::Table(snapshot) => self.table(&snapshot),
            Happening::Time => self.input(Input::Wake),
            Happening::Leave => self.input(Input::Leave),
        }
    }

    /// The caller took something then and does not look before the next poll.
    pub(crate) fn left(&mut self, then: Mono) {
        self.outside.left(then);
    }
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
        loop {
            if let Some(event) = self.events.pop_front() {
                self.left(clock::mono());
                return Poll::Ready(Some(event));
            }
            if self.session.is_ended() {
                return Poll::Ready(None);
            }
            let due = self.session.next_wake();
            let happening = ready!(self.outside.poll(due, cx, |link, cx| link.poll_frame(cx)));
            self.happened(happening);
        }
    }
}
