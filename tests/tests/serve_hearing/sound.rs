//! What is understood: every sample, whatever its frames went through.

use crate::serve_support::hearer::Home;
use crate::serve_support::mouth::hear;
use unamesh_proto::wire::{ErrorCode, HearFrame, HearRequest};
use unamesh_tests::doubles::ear_double::EarScript;
use unamesh_tests::doubles::talk::{hush, talk};
use unamesh_tests::impair::CABLE;

#[tokio::test]
async fn what_was_said_is_heard_to_the_sample() {
    let home = Home::new(EarScript::default()).await;
    let client = home.client(CABLE, 1).await;
    let sound = [talk(700, 120.0), hush(100), talk(500, 120.0)].concat();
    for local in [true, false] {
        let mut mouth = match local {
            true => home.local(hear(1)),
            false => home.open(&client, hear(1)).await,
        };
        // Some before it was accepted, on the stream; the rest as from a microphone.
        mouth.say(&sound[..6400]);
        mouth.accepted().await;
        mouth.say(&sound[6400..]);
        mouth.end();
        let transcript = mouth.last().await.unwrap();
        assert_eq!(transcript.text, mouth.whole());
        assert_eq!(transcript.frames, 65);
        assert_eq!(transcript.language, "en");
        assert_eq!(transcript.confidence, Some(1.0));
        assert_eq!(transcript.words[0].end_ms, 1300);
        // Over QUIC the end may overtake a datagram.
        assert!(!local || mouth.missing == 0);
        home.idle().await;
    }
    let seen = home.ear.seen();
    assert_eq!((seen.asked, seen.finished, seen.dropped), (2, 2, 0));
    let call = &home.ear.calls()[0];
    assert_eq!(
        (call.model.as_str(), call.language.as_str()),
        ("ear-1", "en")
    );
    // What it took is in the catalog, as the time to the first token.
    assert!(home.server.registry.catalog().models[0].stats.samples > 0);
    home.server.shutdown().await;
}

#[tokio::test]
async fn nothing_said_is_an_empty_utterance() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!((transcript.text, transcript.frames), (mouth.whole(), 0));
    home.server.shutdown().await;
}

#[tokio::test]
async fn frames_come_in_any_order_and_the_engine_hears_them_in_one() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    // Kept from the link, which gets them otherwise.
    let mut quiet = home.local(hear(2));
    quiet.say(&talk(1000, 150.0));
    for frame in (0..50).step_by(2).chain((1..50).step_by(2).rev()) {
        mouth.link.sound(frame, quiet.sent.frame(frame).unwrap());
        mouth.link.sound(frame, quiet.sent.frame(frame).unwrap());
    }
    mouth.link.end(50);
    assert_eq!(mouth.last().await.unwrap().text, quiet.whole());
    drop(quiet);
    home.idle().await;
    home.server.shutdown().await;
}

#[tokio::test]
async fn what_is_lost_is_asked_for_and_waited_for() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    // Both copies of 10 and 11 are lost, and the tail.
    mouth.lose = |frame| matches!(frame, 10..=13 | 28..);
    mouth.say(&talk(600, 110.0));
    let HearFrame::Missing(missing) = mouth.until(|f| matches!(f, HearFrame::Missing(_))).await
    else {
        unreachable!()
    };
    assert_eq!((missing.from, missing.to), (10, 12));
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    assert_eq!(mouth.missing, 2, "the tail comes by itself");
    assert_eq!(home.ear.seen().asked, 1);
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_repairs_nothing_gets_an_error() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.say(&talk(100, 110.0));
    mouth.link.end(7);
    let missing = |f: &HearFrame| matches!(f, HearFrame::Missing(_));
    mouth.deaf = true;
    mouth.until(missing).await;
    let error = mouth.last().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Protocol);
    assert!(error.message.contains("frame 5"), "{error}");
    home.idle().await;
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_file_at_once_is_transcribed_in_one_call() {
    let home = Home::new(EarScript::default()).await;
    let client = home.client(CABLE, 1).await;
    let request = HearRequest {
        partials: false,
        ..hear(1)
    };
    let mut mouth = home.open(&client, request).await;
    let sentence = [talk(900, 140.0), hush(400)].concat();
    (0..20).for_each(|_| mouth.say(&sentence));
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!((transcript.text, transcript.frames), (mouth.whole(), 1300));
    assert_eq!(home.ear.seen().asked, 1);
    assert_eq!(mouth.missing, 0);
    home.server.shutdown().await;
}

#[tokio::test]
async fn ten_minutes_are_heard_to_the_sample() {
    const TEN_MINUTES: u32 = 30_000;
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(HearRequest {
        partials: false,
        ..hear(1)
    });
    mouth.say(&talk(1000, 120.0));
    let second: Vec<Vec<u8>> = (0..mouth.sent.frames())
        .map(|n| mouth.sent.frame(n).unwrap().to_vec())
        .collect();
    for opus in second.iter().cycle() {
        let seq = mouth.sent.push(opus).unwrap();
        mouth.link.sound(seq, opus);
        if seq + 1 == TEN_MINUTES {
            break;
        }
    }
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!(transcript.frames, TEN_MINUTES);
    assert_eq!(transcript.text, mouth.whole());
    home.idle().await;
    home.server.shutdown().await;
}
