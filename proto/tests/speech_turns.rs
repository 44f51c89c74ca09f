//! What a conversation does, rule by rule, and hundreds of them drawn from seeds.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;
use unamesh_proto::ids::NodeId;
use unamesh_proto::sim::speech::turn;
use unamesh_proto::speech::turn::{
    Config, Effect, Engines, Heard, Input, Message, Output, Overlap, Role, Spoken, Stage, Thought,
    Timeline, Turns,
};
use unamesh_proto::time::Mono;

const SEEDS: u64 = 300;

#[test]
fn every_turn_ends_once_and_the_history_is_what_was_played() {
    let reports: Vec<_> = (0..SEEDS).map(|seed| (seed, turn::run(seed))).collect();
    let broken: Vec<_> = reports
        .iter()
        .filter_map(|(seed, r)| Some((seed, r.violation.as_ref()?)))
        .collect();
    let first = &broken[..broken.len().min(8)];
    assert!(broken.is_empty(), "{} runs: {first:#?}", broken.len());
    let sum = |of: fn(&turn::Report) -> u64| reports.iter().map(|(_, r)| of(r)).sum::<u64>();
    let (done, barged) = (sum(|r| r.done.into()), sum(|r| r.barged.into()));
    let (right, wrong) = (sum(|r| r.guesses.0.into()), sum(|r| r.guesses.1.into()));
    let (failed, samples) = (sum(|r| r.failed.into()), sum(|r| r.samples));
    println!(
        "{done} turns done, {barged} broken off; {right} guesses right, {wrong} dropped; \
         {failed} failures; {} s heard",
        samples / 24_000
    );
    assert!(done > SEEDS && barged > SEEDS && right > SEEDS && wrong > SEEDS / 4 && failed > SEEDS);
}

const EAR: NodeId = NodeId([1; 32]);
const MIND: NodeId = NodeId([2; 32]);

/// A conversation and its clock.
struct Talk {
    turns: Turns<&'static str>,
    now: Mono,
}

type Effects = Vec<Effect<&'static str>>;

impl Talk {
    fn new(config: Config) -> Talk {
        Talk {
            turns: Turns::new(config, Mono::ZERO),
            now: Mono::ZERO,
        }
    }

    fn wait(&mut self, ms: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(ms);
        self
    }

    fn input(&mut self, input: Input<&'static str>) -> Effects {
        self.turns.handle(input, self.now);
        std::iter::from_fn(|| self.turns.poll()).collect()
    }

    fn mic(&mut self, ms: usize) -> Effects {
        self.wait(ms as u64).input(Input::Pushed(ms * 16))
    }

    /// A second of speech in hearing `n`, and 160 ms of silence.
    fn spoken(&mut self, n: u32) {
        assert_eq!(self.mic(20).len(), 1);
        let effects = self.input(Input::Hear(n, Heard::Began { at_ms: 0 }));
        assert_eq!(effects[0], Effect::Emit(Output::SpeechBegan));
        self.mic(1160);
        let silence = Duration::from_millis(160);
        assert_eq!(self.input(Input::Hear(n, Heard::Silence(silence))), []);
    }

    fn partial(&mut self, n: u32, text: &str) -> Effects {
        self.input(Input::Hear(n, Heard::Partial(text.into())))
    }

    fn end(&mut self, n: u32, text: &str) -> Effects {
        let (text, samples) = (text.into(), 20_000);
        let node = EAR;
        self.input(Input::Hear(
            n,
            Heard::Final {
                node,
                text,
                samples,
            },
        ))
    }

    fn token(&mut self, generation: u32, text: &str) -> Effects {
        self.input(Input::Think(generation, Thought::Token(text.into())))
    }

    fn taken(&mut self, generation: u32, piece: usize, said: u32) -> Effects {
        assert_eq!(self.turns.next_sound(self.now), Some((generation, piece)));
        let samples = 480;
        self.input(Input::Speak(
            generation,
            piece,
            Spoken::Taken { samples, said },
        ))
    }

    /// Until "Hi there, you." is being said; `said` characters of it.
    fn answered(&mut self, said: u32) {
        self.spoken(1);
        self.end(1, "Hello");
        self.token(1, "Hi there, you. ");
        self.input(Input::Think(1, Thought::Done));
        self.taken(1, 0, said);
    }
}

