//! Performs what `unamesh_proto::speech::turn` decides, in the caller's own task. What the stages
//! are asked is `requests`.

mod requests;

use super::{ConverseConfig, Message, Role, Stage, TurnEvent};
use crate::client::{ClientError, Event, PeerRef};
use crate::clock;
use crate::driver::Generation;
use crate::memory::Shared;
use crate::outside::Alarm;
use crate::speech::{HearEvent, Hearing, SayEvent, Speech};
use futures_util::{Stream, StreamExt};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use unamesh_proto::limits::MAX_KEPT_SOUND;
use unamesh_proto::speech::turn::{self, Effect, Heard, Input, Output, Spoken, Thought, Turns};

/// A spoken conversation: a stream of [`TurnEvent`]s, which never ends by itself. Dropping it stops
/// everything at once, down to the engines.
pub struct Conversation {
    shared: Arc<Shared>,
    config: ConverseConfig,
    turns: Turns<ClientError>,
    hearing: Option<(u32, Hearing)>,
    thinking: Option<(u32, Generation)>,
    /// In the order of their pieces.
    voices: VecDeque<Voice>,
    warming: Option<Generation>,
    /// The newest sound, for a hearing that opens later than it came.
    sound: VecDeque<i16>,
    /// Who spoke last, in which voice.
    speaker: Option<(PeerRef, String)>,
    /// The generation whose [`TurnEvent::Speaking`] was given out.
    announced: u32,
    events: VecDeque<TurnEvent>,
    alarm: Alarm,
    opened: bool,
}

struct Voice {
    generation: u32,
    piece: usize,
    speech: Speech,
}

impl Conversation {
    pub(crate) fn new(shared: Arc<Shared>, mut config: ConverseConfig) -> Self {
        let mut history = std::mem::take(&mut config.history);
        let told = history.first().is_some_and(|m| m.role == Role::System);
        if !told && !config.system.is_empty() {
            history.insert(0, Message::new(Role::System, config.system.as_str()));
        }
        if config.session == 0 {
            config.session = rand::random_range(1..=u64::MAX);
        }
        let machine = turn::Config {
            history,
            agent_ends: !config.silence.is_zero(),
            aloud: config.voice.is_some(),
            ahead: config.ahead,
        };
        Conversation {
            turns: Turns::new(machine, clock::mono()),
            shared,
            config,
            hearing: None,
            thinking: None,
            voices: VecDeque::with_capacity(2),
            warming: None,
            sound: VecDeque::new(),
            speaker: None,
            announced: 0,
            events: VecDeque::new(),
            alarm: Alarm::new(),
            opened: false,
        }
    }

    /// Takes in sound of the microphone: mono, 16 kHz, of any length. Does not block.
    pub fn push(&mut self, pcm: &[i16]) {
        let excess = (self.sound.len() + pcm.len()).saturating_sub(MAX_KEPT_SOUND);
        self.sound.drain(..excess.min(self.sound.len()));
        self.sound.extend(pcm);
        if let Some((_, hearing)) = &mut self.hearing {
            hearing.push(pcm);
        }
        self.input(Input::Pushed(pcm.len()));
    }

    /// The user has finished speaking: the answer need not wait for silence. Does not block.
    pub fn end_utterance(&mut self) {
        self.input(Input::EndUtterance);
    }

    /// The user typed this: a turn without speech. An answer that runs is broken off.
    pub fn text(&mut self, typed: &str) {
        self.input(Input::Typed(typed.to_owned()));
    }

    /// Breaks the answer off: no sound of it is given out after this call.
    pub fn barge_in(&mut self) {
        self.input(Input::BargeIn);
    }

    /// What was said so far, the system's message first: what a new conversation goes on with.
    pub fn history(&self) -> &[Message] {
        self.turns.history()
    }

    /// The conversation's number; see [`ConverseConfig::session`].
    pub fn session(&self) -> u64 {
        self.config.session
    }

