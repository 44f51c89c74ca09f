//! The prompt of a continuation: rendered text, then the delivered pieces as token ids.

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};
use unamesh_proto::wire::Chunk;

/// One delivered piece as the server takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All its token ids.
    Ids(Vec<u32>),
    /// Its text: the server makes tokens of it, maybe others than it once gave.
    Text(String),
}

/// A piece that needs no question: its ids cover all its tokens, there is nothing to it, or it
/// has no ids at all (it came from another kind of engine).
pub fn whole(chunk: &Chunk) -> Option<Piece> {
    let covered = u32::try_from(chunk.ids.len()).is_ok_and(|ids| ids == chunk.tokens);
    if covered || chunk.text.is_empty() {
        Some(Piece::Ids(chunk.ids.clone()))
    } else if chunk.ids.is_empty() {
        Some(Piece::Text(chunk.text.clone()))
    } else {
        None
    }
}

/// A piece whose ids cover only its last tokens, with what the server makes of its text.
pub fn completed(chunk: &Chunk, tokens: &[u32]) -> Piece {
    let as_many = u32::try_from(tokens.len()).is_ok_and(|n| n == chunk.tokens);
    if as_many && !chunk.ids.is_empty() && tokens.ends_with(&chunk.ids) {
        Piece::Ids(tokens.to_vec())
    } else {
        Piece::Text(chunk.text.clone())
    }
}

/// `prompt` of `/completion`.
#[derive(Clone, Debug)]
pub struct Prompt {
    rendered: String,
    pieces: Vec<Piece>,
}

impl Prompt {
    /// `rendered`, then `pieces`. Texts that touch become one, as a tokenizer wants them.
    pub fn new(rendered: String, pieces: Vec<Piece>) -> Self {
        let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => joined.push(piece),
            }
        }
        Prompt {
            rendered,
            pieces: joined,
        }
    }

    /// Whether the model sees exactly the tokens that it once gave.
    pub fn is_exact(&self) -> bool {
        self.pieces
            .iter()
            .all(|piece| matches!(piece, Piece::Ids(_)))
    }

    /// The same without `end`, if it ends with that as text.
    pub fn without(&self, end: &str) -> Option<Prompt> {
        let mut shorter = self.clone();
        match shorter.pieces.last_mut() {
            Some(Piece::Text(text)) if text.ends_with(end) => {
                text.truncate(text.len() - end.len());
                Some(shorter)
            }
            _ => end.is_empty().then_some(shorter),
        }
    }

    fn has_ids(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Ids(ids) if !ids.is_empty()))
    }
}

impl Serialize for Prompt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // An array of nothing but strings means several prompts to llama.cpp.
        if !self.has_ids() {
            let texts = self.pieces.iter().filter_map(|piece| match piece {
                Piece::Text(text) => Some(text.as_str()),
                Piece::Ids(_) => None,
            });
            let whole: String = std::iter::once(self.rendered.as_str())
                .chain(texts)
                .collect();
            return serializer.serialize_str(&whole);
        }
        let mut seq = serializer.serialize_seq(None)?;
        seq.serialize_element(&self.rendered)?;
        for piece in &self.pieces {
            match piece {
                Piece::Ids(ids) => ids.iter().try_for_each(|id| seq.serialize_element(id))?,
                Piece::Text(text) => seq.serialize_element(text)?,
            }
        }
        seq.end()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chunk(text: &str, ids: &[u32], tokens: u32) -> Chunk {
        Chunk {
            text: text.into(),
            ids: ids.to_vec(),
            tokens,
        }
    }

    fn json(pieces: Vec<Piece>) -> (String, bool) {
        let prompt = Prompt::new("p".into(), pieces);
        (serde_json::to_string(&prompt).unwrap(), prompt.is_exact())
    }

    #[test]
    fn ids_follow_the_rendered_text() {
        let pieces = vec![
            whole(&chunk("a", &[1], 1)).unwrap(),
            whole(&chunk("", &[2], 1)).unwrap(),
        ];
        assert_eq!(json(pieces), (r#"["p",1,2]"#.to_owned(), true));
        assert_eq!(json(Vec::new()), (r#""p""#.to_owned(), true));
    }

    #[test]
    fn a_character_of_several_tokens() {
        let fox = chunk("🦊", &[9], 3);
        assert_eq!(whole(&fox), None);
        assert_eq!(completed(&fox, &[7, 8, 9]), Piece::Ids(vec![7, 8, 9]));
        assert_eq!(completed(&fox, &[8, 9]), Piece::Text("🦊".into()));
        assert_eq!(completed(&fox, &[7, 9, 8]), Piece::Text("🦊".into()));
    }

    #[test]
    fn a_ragged_end_is_taken_off_text_alone() {
        let text = Prompt::new(
            "p".into(),
            vec![Piece::Ids(vec![1]), Piece::Text("a b".into())],
        );
        let shorter = text.without(" b").unwrap();
        assert_eq!(serde_json::to_string(&shorter).unwrap(), r#"["p",1,"a"]"#);
        assert!(text.without("ab").is_none());
        let ids = Prompt::new("p".into(), vec![Piece::Ids(vec![1])]);
        assert!(ids.without(" b").is_none() && ids.without("").is_some());
    }

    #[test]
    fn text_is_mixed_in_but_never_alone() {
        let fox = Piece::Text("🦊".into());
        assert_eq!(json(vec![fox.clone()]), (r#""p🦊""#.to_owned(), false));
        assert_eq!(
            json(vec![Piece::Ids(vec![1]), fox]),
            (r#"["p",1,"🦊"]"#.to_owned(), false)
        );
    }
}
