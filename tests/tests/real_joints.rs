//! Where a voice that was lost is gone on with by another one, by the ear of Whisper: no word lost
//! or said twice.
//!
//! Piper speaks as it comes, each time another draw of melody and pace, over two agents and QUIC
//! to the client; the stream of the first breaks off at a chosen packet, a second before which the
//! ear is. What the ear gets is transcribed and compared with the text, and with what Whisper makes
//! of the undisturbed speech (it mishears that too, now and then).
//!
//! `UNAMESH_JOINTS=60`: every sentence at three places, and not six joints only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::StreamExt;
use serve_support::PATIENCE;
use serve_support::agents::Agents;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use unamesh_agent::engine::hearing::HearCall;
use unamesh_agent::starter::free_port;
use unamesh_client::audio::opus::Profile;
use unamesh_client::client::MeshClient;
use unamesh_client::pool::QuicTransport;
use unamesh_client::speech::{Say, SayEvent};
use unamesh_client::transport::{BoxFuture, LinkError, Open, SpeakLink, Transport};
use unamesh_proto::NodeId;
use unamesh_proto::wire::{Grant, SpeakFrame, SpeakRequest};
use unamesh_tests::cluster::turn;
use unamesh_tests::measure::setting;
use unamesh_tests::real::speech::{SENTENCES, Server, for_hearing, hear, natural_piper, words};

const RATE: usize = 24_000;
/// Samples of a packet.
const PACKET: usize = 480;
/// Sound that the ear has not played when the voice is lost.
const LEAD: usize = RATE;
/// The other voice is heard of within so much of it, by the ear's clock.
const FIRST_SOUND: Duration = Duration::from_millis(400);
/// Where the stream breaks off, in shares of a usual sentence's sound.
const PLACES: [f64; 3] = [0.58, 0.72, 0.86];

/// Breaks the next speech off.
#[derive(Default)]
struct Breaker {
    /// After so many packets, at the signal.
    next: Mutex<Option<usize>>,
    now: Notify,
}

/// The real way, which a [`Breaker`] breaks off.
struct Breaking {
    way: Arc<QuicTransport>,
    breaker: Arc<Breaker>,
}

struct Breakable {
    link: Box<dyn SpeakLink>,
    /// Packets that still come.
    left: usize,
    lost: BoxFuture<()>,
}

impl Transport for Breaking {
    fn open(
        &self,
        _: NodeId,
        _: Open,
    ) -> BoxFuture<Result<Box<dyn unamesh_client::transport::FrameStream>, LinkError>> {
        Box::pin(async { Err(LinkError::Lost("speech alone".to_owned())) })
    }

    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        let opening = self.way.speak(node, request);
        let Some(left) = self.breaker.next.lock().unwrap().take() else {
            return opening;
        };
        let breaker = Arc::clone(&self.breaker);
        Box::pin(async move {
            let link = opening.await?;
            let lost: BoxFuture<()> = Box::pin(async move { breaker.now.notified().await });
            Ok(Box::new(Breakable { link, left, lost }) as Box<dyn SpeakLink>)
        })
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.way.warm(nodes);
    }
}

impl SpeakLink for Breakable {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>> {
        if self.left == 0 {
            let lost = self.lost.as_mut().poll(cx);
            return lost.map(|()| Some(Err(LinkError::Lost("killed".to_owned()))));
        }
        let frame = self.link.poll_frame(cx);
        if let Poll::Ready(Some(Ok(SpeakFrame::Sound(_)))) = &frame {
            self.left -= 1;
        }
        frame
    }

    fn grant(&mut self, grant: Grant) {
        self.link.grant(grant);
    }
}

/// What the ear hears of `text`, and how long the first sound took.
struct Ear {
    sound: Vec<i16>,
    first: Duration,
    changes: usize,
}

