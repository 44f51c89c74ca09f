//! Conversations with engine doubles of set delays, on tokio's paused clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod converse_support;

use converse_support::{Engines, Room, config, id, is_done, is_sound, ms};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::client::ClientError;
use unamesh_client::converse::{self, ConverseConfig, Role, Stage, Timeline, TurnEvent};
use unamesh_client::speech::Say;
use unamesh_proto::wire::{ModelKind, NodeState};

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Asks so many times; the times to the first sound and the mesh's own share of them, sorted.
async fn measure(engines: Engines, turns: u64) -> (Vec<Duration>, Vec<Duration>) {
    let doubles = converse::Engines {
        residue: engines.residue,
        ttft: engines.ttft,
        ttfb: engines.ttfb,
        silence: ms(300),
    };
    let mut room = Room::new(engines, config());
    let (mut whole, mut own) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        room.run(Duration::from_micros(300_000 + turn * 3_700), |_| false)
            .await;
        let (last, first) = room
            .ask(Duration::from_micros(700_000 + turn * 7_300))
            .await;
        room.conversation.barge_in();
        let ended = |e: &TurnEvent| matches!(e, TurnEvent::BargedIn { .. });
        let (_, TurnEvent::BargedIn { timeline, .. }) = room.until(ended).await else {
            unreachable!()
        };
        // The client's time line begins where the recognizer says; ours where the user ended.
        let late = first - last;
        let correction = late.saturating_sub(timeline.first_audio.unwrap());
        whole.push(late);
        own.push(timeline.own(&doubles).unwrap() + correction);
    }
    whole.sort();
    own.sort();
    (whole, own)
}

