//! A conversation whose user, engines and caller are drawn from a seed.
//!
//! The machine is the real one. The user speaks, pauses, murmurs and types; a recognizer with a
//! voice detector hears it, a language model makes tokens and a voice makes sound, each with its
//! own delays and faults; what was stopped goes on talking for a while. The run checks what must
//! always hold, against its own record of what the ear got.

use super::Queue;
use crate::ids::NodeId;
use crate::speech::turn::{Config, Effect, Heard, Input, Output, Role, Spoken, Thought, Turns};
use crate::time::Mono;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// One frame of the microphone.
const FRAME: Duration = Duration::from_millis(20);
/// Samples (24 kHz) that are handed out at once.
const SOUND: u64 = 480;
/// Samples of a spoken character.
const PER_CHARACTER: u64 = 1500;
/// The user and the caller act this long, and all must be over a good while later.
const ACTIVE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);
/// The recognizer's guess, and its end.
const GUESS: u64 = 8;
const END: u64 = 15;
/// What a driver keeps of the sound.
const KEPT: usize = 3000;

type Error = &'static str;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Turns that were completed.
    pub done: u32,
    /// Turns that were broken off.
    pub barged: u32,
    /// Guesses that were right, and those that were dropped.
    pub guesses: (u32, u32),
    /// Stages that failed.
    pub failed: u32,
    /// Samples that the ear got.
    pub samples: u64,
    /// A rule that the run broke, if any.
    pub violation: Option<String>,
}

enum Event {
    /// The next frame of the microphone.
    Mic,
    Typed(String),
    BargeIn,
    EndUtterance,
    Hear(u32, Heard<Error>),
    Think(u32, Thought<Error>),
    Started(u32, usize),
    /// Look after the sound.
    Look,
}

/// The recognizer and its voice detector.
#[derive(Default)]
struct Listener {
    number: u32,
    delay: Duration,
    residue: Duration,
    fails_at: Option<usize>,
    /// Which frames of the microphone it got.
    frames: Vec<usize>,
    voiced: u64,
    run: u64,
    silent: u64,
    speaks: bool,
    began: bool,
    /// Its guess is ready then.
    ready: Mono,
    over: bool,
}

impl Listener {
    fn transcript(&self) -> Heard<Error> {
        Heard::Final {
            node: NodeId([1; 32]),
            text: words(self.voiced),
            samples: self.frames.len() as u64 * 320,
        }
    }
}

/// A piece at its voice.
struct Voice {
    text: String,
    length: u64,
    taken: u64,
    first: Mono,
    /// Samples a millisecond.
    speed: u64,
    fails_at: Option<u64>,
}

impl Voice {
    fn made(&self, now: Mono) -> u64 {
        match now >= self.first {
            true => {
                (SOUND + now.since(self.first).as_millis() as u64 * self.speed).min(self.length)
            }
            false => 0,
        }
    }

    fn said(&self) -> usize {
        self.text.chars().count() * self.taken as usize / self.length.max(1) as usize
    }
}

/// The turn that is open.
#[derive(Default)]
struct Open {
    text: String,
    /// What the ear got of each piece.
    pieces: Vec<Voice>,
    muted: bool,
}

struct World {
    rng: ChaCha8Rng,
    now: Mono,
    queue: Queue<Event>,
    turns: Turns<Error>,
    config: Config,
    /// When the user speaks.
    script: Vec<(Mono, Mono)>,
    mic: usize,
    kept: VecDeque<usize>,
    heard: BTreeSet<usize>,
    listener: Option<Listener>,
    thinking: Option<u32>,
    generation: u32,
    open: Option<Open>,
    voices: BTreeMap<(u32, usize), Voice>,
    /// What the ear got is played by then.
    dry: Mono,
    deaf: bool,
    faulty: bool,
    look: Option<Mono>,
    report: Report,
}

