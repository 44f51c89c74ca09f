//! A mesh without a network: serving agents in this process, and clients that call them
//! directly. What is between the session machine and an engine is all there, and nothing else.

use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::engine::Engine;
use unamesh_agent::engine::registry::Registry;
use unamesh_agent::gateway::request::{Api, parse};
use unamesh_agent::serve::{ServeConfig, Service};
use unamesh_agent::state::SpeedStore;
use unamesh_client::client::{ClientError, Event, MeshClient, Request};
use unamesh_client::clock;
use unamesh_client::transport::{BoxFuture, FrameStream, LinkError, Open, Transport};
use unamesh_proto::NodeId;
use unamesh_proto::session::Seam;
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{
    Addr, Advert, FinishReason, Hardware, NodeState, PathKind, Role, SignedAdvert, Usage,
};

/// An engine is described within this.
const DESCRIBED: Duration = Duration::from_secs(20);
/// The second peer and all others look so far away that the first one is chosen.
const FAR: Duration = Duration::from_secs(5);

/// A peer for each engine, the first of which answers while it can.
pub struct Direct {
    table: watch::Sender<Arc<Snapshot>>,
    services: Services,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Services(Arc<[Arc<Service>]>);

impl Transport for Services {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let service = Arc::clone(&self.0[usize::from(node.0[0])]);
        Box::pin(async move {
            match open {
                Open::Generate(request) => service.open_local(request),
                _ => Err(LinkError::Lost("nothing is lost here".to_owned())),
            }
        })
    }

    fn warm(&self, _: &[NodeId]) {}
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Direct {
    /// A peer in front of each of `engines`.
    pub async fn start(engines: Vec<Arc<dyn Engine>>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (mut services, mut peers) = (Vec::new(), Vec::new());
        for (at, engine) in (0..).zip(engines) {
            let speeds = SpeedStore::in_memory();
            let (engines, stop) = (vec![engine], stop.clone());
            let registry = Registry::start(engines, false, speeds, tasks.clone(), stop.clone());
            let mut catalog = registry.changes();
            let known = catalog.wait_for(|c| !c.models.is_empty());
            let known = tokio::time::timeout(DESCRIBED, known).await;
            known.expect("the engine is described").unwrap();
            peers.push(peer(at, &registry));
            let config = ServeConfig::default();
            services.push(Service::new(registry, config, tasks.clone(), stop));
        }
        let table = Snapshot {
            version: 1,
            peers,
            ..Snapshot::default()
        };
        Direct {
            table: watch::Sender::new(Arc::new(table)),
            services: Services(services.into()),
            stop,
        }
    }

    /// Asks as a client that has never failed before.
    pub async fn ask(&self, request: Request) -> Got {
        let transport = Arc::new(self.services.clone());
        let client = MeshClient::over(self.table.subscribe(), transport);
        let mut events = client.generate(request);
        let mut got = Got::default();
        while let Some(event) = events.next().await {
            got.take(event);
        }
        got
    }
}

/// A chat request, as the gateway reads an OpenAI body.
///
/// # Panics
/// If the body is wrong.
#[must_use]
pub fn chat(body: &serde_json::Value) -> Request {
    parse(Api::Chat, body.to_string().as_bytes())
        .unwrap()
        .request
}

/// An answer.
#[derive(Debug, Default)]
pub struct Got {
    /// Its pieces, each with its other fields.
    pub pieces: Vec<(String, String)>,
    /// How often it changed machine, and how well the parts fit.
    pub seams: Vec<Seam>,
    /// Its end.
    pub end: Option<Result<(FinishReason, Usage), ClientError>>,
}

impl Got {
    fn take(&mut self, event: Event) {
        match event {
            Event::Token {
                index, text, extra, ..
            } => {
                assert_eq!(index as usize, self.pieces.len(), "in order, none twice");
                self.pieces.push((text, extra));
            }
            Event::PeerChanged { seam, .. } => self.seams.push(seam),
            Event::Done { finish, usage } => self.end = Some(Ok((finish, usage))),
            Event::Failed(error) => self.end = Some(Err(error)),
            Event::Started { .. } | Event::Progress { .. } => {}
        }
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> String {
        self.pieces.iter().map(|(text, _)| text.as_str()).collect()
    }

    /// The end of a whole answer.
    ///
    /// # Panics
    /// If it broke off.
    #[must_use]
    pub fn done(&self) -> (FinishReason, Usage) {
        match &self.end {
            Some(Ok(end)) => *end,
            other => panic!("{other:?} after {:?}", self.text()),
        }
    }
}

fn peer(at: u8, registry: &Registry) -> Arc<Peer> {
    let catalog = registry.catalog();
    let mut node = NodeId([9; 32]);
    node.0[0] = at;
    let addr = ([127, 0, 0, 1], 1).into();
    let advert = Advert {
        node,
        name: format!("peer{at}"),
        version: "1".to_owned(),
        epoch: 1,
        seq: 1,
        wall_ms: clock::wall().as_millis(),
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: vec![Addr::new(addr)],
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: catalog.engines.clone(),
        models: catalog.models.clone(),
        voices: Vec::new(),
    };
    let now = clock::mono();
    let path = Path {
        addr,
        kind: PathKind::Loopback,
        rtt: Some(FAR * u32::from(at)),
        ok_at: Some(now),
    };
    let signed = SignedAdvert {
        certificate: Vec::new(),
        payload: Vec::new(),
        signature: [0; 64],
    };
    Arc::new(Peer {
        advert: Arc::new(advert),
        signed: Arc::new(signed),
        liveness: Liveness::Alive,
        paths: vec![path],
        heard: now,
    })
}
