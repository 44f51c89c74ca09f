//! Becoming a member, with an [`Invite`].
//!
//! 1. The device dials the joining endpoint at all addresses of the link at once. TLS
//!    authenticates the inviter alone: it shows its node certificate and the mesh's CA. The
//!    CA must have the fingerprint of the link, and the certificate must be an admin's under
//!    that CA. Only then is anything said.
//! 2. It sends the link's secret, its public key, and a signature that proves it holds the
//!    private half, which never leaves the device.
//! 3. It gets a certificate, checks it like any member's, and is one.
//!
//! Nothing is stored here: a failed attempt leaves no trace on this device, and may be made
//! again with the same key (the inviter counts it as the same device).

use crate::clock;
use crate::endpoint::{CLOSE_NORMAL, open_socket, transport_config};
use crate::framing::{RecordReader, RecordWriter};
use crate::identity::{Credentials, MemberError, NodeKey, role_dns_name, verify_member};
use crate::invite::Invite;
use crate::pool::race::Race;
use crate::tls::{self, TlsError, provider};
use crate::transport::LinkError;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use unamesh_proto::limits::{MAX_ADDRS, MAX_NAME};
use unamesh_proto::timeouts::JOIN;
use unamesh_proto::wire::{ErrorCode, JOIN_ALPN, JoinAccepted, JoinRequest, Role, WireError};
use unamesh_proto::{MeshId, NodeId};

/// What the device's signature covers, before the secret and the public key.
const PROOF_CONTEXT: &[u8] = b"unamesh join v1";

/// Why the device is no member. Nothing has changed on it.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address of the link answered.
    #[error(
        "no inviter answers ({reason}): is the machine that printed the link on, in the same \
         network, and `unamesh` running there?{}",
        if *expired { " By this machine's clock the invitation has expired." } else { "" }
    )]
    Unreachable {
        /// Per address, what happened.
        reason: String,
        /// Whether the link is past its time, by this machine's clock.
        expired: bool,
    },
    /// Somebody answered who is not the inviter.
    #[error("who answers at the link's address is not the mesh that the link names: {0}")]
    Impostor(String),
    /// The inviter refused.
    #[error("{0}")]
    Refused(WireError),
    /// The connection broke. Trying again may help.
    #[error("the connection to the inviter broke: {0}")]
    Broken(LinkError),
    /// The certificate that came is unusable.
    #[error("the inviter's answer is unusable: {0}")]
    Answer(#[from] MemberError),
    /// This machine cannot dial at all.
    #[error("cannot open a UDP socket: {0}")]
    Socket(#[from] std::io::Error),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Joins the mesh of `invite` as the holder of `key`. Returns the membership (for the caller
/// to save) and where members listen (`ip:port`). `device_name` is for people; longer ones
/// are cut. Takes at most a few seconds; dropping the future gives up.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    invite: &Invite,
    key: NodeKey,
    device_name: &str,
) -> Result<(Credentials, Vec<String>), JoinError> {
    let endpoint = open_endpoint(invite.mesh)?;
    let connection = dial(&endpoint, invite).await?;
    let answer = tokio::time::timeout(JOIN, ask(&connection, invite, &key, device_name)).await;
    connection.close(CLOSE_NORMAL, b"done");
    // Lets the goodbye out; the inviter waits for it, but not for long.
    let _ = tokio::time::timeout(JOIN, endpoint.wait_idle()).await;
    let accepted = match answer {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(LinkError::Refused(e))) => return Err(JoinError::Refused(e)),
        Ok(Err(e)) => return Err(JoinError::Broken(e)),
        Err(_) => {
            let text = format!("no answer within {JOIN:?}");
            return Err(JoinError::Broken(LinkError::Lost(text)));
        }
    };
    check(&accepted, invite.mesh, key.id())?;
    let JoinAccepted {
        certificate,
        ca,
        mesh_name,
        mut seeds,
        ..
    } = accepted;
    seeds.retain(|seed| seed.parse::<SocketAddr>().is_ok());
    seeds.truncate(MAX_ADDRS);
    Ok((Credentials::new(key, certificate, ca, mesh_name)?, seeds))
}

