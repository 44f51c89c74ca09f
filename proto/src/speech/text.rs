//! An answer's tokens to pieces that a speech engine speaks.
//!
//! Tokens are pushed as they come; [`Splitter::next`] gives a [`Chunk`] as soon as its end is
//! certain. The first chunk is short, so that something is heard early: up to a clause's
//! end or [`FIRST_WORDS`] words. After it come whole sentences, headings, list items, table
//! rows or lines of code, of at most about [`MAX_SPOKEN_CHUNK`] characters, longer ones cut at a
//! clause, a space, or at worst between two graphemes.
//!
//! **Where a sentence ends.** `.`, `!`, `?`, `…` and their full-width kin, with the quotes and
//! brackets behind them, if white space follows (not needed in Chinese and Japanese). A dot
//! does not end one after an abbreviation, an initial, a number that may be an ordinal (*am 3.
//! Mai*) or within a number, a URL or an address. Abbreviations that may end a sentence too (*U.S.*,
//! *etc.*, *5 p.m.*) do so if the next word is one that often begins one. In doubt nothing is
//! cut: two sentences at once sound right, half a one does not.
//!
//! **Any tokens, the same chunks.** A cut is made only when no text that may follow can change
//! it; until then [`Splitter::next`] waits, for a few characters at most. So the chunks depend
//! on the text alone, and on where [`Splitter::finish`] was called.
//!
//! **Ranges.** A chunk tells which characters (Unicode scalar values) of the text it speaks.
//! The ranges of all chunks follow each other without a gap: what is not spoken (a fence, a rule,
//! emoji) belongs to the chunk after it.
//!
//! Sentence rules are our own, since [`unicode_segmentation`]'s (UAX #29) cut after *Dr.* and
//! know no Markdown; it cuts between graphemes and tells emoji from text.

use super::lines::{Line, Place, begins};
use super::{sentence, spoken};
use crate::limits::MAX_SPOKEN_CHUNK;
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// Words after which the first chunk ends in the middle of a clause.
pub const FIRST_WORDS: usize = 8;
/// Words that the first chunk has at least if it ends with a clause: a lone "Well," is heard
/// before the rest of its sentence can follow.
const FIRST_CLAUSE_WORDS: usize = 3;
/// A link's text and address are not cut up to this length; longer ones are none.
const MAX_LINK: usize = 200;

/// A piece of text to speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The characters of the pushed text that it speaks, counted from the first.
    pub range: Range<u64>,
    /// What the engine is given. Empty only for what is left at [`Splitter::finish`] and has
    /// nothing to say.
    pub spoken: String,
}

/// Whether anything of a text is spoken: not of emoji, marks and fences alone.
pub fn is_spoken(text: &str) -> bool {
    let mut splitter = Splitter::new();
    splitter.push(text);
    std::iter::from_fn(|| splitter.finish()).any(|chunk| !chunk.spoken.is_empty())
}

/// What stands at a place of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boundary {
    /// Nothing.
    None,
    /// What follows decides.
    Unknown,
    /// A sentence ends; the next begins there.
    Sentence(usize),
    /// A clause ends; the next begins there.
    Clause(usize),
    /// A word ends; the next begins there.
    Word(usize),
}

/// Tokens in, chunks out.
///
/// ```
/// use unamesh_proto::speech::text::Splitter;
///
/// let mut splitter = Splitter::new();
/// let mut spoken = Vec::new();
/// for token in ["It is ", "3.14, ", "Dr. **Who**", ". See", " you!"] {
///     splitter.push(token);
///     while let Some(chunk) = splitter.next() {
///         spoken.push(chunk.spoken);
///     }
/// }
/// while let Some(chunk) = splitter.finish() {
///     spoken.push(chunk.spoken);
/// }
/// assert_eq!(spoken, ["It is 3.14,", "Dr. Who.", "See you!"]);
/// ```
#[derive(Clone, Debug)]
pub struct Splitter {
    text: Vec<char>,
    /// Up to here the text went into chunks.
    done: usize,
    /// From `done` to here nothing is to be spoken: it joins the next chunk.
    from: usize,
    /// Characters that are not in `text` any more.
    dropped: u64,
    /// Of `from`.
    place: Place,
    first: bool,
    /// Cut only what is too long.
    one_piece: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new()
    }
}

/// The end of a chunk, and the place of what follows.
type Cut = (usize, Place);

impl Splitter {
    /// The start of an answer.
    pub fn new() -> Self {
        Splitter {
            text: Vec::new(),
            done: 0,
            from: 0,
            dropped: 0,
            place: Place::FIRST,
            first: true,
            one_piece: false,
        }
    }

    /// For a text that is to be spoken at once, as a piece that another splitter made: it is cut
    /// only at [`MAX_SPOKEN_CHUNK`] characters.
    pub fn of_one_piece() -> Self {
        Splitter {
            first: false,
            one_piece: true,
            ..Self::new()
        }
    }

    /// Appends a token.
    pub fn push(&mut self, token: &str) {
        if self.done > self.text.len() / 2 {
            self.text.drain(..self.done);
            self.dropped += self.done as u64;
            self.from -= self.done;
            self.done = 0;
        }
        self.text.extend(token.chars());
    }

