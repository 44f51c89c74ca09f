//! What the machines of speech do, rule by rule.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;
use unamesh_proto::ids::NodeId;
use unamesh_proto::rank::{Candidate, Cost};
use unamesh_proto::session::{AttemptId, Closed, Note, Reason};
use unamesh_proto::speech::speak::{self, PACKET, Speak, Speaker};
use unamesh_proto::speech::{Failure, hear};
use unamesh_proto::time::Mono;
use unamesh_proto::wire::{
    ErrorCode, HearAccepted, HearFrame, Missing, Partial, Phase, Progress, Sound, SpeakFrame,
    SpeechAccepted, SpeechBegan, SpeechDone, SpokenMark, Transcript, WireError,
};

const TEXT: &str = "one two. three four.";
const A: AttemptId = AttemptId(0);
const B: AttemptId = AttemptId(1);

fn candidate(n: u8) -> Candidate {
    Candidate {
        node: NodeId([n; 32]),
        engine: 0,
        model: "m".into(),
        digest: String::new(),
        token_ids: false,
        cost: Cost::default(),
        expected_ttft: Duration::from_millis(100),
        expected_itl: Duration::from_millis(10),
        learned: Default::default(),
        draining: false,
        reason: String::new(),
    }
}

fn speaker(n: u8, same: bool) -> Speaker {
    Speaker {
        candidate: candidate(n),
        voice: "v".into(),
        same,
    }
}

/// A machine, its clock, and what it did since it was looked at last.
struct Bench {
    speak: Speak,
    now: Mono,
    speakers: Vec<Speaker>,
}

impl Bench {
    fn new(config: speak::Config, speakers: Vec<Speaker>) -> Bench {
        let mut bench = Bench {
            speak: Speak::new(config, Mono::ZERO),
            now: Mono::ZERO,
            speakers,
        };
        let opened = bench.effects();
        assert!(matches!(
            opened[..],
            [speak::Effect::Open { attempt: A, .. }]
        ));
        bench
    }

    fn effects(&mut self) -> Vec<speak::Effect> {
        let mut effects = Vec::new();
        while let Some(effect) = self.speak.poll() {
            match effect {
                speak::Effect::Rank => {
                    let speakers = self.speakers.clone();
                    self.speak
                        .handle(speak::Input::Candidates(speakers), self.now);
                }
                speak::Effect::Note(_) => {}
                effect => effects.push(effect),
            }
        }
        effects
    }

    fn input(&mut self, input: speak::Input) -> Vec<speak::Effect> {
        self.now = self.now + Duration::from_millis(1);
        self.speak.handle(input, self.now);
        self.effects()
    }

    fn frame(&mut self, id: AttemptId, frame: SpeakFrame) -> Vec<speak::Effect> {
        self.input(speak::Input::Frame(id, frame))
    }

    fn accept(&mut self, id: AttemptId, same_voice: bool) -> Vec<speak::Effect> {
        let accepted = SpeechAccepted {
            engine: 0,
            voice: "v".into(),
            same_voice,
            pre_skip: 0,
        };
        self.frame(id, SpeakFrame::Accepted(accepted))
    }

    fn mark(&mut self, id: AttemptId, from: u32, to: u32, at: u64) -> Vec<speak::Effect> {
        self.frame(id, SpeakFrame::Mark(SpokenMark { from, to, at }))
    }

    fn sounds(&mut self, id: AttemptId, seqs: std::ops::Range<u32>) -> Vec<speak::Effect> {
        let sound = |seq| SpeakFrame::Sound(Sound { seq, opus: vec![1] });
        seqs.flat_map(|seq| self.frame(id, sound(seq))).collect()
    }
}

fn outputs(effects: Vec<speak::Effect>) -> Vec<speak::Output> {
    let output = |effect| match effect {
        speak::Effect::Emit(output) => Some(output),
        _ => None,
    };
    effects.into_iter().filter_map(output).collect()
}

fn lost() -> Closed {
    Closed::Lost("x".into())
}

/// Speaks the first chunk (50 packets) and ten packets of the second.
fn half(other_voice: bool, backup_same: bool) -> Bench {
    let config = speak::Config {
        other_voice,
        ..speak::Config::new(TEXT)
    };
    let mut bench = Bench::new(config, vec![speaker(0, true), speaker(1, backup_same)]);
    bench.accept(A, true);
    bench.mark(A, 0, 9, 0);
    bench.sounds(A, 0..50);
    bench.mark(A, 9, 20, 50 * PACKET);
    bench.sounds(A, 50..60);
    bench
}

