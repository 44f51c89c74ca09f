//! A stream of anything: split into records, each decoded as a frame of a generation, of speech
//! and of a transcript.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::wire::{GenFrame, HearFrame, SpeakFrame, codec};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((kind, body, after))) = codec::split(rest) {
        let mut out = Vec::new();
        if let Ok(Some(frame)) = GenFrame::decode(kind, body) {
            assert!(frame.encode(&mut out).is_ok(), "what decodes encodes");
        }
        if let Ok(Some(frame)) = SpeakFrame::decode(kind, body) {
            assert!(frame.encode(&mut out).is_ok(), "what decodes encodes");
        }
        if let Ok(Some(frame)) = HearFrame::decode(kind, body) {
            assert!(frame.encode(&mut out).is_ok(), "what decodes encodes");
        }
        rest = after;
    }
});
