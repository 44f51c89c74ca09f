//! Where answers come from: the mesh client, or a scripted double in tests.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use unamesh_client::client::MeshClient;
use unamesh_proto::table::Snapshot;

pub use unamesh_client::client::{ClientError, Event, PeerRef, Request};
pub use unamesh_proto::rank::{Candidate, Ranking, near_names};
pub use unamesh_proto::session::Seam;

/// What the gateway asks of the mesh. The gateway routes nothing itself.
pub trait Generate: Send + Sync + 'static {
    /// Starts a request. The stream ends after exactly one [`Event::Done`] or
    /// [`Event::Failed`]; dropping it cancels the work.
    fn generate(&self, request: Request) -> BoxStream<'static, Event>;

    /// The same, after an answer of `tokens` tokens that broke off unseen and unsplicable; for
    /// the `again`th time.
    fn generate_again(
        &self,
        request: Request,
        tokens: u32,
        again: u32,
    ) -> BoxStream<'static, Event>;

    /// The peer table now.
    fn peers(&self) -> Arc<Snapshot>;

    /// Who would answer, and why.
    fn why(&self, model: &str, prompt_tokens: u32) -> Ranking;
}

impl Generate for MeshClient {
    fn generate(&self, request: Request) -> BoxStream<'static, Event> {
        MeshClient::generate(self, request).boxed()
    }

    fn generate_again(
        &self,
        request: Request,
        tokens: u32,
        again: u32,
    ) -> BoxStream<'static, Event> {
        MeshClient::generate_again(self, request, tokens, again).boxed()
    }

    fn peers(&self) -> Arc<Snapshot> {
        MeshClient::peers(self)
    }

    fn why(&self, model: &str, prompt_tokens: u32) -> Ranking {
        MeshClient::why(self, model, prompt_tokens)
    }
}
