//! A home of doubles: a peer table, and agents that speak and listen in this process.
//!
//! The voice is a function of the text's position: character `n` sounds like the samples from
//! `n * CHAR` on of one long sound, whoever speaks it. So whatever is lost, doubled or out of
//! place shows in a comparison with that sound. A transcript is a digest of all frames in order.
#![allow(dead_code, missing_docs)]

pub mod ears;
pub mod voices;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use unamesh_client::client::MeshClient;
use unamesh_client::clock;
use unamesh_client::transport::{
    BoxFuture, FrameStream, HearLink, LinkError, Open, SpeakLink, Transport,
};
use unamesh_proto::NodeId;
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{
    Advert, EngineAdvert, EngineKind, Hardware, Health, HearRequest, ModelAdvert, ModelKind,
    NodeState, PathKind, Residency, Role, SignedAdvert, SpeakRequest, Stats, VoiceAdvert,
};

/// How an agent behaves.
#[derive(Clone, Debug)]
pub struct Agent {
    pub voice: &'static str,
    /// From the request to the first sound, and from the end of an utterance to its transcript.
    pub first: Duration,
    /// Times faster than speech.
    pub speed: f64,
    /// Of the datagrams to it, one in so many is lost; 0 = none.
    pub loses: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            voice: "joe",
            first: Duration::from_millis(100),
            speed: 1000.0,
            loses: 0,
        }
    }
}

/// What befalls an agent.
#[derive(Default)]
pub struct Fate {
    /// It is silent for ever.
    frozen: AtomicBool,
    /// Its connections are lost, and there are no new ones.
    lost: AtomicBool,
    changed: Notify,
    /// When it was asked.
    asked: Mutex<Vec<Instant>>,
    /// When its first sound left.
    spoke: Mutex<Option<Instant>>,
    /// Streams that run there.
    running: Mutex<usize>,
}

impl Fate {
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    pub fn asked(&self) -> Vec<Instant> {
        self.asked.lock().unwrap().clone()
    }

    pub fn speaks(&self) {
        self.spoke.lock().unwrap().get_or_insert_with(Instant::now);
    }

    pub fn spoke(&self) -> Option<Instant> {
        *self.spoke.lock().unwrap()
    }

    pub fn running(&self) -> usize {
        *self.running.lock().unwrap()
    }
}

pub struct Doubles {
    pub agents: Vec<Agent>,
    pub fates: Vec<Arc<Fate>>,
}

impl Doubles {
    fn at(&self, node: NodeId) -> Result<(Agent, Arc<Fate>), LinkError> {
        let at = usize::from(node.0[0]) - 1;
        let (agent, fate) = (self.agents[at].clone(), self.fates[at].clone());
        fate.asked.lock().unwrap().push(Instant::now());
        let reason = "its connections are lost".to_owned();
        match fate.is_lost() {
            true => Err(LinkError::Unreachable { node, reason }),
            false => Ok((agent, fate)),
        }
    }
}

impl Transport for Doubles {
    fn open(&self, _: NodeId, _: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let error = LinkError::Lost("these speak and listen only".into());
        Box::pin(std::future::ready(Err(error)))
    }

    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        let opened = self.at(node).map(|(agent, fate)| {
            Box::new(voices::Link::new(agent, fate, request)) as Box<dyn SpeakLink>
        });
        Box::pin(std::future::ready(opened))
    }

    fn hear(
        &self,
        node: NodeId,
        request: HearRequest,
    ) -> BoxFuture<Result<Box<dyn HearLink>, LinkError>> {
        let opened = self.at(node).map(|(agent, fate)| {
            Box::new(ears::Link::new(agent, fate, request)) as Box<dyn HearLink>
        });
        Box::pin(std::future::ready(opened))
    }

    fn warm(&self, _: &[NodeId]) {}
}

/// A client among these agents, the first of which is asked first.
pub struct Home {
    pub client: MeshClient,
    pub fates: Vec<Arc<Fate>>,
    _table: watch::Sender<Arc<Snapshot>>,
}

impl Home {
    pub fn new(agents: &[Agent]) -> Home {
        let peers = (1u8..).zip(agents).map(|(n, agent)| peer(n, agent));
        let snapshot = Snapshot {
            version: 1,
            peers: peers.collect(),
            ..Snapshot::default()
        };
        let (table, seen) = watch::channel(Arc::new(snapshot));
        let fates: Vec<Arc<Fate>> = agents.iter().map(|_| Arc::default()).collect();
        let doubles = Doubles {
            agents: agents.to_vec(),
            fates: fates.clone(),
        };
        Home {
            client: MeshClient::over(seen, Arc::new(doubles)),
            fates,
            _table: table,
        }
    }
}

fn peer(n: u8, agent: &Agent) -> Arc<Peer> {
    let engine = |name: &str, kind| EngineAdvert {
        name: name.into(),
        kind,
        health: Health::Ok,
        slots: 4,
        busy: 0,
        queue: 0,
    };
    let model = |engine, name: &str, kind| ModelAdvert {
        engine,
        name: name.into(),
        digest: String::new(),
        family: String::new(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: false,
        stats: Stats {
            ttft_ms: agent.first.as_secs_f32() * 1000.0,
            itl_ms: 20.0,
            samples: 5,
            ..Stats::default()
        },
    };
    let advert = Advert {
        node: NodeId([n; 32]),
        name: format!("host{n}"),
        version: "1".into(),
        epoch: 1,
        seq: 1,
        wall_ms: clock::wall().as_millis(),
        state: NodeState::Up,
        drain_ms: 0,
        role: Role::Agent,
        addrs: Vec::new(),
        swarm_port: 0,
        hardware: Hardware::default(),
        engines: vec![
            engine("piper", EngineKind::Piper),
            engine("whisper", EngineKind::Whisper),
        ],
        models: vec![
            model(0, "piper", ModelKind::Tts),
            model(1, "whisper-1", ModelKind::Stt),
        ],
        voices: vec![VoiceAdvert {
            engine: 0,
            name: agent.voice.into(),
            language: "en-US".into(),
        }],
    };
    let path = Path {
        addr: ([127, 0, 0, 1], 1).into(),
        kind: PathKind::Loopback,
        rtt: Some(Duration::from_millis(u64::from(n) * 30)),
        ok_at: Some(clock::mono()),
    };
    Arc::new(Peer {
        advert: Arc::new(advert),
        signed: Arc::new(SignedAdvert {
            certificate: Vec::new(),
            payload: Vec::new(),
            signature: [0; 64],
        }),
        liveness: Liveness::Alive,
        paths: vec![path],
        heard: clock::mono(),
    })
}

/// Counts a running stream.
pub struct Running(Arc<Fate>);

impl Running {
    pub fn new(fate: &Arc<Fate>) -> Self {
        *fate.running.lock().unwrap() += 1;
        Running(fate.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap() -= 1;
    }
}

/// Until the agent's connections are lost.
pub async fn lost(fate: &Fate) {
    loop {
        let changed = fate.changed.notified();
        if fate.is_lost() {
            return;
        }
        changed.await;
    }
}
