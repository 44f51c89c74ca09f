//! What the stages tell the machine, and what the machine tells the caller.

use super::Conversation;
use crate::client::{ClientError, Event, PeerRef};
use crate::converse::{Stage, TurnEvent};
use crate::speech::{HearEvent, SayEvent};
use std::time::Duration;
use unamesh_proto::speech::turn::{self, Heard, Input, Output, Spoken, Thought};

impl Conversation {
    pub(super) fn emit(&mut self, output: Output<ClientError>) {
        if matches!(output, Output::SpeechBegan) {
            self.warm();
        }
        let event = match output {
            Output::SpeechBegan => TurnEvent::SpeechBegan,
            Output::Partial(text) => TurnEvent::Partial { text },
            Output::NothingHeard => TurnEvent::NothingHeard,
            Output::Heard { text, node } => TurnEvent::Heard {
                text,
                peer: self.shared.peer(node),
            },
            Output::Thinking(node) => TurnEvent::Thinking {
                peer: self.shared.peer(node),
            },
            Output::Text(text) => TurnEvent::Text { text },
            Output::TurnDone {
                heard,
                answer,
                played,
                timeline,
            } => TurnEvent::TurnDone {
                heard,
                answer,
                played,
                timeline,
            },
            Output::BargedIn { played, timeline } => TurnEvent::BargedIn { played, timeline },
            Output::Failed {
                stage,
                error,
                partial,
            } => TurnEvent::Failed {
                stage,
                error,
                partial,
            },
        };
        self.events.push_back(event);
    }

    pub(super) fn heard(&mut self, number: u32, event: HearEvent) {
        let heard = match event {
            HearEvent::Began { at_ms } => Heard::Began { at_ms },
            HearEvent::Silence { ms } => Heard::Silence(Duration::from_millis(ms.into())),
            HearEvent::Partial { text } => Heard::Partial(text),
            HearEvent::PeerChanged { from, to, reason } => {
                return self.peer_changed(Stage::Hear, from, to, true, reason, Duration::ZERO);
            }
            HearEvent::Final { text, peer, .. } => {
                let heard = self.hearing.take().and_then(|(_, hearing)| hearing.heard());
                let ms = u64::try_from(heard.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
                Heard::Final {
                    node: peer.node,
                    text,
                    samples: ms.saturating_mul(turn::MIC_SAMPLES_PER_MS),
                }
            }
            HearEvent::Failed { error, partial } => {
                self.hearing = None;
                Heard::Failed { error, partial }
            }
            // What comes behind a full one goes into the next.
            HearEvent::Started { .. } | HearEvent::Progress { .. } | HearEvent::Full { .. } => {
                return;
            }
        };
        self.input(Input::Hear(number, heard));
    }

    pub(super) fn thought(&mut self, generation: u32, event: Event) {
        let thought = match event {
            Event::Started { peer, .. } => Thought::Started(peer.node),
            Event::Token { text, .. } => Thought::Token(text),
            Event::PeerChanged {
                from,
                to,
                gap,
                reason,
                ..
            } => return self.peer_changed(Stage::Think, from, to, true, reason, gap),
            Event::Done { .. } => {
                self.thinking = None;
                Thought::Done
            }
            Event::Failed(error) => {
                self.thinking = None;
                let too_long = matches!(error, ClientError::ContextExceeded { .. });
                Thought::Failed { error, too_long }
            }
            Event::Progress { .. } => return,
        };
        self.input(Input::Think(generation, thought));
    }

    /// `at`: of which voice.
    pub(super) fn said(&mut self, at: usize, event: SayEvent) {
        let Some(voice) = self.voices.get(at) else {
            return;
        };
        let (generation, piece) = (voice.generation, voice.piece);
        let said = voice.speech.spoken_to();
        let spoken = match event {
            SayEvent::Started { peer, voice, .. } => {
                self.speaks(peer, voice);
                Spoken::Started
            }
            SayEvent::Pcm(pcm) => {
                let samples = pcm.len();
                self.announce(generation);
                self.events.push_back(TurnEvent::Pcm(pcm));
                Spoken::Taken { samples, said }
            }
            SayEvent::PeerChanged {
                from,
                to,
                voice,
                same_voice,
                reason,
                gap,
                ..
            } => {
                self.speaker = Some((to.clone(), voice));
                return self.peer_changed(Stage::Speak, from, to, same_voice, reason, gap);
            }
            SayEvent::Done { .. } => {
                self.voices.remove(at);
                Spoken::Done
            }
            SayEvent::Failed(error) => {
                self.voices.remove(at);
                Spoken::Failed(error)
            }
            SayEvent::Progress { .. } | SayEvent::Mark { .. } => return,
        };
        self.input(Input::Speak(generation, piece, spoken));
    }

    /// This peer speaks the piece that was opened last. Another voice than before is told.
    fn speaks(&mut self, peer: PeerRef, voice: String) {
        let before = self.speaker.replace((peer.clone(), voice.clone()));
        let other = before.filter(|(_, v)| !v.eq_ignore_ascii_case(&voice));
        if let Some((from, was)) = other {
            let reason = format!("no peer has the voice {was:?}");
            self.peer_changed(Stage::Speak, from, peer, false, reason, Duration::ZERO);
        }
    }

    fn announce(&mut self, generation: u32) {
        if self.announced == generation {
            return;
        }
        self.announced = generation;
        if let Some((peer, voice)) = self.speaker.clone() {
            self.events.push_back(TurnEvent::Speaking { peer, voice });
        }
    }

    fn peer_changed(
        &mut self,
        stage: Stage,
        from: PeerRef,
        to: PeerRef,
        same_voice: bool,
        reason: String,
        gap: Duration,
    ) {
        self.events.push_back(TurnEvent::PeerChanged {
            stage,
            from,
            to,
            same_voice,
            reason,
            gap,
        });
    }
}
