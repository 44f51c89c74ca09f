//! What a node says of itself, signed: made by its owner, checked by everybody.
//!
//! A [`SignedAdvert`] travels by gossip and is passed on by nodes that did not write it, so it
//! proves itself: the signature is made with the node's own key, and the certificate shows
//! that this key is a member. This module checks the first half (structure, bounds,
//! signature); the certificate's chain is the caller's, who knows the mesh's CA.
//!
//! Order of checks: size, structure, signature, bounds. Decoding comes before the signature
//! since the key stands in the payload; it is bounded by its record class, so that a forger
//! costs us one Ed25519 check and no memory.

use crate::limits;
use crate::wire::codec::{self, HEADER};
use crate::wire::{Advert, DecodeError, Record, SignedAdvert, Stats};
use ed25519_dalek::{Signature, VerifyingKey};

/// Precedes the payload in what is signed, so that a signature made for another purpose can
/// never pass for an advert.
pub const SIGNING_CONTEXT: &[u8] = b"unamesh advert v1";

/// Why a signed advert was not believed. It is dropped and counted; the table is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertError {
    /// Certificate, payload and signature exceed [`limits::MAX_ADVERT`].
    #[error("advert of {len} bytes, at most {} are allowed", limits::MAX_ADVERT)]
    TooLarge {
        /// Bytes in all.
        len: usize,
    },
    /// The payload is no `Advert` record.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// Not signed by the key that it names, or that key is no key.
    #[error("the signature does not belong to the node that the advert names")]
    BadSignature,
    /// Well signed, and beyond a bound.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

/// A field of an advert exceeds what this version allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("advert: {what} (limit {limit})")]
pub struct OutOfBounds {
    /// Which field, and what is wrong with it.
    pub what: &'static str,
    /// The bound.
    pub limit: usize,
}

/// Signs `advert` with `sign`, which gets the bytes to sign and returns an Ed25519 signature.
///
/// # Errors
/// The advert exceeds its bounds or, with `certificate`, [`limits::MAX_ADVERT`].
pub fn sign(
    advert: &Advert,
    certificate: Vec<u8>,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Result<SignedAdvert, DecodeError> {
    check_bounds(advert).map_err(|e| DecodeError::Malformed {
        name: Advert::NAME,
        reason: e.to_string(),
    })?;
    let payload = codec::to_vec(advert)?;
    let len = size(&certificate, &payload);
    if len > limits::MAX_ADVERT {
        let (kind, limit) = (SignedAdvert::KIND, limits::MAX_ADVERT);
        return Err(DecodeError::TooLarge { kind, len, limit });
    }
    let signature = sign(&signing_input(&payload));
    Ok(SignedAdvert {
        certificate,
        payload,
        signature,
    })
}

/// Opens `signed`: the advert in it is what its node signed, and within bounds. Whether the
/// node is a **member** (the certificate's chain, and that it names the same node) the caller
/// checks.
///
/// # Errors
/// See [`AdvertError`].
pub fn open(signed: &SignedAdvert) -> Result<Advert, AdvertError> {
    let len = size(&signed.certificate, &signed.payload);
    if len > limits::MAX_ADVERT {
        return Err(AdvertError::TooLarge { len });
    }
    let advert = decode(&signed.payload)?;
    let key = VerifyingKey::from_bytes(&advert.node.0).map_err(|_| AdvertError::BadSignature)?;
    // Strict: small-order keys, which verify more than one message, are refused.
    key.verify_strict(
        &signing_input(&signed.payload),
        &Signature::from_bytes(&signed.signature),
    )
    .map_err(|_| AdvertError::BadSignature)?;
    check_bounds(&advert)?;
    Ok(advert)
}

/// Shortens `advert` until it can be signed beside a certificate of `certificate` bytes: drops
/// voices, then models, from their ends. Returns how many entries went; 0 almost always.
pub fn shrink(advert: &mut Advert, certificate: usize) -> usize {
    let before = advert.voices.len() + advert.models.len();
    advert.models.truncate(limits::MAX_MODELS);
    advert.voices.truncate(limits::MAX_VOICES);
    advert.addrs.truncate(limits::MAX_ADDRS);
    advert.hardware.gpus.truncate(limits::MAX_GPUS);
    let fits = |a: &Advert| {
        codec::to_vec(a).is_ok_and(|p| p.len() + certificate + 64 <= limits::MAX_ADVERT)
    };
    while !fits(advert) {
        if !advert.voices.is_empty() {
            advert.voices.truncate(advert.voices.len() / 2);
        } else if !advert.models.is_empty() {
            advert.models.truncate(advert.models.len() * 3 / 4);
        } else {
            break;
        }
    }
    before - advert.voices.len() - advert.models.len()
}

fn size(certificate: &[u8], payload: &[u8]) -> usize {
    certificate.len() + payload.len() + 64
}

fn signing_input(payload: &[u8]) -> Vec<u8> {
    [SIGNING_CONTEXT, payload].concat()
}

/// The payload is exactly one `Advert` record: bytes behind it would be signed by nobody's
/// intention.
fn decode(payload: &[u8]) -> Result<Advert, DecodeError> {
    let malformed = |reason: &str| DecodeError::Malformed {
        name: Advert::NAME,
        reason: reason.to_owned(),
    };
    let (head, body) = payload
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| malformed("shorter than a header"))?;
    let (kind, len) = codec::header(*head);
    if kind != Advert::KIND {
        return Err(DecodeError::Unexpected {
            expected: Advert::NAME,
            kind,
        });
    }
    if len != body.len() {
        return Err(malformed("length in the header differs from the payload's"));
    }
    codec::body(body)
}

