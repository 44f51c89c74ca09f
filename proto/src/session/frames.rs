//! What a frame does: deliver, take over, end.

use super::attempt::AttemptId;
use super::handover::has_text;
use super::machine::Session;
use super::{Effect, Note, Output, Reason, Seam};
use crate::ids::NodeId;
use crate::limits::MAX_TOKENS;
use crate::rank::same_name;
use crate::time::Mono;
use crate::wire::{Done, GenFrame, Token};

impl Session {
    pub(super) fn frame(&mut self, id: AttemptId, frame: GenFrame, now: Mono) {
        self.old_path_lives(id);
        let late = self.late;
        let Some(attempt) = self.find(id) else { return };
        attempt.late = late;
        attempt.hear(now);
        match frame {
            GenFrame::Accepted(accepted) => {
                attempt.generation = Some(accepted.generation);
                attempt.exact = accepted.exact;
                attempt.digest = accepted.digest;
                self.lift(id);
            }
            GenFrame::Progress(p) => {
                attempt.progress(p.phase, p.done, now);
                self.lift(id);
                if self.delivered.is_empty() {
                    let (phase, done, total) = (p.phase, p.done, p.total);
                    self.emit(Output::Progress { phase, done, total });
                }
            }
            GenFrame::Token(token) => self.token(id, token, now),
            GenFrame::Done(done) => self.done(id, done, now),
            GenFrame::Draining(_) => self.leaving(id, now),
            GenFrame::Error(error) => self.refused(id, error, now),
        }
    }

    /// A suspicion of silence is lifted by any frame, so that it can arise anew; the backup
    /// goes on, since a peer that was silent may be so again before it produces.
    pub(super) fn lift(&mut self, id: AttemptId) {
        if let Some(a) = self.find(id)
            && matches!(a.suspect, Some(Reason::Silence | Reason::DialSlow))
        {
            a.suspect = None;
            self.return_hedge();
        }
    }

    pub(super) fn token(&mut self, id: AttemptId, token: Token, now: Mono) {
        let expected = self.delivered.len();
        let Some(attempt) = self.find(id) else { return };
        if token.index != attempt.next || token.index >= MAX_TOKENS {
            return self.fail(id, Reason::Protocol);
        }
        let back = attempt.reattaches().then(|| attempt.node());
        attempt.token(token.chunk.tokens, now);
        let differed = attempt.differs;
        let index = token.index as usize;
        if let Some(node) = back {
            self.note_reattached(node, now);
        }
        if self.current == Some(id) {
            if index < expected + self.held.len() {
                // It came over the old path while the new one was asked for.
                return;
            }
            return self.deliver_from_current(id, token, now);
        }
        if self.is_seam(index) {
            self.take_over(id, now);
            return self.deliver_from_current(id, token, now);
        }
        // The overlap of a backup that started while a leaving peer went on.
        let same = self
            .delivered
            .get(index)
            .map(|chunk| chunk.text == token.chunk.text);
        let differs = differed || same == Some(false);
        if let Some(attempt) = self.find(id) {
            attempt.differs = differs;
        }
        match same {
            None if index == expected && !differs => {
                self.take_over(id, now);
                self.deliver_from_current(id, token, now);
            }
            None if !differs => self.fail(id, Reason::Protocol),
            _ if self.current.is_none() && differs => self.producer_gone(now),
            _ => self.hand_over(now),
        }
    }

    pub(super) fn deliver_from_current(&mut self, id: AttemptId, token: Token, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        attempt.suspect = None;
        if !attempt.draining {
            // The original produces again before its backup did: it goes on alone.
            self.return_hedge();
            // They come back: nothing failed.
            self.spent = self.spent.saturating_sub(self.reset_others(id));
            self.loss = None;
        }
        self.held.push((token.chunk, token.extra));
        self.release(now);
        if self.called {
            // Nobody can go on in its place any more.
            self.reset_others(id);
            return self.open_seam(now);
        }
        self.hand_over(now);
    }

