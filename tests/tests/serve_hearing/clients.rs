//! Clients that ask for what there is not, send rubbish, vanish; and an agent that leaves.

use crate::serve_support::hearer::Home;
use crate::serve_support::mouth::hear;
use std::time::Duration;
use unamesh_proto::limits::MAX_UTTERANCE_FRAMES;
use unamesh_proto::speech::uplink::Outgoing;
use unamesh_proto::wire::{ErrorCode, HearFrame, HearRequest, Phase};
use unamesh_tests::doubles::ear_double::{EarFailure, EarScript};
use unamesh_tests::doubles::talk::{hush, talk};
use unamesh_tests::impair::CABLE;

#[tokio::test]
async fn what_is_wrong_is_refused_before_anything_is_done() {
    let home = Home::new(EarScript::default()).await;
    let unknown = HearRequest {
        model: "no such".to_owned(),
        ..hear(1)
    };
    let error = home.refused(unknown);
    assert_eq!(error.code, ErrorCode::UnknownModel);
    assert!(error.message.contains("ear-1"), "{error}");
    let long = HearRequest {
        prompt: "x".repeat(5000),
        ..hear(1)
    };
    let error = home.refused(long);
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::Invalid, Some("prompt"))
    );
    let client = home.client(CABLE, 1).await;
    let mut mouth = home
        .open(
            &client,
            HearRequest {
                engine: 7,
                ..hear(1)
            },
        )
        .await;
    assert_eq!(
        mouth.last().await.unwrap_err().code,
        ErrorCode::UnknownModel
    );
    home.server.service.drain(Duration::from_secs(5));
    assert_eq!(home.refused(hear(1)).code, ErrorCode::Draining);
    home.server.shutdown().await;
}

#[tokio::test]
async fn hostile_sound_is_a_typed_error_and_hostile_datagrams_are_dropped() {
    let home = Home::new(EarScript::default()).await;
    let mut good = home.local(hear(9));
    good.say(&talk(200, 120.0));
    let sent = std::mem::replace(&mut good.sent, Outgoing::new(0));
    drop(good);
    let frame = |n| sent.frame(n).unwrap();
    let client = home.client(CABLE, 1).await;
    for (seq, opus, code) in [
        (0, &b""[..], ErrorCode::Protocol),
        (0, &[0; 501], ErrorCode::Protocol),
        (5000, frame(0), ErrorCode::Protocol),
        (MAX_UTTERANCE_FRAMES, frame(0), ErrorCode::Limit),
        // Of 60 ms, and none at all.
        (0, &[0xff, 0x03, 1, 2, 3], ErrorCode::Invalid),
    ] {
        let mut mouth = home.open(&client, hear(1)).await;
        mouth.link.sound(seq, opus);
        let error = mouth.last().await.unwrap_err();
        assert_eq!(
            error.code,
            code,
            "frame {seq} of {} bytes: {error}",
            opus.len()
        );
        home.idle().await;
    }
    for (frames, end) in [(3, 2), (0, MAX_UTTERANCE_FRAMES + 1)] {
        let mut mouth = home.open(&client, hear(1)).await;
        (0..frames).for_each(|n| mouth.link.sound(n, frame(n)));
        mouth.link.end(end);
        assert_eq!(mouth.last().await.unwrap_err().code, ErrorCode::Protocol);
    }
    // Rubbish between good datagrams, and datagrams of utterances that nobody hears.
    let mut mouth = home.open(&client, hear(2)).await;
    mouth.accepted().await;
    let mut other = Outgoing::new(77);
    other.push(frame(0)).unwrap();
    let mut stray = Vec::new();
    other.datagram(0, &mut stray);
    for part in talk(400, 120.0).chunks(320) {
        mouth.say(part);
        for rubbish in [
            &b"\x01"[..],
            b"\x01\x02\0\0\0\xff\xff\xff\xff\x02\0\x01\0x",
            b"",
            &stray,
        ] {
            mouth.link.live(rubbish);
        }
    }
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    home.idle().await;
    home.server.shutdown().await;
}

#[tokio::test]
async fn an_utterance_has_an_end() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(HearRequest {
        vad_ms: 300,
        ..hear(1)
    });
    mouth.say(&hush(20));
    let frame = mouth.sent.frame(0).unwrap().to_vec();
    for seq in 1..MAX_UTTERANCE_FRAMES {
        mouth.link.sound(seq, &frame);
    }
    mouth.accepted().await;
    mouth.link.sound(MAX_UTTERANCE_FRAMES, &frame);
    let error = mouth.last().await.unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::Limit, Some("seq"))
    );
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_vanishes_takes_the_engine_s_work_with_it() {
    let home = Home::new(EarScript::default()).await;
    home.ear
        .change(|script| script.fail = Some((1, EarFailure::Hang)));
    let client = home.client(CABLE, 1).await;
    // One wants no more while it talks, one while the engine works, one is cut off.
    for how in 0..3 {
        let mut mouth = home.open(&client, hear(how)).await;
        mouth.say(&talk(300, 120.0));
        mouth.accepted().await;
        home.ear.until(|seen| seen.running == 1).await;
        if how == 1 {
            mouth.end();
            let working =
                |f: &HearFrame| matches!(f, HearFrame::Progress(p) if p.phase == Phase::Generating);
            mouth.until(working).await;
        }
        if how == 2 {
            client.path.cut();
        }
        drop(mouth);
        home.idle().await;
    }
    assert_eq!(home.ear.seen().dropped, 3);
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_leaving_agent_says_so_and_hears_on() {
    let home = Home::new(EarScript::default()).await;
    let client = home.client(CABLE, 1).await;
    let mut mouth = home.open(&client, hear(1)).await;
    mouth.accepted().await;
    mouth.say(&talk(300, 120.0));
    home.server.service.drain(Duration::from_secs(20));
    mouth.until(|f| matches!(f, HearFrame::Draining(_))).await;
    mouth.say(&talk(300, 120.0));
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    home.idle().await;
    home.server.service.resume();
    let mut mouth = home.open(&client, hear(2)).await;
    mouth.accepted().await;
    home.server.stop.cancel();
    assert_eq!(mouth.last().await.unwrap_err().code, ErrorCode::Draining);
    home.server.shutdown().await;
}