    /// The next chunk whose end is certain. Not an [`Iterator`]: after `None` more may come.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Chunk> {
        self.take(false)
    }

    /// The next chunk of what is there, as if the text ended here. Call it until it says `None`.
    pub fn finish(&mut self) -> Option<Chunk> {
        self.take(true)
    }

    fn take(&mut self, ended: bool) -> Option<Chunk> {
        loop {
            if ended && self.from == self.text.len() && self.done < self.from {
                return Some(self.chunk(String::new()));
            }
            let (length, after) = Scan::new(self, ended).cut()?;
            let piece = self.text.get(self.from..self.from + length)?;
            let spoken = spoken::of(piece, self.place);
            self.from += length;
            self.place = after;
            if !spoken.is_empty() {
                self.first = false;
                return Some(self.chunk(spoken));
            }
        }
    }

    fn chunk(&mut self, spoken: String) -> Chunk {
        let range = self.dropped + self.done as u64..self.dropped + self.from as u64;
        self.done = self.from;
        Chunk { range, spoken }
    }
}

/// One look through the text from a chunk's start.
struct Scan<'a> {
    text: &'a [char],
    /// Nothing follows.
    ended: bool,
    first: bool,
    one_piece: bool,
    place: Place,
    words: usize,
    /// The last clause's and the last word's end.
    clause: Option<Cut>,
    word: Option<Cut>,
    in_code: bool,
    /// Where a link began.
    link: Option<usize>,
}

impl<'a> Scan<'a> {
    fn new(splitter: &'a Splitter, ended: bool) -> Self {
        Scan {
            text: splitter.text.get(splitter.from..).unwrap_or_default(),
            ended,
            first: splitter.first,
            one_piece: splitter.one_piece,
            place: splitter.place,
            words: 0,
            clause: None,
            word: None,
            in_code: false,
            link: None,
        }
    }

    fn cut(mut self) -> Option<Cut> {
        let mut at = 0;
        while let Some(&c) = self.text.get(at) {
            if at >= MAX_SPOKEN_CHUNK {
                return Some(self.forced());
            }
            if c != ' ' && c != '\t' {
                self.place.enter(&self.text[at..]);
            }
            self.count(at, c);
            let boundary = self.boundary(at, c);
            let after = |scan: &Self, end: usize| {
                let mut place = scan.place;
                if scan.text[at..end].contains(&'\n') {
                    place.newline();
                }
                (end, place)
            };
            match boundary {
                Boundary::Unknown => return None,
                Boundary::Sentence(end) if self.one_piece => self.clause = Some(after(&self, end)),
                Boundary::Sentence(end) => return Some(after(&self, end)),
                Boundary::Clause(end) => {
                    if self.first && self.words >= FIRST_CLAUSE_WORDS {
                        return Some(after(&self, end));
                    }
                    self.clause = Some(after(&self, end));
                }
                Boundary::Word(end) => {
                    if self.first && self.words >= FIRST_WORDS {
                        return Some(after(&self, end));
                    }
                    self.word = Some(after(&self, end));
                }
                Boundary::None => {}
            }
            if c == '\n' {
                self.place.newline();
                (self.in_code, self.link) = (false, None);
            }
            at += 1;
        }
        (self.ended && at > 0).then_some((at, self.place))
    }

    /// The text is too long: the end of a clause or a word in its last two thirds, else between
    /// two graphemes.
    fn forced(&self) -> Cut {
        let late = |cut: &Option<Cut>| cut.filter(|(at, _)| *at >= MAX_SPOKEN_CHUNK / 3);
        if let Some(cut) = late(&self.clause).or(late(&self.word)) {
            return cut;
        }
        let text: String = self.text[..=MAX_SPOKEN_CHUNK].iter().collect();
        let last = text.grapheme_indices(true).map(|(at, _)| at).next_back();
        let whole = text
            .get(..last.unwrap_or(0))
            .map_or(0, |t| t.chars().count());
        // A single grapheme of 300 characters is cut anyway.
        let at = if whole == 0 { MAX_SPOKEN_CHUNK } else { whole };
        (at, self.place)
    }

