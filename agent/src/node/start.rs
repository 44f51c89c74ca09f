//! Starting an agent: open what can fail, start the engines, then [`super::wiring`].

use super::Agent;
use super::background::sample_hardware;
use super::findings::{Finding, Findings};
use super::life::Life;
use super::wiring::Wiring;
use crate::ca::{self, CA_DIR, Ca, CaError};
use crate::capacity;
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::configured::{self, EntryError};
use crate::engine::registry::Registry;
use crate::power::{self, awake::keep_awake};
use crate::serve::{ServeConfig, Service};
use crate::state::{AdminToken, SpeedStore, StateDir, StateError, StateLock};
use crate::swarm::SwarmError;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use unamesh_client::clock;
use unamesh_client::endpoint::{EndpointError, bind};
use unamesh_client::identity::{Credentials, IdentityError};
use unamesh_proto::wire::{DecodeError, Role};

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
    #[error(transparent)]
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

/// What must be open before anything runs.
pub(super) struct Opened {
    pub(super) lock: Option<StateLock>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) ca: Option<Ca>,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) listen: SocketAddr,
    pub(super) gateway: TcpListener,
    pub(super) gateway_addr: SocketAddr,
    pub(super) token: AdminToken,
    pub(super) life: Arc<Life>,
    pub(super) findings: Findings,
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
        &state,
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
        drill: config.serve.drill,
        ..ServeConfig::default()
    };
    let service = Service::new(Arc::clone(&registry), limits, tasks.clone(), stop.clone());
    let sources = capacity::Sources::default();
    let sysfs = sources.sysfs.clone();
    let hardware = sample_hardware(sources, &opened.findings, &tasks, &stop);
    let power = power::watch(&config.power, sysfs, hardware.clone(), &tasks, &stop);
    if config.power.keep_awake {
        tasks.spawn(keep_awake(service.active_changes(), stop.clone()));
    }
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
    let agent = wiring.connect(opened, power)?;
    drop(guard.disarm());
    Ok(agent)
}

async fn open(config: &Config, state: &StateDir) -> Result<Opened, StartError> {
    if std::env::var_os(KEY_LOG).is_some() {
        return Err(StartError::KeyLog);
    }
    let lock = state.lock()?;
    let findings = Findings::default();
    let (credentials, ca) = papers(config, state, &findings)?;
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
    let now = clock::wall();
    let (epoch, unwritten) = state.next_epoch(now);
    let (token, unwritten_token) = AdminToken::load_or_create(state)?;
    if let Some(error) = unwritten.or(unwritten_token) {
        findings.raise(Finding::State, error.to_string());
    }
    let life = Life::new(credentials.node(), epoch, now);
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

/// This node's membership, fresh where it is its own to renew, and the CA if it is here.
fn papers(
    config: &Config,
    state: &StateDir,
    findings: &Findings,
) -> Result<(Arc<Credentials>, Option<Ca>), StartError> {
    let credentials = Credentials::load(state.path())?;
    if !credentials.role.is_agent() {
        return Err(StartError::Role(credentials.role));
    }
    let ca = match Ca::load(&state.path().join(CA_DIR)) {
        Ok(ca) => ca,
        Err(CaError::Absent(_)) => return Ok((Arc::new(credentials), None)),
        Err(e) => return Err(e.into()),
    };
    let fresh = ca::renewed(&ca, &credentials, &config.node_name(), clock::wall())?;
    if let Some(fresh) = &fresh {
        info!("this node's certificate was renewed");
        if let Err(error) = fresh.save(state.path()) {
            findings.raise(Finding::State, error.to_string());
        }
    }
    Ok((Arc::new(fresh.unwrap_or(credentials)), Some(ca)))
}
