//! Texts that are spoken, over doubles and on a paused clock: what is heard, whatever happens to
//! who speaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test ends with its runtime, and every task with it"
)]

mod speech_support;

use futures_util::{FutureExt, StreamExt};
use rand::{Rng, SeedableRng};
use speech_support::voices::{CHAR, sound_of};
use speech_support::{Agent, Home};
use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::client::ClientError;
use unamesh_client::speech::{Say, SayEvent, Speech};
use unamesh_proto::speech::speak::PACKET;

/// Nine seconds.
const TEXT: &str = "One sentence of some length and more. Two is short. Three goes on for a while, \
                    and then it ends. Four is the last of all these that there are, and the end.";

/// What a listener heard.
#[derive(Default)]
struct Heard {
    sound: Vec<f32>,
    /// Times and lengths of the silence that was not spoken.
    silence: Vec<(Instant, Duration)>,
    changes: Vec<(bool, Duration)>,
    marks: Vec<(u32, u32, u64)>,
    end: Option<Result<u64, ClientError>>,
}

impl Heard {
    fn take(&mut self, event: SayEvent) {
        match event {
            SayEvent::Pcm(pcm) => {
                assert!((1..=PACKET as usize).contains(&pcm.len()));
                let samples = pcm.iter().map(|s| f32::from(*s) / 32768.0);
                self.sound.extend(samples);
            }
            SayEvent::PeerChanged {
                same_voice, gap, ..
            } => self.changes.push((same_voice, gap)),
            SayEvent::Mark { from, to, at } => self.marks.push((from, to, at)),
            SayEvent::Done { samples } => self.end = Some(Ok(samples)),
            SayEvent::Failed(error) => self.end = Some(Err(error)),
            SayEvent::Started { .. } | SayEvent::Progress { .. } => {}
        }
    }

    /// All of `text`, to the sample and in place.
    fn assert_whole(&self, text: &str, what: &str) {
        let reference = sound_of(text);
        assert!(matches!(self.end, Some(Ok(_))), "{what}: {:?}", self.end);
        assert_eq!(self.sound.len(), reference.len(), "{what}: lost or doubled");
        // A click or a wrong place anywhere: each tenth of a second fits its place.
        for (n, (a, b)) in reference
            .chunks(2400)
            .zip(self.sound.chunks(2400))
            .enumerate()
        {
            let noise: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
            let power: f32 = a.iter().map(|a| a * a).sum();
            assert!(noise < 0.2 * power, "{what}: at {} ms", n * 100);
        }
    }
}

/// Listens as a player does, in real time; `at` is told what was played.
async fn play(mut speech: Speech, mut at: impl FnMut(u64)) -> Heard {
    let mut heard = Heard::default();
    let mut due = Instant::now();
    loop {
        tokio::time::sleep_until(due).await;
        at(speech.played());
        // What is there in time is no silence, however late the test itself is.
        let event = match speech.next().now_or_never() {
            Some(event) => event,
            None => {
                let asked = Instant::now();
                let mut event = speech.next().await;
                while let Some(other) = event.take_if(|e| !matches!(e, SayEvent::Pcm(_))) {
                    heard.take(other);
                    event = speech.next().await;
                }
                let waited = asked.elapsed();
                due += waited;
                if !waited.is_zero() {
                    heard.silence.push((asked, waited));
                }
                event
            }
        };
        let Some(event) = event else { return heard };
        if let SayEvent::Pcm(pcm) = &event {
            due += Duration::from_micros(pcm.len() as u64 * 1000 / 24);
        }
        heard.take(event);
    }
}

fn say(lead: u64) -> Say {
    Say {
        lead: Duration::from_millis(lead),
        voice: "JOE".into(),
        other_voice: false,
        ..Say::new(TEXT)
    }
}

#[tokio::test(start_paused = true)]
async fn a_text_is_heard_to_the_sample_with_its_marks() {
    let home = Home::new(&[Agent::default()]);
    let mut speech = home.client.speak(say(10_000));
    let mut heard = Heard::default();
    while let Some(event) = speech.next().await {
        heard.take(event);
    }
    heard.assert_whole(TEXT, "undisturbed");
    let chars = TEXT.chars().count() as u32;
    assert_eq!(heard.marks.first().unwrap().0, 0);
    assert_eq!(heard.marks.last().unwrap().1, chars);
    for (from, _, at) in &heard.marks {
        assert_eq!(*at, u64::from(*from) * CHAR as u64);
    }
    assert_eq!(speech.spoken_to(), chars);
    assert_eq!(speech.spoken_at(12 * CHAR as u64 + 10), 12, "One sentence");
    let voices = home.client.voices();
    assert_eq!((voices.len(), voices[0].voice.as_str()), (1, "joe"));
    assert_eq!(voices[0].peer.name, "host1");
}

