//! How a request reaches a peer: over QUIC, or in process on an agent that serves itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use unamesh_proto::wire::{Attach, DecodeError, GenFrame, GenerateRequest, WireError};
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

/// Opens streams at peers.
pub trait Transport: Send + Sync + 'static {
    /// Opens `open` at `node`. Resolves when the request is on its way, not when it is
    /// accepted; dropping the future gives up.
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>>;

    /// Hints that `nodes` are likely to be asked soon: keep connections to them warm.
    fn warm(&self, nodes: &[NodeId]);
}
