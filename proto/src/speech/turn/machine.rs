//! The machine: one `match` on the input; what it calls stands below it.

use super::answer::{Answer, Thinking};
use super::ear::Ear;
use super::history::History;
use super::timeline::Clock;
use super::{Config, Effect, Generation, Heard, Input, Message, Output, Spoken, Stage, Thought};
use crate::ids::NodeId;
use crate::limits::MAX_WAITING_PIECES;
use crate::time::Mono;
use crate::timeouts::BARGE_IN;
use std::collections::VecDeque;

/// A conversation; see the module's documentation.
#[derive(Debug)]
pub struct Turns<E> {
    config: Config,
    now: Mono,
    history: History,
    ear: Ear,
    /// What a recognizer that works while it listens understood so far.
    partial: String,
    generation: Generation,
    answer: Option<Answer>,
    /// What a guess would tell the caller if it were confirmed.
    held: Vec<Output<E>>,
    effects: VecDeque<Effect<E>>,
}

impl<E> Turns<E> {
    /// A conversation in which nobody speaks yet.
    pub fn new(config: Config, now: Mono) -> Self {
        Turns {
            now,
            history: History::new(config.history.clone()),
            ear: Ear::new(now),
            partial: String::new(),
            generation: 0,
            answer: None,
            held: Vec::new(),
            effects: VecDeque::new(),
            config,
        }
    }

    /// Takes in what happened. What belongs to an older hearing or generation is ignored.
    pub fn handle(&mut self, input: Input<E>, now: Mono) {
        self.now = now;
        match input {
            Input::Pushed(samples) => self.pushed(samples),
            Input::EndUtterance => self.end_utterance(),
            Input::Typed(text) => self.typed(&text),
            Input::BargeIn => self.barge_in(),
            Input::Hear(number, heard) if self.ear.open && number == self.ear.number => {
                self.hear(heard);
            }
            Input::Think(generation, thought) if self.is_current(generation) => {
                self.think(thought);
            }
            Input::Speak(generation, piece, spoken) if self.is_current(generation) => {
                self.speak(piece, spoken);
            }
            Input::Hear(..) | Input::Think(..) | Input::Speak(..) | Input::Wake => {}
        }
        self.settle();
    }

    /// The next effect; to be drained after every input.
    pub fn poll(&mut self) -> Option<Effect<E>> {
        self.effects.pop_front()
    }

    /// When [`Input::Wake`] is due: later than the last input.
    pub fn next_wake(&self) -> Option<Mono> {
        let answer = self.answer.as_ref();
        let barges = self
            .ear
            .barges()
            .filter(|_| answer.is_some_and(|a| a.confirmed));
        let sound = answer.and_then(Answer::next_sound).map(|(_, from)| from);
        let over = answer.and_then(Answer::over);
        let stale = self.ear.stale().filter(|_| self.config.agent_ends);
        let wakes = [barges, sound, over, stale].into_iter().flatten();
        wakes.filter(|at| *at > self.now).min()
    }

    /// Whose next sound may be handed out now: of this generation's piece.
    pub fn next_sound(&self, now: Mono) -> Option<(Generation, usize)> {
        let answer = self.answer.as_ref()?;
        // Nobody begins to speak while somebody else perhaps does.
        let interrupts = answer.is_unheard() && self.ear.is_voiced();
        let (piece, from) = answer.next_sound().filter(|_| !interrupts)?;
        (now >= from).then_some((answer.generation, piece))
    }

    /// Whether tokens are welcome: not while very much waits to be spoken.
    pub fn wants_tokens(&self) -> bool {
        self.answer
            .as_ref()
            .is_none_or(|a| a.waiting() < MAX_WAITING_PIECES)
    }

    /// What was said so far; a conversation that begins with this goes on with this one.
    pub fn history(&self) -> &[Message] {
        &self.history.messages
    }

    // ----- the user ---------------------------------------------------------------------

    fn pushed(&mut self, samples: usize) {
        self.ear.pushed(samples);
        if let Some((hearing, samples)) = self.ear.open(self.now) {
            self.effects
                .push_back(Effect::StartHearing { hearing, samples });
        }
    }