#[test]
fn what_was_not_played_is_cut_and_what_is_being_played_joined() {
    for (played, joined) in [(10, false), (46, false), (48, true), (55, true)] {
        let mut bench = half(false, true);
        bench.input(speak::Input::Played(played * PACKET));
        let opened = bench.input(speak::Input::Closed(A, lost()));
        let from = |e: &speak::Effect| match e {
            speak::Effect::Open { from, .. } => Some(*from),
            _ => None,
        };
        assert_eq!(opened.iter().find_map(from), Some(9));
        bench.accept(B, true);
        bench.mark(B, 9, 20, 0);
        let outputs = outputs(bench.sounds(B, 0..1));
        let start = 50 * PACKET;
        let expected = match joined {
            false => speak::Output::Cut { at: start },
            true => speak::Output::Join {
                from: 9,
                to: 20,
                start,
                keep_until: 60 * PACKET,
                pre_skip: 0,
            },
        };
        assert!(outputs.contains(&expected), "played {played}: {outputs:?}");
    }
}

#[test]
fn a_joint_elsewhere_moves_what_follows() {
    let mut bench = half(false, true);
    bench.input(speak::Input::Played(55 * PACKET));
    bench.input(speak::Input::Closed(A, lost()));
    bench.accept(B, true);
    bench.mark(B, 9, 20, 0);
    bench.sounds(B, 0..1);
    bench.input(speak::Input::Joined { shift: 100 });
    bench.sounds(B, 1..30);
    let done = SpeechDone {
        frames: 30,
        samples: 30 * PACKET,
    };
    let outputs = outputs(bench.frame(B, SpeakFrame::Done(done)));
    let samples = 80 * PACKET + 100;
    assert_eq!(outputs.last(), Some(&speak::Output::Done { samples }));
    assert!(bench.speak.is_ended() && bench.speak.next_wake().is_none());
}

#[test]
fn another_voice_goes_on_only_if_it_may() {
    let mut bench = half(true, false);
    bench.input(speak::Input::Closed(A, lost()));
    bench.accept(B, false);
    bench.mark(B, 9, 20, 0);
    let outputs = outputs(bench.sounds(B, 0..1));
    let changed = |o: &speak::Output| {
        matches!(
            o,
            speak::Output::PeerChanged {
                same_voice: false,
                ..
            }
        )
    };
    assert!(outputs.iter().any(changed));

    let mut bench = half(false, false);
    bench.speakers.remove(0);
    let none = bench.input(speak::Input::Closed(A, lost()));
    assert!(!none.iter().any(|e| matches!(e, speak::Effect::Open { .. })));
    while !bench.speak.is_ended() {
        bench.now = bench.speak.next_wake().unwrap();
        bench.speak.handle(speak::Input::Wake, bench.now);
        let ended = outputs_of(&mut bench);
        if let Some(end) = ended.last() {
            let (failure, whole) = (Failure::NoVoice, 9);
            assert_eq!(*end, speak::Output::Failed { failure, whole });
        }
    }
}

fn outputs_of(bench: &mut Bench) -> Vec<speak::Output> {
    outputs(bench.effects())
}

#[test]
fn a_promised_voice_that_is_not_there_is_refused() {
    let config = speak::Config::new(TEXT);
    let mut bench = Bench::new(config, vec![speaker(0, true), speaker(1, true)]);
    let effects = bench.accept(A, false);
    assert!(effects.contains(&speak::Effect::Reset(A)));
    assert!(matches!(
        effects.last(),
        Some(speak::Effect::Open { attempt: B, .. })
    ));
}

#[test]
fn who_exceeds_the_lead_or_miscounts_is_left() {
    let broken = |then: &dyn Fn(&mut Bench) -> Vec<speak::Effect>| {
        let mut bench = half(false, true);
        let effects = then(&mut bench);
        assert!(effects.contains(&speak::Effect::Reset(A)), "{effects:?}");
    };
    broken(&|b| b.sounds(A, 61..62));
    broken(&|b| b.mark(A, 19, 20, 60 * PACKET));
    broken(&|b| b.mark(A, 20, 21, 60 * PACKET));
    broken(&|b| b.mark(A, 20, 20, 59 * PACKET));
    broken(&|b| b.accept(A, true));
    broken(&|b| {
        let (frames, samples) = (61, 60 * PACKET);
        b.frame(A, SpeakFrame::Done(SpeechDone { frames, samples }))
    });
    // Ten seconds of lead are 500 packets.
    let mut bench = half(false, true);
    let effects = bench.sounds(A, 60..500);
    assert!(!effects.contains(&speak::Effect::Reset(A)));
    let idle = bench.speak.next_wake().unwrap();
    assert!(
        idle.since(bench.now) < Duration::from_millis(400),
        "silence is still watched"
    );
    assert!(bench.sounds(A, 500..501).contains(&speak::Effect::Reset(A)));
}

