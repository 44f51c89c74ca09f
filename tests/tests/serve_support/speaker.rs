//! An agent that speaks: one engine double, or one behind HTTP, and a client's connection.

use super::{Caller, Mesh, Server};
use axum::Router;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unamesh_agent::engine::{Engine, EngineSpec, adapter};
use unamesh_agent::serve::ServeConfig;
use unamesh_proto::wire::{EngineKind, Role};
use unamesh_tests::doubles::{VoiceDouble, VoiceScript};

/// Four pieces and a rest without words.
pub const TEXT: &str = "Well then, dear friend, here is the first of it. \
    This is the second sentence, and it is somewhat longer than the others are. \
    The third one has 3.14 in it, as Dr. Who said. And that was all! 🎉";
/// Nothing but progress for so long: everything that may come has come.
pub const QUIET: Duration = Duration::from_millis(300);

pub async fn start(double: &VoiceDouble, config: ServeConfig) -> (Mesh, Server, quinn::Connection) {
    let mesh = Mesh::new();
    let engines: Vec<Arc<dyn Engine>> = vec![Arc::new(double.clone())];
    let server = Server::with(mesh.member(Role::Agent), engines, config).await;
    let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
    (mesh, server, connection)
}

pub async fn serve(script: VoiceScript) -> (Mesh, VoiceDouble, Server, quinn::Connection) {
    let double = VoiceDouble::new("e", script);
    let (mesh, server, connection) = start(&double, ServeConfig::default()).await;
    (mesh, double, server, connection)
}

/// An engine that serves `router`.
pub async fn behind(router: Router) -> (Arc<dyn Engine>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(axum::serve(listener, router).await) });
    let engine = adapter(&EngineSpec {
        name: "e".to_owned(),
        kind: Some(EngineKind::OpenAiSpeech),
        url: format!("http://{addr}").parse().unwrap(),
        slots: None,
        api_key: None,
    });
    (engine.unwrap(), tasks)
}
