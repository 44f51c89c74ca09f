//! The CA itself: one Ed25519 key that signs what makes a node a member.
//!
//! On disk it is the directory `ca/`: `ca.key` (PKCS#8, mode 0600) and `ca.crt` (DER, the
//! same bytes that every member keeps as its trust anchor). The directory is written beside
//! its final place and renamed, so that a crash or a full disk never leaves half a CA.
//!
//! Every issued certificate names `CN=UnaMesh CA` as its issuer. The name is the same in all
//! meshes on purpose: a certificate belongs to a mesh because that mesh's key signed it, and
//! reloading the CA then needs no X.509 parser.

use super::CaError;
use rand::TryRngCore;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
    SerialNumber, SignatureAlgorithm,
};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use unamesh_client::identity::private_only;
use unamesh_proto::ids::DNS_SUFFIX;
use unamesh_proto::wire::Role;
use unamesh_proto::{MeshId, NodeId, Wall};
use zeroize::Zeroizing;

/// How long a member's certificate is valid from its issue.
pub const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// How far certificates are dated back: a clock that is wrong by a day still accepts them,
/// with two hours for wrong time zones.
pub const BACKDATE: Duration = Duration::from_secs(26 * 3600);
/// The CA itself outlives the hardware.
const CA_VALIDITY: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// RFC 5280's bound on a common name (ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The certificate authority of one mesh.
pub struct Ca {
    /// Carries the issuer's name and key identifier for rcgen; its signature is never used.
    issuer: Certificate,
    key: KeyPair,
    der: Vec<u8>,
}

