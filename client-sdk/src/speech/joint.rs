//! Where two recordings of one text are at the same place.
//!
//! A chunk that broke off while it was played is spoken anew by another peer, and the new sound
//! has to go on where the old one ends: no word lost, none said twice, no click. A second
//! synthesis of the same text is not the same sound: engines draw the length of every sound by
//! chance (Piper: a tenth either way), another voice has a pace of its own. So the place is found
//! in up to three steps:
//!
//! 1. **By the wave.** If the last quarter of a second before the old end is there in the new
//!    sound near the expected place (normalized cross-correlation of at least [`ALIKE`]: a voice
//!    that computes the same again), it goes on at exactly that sample.
//! 2. **By the course of the speech.** Else the last [`TAIL`] of the old sound and the new sound
//!    around the expected place are described each 10 ms (how loud it is; how bright, in two
//!    bands) and aligned by dynamic time warping: each instant of the old gets its partner in the
//!    new. The beginning and the end are free within [`reach`]. The wave is looked for once more
//!    near the partner of the old end.
//! 3. **At a pause.** Else they part where both are quietest within what was not played yet, and
//!    there at the offset of a few milliseconds at which the waves agree most.
//!
//! The crossfade keeps the loudness constant for whatever likeness: equal sounds are blended with
//! equal gain (and stay what they are), unlike ones with equal power.

use std::f32::consts::FRAC_PI_2;

/// How long the blend is: 10 ms.
pub(super) const FADE: usize = 240;
/// How much of the old sound is compared: 3 s, which have several words in them.
pub(super) const TAIL: usize = 72_000;
/// A description each 10 ms.
const HOP: usize = 240;
/// What is compared as a wave: 250 ms.
const WAVE: usize = 6000;
/// So far from the expected place, or the partner, the wave is looked for: 210 ms.
const WAVE_REACH: usize = 5040;
/// A wave that correlates this well is the same.
const ALIKE: f32 = 0.7;
/// At a pause the waves may move against each other by this: 8 ms, a deep voice's period.
const PAUSE_REACH: usize = 192;
/// What is compared there: 20 ms.
const PAUSE_WAVE: usize = 480;
/// The wave is first looked for at every eighth sample: its lowest 1,500 Hz.
const COARSE: usize = 8;
/// Quieter than this beside the loudest is silence: 50 dB.
const FLOOR: f32 = 1e-5;
/// What a step that is no diagonal costs, in the distance of descriptions.
const STRAY: f32 = 0.15;
/// What a beginning beside the expected place costs for each hop.
const OFF: f32 = 0.01;

/// `new[self.new..]` goes on behind `old[..self.old]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) old: usize,
    pub(super) new: usize,
    /// How alike the waves are there, 0 to 1.
    pub(super) alike: f32,
}

/// How far beside the expected place (so many samples into the chunk) the new sound may be at the
/// same place: so much more of it is needed. 300 ms and 15 %.
pub(super) fn reach(expected: usize) -> usize {
    7200 + expected / 7
}

/// Where `new`, a chunk from its beginning, is at the place where `old` ends, which begins
/// `skipped` samples into the chunk. `old` cannot be changed before `free`.
pub(super) fn find(old: &[f32], skipped: usize, free: usize, new: &[f32]) -> Place {
    if let Some(place) = same_wave(old, new, skipped + old.len()) {
        return place;
    }
    let before = old.len().saturating_sub(TAIL);
    let tail = &old[before..];
    let partners = align(tail, skipped + before, new);
    let end = match partners.last() {
        Some((_, partner)) => partner + HOP + tail.len() % HOP,
        None => skipped + old.len(),
    };
    let end = end.min(new.len());
    if let Some(place) = same_wave(old, new, end) {
        return place;
    }
    let (at, partner) =
        pause(tail, new, &partners, free.saturating_sub(before)).unwrap_or((tail.len(), end));
    let at = before + at;
    let (partner, alike) = nudge(&old[..at], new, partner);
    Place {
        old: at,
        new: partner,
        alike,
    }
}

/// Blends the last samples of what is kept into the new sound at the same place.
pub(super) fn crossfade(old: &mut [f32], new: &[f32], alike: f32) {
    let steps = old.len() as f32 + 1.0;
    for ((n, a), b) in (1u16..).zip(old.iter_mut()).zip(new) {
        let (fade_in, fade_out) = (f32::from(n) / steps * FRAC_PI_2).sin_cos();
        let power = 1.0 + 2.0 * alike.clamp(0.0, 1.0) * fade_in * fade_out;
        *a = (*a * fade_out + b * fade_in) / power.sqrt();
    }
}

// ----- by the course of the speech ----------------------------------------------------------

/// Loudness, and that of the first and the second difference: each in units of 10 dB, without
/// the mean.
type Course = Vec<[f32; 3]>;

fn describe(sound: &[f32]) -> Course {
    let mut course: Course = sound.chunks_exact(HOP).map(energies).collect();
    for band in 0..3 {
        let loudest = course.iter().map(|c| c[band]).fold(1e-9, f32::max);
        let levels = course
            .iter()
            .map(|c| (c[band] / loudest).max(FLOOR).log10());
        let levels: Vec<f32> = levels.collect();
        let mean = levels.iter().sum::<f32>() / levels.len().max(1) as f32;
        for (c, level) in course.iter_mut().zip(levels) {
            c[band] = level - mean;
        }
    }
    course
}