fn emits(effects: Effects) -> Vec<Output<&'static str>> {
    let emitted = effects.into_iter().filter_map(|e| match e {
        Effect::Emit(output) => Some(output),
        _ => None,
    });
    emitted.collect()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_guess_runs_ahead_and_is_held_back() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    let effects = talk.wait(60).partial(1, "Hello");
    let asked = Effect::StartThinking {
        generation: 1,
        messages: vec![Message::new(Role::User, "Hello")],
    };
    assert!(effects.contains(&asked));
    talk.wait(50).input(Input::Think(1, Thought::Started(MIND)));
    let effects = talk.token(1, "Hi there, you. And so");
    let said = Effect::Say {
        generation: 1,
        piece: 0,
        text: "Hi there, you.".into(),
    };
    assert_eq!(effects, [said], "it is spoken, and nothing is told");
    assert_eq!(talk.turns.next_sound(talk.now), None);
    let told = emits(talk.wait(30).end(1, "Hello"));
    let (text, node) = ("Hello".into(), EAR);
    let expected = [
        Output::Heard { text, node },
        Output::Thinking(MIND),
        Output::Text("Hi there, you. And so".into()),
    ];
    assert_eq!(told, expected);
    assert_eq!(talk.turns.next_sound(talk.now), Some((1, 0)));
    talk.wait(40).taken(1, 0, 14);
    talk.input(Input::Think(1, Thought::Done));
    talk.input(Input::Speak(1, 0, Spoken::Done));
    talk.input(Input::Speak(1, 1, Spoken::Done));
    let told = emits(talk.wait(20).input(Input::Wake));
    let [Output::TurnDone { timeline, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    let expected = Timeline {
        transcript: Some(ms(220)),
        thinking: Some(ms(220)),
        first_token: Some(ms(270)),
        first_piece: Some(ms(270)),
        confirmed: Some(ms(300)),
        first_audio: Some(ms(340)),
        thought: Some(ms(340)),
        end: Some(ms(360)),
    };
    assert_eq!(*timeline, expected);
    let overlaps: Vec<_> = timeline.overlaps().collect();
    assert_eq!(
        overlaps,
        [Overlap::ThinkingBeforeTheEnd, Overlap::SpeakingBeforeTheEnd]
    );
    // 160 of silence, then 60, 50 and 60: 10 are the mesh's.
    let engines = Engines {
        residue: ms(60),
        ttft: ms(50),
        ttfb: ms(60),
        silence: ms(300),
    };
    assert_eq!(timeline.own(&engines), Some(ms(10)));
}

#[test]
fn a_guess_is_dropped_if_speech_goes_on_or_the_transcript_differs() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.partial(1, "Hello");
    let effects = talk.mic(20);
    assert_eq!(effects, []);
    let effects = talk.input(Input::Hear(1, Heard::Began { at_ms: 1200 }));
    assert_eq!(effects, [Effect::StopThinking(1)]);
    assert_eq!(talk.token(1, "Hi."), [], "an old generation");
    talk.mic(500);
    talk.input(Input::Hear(1, Heard::Silence(ms(160))));
    talk.partial(1, "Hello you");
    let effects = talk.end(1, "Hello, you there");
    assert_eq!(effects[0], Effect::StopThinking(2));
    assert!(matches!(
        effects[1],
        Effect::StartThinking { generation: 3, .. }
    ));
}