/// The bounds that the record's size class alone does not give.
fn check_bounds(advert: &Advert) -> Result<(), OutOfBounds> {
    let at_most = |what, len: usize, limit| {
        if len > limit {
            Err(OutOfBounds { what, limit })
        } else {
            Ok(())
        }
    };
    at_most("addresses", advert.addrs.len(), limits::MAX_ADDRS)?;
    at_most("GPUs", advert.hardware.gpus.len(), limits::MAX_GPUS)?;
    at_most("engines", advert.engines.len(), limits::MAX_ENGINES)?;
    at_most("models", advert.models.len(), limits::MAX_MODELS)?;
    at_most("voices", advert.voices.len(), limits::MAX_VOICES)?;

    let engines = advert.engines.len();
    let owned = advert
        .models
        .iter()
        .map(|m| m.engine)
        .chain(advert.voices.iter().map(|v| v.engine));
    for engine in owned {
        if usize::from(engine) >= engines {
            return Err(OutOfBounds {
                what: "engine index without an engine",
                limit: engines,
            });
        }
    }
    for text in texts(advert) {
        at_most("length of a name", text.len(), limits::MAX_NAME)?;
    }
    if !advert.models.iter().all(|m| plausible(&m.stats)) {
        return Err(OutOfBounds {
            what: "a measured time",
            limit: MAX_STAT_MS as usize,
        });
    }
    Ok(())
}

/// A day in milliseconds: no measured time is longer, and a NaN would poison every comparison.
const MAX_STAT_MS: f32 = 86_400_000.0;

fn plausible(stats: &Stats) -> bool {
    [
        stats.ttft_ms,
        stats.ttft_per_ktok_ms,
        stats.itl_ms,
        stats.load_ms,
    ]
    .iter()
    .all(|ms| (0.0..=MAX_STAT_MS).contains(ms))
}

