//! What is heard: every sample, any place of the text, whatever is in it.

use crate::serve_support::listener::{Listener, compare, say};
use crate::serve_support::speaker::{TEXT, serve};
use futures_util::future::poll_fn;
use std::sync::Arc;
use unamesh_proto::limits::MAX_NAME;
use unamesh_proto::speech::speak::SAMPLES_PER_MS;
use unamesh_proto::wire::{ErrorCode, Grant, SpeakFrame, SpeakRequest};
use unamesh_tests::doubles::VoiceScript;

#[tokio::test]
async fn a_text_is_heard_to_the_sample_at_any_rate() {
    for rate in [24_000, 22_050, 48_000, 16_000] {
        let (_mesh, double, server, connection) = serve(VoiceScript {
            rate,
            ..VoiceScript::default()
        })
        .await;
        let mut listener = Listener::open(&connection, &say(TEXT)).await;
        let done = listener.end().await.unwrap();
        let said = double.spoken();
        // A resampled chunk's length is rounded.
        let calls = double.calls();
        assert!(calls.len() >= 4, "{calls:?}");
        assert!(said.len().abs_diff(listener.pcm.len()) <= calls.len());
        assert_eq!(done.samples, listener.pcm.len() as u64);
        let (snr, shift) = compare(&said[..20_000], &listener.pcm);
        println!("{rate} Hz: {snr:.1} dB");
        assert!(
            shift == 0 && snr > 10.0,
            "{rate} Hz: {snr:.1} dB, shift {shift}"
        );
        // Every chunk is where its mark says, the last one included.
        let last = listener.marks[calls.len() - 1];
        let whole = VoiceScript::default().sound(&calls[calls.len() - 1].text, 24_000);
        let heard = &listener.pcm[usize::try_from(last.at).unwrap()..];
        let (snr, shift) = compare(&whole, heard);
        assert!(
            shift == 0 && snr > 10.0,
            "{rate} Hz: {snr:.1} dB, shift {shift}"
        );
        // The rest without words is spoken for.
        let chars = TEXT.chars().count() as u32;
        assert_eq!(listener.marks.last().unwrap().to, chars);
        assert_eq!(double.seen().finished, calls.len() as u64);
        let accepted = listener.accepted.unwrap();
        assert_eq!(
            (accepted.voice.as_str(), accepted.same_voice),
            ("hum", true)
        );
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_text_is_gone_on_with_from_any_piece() {
    let (_mesh, _double, server, connection) = serve(VoiceScript::default()).await;
    let mut whole = Listener::open(&connection, &say(TEXT)).await;
    whole.end().await.unwrap();
    for (at, mark) in whole.marks.iter().enumerate() {
        let from = mark.from;
        let request = SpeakRequest { from, ..say(TEXT) };
        let mut rest = Listener::open(&connection, &request).await;
        rest.end().await.unwrap();
        let ranges = rest.marks.iter().map(|m| (m.from, m.to));
        assert!(ranges.eq(whole.marks[at..].iter().map(|m| (m.from, m.to))));
        // Chunk for chunk the same packets: the encoder is as new for each.
        assert_eq!(rest.pcm, whole.pcm[usize::try_from(mark.at).unwrap()..]);
    }
    let from = whole.marks[1].from + 1;
    let astray = SpeakRequest { from, ..say(TEXT) };
    let error = Listener::open(&connection, &astray)
        .await
        .end()
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::Invalid, Some("from"))
    );
    server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_spoken_is_refused_and_nothing_is_no_words() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let refused = async |request: SpeakRequest| {
        let error = Listener::open(&connection, &request)
            .await
            .end()
            .await
            .unwrap_err();
        (error.code, error.field.unwrap_or_default())
    };
    let voice = SpeakRequest {
        voice: "gone".to_owned(),
        ..say(TEXT)
    };
    let unknown = |field: &str| (ErrorCode::UnknownModel, field.to_owned());
    assert_eq!(refused(voice).await, unknown("voice"));
    let model = SpeakRequest {
        model: "other".to_owned(),
        ..say(TEXT)
    };
    assert_eq!(refused(model).await, unknown("model"));
    let long = SpeakRequest {
        voice: "x".repeat(MAX_NAME + 1),
        ..say(TEXT)
    };
    assert_eq!(
        refused(long).await,
        (ErrorCode::Invalid, "voice".to_owned())
    );
    for text in ["", "🎉 🎉", "— … —\n\n---\n"] {
        let mut listener = Listener::open(&connection, &say(text)).await;
        let done = listener.end().await.unwrap();
        assert_eq!((done.frames, done.samples), (0, 0), "{text:?}");
        let to = listener.marks.last().map_or(0, |mark| mark.to);
        assert_eq!(to as usize, text.chars().count(), "{text:?}");
    }
    assert_eq!(double.seen().asked, 0);
    server.shutdown().await;
}

