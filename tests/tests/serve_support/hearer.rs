//! An agent that hears, with one engine double, and the ways to it.

use super::mouth::Mouth;
use super::peers::Client;
use super::{Mesh, PATIENCE, Server};
use std::sync::Arc;
use tokio::time::timeout;
use unamesh_agent::engine::Engine;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::transport::{LinkError, Transport};
use unamesh_proto::wire::{HearFrame, HearRequest, Role, WireError};
use unamesh_tests::doubles::EarDouble;
use unamesh_tests::doubles::ear_double::EarScript;
use unamesh_tests::impair::Impairment;

/// An agent with one engine, and the way to it.
pub struct Home {
    pub server: Server,
    pub ear: EarDouble,
    pub mesh: Mesh,
}

impl Home {
    pub async fn new(script: EarScript) -> Self {
        let ear = EarDouble::new("ear", script);
        let mesh = Mesh::new();
        let engines = vec![Arc::new(ear.clone()) as Arc<dyn Engine>];
        let server = Server::with(mesh.member(Role::Agent), engines, ServeConfig::default()).await;
        Home { server, ear, mesh }
    }

    /// In process.
    pub fn local(&self, request: HearRequest) -> Mouth {
        let utterance = request.utterance;
        let link = self.server.service.hear_local(request);
        Mouth::new(link.unwrap_or_else(|e| panic!("{e}")), utterance)
    }

    pub fn refused(&self, request: HearRequest) -> WireError {
        match self.server.service.hear_local(request) {
            Err(LinkError::Refused(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it was taken"),
        }
    }

    pub async fn client(&self, impairment: Impairment, seed: u64) -> Client {
        Client::new(&self.mesh, &self.server, impairment, seed).await
    }

    pub async fn open(&self, client: &Client, request: HearRequest) -> Mouth {
        let utterance = request.utterance;
        let opened = timeout(PATIENCE, client.transport.hear(self.server.node, request));
        let link = opened.await.expect("opens in time");
        Mouth::new(link.unwrap_or_else(|e| panic!("{e}")), utterance)
    }

    pub async fn idle(&self) {
        let mut active = self.server.service.active_changes();
        let idle = active.wait_for(|active| *active == 0);
        timeout(PATIENCE, idle).await.expect("idle").unwrap();
        self.ear.until(|seen| seen.running == 0).await;
    }
}

/// The names of what was told.
pub fn told(mouth: &Mouth) -> Vec<String> {
    let name = |frame: &HearFrame| match frame {
        HearFrame::Accepted(_) => "accepted".to_owned(),
        HearFrame::Partial(_) => "partial".to_owned(),
        HearFrame::Began(_) => "began".to_owned(),
        HearFrame::Silence(_) => "silence".to_owned(),
        HearFrame::Missing(_) => "missing".to_owned(),
        HearFrame::Final(_) => "final".to_owned(),
        HearFrame::Draining(_) => "draining".to_owned(),
        HearFrame::Error(error) => format!("{}", error.code),
        HearFrame::Progress(_) => "progress".to_owned(),
    };
    mouth.heard.iter().map(|(_, frame)| name(frame)).collect()
}

pub fn silence(frame: &HearFrame) -> bool {
    matches!(frame, HearFrame::Silence(_))
}

pub fn partial(frame: &HearFrame) -> bool {
    matches!(frame, HearFrame::Partial(_))
}
