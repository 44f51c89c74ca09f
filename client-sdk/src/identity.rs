//! Who this node is: its Ed25519 key, its certificate, the mesh's CA, and the check that turns
//! another node's certificate into a [`Member`].
//!
//! On disk (state directory, each file mode 0600, replaced atomically):
//! - `node.key`: the private key, PKCS #8 in DER (`openssl pkey -inform DER -in node.key`).
//! - `node.crt`, `ca.crt`: certificates in DER (`openssl x509 -inform DER -in node.crt -text`).
//! - `mesh.json`: the mesh's name. Role and mesh id are read from the certificates, so that
//!   no file can contradict them.
//!
//! Membership is one question, asked of stock webpki: does this certificate chain to our CA,
//! now? Two names in it then say who and what: `<node-id>.unamesh.internal` and
//! `<role>.role.unamesh.internal`. The certified key must be the node id itself, so that a
//! certificate cannot name another node.

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer, SigningKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use unamesh_proto::ids::DNS_SUFFIX;
use unamesh_proto::wire::Role;
use unamesh_proto::{MeshId, NodeId, Wall};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use zeroize::Zeroizing;

const KEY_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.crt";
const CA_FILE: &str = "ca.crt";
const MESH_FILE: &str = "mesh.json";

/// PKCS #8 version 1 around an Ed25519 seed (RFC 8410): what comes before the 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// SubjectPublicKeyInfo around an Ed25519 key (RFC 8410): what comes before the 32 bytes.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A node's private key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        rand::Rng::fill(&mut rand::rng(), seed.as_mut_slice());
        NodeKey(SigningKey::from_bytes(&seed))
    }

    /// Reads a key that [`NodeKey::save`] wrote.
    ///
    /// # Errors
    /// The file is missing, unreadable, open to other users, or no such key.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let bytes = Zeroizing::new(read(path)?);
        private_only(path)?;
        let malformed = || IdentityError::Malformed {
            path: path.to_owned(),
            reason: "not an Ed25519 key in PKCS #8 DER".into(),
        };
        let seed = bytes.strip_prefix(&PKCS8_PREFIX).ok_or_else(malformed)?;
        let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| malformed())?);
        Ok(NodeKey(SigningKey::from_bytes(&seed)))
    }

    /// Writes the key, mode 0600, replacing what was there.
    ///
    /// # Errors
    /// The directory is not writable or full; what was there is still there.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, &self.to_pkcs8())
    }

    /// The key in `path`; a new one is made and saved if there is none.
    ///
    /// # Errors
    /// As [`NodeKey::load`] and [`NodeKey::save`]; an existing file is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                let key = Self::generate();
                key.save(path)?;
                Ok(key)
            }
            other => other,
        }
    }

    /// The public key: this node's name.
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// An Ed25519 signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The 32 secret bytes, for the libraries that derive their own key type from them.
    pub fn secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The key in PKCS #8 DER.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + 32));
        der.extend_from_slice(&PKCS8_PREFIX);
        der.extend_from_slice(self.secret().as_slice());
        der
    }

    /// The key as rustls takes it (and keeps it, outside of our wiping).
    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.to_pkcs8().to_vec()))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id().short())
    }
}

/// A node's membership: key, certificate and the CA that issued it.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The private key.
    pub key: NodeKey,
    /// This node's certificate, DER.
    pub certificate: Vec<u8>,
    /// The mesh's CA certificate, DER.
    pub ca: Vec<u8>,
    /// As in the certificate.
    pub role: Role,
    /// The mesh: the CA's fingerprint.
    pub mesh: MeshId,
    /// For people.
    pub mesh_name: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct MeshFile {
    name: String,
}