/// Runs the schedule of this seed.
pub fn run(seed: u64) -> Report {
    let mut world = World::new(seed);
    let end = Mono::ZERO + LONG;
    while world.now < end && world.report.violation.is_none() {
        let Some((at, event)) = world.queue.pop() else {
            break;
        };
        world.now = at;
        world.event(event);
        world.drive();
    }
    world.check_end();
    world.report
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let config = Config {
            agent_ends: rng.random_bool(0.8),
            aloud: rng.random_bool(0.9),
            ..Config::default()
        };
        let mut queue = Queue::new();
        queue.at(Mono::ZERO, Event::Mic);
        let mut script = Vec::new();
        let mut at = Mono::ZERO;
        loop {
            // Pauses within a sentence, between two, and of somebody who listens.
            at = at
                + ms(
                    &mut rng,
                    40,
                    *[300, 700, 8000].get(seed as usize % 3).unwrap_or(&0),
                );
            let until = at
                + match rng.random_bool(0.2) {
                    true => ms(&mut rng, 20, 140),
                    false => ms(&mut rng, 150, 2500),
                };
            if until.since(Mono::ZERO) > ACTIVE {
                break;
            }
            script.push((at, until));
            if !config.agent_ends && rng.random_bool(0.5) {
                queue.at(until + ms(&mut rng, 0, 100), Event::EndUtterance);
            }
            at = until
                + match rng.random_bool(0.4) {
                    true => ms(&mut rng, 500, 12_000),
                    false => Duration::ZERO,
                };
        }
        if !config.agent_ends {
            queue.at(Mono::ZERO + ACTIVE + FRAME, Event::EndUtterance);
        }
        for n in 0..rng.random_range(0..8) {
            let event = match rng.random_range(0..3) {
                0 => Event::Typed(format!("typed {n}")),
                1 => Event::EndUtterance,
                _ => Event::BargeIn,
            };
            queue.at(Mono::ZERO + ms(&mut rng, 0, 60_000), event);
        }
        World {
            faulty: rng.random_bool(0.4),
            rng,
            now: Mono::ZERO,
            queue,
            turns: Turns::new(config.clone(), Mono::ZERO),
            config,
            script,
            mic: 0,
            kept: VecDeque::new(),
            heard: BTreeSet::new(),
            listener: None,
            thinking: None,
            generation: 0,
            open: None,
            voices: BTreeMap::new(),
            dry: Mono::ZERO,
            deaf: false,
            look: None,
            report: Report::default(),
        }
    }

    fn violate(&mut self, rule: &str) {
        let at = self.now.since(Mono::ZERO);
        self.report
            .violation
            .get_or_insert(format!("{at:?}: {rule}"));
    }

    fn fails(&mut self, chance: f64) -> bool {
        self.faulty && self.rng.random_bool(chance)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Mic => self.microphone(),
            Event::Typed(text) => {
                self.handle(Input::Typed(text));
                if self.open.is_some() {
                    self.violate("a typed turn began in another");
                }
                self.open = Some(Open::default());
            }
            Event::BargeIn => {
                let answered = self.open.is_some();
                self.handle(Input::BargeIn);
                if answered && (self.open.is_some() || !self.voices.is_empty()) {
                    self.violate("a barge-in left something");
                }
            }
            Event::EndUtterance => self.handle(Input::EndUtterance),
            Event::Hear(number, heard) => {
                let last = matches!(heard, Heard::Final { .. } | Heard::Failed { .. });
                if last && self.listener.as_ref().is_some_and(|l| l.number == number) {
                    self.listener = None;
                }
                self.handle(Input::Hear(number, heard));
            }
            Event::Think(generation, Thought::Token(_)) if !self.turns.wants_tokens() => {
                // Tokens are text here, which a later event may bring as well.
                let again = self.now + FRAME;
                self.queue.at(
                    again,
                    Event::Think(generation, Thought::Token(" later".into())),
                );
            }
            Event::Think(generation, thought) => {
                let last = matches!(thought, Thought::Done | Thought::Failed { .. });
                if last && self.thinking == Some(generation) {
                    self.thinking = None;
                }
                self.handle(Input::Think(generation, thought));
            }
            Event::Started(generation, piece) => {
                self.handle(Input::Speak(generation, piece, Spoken::Started));
            }
            Event::Look => {
                self.look = None;
                self.handle(Input::Wake);
            }
        }
    }

    fn handle(&mut self, input: Input<Error>) {
        self.turns.handle(input, self.now);
        while let Some(effect) = self.turns.poll() {
            self.perform(effect);
        }
        if self.turns.next_wake().is_some_and(|at| at <= self.now) {
            self.violate("a wake that is not in the future");
        }
    }

    // ----- the user ---------------------------------------------------------------------

    fn microphone(&mut self) {
        let (frame, next) = (self.mic, self.now + FRAME);
        self.mic += 1;
        if next.since(Mono::ZERO) < 2 * ACTIVE {
            self.queue.at(next, Event::Mic);
        }
        self.kept.push_back(frame);
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        if let Some(mut listener) = self.listener.take() {
            self.listen(&mut listener, frame);
            self.listener = Some(listener);
        }
        self.handle(Input::Pushed(320));
    }

    fn voiced(&self, frame: usize) -> bool {
        let at = Mono::ZERO + FRAME * frame as u32;
        let next = self.script.partition_point(|(_, to)| *to <= at);
        self.script.get(next).is_some_and(|(from, _)| at >= *from)
    }

    fn listen(&mut self, l: &mut Listener, frame: usize) {
        if l.over {
            return;
        }
        l.frames.push(frame);
        let voiced = self.voiced(frame);
        if voiced {
            self.heard.insert(frame);
        }
        let say =
            |queue: &mut Queue<Event>, at: Mono, heard| queue.at(at, Event::Hear(l.number, heard));
        let soon = self.now + l.delay;
        if l.fails_at == Some(l.frames.len()) {
            (l.over, self.deaf) = (true, true);
            let (error, partial) = ("deaf", String::new());
            return say(&mut self.queue, soon, Heard::Failed { error, partial });
        }
        if !self.config.agent_ends {
            l.voiced += u64::from(voiced);
            return;
        }
        if voiced {
            (l.voiced, l.run, l.silent) = (l.voiced + 1, l.run + 1, 0);
            if l.run == 2 && !l.speaks {
                (l.speaks, l.began) = (true, true);
                let at_ms = (l.frames.len() - 2) as u32 * 20;
                say(&mut self.queue, soon, Heard::Began { at_ms });
            }
            return;
        }
        (l.run, l.silent) = (0, l.silent + 1);
        if l.began && l.silent == GUESS {
            l.speaks = false;
            let silence = FRAME * GUESS as u32;
            say(&mut self.queue, soon, Heard::Silence(silence));
            l.ready = self.now + l.residue;
            say(
                &mut self.queue,
                l.ready + l.delay,
                Heard::Partial(words(l.voiced)),
            );
        }
        if l.began && l.silent == END {
            l.over = true;
            let at = self.now.max(l.ready) + l.delay;
            say(&mut self.queue, at, l.transcript());
        }
    }

    // ----- the driver -------------------------------------------------------------------

    fn perform(&mut self, effect: Effect<Error>) {
        match effect {
            Effect::StartHearing { hearing, samples } => self.start_hearing(hearing, samples),
            Effect::EndHearing(number) => {
                let Some(mut l) = self.listener.take() else {
                    return self.violate("no hearing to end");
                };
                if l.number != number {
                    self.violate("the wrong hearing ended");
                }
                if !std::mem::replace(&mut l.over, true) {
                    let at = self.now + l.residue + l.delay;
                    self.queue.at(at, Event::Hear(number, l.transcript()));
                }
            }
            Effect::StopHearing(_) => self.listener = None,
            Effect::StartThinking {
                generation,
                messages,
            } => {
                if self.thinking.is_some() || !self.voices.is_empty() {
                    self.violate("two answers at once");
                }
                let last = messages.last().map(|m| m.role);
                let twice = messages.windows(2).any(|w| w[0].role == w[1].role);
                if last != Some(Role::User) || twice {
                    self.violate("roles do not alternate");
                }
                self.start_thinking(generation);
            }
            Effect::StopThinking(generation) => {
                if self.thinking.take() != Some(generation) {
                    self.violate("stopped what did not think");
                }
                self.report.guesses.1 += u32::from(self.open.is_none());
            }
            Effect::Say {
                generation,
                piece,
                text,
            } => self.say(generation, piece, text),
            Effect::StopSpeaking(generation) => {
                if self.voices.keys().any(|(g, _)| *g != generation) {
                    self.violate("stopped another's voice");
                }
                let voices = std::mem::take(&mut self.voices);
                if let Some(open) = &mut self.open {
                    open.pieces.extend(voices.into_values());
                }
            }
            Effect::Emit(output) => self.output(output),
        }
    }

    fn start_hearing(&mut self, number: u32, samples: u64) {
        if self.listener.is_some() {
            self.violate("two hearings at once");
        }
        let frames = self.rng.random_range(5..400);
        let mut listener = Listener {
            number,
            delay: ms(&mut self.rng, 1, 30),
            residue: ms(&mut self.rng, 20, 900),
            fails_at: self.fails(0.1).then_some(frames),
            ..Listener::default()
        };
        let skip = self.kept.len().saturating_sub(samples as usize / 320);
        for frame in self.kept.iter().copied().skip(skip).collect::<Vec<_>>() {
            self.listen(&mut listener, frame);
        }
        self.listener = Some(listener);
    }

    fn start_thinking(&mut self, generation: u32) {
        (self.thinking, self.generation) = (Some(generation), generation);
        let mut at = self.now + ms(&mut self.rng, 10, 400);
        let think = |thought| Event::Think(generation, thought);
        self.queue.at(at, think(Thought::Started(NodeId([2; 32]))));
        let pace = ms(&mut self.rng, 1, 60);
        for n in 0..self.rng.random_range(0..60) {
            let end = ["", "", "", "", ",", "."][self.rng.random_range(0..6)];
            let word = "abcdefgh"
                .get(..self.rng.random_range(1..8))
                .unwrap_or_default();
            let space = if n == 0 { "" } else { " " };
            self.queue
                .at(at, think(Thought::Token(format!("{space}{word}{n}{end}"))));
            at = at + pace;
            if self.fails(0.01) {
                let (error, too_long) = ("mute", self.rng.random_bool(0.3));
                return self
                    .queue
                    .at(at, think(Thought::Failed { error, too_long }));
            }
        }
        self.queue.at(at, think(Thought::Done));
    }

    fn say(&mut self, generation: u32, piece: usize, text: String) {
        let expected = self
            .voices
            .keys()
            .next_back()
            .map_or(piece, |(_, last)| last + 1);
        if generation != self.generation || expected != piece || self.voices.len() > 1 {
            self.violate("a piece out of its order");
        }
        if text.trim().is_empty() {
            self.violate("nothing to say");
        }
        let length = text.chars().count() as u64 * PER_CHARACTER;
        let first = self.now + ms(&mut self.rng, 20, 600);
        let fails_at = self.rng.random_range(0..length);
        let fails_at = self.fails(0.1).then_some(fails_at);
        self.queue.at(first, Event::Started(generation, piece));
        self.voices.insert(
            (generation, piece),
            Voice {
                text,
                length,
                taken: 0,
                first,
                speed: self.rng.random_range(10..200),
                fails_at,
            },
        );
    }

    /// Hands out what may be, and sees to the next look.
    fn drive(&mut self) {
        while let Some(of) = self.turns.next_sound(self.now) {
            let Some(voice) = self.voices.get_mut(&of) else {
                return self.violate("sound of a piece that is not open");
            };
            let made = voice.made(self.now);
            let next = (voice.taken + SOUND).min(voice.length);
            let failed = voice
                .fails_at
                .is_some_and(|at| made > at && voice.taken + SOUND > at);
            let spoken = if voice.taken == voice.length {
                let voice = self.voices.remove(&of);
                if let Some(open) = &mut self.open {
                    open.pieces.extend(voice);
                }
                Spoken::Done
            } else if failed {
                let voice = self.voices.remove(&of);
                if let Some(open) = &mut self.open {
                    (open.muted, _) = (true, open.pieces.extend(voice));
                }
                Spoken::Failed("hoarse")
            } else if made >= next {
                let samples = next - voice.taken;
                voice.taken = next;
                let said = voice.said() as u32;
                self.hear_sound(samples, of.0);
                Spoken::Taken {
                    samples: samples as usize,
                    said,
                }
            } else {
                self.look_at(self.now + Duration::from_millis(5));
                break;
            };
            self.handle(Input::Speak(of.0, of.1, spoken));
        }
        if let Some(wake) = self.turns.next_wake() {
            self.look_at(wake);
        }
    }

    fn look_at(&mut self, at: Mono) {
        if self.look.is_none_or(|look| at < look) {
            self.look = Some(at);
            self.queue.at(at, Event::Look);
        }
    }

    fn hear_sound(&mut self, samples: u64, generation: u32) {
        if self.open.is_none() || generation != self.generation {
            self.violate("sound of no turn");
        }
        self.report.samples += samples;
        self.dry = self.dry.max(self.now) + Duration::from_micros(samples * 1000 / 24);
        if self.dry.since(self.now) > self.config.ahead + Duration::from_millis(1) {
            self.violate("sound too far ahead");
        }
    }

    // ----- the caller -------------------------------------------------------------------

    fn output(&mut self, output: Output<Error>) {
        match output {
            Output::Heard { .. } => {
                if self.open.replace(Open::default()).is_some() {
                    self.violate("a turn began in another");
                }
                self.report.guesses.0 += u32::from(self.thinking.is_some());
            }
            Output::Text(text) => match &mut self.open {
                Some(open) => open.text.push_str(&text),
                None => self.violate("text of a guess"),
            },
            Output::TurnDone { answer, played, .. } => {
                self.report.done += 1;
                if !self.voices.is_empty() || self.dry > self.now {
                    self.violate("a turn ended before its sound");
                }
                if self.open.as_ref().is_none_or(|open| open.text != answer) {
                    self.violate("an answer that was not told");
                }
                if played != answer.trim() {
                    self.violate("a turn that was done was not played");
                }
                self.ended(&played);
            }
            Output::BargedIn { played, .. } => {
                self.report.barged += 1;
                // The caller drops what its device holds.
                self.dry = self.now;
                self.ended(&played);
            }
            Output::Failed { .. } => self.report.failed += 1,
            Output::Thinking(_) if self.open.is_none() => self.violate("a guess was told"),
            _ => {}
        }
    }

    /// A turn ended: what stays in the history is what the ear got.
    fn ended(&mut self, played: &str) {
        let Some(open) = self.open.take() else {
            return self.violate("the end of no turn");
        };
        let mut history = self.turns.history().iter().rev();
        let last = history.find(|m| m.role == Role::Assistant);
        if !played.is_empty() && last.is_none_or(|last| last.content != played) {
            self.violate("the history is not what was played");
        }
        let mut expected = Vec::new();
        for piece in &open.pieces {
            expected.extend(whole_words(&piece.text, piece.said()));
        }
        let all = self.config.aloud && !open.muted;
        let wrong = match all {
            true => played.split_whitespace().ne(expected),
            false => played != open.text.trim(),
        };
        if wrong {
            self.violate("something else was played");
        }
    }

    fn check_end(&mut self) {
        if self.report.violation.is_some() {
            return;
        }
        if self.open.is_some() || self.thinking.is_some() || !self.voices.is_empty() {
            self.violate("a turn without an end");
        }
        let lost = (0..self.mic).find(|f| self.voiced(*f) && !self.heard.contains(f));
        if let Some(frame) = lost.filter(|_| !self.deaf) {
            let at = FRAME * frame as u32;
            self.violate(&format!("what the user said at {at:?} was lost"));
        }
    }
}

/// What a recognizer makes of so many frames of voice.
fn words(frames: u64) -> String {
    let words = (0..frames / 10).map(|n| format!("w{n}"));
    words.collect::<Vec<_>>().join(" ")
}

/// The words that end by this character.
fn whole_words(text: &str, said: usize) -> Vec<&str> {
    let end = text
        .char_indices()
        .nth(said)
        .map_or(text.len(), |(at, _)| at);
    let (head, tail) = text.split_at(end);
    let whole = match tail.chars().next().is_none_or(char::is_whitespace) {
        true => head.len(),
        false => head.rfind(char::is_whitespace).unwrap_or(0),
    };
    head[..whole].split_whitespace().collect()
}

fn ms(rng: &mut ChaCha8Rng, lo: u64, hi: u64) -> Duration {
    Duration::from_millis(rng.random_range(lo..=hi.max(lo)))
}
