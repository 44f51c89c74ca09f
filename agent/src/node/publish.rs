//! What this node says of itself, and when.
//!
//! One task collects it ([`collect`]) whenever a source changed: engines and
//! models, their load, the machine, the addresses, the node's own state. If it differs from
//! what was said last, an advert goes out: the first at once, further ones at most every
//! [`ADVERT_DEBOUNCE`]. What others must not learn late (the state, a model that came or
//! went, an engine's health) also goes directly to every peer; load and figures go by gossip
//! alone.
//!
//! Nothing changed: the advert is repeated, since a message may have been lost. After
//! something weighty the first repeat comes after [`ADVERT_EVERY`], each further one after
//! twice the time, up to [`ADVERT_EVERY_MAX`]: liveness comes from probes, and an idle home
//! stays quiet.

use super::addrs;
use super::findings::{Finding, Findings};
use super::life::Life;
use super::links::Links;
use super::presence::{Draining, Phase};
use super::table::TableHandle;
use crate::engine::registry::Registry;
use crate::serve::Service;
use crate::swarm::Swarm;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use unamesh_client::clock;
use unamesh_client::identity::Credentials;
use unamesh_proto::advert::{shrink, sign};
use unamesh_proto::timeouts::{ADVERT_DEBOUNCE, ADVERT_EVERY, ADVERT_EVERY_MAX};
use unamesh_proto::wire::codec;
use unamesh_proto::wire::{Addr, Advert, DecodeError, Hardware, NodeState, SignedAdvert};

/// How often to look whether the machine's addresses have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A node with a twin claims its place at most this often, so that two do not flap.
const CLAIM_EVERY: Duration = Duration::from_secs(5);

/// What does not change while the agent runs.
pub struct Identity {
    /// Key, certificate, role.
    pub credentials: Arc<Credentials>,
    /// This start.
    pub life: Arc<Life>,
    /// For people.
    pub name: String,
    /// Where the data plane is bound.
    pub listen: SocketAddr,
    /// Where others reach it, if not at this machine's own addresses.
    pub advertise: Vec<SocketAddr>,
}

/// What an advert is made of.
pub struct Sources {
    /// Engines and models.
    pub registry: Arc<Registry>,
    /// Their load.
    pub service: Arc<Service>,
    /// The machine, as last sampled.
    pub hardware: watch::Receiver<Hardware>,
    /// The node's own state.
    pub phase: watch::Receiver<Phase>,
    /// The gossip port; 0 = no gossip.
    pub swarm_port: u16,
}

/// Makes, signs and remembers this node's word.
pub struct Publisher {
    identity: Arc<Identity>,
    sources: Sources,
    own: watch::Sender<Arc<SignedAdvert>>,
    /// The state of the last word, once every peer has heard it or had the time to.
    said: watch::Sender<NodeState>,
    last: Advert,
    seq: u64,
    findings: Findings,
}

/// Where adverts go. Set once the parts exist that need the publisher's first word.
pub struct Outlets {
    /// This node's own table.
    pub table: TableHandle,
    /// Peers, directly.
    pub links: Arc<Links>,
    /// The mesh.
    pub swarm: Option<Swarm>,
}

impl Publisher {
    /// A publisher with its first word said (to nobody yet), and where to read it.
    ///
    /// # Errors
    /// The advert cannot be encoded, which only a bug can cause.
    pub fn new(
        identity: Arc<Identity>,
        sources: Sources,
        findings: Findings,
    ) -> Result<(Publisher, watch::Receiver<Arc<SignedAdvert>>), DecodeError> {
        let last = collect(&identity, &sources);
        let certificate = identity.credentials.certificate.clone();
        let signed = sign(&last, certificate, |bytes| {
            identity.credentials.key.sign(bytes)
        })?;
        let (own, words) = watch::channel(Arc::new(signed));
        Ok((
            Publisher {
                identity,
                sources,
                own,
                said: watch::Sender::new(last.state),
                last,
                seq: 0,
                findings,
            },
            words,
        ))
    }

    /// The state that every peer has heard of, or had the time to.
    pub fn said(&self) -> watch::Receiver<NodeState> {
        self.said.subscribe()
    }

    /// Runs until `stop`; then says the last word ([`NodeState::Left`]) to everybody and
    /// returns when it was heard.
    pub async fn run(mut self, outlets: Outlets, stop: CancellationToken) {
        self.say(&outlets, self.last.clone(), true);
        let mut catalog = self.sources.registry.changes();
        let mut load = self.sources.service.load_changes();
        let mut hardware = self.sources.hardware.clone();
        let mut phase = self.sources.phase.clone();
        let mut epoch = self.identity.life.epochs();
        // The first change (the engines answered) goes out at once.
        let mut said_at = Instant::now() - ADVERT_DEBOUNCE;
        let mut repeat = ADVERT_EVERY;
        let mut claimed = Instant::now();
        loop {
            let urgent = tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = phase.changed() => true,
                Ok(()) = epoch.changed() => true,
                Ok(()) = catalog.changed() => false,
                Ok(()) = load.changed() => false,
                Ok(()) = hardware.changed() => false,
                // Nothing tells when a cable is pulled or a Wi-Fi joined: look.
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            if !urgent {
                // Also lets a change that comes with another one (load and catalog) join it.
                tokio::select! {
                    () = stop.cancelled() => break,
                    Ok(()) = phase.changed() => {}
                    () = tokio::time::sleep_until(said_at + ADVERT_DEBOUNCE) => {}
                }
            }
            if phase.borrow_and_update().state == NodeState::Left {
                // The machine sleeps. Nothing more of this epoch: it is buried.
                if self.last.state != NodeState::Left {
                    self.leave(&outlets).await;
                }
                continue;
            }
            self.claim_if_due(&mut claimed);
            let word = collect(&self.identity, &self.sources);
            let changed = !same(&word, &self.last);
            let due = said_at.elapsed() >= repeat;
            if changed || due {
                let direct = weighty(&word, &self.last);
                repeat = match (changed, direct) {
                    (true, true) => ADVERT_EVERY,
                    // Figures: a lost one is made good by the next.
                    (true, false) => ADVERT_EVERY_MAX,
                    (false, _) => (repeat * 2).min(ADVERT_EVERY_MAX),
                };
                self.say(&outlets, word, direct);
                said_at = Instant::now();
            }
        }
        self.leave(&outlets).await;
    }

