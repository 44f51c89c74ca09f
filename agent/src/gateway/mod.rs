//! The local HTTP API: OpenAI's for applications, the mesh's own for the command line.
//!
//! The gateway is a client of the mesh like any other: it reads a request, hands it to the
//! mesh client, and writes the events that come back. It routes nothing and retries nothing;
//! a failover happens below it and shows up only as an SSE comment or a header.
//!
//! In the order of a request's way:
//! - [`server`]: connections; [`stall`]: their patience; [`guard`]: who may ask; [`takeover`]:
//!   those that become a WebSocket.
//! - [`openai`]: `/v1/...`; [`mesh`]: `/unamesh/v1/...`, which asks [`control`] and [`view`].
//!   [`voice`]: what it has of speech.
//! - [`json`], [`request`]: from a body to a mesh request, or an error that names the field;
//!   [`headers`]: what is said and asked beside it.
//! - [`source`]: where the answer comes from.
//! - [`sse`]: the streamed answer; [`collect`]: the whole one.
//! - [`error`]: the one table from what went wrong to what the caller is told.

pub mod collect;
pub mod control;
pub mod error;
pub mod guard;
pub mod headers;
pub mod json;
pub mod mesh;
pub mod openai;
pub mod request;
pub mod server;
pub mod source;
pub mod sse;
pub mod stall;
pub mod takeover;
pub mod view;
pub mod voice;

use crate::state::AdminToken;
use axum::Router;
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use unamesh_client::client::MeshClient;

pub use control::{Control, ControlError, Drain, DrillAsk, InviteOptions};
pub use server::serve;
pub use source::Generate;

/// What the gateway works with. Cheap to clone.
#[derive(Clone)]
pub struct GatewayState {
    /// Where answers come from: the mesh client.
    pub source: Arc<dyn Generate>,
    /// Where speech comes from and goes to: the mesh client, too.
    pub client: MeshClient,
    /// The agent around the gateway.
    pub control: Arc<dyn Control>,
    /// Opens the mesh API.
    pub token: AdminToken,
    /// `gateway.open`: callers from other machines need no token for the OpenAI endpoints.
    pub open: bool,
    /// Where it listens, as bound.
    pub listen: SocketAddr,
    /// Ends it.
    pub stop: CancellationToken,
}

/// All routes. [`serve`] checks each request with [`guard::check`] before it gets here.
pub fn router(state: GatewayState) -> Router {
    Router::new()
        .route("/", get(openai::root))
        .route("/health", get(openai::health))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completion))
        .nest("/unamesh/v1", mesh::routes())
        .fallback(openai::not_found)
        .method_not_allowed_fallback(openai::wrong_method)
        .with_state(state)
}
