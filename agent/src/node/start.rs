//! Starting an agent: open what can fail, then connect the parts.

use super::control::NodeControl;
use super::discovery::{Discovery, Sightings};
use super::events::Events;
use super::findings::{Finding, Findings};
use super::hooks::NodeHooks;
use super::links::{Links, Met};
use super::local::AgentTransport;
use super::publish::{Identity, Outlets, Phase, Publisher, Sources, version};
use super::table::{TableHandle, TableTask, table};
use super::verify::{Life, Twins, Verifier};
use super::{Agent, addrs};
use crate::ca::{CA_DIR, Ca, CaError, Inviter, Welcome};
use crate::capacity::{self, Sampler};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::configured::{self, EntryError};
use crate::engine::registry::Registry;
use crate::gateway::{self, GatewayState};
use crate::serve::{ServeConfig, Service};
use crate::state::{AdminToken, AgentInfo, LastGood, SpeedStore, StateDir, StateError, StateLock};
use crate::swarm::{Swarm, SwarmError};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use unamesh_client::client::MeshClient;
use unamesh_client::clock;
use unamesh_client::endpoint::{EndpointError, bind};
use unamesh_client::identity::{Credentials, IdentityError};
use unamesh_client::mdns::{Announcement, Announcer, Hint};
use unamesh_client::pool::{PathReport, Pool, QuicTransport};
use unamesh_client::watch::load_seeds;
use unamesh_proto::NodeId;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::{Advert, DecodeError, Hardware, Role, SignedAdvert};

/// Reports of the pool that may wait for the table; a lost one is repeated by the next probe.
const REPORTS: usize = 1024;
/// Hints of multicast DNS that may wait.
const HINTS: usize = 256;
/// How often twins are reported.
const TWIN_PAUSE: Duration = Duration::from_secs(30);
/// Addresses of the inviter, and of others, that a new device is told as seeds.
const SEEDS_OF_ONE: usize = 3;
/// See [`SEEDS_OF_ONE`].
const SEEDS_OF_OTHERS: usize = 5;
/// The variable that makes TLS libraries write their session keys to a file. libp2p honours
/// it, and it cannot be unset safely in a running process.
const KEY_LOG: &str = "SSLKEYLOGFILE";