    /// Keeps count of words, code and links.
    fn count(&mut self, at: usize, c: char) {
        let before = at.checked_sub(1).and_then(|b| self.text.get(b)).copied();
        let within = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '.' | ',');
        if sentence::is_wide(c) {
            // Two characters are about a word.
            self.words += at % 2;
        } else if c.is_alphanumeric() && !before.is_some_and(within) {
            self.words += 1;
        }
        if self.place.fence.is_some() || matches!(self.place.line, Line::Fence(_)) {
            return;
        }
        match c {
            '`' => self.in_code = !self.in_code,
            '[' if !self.in_code => self.link = Some(at),
            // The address goes on to the bracket's end.
            '(' if before == Some(']') => {}
            ')' => self.link = None,
            _ if before == Some(']') => self.link = None,
            _ => {}
        }
        if self.link.is_some_and(|start| at - start > MAX_LINK) {
            self.link = None;
        }
    }

    fn boundary(&self, at: usize, c: char) -> Boundary {
        if c == '\n' {
            return self.line_end(at);
        }
        let whole_line = matches!(
            self.place.line,
            Line::Table | Line::Rule | Line::Fence(_) | Line::Code
        );
        if whole_line || self.in_code || self.link.is_some() {
            return Boundary::None;
        }
        match c {
            ' ' | '\t' => self.word_end(at),
            '.' | '!' | '?' | '…' | '。' | '！' | '？' | '．' => self.sentence_end(at),
            ',' | ';' | ':' | '、' | '，' | '；' | '：' | '—' => self.clause_end(at, c),
            '–' | '-' if at > 0 && self.text[at - 1] == ' ' => self.clause_end(at, c),
            _ => Boundary::None,
        }
    }

    fn word_end(&self, at: usize) -> Boundary {
        // After a dot that ends no sentence the next word belongs to it: "Dr. Who".
        if at == 0 || self.text[at - 1].is_whitespace() || self.text[at - 1] == '.' {
            return Boundary::None;
        }
        match self.blank(at) {
            Blank::Open => Boundary::Unknown,
            Blank::Lines(_) => Boundary::None,
            Blank::Spaces(end) => Boundary::Word(end),
        }
    }

    fn clause_end(&self, at: usize, c: char) -> Boundary {
        let wide = matches!(c, '、' | '，' | '；' | '：' | '—');
        let Some(end) = self.closers(at + 1) else {
            return Boundary::Unknown;
        };
        match self.blank(end) {
            Blank::Open => Boundary::Unknown,
            // The line's end is the better place.
            Blank::Lines(_) => Boundary::None,
            Blank::Spaces(next) if next > end || wide => Boundary::Clause(next),
            Blank::Spaces(_) => Boundary::None,
        }
    }

    fn sentence_end(&self, at: usize) -> Boundary {
        let marks = |c: &char| matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '．');
        if at > 0 && marks(&self.text[at - 1]) {
            // In the middle of a run, which was judged at its start.
            return Boundary::None;
        }
        let run = self.text[at..].iter().take_while(|c| marks(c)).count();
        let Some(end) = self.closers(at + run) else {
            return Boundary::Unknown;
        };
        let ends = sentence::Ends {
            before: &self.text[..at],
            marks: &self.text[at..at + run],
            closers: &self.text[at + run..end],
            item: self.place.line == Line::Item,
        };
        if ends.wide() {
            return Boundary::Sentence(end);
        }
        let next = match self.blank(end) {
            Blank::Open => return Boundary::Unknown,
            Blank::Spaces(next) if next == end && next < self.text.len() => return Boundary::None,
            Blank::Lines(next) => match self.line_end(next) {
                // A line of its own follows; nothing that it says matters.
                Boundary::Sentence(end) if !ends.is_item_number() => {
                    return Boundary::Sentence(end);
                }
                Boundary::Unknown => return Boundary::Unknown,
                _ => self.skip_blank(next),
            },
            Blank::Spaces(next) => next,
        };
        let rest = self.text.get(next..).unwrap_or_default();
        match ends.verdict(rest, self.ended) {
            sentence::Verdict::Sentence => Boundary::Sentence(next),
            sentence::Verdict::Clause => Boundary::Clause(next),
            sentence::Verdict::Nothing => Boundary::None,
            sentence::Verdict::Unknown => Boundary::Unknown,
        }
    }

    fn line_end(&self, at: usize) -> Boundary {
        let next = at + 1;
        match self.place.line {
            Line::Prose | Line::Quote => {}
            _ if self.place.start => {}
            _ => return Boundary::Sentence(next),
        }
        match begins(
            self.text.get(next..).unwrap_or_default(),
            self.place.line,
            self.ended,
        ) {
            None => Boundary::Unknown,
            Some(true) => Boundary::Sentence(next),
            Some(false) => Boundary::Clause(next),
        }
    }

    /// The end of the quotes and brackets from `at` on; `None` while more may come.
    fn closers(&self, at: usize) -> Option<usize> {
        let rest = self.text.get(at..).unwrap_or_default();
        let count = rest.iter().take_while(|c| sentence::is_closer(**c)).count();
        (self.ended || count < rest.len()).then_some(at + count)
    }

    /// The white space from `at` on.
    fn blank(&self, at: usize) -> Blank {
        for (n, c) in self.text.iter().enumerate().skip(at) {
            match c {
                '\n' => return Blank::Lines(n),
                c if !c.is_whitespace() => return Blank::Spaces(n),
                _ => {}
            }
        }
        match self.ended {
            true => Blank::Spaces(self.text.len()),
            false => Blank::Open,
        }
    }

    fn skip_blank(&self, at: usize) -> usize {
        let blank = self.text[at..].iter().take_while(|c| c.is_whitespace());
        at + blank.count()
    }
}

/// What white space leads to.
enum Blank {
    /// The end of what is there.
    Open,
    /// A line's end, which is there.
    Lines(usize),
    /// Something else, which is there.
    Spaces(usize),
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
