//! One question, and what came of it.

use super::DemoError;
use super::mesh::Mesh;
use super::show::Show;
use futures_util::StreamExt;
use serde_json::json;
use std::time::Duration;
use unamesh_client::client::{Event, Request};
use unamesh_proto::session::Seam;
use unamesh_proto::wire::Sampling;

/// When to kill the agent that answers.
#[derive(Clone, Copy)]
pub struct Kill {
    /// As soon as this many tokens have come.
    pub after_tokens: u32,
}

/// A piece of an answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its place in the answer.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: u32,
    /// From after the kill.
    pub after_seam: bool,
}

/// The change of the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The name of the one that was killed.
    pub from: String,
    /// The name of the one that went on.
    pub to: String,
    /// How well the parts fit.
    pub seam: Seam,
    /// From the last token before to the first after.
    pub gap: Duration,
    /// Of it, from the backup's dispatch to its first token.
    pub backup_ttft: Duration,
    /// What the client saw.
    pub reason: String,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In the order in which they came.
    pub pieces: Vec<Piece>,
    /// Who gave it, one after the other, and how many tokens each.
    pub shares: Vec<(String, u32)>,
    /// The change of the agent by the kill.
    pub change: Option<Change>,
    /// Other changes: on a machine that is busy otherwise, an agent may fall silent unkilled.
    pub other_changes: u32,
}

impl Answer {
    /// The text.
    pub fn text(&self) -> String {
        self.pieces
            .iter()
            .map(|piece| piece.text.as_str())
            .collect()
    }

    /// Tokens.
    pub fn tokens(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.tokens).sum()
    }

    /// Takes the next piece, which comes from the agent `name`.
    pub fn push(&mut self, name: &str, piece: Piece) {
        match self.shares.last_mut() {
            Some((last, tokens)) if last == name => *tokens += piece.tokens,
            _ => self.shares.push((name.to_owned(), piece.tokens)),
        }
        self.pieces.push(piece);
    }

    /// `14 tokens from desk, 82 from tower`.
    pub fn credit(&self) -> String {
        let share = |(at, (name, tokens)): (usize, &(String, u32))| {
            let unit = if at == 0 { " tokens" } else { "" };
            format!("{tokens}{unit} from {name}")
        };
        let shares: Vec<String> = self.shares.iter().enumerate().map(share).collect();
        shares.join(", ")
    }

    /// Tokens before and after the change.
    pub fn sides(&self) -> (u32, u32) {
        let after = self
            .pieces
            .iter()
            .filter(|piece| piece.after_seam)
            .map(|p| p.tokens)
            .sum();
        (self.tokens().saturating_sub(after), after)
    }
}

/// Puts one question to the mesh.
pub struct Asker<'a> {
    mesh: &'a mut Mesh,
    request: Request,
}

impl<'a> Asker<'a> {
    /// `question`, to be answered in at most `max_tokens` tokens, at temperature 0.
    pub fn new(mesh: &'a mut Mesh, question: &str, max_tokens: u32) -> Self {
        let messages = json!([{"role": "user", "content": question}]).to_string();
        let mut request = Request::chat(mesh.model(), messages);
        request.sampling = Sampling {
            temperature: Some(0.0),
            max_tokens: Some(max_tokens),
            ..Sampling::default()
        };
        Asker { mesh, request }
    }

    /// Asks, shows the answer as it comes, and kills whoever gives it.
    pub async fn ask(self, kill: Option<Kill>, show: &Show) -> Result<Answer, DemoError> {
        let mut stream = self.mesh.client.generate(self.request);
        let mut answer = Answer::default();
        let mut answering = String::new();
        let mut killed = false;
        while let Some(event) = stream.next().await {
            match event {
                Event::Started { peer, why } => {
                    show.started(&peer.name, &why)?;
                    answering = peer.name;
                }
                Event::Token {
                    index,
                    text,
                    tokens,
                    ..
                } => {
                    let after_seam = answer.change.is_some();
                    show.piece(&text, after_seam)?;
                    let piece = Piece {
                        index,
                        text,
                        tokens,
                        after_seam,
                    };
                    answer.push(&answering, piece);
                    if !killed && kill.is_some_and(|kill| answer.tokens() >= kill.after_tokens) {
                        killed = true;
                        self.mesh.kill(&answering);
                    }
                }
                Event::PeerChanged {
                    from,
                    to,
                    seam,
                    gap,
                    backup_ttft,
                    reason,
                } => {
                    let by_kill = killed && from.name == answering && answer.change.is_none();
                    let (from, to) = (from.name, to.name);
                    answering.clone_from(&to);
                    let change = Change {
                        from,
                        to,
                        seam,
                        gap,
                        backup_ttft,
                        reason,
                    };
                    show.seam(&change, by_kill)?;
                    if by_kill {
                        answer.change = Some(change);
                    } else {
                        answer.other_changes += 1;
                    }
                }
                Event::Progress { .. } => {}
                Event::Done { .. } => {
                    show.answered()?;
                    return Ok(answer);
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_is_credited_with_its_own_tokens() {
        let mut answer = Answer::default();
        let from = ["desk", "desk", "tower", "laptop", "laptop"];
        for (index, name) in (0..).zip(from) {
            let piece = Piece {
                index,
                text: "x".into(),
                tokens: 2,
                after_seam: index > 1,
            };
            answer.push(name, piece);
        }
        assert_eq!(
            answer.credit(),
            "4 tokens from desk, 2 from tower, 4 from laptop"
        );
        assert_eq!(answer.sides(), (4, 6));
    }
}