#[tokio::test(start_paused = true)]
async fn the_first_sound_comes_within_the_bar() {
    let cases = [(60, 50, 100, 10), (60, 80, 150, 10), (60, 50, 100, 25)];
    for (residue, ttft, ttfb, itl) in cases {
        let engines = Engines {
            residue: ms(residue),
            ttft: ms(ttft),
            ttfb: ms(ttfb),
            itl: ms(itl),
            ..Engines::default()
        };
        let (whole, own) = measure(engines, 100).await;
        let (p50, p95) = (percentile(&whole, 50), percentile(&whole, 95));
        let (own50, own99) = (percentile(&own, 50), percentile(&own, 99));
        println!(
            "STT {residue} / TTFT {ttft} / TTFB {ttfb} ms, a token every {itl} ms: first sound p50 \
             {p50:.1?}, p95 {p95:.1?}; the mesh's own share p50 {own50:.1?}, p99 {own99:.1?}"
        );
        assert!(own50 <= ms(20) && own99 <= ms(40));
        if (ttft, ttfb, itl) == (50, 100, 10) {
            assert!(p50 <= ms(450) && p95 <= ms(700));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_from_the_first_word_to_the_last_sample() {
    let mut room = Room::new(Engines::default(), config());
    room.ask(ms(900)).await;
    let (_, done) = room.until(is_done).await;
    let TurnEvent::TurnDone {
        heard,
        answer,
        played,
        timeline,
    } = done
    else {
        unreachable!()
    };
    assert_eq!(heard, "What is a plant?");
    assert!(answer.starts_with("A plant is") && played == answer);
    let overlaps: Vec<_> = timeline.overlaps().collect();
    assert!(
        overlaps.contains(&converse::Overlap::ThinkingBeforeTheEnd),
        "{overlaps:?}"
    );
    let told = room.told();
    let order = [
        "Ready",
        "SpeechBegan",
        "Partial",
        "Heard",
        "Thinking",
        "Text",
    ];
    let mut at = 0;
    for name in order {
        let found = told[at..].iter().position(|t| t == name);
        at += found.unwrap_or_else(|| panic!("no {name} in {told:?}"));
    }
    assert_eq!(room.gaps, Duration::ZERO, "the loudspeaker ran dry");
    let roles: Vec<_> = room.conversation.history().iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant]);
    let log = room.log.lock().unwrap();
    assert!(!log.warmed.is_empty());
    assert_eq!(log.prompts.len(), 1, "the guess was right");
    assert!(log.spoken.len() > 1, "pieces are spoken one by one");
    assert_eq!(log.spoken[0].voice, "", "any");
    assert!(
        log.spoken[1..].iter().all(|s| s.voice == "anna"),
        "then that one"
    );
}

#[tokio::test(start_paused = true)]
async fn the_callers_barge_in_is_heard_at_once() {
    let engines = Engines {
        speed: 1,
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.ask(ms(900)).await;
    room.run(ms(1000), |_| false).await;
    room.conversation.barge_in();
    let at = Instant::now();
    assert!(room.dry - at <= ms(60), "left to play: {:?}", room.dry - at);
    let before = room.events.len();
    let (_, event) = room
        .until(|e| matches!(e, TurnEvent::BargedIn { .. }))
        .await;
    room.run(ms(3000), |_| false).await;
    assert!(!room.events[before..].iter().any(|(_, e)| is_sound(e)));
    let TurnEvent::BargedIn { played, .. } = event else {
        unreachable!()
    };
    // A second at 15 characters a second.
    assert_eq!(played, "A plant is a");
    let last = room.conversation.history().last().unwrap();
    assert!(last.interrupted && last.content == played);
    let log = room.log.lock().unwrap();
    assert!(
        log.dropped
            .iter()
            .any(|(kind, when)| *kind == "speak" && *when == at)
    );
}

#[tokio::test(start_paused = true)]
async fn the_users_voice_ends_an_answer() {
    let engines = Engines {
        heard: vec!["What is a plant?", "Stop, and an animal?"],
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.ask(ms(900)).await;
    room.run(ms(1500), |_| false).await;
    let begin = Instant::now();
    room.say(ms(1000));
    let (at, _) = room
        .until(|e| matches!(e, TurnEvent::BargedIn { .. }))
        .await;
    let last = room.events.iter().rfind(|(_, e)| is_sound(e)).unwrap().0;
    println!(
        "from the user's voice to the end of the answer: {:?}; silent {:?} after that",
        at - begin,
        room.dry.saturating_duration_since(at)
    );
    assert!(last <= at && at - begin <= ms(120 + 20));
    assert!(room.dry.saturating_duration_since(at) <= ms(60));
    let (_, done) = room.until(is_done).await;
    assert!(matches!(done, TurnEvent::TurnDone { heard, .. } if heard.starts_with("Stop")));
    let prompt = room.log.lock().unwrap().prompts.last().unwrap().clone();
    assert!(prompt.contains(" …"), "{prompt}");
}

#[tokio::test(start_paused = true)]
async fn a_short_pause_costs_a_guess_and_no_words() {
    let mut room = Room::new(Engines::default(), config());
    room.say(ms(800));
    room.run(ms(1080), |_| false).await;
    // 280 ms of silence: the guess is on its way.
    assert_eq!(room.log.lock().unwrap().prompts.len(), 1);
    let (last, first) = room.ask(ms(600)).await;
    assert!(first > last);
    let heard = room.told().iter().filter(|t| *t == "Heard").count();
    assert_eq!(heard, 1, "{:?}", room.told());
    let log = room.log.lock().unwrap();
    // The second hearing is the one that listens while the answer is spoken.
    assert_eq!((log.prompts.len(), log.hearings), (2, 2));
    assert!(log.dropped.iter().any(|(kind, _)| *kind == "think"));
}

#[tokio::test(start_paused = true)]
async fn who_says_when_it_ends_waits_for_no_silence() {
    let config = ConverseConfig {
        silence: Duration::ZERO,
        ..config()
    };
    let mut room = Room::new(Engines::default(), config);
    room.say(ms(1000));
    room.run(ms(1000), |_| false).await;
    let end = Instant::now();
    room.conversation.end_utterance();
    let (first, _) = room.until(is_sound).await;
    // 60 + 50 + five tokens + 100, and the way.
    assert!(first - end <= ms(60 + 50 + 80 + 100), "{:?}", first - end);
    room.until(is_done).await;
}

#[tokio::test(start_paused = true)]
async fn typed_text_without_a_voice_and_a_history_that_goes_on() {
    let mute = ConverseConfig {
        voice: None,
        ..config()
    };
    let mut room = Room::new(Engines::default(), mute.clone());
    room.conversation.text("Hello?");
    room.until(is_done).await;
    assert!(!room.events.iter().any(|(_, e)| is_sound(e)));
    let history = room.conversation.history().to_vec();
    assert_eq!(history.len(), 3);
    let again = ConverseConfig { history, ..mute };
    room.conversation = room.client.converse(again);
    room.conversation.text("And?");
    room.until(is_done).await;
    assert_eq!(room.conversation.history().len(), 5);
    let prompt = room.log.lock().unwrap().prompts.last().unwrap().clone();
    assert!(
        prompt.contains("Hello?") && prompt.contains("That is all."),
        "{prompt}"
    );
}

#[tokio::test(start_paused = true)]
async fn it_reads_the_history_before_the_first_turn() {
    let config = ConverseConfig {
        warm_up: true,
        ..config()
    };
    let mut room = Room::new(Engines::default(), config);
    room.until(|e| matches!(e, TurnEvent::Ready)).await;
    assert_eq!(room.log.lock().unwrap().prompts.len(), 1);
    room.ask(ms(700)).await;
    assert_eq!(room.told().iter().filter(|t| *t == "Ready").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_lease_a_session_keeps_ear_and_voice_warm_where_they_are() {
    let engines = Engines {
        load: Some(ms(2000)),
        ..Engines::default()
    };
    let config = ConverseConfig {
        warm_up: true,
        ..config()
    };
    let mut room = Room::new(engines, config);
    let opened = Instant::now();
    let (ready, _) = room.until(|e| matches!(e, TurnEvent::Ready)).await;
    assert!(ready - opened >= ms(2000), "the loading was waited for");
    let log = room.log.clone();
    {
        let log = log.lock().unwrap();
        let [(node, lease)] = &log.leases[..] else {
            panic!("{:?}", log.leases);
        };
        assert_eq!((*node, lease.session), (id(1), room.conversation.session()));
        let models: Vec<_> = lease.models.iter().map(|m| (m.kind, &*m.model)).collect();
        assert_eq!(
            models,
            [(ModelKind::Stt, "whisper"), (ModelKind::Tts, "piper")]
        );
    }
    // Turns change nothing, but for the voice that is known from then on.
    for _ in 0..3 {
        room.ask(ms(700)).await;
        room.until(is_done).await;
    }
    let held = |room: &Room| {
        let log = room.log.lock().unwrap();
        log.leases.len() - log.ended.len()
    };
    assert_eq!(held(&room), 1);
    assert!(log.lock().unwrap().leases.len() <= 2, "{log:?}");
    // Its agent drains: the models are kept warm where they are best now.
    room.table.send_modify(|table| {
        let mut snapshot = (**table).clone();
        let peer = Arc::make_mut(&mut snapshot.peers[0]);
        Arc::make_mut(&mut peer.advert).state = NodeState::Draining;
        *table = Arc::new(snapshot);
    });
    room.ask(ms(700)).await;
    assert_eq!(log.lock().unwrap().leases.last().unwrap().0, id(2));
    assert_eq!(held(&room), 1);
    drop(room);
    let log = log.lock().unwrap();
    assert_eq!(
        log.leases.len(),
        log.ended.len(),
        "all end with the session"
    );
}

#[tokio::test(start_paused = true)]
async fn where_nobody_knows_leases_a_conversation_goes_on() {
    let config = ConverseConfig {
        warm_up: true,
        ..config()
    };
    let mut room = Room::new(Engines::default(), config);
    room.until(|e| matches!(e, TurnEvent::Ready)).await;
    room.ask(ms(700)).await;
    room.until(is_done).await;
    // Without a warm-up none is asked for.
    let engines = Engines {
        load: Some(ms(0)),
        ..Engines::default()
    };
    let mut room = Room::new(engines, self::config());
    room.ask(ms(700)).await;
    assert!(room.log.lock().unwrap().leases.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_voice_leaves_the_text() {
    let engines = Engines {
        hoarse: true,
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.say(ms(900));
    let (_, done) = room.until(is_done).await;
    assert!(matches!(done, TurnEvent::TurnDone { played, .. } if played.ends_with("all.")));
    let failed = room.events.iter().find_map(|(_, e)| match e {
        TurnEvent::Failed { stage, error, .. } => Some((*stage, error.clone())),
        _ => None,
    });
    let (stage, error) = failed.unwrap();
    assert!(
        stage == Stage::Speak && matches!(error, ClientError::Invalid { .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_mind_and_a_failed_ear_are_told() {
    let engines = Engines {
        thoughtless: true,
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.say(ms(900));
    room.until(|e| {
        matches!(
            e,
            TurnEvent::Failed {
                stage: Stage::Think,
                ..
            }
        )
    })
    .await;
    room.until(is_done).await;
    let engines = Engines {
        deaf: true,
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.say(ms(900));
    room.until(|e| {
        matches!(
            e,
            TurnEvent::Failed {
                stage: Stage::Hear,
                ..
            }
        )
    })
    .await;
    // No flood of failures, and the next hearing is tried.
    room.run(ms(4000), |_| false).await;
    let failures = room.told().iter().filter(|t| *t == "Failed").count();
    // The voice, the rest of it, and what of that a new hearing gets once more.
    assert!((1..=3).contains(&failures), "{failures}");
    assert!(room.log.lock().unwrap().hearings >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_voice_is_followed_by_the_same_elsewhere() {
    let engines = Engines {
        voice_dies_after: Some(40),
        ..Engines::default()
    };
    let mut room = Room::new(engines, config());
    room.ask(ms(900)).await;
    let (_, changed) = room
        .until(|e| matches!(e, TurnEvent::PeerChanged { .. }))
        .await;
    let TurnEvent::PeerChanged {
        stage,
        from,
        to,
        same_voice,
        ..
    } = changed
    else {
        unreachable!()
    };
    assert_eq!((stage, same_voice), (Stage::Speak, true));
    assert_eq!((from.name.as_str(), to.name.as_str()), ("host1", "host2"));
    let (_, done) = room.until(is_done).await;
    assert!(matches!(done, TurnEvent::TurnDone { played, .. } if played.ends_with("all.")));
    assert_eq!(room.gaps, Duration::ZERO, "the lead bridges it");
}

#[tokio::test(start_paused = true)]
async fn a_voice_that_nobody_has_is_an_error_unless_another_will_do() {
    let voice = |other_voice| {
        Some(Say {
            voice: "bert".into(),
            other_voice,
            ..Say::new("")
        })
    };
    let strict = ConverseConfig {
        voice: voice(false),
        ..config()
    };
    let mut room = Room::new(Engines::default(), strict);
    room.say(ms(900));
    let (_, failed) = room
        .until(|e| {
            matches!(
                e,
                TurnEvent::Failed {
                    stage: Stage::Speak,
                    ..
                }
            )
        })
        .await;
    assert!(
        matches!(
            &failed,
            TurnEvent::Failed {
                error: ClientError::NoVoice { .. },
                ..
            }
        ),
        "{failed:?}"
    );
    room.until(is_done).await;
    let lenient = ConverseConfig {
        voice: voice(true),
        ..config()
    };
    let mut room = Room::new(Engines::default(), lenient);
    room.ask(ms(900)).await;
    room.until(is_done).await;
}

#[test]
fn a_conversation_moves_between_threads() {
    fn moves<T: Send + Unpin>() {}
    moves::<converse::Conversation>();
}

#[test]
fn a_time_line_says_nothing_of_what_did_not_happen() {
    let engines = converse::Engines {
        residue: ms(1),
        ttft: ms(1),
        ttfb: ms(1),
        silence: ms(1),
    };
    assert_eq!(Timeline::default().own(&engines), None);
    assert_eq!(Timeline::default().overlaps().count(), 0);
}
