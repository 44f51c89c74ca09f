//! The joining endpoint: where a device without a certificate talks to the mesh, once.
//!
//! It is a QUIC endpoint of its own on its own port, so that the data plane never speaks to
//! strangers. It exists only while an invitation is open. TLS authenticates the server alone
//! (its member certificate and the CA, whose SHA-256 the link carries); the device proves
//! itself by the link's secret and the possession of its key. One connection, one stream,
//! one [`JoinRequest`], one answer.
//!
//! Bounds: [`MAX_JOINS`] devices at a time, [`JOIN`] for each, a source address that
//! answered (a QUIC retry, so that forged senders cost nothing), one small record read.

use super::{Ca, Invites, OpenError};
use ed25519_dalek::{Signature, VerifyingKey};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use unamesh_client::clock;
use unamesh_client::endpoint::open_socket;
use unamesh_client::framing::{RecordReader, RecordWriter};
use unamesh_client::identity::Credentials;
use unamesh_client::invite::Invite;
use unamesh_client::join::signed;
use unamesh_client::tls::provider;
use unamesh_proto::limits::{MAX_JOINS, MAX_NAME};
use unamesh_proto::timeouts::JOIN;
use unamesh_proto::wire::{ErrorCode, JOIN_ALPN, JoinAccepted, JoinRequest, Role, WireError};

/// Why there is no invitation. Nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// Too many, too long or too often.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The joining endpoint could not be opened.
    #[error("cannot open the joining port {addr}: {source}")]
    Bind {
        /// What was to be bound.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS configuration was refused: the own certificate or key is damaged.
    #[error("TLS: {0}")]
    Tls(String),
}

/// What the joining endpoint tells of the mesh around it.
pub trait Welcome: Send + Sync + 'static {
    /// Addresses of this machine that a new device can reach, best first.
    fn addresses(&self) -> Vec<IpAddr>;
    /// Where members listen (`ip:port`), this node first.
    fn seeds(&self) -> Vec<String>;
}

/// Opens invitations, and the joining endpoint while there are any.
#[derive(Clone)]
pub struct Inviter(Arc<Inner>);

struct Inner {
    ca: Ca,
    credentials: Arc<Credentials>,
    welcome: Arc<dyn Welcome>,
    /// As configured; 0 = any free one.
    listen_port: u16,
    state: Mutex<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    invites: Invites,
    /// The port of the endpoint that is alive.
    port: Option<u16>,
}