/// The caller pauses: the peer waits, and says so.
#[test]
fn who_has_used_the_lead_up_is_not_stalled() {
    let mut bench = half(false, true);
    bench.sounds(A, 60..500);
    for _ in 0..1000 {
        bench.now = bench.now + Duration::from_millis(50);
        let (phase, done, total) = (Phase::Generating, 0, 0);
        let progress = Progress { phase, done, total };
        assert_eq!(bench.frame(A, SpeakFrame::Progress(progress)), []);
        assert_eq!(bench.input(speak::Input::Wake), []);
    }
    // Once it may go on, its clock begins anew.
    assert_eq!(bench.input(speak::Input::Played(50 * PACKET)).len(), 1);
    assert_eq!(bench.input(speak::Input::Wake), []);
}

#[test]
fn the_lead_grows_with_the_ear() {
    let mut bench = half(false, true);
    assert_eq!(bench.input(speak::Input::Played(10 * PACKET)), []);
    let effects = bench.input(speak::Input::Played(30 * PACKET));
    let [speak::Effect::Grant(A, grant)] = effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((grant.until_ms, grant.played_ms), (10_600, 600));
}

#[test]
fn barge_in_ends_at_once_and_tells_what_was_said() {
    let mut bench = half(false, true);
    bench.input(speak::Input::Played(25 * PACKET));
    let effects = bench.input(speak::Input::Cancel);
    let failed = speak::Output::Failed {
        failure: Failure::Cancelled,
        whole: 9,
    };
    assert_eq!(
        effects,
        [speak::Effect::Reset(A), speak::Effect::Emit(failed)]
    );
    assert_eq!(bench.speak.spoken_until(25 * PACKET), 3, "one");
    assert_eq!(bench.speak.spoken_until(50 * PACKET), 9, "one two.");
    assert!(bench.input(speak::Input::Played(60 * PACKET)).is_empty());
}

#[test]
fn who_leaves_keeps_what_was_said() {
    let mut bench = half(false, true);
    let effects = bench.input(speak::Input::Leave);
    let reason = Reason::Leaving;
    let failed = speak::Output::Failed {
        failure: Failure::Interrupted { reason },
        whole: 9,
    };
    assert_eq!(
        effects,
        [speak::Effect::Reset(A), speak::Effect::Emit(failed)]
    );
    // Before any sound: ask again elsewhere.
    let mut bench = Bench::new(speak::Config::new(TEXT), vec![speaker(0, true)]);
    let ended = outputs(bench.input(speak::Input::Leave));
    let [speak::Output::Failed { failure, whole: 0 }] = &ended[..] else {
        panic!("{ended:?}");
    };
    assert!(matches!(failure, Failure::Refused(e) if e.code == ErrorCode::Draining));
}

// ----- hearing ------------------------------------------------------------------------------

struct Ear {
    hear: hear::Hear,
    now: Mono,
}

impl Ear {
    /// Two peers, the first of which is asked; `frames` were said.
    fn new(frames: u32) -> Ear {
        Ear::with(hear::Config::default(), frames)
    }

    fn with(config: hear::Config, frames: u32) -> Ear {
        let mut ear = Ear {
            hear: hear::Hear::new(config, Mono::ZERO),
            now: Mono::ZERO,
        };
        for _ in 0..frames {
            ear.input(hear::Input::Sound(vec![1; 40]));
        }
        ear
    }

    fn input(&mut self, input: hear::Input) -> Vec<hear::Effect> {
        self.now = self.now + Duration::from_millis(1);
        self.hear.handle(input, self.now);
        let mut effects = Vec::new();
        while let Some(effect) = self.hear.poll() {
            match effect {
                hear::Effect::Rank => {
                    let all = vec![candidate(0), candidate(1)];
                    self.hear.handle(hear::Input::Candidates(all), self.now);
                }
                hear::Effect::Note(Note::Succeeded { .. }) | hear::Effect::Note(_) => {}
                effect => effects.push(effect),
            }
        }
        effects
    }

