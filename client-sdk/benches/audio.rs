//! What the audio path costs: `cargo bench -p unamesh-client --bench audio`.
//!
//! Each figure is for one second of sound, so 10 ms are 1 % of a core. The bar is 1.5 % for the
//! encoding and decoding of one 24 kHz stream. `choices` holds what was not chosen for it.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::Bencher;
use opus::{Application, Bitrate, Channels};
use std::hint::black_box;
use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
use unamesh_client::audio::resample::Resampler;

#[path = "../src/audio/signal.rs"]
mod signal;

fn main() {
    divan::main();
}

const PROFILES: [Profile; 2] = [Profile::Down, Profile::Up];

fn second(rate: u32) -> Vec<f32> {
    signal::sampled(rate, 1.0, signal::voice(6_000.0))
}

fn packets(profile: Profile) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(profile).unwrap();
    encoder
        .push(&second(profile.rate()), |p| out.push(p.to_vec()))
        .unwrap();
    out
}

#[divan::bench(args = PROFILES)]
fn encode(bencher: Bencher, profile: &Profile) {
    let pcm = second(profile.rate());
    let mut encoder = Encoder::new(*profile).unwrap();
    bencher.bench_local(|| {
        encoder.push(black_box(&pcm), |packet| {
            black_box(packet);
        })
    });
}

#[divan::bench(args = PROFILES)]
fn decode(bencher: Bencher, profile: &Profile) {
    let packets = packets(*profile);
    let mut decoder = Decoder::new(*profile, 0).unwrap();
    bencher.bench_local(|| {
        for packet in &packets {
            black_box(decoder.decode(packet).unwrap());
        }
    });
}

/// The bar: 15 ms.
#[divan::bench]
fn encode_and_decode_down(bencher: Bencher) {
    let pcm = second(24_000);
    let mut encoder = Encoder::new(Profile::Down).unwrap();
    let mut decoder = Decoder::new(Profile::Down, encoder.pre_skip()).unwrap();
    bencher.bench_local(|| {
        encoder.push(&pcm, |packet| {
            black_box(decoder.decode(packet).unwrap());
        })
    });
}

/// A second of each of a hundred streams, frame by frame, as a client with many calls would.
#[divan::bench(sample_count = 10)]
fn decode_100_streams(bencher: Bencher) {
    let packets = packets(Profile::Down);
    let decoder = || Decoder::new(Profile::Down, 0).unwrap();
    let mut decoders: Vec<Decoder> = (0..100).map(|_| decoder()).collect();
    bencher.bench_local(|| {
        for packet in &packets {
            for decoder in &mut decoders {
                black_box(decoder.decode(packet).unwrap());
            }
        }
    });
}

#[divan::bench(args = [(22_050, 24_000), (48_000, 16_000), (44_100, 16_000), (24_000, 48_000)])]
fn resample(bencher: Bencher, (from, to): (u32, u32)) {
    let pcm = second(from);
    let mut resampler = Resampler::new(from, to).unwrap();
    let mut out = Vec::new();
    bencher.bench_local(|| {
        out.clear();
        resampler.push(black_box(&pcm), &mut out);
    });
}

#[divan::bench(args = [(22_050, 24_000), (44_100, 16_000)])]
fn make_resampler(bencher: Bencher, (from, to): (u32, u32)) {
    bencher.bench_local(|| Resampler::new(from, to).unwrap());
}

mod choices {
    use super::*;

    const CHOICES: [(&str, Application, i32); 5] = [
        ("LowDelay 10", Application::LowDelay, 10),
        ("Audio 10", Application::Audio, 10),
        ("Voip 10", Application::Voip, 10),
        ("Voip 5", Application::Voip, 5),
        ("Voip 1", Application::Voip, 1),
    ];

    #[divan::bench(args = CHOICES)]
    fn encode_24_khz(bencher: Bencher, (_, application, complexity): &(&str, Application, i32)) {
        let pcm = second(24_000);
        let mut encoder = ::opus::Encoder::new(24_000, Channels::Mono, *application).unwrap();
        encoder.set_bitrate(Bitrate::Bits(32_000)).unwrap();
        encoder.set_complexity(*complexity).unwrap();
        let mut packet = [0; 500];
        bencher.bench_local(|| {
            for frame in pcm.chunks_exact(480) {
                black_box(encoder.encode_float(frame, &mut packet).unwrap());
            }
        });
    }
}
