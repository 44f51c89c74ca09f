//! A certificate authority for tests (the real one is the agent's).

use crate::identity::{Credentials, NodeKey, role_dns_name};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use std::time::{Duration, SystemTime};
use unamesh_proto::NodeId;
use unamesh_proto::wire::Role;

/// Seconds.
pub const DAY: i64 = 86_400;
/// As the agent's CA does, certificates begin this long before they are issued, in seconds.
const BACK_DATED: i64 = 26 * 3600;

/// A CA with its own key.
pub struct TestCa {
    /// Its certificate.
    pub der: Vec<u8>,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl TestCa {
    /// A new mesh.
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        TestCa {
            der: certificate.der().to_vec(),
            certificate,
            key,
        }
    }

    /// A new member with a certificate that is valid now.
    pub fn member(&self, role: Role) -> Credentials {
        let key = NodeKey::generate();
        let certificate = self.issue(&key, role, 0);
        Credentials::new(key, certificate, self.der.clone(), "test".into()).unwrap()
    }

    /// A certificate for 90 days, issued by a clock that is `shift` seconds ahead.
    pub fn issue(&self, key: &NodeKey, role: Role, shift: i64) -> Vec<u8> {
        self.issue_names(key, &[key.id().dns_name(), role_dns_name(role)], shift)
    }

    /// As [`TestCa::issue`], with any names.
    pub fn issue_names(&self, key: &NodeKey, names: &[String], shift: i64) -> Vec<u8> {
        self.sign(key.id(), names, shift)
    }

    /// A certificate for the holder of `node`'s key.
    pub fn issue_public(&self, node: NodeId, role: Role) -> Vec<u8> {
        self.sign(node, &[node.dns_name(), role_dns_name(role)], 0)
    }

    fn sign(&self, node: NodeId, names: &[String], shift: i64) -> Vec<u8> {
        let mut params = CertificateParams::new(names.to_vec()).unwrap();
        params.not_before = at(shift - BACK_DATED);
        params.not_after = at(shift + 90 * DAY);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
            .signed_by(&PublicKey(node), &self.certificate, &self.key)
            .unwrap()
            .der()
            .to_vec()
    }
}

struct PublicKey(NodeId);

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }
    fn algorithm(&self) -> &rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn at(seconds_from_now: i64) -> time::OffsetDateTime {
    let distance = Duration::from_secs(seconds_from_now.unsigned_abs());
    let now = SystemTime::now();
    if seconds_from_now < 0 {
        (now - distance).into()
    } else {
        (now + distance).into()
    }
}