impl Inviter {
    /// An inviter with nothing open. The joining endpoint will listen on UDP `listen_port`
    /// (0 = any free one); `tasks` own its task, `stop` ends it.
    pub fn new(
        ca: Ca,
        credentials: Arc<Credentials>,
        welcome: Arc<dyn Welcome>,
        listen_port: u16,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Inviter {
        let state = Mutex::default();
        Inviter(Arc::new(Inner {
            ca,
            credentials,
            welcome,
            listen_port,
            state,
            tasks,
            stop,
        }))
    }

    /// Opens an invitation for `uses` devices of `role`, valid for `valid_for`. Must be
    /// called within the tokio runtime.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub fn invite(
        &self,
        role: Role,
        valid_for: Duration,
        uses: u32,
    ) -> Result<Invite, InviteError> {
        let inner = &self.0;
        let mut state = inner.lock();
        let secret = state.invites.open(role, valid_for, uses, clock::mono())?;
        let port = match state.port {
            Some(port) => port,
            None => {
                let port = inner
                    .open_endpoint()
                    .inspect_err(|_| state.invites.take_back())?;
                state.port = Some(port);
                port
            }
        };
        drop(state);
        let addrs = inner
            .welcome
            .addresses()
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port));
        let valid_ms = u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX);
        let expires =
            unamesh_proto::Wall::from_millis(clock::wall().as_millis().saturating_add(valid_ms));
        Ok(Invite {
            mesh: inner.ca.mesh(),
            addrs: addrs.collect(),
            secret,
            expires,
            role,
        })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_endpoint(self: &Arc<Self>) -> Result<u16, InviteError> {
        let config = server_config(&self.credentials)?;
        let addr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), self.listen_port);
        let bind = |source| InviteError::Bind { addr, source };
        let socket = open_socket(addr).map_err(bind)?;
        let (defaults, runtime) = (quinn::EndpointConfig::default(), quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(defaults, Some(config), socket, Arc::new(runtime))
            .map_err(bind)?;
        let port = endpoint.local_addr().map_err(bind)?.port();
        info!(port, "joining endpoint open");
        self.tasks.spawn(Arc::clone(self).accept(endpoint));
        Ok(port)
    }

    async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let mut joins = JoinSet::new();
        while let Some(expiry) = self.next_expiry() {
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep_until(expiry) => {}
                Some(_) = joins.join_next() => {}
                incoming = endpoint.accept() => match incoming {
                    None => break,
                    Some(incoming) if joins.len() >= MAX_JOINS => incoming.refuse(),
                    Some(incoming) if !incoming.remote_address_validated() => {
                        // Fails only if the address is validated, which it is not.
                        let _ = incoming.retry();
                    }
                    Some(incoming) => {
                        let inner = Arc::clone(&self);
                        joins.spawn(async move { inner.serve(incoming).await });
                    }
                },
            }
        }
        // Whoever is being answered gets the rest of its time.
        let rest = async { while joins.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(JOIN, rest).await;
        endpoint.close(0u32.into(), b"no invitation is open");
        endpoint.wait_idle().await;
        info!("joining endpoint closed");
    }

    /// When to look again; `None` if no invitation is left. Forgets the port in the same
    /// step, so that a new invitation opens a new endpoint instead of naming this one.
    fn next_expiry(&self) -> Option<tokio::time::Instant> {
        let mut state = self.lock();
        if !state.invites.any_open(clock::mono()) {
            state.port = None;
        }
        state.invites.next_expiry().map(clock::instant)
    }

    async fn serve(&self, incoming: quinn::Incoming) {
        let from = incoming.remote_address();
        match tokio::time::timeout(JOIN, self.answer(incoming)).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => debug!(%from, %reason, "joining connection failed"),
            Err(_) => debug!(%from, "joining connection took too long"),
        }
    }

    async fn answer(&self, incoming: quinn::Incoming) -> Result<(), String> {
        let from = incoming.remote_address();
        let connection = incoming.await.map_err(|e| e.to_string())?;
        let (send, recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let request: JoinRequest = RecordReader::new(recv)
            .expect()
            .await
            .map_err(|e| e.to_string())?;
        let mut writer = RecordWriter::new(send);
        let written = match self.admit(&request) {
            Ok(accepted) => {
                info!(%from, node = %request.public_key.short(), name = %request.name,
                      role = %accepted.role, "a device joined");
                writer.write(&accepted).await
            }
            Err(refused) => {
                warn!(%from, reason = %refused.message, "a device was not admitted");
                writer.write(&refused).await
            }
        };
        written.map_err(|e| e.to_string())?;
        writer.finish();
        // The device closes when it has read the answer.
        connection.closed().await;
        Ok(())
    }

    /// Possession of the key first: a secret is not spent on a malformed request.
    fn admit(&self, request: &JoinRequest) -> Result<JoinAccepted, WireError> {
        if request.name.len() > MAX_NAME {
            let text = format!("a device's name has at most {MAX_NAME} bytes");
            return Err(WireError::new(ErrorCode::Invalid, text).field("name"));
        }
        if !proves_possession(request) {
            let text = "the proof is not a signature by the key that is to be certified";
            return Err(WireError::new(ErrorCode::Invalid, text).field("proof"));
        }
        let role = self
            .lock()
            .invites
            .redeem(&request.secret, request.public_key, clock::mono())
            .map_err(|e| WireError::new(ErrorCode::InviteRefused, e.to_string()))?;
        let certificate = self
            .ca
            .issue(request.public_key, role, &request.name, clock::wall())
            .map_err(|e| WireError::new(ErrorCode::Invalid, e.to_string()))?;
        Ok(JoinAccepted {
            certificate,
            ca: self.ca.certificate().to_vec(),
            role,
            mesh_name: self.credentials.mesh_name.clone(),
            seeds: self.welcome.seeds(),
        })
    }
}

fn proves_possession(request: &JoinRequest) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&request.public_key.0) else {
        return false;
    };
    let signed = signed(&request.secret, &request.public_key);
    key.verify_strict(&signed, &Signature::from_bytes(&request.proof))
        .is_ok()
}

fn server_config(credentials: &Credentials) -> Result<quinn::ServerConfig, InviteError> {
    let tls = |e: &dyn std::fmt::Display| InviteError::Tls(e.to_string());
    let chain = vec![
        CertificateDer::from(credentials.certificate.clone()),
        CertificateDer::from(credentials.ca.clone()),
    ];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
        credentials.key.to_pkcs8().to_vec(),
    ));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| tls(&e))?;
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(config).map_err(|e| tls(&e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(1u8.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(JOIN.try_into().ok());
    config.transport_config(Arc::new(transport));
    config.max_incoming(MAX_JOINS);
    Ok(config)
}
