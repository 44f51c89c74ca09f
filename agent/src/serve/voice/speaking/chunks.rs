//! A whole text in the pieces that an engine is given, which are the same at every agent.

use std::ops::Range;
use unamesh_proto::speech::text::Splitter;
use unamesh_proto::wire::SpeakRequest;

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Chunk {
    /// Its characters.
    pub range: Range<u32>,
    /// What the engine is given; empty if there is nothing to say.
    pub spoken: String,
}

/// The pieces of a text, from one of them on. Each is cut when it is asked for.
#[derive(Debug)]
pub(in super::super) struct Chunks {
    splitter: Splitter,
    /// The first, which was cut to find where it begins.
    first: Option<Chunk>,
}

impl Chunks {
    /// The pieces of the text of `request` from the one that begins with its character `from`.
    /// `None` if none does.
    pub fn of(request: &SpeakRequest) -> Option<Self> {
        let splitter = match request.one_piece.0 {
            true => Splitter::of_one_piece(),
            false => Splitter::new(),
        };
        Self::from(splitter, &request.text, request.from)
    }

    fn from(mut splitter: Splitter, text: &str, from: u32) -> Option<Self> {
        splitter.push(text);
        let mut first = cut(&mut splitter);
        while let Some(chunk) = &first
            && chunk.range.end <= from
        {
            first = cut(&mut splitter);
        }
        // Behind the last there is nothing to say, and that is said.
        let begins = first.as_ref().is_none_or(|chunk| chunk.range.start == from);
        begins.then_some(Chunks { splitter, first })
    }
}

impl Iterator for Chunks {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        self.first.take().or_else(|| cut(&mut self.splitter))
    }
}

fn cut(splitter: &mut Splitter) -> Option<Chunk> {
    let chunk = splitter.finish()?;
    // A text has far fewer characters.
    let place = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
    Some(Chunk {
        range: place(chunk.range.start)..place(chunk.range.end),
        spoken: chunk.spoken,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "Hello there, dear friend. It is 3.14 o'clock, Dr. Who! Bye. 🎉🎉";

    fn ranges(from: u32) -> Option<Vec<Range<u32>>> {
        Some(
            Chunks::from(Splitter::new(), TEXT, from)?
                .map(|c| c.range)
                .collect(),
        )
    }

    #[test]
    fn a_text_is_gone_on_with_at_any_boundary_and_nowhere_else() {
        let whole = ranges(0).unwrap();
        assert!(whole.len() > 3, "{whole:?}");
        for (at, range) in whole.iter().enumerate() {
            assert_eq!(ranges(range.start).unwrap(), whole[at..]);
            assert_eq!(ranges(range.start + 1), None, "within {range:?}");
        }
        let chars = u32::try_from(TEXT.chars().count()).unwrap();
        assert_eq!(ranges(chars), Some(Vec::new()), "behind the end");
        assert_eq!(whole.last().unwrap().end, chars);
    }

    #[test]
    fn one_piece_is_cut_only_where_it_is_too_long() {
        let spoken = |text, from| {
            let chunks = Chunks::from(Splitter::of_one_piece(), text, from)?;
            Some(chunks.map(|c| c.spoken).collect::<Vec<_>>())
        };
        let text = "Well then, dear friend, it is **late**. Or so I think, whatever they say!";
        let said = "Well then, dear friend, it is late. Or so I think, whatever they say!";
        assert_eq!(spoken(text, 0).unwrap(), [said]);
        assert_eq!(spoken(text, 24), None, "it has one beginning");
        let long = text.repeat(9);
        let pieces = spoken(&long, 0).unwrap();
        assert!(pieces.len() > 1, "{pieces:?}");
        let whole = |p: &String| p.ends_with(['.', ',', '!']);
        assert!(pieces.iter().all(whole), "{pieces:?}");
    }

    #[test]
    fn what_is_not_spoken_is_a_piece_without_words() {
        let spoken = |text| {
            let chunks = Chunks::from(Splitter::new(), text, 0);
            chunks.unwrap().map(|c| c.spoken)
        };
        assert_eq!(spoken("🎉 — 🎉").collect::<Vec<_>>(), [""]);
        assert_eq!(spoken("").next(), None);
        assert_eq!(spoken(TEXT).last().as_deref(), Some(""));
    }
}
