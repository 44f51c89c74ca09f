//! Damaged input for every decoder: no panic, and memory bounded by the record's limit.
//!
//! `UNAMESH_MUTATIONS` sets how many inputs each decoder gets (default 100,000; a release
//! build does 10 million). Inputs are made from well-formed records by flipping, inserting,
//! deleting, cutting and splicing, and by planting large lengths; they follow from a fixed
//! seed. A counting allocator takes the peak of each decoding.
// What is measured here is real time.
#![allow(clippy::disallowed_methods)]
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use ed25519_dalek::{Signer, SigningKey};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use unamesh_proto::jitter::{Jitter, Pop};
use unamesh_proto::limits::{
    MAX_ADVERT, MAX_AUDIO_DATAGRAM, MAX_MEDIUM_RECORD, MAX_RECORD, MAX_UTTERANCE_FRAMES,
};
use unamesh_proto::speech::uplink::{Datagram, Outgoing};
use unamesh_proto::testing::advert_of;
use unamesh_proto::testing::records::{Sample, decodes, recode, samples};
use unamesh_proto::wire::codec::{self, HEADER};
use unamesh_proto::wire::{GenFrame, HearFrame, RECORDS, SpeakFrame};
use unamesh_proto::{MeshId, Mono, NodeId, advert};

/// Counts the bytes that a thread holds, and their peak.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is being torn down may have no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as promised to us.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` held beyond what was held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let done = work();
    (done, (PEAK.get() - before).unsigned_abs())
}

/// Small, fast, seeded.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        // Multiply and shift: no division on the hot path.
        ((u128::from(self.next()) * n.max(1) as u128) >> 64) as usize
    }
}

/// Numbers that lengths and counts break on, in bincode's variable-length form.
const LENGTHS: [&[u8]; 8] = [
    &[0xfa],
    &[0xfb, 0xff, 0xff],
    &[0xfb, 0xff, 0x3f],
    &[0xfc, 0xff, 0xff, 0xff, 0x7f],
    &[0xfc, 0x00, 0x00, 0x80, 0x00],
    &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[
        0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8,
    ],
];

/// Writes a damaged `base` into `out`.
fn damage(rng: &mut Rng, base: &[u8], other: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(base);
    for _ in 0..=rng.below(3) {
        let at = rng.below(out.len());
        match rng.below(7) {
            0 | 1 if !out.is_empty() => out[at] ^= 1 << rng.below(8),
            2 if !out.is_empty() => out[at] = rng.next() as u8,
            3 => out.truncate(at),
            4 if !out.is_empty() => {
                out.remove(at);
            }
            5 => {
                out.truncate(at);
                let from = rng.below(other.len());
                out.extend_from_slice(&other[from..]);
            }
            _ => {
                let length = LENGTHS[rng.below(LENGTHS.len())];
                let end = (at + length.len()).min(out.len());
                out.splice(at..end, length.iter().copied());
            }
        }
    }
}

fn mutations() -> usize {
    let set = std::env::var("UNAMESH_MUTATIONS").ok();
    set.map_or(100_000, |n| {
        n.replace('_', "")
            .parse()
            .expect("UNAMESH_MUTATIONS is a number")
    })
}

/// Runs `job(0..jobs)` on all cores.
fn on_all_cores(jobs: usize, job: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= jobs {
                        break;
                    }
                    job(at);
                }
            });
        }
    });
}

#[test]
fn every_record_decoder_survives() {
    let all = samples();
    let runs = mutations();
    let started = std::time::Instant::now();
    on_all_cores(RECORDS.len(), |record| {
        let (kind, name, limit) = RECORDS[record];
        let own: Vec<&Sample> = all.iter().filter(|s| s.kind == kind).collect();
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ u64::from(kind));
        let (mut input, mut peak, mut decoded) = (Vec::with_capacity(4096), 0, 0usize);
        for run in 0..runs {
            let base = own[run % own.len()].body();
            let other = all[rng.below(all.len())].body();
            damage(&mut rng, base, other, &mut input);
            let (ok, held) = peak_of(|| decodes(kind, &input));
            peak = held.max(peak);
            decoded += usize::from(ok);
            // Bincode's limit covers what a container claims; text of an error comes on top.
            assert!(
                held <= 2 * limit + 4096,
                "{name}: {held} bytes held for {input:02x?}"
            );
            if ok && run % 16 == 0 {
                let again = recode(kind, &input).unwrap().expect("what decodes encodes");
                assert!(
                    again.len() <= HEADER + input.len(),
                    "{name} grew: {input:02x?}"
                );
                assert_eq!(
                    recode(kind, &again[HEADER..]),
                    Some(Ok(again.clone())),
                    "{name}"
                );
            }
        }
        println!("{name}: {runs} inputs, {decoded} decoded, peak {peak} bytes (limit {limit})");
    });
    println!(
        "{} decoders x {runs} in {:.1?}",
        RECORDS.len(),
        started.elapsed()
    );
}

