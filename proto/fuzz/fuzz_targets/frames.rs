//! A stream of anything: split into records, each decoded as a frame of a generation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::wire::{GenFrame, codec};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((kind, body, after))) = codec::split(rest) {
        if let Ok(Some(frame)) = GenFrame::decode(kind, body) {
            let mut out = Vec::new();
            assert!(frame.encode(&mut out).is_ok(), "what decodes encodes");
        }
        rest = after;
    }
});