/// Why the agent did not start. Nothing runs; each message says the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory is in use or unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// This node is no member of a mesh yet, or its papers are damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its certificate lets it use the mesh, not serve.
    #[error(
        "this node joined as a {0}: it can use the mesh but not run an agent. Invite it again \
         with `unamesh invite --role agent`"
    )]
    Role(Role),
    /// The gateway's port cannot be opened.
    #[error(
        "cannot listen on {addr} (TCP, the gateway): {source}. Is another agent running \
         (`unamesh status`)? Or set [gateway] listen to another port"
    )]
    Gateway {
        /// As configured.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data plane's port cannot be opened.
    #[error("{0} (UDP, the data plane). Set [mesh] listen to another port")]
    Endpoint(#[from] EndpointError),
    /// The gossip port cannot be opened.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// An engine's entry cannot work.
    #[error(transparent)]
    Engine(#[from] EntryError),
    /// The CA beside this node's papers is damaged.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS keys would be written to a file.
    #[error(
        "SSLKEYLOGFILE is set: the keys of every connection would be written to that file. \
         Unset it and start again (env -u SSLKEYLOGFILE unamesh up)"
    )]
    KeyLog,
    /// The advert could not be made: a bug.
    #[error("the first advert: {0}")]
    Advert(#[from] DecodeError),
}

/// What the pool and the swarm tell the table.
type Feeds = (
    mpsc::Receiver<PathReport>,
    mpsc::Receiver<(Advert, SignedAdvert)>,
);

/// What must be open before anything runs.
struct Opened {
    lock: Option<StateLock>,
    credentials: Arc<Credentials>,
    ca: Option<Ca>,
    endpoint: quinn::Endpoint,
    listen: SocketAddr,
    gateway: TcpListener,
    gateway_addr: SocketAddr,
    token: AdminToken,
    life: Life,
    findings: Findings,
}

/// Starts an agent: see [`Agent::start_with`].
pub(super) async fn start(
    config: Config,
    state: StateDir,
    mut engines: Vec<Arc<dyn Engine>>,
) -> Result<Agent, StartError> {
    let started = Instant::now();
    let opened = open(&config, &state).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // Whatever was started ends if a later step fails.
    let guard = stop.clone().drop_guard();
    let variable = |name: &str| std::env::var(name).ok();
    engines.extend(configured::engines(
        &config.engine,
        variable,
        &tasks,
        &stop,
    )?);
    let speeds = SpeedStore::load(&state);
    tasks.spawn(Arc::clone(&speeds).keep_saved(stop.clone()));
    let registry = Registry::start(
        engines,
        config.engines.detect,
        speeds,
        tasks.clone(),
        stop.clone(),
    );
    let limits = ServeConfig {
        queue: config.serve.queue,
        grace: config.serve.grace(),
        ..ServeConfig::default()
    };
    let service = Service::new(Arc::clone(&registry), limits, tasks.clone(), stop.clone());
    let hardware = sample_hardware(&opened.findings, &tasks, &stop);
    let wiring = Wiring {
        config,
        state,
        registry,
        service,
        hardware,
        tasks,
        stop,
        started,
    };
    let agent = wiring.connect(opened)?;
    drop(guard.disarm());
    Ok(agent)
}

async fn open(config: &Config, state: &StateDir) -> Result<Opened, StartError> {
    if std::env::var_os(KEY_LOG).is_some() {
        return Err(StartError::KeyLog);
    }
    let lock = state.lock()?;
    let credentials = Arc::new(Credentials::load(state.path())?);
    if !credentials.role.is_agent() {
        return Err(StartError::Role(credentials.role));
    }
    let ca = match Ca::load(&state.path().join(CA_DIR)) {
        Ok(ca) => Some(ca),
        Err(CaError::Absent(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let addr = config.gateway.listen;
    let failed = |source| StartError::Gateway { addr, source };
    let gateway = TcpListener::bind(addr).await.map_err(failed)?;
    let gateway_addr = gateway.local_addr().map_err(failed)?;
    let endpoint = bind(&credentials, config.mesh.listen)?;
    let listen = endpoint
        .local_addr()
        .map_err(|source| EndpointError::Socket {
            addr: config.mesh.listen,
            source,
        })?;
    let findings = Findings::default();
    let now = clock::wall();
    let (epoch, unwritten) = state.next_epoch(now);
    let (token, unwritten_token) = AdminToken::load_or_create(state)?;
    if let Some(error) = unwritten.or(unwritten_token) {
        findings.raise(Finding::State, error.to_string());
    }
    let life = Life {
        node: credentials.node(),
        epoch,
        started: now,
    };
    Ok(Opened {
        lock,
        credentials,
        ca,
        endpoint,
        listen,
        gateway,
        gateway_addr,
        token,
        life,
        findings,
    })
}

/// The parts that exist before the mesh does.
struct Wiring {
    config: Config,
    state: StateDir,
    registry: Arc<Registry>,
    service: Arc<Service>,
    hardware: watch::Receiver<Hardware>,
    tasks: TaskTracker,
    stop: CancellationToken,
    started: Instant,
}

/// The mesh side, once connected.
struct Mesh {
    identity: Arc<Identity>,
    table: TableHandle,
    pool: Arc<Pool>,
    links: Arc<Links>,
    verifier: Arc<Verifier>,
    own: watch::Receiver<Arc<SignedAdvert>>,
    met: Met,
    swarm: Swarm,
    events: Events,
    sightings: Arc<Sightings>,
    phase: watch::Sender<Phase>,
}

impl Wiring {
    fn connect(self, mut opened: Opened) -> Result<Agent, StartError> {
        let ca = opened.ca.take();
        let (mesh, publisher) = self.mesh(&opened)?;
        let leave = CancellationToken::new();
        let publishing = TaskTracker::new();
        let outlets = Outlets {
            table: mesh.table.clone(),
            links: Arc::clone(&mesh.links),
            swarm: Some(mesh.swarm.clone()),
        };
        publishing.spawn(publisher.run(outlets, leave.clone()));
        self.serve(&mesh, &opened);
        self.discover(&mesh, &opened, &leave);
        let transport = AgentTransport::new(
            opened.life.node,
            Arc::clone(&self.service),
            QuicTransport(Arc::clone(&mesh.pool)),
        );
        let client = MeshClient::over(mesh.table.snapshot(), Arc::new(transport));
        let control = self.control(&mesh, &opened, ca);
        self.open_gateway(&client, &control, opened.gateway, opened.token);
        self.tell_commands(&control);
        info!(
            node = %opened.life.node.short(), name = %mesh.identity.name,
            mesh = %opened.credentials.mesh_name, quic = %opened.listen,
            gateway = %opened.gateway_addr, "running"
        );
        Ok(Agent {
            node: opened.life.node,
            client,
            control,
            phase: mesh.phase,
            service: self.service,
            pool: mesh.pool,
            endpoint: opened.endpoint,
            gateway: opened.gateway_addr,
            state: self.state,
            _lock: opened.lock,
            leave,
            publisher: publishing,
            stop: self.stop,
            tasks: self.tasks,
        })
    }

    /// Table, pool, links, swarm, and the publisher's first word.
    fn mesh(&self, opened: &Opened) -> Result<(Mesh, Publisher), StartError> {
        let (me, credentials) = (opened.life.node, &opened.credentials);
        let (tasks, stop) = (&self.tasks, &self.stop);
        let events = Events::default();
        let (table, table_task) = table(me, events.clone());
        let (ca, findings) = (credentials.ca.clone(), opened.findings.clone());
        let (verifier, twins) =
            Verifier::new(ca.clone(), opened.life, table.snapshot(), findings.clone());
        let verifier = Arc::new(verifier);
        let judge = Arc::clone(&verifier);
        let (key, id, port) = (
            &credentials.key,
            &credentials.mesh,
            self.config.mesh.swarm_port,
        );
        let (swarm, gossip) = Swarm::start(key, id, port, judge, tasks, stop.clone())?;
        let (phase, phases) = watch::channel(Phase::UP);
        let identity = Arc::new(Identity {
            credentials: Arc::clone(credentials),
            life: opened.life,
            name: self.config.node_name(),
            listen: opened.listen,
        });
        let sources = Sources {
            registry: Arc::clone(&self.registry),
            service: Arc::clone(&self.service),
            hardware: self.hardware.clone(),
            phase: phases,
            swarm_port: swarm.port(),
        };
        let (publisher, own) = Publisher::new(Arc::clone(&identity), sources, findings)?;
        let (reports, heard) = mpsc::channel(REPORTS);
        let (endpoint, snapshots) = (opened.endpoint.clone(), table.snapshot());
        let papers = Arc::clone(credentials);
        let pool = Pool::new(
            endpoint,
            papers,
            snapshots,
            reports,
            tasks.clone(),
            stop.clone(),
        );
        pool.warm_all(true);
        let met = Met::default();
        let links = Links::new(
            (me, ca),
            Arc::clone(&pool),
            table.clone(),
            Arc::clone(&verifier),
            (own.clone(), met.clone()),
            tasks.clone(),
            stop.clone(),
        );
        self.run_table(table_task, (heard, gossip), &verifier, &links);
        tasks.spawn(follow_members(
            swarm.clone(),
            table.snapshot(),
            stop.clone(),
        ));
        tasks.spawn(report_twins(
            twins,
            Arc::clone(&links),
            events.clone(),
            stop.clone(),
        ));
        let sightings = Arc::default();
        let mesh = Mesh {
            identity,
            table,
            pool,
            links,
            verifier,
            own,
            met,
            swarm,
            events,
            sightings,
            phase,
        };
        Ok((mesh, publisher))
    }

    fn run_table(
        &self,
        task: TableTask,
        (reports, gossip): Feeds,
        verifier: &Arc<Verifier>,
        links: &Arc<Links>,
    ) {
        let (verifier, links) = (Arc::clone(verifier), Arc::clone(links));
        self.tasks
            .spawn(task.run(reports, gossip, verifier, links, self.stop.clone()));
    }

    fn serve(&self, mesh: &Mesh, opened: &Opened) {
        let hooks = Arc::new(NodeHooks {
            table: mesh.table.clone(),
            verifier: Arc::clone(&mesh.verifier),
            own: mesh.own.clone(),
            met: mesh.met.clone(),
            phase: mesh.phase.subscribe(),
        });
        let service = Arc::clone(&self.service);
        let (endpoint, ca) = (opened.endpoint.clone(), opened.credentials.ca.clone());
        self.tasks
            .spawn(service.serve_endpoint(endpoint, ca, hooks));
    }

    fn discover(&self, mesh: &Mesh, opened: &Opened, leave: &CancellationToken) {
        let (found, hints) = mpsc::channel(HINTS);
        if self.config.mesh.mdns {
            let announcement = Announcement {
                mesh: opened.credentials.mesh,
                node: opened.life.node,
                name: mesh.identity.name.clone(),
                role: opened.credentials.role,
                listen: opened.listen,
            };
            let findings = opened.findings.clone();
            self.tasks
                .spawn(speak_mdns(announcement, found, findings, leave.clone()));
        }
        // What the inviter named when this node joined: the way in where multicast is filtered.
        let mut seeds = self.config.mesh.seeds.clone();
        seeds.extend(
            load_seeds(self.state.path())
                .iter()
                .map(SocketAddr::to_string),
        );
        let discovery = Discovery::new(
            (opened.life.node, opened.listen),
            Arc::clone(&mesh.pool),
            Arc::clone(&mesh.links),
            mesh.table.clone(),
            LastGood::load(&self.state),
            Arc::clone(&mesh.sightings),
        );
        self.tasks
            .spawn(discovery.run(seeds, hints, self.stop.clone()));
    }

    fn control(&self, mesh: &Mesh, opened: &Opened, ca: Option<Ca>) -> Arc<NodeControl> {
        let welcome = Arc::new(MeshWelcome {
            me: opened.life.node,
            listen: opened.listen,
            snapshot: mesh.table.snapshot(),
        });
        let inviter = ca.map(|ca| {
            Inviter::new(
                ca,
                Arc::clone(&opened.credentials),
                welcome,
                self.config.mesh.join_port,
                self.tasks.clone(),
                self.stop.clone(),
            )
        });
        Arc::new(NodeControl {
            identity: Arc::clone(&mesh.identity),
            started: self.started,
            gateway: opened.gateway_addr,
            swarm_port: mesh.swarm.port(),
            table: mesh.table.clone(),
            pool: Arc::clone(&mesh.pool),
            verifier: Arc::clone(&mesh.verifier),
            registry: Arc::clone(&self.registry),
            service: Arc::clone(&self.service),
            events: mesh.events.clone(),
            findings: opened.findings.clone(),
            sightings: Arc::clone(&mesh.sightings),
            inviter,
            phase: mesh.phase.clone(),
        })
    }

    fn open_gateway(
        &self,
        client: &MeshClient,
        control: &Arc<NodeControl>,
        listener: TcpListener,
        token: AdminToken,
    ) {
        let gateway = GatewayState {
            source: Arc::new(client.clone()),
            control: Arc::clone(control) as Arc<dyn gateway::Control>,
            token,
            open: self.config.gateway.open,
            listen: control.gateway,
            stop: self.stop.clone(),
        };
        self.tasks.spawn(gateway::serve(listener, gateway));
    }

    /// Tells other commands of this machine where the agent is. Waits for the disk: in a task.
    fn tell_commands(&self, control: &NodeControl) {
        let info = AgentInfo {
            pid: std::process::id(),
            node: control.identity.life.node.to_string(),
            name: control.identity.name.clone(),
            version: version().to_owned(),
            gateway: control.gateway,
            quic: control.identity.listen,
            started_ms: control.identity.life.started.as_millis(),
        };
        let (state, findings) = (self.state.clone(), control.findings.clone());
        self.tasks.spawn_blocking(move || {
            if let Err(error) = info.write(&state) {
                let text = format!("other commands will not find this agent: {error}");
                findings.raise(Finding::State, text);
            }
        });
    }
}

/// Samples the machine in a thread of its own: a driver may take its time.
fn sample_hardware(
    findings: &Findings,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<Hardware> {
    let (publish, hardware) = watch::channel(Hardware::default());
    let (findings, stop) = (findings.clone(), stop.clone());
    tasks.spawn(async move {
        let mut sampler = None;
        loop {
            let sampling = tokio::task::spawn_blocking(move || {
                let mut sampler =
                    sampler.unwrap_or_else(|| Sampler::new(capacity::Sources::default()));
                let changed = sampler.sample();
                (sampler, changed)
            });
            let Ok((sampled, changed)) = sampling.await else {
                return;
            };
            if let Some(hardware) = changed {
                publish.send_replace(hardware);
            }
            match sampled.driver_failure() {
                Some(reason) => findings.raise(Finding::Gpu, reason),
                None => findings.clear(Finding::Gpu),
            }
            sampler = Some(sampled);
            let pause = tokio::time::sleep(capacity::SAMPLE_EVERY);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    });
    hardware
}

/// Announces this node and looks for others until `leave`, then takes the announcement back.
async fn speak_mdns(
    announcement: Announcement,
    hints: mpsc::Sender<Hint>,
    findings: Findings,
    leave: CancellationToken,
) {
    let spoken = Announcer::start(&announcement)
        .and_then(|announcer| announcer.browse(hints).map(|browser| (announcer, browser)));
    match spoken {
        Ok((announcer, _browser)) => {
            leave.cancelled().await;
            announcer.goodbye().await;
        }
        Err(error) => findings.raise(Finding::Mdns, error.to_string()),
    }
}

/// The gate of the swarm: whoever is in the table, whose entries all passed the
/// [`Verifier`]. Dialed at the addresses of the data plane, those that worked first.
async fn follow_members(
    swarm: Swarm,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) {
    loop {
        let members = members(&snapshots.borrow_and_update());
        swarm.set_members(members);
        match stop.run_until_cancelled(snapshots.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

fn members(snapshot: &Snapshot) -> BTreeMap<NodeId, Vec<SocketAddr>> {
    let others = snapshot
        .peers
        .iter()
        .filter(|p| Some(p.advert.node) != snapshot.me);
    let entries = others.map(|peer| {
        let port = peer.advert.swarm_port;
        let mut ips: Vec<IpAddr> = peer
            .paths
            .iter()
            .filter(|p| p.ok_at.is_some())
            .map(|p| p.addr.ip())
            .collect();
        // The order of paths changes with every probe; that is no reason to dial anew.
        ips.extend(peer.advert.addrs.iter().map(|a| a.socket().ip()));
        ips.sort_unstable();
        ips.dedup();
        let addrs = ips
            .into_iter()
            .filter(|_| port != 0)
            .map(|ip| SocketAddr::new(ip, port));
        (peer.advert.node, addrs.collect())
    });
    entries.collect()
}

/// Tells the owner, and the older one of two agents with one key. Once a [`TWIN_PAUSE`].
async fn report_twins(
    mut found: mpsc::Receiver<Twins>,
    links: Arc<Links>,
    events: Events,
    stop: CancellationToken,
) {
    while let Some(Some(twins)) = stop.run_until_cancelled(found.recv()).await {
        let (node, name) = (twins.older.node, &twins.older.name);
        warn!(node = %node.short(), %name, "two agents of the mesh run with one key");
        events.emit("twin_key", json!({ "node": node, "name": name }));
        links.warn_twin(&twins.older, twins.newer);
        if stop
            .run_until_cancelled(tokio::time::sleep(TWIN_PAUSE))
            .await
            .is_none()
        {
            return;
        }
        while found.try_recv().is_ok() {}
    }
}

/// What a device that joins is told.
struct MeshWelcome {
    me: NodeId,
    listen: SocketAddr,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Welcome for MeshWelcome {
    fn addresses(&self) -> Vec<IpAddr> {
        addrs::own(self.listen.ip())
    }

    fn seeds(&self) -> Vec<String> {
        let own = addrs::own(self.listen.ip()).into_iter();
        let mut seeds: Vec<String> = own
            .take(SEEDS_OF_ONE)
            .map(|ip| SocketAddr::new(ip, self.listen.port()).to_string())
            .collect();
        let snapshot = self.snapshot.borrow();
        let others = snapshot.peers.iter().filter(|p| p.advert.node != self.me);
        let best = others
            .filter_map(|p| p.paths.first())
            .map(|path| path.addr.to_string());
        seeds.extend(best.take(SEEDS_OF_OTHERS));
        seeds
    }
}
