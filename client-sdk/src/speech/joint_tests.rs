#![allow(clippy::unwrap_used)]
use super::wave::ALIKE;
use super::*;
use crate::audio::signal::{noise, sampled, voice};
use std::f64::consts::TAU;

const MS: usize = 24;

/// A sentence of syllables and pauses of `pace` by `pitch`, a function of time; seeded.
fn sentence(seed: u64, pitch: f64, pace: f64, seconds: f64) -> Vec<f32> {
    let mut random = noise(seed);
    let mut syllables = Vec::new();
    let mut at = 0.05;
    while at < seconds + 1.0 {
        let unit = |r: f32| f64::from(r) * 0.5 + 0.5;
        let long = (0.12 + 0.12 * unit(random())) * pace;
        let pause = if random() > 0.3 {
            0.11 * pace
        } else {
            0.03 * pace
        };
        let bright = 400.0 + 1200.0 * unit(random());
        syllables.push((at, at + long, bright));
        at += long + pause;
    }
    sampled(24_000, seconds, move |t| {
        let Some((from, to, bright)) = syllables
            .iter()
            .find(|(from, to, _)| (*from..*to).contains(&t))
        else {
            return 0.0;
        };
        let loud = ((t - from) / (to - from) * std::f64::consts::PI).sin();
        let harmonics = (1..16).map(|h| {
            let f = f64::from(h) * pitch;
            let level = (-((f - bright) / 300.0).powi(2)).exp() + 0.05;
            level * (TAU * f * t).sin()
        });
        0.2 * loud * harmonics.sum::<f64>()
    })
}

#[test]
fn the_same_voice_is_found_to_the_millisecond() {
    let new = sampled(24_000, 8.0, voice(8000.0));
    for (length, off) in [
        (1.2, 200),
        (3.0, -200),
        (3.0, 0),
        (6.0, 137),
        (0.5, -60),
        (5.0, 199),
    ] {
        let end = (length * 24_000.0) as usize;
        let by = off * MS as i64;
        // The old was `off` ms late.
        let begin = usize::try_from(-by).unwrap_or(0);
        let mut old = vec![0.0; usize::try_from(by).unwrap_or(0)];
        old.extend_from_slice(&new[begin..end]);
        let place = find(&old, 0, 0, &new);
        assert_eq!(place.old, old.len());
        assert!(
            place.new.abs_diff(end) <= MS,
            "{length} s, {off} ms: {place:?}, not {end}"
        );
        assert!(place.alike > 0.9, "{place:?}");
    }
}

#[test]
fn what_was_forgotten_of_the_old_does_not_matter() {
    let new = sampled(24_000, 8.0, voice(8000.0));
    let place = find(&new[60_000..132_000], 60_000, 0, &new);
    assert_eq!((place.old, place.new), (72_000, 132_000));
}

#[test]
fn another_pace_is_joined_at_the_same_pause() {
    for (pace, cut) in [(1.12, 3.1), (0.9, 4.3), (1.06, 2.2)] {
        let old = sentence(7, 110.0, 1.0, cut);
        let new = sentence(7, 190.0, pace, 7.0);
        let free = old.len() - 24_000;
        let place = find(&old, 0, free, &new);
        let (at, partner) = (
            place.old as f64 / 24_000.0,
            place.new as f64 / 24_000.0 / pace,
        );
        assert!(place.old >= free + FADE && place.old <= old.len());
        assert!(
            (at - partner).abs() < 0.05,
            "pace {pace}: {at} s with {partner} s"
        );
        let quiet = |s: &[f32]| s.iter().all(|x| x.abs() < 0.02);
        assert!(
            quiet(&old[place.old - 120..place.old]),
            "pace {pace}: not at a pause"
        );
    }
}

#[test]
fn another_voice_parts_somewhere_near() {
    let old = sampled(24_000, 2.0, voice(8000.0));
    let mut random = noise(3);
    let new: Vec<f32> = (0..96_000).map(|_| 0.1 * random()).collect();
    let free = old.len() - 2400;
    let place = find(&old, 0, free, &new);
    assert!(place.alike < ALIKE);
    assert!((free..=old.len()).contains(&place.old), "{place:?}");
    assert!(
        place.new.abs_diff(place.old) <= 2 * reach(old.len()),
        "{place:?}"
    );
}

#[test]
fn nothing_to_compare_is_no_reason_to_panic() {
    let sound = sampled(24_000, 0.5, voice(8000.0));
    for (old, new) in [
        (0, 0),
        (0, 100),
        (100, 0),
        (1, 12_000),
        (12_000, 1),
        (12_000, 239),
    ] {
        let place = find(&sound[..old], 0, 0, &sound[..new]);
        assert!(
            place.old <= old && place.new <= new,
            "{old} {new}: {place:?}"
        );
    }
    let silence = vec![0.0; 48_000];
    let place = find(&silence[..24_000], 0, 0, &silence);
    assert!(place.old <= 24_000 && place.alike.is_finite());
}

#[test]
fn equal_sounds_stay_what_they_are_and_others_keep_their_loudness() {
    let sound = sampled(24_000, 0.01, voice(8000.0));
    let mut old = sound.clone();
    crossfade(&mut old, &sound, 1.0);
    assert!(old.iter().zip(&sound).all(|(a, b)| (a - b).abs() < 1e-6));

    let (mut a, mut b) = (noise(1), noise(2));
    let power = |s: &[f32]| s.iter().map(|x| x * x).sum::<f32>() / s.len() as f32;
    let (mut before, mut after) = (0.0, 0.0);
    for _ in 0..200 {
        let mut old: Vec<f32> = (0..FADE).map(|_| a()).collect();
        let new: Vec<f32> = (0..FADE).map(|_| b()).collect();
        before += power(&old) + power(&new);
        crossfade(&mut old, &new, 0.0);
        after += power(&old);
    }
    assert!(
        (after / (before / 2.0) - 1.0).abs() < 0.05,
        "{}",
        after / before * 2.0
    );
}
