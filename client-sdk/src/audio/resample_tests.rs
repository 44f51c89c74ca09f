use super::*;
use crate::audio::signal::{lag, noise, sampled, snr, sweep, voice};
use proptest::prelude::*;

const SOURCES: [u32; 8] = [
    8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000,
];
const CODEC: [u32; 2] = [16_000, 24_000];

fn pairs() -> impl Iterator<Item = (u32, u32)> {
    let both = SOURCES
        .into_iter()
        .flat_map(|a| CODEC.map(|b| [(a, b), (b, a)]));
    both.flatten().filter(|(a, b)| a != b)
}

fn converted(from: u32, to: u32, pcm: &[f32], piece: usize) -> Vec<f32> {
    let mut resampler = Resampler::new(from, to).unwrap();
    let mut out = Vec::new();
    pcm.chunks(piece.max(1))
        .for_each(|part| resampler.push(part, &mut out));
    resampler.finish(&mut out);
    out
}

#[test]
fn the_sound_is_where_it_was() {
    for (from, to) in pairs() {
        let top = 0.39 * f64::from(from.min(to));
        let sound = voice(top);
        let (pcm, truth) = (sampled(from, 0.6, &sound), sampled(to, 0.6, &sound));
        let out = converted(from, to, &pcm, 441);
        assert_eq!(out.len(), truth.len());
        // The filter rings over the abrupt start and end.
        let edge = to as usize / 10;
        let inner = edge..truth.len() - edge;
        let (late, snr) = (
            lag(&truth, &out, 8),
            snr(&truth[inner.clone()], &out[inner]),
        );
        println!("{from} -> {to}: {late} samples late, SNR {snr:.1} dB");
        assert_eq!(late, 0.0, "{from} -> {to}");
        assert!(snr > 60.0, "{from} -> {to}: {snr:.1} dB");
    }
}

#[test]
fn what_the_lower_rate_cannot_hold_is_gone() {
    // 9 to 20 kHz, of which nothing fits below 8 kHz.
    let pcm = sampled(48_000, 1.0, sweep(9_000.0, 20_000.0, 1.0));
    let out = converted(48_000, 16_000, &pcm, 480);
    let inner = &out[800..out.len() - 800];
    let level = |pcm: &[f32]| {
        let power: f64 = pcm.iter().map(|s| f64::from(*s).powi(2)).sum();
        10.0 * (power / pcm.len() as f64).log10()
    };
    let left = level(inner) - level(&pcm);
    println!("aliases: {left:.0} dB");
    assert!(left < -70.0);
}

/// Ten minutes (and one at other rates: a debug build takes its time), of which only the last two seconds are not silent: a tone there is in phase.
#[test]
fn nothing_drifts_in_ten_minutes() {
    for (from, to, seconds) in [
        (22_050, 24_000, 600u32),
        (44_100, 16_000, 60),
        (11_025, 24_000, 60),
    ] {
        let tone = |t: f64| 0.5 * (std::f64::consts::TAU * 440.0 * t).sin();
        let mut resampler = Resampler::new(from, to).unwrap();
        let (mut second, mut out, mut total) = (Vec::new(), Vec::new(), 0);
        for n in 0..seconds {
            second.clear();
            second.resize(from as usize, 0.0);
            if n >= seconds - 2 {
                second = sampled(from, 1.0, |t| tone(f64::from(n) + t));
            }
            total += std::mem::take(&mut out).len();
            second
                .chunks(997)
                .for_each(|part| resampler.push(part, &mut out));
        }
        resampler.finish(&mut out);
        assert_eq!(total + out.len(), (seconds * to) as usize);
        // Off the end, where the filter rings.
        let last = &out[..out.len() - to as usize / 10];
        let off = |(n, sample): (usize, &f32)| {
            (f64::from(*sample) - tone((total + n) as f64 / f64::from(to))).abs()
        };
        let worst = last.iter().enumerate().map(off).fold(0.0, f64::max);
        println!("{from} -> {to}: the last second is off by at most {worst:.1e}");
        assert!(worst < 1e-3);
    }
}

#[test]
fn rates_of_no_speech_are_refused() {
    for (from, to) in [
        (0, 16_000),
        (16_000, 0),
        (7_999, 16_000),
        (47_999, 24_000),
        (500_000, 8_000),
    ] {
        assert_eq!(Resampler::new(from, to).err(), Some(RateError { from, to }));
    }
}

#[test]
fn it_is_as_new_after_the_end() {
    let mut resampler = Resampler::new(22_050, 24_000).unwrap();
    let pcm = sampled(22_050, 0.2, voice(6_000.0));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    resampler.push(&pcm, &mut first);
    resampler.finish(&mut first);
    resampler.push(&pcm, &mut second);
    resampler.finish(&mut second);
    assert_eq!(first, second);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_cut_of_the_input_changes_nothing(
        from in proptest::sample::select(&SOURCES[..]),
        to in proptest::sample::select(&CODEC[..]),
        samples in 0usize..4000,
        cuts in proptest::collection::vec(0usize..900, 0..20),
        seed: u64,
    ) {
        let mut random = noise(seed);
        let pcm: Vec<f32> = (0..samples).map(|_| random()).collect();
        let whole = converted(from, to, &pcm, samples);
        let due = (samples as u64 * u64::from(to) + u64::from(from) / 2) / u64::from(from);
        prop_assert_eq!(whole.len() as u64, due);

        let mut resampler = Resampler::new(from, to).unwrap();
        let (mut out, mut rest) = (Vec::new(), &pcm[..]);
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            resampler.push(now, &mut out);
            rest = later;
        }
        resampler.push(rest, &mut out);
        resampler.finish(&mut out);
        prop_assert_eq!(out, whole);
    }
}