    fn frame(&mut self, id: AttemptId, frame: HearFrame) -> Vec<hear::Effect> {
        self.input(hear::Input::Frame(id, frame))
    }

    fn accept(&mut self, id: AttemptId) -> Vec<hear::Effect> {
        let (engine, digest) = (0, String::new());
        self.frame(id, HearFrame::Accepted(HearAccepted { engine, digest }))
    }

    fn partial(&mut self, id: AttemptId, text: &str) -> Vec<hear::Effect> {
        let text = text.into();
        self.frame(id, HearFrame::Partial(Partial { text }))
    }
}

fn transcript(frames: u32) -> HearFrame {
    HearFrame::Final(Transcript {
        text: "so".into(),
        language: String::new(),
        words: vec![],
        confidence: None,
        frames,
    })
}

#[test]
fn all_sound_reaches_whoever_hears() {
    use hear::Effect::{End, Live, Send};
    let mut ear = Ear::new(3);
    assert_eq!(ear.input(hear::Input::Opened(A)), [Send(A, 0..3)]);
    let sound = || hear::Input::Sound(vec![2; 40]);
    assert_eq!(
        ear.input(sound()),
        [Send(A, 3..4)],
        "on the stream until it accepted"
    );
    ear.accept(A);
    assert_eq!(ear.input(sound()), [Live(A, 4)]);
    (0..20).for_each(|_| drop(ear.input(sound())));
    let (from, to) = (7, 9);
    assert_eq!(
        ear.frame(A, HearFrame::Missing(Missing { from, to })),
        [Send(A, 7..9)]
    );
    assert_eq!(ear.input(hear::Input::End), [Send(A, 17..25), End(A, 25)]);
    ear.input(hear::Input::Closed(A, lost()));
    assert_eq!(
        ear.input(hear::Input::Opened(B)),
        [Send(B, 0..25), End(B, 25)]
    );
    let outputs = ear.frame(B, transcript(25));
    assert!(matches!(
        outputs.last(),
        Some(hear::Effect::Emit(hear::Output::Final { .. }))
    ));
    assert!(ear.hear.is_ended() && ear.input(sound()).is_empty());
}

#[test]
fn a_transcript_of_less_and_a_wrong_question_are_failures() {
    for (end, frame) in [
        (true, transcript(2)),
        (false, transcript(3)),
        (false, HearFrame::Missing(Missing { from: 2, to: 4 })),
        (false, HearFrame::Missing(Missing { from: 2, to: 2 })),
    ] {
        let mut ear = Ear::new(3);
        ear.input(hear::Input::Opened(A));
        ear.accept(A);
        if end {
            ear.input(hear::Input::End);
        }
        assert!(ear.frame(A, frame).contains(&hear::Effect::Reset(A)));
    }
}

/// An agent that finds the end tells nothing but that its engine works.
#[test]
fn an_engine_that_hangs_at_an_end_that_the_agent_found_is_noticed() {
    let config = hear::Config {
        agent_ends: true,
        ..hear::Config::default()
    };
    let mut ear = Ear::with(config, 500);
    ear.input(hear::Input::Opened(A));
    ear.accept(A);
    let began = SpeechBegan { frame: 400 };
    ear.frame(A, HearFrame::Began(began));
    // For so many seconds it is told each 100 ms; after how many was a backup wanted?
    let mut hedged = |phase, seconds: u32| {
        (0..seconds * 10).find(|n| {
            ear.now = ear.now + Duration::from_millis(99);
            let (done, total) = (500, 0);
            let progress = Progress { phase, done, total };
            ear.frame(A, HearFrame::Progress(progress));
            let woken = ear.input(hear::Input::Wake);
            assert!(ear.hear.next_wake().is_some(), "{n}");
            woken.contains(&hear::Effect::Hedge)
        })
    };
    assert_eq!(
        hedged(Phase::Prefilling, 100),
        None,
        "perhaps nobody speaks"
    );
    // Half of the two seconds that were said.
    let after = hedged(Phase::Generating, 100).expect("it hangs");
    assert!((9..=12).contains(&after), "{after}");
}

