//! The same place by the wave: normalized cross-correlation.

use super::Place;

/// What is compared as a wave: 250 ms.
const WAVE: usize = 6000;
/// So far from the expected place, or the partner, the wave is looked for: 210 ms.
const WAVE_REACH: usize = 5040;
/// A wave that correlates this well is the same. Two vowels of one voice that are alike by chance
/// reach 0.8.
pub(super) const ALIKE: f32 = 0.85;
/// At a gap the waves may move against each other by this: 8 ms, a deep voice's period.
const GAP_REACH: usize = 192;
/// What is compared there: 20 ms.
const GAP_WAVE: usize = 480;
/// The wave is first looked for at every eighth sample: its lowest 1,500 Hz.
const COARSE: usize = 8;

/// Where the wave at the end of `old` is in `new`, near `end`, if it is there.
pub(super) fn same(old: &[f32], new: &[f32], end: usize) -> Option<Place> {
    let wave = &old[old.len().saturating_sub(WAVE)..];
    let (at, alike) = best_match(wave, new, end, WAVE_REACH, COARSE)?;
    (alike >= ALIKE).then_some(Place {
        old: old.len(),
        new: at,
        alike,
    })
}

/// The place near `partner` at which the waves agree most, and how much.
pub(super) fn nudge(old: &[f32], new: &[f32], partner: usize) -> (usize, f32) {
    let wave = &old[old.len().saturating_sub(GAP_WAVE)..];
    let found = best_match(wave, new, partner, GAP_REACH, 1);
    found.map_or((partner, 0.0), |(at, alike)| (at, alike.max(0.0)))
}

/// Where in `new`, at most `reach` from `end`, something like `wave` ends, and the correlation.
/// Looks at every `coarse`-th sample first.
fn best_match(
    wave: &[f32],
    new: &[f32],
    end: usize,
    reach: usize,
    coarse: usize,
) -> Option<(usize, f32)> {
    if wave.is_empty() {
        return None;
    }
    let first = end.saturating_sub(wave.len() + reach);
    let last = (end + reach).min(new.len());
    let window = new.get(first..last)?;
    let small = peak(&thin(wave, coarse), &thin(window, coarse))?;
    let near = (small * coarse).saturating_sub(2 * coarse);
    let until = (small * coarse + wave.len() + 2 * coarse).min(window.len());
    let fine = near + peak(wave, window.get(near..until)?)?;
    let alike = correlation(wave, window.get(fine..fine + wave.len())?);
    Some((first + fine + wave.len(), alike))
}

/// Every `by`-th sample, as the mean of those between.
fn thin(sound: &[f32], by: usize) -> Vec<f32> {
    let mean = |part: &[f32]| part.iter().sum::<f32>() / by as f32;
    sound.chunks_exact(by).map(mean).collect()
}

/// Where in `window` the correlation with `wave` is highest.
fn peak(wave: &[f32], window: &[f32]) -> Option<usize> {
    let places = window.len().checked_sub(wave.len())?;
    let squared = |s: f32| f64::from(s) * f64::from(s);
    let mut power: f64 = window[..wave.len()].iter().copied().map(squared).sum();
    let mut best = (0, f64::NEG_INFINITY);
    for at in 0..=places {
        let here = &window[at..at + wave.len()];
        let product: f32 = wave.iter().zip(here).map(|(a, b)| a * b).sum();
        let alike = f64::from(product) / power.max(1e-9).sqrt();
        if alike > best.1 {
            best = (at, alike);
        }
        if let Some(next) = window.get(at + wave.len()) {
            power += squared(*next) - squared(window[at]);
        }
    }
    Some(best.0)
}

fn correlation(a: &[f32], b: &[f32]) -> f32 {
    let (mut product, mut x, mut y) = (0.0, 1e-9, 1e-9);
    for (a, b) in a.iter().zip(b) {
        product += a * b;
        x += a * a;
        y += b * b;
    }
    product / f32::sqrt(x * y)
}
