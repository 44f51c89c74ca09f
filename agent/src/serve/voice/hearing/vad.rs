//! Whether somebody speaks: `earshot`'s judgement of 16 ms at a time, made into begins and
//! pauses.
//!
//! Measured once on Piper's voice through our codec (by hand; no test repeats it), without noise and
//! with it down to 5 dB: a beginning is told 70 to 130 ms after the word began, and a pause is
//! counted from 20 to 60 ms after the last one ended. A detector costs 0.06 % of a core.

use earshot::Detector;
use std::time::Duration;
use unamesh_proto::timeouts::SPECULATE;

/// Samples of a block, as the detector wants it: 16 ms.
const BLOCK: usize = 256;
const BLOCK_MS: u32 = 16;
/// A block with a higher score has a voice in it. The score sinks slowly behind a word: at
/// `earshot`'s usual 0.5 a pause would begin up to 180 ms late in noise, and at 0.8 words fall
/// apart.
const VOICED: f32 = 0.7;
/// So many more blocks with a voice than without make a beginning: noise has one or two.
const BEGINS: u32 = 4;
/// So many in a row show that it was no pause: a click has one.
const GOES_ON: u32 = 2;
/// So many without are a pause, after which speech has to begin again.
const PAUSE: u32 = (SPECULATE.as_millis() as u32).div_ceil(BLOCK_MS);

/// Listens to one utterance.
pub(super) struct Vad {
    detector: Box<Detector>,
    /// Samples of the next block.
    block: Vec<i16>,
    /// Blocks with a voice, less those without; 0 to [`BEGINS`].
    rise: u32,
    /// In a row.
    voiced: u32,
    speaks: bool,
    /// Blocks since somebody spoke; `None` while nobody has.
    quiet: Option<u32>,
}

impl Vad {
    /// Nothing was heard yet.
    pub fn new() -> Self {
        Vad {
            detector: Detector::default_boxed(),
            block: Vec::with_capacity(BLOCK),
            rise: 0,
            voiced: 0,
            speaks: false,
            quiet: None,
        }
    }

    /// Listens to 16 kHz mono; whether somebody began to speak in it.
    pub fn push(&mut self, mut pcm: &[i16]) -> bool {
        let mut began = false;
        while !pcm.is_empty() {
            let (now, later) = pcm.split_at(pcm.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            pcm = later;
            if self.block.len() == BLOCK {
                let score = self.detector.predict_i16(&self.block);
                self.block.clear();
                began |= self.judge(score >= VOICED);
            }
        }
        began
    }

    /// How long nobody has spoken; zero while somebody does, or nobody has at all.
    pub fn silence(&self) -> Duration {
        let blocks = self.quiet.unwrap_or(0);
        Duration::from_millis(u64::from(blocks * BLOCK_MS))
    }

    /// Somebody may be about to speak again: no moment for an end.
    pub fn is_rising(&self) -> bool {
        self.rise > 0
    }

    fn judge(&mut self, voiced: bool) -> bool {
        self.voiced = if voiced { self.voiced + 1 } else { 0 };
        self.rise = match voiced {
            true => BEGINS.min(self.rise + 1),
            false => self.rise.saturating_sub(1),
        };
        let goes_on = self.speaks && self.voiced >= GOES_ON;
        let begins = !self.speaks && self.rise >= BEGINS;
        if goes_on || begins {
            self.speaks = true;
            self.quiet = Some(0);
        } else if let Some(quiet) = &mut self.quiet {
            *quiet = quiet.saturating_add(1);
            if self.speaks && *quiet >= PAUSE {
                (self.speaks, self.rise) = (false, 0);
            }
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of blocks: `#` with a voice, `.` without.
    fn heard(vad: &mut Vad, blocks: &str) -> String {
        let told = |c| match (vad.judge(c == '#'), vad.silence().as_millis()) {
            (true, _) => 'B',
            (_, 0) => '-',
            (_, ms) if ms < SPECULATE.as_millis() => '+',
            _ => 'P',
        };
        blocks.chars().map(told).collect()
    }

    #[test]
    fn a_beginning_takes_more_than_a_click_and_a_pause_more_than_a_breath() {
        let mut vad = Vad::new();
        assert_eq!(heard(&mut vad, "..#..##..#."), "-----------");
        assert_eq!(heard(&mut vad, "##.###"), "-----B");
        // A short gap ends with two blocks of voice; one alone is a click.
        assert_eq!(heard(&mut vad, "....##"), "+++++-");
        assert_eq!(heard(&mut vad, "....#....."), "+++++++++P");
        assert!(!vad.is_rising());
        // From here on it has to begin again.
        assert_eq!(heard(&mut vad, "##"), "PP");
        assert!(vad.is_rising());
        assert_eq!(heard(&mut vad, "..####."), "PPPPPB+");
    }

    #[test]
    fn silence_is_counted_in_samples_whatever_the_pieces() {
        let mut vad = Vad::new();
        (vad.speaks, vad.quiet) = (true, Some(0));
        for _ in 0..50 {
            assert!(!vad.push(&[0; 320]));
        }
        // A second in blocks of 16 ms.
        assert_eq!(vad.silence(), Duration::from_millis(992));
        assert!(!vad.speaks);
    }
}
