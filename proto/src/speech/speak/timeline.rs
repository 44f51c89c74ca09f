//! What the caller has: which characters lie where in the sound, and how far it was played.

use super::stream::received;

/// Samples for a character while nothing better is known: 15 characters a second.
const PER_CHARACTER: f64 = 1600.0;

#[derive(Clone, Copy, Debug)]
struct Chunk {
    from: u32,
    to: u32,
    start: u64,
    /// Its packets so far, from whoever speaks it now.
    packets: u64,
    pre_skip: u16,
    whole: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    chunks: Vec<Chunk>,
    /// Where the sound ends.
    pub(super) end: u64,
    pub(super) played: u64,
    /// The chunk that was joined last, and where the sound ended that was there, for
    /// [`Timeline::shift`].
    joined: Option<(usize, u64)>,
}

impl Timeline {
    /// The character that is to be spoken next: that of the chunk which is not whole, or behind
    /// all.
    pub(super) fn resume(&self) -> u32 {
        match self.chunks.last() {
            Some(c) if c.whole => c.to,
            Some(c) => c.from,
            None => 0,
        }
    }

    /// The character behind all that is spoken or begun.
    pub(super) fn begun(&self) -> u32 {
        self.chunks.last().map_or(0, |c| c.to)
    }

    /// Where the chunk begins; `None` if it is not there.
    pub(super) fn start_of(&self, from: u32) -> Option<u64> {
        self.find(from).map(|at| self.chunks[at].start)
    }

    /// Sound of it was played, or may be before anybody can change it.
    pub(super) fn is_touched(&self, from: u32, margin: u64) -> bool {
        let start = self.start_of(from);
        start.is_some_and(|start| self.end > start && self.played + margin > start)
    }

    /// The chunk and all behind it go.
    pub(super) fn cut(&mut self, from: u32) {
        if let Some(at) = self.find(from) {
            self.end = self.chunks[at].start;
            self.chunks.truncate(at);
            self.joined = self.joined.filter(|(joined, _)| *joined < at);
        }
    }

    /// The chunk begins; where.
    pub(super) fn begin(&mut self, from: u32, to: u32, pre_skip: u16) -> u64 {
        let start = self.end;
        self.chunks.push(Chunk {
            from,
            to,
            start,
            packets: 0,
            pre_skip,
            whole: false,
        });
        start
    }

    /// The last chunk begins anew, while it is played; where it began, and where its sound ends.
    pub(super) fn join(&mut self, to: u32, pre_skip: u16) -> (u64, u64) {
        let last = self.chunks.len().checked_sub(1);
        self.joined = last.map(|at| (at, self.end));
        let Some(chunk) = self.chunks.last_mut() else {
            return (self.end, self.end);
        };
        (chunk.to, chunk.packets, chunk.pre_skip) = (to, 0, pre_skip);
        (chunk.start, self.end)
    }

    /// A packet of the last chunk came.
    pub(super) fn sound(&mut self) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.packets += 1;
            let reached = chunk.start + received(chunk.packets, chunk.pre_skip);
            self.end = self.end.max(reached);
        }
    }

    /// The last chunk is whole.
    pub(super) fn whole(&mut self, samples: u64) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.whole = true;
            self.end = (chunk.start + samples).max(self.played);
        }
    }

    /// The joined chunk and all behind it lie elsewhere.
    pub(super) fn shift(&mut self, by: i64) {
        let Some((joined, kept)) = self.joined.take() else {
            return;
        };
        for chunk in &mut self.chunks[joined..] {
            chunk.start = chunk.start.saturating_add_signed(by);
        }
        self.end = match self.chunks.last() {
            // What is kept lies where it lay, until the new sound reaches beyond it.
            Some(c) if !c.whole && joined + 1 == self.chunks.len() => {
                kept.max(c.start + received(c.packets, c.pre_skip))
            }
            _ => self.end.saturating_add_signed(by).max(self.played),
        };
    }

    /// The character up to which `text` was said at that sample: whole words.
    pub(super) fn spoken(&self, sample: u64, text: &[char]) -> u32 {
        let Some(at) = self.chunks.iter().rposition(|c| c.start < sample) else {
            return 0;
        };
        let (chunk, next) = (self.chunks[at], self.chunks.get(at + 1));
        let length = u64::from(chunk.to - chunk.from);
        let end = next.map_or(self.end, |n| n.start);
        if chunk.whole && sample >= end {
            return chunk.to;
        }
        let per_character = match chunk.whole {
            true => (end - chunk.start) as f64 / length.max(1) as f64,
            false => self.pace(),
        };
        let said = (sample - chunk.start) as f64 / per_character.max(1.0);
        let reached = chunk.from + (said as u64).min(length) as u32;
        let word_ends = |at: &u32| match text.get(*at as usize) {
            Some(next) => next.is_whitespace(),
            None => true,
        };
        let mut ends = (chunk.from..=reached).rev();
        ends.find(word_ends).unwrap_or(chunk.from)
    }

    /// Samples for a character, of what was spoken.
    fn pace(&self) -> f64 {
        let mut whole = self.chunks.iter().zip(self.chunks.iter().skip(1));
        let last = whole.by_ref().last();
        match last {
            Some((_, after)) if after.from > 0 && after.start > 0 => {
                after.start as f64 / f64::from(after.from)
            }
            _ => PER_CHARACTER,
        }
    }

    fn find(&self, from: u32) -> Option<usize> {
        self.chunks.iter().rposition(|c| c.from == from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_counted_in_whole_words() {
        let text: Vec<char> = "one two. three four five".chars().collect();
        let mut line = Timeline::default();
        line.begin(0, 9, 0);
        (0..20).for_each(|_| line.sound());
        line.whole(9000);
        line.begin(9, 24, 0);
        (0..25).for_each(|_| line.sound());
        assert_eq!(line.spoken(0, &text), 0);
        assert_eq!(line.spoken(2999, &text), 0, "half a word was not said");
        assert_eq!(line.spoken(3500, &text), 3);
        assert_eq!(line.spoken(9000, &text), 9);
        // The second is not whole: at the pace of the first, 1,000 samples a character.
        assert_eq!(line.spoken(9000 + 5500, &text), 14);
        assert_eq!(line.spoken(u64::MAX, &text), 24);
    }
}
