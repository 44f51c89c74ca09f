//! Performs what `unamesh_proto::speech::turn` decides, in the caller's own task. What the stages
//! are asked is `requests`; what they and the machine tell, `events`.

mod events;
mod requests;

use super::warm::Leases;
use super::{ConverseConfig, Message, Role, TurnEvent};
use crate::client::{ClientError, Event, PeerRef};
use crate::clock;
use crate::driver::Generation;
use crate::memory::Shared;
use crate::outside::Alarm;
use crate::speech::{Hearing, Speech};
use futures_util::{Stream, StreamExt};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use unamesh_proto::Mono;
use unamesh_proto::limits::MAX_KEPT_SOUND;
use unamesh_proto::speech::turn::{self, Effect, Input, Turns};

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
    leases: Leases,
    /// [`TurnEvent::Ready`] was given out.
    ready: bool,
    /// The newest sound, for a hearing that opens later than it came.
    sound: VecDeque<i16>,
    /// Who spoke last, in which voice.
    speaker: Option<(PeerRef, String)>,
    /// The generation whose [`TurnEvent::Speaking`] was given out.
    announced: u32,
    events: VecDeque<TurnEvent>,
    alarm: Alarm,
    /// When the caller took the last event and did not look since.
    left: Option<Mono>,
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
            leases: Leases::default(),
            ready: false,
            sound: VecDeque::new(),
            speaker: None,
            announced: 0,
            events: VecDeque::new(),
            alarm: Alarm::new(),
            left: None,
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
                self.warming = None;
                self.is_ready();
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

    // ----- warm-up ----------------------------------------------------------------------

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
            self.is_ready();
        }
    }

    /// The warm-up is over, or of no use any more.
    fn is_ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.events.push_back(TurnEvent::Ready);
        }
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
        let mut moved = self.leases.poll(cx);
        if let Some(warming) = &mut self.warming
            && let Poll::Ready(event) = warming.poll_next_unpin(cx)
        {
            moved = true;
            if matches!(event, Some(Event::Done { .. } | Event::Failed(_)) | None) {
                self.warming = None;
            }
        }
        if !self.ready && self.warming.is_none() && self.leases.are_warm() {
            self.is_ready();
            moved = true;
        }
        moved
    }

    /// The stages are told of the caller's pauses: they may have been polled to their end before.
    fn looks_again(&mut self) {
        let Some(left) = self.left.take() else { return };
        if let Some((_, hearing)) = &mut self.hearing {
            hearing.left(left);
        }
        if let Some((_, thinking)) = &mut self.thinking {
            thinking.left(left);
        }
        self.voices.iter_mut().for_each(|v| v.speech.left(left));
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
        self.looks_again();
        loop {
            if let Some(event) = self.events.pop_front() {
                self.left = Some(clock::mono());
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