    /// Begins a new epoch if a twin is heard in our place.
    fn claim_if_due(&self, claimed: &mut Instant) {
        let life = &self.identity.life;
        if life.is_superseded() && claimed.elapsed() >= CLAIM_EVERY {
            life.renew(clock::wall());
            *claimed = Instant::now();
            info!(epoch = life.epoch(), "a new epoch");
        }
    }

    async fn leave(&mut self, outlets: &Outlets) {
        let mut word = self.last.clone();
        (word.state, word.drain_ms) = (NodeState::Left, 0);
        // Nothing of it matters any more, and less fits one packet.
        word.engines.clear();
        word.models.clear();
        word.voices.clear();
        self.say(outlets, word, false);
        let last = Arc::clone(&self.own.borrow());
        outlets.links.insist(&last).await;
        self.said.send_replace(NodeState::Left);
    }

    fn say(&mut self, outlets: &Outlets, mut word: Advert, direct: bool) {
        self.seq += 1;
        (word.seq, word.wall_ms) = (self.seq, clock::wall().as_millis());
        let certificate = &self.identity.credentials.certificate;
        let dropped = shrink(&mut word, certificate.len());
        if dropped > 0 {
            self.findings.raise(
                Finding::AdvertCut,
                format!(
                    "this node has more models and voices than an advert holds: {dropped} are \
                     not offered to the mesh. Remove some from its engines"
                ),
            );
        }
        let key = &self.identity.credentials.key;
        let signed = match sign(&word, certificate.clone(), |bytes| key.sign(bytes)) {
            Ok(signed) => signed,
            Err(error) => {
                warn!(%error, "the advert could not be made; the last one stands");
                return;
            }
        };
        let left = word.state == NodeState::Left;
        self.last = word;
        self.own.send_replace(Arc::new(signed.clone()));
        if let Some(swarm) = &outlets.swarm
            && let Ok(bytes) = codec::to_vec(&signed)
        {
            swarm.publish(bytes);
        }
        debug!(seq = self.seq, state = %self.last.state, direct, "advert");
        if !left {
            outlets.table.publish(self.last.clone(), signed);
        }
        match self.last.state {
            // Requests that are sent here from now on are sent in vain.
            NodeState::Draining if direct => outlets.links.insist_apart(),
            NodeState::Left => return,
            _ if direct => outlets.links.push(),
            _ => {}
        }
        self.said.send_replace(self.last.state);
    }
}

/// The node's word as of now; sequence number and clock are filled in when it is said.
fn collect(identity: &Identity, sources: &Sources) -> Advert {
    let catalog = sources.registry.catalog();
    let mut engines = catalog.engines.clone();
    for (engine, load) in engines.iter_mut().zip(sources.service.load()) {
        (engine.busy, engine.queue, engine.slots) = (load.busy, load.queue, load.slots);
    }
    let phase = *sources.phase.borrow();
    let left = phase.drain.as_ref().and_then(Draining::left);
    Advert {
        node: identity.life.node,
        name: identity.name.clone(),
        version: version().to_owned(),
        epoch: identity.life.epoch(),
        seq: 0,
        wall_ms: clock::wall().as_millis(),
        state: phase.state,
        drain_ms: left.map_or(0, millis),
        role: identity.credentials.role,
        addrs: own_addrs(identity),
        swarm_port: sources.swarm_port,
        hardware: sources.hardware.borrow().clone(),
        engines,
        models: catalog.models.clone(),
        voices: catalog.voices.clone(),
    }
}

/// The program's version, as adverts carry it.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn own_addrs(identity: &Identity) -> Vec<Addr> {
    if identity.advertise.is_empty() {
        addrs::adverts(identity.listen.ip(), identity.listen.port())
    } else {
        identity.advertise.iter().copied().map(Addr::new).collect()
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Whether two words say the same but for their number, their clock and what only ages.
fn same(a: &Advert, b: &Advert) -> bool {
    let plain = |advert: &Advert| {
        let mut plain = advert.clone();
        (plain.seq, plain.wall_ms, plain.drain_ms) = (0, 0, 0);
        plain.models.iter_mut().for_each(|m| m.stats.age_s = 0);
        plain
    };
    plain(a) == plain(b)
}

/// Whether the difference is one that must not reach others late.
fn weighty(a: &Advert, b: &Advert) -> bool {
    type Weight<'a> = (u64, NodeState, &'a [Addr], u16);
    fn head(advert: &Advert) -> Weight<'_> {
        (advert.epoch, advert.state, &advert.addrs, advert.swarm_port)
    }
    let engines = |a: &Advert| {
        a.engines
            .iter()
            .map(|e| (e.name.clone(), e.health))
            .collect::<Vec<_>>()
    };
    let models = |a: &Advert| {
        a.models
            .iter()
            .map(|m| (m.engine, m.name.clone(), m.residency))
            .collect::<Vec<_>>()
    };
    head(a) != head(b) || engines(a) != engines(b) || models(a) != models(b)
}
