//! Connecting the parts of an agent with each other.

use super::Agent;
use super::background::{MeshWelcome, follow_members, report_twins, speak_mdns, tell_engines};
use super::control::NodeControl;
use super::discovery::{Discovery, Sightings};
use super::events::{Events, pass_on};
use super::findings::Finding;
use super::hooks::NodeHooks;
use super::links::{Links, Met};
use super::local::AgentTransport;
use super::presence::Presence;
use super::probe::{Helper, Questions};
use super::publish::{Identity, Outlets, Publisher, Sources, version};
use super::sleep::Sleeper;
use super::start::{Opened, StartError};
use super::table::{TableHandle, TableTask, table};
use super::verify::{Twins, Verifier};
use crate::ca::{Ca, Inviter};
use crate::config::Config;
use crate::engine::registry::Registry;
use crate::gateway::{self, GatewayState};
use crate::power::PowerEvent;
use crate::serve::Service;
use crate::state::{AdminToken, AgentInfo, LastGood, StateDir, keep_learned};
use crate::swarm::{Judge, Swarm};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use unamesh_client::client::MeshClient;
use unamesh_client::mdns::Announcement;
use unamesh_client::pool::{PathReport, Pool, QuicTransport};
use unamesh_client::watch::load_seeds;
use unamesh_proto::wire::{Advert, Hardware, NodeState, SignedAdvert};

/// Reports of the pool that may wait for the table; a lost one is repeated by the next probe.
const REPORTS: usize = 1024;
/// Hints of multicast DNS that may wait.
const HINTS: usize = 256;

/// This node's newest word.
type OwnWord = watch::Receiver<Arc<SignedAdvert>>;

/// What the pool and the swarm tell the table.
type Feeds = (
    mpsc::Receiver<PathReport>,
    mpsc::Receiver<(Advert, SignedAdvert)>,
);

/// The parts that exist before the mesh does.
pub(super) struct Wiring {
    pub(super) config: Config,
    pub(super) state: StateDir,
    pub(super) registry: Arc<Registry>,
    pub(super) service: Arc<Service>,
    pub(super) hardware: watch::Receiver<Hardware>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) started: Instant,
}

/// The mesh side, once connected.
struct Mesh {
    identity: Arc<Identity>,
    table: TableHandle,
    pool: Arc<Pool>,
    links: Arc<Links>,
    verifier: Arc<Verifier>,
    own: OwnWord,
    met: Met,
    swarm: Swarm,
    events: Events,
    sightings: Arc<Sightings>,
    presence: Arc<Presence>,
}