impl Ca {
    /// Makes a CA and writes it to `dir`, which must not exist yet.
    ///
    /// # Errors
    /// There is one already, or the files cannot be written; then nothing has changed.
    pub fn create(dir: &Path, now: Wall) -> Result<Ca, CaError> {
        if dir.exists() {
            return Err(CaError::Exists(dir.to_owned()));
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let issuer = ca_params(now)?.self_signed(&key)?;
        let ca = Ca {
            der: issuer.der().to_vec(),
            issuer,
            key,
        };
        ca.write(dir)?;
        Ok(ca)
    }

    /// Reads the CA in `dir`.
    ///
    /// # Errors
    /// This node holds no CA ([`CaError::Absent`]: only the node that ran `unamesh init`
    /// does), the files are damaged, or other users can read the key.
    pub fn load(dir: &Path) -> Result<Ca, CaError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => CaError::Absent(dir.to_owned()),
                _ => CaError::Io { path, source: e },
            })
        };
        let pkcs8 = Zeroizing::new(read("ca.key")?);
        private_only(&dir.join("ca.key"))?;
        let der = read("ca.crt")?;
        let key = KeyPair::try_from(pkcs8.as_slice())?;
        let issuer = ca_params(Wall::default())?.self_signed(&key)?;
        if !contains(&der, key.public_key_raw()) {
            return Err(CaError::Mismatch(dir.to_owned()));
        }
        Ok(Ca { issuer, key, der })
    }

    /// The CA certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.der
    }

    /// The mesh that this CA stands for.
    pub fn mesh(&self) -> MeshId {
        MeshId::of_ca(&self.der)
    }

    /// Certifies that `node` is a member with `role`, from [`BACKDATE`] before `now` until
    /// [`VALIDITY`] after it. `name` is for people. Returns the certificate, DER.
    ///
    /// # Errors
    /// The role is one of a later version, or signing failed.
    pub fn issue(
        &self,
        node: NodeId,
        role: Role,
        name: &str,
        now: Wall,
    ) -> Result<Vec<u8>, CaError> {
        if matches!(role, Role::Unknown(_)) {
            return Err(CaError::Role(role));
        }
        let mut params = params(common_name(name, &node), now, VALIDITY)?;
        for dns in [
            node.dns_name(),
            format!("{}.role.{DNS_SUFFIX}", role.name()),
        ] {
            params
                .subject_alt_names
                .push(SanType::DnsName(dns.try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&NodePublicKey(node), &self.issuer, &self.key)?;
        Ok(certificate.der().to_vec())
    }

    fn write(&self, dir: &Path) -> Result<(), CaError> {
        let fresh = dir.with_extension(format!("new-{}", std::process::id()));
        let io = |source| CaError::Io {
            path: dir.to_owned(),
            source,
        };
        let written = (|| {
            private_dir(&fresh)?;
            let pkcs8 = Zeroizing::new(self.key.serialize_der());
            private_file(&fresh.join("ca.key"), &pkcs8)?;
            private_file(&fresh.join("ca.crt"), &self.der)?;
            fs::rename(&fresh, dir)
        })();
        if written.is_err() {
            // Best effort: the error that is returned says what matters.
            let _ = fs::remove_dir_all(&fresh);
        }
        written.map_err(io)
    }
}

/// The half of a node's key that the CA knows.
struct NodePublicKey(NodeId);

impl PublicKeyData for NodePublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }
    fn algorithm(&self) -> &SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn ca_params(now: Wall) -> Result<CertificateParams, CaError> {
    let mut params = params("UnaMesh CA".to_owned(), now, CA_VALIDITY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Somebody who adds this CA to a browser's store trusts it with no name of the internet.
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DNS_SUFFIX.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

fn params(name: String, now: Wall, validity: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let issued = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now.as_millis());
    // A clock before 1970 + 26 h (no battery, no network) still gives a valid date.
    params.not_before = issued - BACKDATE.min(Duration::from_millis(now.as_millis()));
    params.not_after = issued + validity;
    // rcgen would derive the serial from the key, and a renewed certificate would share its
    // predecessor's: a revocation list could not tell them apart.
    let mut serial = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut serial)
        .map_err(|_| CaError::Random)?;
    serial[0] = (serial[0] & 0x7f) | 0x01;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// `name` without control characters, cut to what a certificate takes.
fn common_name(name: &str, node: &NodeId) -> String {
    let mut text: String = name.chars().filter(|c| !c.is_control()).collect();
    while text.len() > MAX_COMMON_NAME {
        text.pop();
    }
    if text.trim().is_empty() {
        node.short()
    } else {
        text
    }
}

/// Whether the CA certificate is of this key. The public key stands in it verbatim, and 32
/// bytes of a key do not occur elsewhere by chance.
fn contains(der: &[u8], key: &[u8]) -> bool {
    der.windows(key.len()).any(|window| window == key)
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn private_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_client::clock;
    use unamesh_client::identity::{NodeKey, verify_member};

    fn ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(&dir.path().join("ca"), clock::wall()).unwrap();
        (dir, ca)
    }

    #[test]
    fn issues_what_members_accept() {
        let (_dir, ca) = ca();
        let key = NodeKey::generate();
        for role in [Role::Admin, Role::Agent, Role::Client] {
            let der = ca.issue(key.id(), role, "desk", clock::wall()).unwrap();
            let member = verify_member(&der, ca.certificate(), clock::wall()).unwrap();
            assert_eq!((member.node, member.role), (key.id(), role));
        }
    }

    #[test]
    fn certificates_bridge_a_day_of_clock_error_and_end() {
        let (_dir, ca) = ca();
        let now = clock::wall();
        let der = ca
            .issue(NodeKey::generate().id(), Role::Agent, "n", now)
            .unwrap();
        let at = |ms: i64| {
            let wall = Wall::from_millis(now.as_millis().saturating_add_signed(ms));
            verify_member(&der, ca.certificate(), wall)
        };
        let hour = 3_600_000;
        assert!(at(-25 * hour).is_ok());
        assert!(at(-27 * hour).is_err());
        assert!(at(89 * 24 * hour).is_ok());
        assert!(at(91 * 24 * hour).is_err());
    }

    #[test]
    fn reloaded_ca_issues_for_the_same_mesh() {
        let (dir, ca) = ca();
        let again = Ca::load(&dir.path().join("ca")).unwrap();
        assert_eq!(again.mesh(), ca.mesh());
        let node = NodeKey::generate().id();
        let der = again.issue(node, Role::Agent, "", clock::wall()).unwrap();
        assert_eq!(
            verify_member(&der, ca.certificate(), clock::wall())
                .unwrap()
                .node,
            node
        );
    }

    #[test]
    fn foreign_ca_with_the_same_name_is_refused() {
        let ((_a, ours), (_b, theirs)) = (ca(), ca());
        let der = theirs
            .issue(NodeKey::generate().id(), Role::Admin, "x", clock::wall())
            .unwrap();
        assert!(verify_member(&der, ours.certificate(), clock::wall()).is_err());
    }

    #[test]
    fn serials_differ_between_renewals() {
        let (_dir, ca) = ca();
        let node = NodeKey::generate().id();
        let issue = || ca.issue(node, Role::Agent, "n", clock::wall()).unwrap();
        assert_ne!(issue(), issue());
    }

    #[test]
    fn never_overwrites_and_names_what_is_missing() {
        let (dir, _ca) = ca();
        let path = dir.path().join("ca");
        assert!(matches!(
            Ca::create(&path, clock::wall()),
            Err(CaError::Exists(_))
        ));
        assert!(matches!(
            Ca::load(&dir.path().join("none")),
            Err(CaError::Absent(_))
        ));
        let other = Ca::create(&dir.path().join("other"), clock::wall()).unwrap();
        fs::write(path.join("ca.crt"), other.certificate()).unwrap();
        assert!(matches!(Ca::load(&path), Err(CaError::Mismatch(_))));
    }

    #[cfg(unix)]
    #[test]
    fn the_key_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, _ca) = ca();
        let mode = |p: &str| {
            fs::metadata(dir.path().join(p))
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(mode("ca/ca.key") & 0o777, 0o600);
        assert_eq!(mode("ca") & 0o777, 0o700);
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.path().join("ca/ca.key"), open).unwrap();
        assert!(matches!(
            Ca::load(&dir.path().join("ca")),
            Err(CaError::Identity(_))
        ));
    }

    #[test]
    fn names_are_cut_at_characters() {
        let node = NodeKey::generate().id();
        assert_eq!(common_name("a\nb", &node), "ab");
        assert_eq!(common_name(" ", &node), node.short());
        assert!(common_name(&"ü".repeat(40), &node).len() <= MAX_COMMON_NAME);
    }
}
