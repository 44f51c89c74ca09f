//! The one place that knows bincode.
//!
//! A record is `[kind u16 LE][len u32 LE][body]`. The body is the bincode 2 encoding
//! (standard configuration: little endian, variable-length integers) of the kind's first
//! version, followed by zero or more extension structs of later versions. A reader decodes
//! what it knows and ignores what follows, so a newer peer may append; a record of an unknown
//! kind is skipped by its length. bincode itself does not evolve (an added field makes the
//! old reader fail), which is why fields are only ever appended as extensions.
//!
//! Hostile lengths: the body length is checked against the kind's class before a byte is
//! buffered, and bincode's own limit makes a claimed container length larger than the class
//! an error before anything is allocated. `Vec<()>` and recursive types would defeat that
//! limit and do not occur in any record.

use crate::limits;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError as Undecoded, EncodeError as Unencoded};
use bincode::{Decode, Encode};

/// The bytes of a record's header: kind and length.
pub const HEADER: usize = 6;

const STANDARD: Configuration = bincode::config::standard();
type Bounded<const N: usize> = Configuration<LittleEndian, Varint, Limit<N>>;

/// How large a record of a kind may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// At most [`limits::MAX_SMALL_RECORD`].
    Small,
    /// At most [`limits::MAX_MEDIUM_RECORD`].
    Medium,
    /// At most [`limits::MAX_RECORD`].
    Large,
}

impl Class {
    /// The bound in bytes, header excluded.
    pub const fn limit(self) -> usize {
        match self {
            Class::Small => limits::MAX_SMALL_RECORD,
            Class::Medium => limits::MAX_MEDIUM_RECORD,
            Class::Large => limits::MAX_RECORD,
        }
    }
}

/// A message that travels as one record.
pub trait Record: Encode + Decode<()> {
    /// The kind in the header; never reused.
    const KIND: u16;
    /// The name in `PROTOCOL.md`.
    const NAME: &'static str;
    /// The size class.
    const CLASS: Class = Class::Small;
}

/// A yes or no that a later version appended as a record's last field: one byte 1 if it is set,
/// else nothing, so that a record without it is what it was, and an older peer's means no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended(pub bool);

impl Encode for Appended {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), Unencoded> {
        match self.0 {
            true => 1u8.encode(encoder),
            false => Ok(()),
        }
    }
}

impl<C> Decode<C> for Appended {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, Undecoded> {
        match u8::decode(decoder) {
            Ok(byte) => Ok(Appended(byte == 1)),
            Err(Undecoded::UnexpectedEnd { .. }) => Ok(Appended(false)),
            Err(error) => Err(error),
        }
    }
}

bincode::impl_borrow_decode!(Appended);

/// Why bytes were not a record. The stream they came from is closed; nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The header promises more than the kind allows.
    #[error("record of kind {kind:#06x} claims {len} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The record's kind.
        kind: u16,
        /// The claimed length.
        len: usize,
        /// The bound that it exceeds.
        limit: usize,
    },
    /// The body does not decode as its kind.
    #[error("malformed {name} record: {reason}")]
    Malformed {
        /// The record's name in `PROTOCOL.md`.
        name: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A record of another kind stands where `expected` should.
    #[error("expected a {expected} record, got kind {kind:#06x}")]
    Unexpected {
        /// The name of the expected record.
        expected: &'static str,
        /// The kind that came.
        kind: u16,
    },
}

/// Appends `record` to `out` as header and body.
///
/// # Errors
/// The body exceeds the class of its kind; `out` is as before.
pub fn encode<R: Record>(record: &R, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let start = out.len();
    out.extend_from_slice(&R::KIND.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let written = bincode::encode_into_std_write(record, out, STANDARD);
    let len = out.len() - start - HEADER;
    let limit = R::CLASS.limit();
    match (written, u32::try_from(len)) {
        (Ok(_), Ok(len32)) if len <= limit => {
            out[start + 2..start + HEADER].copy_from_slice(&len32.to_le_bytes());
            Ok(())
        }
        (Err(e), _) => {
            out.truncate(start);
            Err(DecodeError::Malformed {
                name: R::NAME,
                reason: e.to_string(),
            })
        }
        _ => {
            out.truncate(start);
            Err(DecodeError::TooLarge {
                kind: R::KIND,
                len,
                limit,
            })
        }
    }
}

/// `record` as header and body.
///
/// ```
/// use unamesh_proto::wire::{Probe, Record, codec};
///
/// let probe = Probe { nonce: 7, wall_ms: 0 };
/// let mut bytes = codec::to_vec(&probe)?;
/// assert_eq!(codec::split(&bytes[..4])?, None, "incomplete: wait for more");
///
/// bytes.extend_from_slice(b"next");
/// let (kind, body, rest) = codec::split(&bytes)?.unwrap_or_default();
/// assert_eq!((kind, rest), (Probe::KIND, &b"next"[..]));
/// assert_eq!(codec::body::<Probe>(body)?, probe);
/// # Ok::<(), codec::DecodeError>(())
/// ```
///
/// # Errors
/// As [`encode`].
pub fn to_vec<R: Record>(record: &R) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(64);
    encode(record, &mut out)?;
    Ok(out)
}