impl Credentials {
    /// Puts a membership together.
    ///
    /// # Errors
    /// The certificate is malformed or not this key's. Chain and dates are not checked: a
    /// node with a wrong clock or an expired certificate still knows who it is, and the
    /// handshake says what is wrong.
    pub fn new(
        key: NodeKey,
        certificate: Vec<u8>,
        ca: Vec<u8>,
        mesh_name: String,
    ) -> Result<Self, MemberError> {
        let member = names(&parse(&CertificateDer::from(certificate.as_slice()))?)?;
        if member.node != key.id() {
            return Err(MemberError::KeyMismatch { named: member.node });
        }
        let mesh = MeshId::of_ca(&ca);
        Ok(Credentials {
            key,
            certificate,
            ca,
            role: member.role,
            mesh,
            mesh_name,
        })
    }

    /// This node's name.
    pub fn node(&self) -> NodeId {
        self.key.id()
    }

    /// Reads what [`Credentials::save`] wrote to `dir`.
    ///
    /// # Errors
    /// [`IdentityError::NotPaired`] if a file is missing; otherwise which file is wrong.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let missing = |e| match e {
            IdentityError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                IdentityError::NotPaired {
                    dir: dir.to_owned(),
                }
            }
            other => other,
        };
        let key = NodeKey::load(&dir.join(KEY_FILE)).map_err(missing)?;
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let certificate = read(&certificate_path).map_err(missing)?;
        let ca = read(&dir.join(CA_FILE)).map_err(missing)?;
        let mesh_path = dir.join(MESH_FILE);
        let mesh_bytes = read(&mesh_path).map_err(missing)?;
        let mesh: MeshFile =
            serde_json::from_slice(&mesh_bytes).map_err(|e| IdentityError::Malformed {
                path: mesh_path,
                reason: e.to_string(),
            })?;
        Self::new(key, certificate, ca, mesh.name).map_err(|e| IdentityError::Malformed {
            path: certificate_path,
            reason: e.to_string(),
        })
    }

    /// Writes the membership to `dir`, which must exist. The certificate comes last but one
    /// and the mesh file last, so that an interrupted save reads as "not paired".
    ///
    /// # Errors
    /// The directory is not writable or full.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        self.key.save(&dir.join(KEY_FILE))?;
        write_private(&dir.join(CA_FILE), &self.ca)?;
        write_private(&dir.join(CERTIFICATE_FILE), &self.certificate)?;
        let mesh = serde_json::json!({ "name": self.mesh_name });
        write_private(&dir.join(MESH_FILE), mesh.to_string().as_bytes())
    }
}

/// A node whose certificate was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
}

/// Why a certificate makes nobody a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// No X.509 certificate as webpki reads it.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// Another CA issued it: the node belongs to another mesh.
    #[error("the certificate was not issued by this mesh's CA: the node is of another mesh")]
    OtherMesh,
    /// It is over.
    #[error("the certificate has expired: check the clocks, or join again with a new invitation")]
    Expired,
    /// It has not begun, although certificates are back-dated by 26 hours.
    #[error("the certificate is not valid yet: one of the clocks is wrong by more than a day")]
    NotYetValid,
    /// It lacks the names of a member.
    #[error("the certificate names no node and role of a mesh: {0}")]
    Names(String),
    /// Its key is not the node that it names.
    #[error("the certificate names {named}, whose key is another")]
    KeyMismatch {
        /// The name in it.
        named: NodeId,
    },
}

/// Checks that `certificate` (DER) was issued by `ca` (DER), is valid at `now` and names a
/// node of the mesh.
///
/// # Errors
/// It does not; nothing in it may be believed.
pub fn verify_member(certificate: &[u8], ca: &[u8], now: Wall) -> Result<Member, MemberError> {
    let certificate = CertificateDer::from(certificate);
    let ca = CertificateDer::from(ca);
    let anchor =
        anchor_from_trusted_cert(&ca).map_err(|e| MemberError::Malformed(format!("CA: {e}")))?;
    let parsed = parse(&certificate)?;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now.as_millis()));
    parsed
        .verify_for_usage(
            crate::tls::provider().signature_verification_algorithms.all,
            &[anchor],
            &[],
            time,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(chain_error)?;
    names(&parsed)
}