fn energies(hop: &[f32]) -> [f32; 3] {
    let (mut sums, mut last, mut last_step) = ([0.0; 3], hop[0], 0.0);
    for sample in hop {
        let step = sample - last;
        sums[0] += sample * sample;
        sums[1] += step * step;
        sums[2] += (step - last_step) * (step - last_step);
        (last, last_step) = (*sample, step);
    }
    sums
}

/// For each hop of `tail` (where it begins) where its partner in `new` begins. The tail begins
/// about `expected` samples into `new`.
fn align(tail: &[f32], expected: usize, new: &[f32]) -> Vec<(usize, usize)> {
    let reach = reach(expected + tail.len());
    let begin = expected.saturating_sub(reach) / HOP * HOP;
    let end = (expected + tail.len() + reach).min(new.len());
    let window = new.get(begin..end).unwrap_or_default();
    let (a, b) = (describe(tail), describe(window));
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let home = (expected.saturating_sub(begin) / HOP).min(b.len() - 1);
    let path = warp(&a, &b, home);
    let hops = path.into_iter().enumerate();
    hops.map(|(i, j)| (i * HOP, begin + j * HOP)).collect()
}

/// For each of `a` the last of `b` that the cheapest path pairs it with. It begins anywhere, best
/// at `home`, and ends anywhere.
fn warp(a: &[[f32; 3]], b: &[[f32; 3]], home: usize) -> Vec<usize> {
    let apart = |i: usize, j: usize| -> f32 {
        let pairs = a[i].iter().zip(&b[j]);
        pairs.map(|(x, y)| (x - y).abs()).sum()
    };
    let width = b.len();
    // 0: both move; 1: the old alone; 2: the new alone.
    let mut steps = vec![0u8; a.len() * width];
    let mut above: Vec<f32> = (0..width).map(|j| OFF * home.abs_diff(j) as f32).collect();
    for i in 0..a.len() {
        let mut row = vec![0.0; width];
        for j in 0..width {
            let here = apart(i, j);
            let mut best = (f32::INFINITY, 0u8);
            let mut offer = |cost: f32, step: u8| {
                if cost < best.0 {
                    best = (cost, step);
                }
            };
            if i == 0 {
                offer(above[j], 0);
            } else {
                if let Some(before) = j.checked_sub(1) {
                    offer(above[before], 0);
                }
                offer(above[j] + STRAY, 1);
            }
            if let Some(before) = j.checked_sub(1).filter(|_| i > 0) {
                offer(row[before] + STRAY, 2);
            }
            row[j] = best.0 + here;
            steps[i * width + j] = best.1;
        }
        above = row;
    }
    let cheapest = (0..width).min_by(|x, y| above[*x].total_cmp(&above[*y]));
    let (mut i, mut j) = (a.len() - 1, cheapest.unwrap_or(0));
    let mut path = vec![j; a.len()];
    while i > 0 {
        match steps[i * width + j] {
            2 => j -= 1,
            step => {
                i -= 1;
                j -= usize::from(step == 0);
                path[i] = j;
            }
        }
    }
    path
}

/// Where both are quietest: an instant of `tail` at or behind `free`, and its partner.
fn pause(
    tail: &[f32],
    new: &[f32],
    partners: &[(usize, usize)],
    free: usize,
) -> Option<(usize, usize)> {
    let level = |sound: &[f32], at: usize| -> f32 {
        let around = sound.get(at.saturating_sub(HOP)..(at + HOP).min(sound.len()));
        let around = around.unwrap_or_default();
        around.iter().map(|s| s * s).sum::<f32>() / around.len().max(1) as f32
    };
    let free = partners
        .iter()
        .filter(|(at, partner)| *at >= free + FADE && *partner >= FADE);
    let loudness = |(at, partner): &(usize, usize)| level(tail, *at) + level(new, *partner);
    free.copied()
        .min_by(|a, b| loudness(a).total_cmp(&loudness(b)))
}

// ----- by the wave --------------------------------------------------------------------------

/// Where the wave at the end of `old` is in `new`, near `end`, if it is there.
fn same_wave(old: &[f32], new: &[f32], end: usize) -> Option<Place> {
    let wave = &old[old.len().saturating_sub(WAVE)..];
    let (at, alike) = best_match(wave, new, end, WAVE_REACH, COARSE)?;
    (alike >= ALIKE).then_some(Place {
        old: old.len(),
        new: at,
        alike,
    })
}

/// The place near `partner` at which the waves agree most, and how much.
fn nudge(old: &[f32], new: &[f32], partner: usize) -> (usize, f32) {
    let wave = &old[old.len().saturating_sub(PAUSE_WAVE)..];
    let found = best_match(wave, new, partner, PAUSE_REACH, 1);
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

#[cfg(test)]
#[path = "joint_tests.rs"]
mod tests;