async fn dial(endpoint: &Endpoint, invite: &Invite) -> Result<Connection, JoinError> {
    // The inviter holds the CA, so it is an admin; its node id is not in the link.
    let name = role_dns_name(Role::Admin);
    let mut race = Race::new(endpoint, name, invite.addrs.clone());
    let mut errors = Vec::new();
    while let Some((addr, dialed)) = race.next().await {
        match dialed {
            Ok(connection) => return Ok(connection),
            Err(e) => errors.push((addr, e)),
        }
    }
    let refused = errors
        .iter()
        .find(|(_, e)| matches!(e, LinkError::Refused(_)));
    if let Some((addr, e)) = refused {
        return Err(JoinError::Impostor(format!("{addr}: {e}")));
    }
    let each: Vec<String> = errors
        .iter()
        .map(|(addr, e)| format!("{addr}: {e}"))
        .collect();
    let expired = clock::wall() > invite.expires;
    Err(JoinError::Unreachable {
        reason: each.join("; "),
        expired,
    })
}

async fn ask(
    connection: &Connection,
    invite: &Invite,
    key: &NodeKey,
    device_name: &str,
) -> Result<JoinAccepted, LinkError> {
    let (send, recv) = connection
        .open_bi()
        .await
        .map_err(|e| crate::endpoint::link_error(&e))?;
    let (mut writer, mut reader) = (RecordWriter::new(send), RecordReader::new(recv));
    let public_key = key.id();
    let mut name = device_name.to_owned();
    while name.len() > MAX_NAME {
        name.pop();
    }
    let proof = key.sign(&signed(&invite.secret, &public_key));
    writer
        .write(&JoinRequest {
            secret: invite.secret,
            public_key,
            proof,
            name,
        })
        .await?;
    writer.finish();
    Ok(reader.expect().await?)
}

/// What [`JoinRequest::proof`] signs.
pub fn signed(secret: &[u8; 32], public_key: &NodeId) -> Vec<u8> {
    [PROOF_CONTEXT, secret, &public_key.0].concat()
}

fn check(accepted: &JoinAccepted, mesh: MeshId, me: NodeId) -> Result<(), JoinError> {
    if MeshId::of_ca(&accepted.ca) != mesh {
        return Err(MemberError::OtherMesh.into());
    }
    let member = verify_member(&accepted.certificate, &accepted.ca, clock::wall())?;
    if member.node != me {
        return Err(MemberError::KeyMismatch { named: member.node }.into());
    }
    if member.role != accepted.role {
        let text = format!("{} in the certificate, {} said", member.role, accepted.role);
        return Err(MemberError::Names(text).into());
    }
    Ok(())
}

fn open_endpoint(mesh: MeshId) -> Result<Endpoint, JoinError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa(mesh)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(TlsError::new)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport_config()));
    let socket = open_socket(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
    let mut endpoint = Endpoint::new(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Picks the root and leaves the rest to stock webpki: of the certificates that the server
/// sent, the one with the link's fingerprint is the CA. (A joining device has no root yet, so
/// no stock verifier can be built before the server has spoken.)
#[derive(Debug)]
struct PinnedCa(MeshId);

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| MeshId::of_ca(certificate) == self.0)
            .ok_or(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer,
            ))?;
        let unusable = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let roots = tls::roots(ca).map_err(unusable)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether joining again with a new link may help, for the command line's hint.
impl JoinError {
    /// True where the inviter said that the link is used up, expired or wrong.
    pub fn needs_new_invite(&self) -> bool {
        match self {
            JoinError::Refused(e) => e.code == ErrorCode::InviteRefused,
            JoinError::Unreachable { expired, .. } => *expired,
            _ => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
#[path = "join_tests.rs"]
mod tests;