/// With more than a second of sound in hand, whoever dies wherever is not heard.
#[tokio::test(start_paused = true)]
async fn a_lead_hides_every_failure() {
    let one = |seed: u64| async move {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let home = Home::new(&[Agent::default(), Agent::default()]);
        let strike = random.random_range(20_000..130_000);
        let frozen = seed.is_multiple_of(2);
        let fate = home.fates[0].clone();
        let heard = play(home.client.speak(say(1500)), move |played| {
            if played >= strike {
                match frozen {
                    true => fate.freeze(),
                    false => fate.lose(),
                }
            }
        })
        .await;
        let what = format!("seed {seed}, struck at {strike}, frozen {frozen}");
        heard.assert_whole(TEXT, &what);
        assert_eq!(heard.changes.len(), 1, "{what}");
        assert!(heard.changes[0].0, "{what}: another voice");
        // The first is the wait for the first sound.
        assert_eq!(heard.silence.len(), 1, "{what}: {:?}", heard.silence);
    };
    futures_util::future::join_all((1..=8).map(one)).await;
}

/// Without a lead the gap is what it takes to notice and to begin.
#[tokio::test(start_paused = true)]
async fn without_a_lead_the_gap_is_the_backups() {
    let one = |seed: u64| async move {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let live = Agent {
            speed: 1.0,
            ..Agent::default()
        };
        let home = Home::new(&[live, Agent::default()]);
        let strike = random.random_range(20_000..130_000);
        let frozen = seed.is_multiple_of(2);
        let fate = home.fates[0].clone();
        let mut struck = None;
        let heard = play(home.client.speak(say(10_000)), |played| {
            if played >= strike && struck.is_none() {
                struck = Some(Instant::now());
                match frozen {
                    true => fate.freeze(),
                    false => fate.lose(),
                }
            }
        })
        .await;
        let what = format!("seed {seed}, struck at {strike}, frozen {frozen}");
        heard.assert_whole(TEXT, &what);
        let (asked, spoke) = (home.fates[1].asked()[0], home.fates[1].spoke().unwrap());
        let gap = |(at, long): &&(Instant, Duration)| *at + *long > asked;
        let (at, long) = heard.silence.iter().find(gap).expect("a gap");
        // What remains beside the time to notice it and the backup's own to its first sound.
        let over = *at + *long - spoke;
        assert!(over <= Duration::from_millis(30), "{what}: {over:?}");
    };
    futures_util::future::join_all((1..=8).map(one)).await;
}

