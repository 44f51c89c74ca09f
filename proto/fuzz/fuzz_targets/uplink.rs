//! Datagrams of anything, each behind its length: parsed, and what they carry received.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::Mono;
use unamesh_proto::jitter::{Jitter, Pop};
use unamesh_proto::speech::uplink::Datagram;

fuzz_target!(|bytes: &[u8]| {
    let (mut jitter, mut rest, mut millis) = (Jitter::new(), bytes, 0);
    while let Some((&[low, high, wait], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([low, high]) % 1200).min(after.len());
        let (datagram, after) = after.split_at(length);
        rest = after;
        millis += u64::from(wait);
        let now = Mono::from_micros(millis * 1000);
        if let Ok(datagram) = Datagram::parse(datagram) {
            for (sequence, frame) in datagram.frames() {
                jitter.insert(sequence, frame, now);
            }
        } else if let Some((&end, _)) = datagram.split_first() {
            let _ = jitter.end(u32::from(end), now);
        }
        while jitter.lost().is_some() {}
        let mut next = None;
        loop {
            match jitter.pop(now) {
                Pop::Frame { sequence, .. } | Pop::Conceal { sequence, .. } => {
                    assert!(
                        next.is_none_or(|next| next == sequence),
                        "in order, each once"
                    );
                    next = Some(sequence + 1);
                }
                Pop::Wait(_) | Pop::End => break,
            }
        }
    }
});
