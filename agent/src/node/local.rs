//! How this agent's own client opens streams: in process at itself, over QUIC elsewhere.

use crate::serve::Service;
use std::sync::Arc;
use unamesh_client::pool::QuicTransport;
use unamesh_client::transport::{
    BoxFuture, FrameStream, HearLink, LeaseLink, LinkError, Open, SpeakLink, Transport,
};
use unamesh_proto::NodeId;
use unamesh_proto::wire::{ErrorCode, HearRequest, SpeakRequest, WarmRequest, WireError};

/// The transport of an agent that serves itself.
pub struct AgentTransport {
    me: NodeId,
    service: Arc<Service>,
    quic: QuicTransport,
}

impl AgentTransport {
    /// For the node `me`, whose engines `service` fronts.
    pub fn new(me: NodeId, service: Arc<Service>, quic: QuicTransport) -> AgentTransport {
        AgentTransport { me, service, quic }
    }
}

impl Transport for AgentTransport {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        if node != self.me {
            return self.quic.open(node, open);
        }
        let opened = match open {
            Open::Generate(request) => self.service.open_local(request),
            // A local stream ends with its reader; there is never anything to go back to.
            Open::Attach(_) | Open::Reattach(..) => Err(LinkError::Refused(WireError::new(
                ErrorCode::UnknownGeneration,
                "a local generation cannot be attached to",
            ))),
        };
        Box::pin(std::future::ready(opened))
    }

    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        if node != self.me {
            return self.quic.speak(node, request);
        }
        Box::pin(std::future::ready(self.service.speak_local(request)))
    }

    fn hear(
        &self,
        node: NodeId,
        request: HearRequest,
    ) -> BoxFuture<Result<Box<dyn HearLink>, LinkError>> {
        if node != self.me {
            return self.quic.hear(node, request);
        }
        Box::pin(std::future::ready(self.service.hear_local(request)))
    }

    fn lease(
        &self,
        node: NodeId,
        request: WarmRequest,
    ) -> BoxFuture<Result<Box<dyn LeaseLink>, LinkError>> {
        if node != self.me {
            return self.quic.lease(node, request);
        }
        Box::pin(std::future::ready(self.service.lease_local(&request)))
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.quic.warm(nodes);
    }
}