impl Wiring {
    /// Starts everything of the mesh side; the sockets are open.
    pub(super) fn connect(
        self,
        mut opened: Opened,
        power: mpsc::Receiver<PowerEvent>,
    ) -> Result<Agent, StartError> {
        let ca = opened.ca.take();
        let (mesh, publisher) = self.mesh(&opened)?;
        self.attend(&mesh, &opened, publisher.said(), power);
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
        mesh.presence.asks_through(client.clone());
        self.tasks.spawn(pass_on(
            client.activity(),
            mesh.events.clone(),
            self.stop.clone(),
        ));
        self.tasks.spawn(keep_learned(
            client.clone(),
            self.state.clone(),
            self.stop.clone(),
        ));
        let control = self.control(&mesh, &opened, ca, &client);
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
            presence: mesh.presence,
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
        let events = Events::default();
        let (table, table_task) = table(opened.life.node, events.clone());
        let (verifier, twins) = Verifier::new(
            opened.credentials.ca.clone(),
            Arc::clone(&opened.life),
            table.snapshot(),
            opened.findings.clone(),
        );
        let verifier = Arc::new(verifier);
        let (swarm, gossip) = Swarm::start(
            &opened.credentials.key,
            &opened.credentials.mesh,
            self.config.mesh.swarm_port,
            Arc::clone(&verifier) as Arc<dyn Judge>,
            &self.tasks,
            self.stop.clone(),
        )?;
        let presence = Presence::new(Arc::clone(&self.service), events.clone());
        let (identity, publisher, own) = self.publisher(opened, &presence, swarm.port())?;
        let met = Met::default();
        let (pool, reports) = self.pool(opened, &table);
        let links = Links::new(
            (opened.life.node, opened.credentials.ca.clone()),
            Arc::clone(&pool),
            table.clone(),
            Arc::clone(&verifier),
            (own.clone(), met.clone()),
            self.tasks.clone(),
            self.stop.clone(),
        );
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
            sightings: Arc::default(),
            presence,
        };
        self.run_table(&mesh, table_task, (reports, gossip), twins);
        Ok((mesh, publisher))
    }

    fn publisher(
        &self,
        opened: &Opened,
        presence: &Presence,
        swarm_port: u16,
    ) -> Result<(Arc<Identity>, Publisher, OwnWord), StartError> {
        let identity = Arc::new(Identity {
            credentials: Arc::clone(&opened.credentials),
            life: Arc::clone(&opened.life),
            name: self.config.node_name(),
            listen: opened.listen,
            advertise: self.config.mesh.advertise.clone(),
        });
        let sources = Sources {
            registry: Arc::clone(&self.registry),
            service: Arc::clone(&self.service),
            hardware: self.hardware.clone(),
            phase: presence.phase(),
            swarm_port,
        };
        let findings = opened.findings.clone();
        let (publisher, own) = Publisher::new(Arc::clone(&identity), sources, findings)?;
        Ok((identity, publisher, own))
    }

    /// The connections to all peers of the table.
    fn pool(
        &self,
        opened: &Opened,
        table: &TableHandle,
    ) -> (Arc<Pool>, mpsc::Receiver<PathReport>) {
        let (reports, heard) = mpsc::channel(REPORTS);
        let pool = Pool::new(
            opened.endpoint.clone(),
            Arc::clone(&opened.credentials),
            table.snapshot(),
            reports,
            self.tasks.clone(),
            self.stop.clone(),
        );
        pool.warm_all(true);
        (pool, heard)
    }

    /// The tasks that change the table, or follow it.
    fn run_table(
        &self,
        mesh: &Mesh,
        task: TableTask,
        (reports, gossip): Feeds,
        twins: mpsc::Receiver<Twins>,
    ) {
        let stop = || self.stop.clone();
        let (verifier, links) = (Arc::clone(&mesh.verifier), Arc::clone(&mesh.links));
        let (pool, tasks) = (Arc::clone(&mesh.pool), self.tasks.clone());
        let questions = Questions::new(pool, mesh.table.clone(), tasks, stop());
        self.tasks
            .spawn(task.run(reports, gossip, verifier, links, questions, stop()));
        let (swarm, snapshots) = (mesh.swarm.clone(), mesh.table.snapshot());
        self.tasks.spawn(follow_members(swarm, snapshots, stop()));
        let (links, events) = (Arc::clone(&mesh.links), mesh.events.clone());
        self.tasks.spawn(report_twins(twins, links, events, stop()));
    }

    /// The tasks that bring the node away and back.
    fn attend(
        &self,
        mesh: &Mesh,
        opened: &Opened,
        said: watch::Receiver<NodeState>,
        power: mpsc::Receiver<PowerEvent>,
    ) {
        let sleeper = Sleeper {
            presence: Arc::clone(&mesh.presence),
            service: Arc::clone(&self.service),
            life: Arc::clone(&opened.life),
            table: mesh.table.clone(),
            pool: Arc::clone(&mesh.pool),
            events: mesh.events.clone(),
            said,
        };
        self.tasks.spawn(sleeper.run(power, self.stop.clone()));
        let presence = Arc::clone(&mesh.presence);
        self.tasks.spawn(presence.keep_time(self.stop.clone()));
    }

    fn serve(&self, mesh: &Mesh, opened: &Opened) {
        let (registry, events) = (Arc::clone(&self.registry), mesh.events.clone());
        self.tasks
            .spawn(tell_engines(registry, events, self.stop.clone()));
        let hooks = Arc::new(NodeHooks {
            table: mesh.table.clone(),
            verifier: Arc::clone(&mesh.verifier),
            own: mesh.own.clone(),
            met: mesh.met.clone(),
            presence: Arc::clone(&mesh.presence),
            helper: Helper::new(Arc::clone(&mesh.pool), mesh.table.snapshot()),
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
            let notes = (opened.findings.clone(), Arc::clone(&mesh.sightings));
            self.tasks.spawn(speak_mdns(
                announcement,
                found,
                notes,
                opened.life.epochs(),
                leave.clone(),
            ));
        }
        // What the inviter named when this node joined: the way in where multicast is filtered.
        let mut seeds = self.config.mesh.seeds.clone();
        seeds.extend(
            load_seeds(self.state.path())
                .iter()
                .map(SocketAddr::to_string),
        );
        let discovery = Discovery::new(
            opened.life.node,
            Arc::clone(&mesh.pool),
            Arc::clone(&mesh.links),
            mesh.table.clone(),
            LastGood::load(&self.state),
            Arc::clone(&mesh.sightings),
        );
        self.tasks
            .spawn(discovery.run(seeds, hints, self.stop.clone()));
    }

    fn control(
        &self,
        mesh: &Mesh,
        opened: &Opened,
        ca: Option<Ca>,
        client: &MeshClient,
    ) -> Arc<NodeControl> {
        let welcome = Arc::new(MeshWelcome {
            me: opened.life.node,
            listen: opened.listen,
            advertise: self.config.mesh.advertise.clone(),
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
            client: client.clone(),
            findings: opened.findings.clone(),
            sightings: Arc::clone(&mesh.sightings),
            inviter,
            presence: Arc::clone(&mesh.presence),
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
            client: client.clone(),
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