    fn input(&mut self, input: Input<ClientError>) {
        self.turns.handle(input, clock::mono());
        while let Some(effect) = self.turns.poll() {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect<ClientError>) {
        match effect {
            Effect::StartHearing { hearing, samples } => {
                let mut stream = Hearing::new(self.shared.clone(), self.hear());
                let skip = self.sound.len().saturating_sub(samples as usize);
                stream.push(&self.sound.make_contiguous()[skip..]);
                self.hearing = Some((hearing, stream));
            }
            Effect::EndHearing(_) => {
                if let Some((_, hearing)) = &mut self.hearing {
                    hearing.end();
                }
            }
            Effect::StopHearing(_) => self.hearing = None,
            Effect::StartThinking {
                generation,
                messages,
            } => {
                if self.warming.take().is_some() {
                    self.events.push_back(TurnEvent::Ready);
                }
                let request = self.request(&messages);
                let stream = Generation::new(self.shared.clone(), request);
                self.thinking = Some((generation, stream));
            }
            Effect::StopThinking(_) => self.thinking = None,
            Effect::Say {
                generation,
                piece,
                text,
            } => {
                if let Some(mut say) = self.say(text) {
                    // A voice that nobody asked for may change between two answers.
                    let any = self
                        .config
                        .voice
                        .as_ref()
                        .is_some_and(|v| v.voice.is_empty());
                    say.other_voice |= any && piece == 0;
                    let speech = Speech::new(self.shared.clone(), say);
                    self.voices.push_back(Voice {
                        generation,
                        piece,
                        speech,
                    });
                }
            }
            Effect::StopSpeaking(_) => {
                self.voices.clear();
                self.events.retain(|e| !matches!(e, TurnEvent::Pcm(_)));
            }
            Effect::Emit(output) => self.emit(output),
        }
    }

    // ----- events -----------------------------------------------------------------------

    fn open(&mut self) {
        if std::mem::replace(&mut self.opened, true) {
            return;
        }
        self.warm();
        if self.config.warm_up {
            let mut messages = self.turns.history().to_vec();
            messages.push(Message::new(Role::User, "…"));
            let mut request = self.request(&messages);
            request.sampling.max_tokens = Some(1);
            self.warming = Some(Generation::new(self.shared.clone(), request));
        } else {
            self.events.push_back(TurnEvent::Ready);
        }
    }

    fn emit(&mut self, output: Output<ClientError>) {
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

    fn heard(&mut self, number: u32, event: HearEvent) {
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

    fn thought(&mut self, generation: u32, event: Event) {
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
    fn said(&mut self, at: usize, event: SayEvent) {
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

    // ----- polls: true if something moved -----------------------------------------------

    fn poll_hearing(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((number, hearing)) = &mut self.hearing else {
            return false;
        };
        let number = *number;
        match hearing.poll_next_unpin(cx) {
            Poll::Ready(Some(event)) => self.heard(number, event),
            Poll::Ready(None) => self.hearing = None,
            Poll::Pending => return false,
        }
        true
    }

    /// Sound is taken of the piece that may be heard now; the others are looked after.
    fn poll_voices(&mut self, cx: &mut Context<'_>) -> bool {
        let next = self.turns.next_sound(clock::mono());
        for at in 0..self.voices.len() {
            let Some(voice) = self.voices.get_mut(at) else {
                break;
            };
            let polled = match next == Some((voice.generation, voice.piece)) {
                true => voice.speech.poll_next_unpin(cx),
                false => voice.speech.poll_event(cx).map(Some),
            };
            match polled {
                Poll::Ready(Some(event)) => {
                    self.said(at, event);
                    return true;
                }
                Poll::Ready(None) => {
                    self.voices.remove(at);
                    return true;
                }
                Poll::Pending => {}
            }
        }
        false
    }

    fn poll_thinking(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((generation, thinking)) = &mut self.thinking else {
            return false;
        };
        let generation = *generation;
        if !self.turns.wants_tokens() {
            return false;
        }
        match thinking.poll_next_unpin(cx) {
            Poll::Ready(Some(event)) => self.thought(generation, event),
            Poll::Ready(None) => self.thinking = None,
            Poll::Pending => return false,
        }
        true
    }

    fn poll_warming(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(warming) = &mut self.warming else {
            return false;
        };
        match warming.poll_next_unpin(cx) {
            Poll::Ready(Some(Event::Done { .. } | Event::Failed(_)) | None) => {
                self.warming = None;
                self.events.push_back(TurnEvent::Ready);
            }
            Poll::Ready(Some(_)) => {}
            Poll::Pending => return false,
        }
        true
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.turns.next_wake();
        let rings = due.is_some_and(|due| self.alarm.poll(due, cx));
        if rings {
            self.input(Input::Wake);
        }
        rings
    }
}

impl Stream for Conversation {
    type Item = TurnEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TurnEvent>> {
        self.open();
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(event));
            }
            let moved = self.poll_hearing(cx)
                || self.poll_voices(cx)
                || self.poll_thinking(cx)
                || self.poll_alarm(cx)
                || self.poll_warming(cx);
            if !moved {
                return Poll::Pending;
            }
        }
    }
}