fn texts(advert: &Advert) -> impl Iterator<Item = &String> {
    let own = [
        &advert.name,
        &advert.version,
        &advert.hardware.os,
        &advert.hardware.cpu,
    ];
    let gpus = advert.hardware.gpus.iter().map(|g| &g.name);
    let engines = advert.engines.iter().map(|e| &e.name);
    let models = advert
        .models
        .iter()
        .flat_map(|m| [&m.name, &m.digest, &m.family, &m.quantization]);
    let voices = advert.voices.iter().flat_map(|v| [&v.name, &v.language]);
    own.into_iter()
        .chain(gpus)
        .chain(engines)
        .chain(models)
        .chain(voices)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::ids::NodeId;
    use crate::testing::{advert_of, engine, model};
    use ed25519_dalek::{Signer, SigningKey};

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn signed(change: impl FnOnce(&mut Advert)) -> SignedAdvert {
        let key = key();
        let mut advert = advert_of(NodeId(key.verifying_key().to_bytes()), 1, 1);
        change(&mut advert);
        // Not through `sign`, which would refuse what the tests want refused by `open`.
        let payload = codec::to_vec(&advert).unwrap();
        let signature = key.sign(&signing_input(&payload)).to_bytes();
        SignedAdvert {
            certificate: vec![1, 2, 3],
            payload,
            signature,
        }
    }

    #[test]
    fn opens_what_was_signed() {
        let key = key();
        let advert = advert_of(NodeId(key.verifying_key().to_bytes()), 5, 6);
        let signed = sign(&advert, vec![9; 300], |m| key.sign(m).to_bytes()).unwrap();
        assert_eq!(open(&signed).unwrap(), advert);
    }

    #[test]
    fn a_changed_byte_anywhere_in_the_payload_is_refused() {
        let good = signed(|_| {});
        for at in 0..good.payload.len() {
            let mut bad = good.clone();
            bad.payload[at] ^= 1;
            assert!(open(&bad).is_err(), "byte {at}");
        }
        let mut bad = good.clone();
        bad.signature[0] ^= 1;
        assert_eq!(open(&bad), Err(AdvertError::BadSignature));
    }

    #[test]
    fn an_advert_for_another_node_is_refused() {
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
        assert_eq!(
            open(&signed(|a| a.node = NodeId(other))),
            Err(AdvertError::BadSignature)
        );
        // All zeros is a small-order point: "signs" anything under lax verification.
        assert_eq!(
            open(&signed(|a| a.node = NodeId([0; 32]))),
            Err(AdvertError::BadSignature)
        );
    }

    #[test]
    fn bounds_hold_even_when_signed() {
        type Change = fn(&mut Advert);
        let changes: [Change; 6] = [
            |a| a.addrs = vec![a.addrs[0]; limits::MAX_ADDRS + 1],
            |a| a.models = vec![model("m", 0); limits::MAX_MODELS + 1],
            |a| a.engines = vec![engine("e"); limits::MAX_ENGINES + 1],
            |a| a.name = "x".repeat(limits::MAX_NAME + 1),
            |a| a.models[0].engine = 9,
            |a| a.models[0].stats.ttft_ms = f32::NAN,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let got = open(&signed(change));
            assert!(
                matches!(got, Err(AdvertError::OutOfBounds(_))),
                "change {at}: {got:?}"
            );
        }
        let mut big = signed(|_| {});
        big.certificate = vec![0; limits::MAX_ADVERT];
        assert!(matches!(open(&big), Err(AdvertError::TooLarge { .. })));
    }

    #[test]
    fn trailing_bytes_and_other_kinds_are_refused() {
        let mut long = signed(|_| {});
        long.payload.push(0);
        assert!(matches!(open(&long), Err(AdvertError::Malformed(_))));
        let mut short = signed(|_| {});
        short.payload.truncate(3);
        assert!(matches!(open(&short), Err(AdvertError::Malformed(_))));
        let mut kind = signed(|_| {});
        kind.payload[0] ^= 0xff;
        assert!(matches!(
            open(&kind),
            Err(AdvertError::Malformed(DecodeError::Unexpected { .. }))
        ));
    }

    #[test]
    fn an_overfull_advert_shrinks_until_it_can_be_signed() {
        let key = key();
        let mut advert = advert_of(NodeId(key.verifying_key().to_bytes()), 1, 1);
        advert.models = (0..400).map(|i| model(&format!("{i:0>200}"), 0)).collect();
        assert!(shrink(&mut advert, 400) > 0);
        assert!(sign(&advert, vec![0; 400], |m| key.sign(m).to_bytes()).is_ok());
        assert!(advert.models.len() > 50);
        assert_eq!(shrink(&mut advert, 400), 0);
    }
}