#[tokio::test]
async fn this_agent_itself_hears_the_same() {
    let (_mesh, double, server, connection) = serve(VoiceScript::default()).await;
    let mut remote = Listener::open(&connection, &say(TEXT)).await;
    remote.end().await.unwrap();
    let request = SpeakRequest {
        grant_ms: 500,
        ..say(TEXT)
    };
    let mut local = server.service.speak_local(Arc::new(request)).unwrap();
    let (mut packets, mut marks) = (0, 0);
    loop {
        match poll_fn(|cx| local.poll_frame(cx)).await.unwrap().unwrap() {
            SpeakFrame::Sound(_) => packets += 1,
            SpeakFrame::Mark(_) => marks += 1,
            SpeakFrame::Done(done) => break assert_eq!(done.frames, packets),
            SpeakFrame::Progress(_) => local.grant(Grant {
                until_ms: u32::MAX,
                played_ms: 0,
            }),
            SpeakFrame::Accepted(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(poll_fn(|cx| local.poll_frame(cx)).await.is_none());
    assert_eq!((packets, marks), (remote.packets, remote.marks.len()));

    double.change(|script| script.speed = Some(1.0));
    let mut local = server.service.speak_local(Arc::new(say(TEXT))).unwrap();
    while !matches!(
        poll_fn(|cx| local.poll_frame(cx)).await,
        Some(Ok(SpeakFrame::Sound(_)))
    ) {}
    drop(local);
    assert_eq!(double.seen().dropped, 1);
    assert_eq!(server.service.active(), 0);
    server.shutdown().await;
}

#[tokio::test]
async fn ten_minutes_of_emoji_code_and_addresses_are_spoken_to_the_end() {
    let (_mesh, double, server, connection) = serve(VoiceScript {
        rate: 8_000,
        ..VoiceScript::default()
    })
    .await;
    let odd = "See https://www.example.org/a?b=c 🎉 or `let x = 3;` \u{1F469}\u{200D}\u{1F52C}!\n\n\
               ```rust\nfn main() {}\n```\n| a | b |\n|---|---|\n| 1 | 2 |\n\n";
    let text = odd.repeat(190);
    let request = SpeakRequest {
        grant_ms: 10_000,
        ..say(&text)
    };
    let mut listener = Listener::open(&connection, &request).await;
    let mut until_ms = 10_000;
    let done = loop {
        match listener.next().await {
            SpeakFrame::Done(done) => break done,
            SpeakFrame::Error(error) => panic!("{error}"),
            // As if it were played at once, up to five seconds before the end.
            _ if (listener.pcm.len() as u64) / SAMPLES_PER_MS + 5_000 > until_ms.into() => {
                until_ms += 5_000;
                listener.grant(until_ms).await;
            }
            _ => {}
        }
    };
    let calls = double.calls();
    println!(
        "{} s of sound in {} chunks",
        done.samples / 24_000,
        calls.len()
    );
    assert!(done.samples > 600 * 24_000, "{} s", done.samples / 24_000);
    let odd = |c: char| matches!(c, '🎉' | '`' | '|' | '\u{200D}');
    assert!(calls.iter().all(|call| !call.text.contains(odd)));
    let said: u64 = calls
        .iter()
        .map(|c| c.text.chars().count() as u64 * 60 * 24)
        .sum();
    assert_eq!(done.samples, said, "nothing is lost");
    assert_eq!(
        listener.marks.last().unwrap().to as usize,
        text.chars().count()
    );
    server.shutdown().await;
}
