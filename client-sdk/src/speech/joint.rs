//! Where two recordings of one text are at the same place.
//!
//! A chunk that broke off while it was played is spoken anew by another peer, and the new sound
//! has to go on where the old one ends: no word lost, none said twice, no click. A second
//! synthesis of the same text is not the same sound: engines draw the length of every sound by
//! chance (Piper: a tenth either way), another voice has a pace of its own. So the place is found
//! in up to three steps:
//!
//! 1. **By the wave** ([`wave`]). If the last quarter of a second before the old end is there in
//!    the new sound near the expected place (normalized cross-correlation of at least
//!    [`wave::ALIKE`]: a voice that computes the same again), it goes on at exactly that sample.
//! 2. **By the course of the speech** ([`course`]). Else the last [`TAIL`] of the old sound and the
//!    new sound around the expected place are described each 10 ms by their spectra and aligned by
//!    dynamic time warping: each instant of the old gets its partner in the new. If the tail is
//!    the chunk's beginning, both begin together; else the beginning is free within [`reach`]. The
//!    end is free. The wave is looked for once more near the partner of the old end.
//! 3. **At a gap.** Else they part, within what was not played yet, where it is heard least if the
//!    alignment is a little off: where it is quiet, as between words, and where both sound alike
//!    for a while on either side, the better the more of the old follows (at its very end nothing
//!    tells how the alignment goes on). There the waves are moved against each other by the few
//!    milliseconds at which they agree most.
//!
//! The crossfade keeps the loudness constant for whatever likeness: equal sounds are blended with
//! equal gain (and stay what they are), unlike ones with equal power.

mod course;
mod wave;

use course::Step;
use std::f32::consts::FRAC_PI_2;

/// How long the blend is: 10 ms.
pub(super) const FADE: usize = 240;
/// How much of the old sound is compared: 4 s, most sentences as a whole.
pub(super) const TAIL: usize = 96_000;
/// A description each 10 ms.
const HOP: usize = 240;
/// Where two sounds part, they are to be alike for so many hops on either side: 50 ms, a sound of
/// speech.
const ALIKE_HOPS: usize = 5;
/// And quiet for so many: a stop consonant is quiet for longer than its burst.
const QUIET_HOPS: usize = 2;
/// What ten decibels less are worth, in the distance of descriptions.
const QUIET: f32 = 0.25;
/// The alignment is sure where so many hops of the old follow: 250 ms, a syllable or two.
const SURE: f32 = 25.0;
/// What it costs to part at the very end of the old.
const UNSURE: f32 = 0.8;

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
    if let Some(place) = wave::same(old, new, skipped + old.len()) {
        return place;
    }
    let before = old.len().saturating_sub(TAIL);
    let tail = &old[before..];
    let path = course::align(tail, skipped + before, new);
    // What an alignment of sounds that have nothing in common may stray.
    let most = 2 * reach(skipped + old.len());
    let astray = |old: usize, new: usize| new.abs_diff(skipped + before + old) > most;
    let end = match path.last() {
        Some(last) if !astray(last.old, last.new) => last.new + HOP + tail.len() % HOP,
        _ => skipped + old.len(),
    };
    let end = end.min(new.len());
    if let Some(place) = wave::same(old, new, end) {
        return place;
    }
    let may = |step: &Step| {
        step.old >= free.saturating_sub(before) + FADE
            && step.new >= FADE
            && !astray(step.old, step.new)
    };
    let (at, partner) = gap(&path, may).unwrap_or((tail.len(), end));
    let at = before + at;
    let (new, alike) = wave::nudge(&old[..at], new, partner);
    Place {
        old: at,
        new,
        alike,
    }
}

/// The best instant of those that `may` be taken to go from one to the other, and its partner.
fn gap(path: &[Step], may: impl Fn(&Step) -> bool) -> Option<(usize, usize)> {
    let mean = |at: usize, hops: usize, value: fn(&Step) -> f32| -> f32 {
        let around = &path[at.saturating_sub(hops)..(at + hops + 1).min(path.len())];
        around.iter().map(value).sum::<f32>() / around.len() as f32
    };
    let heard = |at: usize| -> f32 {
        let apart = mean(at, ALIKE_HOPS, |step| step.apart);
        let loud = mean(at, QUIET_HOPS, |step| step.loud);
        let sure = ((path.len() - at) as f32 / SURE).min(1.0);
        apart + QUIET * loud + UNSURE * (1.0 - sure)
    };
    (0..path.len())
        .filter(|at| may(&path[*at]))
        .map(|at| (heard(at), &path[at]))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, step)| (step.old, step.new))
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

#[cfg(test)]
#[path = "joint_tests.rs"]
mod tests;