/// Whole streams: headers damaged too, so that kinds and lengths are anything.
#[test]
fn streams_of_damaged_frames_survive() {
    let whole: Vec<u8> = samples().iter().flat_map(|s| s.bytes.clone()).collect();
    let runs = mutations() / 10;
    let (mut rng, mut input) = (Rng(77), Vec::new());
    for _ in 0..runs {
        let from = rng.below(whole.len());
        let to = (from + rng.below(600)).min(whole.len());
        damage(&mut rng, &whole[from..to], &whole[..HEADER + 2], &mut input);
        let mut rest = input.as_slice();
        while let Ok(Some((kind, body, after))) = codec::split(rest) {
            let (_, held) = peak_of(|| GenFrame::decode(kind, body).is_ok());
            assert!(held <= MAX_MEDIUM_RECORD + 1024);
            let (_, held) = peak_of(|| SpeakFrame::decode(kind, body).is_ok());
            assert!(held <= MAX_MEDIUM_RECORD + 1024);
            let (_, held) = peak_of(|| HearFrame::decode(kind, body).is_ok());
            assert!(held <= MAX_RECORD + 1024);
            rest = after;
        }
    }
}

/// Datagrams of a microphone's frames, and what their receiver makes of them: an utterance holds
/// no more than its limits, whatever comes.
#[test]
fn damaged_datagrams_survive() {
    let mut sent = Outgoing::new(7);
    for n in 0..40u8 {
        sent.push(&vec![n; 40 + usize::from(n)]).unwrap();
    }
    let (mut good, mut other) = (Vec::new(), Vec::new());
    let (mut rng, mut input, mut parsed) = (Rng(21), Vec::new(), 0);
    let mut jitter = Jitter::new();
    for run in 0..mutations() {
        sent.datagram(rng.below(40) as u32, &mut good);
        sent.datagram(rng.below(40) as u32, &mut other);
        damage(&mut rng, &good, &other, &mut input);
        let (datagram, held) = peak_of(|| Datagram::parse(&input));
        assert_eq!(held, 0);
        let Ok(datagram) = datagram else { continue };
        assert!(input.len() <= MAX_AUDIO_DATAGRAM);
        parsed += 1;
        let now = Mono::from_micros(run as u64 * 100);
        for (sequence, frame) in datagram.frames() {
            assert!(sequence <= datagram.sequence() && !frame.is_empty());
            jitter.insert(sequence, frame, now);
        }
        while !matches!(jitter.pop(now), Pop::Wait(_) | Pop::End) {}
        assert!(jitter.frames() <= MAX_UTTERANCE_FRAMES);
        // The next utterance.
        if run % 997 == 0 {
            jitter = Jitter::new();
        }
    }
    println!("{parsed} of {} damaged datagrams parsed", mutations());
}

/// Signed adverts: what is not what its node signed is refused. A hundredth of the runs, since
/// a signature check takes longer than all decoding.
#[test]
fn damaged_adverts_are_refused() {
    let key = SigningKey::from_bytes(&[3; 32]);
    let advert = advert_of(NodeId(key.verifying_key().to_bytes()), 1, 1);
    let good = advert::sign(&advert, vec![0x30; 300], |m| key.sign(m).to_bytes()).unwrap();
    let runs = mutations() / 100;
    on_all_cores(8, |part| {
        let (mut rng, mut payload) = (Rng(5 + part as u64), Vec::new());
        for _ in 0..runs / 8 {
            damage(&mut rng, &good.payload, &good.certificate, &mut payload);
            let mut bad = good.clone();
            bad.payload.clone_from(&payload);
            let (opened, held) = peak_of(|| advert::open(&bad));
            // The payload once more, to check the signature.
            assert!(held <= MAX_MEDIUM_RECORD + MAX_ADVERT + 1024);
            assert_eq!(opened.is_ok(), payload == good.payload);
        }
    });
}

#[test]
fn damaged_names_survive() {
    let node = NodeId([0xa5; 32]).to_string();
    let mesh = MeshId([0x5a; 32]).to_string();
    let (mut rng, mut input) = (Rng(11), Vec::new());
    for _ in 0..mutations() / 10 {
        for good in [&node, &mesh] {
            damage(&mut rng, good.as_bytes(), b"=\xff\xc3zZ9", &mut input);
            let text = String::from_utf8_lossy(&input);
            // Whatever parses prints as something that parses to the same.
            if let Ok(id) = text.parse::<NodeId>() {
                assert_eq!(id.to_string().parse::<NodeId>().ok(), Some(id));
            }
            if let Ok(id) = text.parse::<MeshId>() {
                assert_eq!(id.to_string().parse::<MeshId>().ok(), Some(id));
            }
        }
    }
}
