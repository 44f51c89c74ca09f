//! Names of nodes, meshes and generations.

use bincode::{Decode, Encode};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The DNS suffix of every certificate in a mesh: `<node-id>.unamesh.internal`.
/// `.internal` is reserved for private use (ICANN resolution 2024.07.29.06).
pub const DNS_SUFFIX: &str = "unamesh.internal";

/// A node's Ed25519 public key.
///
/// ```
/// use unamesh_proto::NodeId;
///
/// let node = NodeId([7; 32]);
/// assert_eq!(node.to_string().parse(), Ok(node));
/// assert_eq!(node.dns_name(), format!("{node}.unamesh.internal"));
/// assert!("not a node".parse::<NodeId>().is_err());
/// ```
///
/// Its text form is base32 (RFC 4648, lower case, no padding):
/// 52 characters, one DNS label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The first eight characters of the text form: enough for a log line, not for a decision.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }

    /// The name in this node's certificate, and the TLS server name that is dialed.
    pub fn dns_name(&self) -> String {
        format!("{self}.{DNS_SUFFIX}")
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

/// The text was no identifier of the expected form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: expected {expected}")]
pub struct ParseIdError {
    what: &'static str,
    expected: &'static str,
}

impl FromStr for NodeId {
    type Err = ParseIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = ParseIdError {
            what: "node id",
            expected: "52 base32 characters",
        };
        let bytes = BASE32_NOPAD
            .decode(s.to_ascii_uppercase().as_bytes())
            .map_err(|_| err)?;
        Ok(NodeId(bytes.try_into().map_err(|_| err)?))
    }
}

impl serde::Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A mesh: the SHA-256 of its CA certificate (DER). Its text form is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct MeshId(pub [u8; 32]);

impl MeshId {
    /// The mesh that `ca_der`, a CA certificate in DER, stands for.
    pub fn of_ca(ca_der: &[u8]) -> Self {
        MeshId(Sha256::digest(ca_der).into())
    }

    /// Eight characters for mDNS TXT records and topics: tells meshes apart, proves nothing.
    pub fn short(&self) -> String {
        HEXLOWER.encode(&self.0[..4])
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshId({})", self.short())
    }
}

impl FromStr for MeshId {
    type Err = ParseIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = ParseIdError {
            what: "mesh id",
            expected: "64 hexadecimal digits",
        };
        let bytes = HEXLOWER
            .decode(s.to_ascii_lowercase().as_bytes())
            .map_err(|_| err)?;
        Ok(MeshId(bytes.try_into().map_err(|_| err)?))
    }
}

/// One generation on one agent: 128 random bits, unguessable, so that knowing it is the
/// right to attach (together with the same client certificate).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct GenerationId(pub [u8; 16]);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole value would be a right to attach; logs get enough to correlate.
        write!(f, "GenerationId({}..)", HEXLOWER.encode(&self.0[..4]))
    }
}