#[test]
fn the_users_voice_breaks_an_answer_off() {
    let mut talk = Talk::new(Config::default());
    talk.answered(8);
    talk.mic(20);
    talk.input(Input::Hear(2, Heard::Began { at_ms: 0 }));
    // 20 ms of voice were heard by then.
    assert!(talk.turns.next_wake() <= Some(talk.now + ms(100)));
    talk.wait(99);
    assert_eq!(talk.input(Input::Wake), []);
    let effects = talk.wait(1).input(Input::Wake);
    assert_eq!(effects[0], Effect::StopSpeaking(1));
    assert_eq!(talk.turns.next_sound(talk.now), None);
    let told = emits(effects);
    let [Output::BargedIn { played, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(played, "Hi", "in whole words");
    let last = talk.turns.history().last().unwrap();
    assert!(last.interrupted && last.content == "Hi");
}

#[test]
fn a_murmur_does_not() {
    let mut talk = Talk::new(Config::default());
    talk.answered(8);
    talk.mic(20);
    talk.input(Input::Hear(2, Heard::Began { at_ms: 0 }));
    talk.wait(60);
    // A detector that tells early that it was but 60 ms.
    assert_eq!(talk.input(Input::Hear(2, Heard::Silence(ms(20)))), []);
    talk.wait(200);
    assert_eq!(talk.input(Input::Wake), []);
    assert_eq!(emits(talk.partial(2, "Mm")), [Output::Partial("Mm".into())]);
    assert_eq!(emits(talk.end(2, "Mm")), [Output::NothingHeard]);
    assert_eq!(talk.turns.next_sound(talk.now), Some((1, 0)));
}

#[test]
fn nobody_begins_to_speak_into_a_voice() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.end(1, "Hello");
    talk.token(1, "Hi there, you. And so");
    talk.mic(20);
    assert!(talk.turns.next_sound(talk.now).is_some());
    talk.input(Input::Hear(2, Heard::Began { at_ms: 0 }));
    assert_eq!(talk.turns.next_sound(talk.now), None);
    let told = emits(talk.wait(200).input(Input::Wake));
    assert!(matches!(&told[..], [Output::BargedIn { played, .. }] if played.is_empty()));
    // What was not answered is one question with what comes next.
    talk.input(Input::Hear(2, Heard::Silence(ms(160))));
    let effects = talk.end(2, "and goodbye");
    let [Effect::StartThinking { messages, .. }, ..] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(
        messages[..],
        [Message::new(Role::User, "Hello and goodbye")]
    );
}

#[test]
fn typed_text_is_a_turn_and_breaks_one_off() {
    let mut talk = Talk::new(Config {
        history: vec![Message::new(Role::System, "Be brief")],
        ..Config::default()
    });
    let effects = talk.input(Input::Typed(" One? ".into()));
    let [Effect::StartThinking { messages, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(messages.len(), 2);
    talk.token(1, "It is two. And so");
    let effects = talk.input(Input::Typed("Three?".into()));
    assert!(matches!(
        &effects[..],
        [
            Effect::StopSpeaking(1),
            Effect::StopThinking(1),
            Effect::Emit(Output::BargedIn { .. }),
            Effect::StartThinking { generation: 2, .. },
        ]
    ));
    assert_eq!(talk.input(Input::Typed("  ".into())), []);
}

#[test]
fn nothing_of_a_guess_is_told_in_another_turn() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.partial(1, "Hello");
    talk.token(1, "Hi there, you. And so");
    let effects = talk.input(Input::Typed("Bye".into()));
    assert_eq!(emits(effects), []);
    let text = " Bye.";
    assert_eq!(emits(talk.token(2, text)), [Output::Text(text.into())]);
}

#[test]
fn without_a_voice_it_goes_on_as_text() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.end(1, "Hello");
    talk.token(1, "Hi there, you. And so");
    let effects = talk.input(Input::Speak(1, 0, Spoken::Failed("hoarse")));
    assert_eq!(effects[0], Effect::StopSpeaking(1));
    let (stage, error, partial) = (Stage::Speak, "hoarse", String::new());
    assert_eq!(
        emits(effects),
        [Output::Failed {
            stage,
            error,
            partial
        }]
    );
    assert_eq!(
        talk.token(1, " More."),
        [Effect::Emit(Output::Text(" More.".into()))]
    );
    let told = emits(talk.input(Input::Think(1, Thought::Done)));
    let [Output::TurnDone { played, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(played, "Hi there, you. And so More.");
}

#[test]
fn without_thoughts_what_there_is_is_said() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.end(1, "Hello");
    talk.token(1, "Hi there, my friend, how");
    let (error, too_long) = ("gone", false);
    let effects = talk.input(Input::Think(1, Thought::Failed { error, too_long }));
    assert!(matches!(
        &effects[0],
        Effect::Emit(Output::Failed {
            stage: Stage::Think,
            ..
        })
    ));
    talk.input(Input::Speak(1, 0, Spoken::Started));
    talk.input(Input::Speak(1, 0, Spoken::Done));
    let told = emits(talk.input(Input::Speak(1, 1, Spoken::Done)));
    let [Output::TurnDone { played, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(played, "Hi there, my friend, how");
    assert!(talk.turns.history().last().unwrap().interrupted);
}

#[test]
fn the_next_piece_is_opened_once_the_voice_is_known() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.end(1, "Hello");
    let says = |effects: Effects| {
        let says = effects.into_iter().filter_map(|e| match e {
            Effect::Say { piece, .. } => Some(piece),
            _ => None,
        });
        says.collect::<Vec<_>>()
    };
    let effects = talk.token(
        1,
        "One is here, two is there. Three is here. Four is there. Five.",
    );
    assert_eq!(says(effects), [0]);
    assert_eq!(says(talk.input(Input::Speak(1, 0, Spoken::Started))), [1]);
    assert_eq!(says(talk.input(Input::Speak(1, 1, Spoken::Started))), []);
    assert_eq!(says(talk.input(Input::Speak(1, 0, Spoken::Done))), [2]);
}

#[test]
fn too_much_history_is_shown_less_of() {
    let mut history = vec![Message::new(Role::System, "Be brief")];
    for n in 0..20 {
        history.push(Message::new(Role::User, format!("q{n}")));
        history.push(Message::new(Role::Assistant, format!("a{n}")));
    }
    let mut talk = Talk::new(Config {
        history,
        ..Config::default()
    });
    talk.input(Input::Typed("now".into()));
    let (error, too_long) = ("long", true);
    let effects = talk.input(Input::Think(1, Thought::Failed { error, too_long }));
    let [
        Effect::StartThinking {
            generation,
            messages,
        },
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(*generation, 2);
    let shown: Vec<_> = messages.iter().map(|m| m.role).collect();
    assert_eq!(shown[..2], [Role::System, Role::User]);
    assert_eq!(messages.last().unwrap().content, "now");
    assert!(messages.len() <= 22, "{}", messages.len());
    assert_eq!(talk.turns.history().len(), 42);
}

#[test]
fn a_failed_hearing_gives_back_what_was_understood() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.partial(1, "Hel");
    let (error, partial) = ("deaf", "Hel".to_owned());
    let effects = talk.input(Input::Hear(
        1,
        Heard::Failed {
            error,
            partial: partial.clone(),
        },
    ));
    let stage = Stage::Hear;
    assert_eq!(
        effects,
        [
            Effect::StopThinking(1),
            Effect::Emit(Output::Failed {
                stage,
                error,
                partial
            })
        ]
    );
    // Not at once again, and with all that came meanwhile.
    assert_eq!(talk.mic(500), []);
    let effects = talk.mic(500);
    let (hearing, samples) = (2, 1200 * 16);
    assert_eq!(effects, [Effect::StartHearing { hearing, samples }]);
}

#[test]
fn what_came_after_an_utterance_belongs_to_the_next() {
    let mut talk = Talk::new(Config::default());
    talk.spoken(1);
    talk.mic(140);
    talk.mic(1000);
    talk.end(1, "Hello");
    let effects = talk.mic(20);
    let (hearing, samples) = (2, (20 + 1160 + 1140 + 20) * 16 - 20_000);
    assert_eq!(effects, [Effect::StartHearing { hearing, samples }]);
}

#[test]
fn what_a_recognizer_said_before_the_pause_is_a_guess_too() {
    let mut talk = Talk::new(Config::default());
    talk.mic(20);
    talk.input(Input::Hear(1, Heard::Began { at_ms: 0 }));
    talk.mic(500);
    assert_eq!(
        emits(talk.partial(1, "Hello")),
        [Output::Partial("Hello".into())]
    );
    let effects = talk.mic(160);
    assert_eq!(effects, []);
    let effects = talk.input(Input::Hear(1, Heard::Silence(ms(160))));
    assert!(matches!(
        effects[..],
        [Effect::StartThinking { generation: 1, .. }]
    ));
    // No more was said than that.
    let effects = talk.input(Input::Hear(1, Heard::Silence(ms(180))));
    assert_eq!(effects, []);
}

/// Whoever says that an utterance is over waits for what came of it.
#[test]
fn the_end_of_no_sound_is_nothing_heard() {
    let mut talk = Talk::new(Config {
        agent_ends: false,
        ..Config::default()
    });
    let nothing = [Effect::Emit(Output::NothingHeard)];
    assert_eq!(talk.input(Input::EndUtterance), nothing);
    assert_eq!(talk.mic(20).len(), 1);
    assert_eq!(talk.input(Input::EndUtterance), [Effect::EndHearing(1)]);
    assert_eq!(talk.input(Input::EndUtterance), [], "it is under way");
}
