//! The QUIC endpoint that a node serves and dials from, and what its failures mean.
//!
//! Two settings let a peer notice within a round trip that we were restarted on the same
//! port, rather than after its idle time-out: the key of stateless resets and the key of the
//! connection ids are both derived from the node's key. (A new process must first recognise
//! the old connection id as one of its own, and only then may it sign a reset for it.)

use crate::identity::{Credentials, Member, MemberError, NodeKey, verify_member};
use crate::tls::{self, TlsError};
use crate::transport::LinkError;
use quinn::{
    AckFrequencyConfig, ConnectionError, Endpoint, EndpointConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use unamesh_proto::wire::{ErrorCode, WireError};
use unamesh_proto::{limits, timeouts};

/// TLS alerts (RFC 8446 section 6) that travel as QUIC errors `0x100 + alert`.
mod alert {
    pub const BAD_CERTIFICATE: u64 = 0x12a;
    pub const CERTIFICATE_REVOKED: u64 = 0x12c;
    pub const CERTIFICATE_EXPIRED: u64 = 0x12d;
    pub const CERTIFICATE_UNKNOWN: u64 = 0x12e;
    pub const UNKNOWN_CA: u64 = 0x130;
    pub const ACCESS_DENIED: u64 = 0x131;
    pub const DECRYPT_ERROR: u64 = 0x133;
    pub const CERTIFICATE_REQUIRED: u64 = 0x174;
    pub const NO_APPLICATION_PROTOCOL: u64 = 0x178;
}

/// The application code of "no longer wanted, nothing is wrong": a cancelled stream, a
/// connection that is put away.
pub const CLOSE_NORMAL: VarInt = VarInt::from_u32(0);

/// The application code that closes a stream or connection for `code`.
pub fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(u32::from(code.code()))
}

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another process has the port.
    #[error(
        "UDP port {} is taken (is another agent running?): stop that process, or choose \
         another port with `[mesh] listen` in the configuration",
        addr.port()
    )]
    PortTaken {
        /// The address that was asked for.
        addr: SocketAddr,
    },
    /// The socket could not be opened.
    #[error("cannot listen on {addr} (UDP): {source}")]
    Socket {
        /// The address that was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The credentials are unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Opens an endpoint on `listen` (port 0 = any free one) that accepts and dials members of
/// the mesh. The unspecified IPv6 address serves IPv4 too, and falls back to IPv4 where the
/// machine has no IPv6. Must be called within a tokio runtime.
///
/// # Errors
/// The port is taken, the address is not ours, or the credentials are unusable.
pub fn bind(credentials: &Credentials, listen: SocketAddr) -> Result<Endpoint, EndpointError> {
    let socket = open_socket(listen).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => EndpointError::PortTaken { addr: listen },
        _ => EndpointError::Socket {
            addr: listen,
            source,
        },
    })?;
    let transport = Arc::new(transport_config());
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server_config(credentials)?));
    server
        .transport_config(transport.clone())
        .max_incoming(limits::MAX_CONNECTIONS)
        .incoming_buffer_size(limits::MAX_INCOMING_BYTES)
        .incoming_buffer_size_total(limits::MAX_INCOMING_BYTES_TOTAL);
    let mut client = quinn::ClientConfig::new(Arc::new(tls::client_config(credentials)?));
    client.transport_config(transport);
    let config = endpoint_config(&credentials.key);
    let mut endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
        .map_err(|source| EndpointError::Socket {
            addr: listen,
            source,
        })?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// A UDP socket; the unspecified IPv6 address serves both families, or IPv4 alone where the
/// machine has no IPv6.
///
/// # Errors
/// The port is taken or the address is not ours.
pub fn open_socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let dual = listen.is_ipv6() && listen.ip().is_unspecified();
    match open_one(listen) {
        Err(e) if dual && e.kind() != io::ErrorKind::AddrInUse => {
            open_one(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port())))
        }
        other => other,
    }
}

fn open_one(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// See the module's documentation for why both keys are derived.
fn endpoint_config(key: &NodeKey) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret().as_slice());
    let reset = hmac::sign(&secret, b"unamesh quic reset v1");
    let cid = hmac::sign(&secret, b"unamesh quic connection id v1");
    let cid_key = cid
        .as_ref()
        .iter()
        .take(8)
        .fold(0u64, |sum, b| sum << 8 | u64::from(*b));
    let reset = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref()));
    let mut config = EndpointConfig::new(reset);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    config
}

/// Packets that a peer may receive before it must acknowledge at once (else it does within
/// 25 ms, or at once after a gap). By default every second packet is: on a quick path an
/// acknowledgement is then sent, received and handled between a request and its first token.
const ACK_AFTER: VarInt = VarInt::from_u32(8);