    /// The generation that was attached to gives its next token.
    fn note_reattached(&mut self, node: NodeId, now: Mono) {
        let after = now.since(self.last_token);
        let note = Note::Reattached { node, after };
        self.effects.push_back(Effect::Note(note));
    }

    /// Emits all that was held.
    pub(super) fn flush(&mut self) {
        self.give_out(self.held.len());
    }

    /// Emits the first `count` of what was held.
    pub(super) fn give_out(&mut self, count: usize) {
        if count > 0 {
            self.last_token = self.now;
        }
        let rest = self.held.split_off(count.min(self.held.len()));
        for (chunk, extra) in std::mem::replace(&mut self.held, rest) {
            let index = u32::try_from(self.delivered.len()).unwrap_or(u32::MAX);
            let (text, tokens) = (chunk.text.clone(), chunk.tokens);
            self.half_made = text.is_empty() && !extra.is_empty();
            self.called |= calls_a_tool(&extra);
            self.delivered.push(chunk);
            self.emit(Output::Token {
                index,
                text,
                tokens,
                extra,
            });
        }
    }

    /// `id` is the first to produce: it goes on, whoever else runs is reset.
    pub(super) fn take_over(&mut self, id: AttemptId, now: Mono) {
        self.close_seam();
        self.held.clear();
        let previous = self.current.replace(id);
        let lost = self.loss.take().or_else(|| {
            let attempt = self.attempts.iter().find(|a| Some(a.id) == previous)?;
            Some(self.loss_of(attempt))
        });
        self.reset_others(id);
        self.hedge_took_over(id);
        let Some(attempt) = self.attempts.iter().find(|a| a.id == id) else {
            return;
        };
        let (to, engine) = (attempt.node(), attempt.candidate.engine);
        self.digest.clone_from(&attempt.digest);
        if !self.started {
            self.started = true;
            let why = attempt.candidate.reason.clone();
            let node = to;
            return self.emit(Output::Started { node, engine, why });
        }
        let Some(lost) = lost else { return };
        let same = attempt.digest == lost.digest && !attempt.digest.is_empty();
        let seam = if self.delivered.is_empty() || (attempt.exact && same) {
            Seam::Exact
        } else if same || same_name(&attempt.candidate.model, &lost.model) {
            Seam::Continued
        } else {
            Seam::OtherModel
        };
        let change = Output::PeerChanged {
            from: lost.from,
            to,
            engine,
            seam,
            gap: now.since(lost.last_token),
            backup_ttft: now.since(attempt.opened),
            reason: lost.reason,
        };
        self.emit(change);
    }

    pub(super) fn done(&mut self, id: AttemptId, done: Done, now: Mono) {
        let Some(attempt) = self.find(id) else { return };
        if attempt.next != done.frames {
            return self.fail(id, Reason::Protocol);
        }
        let differed = attempt.differs;
        if attempt.reattaches() {
            let node = attempt.node();
            self.note_reattached(node, now);
        }
        if self.current != Some(id) {
            let frames = done.frames as usize;
            let more = self.held.iter().any(has_text);
            let here = !differed && frames == self.delivered.len() && !more;
            if !here && !self.is_seam(frames) {
                return self.ends_elsewhere(id, now);
            }
            self.take_over(id, now);
        }
        self.flush();
        self.learn(id);
        if let Some(a) = self.attempts.iter().find(|a| a.id == id) {
            let (node, engine) = (a.node(), a.candidate.engine);
            let note = Note::Succeeded { node, engine };
            self.effects.push_back(Effect::Note(note));
        }
        self.attempts.retain(|a| a.id != id);
        self.end(Output::Done {
            finish: done.finish,
            usage: done.usage,
        });
    }
}

/// Whether the engine's other fields hold a part of a tool call. A quote within a JSON string is
/// escaped, so that the quoted names occur as keys alone; engines' adapters leave out empty ones.
pub(super) fn calls_a_tool(extra: &str) -> bool {
    ["\"tool_calls\"", "\"function_call\""]
        .iter()
        .any(|field| extra.contains(field))
}
