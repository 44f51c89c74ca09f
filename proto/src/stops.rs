//! Stop sequences over every seam.
//!
//! Engines look for a stop sequence in the text that they make themselves: one that begins in
//! the delivered prefix and ends in the continuation passes all of them by. So the agent looks
//! too, at the delivered text and what comes after it as one. Pieces that may be the beginning
//! of a stop sequence are **held** until it is clear what they are. That is why what a client
//! has never ends within one: if the agent dies, the backup makes the held pieces again.
//!
//! Pieces are held and given out whole, since their token ids cannot be divided. Only the last
//! one, before a stop sequence that began inside it, is cut; it then carries no ids, so that
//! whoever had to go on after it would read its text.

use crate::wire::Chunk;
use std::collections::VecDeque;

/// A piece of an answer and the JSON of its other fields.
pub type Piece = (Chunk, String);

/// Looks for the stop sequences of one answer.
#[derive(Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    /// The longest of them, in bytes.
    longest: usize,
    /// The end of what was given out, then the text of what is held.
    text: String,
    /// So much of `text` was given out.
    given: usize,
    held: VecDeque<Piece>,
}

impl Stops {
    /// For an answer that goes on after `prefix`.
    pub fn new(stops: &[String], prefix: &[Chunk]) -> Self {
        let stops: Vec<String> = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let mut looks = Stops {
            stops,
            longest,
            ..Stops::default()
        };
        if longest > 1 {
            let (mut from, mut bytes) = (prefix.len(), 0);
            while from > 0 && bytes < longest {
                from -= 1;
                bytes += prefix[from].text.len();
            }
            looks.text = prefix[from..].iter().map(|c| c.text.as_str()).collect();
            looks.given = looks.text.len();
            looks.forget();
        }
        looks
    }

    /// Takes in the next piece and puts into `out` what is surely part of the answer. True: a
    /// stop sequence is complete, and the answer ends with what is in `out`.
    pub fn push(&mut self, chunk: Chunk, extra: String, out: &mut VecDeque<Piece>) -> bool {
        if self.stops.is_empty() {
            out.push_back((chunk, extra));
            return false;
        }
        let before = self.text.len();
        self.text.push_str(&chunk.text);
        self.held.push_back((chunk, extra));
        if let Some(at) = self.complete(before) {
            self.give(at, out);
            self.cut(at, out);
            return true;
        }
        let begun = self.begun().unwrap_or(self.text.len());
        self.give(begun, out);
        self.forget();
        false
    }

    /// The answer ended without one: what was held is part of it.
    pub fn end(&mut self, out: &mut VecDeque<Piece>) {
        out.extend(self.held.drain(..));
        self.given = self.text.len();
    }

    /// Where the first stop sequence begins that ends after `before`.
    fn complete(&self, before: usize) -> Option<usize> {
        let ends_later = |stop: &String| {
            let mut from = before.saturating_sub(stop.len() - 1);
            while !self.text.is_char_boundary(from) {
                from += 1;
            }
            self.text[from..].find(stop.as_str()).map(|at| from + at)
        };
        self.stops.iter().filter_map(ends_later).min()
    }

    /// Where the first beginning of a stop sequence stands that reaches to the end.
    fn begun(&self) -> Option<usize> {
        let from = self.text.len().saturating_sub(self.longest - 1);
        (from..self.text.len())
            .filter(|at| self.text.is_char_boundary(*at))
            .find(|at| {
                let rest = &self.text[*at..];
                self.stops.iter().any(|stop| stop.starts_with(rest))
            })
    }

    /// Gives out the pieces that end at `to` or before.
    fn give(&mut self, to: usize, out: &mut VecDeque<Piece>) {
        while let Some((chunk, _)) = self.held.front()
            && self.given + chunk.text.len() <= to
        {
            self.given += chunk.text.len();
            out.extend(self.held.pop_front());
        }
    }

    /// Gives out what the first held piece has before the stop sequence at `at`.
    fn cut(&mut self, at: usize, out: &mut VecDeque<Piece>) {
        let shown = at.saturating_sub(self.given);
        if let Some((mut chunk, extra)) = self.held.pop_front()
            && shown > 0
        {
            chunk.text.truncate(shown);
            chunk.ids.clear();
            out.push_back((chunk, extra));
        }
        self.held.clear();
    }

