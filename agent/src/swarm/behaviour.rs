//! How libp2p is set up: what the swarm speaks and what it bounds.

use super::SwarmError;
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Multiaddr, allow_block_list, connection_limits, identity};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use unamesh_client::identity::NodeKey;
use unamesh_proto::MeshId;
use unamesh_proto::limits::{MAX_ADVERT, MAX_CONNECTIONS};

/// What gossipsub wraps around an advert: topic, PeerId, sequence number, signature.
const ENVELOPE: usize = 1024;
/// A dead peer is noticed within this. Nothing waits for it: liveness comes from the data
/// plane, which also exchanges adverts directly with whoever is new or back.
const IDLE_MS: u32 = 6000;
/// Of an idle connection. Each end pings, so that it is a quarter of an idle node's traffic at
/// one second already (`unamesh bench idle`).
const KEEP_ALIVE: Duration = Duration::from_millis(2500);
/// Connections from strangers in their handshake: the gate comes after it.
const MAX_PENDING: u32 = 32;
/// Bytes in flight from one peer on a stream: a few adverts.
const MAX_STREAM_DATA: u32 = 8 * MAX_ADVERT as u32;
/// Messages from this size on are announced as received (bytes); the announcement has some 60.
const IDONTWANT_FROM: usize = 256;
/// How often a free port is searched for when another program was faster.
const PORT_TRIES: usize = 4;

/// The parts of the swarm; each connection passes the gate and the limits first.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: allow_block_list::Behaviour<allow_block_list::AllowedPeers>,
    limits: connection_limits::Behaviour,
    pub(super) gossip:
        gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter>,
}

/// The topic of a mesh. The version of the protocol is in its name.
pub(super) fn topic(mesh: &MeshId) -> IdentTopic {
    // Eight digits do: the topic travels with every message, and strangers are kept out by
    // the gate, not by its name.
    IdentTopic::new(format!("/unamesh/{}/1", mesh.short()))
}

/// A subscribed swarm that listens on UDP `port` (0 = any) of every address. Tells the port.
pub(super) fn listen(
    key: &NodeKey,
    mesh: &MeshId,
    port: u16,
) -> Result<(libp2p::Swarm<Behaviour>, u16), SwarmError> {
    let mut swarm = build(key, mesh)?;
    let bind = |reason: String| SwarmError::Bind { port, reason };
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let chosen = if port == 0 {
            free_port().map_err(|e| bind(e.to_string()))?
        } else {
            port
        };
        // Without IPv6 in the kernel IPv4 alone will do, and the other way round.
        let v4 = swarm.listen_on(multiaddr(SocketAddr::new(
            Ipv4Addr::UNSPECIFIED.into(),
            chosen,
        )));
        let v6 = swarm.listen_on(multiaddr(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            chosen,
        )));
        match (v4, v6) {
            (Err(e), Err(_)) if tries == 0 => return Err(bind(e.to_string())),
            (Err(_), Err(_)) => {}
            _ => return Ok((swarm, chosen)),
        }
    }
}

/// `addr` as libp2p writes it.
pub(super) fn multiaddr(addr: SocketAddr) -> Multiaddr {
    let ip = match addr.ip() {
        IpAddr::V4(v4) => Protocol::Ip4(v4),
        IpAddr::V6(v6) => Protocol::Ip6(v6),
    };
    Multiaddr::empty()
        .with(ip)
        .with(Protocol::Udp(addr.port()))
        .with(Protocol::QuicV1)
}

fn build(key: &NodeKey, mesh: &MeshId) -> Result<libp2p::Swarm<Behaviour>, SwarmError> {
    let config = |e: &dyn std::fmt::Display| SwarmError::Config(e.to_string());
    let mut seed = key.secret();
    let keypair = identity::Keypair::ed25519_from_bytes(&mut *seed).map_err(|e| config(&e))?;
    let topic = topic(mesh);
    let mut gossip = gossipsub::Behaviour::new_with_subscription_filter(
        MessageAuthenticity::Signed(keypair.clone()),
        gossip_config().map_err(|e| config(&e))?,
        gossipsub::WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
    )
    .map_err(|e| config(&e))?;
    gossip.subscribe(&topic).map_err(|e| config(&e))?;
    let behaviour = Behaviour {
        gate: allow_block_list::Behaviour::default(),
        limits: connection_limits::Behaviour::new(limits()),
        gossip,
    };
    let swarm = libp2p::SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_quic_config(|mut quic| {
            quic.max_idle_timeout = IDLE_MS;
            quic.keep_alive_interval = KEEP_ALIVE;
            quic.max_stream_data = MAX_STREAM_DATA;
            quic.max_connection_data = 2 * MAX_STREAM_DATA;
            quic.max_concurrent_stream_limit = 16;
            // Larger packets would not fit a WireGuard tunnel, and adverts are small.
            quic.disable_path_mtu_discovery()
        })
        .with_behaviour(|_| behaviour)
        .map_err(|e| config(&e))?
        // The member list decides how long a connection lives, not its idleness.
        .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::MAX))
        .build();
    Ok(swarm)
}

fn gossip_config() -> Result<gossipsub::Config, gossipsub::ConfigBuilderError> {
    gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(MAX_ADVERT + ENVELOPE)
        // Nothing waits for it in a home: links form when a peer subscribes.
        .heartbeat_interval(Duration::from_secs(2))
        .heartbeat_initial_delay(Duration::from_millis(500))
        .duplicate_cache_time(Duration::from_secs(120))
        // Every advert is worth it to say "I have it": see `driver::PASS_ON_AFTER`.
        .idontwant_message_size_threshold(IDONTWANT_FROM)
        // The same advert is the same message, whoever passes it on.
        .message_id_fn(|message: &gossipsub::Message| {
            gossipsub::MessageId::new(&Sha256::digest(&message.data)[..16])
        })
        .build()
}

fn limits() -> connection_limits::ConnectionLimits {
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING))
        .with_max_pending_outgoing(Some(MAX_PENDING))
        .with_max_established_per_peer(Some(2))
        .with_max_established(Some(all))
}

/// A UDP port that is free on IPv4 and IPv6 alike, so that one number in the advert does.
fn free_port() -> std::io::Result<u16> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .and_then(|socket| socket.local_addr())
        .map(|addr| addr.port())
}
