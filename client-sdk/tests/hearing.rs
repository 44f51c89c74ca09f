//! Utterances that are transcribed, over doubles and on a paused clock: every frame counts, whoever hears it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test ends with its runtime, and every task with it"
)]

mod speech_support;

use futures_util::StreamExt;
use speech_support::{Agent, Home};
use std::time::Duration;
use unamesh_client::client::ClientError;
use unamesh_client::speech::{Hear, HearEvent, Hearing};
use unamesh_proto::limits::MAX_HEARD_SECONDS;
use unamesh_proto::wire::ErrorCode;

/// Three seconds and a bit, in pieces of 10 ms.
fn sound() -> Vec<i16> {
    (0..50_011i64)
        .map(|n| ((n * n) % 4001 - 2000) as i16)
        .collect()
}

#[derive(Debug, Default)]
struct Told {
    started: usize,
    partials: Vec<String>,
    changes: Vec<(String, String)>,
    text: String,
    by: String,
}

/// Speaks into it, with `at` told each piece's number.
async fn transcribe(mut hearing: Hearing, mut at: impl FnMut(usize)) -> Told {
    let sound = sound();
    let mut pieces = sound.chunks(160).enumerate();
    let mut told = Told::default();
    loop {
        tokio::select! {
            event = hearing.next() => match event.expect("a last event") {
                HearEvent::Started { .. } => told.started += 1,
                HearEvent::Partial { text } => told.partials.push(text),
                HearEvent::PeerChanged { from, to, .. } => told.changes.push((from.name, to.name)),
                HearEvent::Final { text, peer, .. } => {
                    assert!(hearing.next().await.is_none());
                    assert_eq!(hearing.heard(), Some(Duration::from_millis(3140)));
                    (told.text, told.by) = (text, peer.name);
                    return told;
                }
                HearEvent::Failed { error, .. } => panic!("{error}"),
                _ => {}
            },
            () = tokio::time::sleep(Duration::from_millis(10)) => match pieces.next() {
                Some((n, piece)) => {
                    at(n);
                    hearing.push(piece);
                }
                None => hearing.end(),
            },
        }
    }
}

fn hear() -> Hear {
    Hear {
        partials: true,
        ..Hear::default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_transcript_is_of_every_frame() {
    let home = Home::new(&[Agent::default()]);
    let told = transcribe(home.client.transcribe(hear()), |_| {}).await;
    assert!(told.text.starts_with("157 frames"), "{told:?}");
    assert_eq!((told.started, told.by.as_str()), (1, "host1"));
    assert_eq!(told.partials, ["50 frames", "100 frames", "150 frames"]);
    assert!(told.changes.is_empty());
    while home.fates[0].running() > 0 {
        tokio::task::yield_now().await;
    }
}

/// The final transcript equals the undisturbed one, whatever befalls whom.
#[tokio::test(start_paused = true)]
async fn no_failure_changes_the_transcript() {
    let home = Home::new(&[Agent::default()]);
    let undisturbed = transcribe(home.client.transcribe(hear()), |_| {})
        .await
        .text;
    for (piece, frozen, loses) in [
        (0, false, 0),
        (100, true, 0),
        (200, false, 3),
        (311, true, 2),
        (312, false, 5),
        (usize::MAX, false, 2),
    ] {
        let agent = Agent {
            loses,
            ..Agent::default()
        };
        let home = Home::new(&[agent.clone(), agent]);
        let fate = home.fates[0].clone();
        let told = transcribe(home.client.transcribe(hear()), move |n| {
            if n == piece {
                match frozen {
                    true => fate.freeze(),
                    false => fate.lose(),
                }
            }
        })
        .await;
        assert_eq!(
            told.text, undisturbed,
            "at {piece}, frozen {frozen}, loses {loses}"
        );
        let by = if piece == usize::MAX {
            "host1"
        } else {
            "host2"
        };
        assert_eq!(told.by, by, "at {piece}");
    }
}

/// What is pushed behind the longest utterance is in no transcript: that is told.
#[tokio::test(start_paused = true)]
async fn an_utterance_that_is_too_long_says_so() {
    let home = Home::new(&[Agent::default()]);
    let mut hearing = home.client.transcribe(hear());
    let (second, mut told) = (vec![0; 16_000], None);
    for _ in 0..=MAX_HEARD_SECONDS {
        hearing.push(&second);
    }
    loop {
        match hearing.next().await.expect("a last event") {
            HearEvent::Full { at_ms } => assert_eq!(told.replace(at_ms), None, "once"),
            HearEvent::Final { text, .. } => {
                assert!(text.starts_with("45000 frames"), "{text}");
                break;
            }
            HearEvent::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(told, Some(900_000));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_heard_is_told() {
    let home = Home::new(&[Agent::default()]);
    let mut hearing = home.client.transcribe(hear());
    hearing.push(&sound());
    hearing.cancel();
    let event = hearing.next().await;
    let Some(HearEvent::Failed { error, .. }) = event else {
        panic!("{event:?}");
    };
    assert!(matches!(error, ClientError::Cancelled), "{error}");
    hearing.push(&sound());
    hearing.end();
    assert!(hearing.next().await.is_none());

    let prompt = Hear {
        prompt: "x".repeat(5000),
        ..hear()
    };
    let event = home.client.transcribe(prompt).next().await;
    assert!(
        matches!(
            &event,
            Some(HearEvent::Failed {
                error: ClientError::Invalid { .. },
                ..
            })
        ),
        "{event:?}"
    );
    let event = Home::new(&[]).client.transcribe(hear()).next().await;
    assert!(
        matches!(
            &event,
            Some(HearEvent::Failed {
                error: ClientError::NoPeer { .. },
                ..
            })
        ),
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_leaves_has_what_was_understood() {
    let home = Home::new(&[Agent::default()]);
    let mut hearing = home.client.transcribe(hear());
    hearing.push(&sound());
    let understood = loop {
        if let HearEvent::Partial { text } = hearing.next().await.unwrap() {
            break text;
        }
    };
    home.client.leave();
    let (error, partial) = loop {
        match hearing.next().await.unwrap() {
            HearEvent::Failed { error, partial } => break (error, partial),
            HearEvent::Partial { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let ClientError::Left { delivered, tokens } = error else {
        panic!("{error}");
    };
    assert!(!understood.is_empty() && tokens == 0);
    assert_eq!(delivered, partial);
    assert!(hearing.next().await.is_none());
    // Whoever begins now is told to ask again.
    let event = home.client.transcribe(hear()).next().await;
    assert!(
        matches!(&event, Some(HearEvent::Failed { error: ClientError::Refused(e), .. })
            if e.code == ErrorCode::Draining),
        "{event:?}"
    );
}
