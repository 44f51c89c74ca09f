//! What a caller hears: the sound that it has, packet by packet, and the ear that plays it.

use super::{Report, Scenario};
use crate::speech::speak::PACKET;
use crate::time::Mono;

/// Samples that a decoder gives before a chunk's first.
pub(super) const PRE_SKIP: u16 = 156;

/// A packet that the caller has.
#[derive(Clone, Copy, Debug)]
struct Have {
    chunk: u8,
    packet: u16,
    start: u64,
}

/// The chunk that comes in.
#[derive(Default)]
struct Coming {
    start: u64,
    packets: u64,
    /// So many packets of it are there already.
    skip: u64,
}

/// See the module's documentation. Positions are samples of the whole.
#[derive(Default)]
pub(super) struct Player {
    have: Vec<Have>,
    coming: Coming,
    /// Where the sound ends.
    pub end: u64,
    pub played: u64,
    playing: bool,
    /// How often the ear ran dry.
    pub dry: u64,
    starved_since: Mono,
}

impl Player {
    /// The next chunk begins.
    pub fn begin(&mut self) {
        self.coming = Coming {
            start: self.end,
            ..Coming::default()
        };
    }

    /// The chunk that is played comes anew, from there on.
    pub fn begin_anew(&mut self, start: u64) {
        let last = self.have.last().map(|h| h.chunk);
        let there = self.have.iter().filter(|h| Some(h.chunk) == last);
        self.coming = Coming {
            start,
            packets: 0,
            skip: there.count() as u64,
        };
    }

    /// A packet of it; false for an unknown one.
    pub fn sound(&mut self, opus: &[u8]) -> bool {
        let &[chunk, low, high] = opus else {
            return false;
        };
        let samples = |packets: u64| (packets * PACKET).saturating_sub(PRE_SKIP.into());
        let start = self.coming.start + samples(self.coming.packets);
        self.coming.packets += 1;
        // What was kept of a joined chunk is not taken again.
        if self.coming.packets > self.coming.skip {
            let packet = u16::from_le_bytes([low, high]);
            self.have.push(Have {
                chunk,
                packet,
                start,
            });
        }
        let end = self.coming.start + samples(self.coming.packets);
        self.end = self.end.max(end);
        true
    }

    /// The chunk has so many samples.
    pub fn whole(&mut self, samples: u64) {
        self.end = (self.coming.start + samples).max(self.played);
    }

    /// All sound from there on goes.
    pub fn cut(&mut self, at: u64) {
        self.have.retain(|h| h.start < at);
        self.end = at;
    }

    /// Twenty milliseconds pass at the ear; whether it plays.
    pub fn play(&mut self, report: &mut Report, now: Mono) -> bool {
        let buffered = self.end.saturating_sub(self.played);
        if !self.playing && buffered >= 4 * PACKET {
            self.waited(report, now);
            self.playing = true;
        }
        if !self.playing {
            return false;
        }
        let step = buffered.min(PACKET);
        self.played += step;
        if step == 0 {
            (self.playing, self.starved_since) = (false, now);
            self.dry += 1;
        }
        true
    }

    /// It waits, or has waited until now.
    pub fn waited(&self, report: &mut Report, now: Mono) {
        if self.playing {
            return;
        }
        let waited = now.since(self.starved_since);
        let which = match self.played {
            0 => &mut report.first_wait,
            _ => &mut report.longest_wait,
        };
        *which = waited.max(*which);
    }

    /// Packet after packet, chunk after chunk; whether all are there.
    pub fn check(&self, report: &mut Report, scenario: &Scenario) -> bool {
        let (mut chunk, mut packet) = (0, 0);
        for have in &self.have {
            let whole = packets(scenario.chunks[usize::from(chunk)]);
            if have.chunk == chunk + 1 && packet == whole {
                (chunk, packet) = (chunk + 1, 0);
            }
            if have.chunk != chunk || u64::from(have.packet) != packet {
                let rule = format!("{have:?} where {chunk}/{packet} of {whole} should be");
                report.violate(rule);
                break;
            }
            packet += 1;
        }
        let last = scenario.chunks.len() - 1;
        usize::from(chunk) == last && packet == packets(scenario.chunks[last])
    }
}

/// Packets of a chunk of so many samples.
pub(super) fn packets(samples: u64) -> u64 {
    (samples + u64::from(PRE_SKIP)).div_ceil(PACKET)
}
