//! What was said so far.

use crate::limits::MAX_MESSAGES;
use serde::{Deserialize, Serialize};

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The app, to the language model.
    System,
    /// The user.
    User,
    /// The language model.
    Assistant,
}

/// One thing that was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// By whom.
    pub role: Role,
    /// The words.
    pub content: String,
    /// An answer that was broken off: these are the words that were played.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

impl Message {
    /// Something that `role` said.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
            interrupted: false,
        }
    }
}

/// See [`super`].
#[derive(Debug)]
pub(super) struct History {
    pub(super) messages: Vec<Message>,
    /// So many of the newest are shown to the language model, the system's beside them.
    window: usize,
}

impl History {
    pub(super) fn new(messages: Vec<Message>) -> Self {
        History {
            messages,
            window: usize::MAX,
        }
    }

    /// The user said so. What was said without an answer in between is one message: many models'
    /// templates want the roles to alternate.
    pub(super) fn user(&mut self, text: &str) {
        join(&mut self.messages, text);
        let system = self.systems();
        let oldest = self.messages.len().saturating_sub(MAX_MESSAGES);
        let end = (system + oldest).min(self.messages.len());
        self.messages.drain(system..end);
    }

    fn systems(&self) -> usize {
        let is_system = |m: &&Message| m.role == Role::System;
        self.messages.iter().take_while(is_system).count()
    }

    /// It was answered so, as far as it was played. Nothing played, nothing answered.
    pub(super) fn assistant(&mut self, played: &str, interrupted: bool) {
        if !played.is_empty() {
            self.messages.push(Message {
                interrupted,
                ..Message::new(Role::Assistant, played)
            });
        }
    }

    /// What the language model is shown; with what the user says now, if that is not in the
    /// history yet.
    pub(super) fn shown(&self, said: Option<&str>) -> Vec<Message> {
        let (system, talk) = self.messages.split_at(self.systems());
        let mut talk: Vec<Message> = talk.to_vec();
        if let Some(said) = said {
            join(&mut talk, said);
        }
        let mut from = talk.len().saturating_sub(self.window);
        // What is shown begins with the user.
        while from > 0 && from < talk.len() - 1 && talk[from].role != Role::User {
            from += 1;
        }
        let shown = talk.drain(from..).map(|mut message| {
            if message.interrupted {
                message.content.push_str(" …");
            }
            message
        });
        system.iter().cloned().chain(shown).collect()
    }

    /// Shows half as much from now on; false if that is nothing. `shown` is what was too much.
    pub(super) fn forget_half(&mut self, shown: usize) -> bool {
        let window = self.window.min(shown) / 2;
        let less = window > 0;
        if less {
            self.window = window;
        }
        less
    }
}

fn join(messages: &mut Vec<Message>, text: &str) {
    match messages.last_mut() {
        Some(last) if last.role == Role::User => {
            last.content.push(' ');
            last.content.push_str(text);
        }
        _ => messages.push(Message::new(Role::User, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_messages_of_the_system_are_survived() {
        let system = Message::new(Role::System, "Be brief.");
        let mut history = History::new(vec![system; MAX_MESSAGES + 3]);
        history.user("Hello.");
        assert_eq!(history.shown(None).len(), MAX_MESSAGES + 3);
    }
}
