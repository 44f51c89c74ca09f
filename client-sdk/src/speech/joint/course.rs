//! The same place by the course of the speech: spectra each 10 ms, aligned by dynamic time warping.

use super::{HOP, reach};
use realfft::RealFftPlanner;
use std::f32::consts::TAU;

/// Samples of a spectrum: 21 ms, bins of 47 Hz.
const WINDOW: usize = 512;
const BANDS: usize = 12;
/// The bins at which the bands begin, 150 to 7,000 Hz, each a third wider than the one below; the
/// last is the end.
const EDGES: [usize; BANDS + 1] = [3, 4, 6, 8, 11, 16, 22, 30, 41, 57, 79, 108, 149];
/// Quieter than this beside the loudest is silence: 50 dB.
const FLOOR: f32 = 1e-5;
/// The same of a band: 40 dB.
const BAND_FLOOR: f32 = 1e-4;
/// What a step that is no diagonal costs, in the distance of descriptions.
const STRAY: f32 = 0.1;
/// What a beginning beside the expected place costs for each hop.
const OFF: f32 = 0.003;
/// The same where both sounds begin with the text.
const OFF_BEGIN: f32 = 0.05;

/// An instant of the old sound and its partner.
pub(super) struct Step {
    /// Where it begins, a sample.
    pub(super) old: usize,
    /// The same in the new sound.
    pub(super) new: usize,
    /// The distance of their descriptions: tens of decibels.
    pub(super) apart: f32,
    /// How loud the louder of both is: tens of decibels, 0 = the loudest.
    pub(super) loud: f32,
}

/// A sound, hop by hop.
struct Course {
    /// Loudness of each band in units of 10 dB, without its mean.
    bands: Vec<[f32; BANDS]>,
    /// Loudness of all, below the loudest.
    loud: Vec<f32>,
}

/// The partners of the hops of `tail`, which begins about `expected` samples into `new`.
pub(super) fn align(tail: &[f32], expected: usize, new: &[f32]) -> Vec<Step> {
    let reach = reach(expected + tail.len());
    let begin = match expected {
        0 => 0,
        _ => expected.saturating_sub(reach) / HOP * HOP,
    };
    // Twice as far as is waited for: some voices now and then draw a long breath first.
    let end = (expected + tail.len() + 2 * reach).min(new.len());
    let window = new.get(begin..end).unwrap_or_default();
    let (a, b) = (Course::of(tail), Course::of(window));
    if a.bands.is_empty() || b.bands.is_empty() {
        return Vec::new();
    }
    let off = if expected == 0 { OFF_BEGIN } else { OFF };
    let home = (expected.saturating_sub(begin) / HOP).min(b.bands.len() - 1);
    let path = warp(&a.bands, &b.bands, |j| off * home.abs_diff(j) as f32);
    let steps = path.into_iter().enumerate().map(|(i, j)| Step {
        old: i * HOP,
        new: begin + j * HOP,
        apart: apart(&a.bands[i], &b.bands[j]),
        loud: a.loud[i].max(b.loud[j]),
    });
    steps.collect()
}

impl Course {
    fn of(sound: &[f32]) -> Self {
        let mut bands = spectra(sound);
        let total = bands.iter().map(|band| band.iter().sum::<f32>());
        let total: Vec<f32> = total.collect();
        let loudest = total.iter().copied().fold(1e-9, f32::max);
        let level = |power: f32| (power / loudest).max(FLOOR).log10();
        let loud = total.into_iter().map(level).collect();
        for band in 0..BANDS {
            let loudest = bands.iter().map(|b| b[band]).fold(1e-9, f32::max);
            let mut sum = 0.0;
            for b in &mut bands {
                b[band] = (b[band] / loudest).max(BAND_FLOOR).log10();
                sum += b[band];
            }
            let mean = sum / bands.len().max(1) as f32;
            bands.iter_mut().for_each(|b| b[band] -= mean);
        }
        Course { bands, loud }
    }
}

/// The power in each band around each hop.
fn spectra(sound: &[f32]) -> Vec<[f32; BANDS]> {
    let fft = RealFftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let (mut input, mut bins) = (fft.make_input_vec(), fft.make_output_vec());
    let mut scratch = fft.make_scratch_vec();
    let shape = |n: usize| 0.5 - 0.5 * (TAU * n as f32 / WINDOW as f32).cos();
    let shape: Vec<f32> = (0..WINDOW).map(shape).collect();
    let beside = (WINDOW - HOP) / 2;
    let mut around = |hop: usize| {
        for (n, (sample, shape)) in input.iter_mut().zip(&shape).enumerate() {
            let at = (hop * HOP + n).checked_sub(beside);
            *sample = at.and_then(|at| sound.get(at)).map_or(0.0, |s| s * shape);
        }
        let done = fft.process_with_scratch(&mut input, &mut bins, &mut scratch);
        debug_assert!(done.is_ok(), "the buffers are the plan's own");
        let band = |n: usize| {
            bins[EDGES[n]..EDGES[n + 1]]
                .iter()
                .map(|c| c.norm_sqr())
                .sum()
        };
        std::array::from_fn(band)
    };
    (0..sound.len() / HOP).map(&mut around).collect()
}

fn apart(a: &[f32; BANDS], b: &[f32; BANDS]) -> f32 {
    let pairs = a.iter().zip(b);
    pairs.map(|(x, y)| (x - y).abs()).sum::<f32>() / BANDS as f32
}

/// For each of `a` the last of `b` that the cheapest path pairs it with. It begins anywhere, at
/// the price `begin`, and ends anywhere.
fn warp(a: &[[f32; BANDS]], b: &[[f32; BANDS]], begin: impl Fn(usize) -> f32) -> Vec<usize> {
    let width = b.len();
    // 0: both move; 1: the old alone; 2: the new alone.
    let mut steps = vec![0u8; a.len() * width];
    let mut above: Vec<f32> = (0..width).map(begin).collect();
    for i in 0..a.len() {
        let mut row = vec![0.0; width];
        for j in 0..width {
            let here = apart(&a[i], &b[j]);
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
