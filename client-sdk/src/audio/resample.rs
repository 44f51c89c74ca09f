//! Any usual rate to the codec's and back.
//!
//! [`rubato`]'s synchronous FFT resampler, whose ratio is an exact fraction: there is nothing to
//! drift. (Its asynchronous one needs no FFT, but its delay is a fraction of a sample for most
//! ratios, so that nothing would be where it was.) It works in blocks; [`Resampler`] collects
//! input into them, so that the result does not depend on how the input was cut, drops the
//! filter's delay at the start, and at the end gives the rest: `n` samples become
//! `n * to / from`, rounded to the nearest.
//!
//! **The block** is the smallest that fits both rates, lasts [`MIN_BLOCK_MS`] and is even on both
//! sides: then the filter's centre lies on a sample, and the delay that is dropped is exact. It
//! is also the filter's length: at 10 ms the filter passes speech up to about nine tenths of
//! the lower rate's half and keeps aliases below -80 dB. A block and half of one is what has to
//! come in before the first sample comes out:
//!
//! | from/to | 16 kHz | 24 kHz |
//! |---|---|---|
//! | 8, 16, 24, 32, 48 kHz | 10 ms | 10 ms |
//! | 44.1 kHz | 20 ms | 13.3 ms |
//! | 22.05 kHz | 40 ms | 13.3 ms |
//! | 11.025 kHz | 80 ms | 26.7 ms |
//!
//! Engines that speak at 22.05 kHz (Piper) are on the fast side. Rates that have so little in
//! common that a block would last longer than [`MAX_BLOCK_MS`] are refused: no engine uses them,
//! so somebody's header is wrong.

use super::pcm::RATES;
use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _};

/// A block lasts at least this long.
pub const MIN_BLOCK_MS: u32 = 10;
/// A block lasts at most this long.
pub const MAX_BLOCK_MS: u32 = 100;

/// Rates that cannot be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot convert {from} samples a second to {to}")]
pub struct RateError {
    /// The input's rate.
    pub from: u32,
    /// The output's rate.
    pub to: u32,
}

/// Mono samples at one rate in, at another out.
#[derive(Debug)]
pub struct Resampler {
    rates: RateError,
    /// `None` where the rates are the same.
    fft: Option<Blocks>,
    taken: u64,
    given: u64,
}

#[derive(Debug)]
struct Blocks {
    fft: Fft<f32>,
    input: Vec<f32>,
    output: Vec<f32>,
    /// Samples of the filter's delay still to be dropped.
    skip: usize,
}

impl Resampler {
    /// # Errors
    /// A rate is none of speech, or the two have too little in common.
    pub fn new(from: u32, to: u32) -> Result<Self, RateError> {
        let rates = RateError { from, to };
        if !RATES.contains(&from) || !RATES.contains(&to) {
            return Err(rates);
        }
        let fft = if from == to {
            None
        } else {
            let (block_in, block_out) = block(from, to).ok_or(rates)?;
            Some(Blocks::new(from, to, block_in, block_out).ok_or(rates)?)
        };
        Ok(Resampler {
            rates,
            fft,
            taken: 0,
            given: 0,
        })
    }

    /// The input's rate.
    pub fn rate_in(&self) -> u32 {
        self.rates.from
    }

    /// The output's rate.
    pub fn rate_out(&self) -> u32 {
        self.rates.to
    }

    /// Takes samples and appends what is ready to `out`.
    pub fn push(&mut self, pcm: &[f32], out: &mut Vec<f32>) {
        self.taken += pcm.len() as u64;
        let before = out.len();
        match &mut self.fft {
            None => out.extend_from_slice(pcm),
            Some(blocks) => blocks.push(pcm, out),
        }
        self.given += (out.len() - before) as u64;
    }

    /// Ends the sound: appends the rest to `out`. The resampler is as new afterwards.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        let due = self.due().saturating_sub(self.given);
        let due = usize::try_from(due).unwrap_or(usize::MAX);
        if let Some(blocks) = &mut self.fft {
            blocks.finish(due, out);
        }
        (self.taken, self.given) = (0, 0);
    }

    /// Samples out for those that have gone in.
    fn due(&self) -> u64 {
        let (from, to) = (u64::from(self.rates.from), u64::from(self.rates.to));
        (self.taken * to + from / 2) / from
    }
}

impl Blocks {
    fn new(from: u32, to: u32, block_in: usize, block_out: usize) -> Option<Self> {
        let fft = Fft::new(from as usize, to as usize, block_in, 1, FixedSync::Both).ok()?;
        Some(Blocks {
            skip: fft.output_delay(),
            fft,
            input: Vec::with_capacity(block_in),
            output: vec![0.0; block_out],
        })
    }

    fn push(&mut self, mut pcm: &[f32], out: &mut Vec<f32>) {
        let size = self.fft.input_frames_next();
        while !pcm.is_empty() {
            let (now, later) = pcm.split_at(pcm.len().min(size - self.input.len()));
            self.input.extend_from_slice(now);
            pcm = later;
            if self.input.len() == size {
                out.extend_from_slice(self.run(None));
            }
        }
    }

    fn finish(&mut self, due: usize, out: &mut Vec<f32>) {
        let end = out.len() + due;
        while out.len() < end {
            let partial = self.input.len();
            out.extend_from_slice(self.run(Some(partial)));
        }
        out.truncate(end);
        self.input.clear();
        self.fft.reset();
        self.skip = self.fft.output_delay();
    }

    /// One block, of which `partial` samples are there and the rest is silence.
    fn run(&mut self, partial: Option<usize>) -> &[f32] {
        let indexing = partial.map(|frames| Indexing::new().partial_len(frames));
        let (frames_in, frames_out) = (self.input.len(), self.output.len());
        let input = SequentialSlice::new(&self.input[..], 1, frames_in);
        let output = SequentialSlice::new_mut(&mut self.output[..], 1, frames_out);
        let done = match (input, output) {
            (Ok(input), Ok(mut output)) => self
                .fft
                .process_into_buffer(&input, &mut output, indexing.as_ref())
                .is_ok(),
            _ => false,
        };
        // The sizes are the resampler's own, so it cannot refuse them; were it to, silence
        // keeps the time.
        if !done {
            self.output.fill(0.0);
        }
        self.input.clear();
        let skipped = self.skip.min(frames_out);
        self.skip -= skipped;
        &self.output[skipped..]
    }
}

/// The samples of a block on both sides.
fn block(from: u32, to: u32) -> Option<(usize, usize)> {
    let common = gcd(from, to);
    let (unit_in, unit_out) = (from / common, to / common);
    let (least, most) = (from * MIN_BLOCK_MS / 1000, from * MAX_BLOCK_MS / 1000);
    let mut units = least.div_ceil(unit_in).max(1);
    if !(units * unit_in).is_multiple_of(2) || !(units * unit_out).is_multiple_of(2) {
        units += units % 2;
    }
    let fits = units * unit_in <= most;
    fits.then_some(((units * unit_in) as usize, (units * unit_out) as usize))
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[path = "resample_tests.rs"]
mod tests;
