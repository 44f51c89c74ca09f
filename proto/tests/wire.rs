//! The wire format in fours, for every record: golden bytes, round trip, damaged bytes, and
//! what another version sends.
//!
//! `golden/v1.txt` holds the bytes of version 1. They may never change: a new field travels in
//! an extension struct behind them (see `PROTOCOL.md`). `UNAMESH_BLESS=1` appends what is
//! missing after a record was added.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use data_encoding::HEXLOWER;
use std::collections::BTreeSet;
use unamesh_proto::limits;
use unamesh_proto::testing::records::{Sample, decodes, recode, samples};
use unamesh_proto::wire::codec::{self, HEADER};
use unamesh_proto::wire::*;

const GOLDEN: &str = include_str!("golden/v1.txt");

fn golden_lines() -> Vec<(String, Vec<u8>)> {
    let lines = GOLDEN
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty());
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').expect("a line is `Name hex`");
            (
                name.to_owned(),
                HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal"),
            )
        })
        .collect()
}

#[test]
fn every_record_has_samples() {
    let kinds: BTreeSet<u16> = samples().iter().map(|s| s.kind).collect();
    let all: BTreeSet<u16> = RECORDS.iter().map(|(kind, _, _)| *kind).collect();
    assert_eq!(kinds, all);
    assert_eq!(all.len(), RECORDS.len(), "a kind is used twice");
    assert!(samples().iter().all(|s| !s.bytes.is_empty()));
}

#[test]
fn golden_bytes() {
    let golden = golden_lines();
    let ours: Vec<_> = samples()
        .into_iter()
        .map(|s| (s.name.to_owned(), s.bytes))
        .collect();
    if std::env::var_os("UNAMESH_BLESS").is_some() {
        let mut text = "# Bytes of version 1, one record a line. Never change a line.\n".to_owned();
        for (name, bytes) in &ours {
            text += &format!("{name} {}\n", HEXLOWER.encode(bytes));
        }
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt"),
            text,
        )
        .unwrap();
        return;
    }
    assert_eq!(
        golden.len(),
        ours.len(),
        "records were added: run with UNAMESH_BLESS=1"
    );
    for (was, is) in golden.iter().zip(&ours) {
        assert_eq!(
            was, is,
            "the bytes of {} changed: an older peer cannot read them",
            was.0
        );
    }
}

#[test]
fn round_trip() {
    for sample in samples() {
        let (kind, body, rest) = codec::split(&sample.bytes).unwrap().expect("whole");
        assert_eq!((kind, rest), (sample.kind, &[][..]), "{}", sample.name);
        assert_eq!(
            recode(kind, body),
            Some(Ok(sample.bytes.clone())),
            "{}",
            sample.name
        );
    }
}

#[test]
fn every_truncation_is_an_error_and_none_is_a_record() {
    for Sample {
        kind, name, bytes, ..
    } in samples()
    {
        let body = &bytes[HEADER..];
        // What a later version appended may be missing: that is what an older one sends.
        let appended = usize::from(name == "SpeakRequest" && body.last() == Some(&1));
        for len in 0..body.len() - appended {
            assert!(!decodes(kind, &body[..len]), "{name} cut to {len} bytes");
        }
        for len in 0..bytes.len() {
            assert_eq!(
                codec::split(&bytes[..len]),
                Ok(None),
                "{name} cut to {len} bytes"
            );
        }
    }
}

/// Every byte to every value (a debug build takes some, the length markers among them):
/// decodes to something or is an error, and what decodes is stable.
#[test]
fn every_single_byte_may_be_damaged() {
    let step = if cfg!(debug_assertions) { 17 } else { 1 };
    for sample in samples() {
        let mut body = sample.body().to_vec();
        for at in 0..body.len() {
            let good = body[at];
            for bad in (0..250).step_by(step).chain(250..=255) {
                body[at] = bad;
                if let Some(Ok(again)) = recode(sample.kind, &body) {
                    let twice = recode(sample.kind, &again[HEADER..]);
                    // Bytes, not values: a NaN is not equal to itself.
                    assert_eq!(twice, Some(Ok(again)), "{} byte {at} = {bad}", sample.name);
                }
            }
            body[at] = good;
        }
    }
}

#[test]
fn claimed_lengths_beyond_the_limit_are_refused() {
    for sample in samples() {
        let long = vec![0; sample.limit + 1];
        assert!(matches!(
            recode(sample.kind, &long),
            Some(Err(DecodeError::TooLarge { .. }))
        ));
    }
    let mut header = [0u8; HEADER];
    header[2..].copy_from_slice(&(limits::MAX_RECORD as u32 + 1).to_le_bytes());
    assert!(matches!(
        codec::split(&header),
        Err(DecodeError::TooLarge { .. })
    ));
    // A certificate that claims 2^63 bytes: an error, before anything is allocated.
    let mut body = vec![0xfd];
    body.extend_from_slice(&(1u64 << 63).to_le_bytes());
    assert!(matches!(
        codec::body::<SignedAdvert>(&body),
        Err(DecodeError::Malformed { .. })
    ));
}