#[tokio::test(start_paused = true)]
async fn another_voice_speaks_on_only_if_it_may() {
    let agents = [
        Agent::default(),
        Agent {
            voice: "amy",
            ..Agent::default()
        },
    ];
    for other_voice in [false, true] {
        let home = Home::new(&agents);
        let fate = home.fates[0].clone();
        let say = Say {
            other_voice,
            ..say(500)
        };
        let heard = play(home.client.speak(say), move |played| {
            if played >= 40_000 {
                fate.lose();
            }
        })
        .await;
        match heard.end {
            Some(Ok(_)) => assert_eq!(heard.changes.first().map(|(same, _)| *same), Some(false)),
            Some(Err(ClientError::NoVoice { voice, near })) => {
                assert!(!other_voice && voice == "joe", "{voice}: {near:?}");
                assert!(heard.sound.len() > 40_000, "what was there is heard");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(heard.changes.len(), usize::from(other_voice));
    }
}

#[tokio::test(start_paused = true)]
async fn barge_in_is_silent_at_once_and_reaches_the_engine() {
    let home = Home::new(&[Agent::default()]);
    let mut speech = home.client.speak(say(5000));
    while speech.played() < 24_000 {
        speech.next().await.unwrap();
    }
    assert_eq!(home.fates[0].running(), 1);
    speech.cancel();
    let last = speech.next().await;
    assert!(
        matches!(last, Some(SayEvent::Failed(ClientError::Cancelled))),
        "{last:?}"
    );
    assert!(speech.next().await.is_none());
    // At the pace that is usual: the chunk's own is not known yet.
    assert_eq!(speech.spoken_to(), 15, "One sentence of");
    while home.fates[0].running() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_spoken_is_told_at_once() {
    let home = Home::new(&[Agent::default()]);
    let end = |say: Say| {
        let mut speech = home.client.speak(say);
        async move {
            match speech.next().await {
                Some(SayEvent::Failed(error)) => error,
                other => panic!("{other:?}"),
            }
        }
    };
    let long = end(Say::new("x".repeat(40_000))).await;
    assert!(matches!(long, ClientError::Invalid { field: Some(f), .. } if f == "input"));
    let unknown = Say {
        model: "kokoro".into(),
        ..Say::new("x")
    };
    match end(unknown).await {
        ClientError::UnknownModel { model, near } => {
            assert_eq!((model.as_str(), near[0].0.as_str()), ("kokoro", "piper"));
        }
        other => panic!("{other:?}"),
    }
    let nobody = Home::new(&[]).client.speak(Say::new("x")).next().await;
    assert!(matches!(
        nobody,
        Some(SayEvent::Failed(ClientError::NoPeer { .. }))
    ));
    let voice = Say {
        voice: "jo".into(),
        other_voice: false,
        ..Say::new("x")
    };
    let error = end(voice).await.to_string();
    assert_eq!(error, "no peer has the voice \"jo\"; near: joe (on host1)");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_hears_what_is_there_and_knows_what_was_said() {
    let home = Home::new(&[Agent::default()]);
    let say = say(5000);
    let text = say.text.clone();
    let mut speech = home.client.speak(say);
    while speech.played() < 24_000 {
        speech.next().await.unwrap();
    }
    // The lead comes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    home.client.leave();
    let delivered = loop {
        match speech.next().await.unwrap() {
            SayEvent::Failed(ClientError::Left {
                delivered,
                tokens: 0,
            }) => break delivered,
            SayEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    };
    // The sound that had come was not dropped.
    assert!(speech.played() >= 3 * 24_000, "{}", speech.played());
    assert!(
        !delivered.is_empty() && text.starts_with(&delivered),
        "{delivered:?}"
    );
    assert!(speech.spoken_to() as usize >= delivered.chars().count());
    assert!(speech.next().await.is_none());
    while home.fates[0].running() > 0 {
        tokio::task::yield_now().await;
    }
}

/// The listener's own pauses: nothing of them is the peer's.
#[tokio::test(start_paused = true)]
async fn a_listener_that_pauses_learns_nothing_wrong() {
    let home = Home::new(&[Agent::default(), Agent::default()]);
    let mut speech = home.client.speak(say(2000));
    let mut pcm = 0;
    while let Some(event) = speech.next().await {
        match event {
            SayEvent::Pcm(_) => pcm += 1,
            SayEvent::PeerChanged { reason, .. } => panic!("{reason}"),
            SayEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
        let pause = match pcm {
            n if n > 0 && n % 40 == 0 => Duration::from_secs(3),
            _ => Duration::from_millis(15),
        };
        tokio::time::sleep(pause).await;
    }
    assert_eq!(home.fates[1].asked().len(), 0, "nobody was suspected");
    let learned = serde_json::to_string(&home.client.learned().unwrap()).unwrap();
    let longest = longest_gap(&learned);
    assert!(
        longest < Duration::from_millis(500),
        "{longest:?}: {learned}"
    );
}

/// The longest of what a client has learned of engines.
fn longest_gap(learned: &str) -> Duration {
    let learned: serde_json::Value = serde_json::from_str(learned).unwrap();
    let models = learned["models"].as_array().unwrap();
    assert!(!models.is_empty());
    let first = |m: &serde_json::Value| m["first"].as_array().unwrap().clone();
    let sketches = models.iter().flat_map(|m| {
        let mut all = first(m);
        all.push(m["gaps"].clone());
        all
    });
    let pairs = sketches.flat_map(|s| s.as_array().unwrap().clone());
    let units = pairs.map(|pair| pair[0].as_u64().unwrap());
    Duration::from_micros(units.max().unwrap_or_default() * 100)
}
