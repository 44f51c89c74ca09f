//! Sounds that are known at every instant, and measures of how well they came through. Shared
//! by the unit tests, `tests/audio_reference.rs` and `benches/audio.rs`.
#![allow(dead_code, clippy::unwrap_used)]

use std::f64::consts::TAU;

/// `seconds` of `sound`, a function of time, at `rate`.
pub fn sampled(rate: u32, seconds: f64, sound: impl Fn(f64) -> f64) -> Vec<f32> {
    let samples = (seconds * f64::from(rate)).round() as usize;
    (0..samples)
        .map(|n| sound(n as f64 / f64::from(rate)) as f32)
        .collect()
}

/// Something like a voice: a gliding fundamental with harmonics below `top` Hz under three
/// formants, in syllables.
pub fn voice(top: f64) -> impl Fn(f64) -> f64 {
    move |t| {
        // The integral of 120 + 40 sin(2t) Hz.
        let turns = 120.0 * t - 20.0 * (2.0 * t).cos();
        let loud = (TAU * 2.0 * t).sin().max(0.0).powf(0.5) * 0.8 + 0.2;
        let mut sum = 0.0;
        for harmonic in 1..60 {
            let at = f64::from(harmonic) * (120.0 + 40.0 * (2.0 * t).sin());
            if at > top {
                break;
            }
            // Fades before the top, so that no harmonic is switched on or off.
            let room = ((top - at) / 300.0).clamp(0.0, 1.0);
            let formant = |f: f64, w: f64| (-((at - f) / w).powi(2)).exp();
            let level = formant(500.0 + 200.0 * (3.0 * t).sin(), 250.0)
                + 0.5 * formant(1500.0 + 400.0 * (1.7 * t).cos(), 350.0)
                + 0.2 * formant(2600.0, 500.0)
                + 0.02;
            sum += room * level * (TAU * f64::from(harmonic) * turns).sin();
        }
        0.12 * loud * sum
    }
}

/// A tone that glides from `low` to `high` Hz in `seconds`.
pub fn sweep(low: f64, high: f64, seconds: f64) -> impl Fn(f64) -> f64 {
    move |t| 0.5 * (TAU * (low * t + (high - low) * t * t / (2.0 * seconds))).sin()
}

/// Noise from a seed, in -1..1.
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// By how many samples `got` is later than `reference`, to a tenth: the peak of their
/// correlation within `most` samples.
pub fn lag(reference: &[f32], got: &[f32], most: i64) -> f64 {
    let at = |shift: i64| -> f64 {
        let pairs = (most..reference.len() as i64 - most)
            .filter_map(|n| Some((reference[n as usize], *got.get((n + shift) as usize)?)));
        pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum()
    };
    let all: Vec<f64> = (-most..=most).map(at).collect();
    let peak = (1..all.len() - 1)
        .max_by(|a, b| all[*a].total_cmp(&all[*b]))
        .unwrap();
    // The top of the parabola through the peak and its neighbours.
    let (before, here, after) = (all[peak - 1], all[peak], all[peak + 1]);
    let part = 0.5 * (before - after) / (before - 2.0 * here + after);
    ((peak as f64 - most as f64 + part) * 10.0).round() / 10.0
}

/// Signal to noise in dB.
pub fn snr(reference: &[f32], got: &[f32]) -> f64 {
    let (mut signal, mut noise) = (0.0, 1e-12);
    for (a, b) in reference.iter().zip(got) {
        signal += f64::from(*a).powi(2);
        noise += (f64::from(*a) - f64::from(*b)).powi(2);
    }
    10.0 * (signal / noise).log10()
}

/// The mean distance of the spectra in dB, over blocks of 512 samples and bins up to `top` Hz
/// of those blocks that are not silent.
pub fn spectral_distance(reference: &[f32], got: &[f32], rate: u32, top: f64) -> f64 {
    const SIZE: usize = 512;
    let bins = (top / f64::from(rate) * SIZE as f64) as usize;
    let (mut sum, mut blocks) = (0.0, 0);
    for (a, b) in reference.chunks_exact(SIZE).zip(got.chunks_exact(SIZE)) {
        let (a, b) = (powers(a), powers(b));
        let loud: f64 = a.iter().sum();
        if loud < 1e-2 {
            continue;
        }
        // 50 dB below the block's mean nobody hears a difference.
        let floor = loud / SIZE as f64 * 1e-5;
        let squares = (1..bins).map(|k| (10.0 * ((a[k] + floor) / (b[k] + floor)).log10()).powi(2));
        sum += (squares.sum::<f64>() / bins as f64).sqrt();
        blocks += 1;
    }
    sum / f64::from(blocks.max(1))
}

/// The power spectrum of a block under a Hann window.
fn powers(block: &[f32]) -> Vec<f64> {
    let size = block.len();
    let window = |n: usize| 0.5 - 0.5 * (TAU * n as f64 / size as f64).cos();
    let values: Vec<(f64, f64)> = block
        .iter()
        .enumerate()
        .map(|(n, v)| (f64::from(*v) * window(n), 0.0))
        .collect();
    fft(&values)
        .iter()
        .map(|(re, im)| re * re + im * im)
        .collect()
}

fn fft(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = values.len();
    if size == 1 {
        return values.to_vec();
    }
    let half = |odd: usize| {
        fft(&values
            .iter()
            .skip(odd)
            .step_by(2)
            .copied()
            .collect::<Vec<_>>())
    };
    let (even, odd) = (half(0), half(1));
    let mut out = vec![(0.0, 0.0); size];
    for k in 0..size / 2 {
        let (sin, cos) = (-TAU * k as f64 / size as f64).sin_cos();
        let (re, im) = (
            odd[k].0 * cos - odd[k].1 * sin,
            odd[k].0 * sin + odd[k].1 * cos,
        );
        out[k] = (even[k].0 + re, even[k].1 + im);
        out[k + size / 2] = (even[k].0 - re, even[k].1 - im);
    }
    out
}