/// Reads a header: the kind and the body's length.
pub fn header(bytes: [u8; HEADER]) -> (u16, usize) {
    let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
    let len = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    (kind, len as usize)
}

/// Decodes a body as an `R`. Bytes after the known fields are a later version's extensions
/// and are ignored.
///
/// # Errors
/// The body is too large for its class or malformed.
pub fn body<R: Record>(bytes: &[u8]) -> Result<R, DecodeError> {
    body_with_rest(bytes).map(|(record, _)| record)
}

/// As [`body`], and returns the bytes after the known fields for extension structs.
///
/// # Errors
/// As [`body`].
pub fn body_with_rest<R: Record>(bytes: &[u8]) -> Result<(R, &[u8]), DecodeError> {
    let limit = R::CLASS.limit();
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge {
            kind: R::KIND,
            len: bytes.len(),
            limit,
        });
    }
    let decoded = match R::CLASS {
        Class::Small => bounded::<R, { limits::MAX_SMALL_RECORD }>(bytes),
        Class::Medium => bounded::<R, { limits::MAX_MEDIUM_RECORD }>(bytes),
        Class::Large => bounded::<R, { limits::MAX_RECORD }>(bytes),
    };
    let (record, used) = decoded.map_err(|e| DecodeError::Malformed {
        name: R::NAME,
        reason: e.to_string(),
    })?;
    Ok((record, bytes.get(used..).unwrap_or_default()))
}

fn bounded<R: Record, const N: usize>(
    bytes: &[u8],
) -> Result<(R, usize), bincode::error::DecodeError> {
    const fn config<const N: usize>() -> Bounded<N> {
        STANDARD.with_limit::<N>()
    }
    bincode::decode_from_slice(bytes, config::<N>())
}

/// Splits the first whole record off `bytes`: `(kind, body, rest)`, or `None` while it is
/// incomplete.
///
/// # Errors
/// The header claims more than any record may have.
#[allow(clippy::type_complexity)]
pub fn split(bytes: &[u8]) -> Result<Option<(u16, &[u8], &[u8])>, DecodeError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let (kind, len) = header(*head);
    if len > limits::MAX_RECORD {
        return Err(DecodeError::TooLarge {
            kind,
            len,
            limit: limits::MAX_RECORD,
        });
    }
    Ok(rest
        .split_at_checked(len)
        .map(|(body, rest)| (kind, body, rest)))
}

/// Declares an enum that travels as one byte and keeps codes that this version does not
/// know, so that a newer peer's variant never breaks an older reader.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)+
            /// A code of a later version.
            Unknown(u8),
        }

        impl $name {
            /// Every variant that this version knows.
            pub const KNOWN: &'static [$name] = &[$($name::$variant),+];

            /// The byte on the wire.
            pub const fn code(self) -> u8 {
                match self { $($name::$variant => $code,)+ $name::Unknown(code) => code }
            }

            /// The variant of a byte.
            pub const fn from_code(code: u8) -> Self {
                match code { $($code => $name::$variant,)+ other => $name::Unknown(other) }
            }

            /// The name in documents, logs and JSON.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ $name::Unknown(_) => "unknown" }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(&self, e: &mut E) -> Result<(), bincode::error::EncodeError> {
                bincode::Encode::encode(&self.code(), e)
            }
        }

        impl<C> bincode::Decode<C> for $name {
            fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
                <u8 as bincode::Decode<C>>::decode(d).map(Self::from_code)
            }
        }

        impl<'de, C> bincode::BorrowDecode<'de, C> for $name {
            fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
                <u8 as bincode::BorrowDecode<'de, C>>::borrow_decode(d).map(Self::from_code)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.name())
            }
        }
    };
}
pub(crate) use open_enum;
