//! Mutual TLS 1.3 as every connection of the mesh uses it.
//!
//! Both sides are checked by rustls' stock webpki verifiers with our CA as the only root.
//! The dialer asks for `<node-id>.unamesh.internal`, so the name check of webpki *is* the
//! pinning of the node. There is no session resumption and no 0-RTT: both would let a node
//! in that was revoked after its first handshake, and save less than half a millisecond.

use crate::identity::Credentials;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::sync::{Arc, LazyLock};
use unamesh_proto::wire::ALPN;

/// Why no TLS configuration could be made of the credentials.
#[derive(Debug, thiserror::Error)]
#[error("the identity cannot be used for TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(e: impl std::fmt::Display) -> Self {
        TlsError(e.to_string())
    }
}

/// The cryptography of the data plane: ring. Named explicitly wherever rustls is configured,
/// since another library in the process may bring a second provider, and then the implicit
/// default panics.
pub fn provider() -> Arc<CryptoProvider> {
    static RING: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    RING.clone()
}

/// Accepts members of the mesh.
///
/// # Errors
/// Certificate, key or CA is unusable.
pub fn server_config(credentials: &Credentials) -> Result<QuicServerConfig, TlsError> {
    let roots = roots(&credentials.ca)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(TlsError::new)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(credentials), credentials.key.to_rustls())
        .map_err(TlsError::new)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(TlsError::new)
}

/// Dials members of the mesh.
///
/// # Errors
/// Certificate, key or CA is unusable.
pub fn client_config(credentials: &Credentials) -> Result<QuicClientConfig, TlsError> {
    client_config_with(credentials, vec![ALPN.to_vec()])
}

pub(crate) fn client_config_with(
    credentials: &Credentials,
    alpn: Vec<Vec<u8>>,
) -> Result<QuicClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&credentials.ca)?, provider())
        .build()
        .map_err(TlsError::new)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain(credentials), credentials.key.to_rustls())
        .map_err(TlsError::new)?;
    config.alpn_protocols = alpn;
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(TlsError::new)
}

fn chain(credentials: &Credentials) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(credentials.certificate.clone())]
}

pub(crate) fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(ca.to_vec()))
        .map_err(TlsError::new)?;
    Ok(Arc::new(roots))
}
