//! Where answers come from: the mesh client, or a scripted double in tests.

use futures_util::stream::BoxStream;
use std::sync::Arc;
use unamesh_proto::table::Snapshot;

pub use standin::*;

/// What the gateway asks of the mesh. The gateway routes nothing itself.
pub trait Generate: Send + Sync + 'static {
    /// Starts a request. The stream ends after exactly one [`Event::Done`] or
    /// [`Event::Failed`]; dropping it cancels the work.
    fn generate(&self, request: Request) -> BoxStream<'static, Event>;

    /// The peer table now.
    fn peers(&self) -> Arc<Snapshot>;

    /// Who would answer, and why.
    fn why(&self, model: &str, prompt_tokens: u32) -> Ranking;
}

/// Shapes of the contract until `unamesh_client::client` has them.
mod standin {
    #![allow(missing_docs)]
    use std::time::Duration;
    use unamesh_proto::NodeId;
    use unamesh_proto::wire::{FinishReason, InputKind, Phase, Sampling, Usage};

    #[derive(Clone, Debug, PartialEq)]
    pub struct Request {
        pub model: String,
        pub kind: InputKind,
        pub input: String,
        pub sampling: Sampling,
        pub extra: String,
        pub session: u64,
        pub prompt_tokens: u32,
        pub spliceable: bool,
    }
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PeerRef {
        pub node: NodeId,
        pub name: String,
    }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Seam {
        Exact,
        Continued,
    }
    #[derive(Clone, Debug)]
    pub enum Event {
        Started {
            peer: PeerRef,
            why: String,
        },
        Progress {
            phase: Phase,
            done: u32,
            total: u32,
        },
        Token {
            index: u32,
            text: String,
            tokens: u32,
            extra: String,
        },
        PeerChanged {
            from: PeerRef,
            to: PeerRef,
            seam: Seam,
            gap: Duration,
            backup_ttft: Duration,
            reason: String,
        },
        Done {
            finish: FinishReason,
            usage: Usage,
        },
        Failed(ClientError),
    }
    #[derive(Clone, Debug, thiserror::Error)]
    pub enum ClientError {
        #[error("no peer serves {model}")]
        NoPeer {
            model: String,
            near: Vec<(String, Vec<String>)>,
        },
        #[error("unknown model {model}")]
        UnknownModel {
            model: String,
            near: Vec<(String, Vec<String>)>,
        },
        #[error("busy")]
        Busy { retry_after: Duration },
        #[error("{message}")]
        Invalid {
            field: Option<String>,
            message: String,
        },
        #[error("{message}")]
        ContextExceeded { message: String },
        #[error("interrupted: {reason}")]
        Interrupted {
            delivered: String,
            tokens: u32,
            reason: String,
        },
        #[error("incomplete: {reason}")]
        Incomplete { delivered: String, reason: String },
        #[error("cancelled")]
        Cancelled,
        #[error("not paired")]
        NotPaired,
        #[error("offline")]
        Offline,
    }
    #[derive(Clone, Debug, Default)]
    pub struct Ranking {
        pub ranked: Vec<Candidate>,
        pub rejected: Vec<Rejected>,
    }
    #[derive(Clone, Debug)]
    pub struct Candidate {
        pub node: NodeId,
        pub engine: u16,
        pub model: String,
        pub digest: String,
        pub token_ids: bool,
        pub cost: Cost,
        pub expected_ttft: Duration,
        pub expected_itl: Duration,
        pub draining: bool,
        pub reason: String,
    }
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Cost {
        pub rtt: Duration,
        pub queue: Duration,
        pub load: Duration,
        pub ttft: Duration,
    }
    impl Cost {
        pub fn total(&self) -> Duration {
            self.rtt + self.queue + self.load + self.ttft
        }
    }
    pub fn near_names(_: &unamesh_proto::table::Snapshot, _: &str) -> Vec<(String, Vec<String>)> {
        Vec::new()
    }
    #[derive(Clone, Debug)]
    pub struct Rejected {
        pub node: NodeId,
        pub name: String,
        pub reason: String,
    }
}