#[test]
fn the_error_carries_the_best_partial() {
    let mut ear = Ear::new(3);
    ear.input(hear::Input::Opened(A));
    ear.accept(A);
    ear.partial(A, "a longer one, and wrong");
    ear.partial(A, "a long one");
    ear.input(hear::Input::Closed(A, lost()));
    ear.input(hear::Input::Opened(B));
    let mut shown = ear.accept(B);
    shown.extend(ear.partial(B, "short"));
    let changed = |e: &hear::Effect| {
        matches!(
            e,
            hear::Effect::Emit(hear::Output::PeerChanged {
                reason: Reason::Lost,
                ..
            })
        )
    };
    assert!(shown.iter().any(changed));
    let effects = ear.input(hear::Input::Cancel);
    let failed = hear::Output::Failed {
        failure: Failure::Cancelled,
        partial: "a long one".into(),
    };
    assert_eq!(effects.last(), Some(&hear::Effect::Emit(failed)));
}

#[test]
fn who_leaves_keeps_what_was_understood() {
    let mut ear = Ear::new(3);
    ear.input(hear::Input::Opened(A));
    ear.accept(A);
    ear.partial(A, "so far");
    let effects = ear.input(hear::Input::Leave);
    let reason = Reason::Leaving;
    let failed = hear::Output::Failed {
        failure: Failure::Interrupted { reason },
        partial: "so far".into(),
    };
    assert_eq!(effects.last(), Some(&hear::Effect::Emit(failed)));
}

#[test]
fn a_wrong_request_is_told_at_once() {
    let mut ear = Ear::new(3);
    ear.input(hear::Input::Opened(A));
    ear.accept(A);
    let error = WireError::new(ErrorCode::Invalid, "no such language");
    let effects = ear.frame(A, HearFrame::Error(error.clone()));
    let failed = hear::Output::Failed {
        failure: Failure::Refused(error),
        partial: String::new(),
    };
    assert_eq!(effects.last(), Some(&hear::Effect::Emit(failed)));
}

/// A frozen engine under a living agent: nothing was learned, and its advert says two seconds.
#[test]
fn an_engine_of_speech_that_freezes_between_sentences_is_noticed() {
    let mut slow = speaker(0, true);
    slow.candidate.expected_ttft = Duration::from_secs(2);
    let mut bench = Bench::new(speak::Config::new(TEXT), vec![slow, speaker(1, true)]);
    bench.accept(A, true);
    bench.mark(A, 0, 9, 0);
    bench.now = bench.now + Duration::from_millis(300);
    bench.sounds(A, 0..50);
    bench.input(speak::Input::Played(50 * PACKET));
    bench.mark(A, 9, 20, 50 * PACKET);
    let frozen = bench.now;
    let hedged = (0..400).find_map(|_| {
        bench.now = bench.now + Duration::from_millis(50);
        let progress = SpeakFrame::Progress(Progress {
            phase: Phase::Prefilling,
            done: 0,
            total: 0,
        });
        let mut effects = bench.frame(A, progress);
        effects.extend(bench.input(speak::Input::Wake));
        let stalls = effects.contains(&speak::Effect::Hedge);
        stalls.then(|| bench.now.since(frozen))
    });
    // Three times the 0.37 s that the first clause's 0.3 s mean for this longer one.
    let hedged = hedged.unwrap();
    assert!(
        hedged > Duration::from_millis(1000) && hedged < Duration::from_millis(1300),
        "{hedged:?}"
    );
}

#[test]
fn who_listens_on_is_told_once_and_a_beginning_too() {
    let mut ear = Ear::new(100);
    ear.input(hear::Input::Opened(A));
    let mut told = ear.accept(A);
    let began = |frame| HearFrame::Began(SpeechBegan { frame });
    told.extend(ear.frame(A, began(10)));
    told.extend(ear.input(hear::Input::Closed(A, lost())));
    ear.input(hear::Input::Opened(B));
    told.extend(ear.accept(B));
    told.extend(ear.frame(B, began(11)));
    told.extend(ear.frame(B, began(60)));
    told.extend(ear.input(hear::Input::End));
    told.extend(ear.frame(B, transcript(100)));
    let told: Vec<String> = told
        .into_iter()
        .filter_map(|effect| match effect {
            hear::Effect::Emit(hear::Output::Started { node, .. }) => {
                Some(format!("started {}", node.0[0]))
            }
            hear::Effect::Emit(hear::Output::Began(frame)) => Some(format!("began {frame}")),
            hear::Effect::Emit(hear::Output::PeerChanged { from, to, .. }) => {
                Some(format!("{} to {}", from.0[0], to.0[0]))
            }
            hear::Effect::Emit(hear::Output::Final { node, .. }) => {
                Some(format!("final {}", node.0[0]))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        told,
        ["started 0", "began 10", "0 to 1", "began 60", "final 1"]
    );
}