#[test]
fn what_does_not_fit_its_class_is_not_sent() {
    let mut out = vec![1, 2, 3];
    let token = Token {
        index: 0,
        chunk: Chunk {
            text: "x".repeat(limits::MAX_MEDIUM_RECORD),
            ids: vec![],
            tokens: 1,
        },
        extra: String::new(),
    };
    assert!(matches!(
        codec::encode(&token, &mut out),
        Err(DecodeError::TooLarge { .. })
    ));
    assert_eq!(out, [1, 2, 3]);
}

/// What a later version appends behind the known fields is skipped, and handed out on demand.
#[test]
fn extensions_of_a_later_version_are_ignored() {
    for sample in samples() {
        let mut longer = sample.body().to_vec();
        longer.extend_from_slice(&[0xff, 1, 2, 3]);
        assert_eq!(
            recode(sample.kind, &longer),
            Some(Ok(sample.bytes.clone())),
            "{}",
            sample.name
        );
    }
    let bytes = codec::to_vec(&Draining { deadline_ms: 5 }).unwrap();
    let body = [&bytes[HEADER..], &[9, 8]].concat();
    let (_, rest) = codec::body_with_rest::<Draining>(&body).unwrap();
    assert_eq!(rest, [9, 8]);
}

#[test]
fn unknown_kinds_are_skipped_and_unknown_variants_kept() {
    assert_eq!(GenFrame::decode(0x7777, &[1, 2, 3]), Ok(None));
    assert_eq!(recode(0x7777, &[]), None);
    let stream = [&[0x77, 0x77, 3, 0, 0, 0, 1, 2, 3][..], &samples()[0].bytes].concat();
    let (kind, _, rest) = codec::split(&stream).unwrap().unwrap();
    assert_eq!(
        (kind, codec::split(rest).unwrap().unwrap().0),
        (0x7777, StreamHeader::KIND)
    );

    let header = StreamHeader {
        version: 1,
        kind: StreamKind::Unknown(200),
    };
    let bytes = codec::to_vec(&header).unwrap();
    assert_eq!(codec::body::<StreamHeader>(&bytes[HEADER..]), Ok(header));
    let error = WireError::new(ErrorCode::Unknown(99), "new");
    let bytes = codec::to_vec(&error).unwrap();
    let back = codec::body::<WireError>(&bytes[HEADER..]).unwrap();
    assert_eq!(back, error);
    assert!(back.code.elsewhere() && back.code.is_failure());
}

/// Version 2 of anything that an old peer cannot ignore has another ALPN, so that the
/// handshake refuses it; a header that slips through still shows its version.
#[test]
fn another_version_is_told_apart() {
    assert_eq!(ALPN, format!("unamesh/{VERSION}").as_bytes());
    assert_eq!(JOIN_ALPN, format!("unamesh-join/{VERSION}").as_bytes());
    let header = StreamHeader {
        version: VERSION + 1,
        kind: StreamKind::Generate,
    };
    let bytes = codec::to_vec(&header).unwrap();
    let back = codec::body::<StreamHeader>(&bytes[HEADER..]).unwrap();
    assert_ne!(back.version, VERSION);
}

#[test]
fn frames_decode_as_what_they_are() {
    macro_rules! check {
        ($frame:ident, $last:pat) => {
            for sample in samples() {
                let Ok(Some(frame)) = $frame::decode(sample.kind, sample.body()) else {
                    continue;
                };
                let mut out = Vec::new();
                frame.encode(&mut out).unwrap();
                assert_eq!(out, sample.bytes);
                let last = matches!(sample.name, $last);
                assert_eq!(frame.is_terminal(), last, "{}", sample.name);
            }
        };
    }
    check!(GenFrame, "Done" | "Error");
    check!(SpeakFrame, "SpeechDone" | "Error");
    check!(HearFrame, "Transcript" | "Error");
}

#[test]
fn requests_for_speech_are_checked() {
    let request = SpeakRequest {
        model: "m".into(),
        engine: 0,
        voice: "v".into(),
        language: String::new(),
        text: "Grüße".into(),
        speed_percent: 0,
        extra: String::new(),
        session: 0,
        from: 5,
        grant_ms: 0,
        one_piece: Appended(false),
    };
    assert_eq!(request.check(), Ok(()));
    let blamed = |request: SpeakRequest| request.check().unwrap_err().field.unwrap();
    let from = SpeakRequest {
        from: 6,
        ..request.clone()
    };
    assert_eq!(blamed(from), "from", "characters, not bytes");
    let text = "x".repeat(limits::MAX_SPEECH_TEXT + 1);
    assert_eq!(
        blamed(SpeakRequest {
            text,
            ..request.clone()
        }),
        "input"
    );
    // The largest that is valid fits its record.
    let text = "x".repeat(limits::MAX_SPEECH_TEXT);
    let extra = "x".repeat(limits::MAX_SPEECH_EXTRA);
    let full = SpeakRequest {
        text,
        extra,
        ..request
    };
    assert!(full.check().is_ok() && codec::to_vec(&full).is_ok());
}