/// Hears `text`; the voice is lost a second ahead of the ear, after so many packets. From then on
/// the ear takes a packet in each `pace`, until the other voice goes on.
async fn listen(
    client: &MeshClient,
    text: &str,
    lost: Option<(&Breaker, usize)>,
    pace: Duration,
) -> Ear {
    let mut speech = client.speak(Say {
        one_piece: true,
        ..Say::new(text)
    });
    let begun = Instant::now();
    let mut ear = Ear {
        sound: Vec::new(),
        first: Duration::ZERO,
        changes: 0,
    };
    let mut lost =
        lost.map(|(breaker, packets)| (breaker, (packets * PACKET).saturating_sub(LEAD)));
    let mut due = None;
    loop {
        if let Some((breaker, _)) = lost.take_if(|(_, at)| ear.sound.len() >= *at) {
            breaker.now.notify_one();
            due = Some(begun.max(Instant::now()));
        }
        if let Some(at) = due.filter(|_| ear.changes == 0) {
            sleep_until(at).await;
            due = Some(at + pace);
        }
        match timeout(PATIENCE, speech.next()).await.unwrap().unwrap() {
            SayEvent::Pcm(pcm) => {
                if ear.sound.is_empty() {
                    ear.first = begun.elapsed();
                }
                ear.sound.extend(pcm);
            }
            SayEvent::PeerChanged { .. } => ear.changes += 1,
            SayEvent::Done { .. } => return ear,
            SayEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// How `heard` differs from `said`: words lost, said beside, and altered, in the way that has the
/// fewest of them.
fn differences(said: &[String], heard: &[String]) -> [usize; 3] {
    let total = |d: &[usize; 3]| d.iter().sum::<usize>();
    let mut above: Vec<[usize; 3]> = (0..=heard.len()).map(|n| [0, n, 0]).collect();
    for (n, word) in said.iter().enumerate() {
        let mut row = vec![[n + 1, 0, 0]];
        for (m, other) in heard.iter().enumerate() {
            let [mut lost, mut beside, mut altered] = [above[m + 1], row[m], above[m]];
            lost[0] += 1;
            beside[1] += 1;
            altered[2] += usize::from(word != other);
            let ways = [altered, lost, beside];
            row.push(ways.into_iter().min_by_key(total).unwrap());
        }
        above = row;
    }
    above[heard.len()]
}

#[test]
fn differences_are_counted() {
    let count = |said: &str, heard: &str| differences(&words(said), &words(heard));
    assert_eq!(count("a b c d", "a b c d"), [0, 0, 0]);
    assert_eq!(count("a b c d", "a c d"), [1, 0, 0]);
    assert_eq!(count("a b c d", "a b b c x"), [0, 1, 1]);
}

/// A [`Breaker`] over two agents with one Piper.
async fn agents(engine: Arc<dyn unamesh_agent::engine::Engine>) -> (Arc<Breaker>, Agents) {
    let breaker = Arc::new(Breaker::default());
    let around = |way| {
        let breaker = Arc::clone(&breaker);
        Arc::new(Breaking { way, breaker }) as Arc<dyn Transport>
    };
    let agents = Agents::over(vec![Arc::clone(&engine), engine], around).await;
    (breaker, agents)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_word_is_lost_or_said_twice_at_a_joint() {
    let _turn = turn().await;
    let piper = natural_piper(free_port().unwrap()).await;
    let whisper = Server::Whisper.start().await;
    let (breaker, agents) = agents(piper.engine.clone()).await;
    let transcript = async |sound: &[i16]| {
        let call = HearCall {
            language: "en".to_owned(),
            ..HearCall::default()
        };
        let sound = for_hearing(sound, Profile::Down.rate());
        words(&hear(&*whisper.engine, call, &sound).await.unwrap().text)
    };
    let joints = usize::try_from(setting("UNAMESH_JOINTS", 6)).unwrap();
    let per_sentence = joints.div_ceil(SENTENCES.len()).min(PLACES.len());
    let (mut as_text, mut as_undisturbed) = (0, 0);
    let (mut sum, mut misheard) = ([0; 3], 0);
    for (n, sentence) in SENTENCES.iter().enumerate().take(joints) {
        let usual = listen(&agents.client, sentence, None, Duration::ZERO).await;
        let undisturbed = transcript(&usual.sound).await;
        misheard += usize::from(undisturbed != words(sentence));
        // The slower this machine, the slower the ear: the joint lies where it lies on a quick one.
        let pace =
            Duration::from_millis(20).mul_f64((usual.first.div_duration_f64(FIRST_SOUND)).max(1.0));
        for k in 0..per_sentence {
            let place = PLACES[(n + k) % PLACES.len()];
            let packets = (usual.sound.len() as f64 * place) as usize / PACKET;
            *breaker.next.lock().unwrap() = Some(packets);
            let lost = Some((&*breaker, packets));
            let ear = listen(&agents.client, sentence, lost, pace).await;
            assert_eq!(ear.changes, 1, "{sentence}");
            let heard = transcript(&ear.sound).await;
            let [text, before] = [&words(sentence), &undisturbed].map(|w| differences(w, &heard));
            as_text += usize::from(text == [0; 3]);
            as_undisturbed += usize::from(text == [0; 3] || before == [0; 3]);
            if text != [0; 3] && before != [0; 3] {
                println!(
                    "at {place}: {sentence:?} was heard as {heard:?}, undisturbed {undisturbed:?}"
                );
                for (sum, n) in sum.iter_mut().zip(text) {
                    *sum += n;
                }
            }
        }
    }
    let joints = joints.min(SENTENCES.len()) * per_sentence;
    let [lost, doubled, altered] = sum;
    println!(
        "{joints} joints: {as_text} as the text, {as_undisturbed} as that or as undisturbed; of the \
         others {lost} words lost, {doubled} said twice or beside, {altered} altered; {misheard} \
         undisturbed sentences misheard"
    );
    assert_eq!((lost, doubled), (0, 0), "words lost, and said twice");
    // Whisper mishears now and then what no joint is in either.
    assert!(
        altered <= joints.div_ceil(20),
        "{altered} words of {joints} joints are altered"
    );
    agents.shutdown().await;
    piper.stop().await;
    whisper.stop().await;
}
