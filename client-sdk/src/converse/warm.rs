//! Keeps the models that speak and transcribe for a conversation warm: its leases.
//!
//! A lease is a stream at an agent; one at each that is likely to be asked, for all that is asked
//! of it. Dropping it ends it there. One that breaks (its agent leaves, its path is lost) is asked
//! for again, wherever the models are best then, when somebody speaks next; one that is refused
//! because the agent knows no leases or has no room is not.

use crate::memory::Shared;
use crate::transport::{BoxFuture, LeaseLink, LinkError};
use std::task::{Context, Poll, ready};
use unamesh_proto::NodeId;
use unamesh_proto::wire::{ErrorCode, WarmFrame, WarmModel, WarmRequest};

/// All leases of a conversation.
#[derive(Default)]
pub(super) struct Leases(Vec<Lease>);

struct Lease {
    node: NodeId,
    request: WarmRequest,
    state: State,
    /// What was told of each model.
    told: Vec<bool>,
}

enum State {
    Dialing(BoxFuture<Result<Box<dyn LeaseLink>, LinkError>>),
    Held(Box<dyn LeaseLink>),
    /// It is not asked for again there.
    Refused,
}

impl Leases {
    /// From now on these models are kept warm at these nodes, and no others.
    pub fn hold(&mut self, shared: &Shared, session: u64, wanted: Vec<(NodeId, WarmModel)>) {
        let mut requests: Vec<(NodeId, WarmRequest)> = Vec::new();
        for (node, model) in wanted {
            match requests.iter_mut().find(|(n, _)| *n == node) {
                Some((_, request)) => request.models.push(model),
                None => {
                    let models = vec![model];
                    requests.push((node, WarmRequest { session, models }));
                }
            }
        }
        self.0.retain(|old| {
            requests
                .iter()
                .any(|(n, r)| (*n, r) == (old.node, &old.request))
        });
        for (node, request) in requests {
            if self.0.iter().all(|old| old.node != node) {
                let dial = shared.transport.lease(node, request.clone());
                self.0.push(Lease {
                    node,
                    told: vec![false; request.models.len()],
                    request,
                    state: State::Dialing(dial),
                });
            }
        }
    }

    /// Every model is as warm as it gets.
    pub fn are_warm(&self) -> bool {
        let warm = |l: &Lease| matches!(l.state, State::Refused) || l.told.iter().all(|told| *told);
        self.0.iter().all(warm)
    }

    /// Takes in what the agents say; true if something was told.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        self.0.retain_mut(|lease| {
            loop {
                match lease.poll(cx) {
                    Poll::Pending => return true,
                    Poll::Ready(Ok(())) => moved = true,
                    Poll::Ready(Err(error)) => {
                        moved = true;
                        tracing::debug!(peer = %lease.node.short(), %error, "a lease is over");
                        if !matches!(error, LinkError::Refused(_)) {
                            return false;
                        }
                        lease.state = State::Refused;
                        return true;
                    }
                }
            }
        });
        moved
    }
}

impl Lease {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        match &mut self.state {
            State::Refused => Poll::Pending,
            State::Dialing(dial) => {
                self.state = State::Held(ready!(dial.as_mut().poll(cx))?);
                Poll::Ready(Ok(()))
            }
            State::Held(link) => Poll::Ready(match ready!(link.poll_frame(cx)) {
                Some(Ok(WarmFrame::Warmed(warmed))) => {
                    if let Some(told) = self.told.get_mut(usize::from(warmed.at)) {
                        *told = true;
                    }
                    Ok(())
                }
                // It will be another's, or this one's again when it is back.
                Some(Ok(WarmFrame::Error(error))) if error.code == ErrorCode::Draining => {
                    Err(LinkError::Lost(error.to_string()))
                }
                Some(Ok(WarmFrame::Error(error))) => Err(LinkError::Refused(error)),
                Some(Err(error)) => Err(error),
                None => Err(LinkError::Lost("the agent ended it".to_owned())),
            }),
        }
    }
}