fn parse<'a>(certificate: &'a CertificateDer<'a>) -> Result<EndEntityCert<'a>, MemberError> {
    EndEntityCert::try_from(certificate).map_err(|e| MemberError::Malformed(e.to_string()))
}

fn chain_error(e: webpki::Error) -> MemberError {
    match e {
        webpki::Error::CertExpired { .. } => MemberError::Expired,
        webpki::Error::CertNotValidYet { .. } => MemberError::NotYetValid,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            MemberError::OtherMesh
        }
        other => MemberError::Malformed(other.to_string()),
    }
}

/// Node and role from the subject alternative names; exactly one of each.
fn names(certificate: &EndEntityCert<'_>) -> Result<Member, MemberError> {
    let (mut node, mut role) = (None, None);
    for name in certificate.valid_dns_names() {
        let Some(label) = name
            .strip_suffix(DNS_SUFFIX)
            .and_then(|l| l.strip_suffix('.'))
        else {
            continue;
        };
        let twice = match (label.strip_suffix(".role"), label.parse::<NodeId>()) {
            (Some(text), _) => role.replace(role_of(text)?).is_some(),
            (None, Ok(id)) => node.replace(id).is_some(),
            (None, Err(_)) => continue,
        };
        if twice {
            return Err(MemberError::Names(format!(
                "a second name of the kind of {name}"
            )));
        }
    }
    let node = node.ok_or_else(|| MemberError::Names("no node name".into()))?;
    let role = role.ok_or_else(|| MemberError::Names("no role name".into()))?;
    let spki = certificate.subject_public_key_info();
    if spki.strip_prefix(&SPKI_PREFIX) != Some(node.0.as_slice()) {
        return Err(MemberError::KeyMismatch { named: node });
    }
    Ok(Member { node, role })
}

fn role_of(text: &str) -> Result<Role, MemberError> {
    let known = Role::KNOWN.iter().find(|r| r.name() == text);
    known
        .copied()
        .ok_or_else(|| MemberError::Names(format!("unknown role `{text}`")))
}

/// The name in the certificate of a node with `role`.
pub fn role_dns_name(role: Role) -> String {
    format!("{role}.role.{DNS_SUFFIX}")
}

/// Why the identity on disk could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none (or only the key).
    #[error(
        "{} holds no mesh membership: run `unamesh init` to start a mesh, or `unamesh join LINK`",
        dir.display()
    )]
    NotPaired {
        /// The state directory.
        dir: PathBuf,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Of what file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Other users could read the private key.
    #[error("{}: other users can read it: run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Checks that no other user can read `path`, where the system knows users.
///
/// # Errors
/// [`IdentityError::Exposed`], or it cannot be looked at.
#[cfg(unix)]
pub fn private_only(path: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).map_err(|source| IdentityError::Io {
        path: path.to_owned(),
        source,
    })?;
    match meta.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(IdentityError::Exposed {
            path: path.to_owned(),
        }),
    }
}

/// Checks that no other user can read `path`, where the system knows users.
///
/// # Errors
/// None here.
#[cfg(not(unix))]
pub fn private_only(_: &Path) -> Result<(), IdentityError> {
    Ok(())
}

/// Makes a rename survive a power cut, where the file system offers that.
fn sync_parent(path: &Path) {
    if let Some(directory) = path.parent().and_then(|dir| std::fs::File::open(dir).ok()) {
        // Not every file system can; the file itself is safe in either case.
        let _ = directory.sync_all();
    }
}

/// Replaces `path` by `bytes`, mode 0600, at once: a reader (or a crash) sees the old content
/// or the new one, never a part.
///
/// # Errors
/// The directory is missing, not writable or full; what was there is still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let io = |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    };
    let mut suffix = [0u8; 8];
    rand::Rng::fill(&mut rand::rng(), &mut suffix);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", HEXLOWER.encode(&suffix)));
    let temporary = PathBuf::from(temporary);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_parent(path);
        Ok(())
    });
    if written.is_err() {
        // The error that matters is the first; a leftover is only untidy.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(io)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "identity_tests.rs"]
mod tests;