    /// Drops what no stop sequence can reach back to.
    fn forget(&mut self) {
        let mut old = self.given.saturating_sub(self.longest - 1);
        while !self.text.is_char_boundary(old) {
            old -= 1;
        }
        self.text.drain(..old);
        self.given -= old;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(text: &str) -> Chunk {
        Chunk {
            text: text.to_owned(),
            ids: vec![7],
            tokens: 1,
        }
    }

    /// What is given out of `pieces` after `prefix`, and whether it was stopped.
    fn run(stops: &[&str], prefix: &[&str], pieces: &[&str]) -> (Vec<Chunk>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let prefix: Vec<Chunk> = prefix.iter().map(|t| chunk(t)).collect();
        let mut looks = Stops::new(&stops, &prefix);
        let mut out = VecDeque::new();
        let stopped = pieces
            .iter()
            .any(|text| looks.push(chunk(text), String::new(), &mut out));
        if !stopped {
            looks.end(&mut out);
        }
        (out.into_iter().map(|(chunk, _)| chunk).collect(), stopped)
    }

    fn shown(stops: &[&str], prefix: &[&str], pieces: &[&str]) -> (String, bool) {
        let (chunks, stopped) = run(stops, prefix, pieces);
        (chunks.into_iter().map(|c| c.text).collect(), stopped)
    }

    #[test]
    fn a_sequence_over_several_pieces_is_not_shown() {
        let pieces = ["one", " ST", "O", "P two"];
        assert_eq!(shown(&["STOP"], &[], &pieces), ("one ".into(), true));
        let (chunks, _) = run(&["STOP"], &[], &pieces);
        assert_eq!(chunks[0], chunk("one"));
        assert!(chunks[1].ids.is_empty(), "a cut piece is replayed as text");
    }

    #[test]
    fn one_that_began_in_the_prefix_stops_with_nothing_more_shown() {
        assert_eq!(shown(&["STOP"], &["one ST"], &["OP", "x"]).0, "");
        assert_eq!(shown(&["STOP"], &["one S", "T"], &["O", "P"]).0, "");
        assert!(shown(&["STOP"], &["one S", "T"], &["O", "P"]).1);
    }

    #[test]
    fn what_only_looks_like_one_is_given_out_late_and_whole() {
        let pieces = ["a", "aa", "ab", "c"];
        let (chunks, stopped) = run(&["aaab"], &[], &pieces[..2]);
        assert_eq!((chunks.len(), stopped), (2, false));
        assert_eq!(
            shown(&["aaaab"], &[], &["aaa", "b"]),
            ("aaab".into(), false)
        );
        assert_eq!(
            shown(&["aab"], &[], &["a", "a", "a", "b"]),
            ("a".into(), true)
        );
    }

    #[test]
    fn characters_are_never_divided() {
        assert_eq!(shown(&["🦊é"], &["a🦊"], &["é"]), (String::new(), true));
        assert_eq!(shown(&["é🦊"], &["日é"], &["🐟"]), ("🐟".into(), false));
        assert_eq!(shown(&["本"], &[], &["日本語"]), ("日".into(), true));
    }

    proptest! {
        /// However a text is cut into pieces, and wherever it changed machine: what is shown is
        /// the text up to the first stop sequence, and at the seam nothing is half shown.
        #[test]
        fn it_does_not_matter_where_the_cuts_are(
            text in "[abé]{0,24}",
            stops in proptest::collection::vec("[abé]{1,4}", 1..3),
            cuts in proptest::collection::vec(0..24usize, 0..8),
            seam in 0..24usize,
        ) {
            let mut at: Vec<usize> = cuts
                .into_iter()
                .filter(|c| *c < text.len() && text.is_char_boundary(*c))
                .chain([0, text.len()])
                .collect();
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let end = stops.iter().filter_map(|s| text.find(s.as_str()).map(|p| (p, s.len())));
            // The engine stops at the sequence that is complete first.
            let first = end.min_by_key(|(p, len)| (p + len, *p));
            let mut prefix: Vec<Chunk> = Vec::new();
            let mut out = VecDeque::new();
            let mut looks = Stops::new(&stops, &prefix);
            let (mut made, mut stopped, mut dead) = (0, false, false);
            while made < pieces.len() && !stopped {
                if made == seam && !std::mem::replace(&mut dead, true) {
                    // The machine dies: what it held is made again.
                    prefix.extend(out.drain(..).map(|(c, _)| c));
                    looks = Stops::new(&stops, &prefix);
                    made = prefix.len();
                }
                stopped = looks.push(chunk(pieces[made]), String::new(), &mut out);
                made += 1;
            }
            if !stopped {
                looks.end(&mut out);
            }
            prefix.extend(out.drain(..).map(|(c, _)| c));
            let got: String = prefix.iter().map(|c| c.text.as_str()).collect();
            prop_assert_eq!(stopped, first.is_some());
            prop_assert!(text.starts_with(&got));
            for stop in &stops {
                prop_assert!(!got.contains(stop.as_str()));
            }
            if first.is_none() {
                prop_assert_eq!(got, text);
            }
        }
    }
}
