//! What the stages are asked, and who is likely to be.

use super::Conversation;
use crate::client::Request;
use crate::clock;
use crate::converse::Message;
use crate::speech::{Hear, Say};
use unamesh_proto::rank::Candidate;
use unamesh_proto::rank::speech::SpeechNeed;
use unamesh_proto::speech::speak::Speaker;
use unamesh_proto::wire::{ModelKind, WarmModel};

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
        // The turn has cut the answer already.
        say.one_piece = true;
        Some(say)
    }

    /// Has the likeliest peers of all stages dialed, and the models of those that listen and speak
    /// kept warm. The conversation goes to where they are.
    pub(super) fn warm(&mut self) {
        let now = clock::mono();
        let shared = self.shared.clone();
        let session = self.config.session;
        let request = self.request(&[]);
        let thinkers = shared
            .rank(&request.need(shared.sticky(session, ModelKind::Llm)), now)
            .ranked;
        let at_work = shared.at_work(session, ModelKind::Stt);
        let listeners = shared.listeners(&self.config.stt.model, at_work, now);
        let speakers = self.speakers();
        let speak = speakers.iter().map(|s| s.candidate.node);
        let mut nodes: Vec<_> = thinkers.iter().take(WARM).map(|c| c.node).collect();
        nodes.extend(listeners.iter().take(WARM).map(|c| c.node));
        nodes.extend(speak.take(WARM));
        nodes.sort();
        nodes.dedup();
        shared.transport.warm(&nodes);
        if self.config.warm_up {
            self.keep(listeners.first(), speakers.first());
        }
    }

    fn speakers(&self) -> Vec<Speaker> {
        let Some(say) = self.say(String::new()) else {
            return Vec::new();
        };
        let need = SpeechNeed {
            model: &say.model,
            voice: &say.voice,
            language: &say.language,
            like: None,
            sticky: self.shared.at_work(self.config.session, ModelKind::Tts),
        };
        self.shared.speakers(&need, clock::mono())
    }

    /// Has their models kept warm, in place of any others.
    fn keep(&mut self, listener: Option<&Candidate>, speaker: Option<&Speaker>) {
        let model = |kind, candidate: &Candidate, voice: &str, language: &str| {
            let model = WarmModel {
                kind,
                model: candidate.model.clone(),
                engine: candidate.engine,
                voice: voice.to_owned(),
                language: language.to_owned(),
            };
            (candidate.node, model)
        };
        let language = &self.config.stt.language;
        let listener = listener.map(|c| model(ModelKind::Stt, c, "", language));
        let language = self.config.voice.as_ref().map_or("", |say| &say.language);
        let speaker = speaker.map(|s| model(ModelKind::Tts, &s.candidate, &s.voice, language));
        let wanted: Vec<_> = listener.into_iter().chain(speaker).collect();
        let session = self.config.session;
        for (node, model) in &wanted {
            self.shared.stick(session, model.kind, (*node, u16::MAX));
        }
        self.leases.hold(&self.shared, session, wanted);
    }
}
