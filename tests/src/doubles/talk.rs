//! A voice without a recording: vowels from pulses and three resonances, which voice detection
//! takes for speech. It says nothing.

use std::f64::consts::{PI, TAU};

/// Samples a second of the uplink.
pub const RATE: u32 = 16_000;

/// The resonances of the vowels: their frequencies in Hz.
const VOWELS: [[f64; 3]; 5] = [
    [700.0, 1220.0, 2600.0],
    [300.0, 2200.0, 3000.0],
    [500.0, 1800.0, 2500.0],
    [320.0, 800.0, 2400.0],
    [600.0, 1000.0, 2500.0],
];
const WIDTHS: [f64; 3] = [80.0, 90.0, 120.0];
const GAINS: [f64; 3] = [1.0, 0.5, 0.3];
/// Syllables a second.
const SYLLABLES: usize = 5;

fn samples(ms: u32) -> usize {
    ms as usize * RATE as usize / 1000
}

/// Talk of `ms` milliseconds; another `pitch` (in Hz, some 80 to 250) is another voice.
#[must_use]
pub fn talk(ms: u32, pitch: f64) -> Vec<i16> {
    let syllable = RATE as usize / SYLLABLES;
    let mut phase = 0.0_f64;
    let mut sound = vec![0.0; samples(ms)];
    for (number, part) in sound.chunks_mut(syllable).enumerate() {
        let vowel = VOWELS[number % VOWELS.len()];
        let mut resonances = [[0.0; 2]; 3];
        let length = part.len() as f64;
        for (n, sample) in part.iter_mut().enumerate() {
            let at = (number * syllable + n) as f64 / f64::from(RATE);
            let before = phase.floor();
            phase += pitch * (1.0 + 0.08 * (TAU * 2.3 * at).sin()) / f64::from(RATE);
            let pulse = phase.floor() - before - 0.02;
            for (k, state) in resonances.iter_mut().enumerate() {
                let r = (-PI * WIDTHS[k] / f64::from(RATE)).exp();
                let turn = TAU * vowel[k] / f64::from(RATE);
                let value = pulse + 2.0 * r * turn.cos() * state[0] - r * r * state[1];
                *state = [value, state[0]];
                *sample += GAINS[k] * value;
            }
            *sample *= (PI * n as f64 / length).sin().sqrt();
        }
    }
    let loudest = sound.iter().fold(1.0_f64, |peak, s| peak.max(s.abs()));
    sound
        .iter()
        .map(|s| (s / loudest * 9_000.0) as i16)
        .collect()
}

/// `ms` milliseconds in a quiet room: the same hiss every time.
#[must_use]
pub fn hush(ms: u32) -> Vec<i16> {
    let mut state = 1_u32;
    let hiss = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as i16 - 8
    };
    (0..samples(ms)).map(hiss).collect()
}
