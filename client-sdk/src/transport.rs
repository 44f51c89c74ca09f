//! How a request reaches a peer: over QUIC, or in process on an agent that serves itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use unamesh_proto::wire::{
    Attach, DecodeError, ErrorCode, GenFrame, GenerateRequest, Grant, HearFrame, HearRequest,
    SpeakFrame, SpeakRequest, WarmFrame, WarmRequest, WireError,
};
use unamesh_proto::{Mono, NodeId};

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What to open at a peer.
#[derive(Clone, Debug)]
pub enum Open {
    /// A new generation.
    Generate(Arc<GenerateRequest>),
    /// The rest of one that runs there.
    Attach(Attach),
    /// The same over a connection that was made after that moment: the older one is silent.
    Reattach(Attach, Mono),
}

/// Why a stream could not be opened or went no further.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// No path to the peer answered. Nothing was sent; safe to retry elsewhere.
    #[error("cannot reach {node}: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Per path, what happened.
        reason: String,
    },
    /// The connection or stream broke. What was delivered before stays valid.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer refused the stream (version, role, limit).
    #[error("refused: {0}")]
    Refused(WireError),
    /// The peer sent something that is no valid record.
    #[error("protocol violation: {0}")]
    Protocol(#[from] DecodeError),
}

/// The frames of one generate or attach stream. Dropping it cancels the generation: the
/// stream is reset and the agent stops the engine's work.
pub trait FrameStream: Send {
    /// The next frame; `None` after the last one (a stream that ends without a terminal frame
    /// is a failure of the peer, which the session machine judges).
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>>;
}

/// A text that is being spoken. Dropping it before its last frame resets the stream: the peer
/// stops its engine.
pub trait SpeakLink: Send {
    /// The next frame; `None` after the last one. Sends what was queued as well.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>>;

    /// Queues a grant, which goes out with the next poll.
    fn grant(&mut self, grant: Grant);
}

/// An utterance that is being heard. Dropping it before its last frame resets the stream.
///
/// Nothing here blocks. What goes on the stream is queued and sent by polling; who queues is the
/// one who polls, and the queue holds what an utterance may at most.
pub trait HearLink: Send {
    /// The next frame; `None` after the last one. Sends what was queued as well.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HearFrame, LinkError>>>;

    /// Queues an Opus frame, which will arrive.
    fn sound(&mut self, seq: u32, opus: &[u8]);

    /// Sends a datagram (`unamesh_proto::speech::uplink`) at once; it may be lost. Where the path
    /// carries none, its newest frame is queued instead.
    fn live(&mut self, datagram: &[u8]);

    /// Queues the end of the utterance, which has so many frames.
    fn end(&mut self, frames: u32);
}

/// Models that are kept warm. Dropping it ends the lease.
pub trait LeaseLink: Send {
    /// The next frame; `None` after the last one.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WarmFrame, LinkError>>>;
}

/// Opens streams at peers. Each resolves when the request is on its way, not when it is
/// accepted; dropping the future gives up.
pub trait Transport: Send + Sync + 'static {
    /// Opens `open` at `node`.
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>>;

    /// Has `node` speak. A transport that carries text alone refuses.
    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        let _ = (node, request);
        Box::pin(std::future::ready(Err(text_alone())))
    }

    /// Has `node` listen. A transport that carries text alone refuses.
    fn hear(
        &self,
        node: NodeId,
        request: HearRequest,
    ) -> BoxFuture<Result<Box<dyn HearLink>, LinkError>> {
        let _ = (node, request);
        Box::pin(std::future::ready(Err(text_alone())))
    }

    /// Has `node` keep models warm. A transport that carries text alone refuses.
    fn lease(
        &self,
        node: NodeId,
        request: WarmRequest,
    ) -> BoxFuture<Result<Box<dyn LeaseLink>, LinkError>> {
        let _ = (node, request);
        Box::pin(std::future::ready(Err(text_alone())))
    }

    /// Hints that `nodes` are likely to be asked soon: keep connections to them warm.
    fn warm(&self, nodes: &[NodeId]);
}

fn text_alone() -> LinkError {
    let message = "no speech over this transport";
    LinkError::Refused(WireError::new(ErrorCode::Unsupported, message))
}
