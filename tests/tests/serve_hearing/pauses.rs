//! Who speaks, who falls silent, and what is guessed meanwhile.

use crate::serve_support::hearer::{Home, partial, silence, told};
use crate::serve_support::mouth::hear;
use std::time::Duration;
use unamesh_proto::wire::{HearFrame, HearRequest};
use unamesh_tests::doubles::ear_double::{EarFailure, EarScript};
use unamesh_tests::doubles::talk::{hush, talk};
use unamesh_tests::impair::CABLE;

#[tokio::test]
async fn a_pause_is_guessed_about_and_the_guess_becomes_the_transcript() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    mouth.say(&[hush(300), talk(800, 120.0)].concat());
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    mouth.say(&hush(320));
    mouth.until(silence).await;
    mouth.until(partial).await;
    let guess = mouth.transcript(0, mouth.sent.frames());
    assert_eq!(mouth.partials(), [&guess]);
    // Silence up to the end changes nothing.
    mouth.say(&hush(100));
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!((transcript.text, transcript.frames), (guess, 76));
    let seen = home.ear.seen();
    assert_eq!(
        (seen.asked, seen.whole, seen.finished),
        (1, 1, 1),
        "one call"
    );
    assert_eq!(
        told(&mouth),
        ["accepted", "began", "silence", "partial", "final"]
    );
    let HearFrame::Began(began) = mouth.heard[1].1 else {
        unreachable!()
    };
    // 300 ms are fifteen frames.
    assert!((15..=25).contains(&began.frame), "{}", began.frame);
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_guess_is_dropped_if_speech_goes_on() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    mouth.say(&[hush(100), talk(600, 120.0)].concat());
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    mouth.say(&hush(320));
    mouth.until(partial).await;
    mouth.say(&talk(500, 120.0));
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!(transcript.text, mouth.whole());
    assert_eq!(home.ear.seen().asked, 2);
    // While the engine is still at it, the same.
    home.ear
        .change(|script| script.residue = Duration::from_millis(300));
    let mut mouth = home.local(hear(2));
    mouth.say(&talk(600, 120.0));
    mouth.accepted().await;
    mouth.say(&hush(320));
    mouth.until(silence).await;
    mouth.during(home.ear.until(|seen| seen.whole == 3)).await;
    mouth.say(&talk(500, 120.0));
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    assert_eq!(mouth.partials(), [""; 0], "what was dropped is not told");
    assert_eq!(home.ear.seen().dropped, 1);
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_guess_that_fails_is_none() {
    let home = Home::new(EarScript::default()).await;
    home.ear
        .change(|script| script.fail = Some((0, EarFailure::EndEarly)));
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    mouth.say(&talk(600, 120.0));
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    mouth.say(&hush(300));
    mouth.during(home.ear.until(|seen| seen.asked == 2)).await;
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    home.server.shutdown().await;
}

#[tokio::test]
async fn nobody_guesses_for_a_client_that_hears_of_it_only_at_the_end() {
    let home = Home::new(EarScript::default()).await;
    let request = HearRequest {
        partials: false,
        ..hear(1)
    };
    let mut mouth = home.local(request);
    mouth.say(&talk(600, 120.0));
    mouth.accepted().await;
    mouth.say(&hush(300));
    mouth.until(silence).await;
    mouth.say(&talk(300, 120.0));
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    assert_eq!(home.ear.seen().asked, 1);
    assert!(!home.ear.calls()[0].partials);
    home.server.shutdown().await;
}

#[tokio::test]
async fn the_agent_finds_the_end() {
    let home = Home::new(EarScript::default()).await;
    let client = home.client(CABLE, 1).await;
    let request = HearRequest {
        vad_ms: 300,
        ..hear(3)
    };
    let mut mouth = home.open(&client, request).await;
    mouth.accepted().await;
    // A pause of 120 ms is none; a second of nothing before is left out.
    let sound = [hush(1000), talk(700, 120.0), hush(120), talk(500, 120.0)].concat();
    mouth.talk(&sound).await;
    let spoken = mouth.sent.frames();
    let transcript = mouth.talk_on(&hush(3000)).await.expect("an end").unwrap();
    let frames = transcript.frames;
    let silent = (frames - spoken) * 20;
    println!("ended after {silent} ms of silence");
    assert!((300..=420).contains(&silent), "{silent} ms");
    assert!(frames <= mouth.sent.frames());
    // What was transcribed begins ten frames before the beginning was noticed, and ends where the
    // guess was made: in the pause.
    let began = mouth.heard.iter().find_map(|(_, frame)| match frame {
        HearFrame::Began(began) => Some(began.frame),
        _ => None,
    });
    let from = began.unwrap() - 10;
    assert!((35..50).contains(&from), "{from}");
    let guessed = (spoken..=frames).find(|to| mouth.transcript(from, *to) == transcript.text);
    let guessed = (guessed.expect("the text of what was said") - spoken) * 20;
    assert!((160..=280).contains(&guessed), "{guessed} ms");
    assert_eq!(
        transcript.words[0].start_ms,
        from * 20,
        "times are of the whole utterance"
    );
    assert_eq!(home.ear.seen().asked, 1);
    home.idle().await;
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_quiet_room_is_no_utterance() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(HearRequest {
        vad_ms: 300,
        ..hear(1)
    });
    mouth.say(&hush(5000));
    let progress = |f: &HearFrame| matches!(f, HearFrame::Progress(p) if p.done == 250);
    mouth.until(progress).await;
    assert_eq!(told(&mouth), ["accepted"]);
    assert_eq!(home.ear.seen().asked, 0, "the engine is not bothered");
    // The client's own end counts too, and then all of it is heard.
    mouth.end();
    let transcript = mouth.last().await.unwrap();
    assert_eq!((transcript.text, transcript.frames), (mouth.whole(), 250));
    home.server.shutdown().await;
}

/// Each pause of a long dictation would have all of it transcribed anew.
#[tokio::test]
async fn a_long_utterance_is_transcribed_once() {
    let home = Home::new(EarScript::default()).await;
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    mouth.say(&talk(30_100, 120.0));
    mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    for _ in 0..3 {
        mouth.say(&hush(320));
        mouth.until(silence).await;
        mouth.say(&talk(500, 120.0));
        mouth.until(|f| matches!(f, HearFrame::Began(_))).await;
    }
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    assert_eq!(home.ear.seen().asked, 1);
    home.server.shutdown().await;
}
