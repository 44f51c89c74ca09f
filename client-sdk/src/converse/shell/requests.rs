//! What the stages are asked, and who is likely to be.

use super::Conversation;
use crate::client::Request;
use crate::clock;
use crate::converse::Message;
use crate::speech::{Hear, Say};
use unamesh_proto::rank::speech::SpeechNeed;
use unamesh_proto::wire::ModelKind;

/// Peers of each stage that are dialed early: the best, and who would stand in for it.
const WARM: usize = 2;

impl Conversation {
    pub(super) fn hear(&self) -> Hear {
        Hear {
            vad_ms: u16::try_from(self.config.silence.as_millis()).unwrap_or(u16::MAX),
            session: self.config.session,
            partials: true,
            ..self.config.stt.clone()
        }
    }

    pub(super) fn request(&self, messages: &[Message]) -> Request {
        let message = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
        let messages: Vec<_> = messages.iter().map(message).collect();
        Request {
            sampling: self.config.sampling.clone(),
            extra: self.config.extra.clone(),
            session: self.config.session,
            other_model: self.config.other_model,
            first: None,
            ..Request::chat(
                &*self.config.model,
                serde_json::Value::from(messages).to_string(),
            )
        }
    }

    /// Whoever speaks first decides on a voice that was left open.
    pub(super) fn say(&self, text: String) -> Option<Say> {
        let mut say = self.config.voice.clone()?;
        if let Some((_, voice)) = self.speaker.as_ref().filter(|(_, voice)| !voice.is_empty()) {
            say.voice.clone_from(voice);
        }
        (say.text, say.session) = (text, self.config.session);
        Some(say)
    }

    /// Has the likeliest peers of all stages dialed.
    pub(super) fn warm(&self) {
        let now = clock::mono();
        let shared = &self.shared;
        let session = self.config.session;
        let at_work = |kind| shared.at_work(session, kind);
        let request = self.request(&[]);
        let thinkers = shared
            .rank(&request.need(shared.sticky(session, ModelKind::Llm)), now)
            .ranked;
        let listeners = shared.listeners(&self.config.stt.model, at_work(ModelKind::Stt), now);
        let speakers = self.say(String::new()).map(|say| {
            let need = SpeechNeed {
                model: &say.model,
                voice: &say.voice,
                language: &say.language,
                like: None,
                sticky: at_work(ModelKind::Tts),
            };
            shared.speakers(&need, now)
        });
        let speakers = speakers.into_iter().flatten().map(|s| s.candidate.node);
        let mut nodes: Vec<_> = thinkers.iter().take(WARM).map(|c| c.node).collect();
        nodes.extend(listeners.iter().take(WARM).map(|c| c.node));
        nodes.extend(speakers.take(WARM));
        nodes.sort();
        nodes.dedup();
        shared.transport.warm(&nodes);
    }
}
