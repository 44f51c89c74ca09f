//! One answer, from its first token to its last sample.

use super::timeline::{Clock, Timeline};
use super::{Config, Generation};
use crate::speech::speak::SAMPLES_PER_MS;
use crate::speech::text::{Chunk, Splitter};
use crate::time::Mono;
use crate::timeouts::{AUDIO_FRAME, PLAYOUT};
use std::ops::Range;
use std::time::Duration;

/// How the thinking stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinking {
    Running,
    Done,
    Failed,
}

/// A part of the text that is spoken as one.
#[derive(Debug)]
struct Piece {
    /// Its characters within the answer.
    range: Range<u64>,
    /// What the engine is given.
    spoken: String,
    /// Its first sound is about to come.
    started: bool,
    /// Of `spoken`: characters.
    said: u32,
}

/// See [`super`].
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) generation: Generation,
    /// What it answers.
    pub(super) heard: String,
    /// The user has finished: what is there may be handed out.
    pub(super) confirmed: bool,
    /// Messages that the language model was shown.
    pub(super) shown: usize,
    pub(super) clock: Clock,
    pub(super) thinking: Thinking,
    pub(super) text: String,
    splitter: Splitter,
    pieces: Vec<Piece>,
    /// Pieces that were given to the voice.
    opened: usize,
    /// The piece whose sound is handed out.
    playing: usize,
    aloud: bool,
    ahead: Duration,
    /// What was handed out is played by then.
    dry: Mono,
}

impl Answer {
    pub(super) fn new(
        generation: Generation,
        heard: &str,
        shown: usize,
        clock: Clock,
        config: &Config,
    ) -> Self {
        Answer {
            generation,
            heard: heard.into(),
            confirmed: false,
            shown,
            clock,
            thinking: Thinking::Running,
            text: String::new(),
            splitter: Splitter::new(),
            pieces: Vec::new(),
            opened: 0,
            playing: 0,
            aloud: config.aloud,
            ahead: config.ahead.saturating_sub(AUDIO_FRAME),
            dry: Mono::ZERO,
        }
    }

    // ----- text -------------------------------------------------------------------------

    pub(super) fn token(&mut self, text: &str, now: Mono) {
        self.clock.first(|line| &mut line.first_token, now);
        self.text.push_str(text);
        self.splitter.push(text);
        while let Some(chunk) = self.splitter.next() {
            self.piece(chunk);
        }
    }

    /// No token follows.
    pub(super) fn thought(&mut self, end: Thinking, now: Mono) {
        self.clock.first(|line| &mut line.thought, now);
        self.thinking = end;
        while let Some(chunk) = self.splitter.finish() {
            self.piece(chunk);
        }
    }

    fn piece(&mut self, chunk: Chunk) {
        match self.pieces.last_mut() {
            // A rest with nothing to say.
            last if chunk.spoken.is_empty() => {
                if let Some(last) = last {
                    last.range.end = chunk.range.end;
                }
            }
            _ => self.pieces.push(Piece {
                range: chunk.range,
                spoken: chunk.spoken,
                started: false,
                said: 0,
            }),
        }
    }

    /// Pieces that wait for the voice.
    pub(super) fn waiting(&self) -> usize {
        match self.aloud {
            true => self.pieces.len() - self.opened,
            false => 0,
        }
    }

    // ----- voice ------------------------------------------------------------------------

    /// The next piece to be spoken, if it is time: the one that is heard and one more are open.
    /// Whoever speaks the first decides on the voice, so the second waits for that.
    pub(super) fn open(&mut self, now: Mono) -> Option<(usize, String)> {
        let at = self.opened;
        let voice = at == 0 || self.pieces.get(at - 1).is_some_and(|before| before.started);
        if !self.aloud || !voice || at > self.playing + 1 {
            return None;
        }
        let text = self.pieces.get(at)?.spoken.clone();
        self.opened += 1;
        self.clock.first(|line| &mut line.first_piece, now);
        Some((at, text))
    }