    fn end_utterance(&mut self) {
        if !self.ear.open {
            // Whoever waits for what was said learns that it was nothing.
            return self.emit(Output::NothingHeard);
        }
        if !self.ear.ended {
            self.ear.end(self.now);
            self.effects.push_back(Effect::EndHearing(self.ear.number));
        }
    }

    fn typed(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.ear.ignore_voice();
            self.barge_in();
            self.think_of(text, self.now);
            self.confirm(None);
        }
    }

    fn hear(&mut self, heard: Heard<E>) {
        match heard {
            Heard::Began { at_ms } => {
                if self.ear.began(at_ms, self.now) {
                    self.emit(Output::SpeechBegan);
                }
                self.partial.clear();
                self.drop_guess();
            }
            Heard::Silence(silence) => {
                if self.ear.silent(silence, self.now) >= BARGE_IN {
                    self.barge_in();
                }
                self.guess();
            }
            Heard::Partial(text) => {
                text.trim().clone_into(&mut self.partial);
                self.guess();
                self.emit(Output::Partial(text));
            }
            Heard::Final {
                node,
                text,
                samples,
            } => self.transcribed(node, text.trim(), samples),
            Heard::Failed { error, partial } => {
                self.ear.failed(self.now);
                self.drop_guess();
                let stage = Stage::Hear;
                self.emit(Output::Failed {
                    stage,
                    error,
                    partial,
                });
            }
        }
    }

    /// In a pause: perhaps that was all.
    fn guess(&mut self) {
        if self.ear.is_paused() && !self.is_answering() {
            let text = std::mem::take(&mut self.partial);
            self.think_of(&text, self.ear.last(self.now));
        }
    }

    fn transcribed(&mut self, node: NodeId, text: &str, samples: u64) {
        // What the caller ended was meant; a murmur into an answer was not.
        let meant = self.ear.ended || !self.is_answering();
        let spoken = self.ear.last(self.now);
        self.ear.finished(samples);
        self.partial.clear();
        if text.is_empty() || !meant {
            self.drop_guess();
            return self.emit(Output::NothingHeard);
        }
        if self.is_answering() {
            self.barge_in();
        }
        self.think_of(text, spoken);
        self.confirm(Some(node));
    }

    // ----- the answer -------------------------------------------------------------------

    /// Thinks of what was said, unless it does so already. `spoken`: when that was.
    fn think_of(&mut self, text: &str, spoken: Mono) {
        let guessed = self.answer.as_ref().map(|a| a.heard.as_str());
        if text.is_empty() || guessed == Some(text) {
            return;
        }
        self.drop_guess();
        let mut clock = Clock::new(spoken);
        clock.first(|line| &mut line.transcript, self.now);
        self.start(text, clock);
    }

    fn start(&mut self, text: &str, mut clock: Clock) {
        let messages = self.history.shown(Some(text));
        self.generation += 1;
        let generation = self.generation;
        clock.first(|line| &mut line.thinking, self.now);
        let shown = messages.len();
        self.answer = Some(Answer::new(generation, text, shown, clock, &self.config));
        self.effects.push_back(Effect::StartThinking {
            generation,
            messages,
        });
    }

    /// The guess was right, or it was none: the user has finished.
    fn confirm(&mut self, heard_by: Option<NodeId>) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        answer.confirmed = true;
        answer.clock.first(|line| &mut line.confirmed, self.now);
        let text = answer.heard.clone();
        self.history.user(&text);
        if let Some(node) = heard_by {
            self.emit(Output::Heard { text, node });
        }
        let held = std::mem::take(&mut self.held);
        self.effects.extend(held.into_iter().map(Effect::Emit));
    }

    fn think(&mut self, thought: Thought<E>) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        match thought {
            Thought::Started(node) => self.tell(Output::Thinking(node)),
            Thought::Token(text) => {
                answer.token(&text, self.now);
                if !text.is_empty() {
                    self.tell(Output::Text(text));
                }
            }
            Thought::Done => answer.thought(Thinking::Done, self.now),
            Thought::Failed { too_long, .. }
                if too_long && answer.text.is_empty() && self.history.forget_half(answer.shown) =>
            {
                self.think_again();
            }
            Thought::Failed { error, .. } => {
                answer.thought(Thinking::Failed, self.now);
                let (stage, partial) = (Stage::Think, String::new());
                self.tell(Output::Failed {
                    stage,
                    error,
                    partial,
                });
            }
        }
    }

    /// The same with less history.
    fn think_again(&mut self) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        self.generation += 1;
        answer.generation = self.generation;
        let said = (!answer.confirmed).then_some(answer.heard.as_str());
        let messages = self.history.shown(said);
        answer.shown = messages.len();
        let generation = self.generation;
        self.effects.push_back(Effect::StartThinking {
            generation,
            messages,
        });
    }

    fn speak(&mut self, piece: usize, spoken: Spoken<E>) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        match spoken {
            Spoken::Started => answer.started(piece),
            Spoken::Taken { samples, said } => answer.taken(piece, samples, said, self.now),
            Spoken::Done => answer.spoken(piece),
            Spoken::Failed(error) => {
                answer.mute();
                let generation = answer.generation;
                self.effects.push_back(Effect::StopSpeaking(generation));
                let (stage, partial) = (Stage::Speak, String::new());
                self.tell(Output::Failed {
                    stage,
                    error,
                    partial,
                });
            }
        }
    }

    /// An answer that the user is to hear ends here; a guess goes with it.
    fn barge_in(&mut self) {
        self.stop();
        let Some(answer) = self.answer.take() else {
            return;
        };
        if answer.confirmed {
            let played = answer.played().to_owned();
            self.history.assistant(&played, true);
            let timeline = answer.line(self.now);
            self.emit(Output::BargedIn { played, timeline });
        }
        self.held.clear();
    }

    fn drop_guess(&mut self) {
        if !self.is_answering() {
            self.stop();
            self.answer = None;
            self.held.clear();
        }
    }

    /// Stops what runs for the answer.
    fn stop(&mut self) {
        let Some(answer) = &self.answer else { return };
        let generation = answer.generation;
        if answer.is_spoken() {
            self.effects.push_back(Effect::StopSpeaking(generation));
        }
        if answer.thinking == Thinking::Running {
            self.effects.push_back(Effect::StopThinking(generation));
        }
    }

    // ----- after every input ------------------------------------------------------------

    fn settle(&mut self) {
        let now = self.now;
        if self.is_answering() && self.ear.barges().is_some_and(|at| now >= at) {
            self.barge_in();
        }
        if self.config.agent_ends && self.ear.stale().is_some_and(|at| now >= at) {
            self.effects.push_back(Effect::StopHearing(self.ear.number));
            self.ear.renew();
        }
        if let Some(answer) = &mut self.answer {
            let generation = answer.generation;
            while let Some((piece, text)) = answer.open(now) {
                self.effects.push_back(Effect::Say {
                    generation,
                    piece,
                    text,
                });
            }
        }
        self.finish();
    }

    /// The turn ends once all was played.
    fn finish(&mut self) {
        let now = self.now;
        let over = |a: &mut Answer| a.over().is_some_and(|at| now >= at);
        let Some(answer) = self.answer.take_if(over) else {
            return;
        };
        let played = answer.played().to_owned();
        let broken = answer.thinking == Thinking::Failed;
        self.history.assistant(&played, broken);
        let (heard, text) = (answer.heard.clone(), answer.text.clone());
        let timeline = answer.line(now);
        self.emit(Output::TurnDone {
            heard,
            answer: text,
            played,
            timeline,
        });
    }

    /// The user has finished, and is answered.
    fn is_answering(&self) -> bool {
        self.answer.as_ref().is_some_and(|a| a.confirmed)
    }

    fn is_current(&self, generation: Generation) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|a| a.generation == generation)
    }

    /// The caller hears it of an answer, not of a guess.
    fn tell(&mut self, output: Output<E>) {
        match self.is_answering() {
            true => self.emit(output),
            false => self.held.push(output),
        }
    }

    fn emit(&mut self, output: Output<E>) {
        self.effects.push_back(Effect::Emit(output));
    }
}