/// Packets behind a gap before it must acknowledge at once. quinn's default of 2 waits for those
/// that a sender needs to count; the first is enough for one that goes by time, and few packets
/// follow a lost one of speech.
const GAP_ACK: VarInt = VarInt::from_u32(1);

/// The transport parameters of both directions.
pub(crate) fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = VarInt::try_from(timeouts::IDLE.as_millis()).unwrap_or(VarInt::MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_AFTER)
        .reordering_threshold(GAP_ACK);
    config
        .max_idle_timeout(Some(idle.into()))
        .keep_alive_interval(Some(timeouts::KEEP_ALIVE))
        .initial_rtt(timeouts::INITIAL_RTT)
        .max_concurrent_bidi_streams(limits::MAX_STREAMS_PER_PEER.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(limits::STREAM_WINDOW.into())
        .receive_window(limits::CONNECTION_WINDOW.into())
        .send_window(u64::from(limits::CONNECTION_WINDOW))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(Some(limits::DATAGRAM_BUFFER))
        .datagram_send_buffer_size(limits::DATAGRAM_BUFFER);
    config
}

/// Who is at the other end of `connection`. TLS has checked the chain; this reads the names,
/// and checks again that the certificate is still valid now.
///
/// # Errors
/// The certificate is no member's, or no longer.
pub fn member_of(connection: &quinn::Connection, ca: &[u8]) -> Result<Member, MemberError> {
    let none = || MemberError::Malformed("the peer showed no certificate".into());
    let identity = connection.peer_identity().ok_or_else(none)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| none())?;
    verify_member(chain.first().ok_or_else(none)?, ca, crate::clock::wall())
}

/// The address of an endpoint's peer as the table knows it: a dual-stack socket reports IPv4
/// peers as IPv4-mapped IPv6.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

/// What a connection's end means for who wanted something over it: the peer's reason is kept
/// where it gave one.
pub fn link_error(error: &ConnectionError) -> LinkError {
    let refused = |code, message: String| LinkError::Refused(WireError::new(code, message));
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            let code = u64::from(close.error_code);
            match u8::try_from(code) {
                Ok(0) => LinkError::Lost(format!("the peer closed the connection {reason}")),
                Ok(code) => refused(ErrorCode::from_code(code), reason),
                Err(_) => LinkError::Lost(format!("the peer closed with code {code}: {reason}")),
            }
        }
        ConnectionError::ConnectionClosed(close) => {
            handshake_error(u64::from(close.error_code), true)
                .unwrap_or_else(|| LinkError::Lost(close.to_string()))
        }
        ConnectionError::TransportError(e) => handshake_error(u64::from(e.code), false)
            .unwrap_or_else(|| LinkError::Lost(e.to_string())),
        ConnectionError::VersionMismatch => refused(
            ErrorCode::Unsupported,
            "the peer speaks no common QUIC version: update the older of the two".into(),
        ),
        ConnectionError::Reset => LinkError::Lost("the peer was restarted".into()),
        ConnectionError::TimedOut => LinkError::Lost("the peer does not answer".into()),
        ConnectionError::LocallyClosed => LinkError::Lost("closed on this side".into()),
        ConnectionError::CidsExhausted => LinkError::Lost("out of connection ids".into()),
    }
}

/// What a failed handshake means. `remote`: the peer refused us; else we refused the peer.
fn handshake_error(code: u64, remote: bool) -> Option<LinkError> {
    let (whose, by) = if remote {
        ("our", "the peer")
    } else {
        ("the peer's", "this node")
    };
    let (kind, message) = match code {
        alert::NO_APPLICATION_PROTOCOL => (
            ErrorCode::Unsupported,
            "no common protocol version (this node speaks unamesh/1): update the older of the two"
                .to_owned(),
        ),
        alert::UNKNOWN_CA | alert::DECRYPT_ERROR => (
            ErrorCode::Forbidden,
            format!("{by} does not know the CA of {whose} certificate: they belong to two meshes"),
        ),
        alert::CERTIFICATE_EXPIRED => (
            ErrorCode::Forbidden,
            format!(
                "{whose} certificate is outside its dates for {by}: check both clocks, or renew it"
            ),
        ),
        alert::CERTIFICATE_REVOKED => (
            ErrorCode::Forbidden,
            format!("{whose} certificate was revoked"),
        ),
        alert::BAD_CERTIFICATE
        | alert::CERTIFICATE_UNKNOWN
        | alert::ACCESS_DENIED
        | alert::CERTIFICATE_REQUIRED => (
            ErrorCode::Forbidden,
            format!("{by} refused {whose} certificate: wrong node at this address, or wrong mesh"),
        ),
        _ => return None,
    };
    Some(LinkError::Refused(WireError::new(kind, message)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "endpoint_tests.rs"]
mod tests;