    pub(super) fn started(&mut self, piece: usize) {
        if let Some(piece) = self.pieces.get_mut(piece) {
            piece.started = true;
        }
    }

    /// The piece whose next sound may be handed out, and from when on.
    pub(super) fn next_sound(&self) -> Option<(usize, Mono)> {
        let may = self.confirmed && self.aloud && self.playing < self.opened;
        may.then(|| (self.playing, self.dry - self.ahead))
    }

    /// Nothing was handed out yet.
    pub(super) fn is_unheard(&self) -> bool {
        self.clock.line.first_audio.is_none()
    }

    pub(super) fn taken(&mut self, piece: usize, samples: usize, said: u32, now: Mono) {
        if piece != self.playing {
            return;
        }
        self.clock.first(|line| &mut line.first_audio, now);
        let length = Duration::from_micros(samples as u64 * 1000 / SAMPLES_PER_MS);
        self.dry = self.dry.max(now) + length;
        if let Some(piece) = self.pieces.get_mut(piece) {
            piece.said = said;
            piece.started = true;
        }
    }

    pub(super) fn spoken(&mut self, piece: usize) {
        if piece == self.playing && piece < self.opened {
            self.started(piece);
            self.playing += 1;
        }
    }

    /// It goes on as text.
    pub(super) fn mute(&mut self) {
        self.aloud = false;
    }

    /// Something may be open at the voice.
    pub(super) fn is_spoken(&self) -> bool {
        self.aloud && self.playing < self.opened
    }

    // ----- end --------------------------------------------------------------------------

    /// When all that there will be was played, if all of it was handed out. Whoever takes it
    /// further ahead than a player does (a file) does not wait for an ear.
    pub(super) fn over(&self) -> Option<Mono> {
        let all = !self.aloud || self.playing == self.pieces.len();
        let beyond = self.ahead.saturating_sub(PLAYOUT);
        let over = self.confirmed && self.thinking != Thinking::Running && all;
        over.then(|| self.dry - beyond)
    }

    /// What was played of it, in whole words, or all that was shown if it has no voice.
    pub(super) fn played(&self) -> &str {
        let all = self.thinking != Thinking::Running && self.playing == self.pieces.len();
        if all || !self.aloud {
            return self.text.trim();
        }
        let reached = match (self.pieces.get(self.playing), self.pieces.last()) {
            (Some(piece), _) => self.reached(piece),
            (None, last) => last.map_or(0, |last| last.range.end),
        };
        prefix(&self.text, reached).trim()
    }

    /// The character of the answer up to which the piece was said: the end of a word.
    fn reached(&self, piece: &Piece) -> u64 {
        let Range { start, end } = piece.range;
        let raw = &prefix(&self.text, end)[prefix(&self.text, start).len()..];
        let said = u64::from(piece.said);
        let within = match raw.find(&piece.spoken) {
            Some(at) => raw[..at].chars().count() as u64 + said,
            // Marks and links are not spoken: about so far.
            None => (end - start) * said / (piece.spoken.chars().count() as u64).max(1),
        };
        if said == 0 || within >= end - start {
            return if said == 0 { start } else { end };
        }
        let words = prefix(raw, within);
        let next = raw[words.len()..].chars().next();
        let whole = match next.is_some_and(|c| !c.is_whitespace()) {
            true => words.rfind(char::is_whitespace).unwrap_or(0),
            false => words.len(),
        };
        start + words[..whole].chars().count() as u64
    }

    /// The time line, ended now.
    pub(super) fn line(mut self, now: Mono) -> Timeline {
        self.clock.first(|line| &mut line.end, now);
        self.clock.line
    }
}

/// The first `chars` characters.
fn prefix(text: &str, chars: u64) -> &str {
    let end = text
        .char_indices()
        .nth(usize::try_from(chars).unwrap_or(usize::MAX));
    &text[..end.map_or(text.len(), |(at, _)| at)]
}
