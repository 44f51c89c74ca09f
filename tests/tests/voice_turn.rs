//! Whole turns over QUIC: an agent that hears, one that thinks and one that speaks, engine doubles
//! of set delays behind them, and a user whose voice the agent's detector must find the end of.
//!
//! Prints what a turn takes. Delays are held to the bars in release builds only; run alone:
//! `cargo test --release -p unamesh-tests --test voice_turn -- --nocapture --test-threads 1`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod serve_support;

use futures_util::StreamExt;
use serve_support::peers::{peer, table, transport};
use serve_support::{Mesh, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::engine::Engine;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::client::MeshClient;
use unamesh_client::converse::{Conversation, ConverseConfig, Timeline, TurnEvent};
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::Role;
use unamesh_tests::doubles::talk::{hush, talk};
use unamesh_tests::doubles::{
    EarDouble, EarScript, EngineDouble, Script, VoiceDouble, VoiceScript,
};

const FRAME: Duration = Duration::from_millis(20);
/// Samples (16 kHz) of a frame.
const SAMPLES: usize = 320;
const TURNS: u32 = 40;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the engines take.
#[derive(Clone, Copy, Debug)]
struct Delays {
    residue: Duration,
    ttft: Duration,
    /// Between tokens.
    itl: Duration,
    ttfb: Duration,
}

/// Three agents, their engines, and a conversation with them.
struct Room {
    conversation: Conversation,
    ear: EarDouble,
    voice: VoiceDouble,
    servers: Vec<Server>,
    /// The end of the microphone's next frame, and what will be heard in it.
    mic: Instant,
    sound: Vec<i16>,
    /// What was given out is played by then.
    dry: Instant,
    _table: watch::Sender<Arc<Snapshot>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Room {
    async fn new(delays: Delays) -> Room {
        let ear = EarDouble::new(
            "ear",
            EarScript {
                residue: delays.residue,
                ..EarScript::default()
            },
        );
        let mind = EngineDouble::new(
            "mind",
            Script {
                tokens: 40,
                first_delay: delays.ttft,
                delay: delays.itl,
                ..Script::default()
            },
        );
        let voice = VoiceDouble::new(
            "voice",
            VoiceScript {
                first_delay: delays.ttfb,
                speed: Some(5.0),
                // The double computes all of its sound first: let that be little.
                per_char: ms(15),
                piece: ms(60),
                ..VoiceScript::default()
            },
        );
        let engines: [Arc<dyn Engine>; 3] = [
            Arc::new(ear.clone()),
            Arc::new(mind),
            Arc::new(voice.clone()),
        ];
        let (mesh, mut servers, mut peers) = (Mesh::new(), Vec::new(), Vec::new());
        for engine in engines {
            let member = mesh.member(Role::Agent);
            let server = Server::with(member, vec![engine], ServeConfig::default()).await;
            peers.push(peer(&server, &[server.addr], Duration::ZERO));
            servers.push(server);
        }
        let table = watch::Sender::new(table(peers));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = transport(&mesh, &table, &tasks, &stop);
        let client = MeshClient::over(table.subscribe(), transport);
        let now = Instant::now();
        let config = ConverseConfig {
            warm_up: false,
            ..ConverseConfig::new("double")
        };
        Room {
            conversation: client.converse(config),
            ear,
            voice,
            servers,
            mic: now + FRAME,
            sound: Vec::new(),
            dry: now,
            _table: table,
            tasks,
            stop,
        }
    }

    /// The user speaks in the next frame and on, for so long; when the last sample is.
    fn say(&mut self, length: u32) -> Instant {
        let begin = self.mic - FRAME;
        self.sound = talk(length, 120.0);
        begin + ms(length.into())
    }

    /// Goes on until an event for which `until` holds; the event and its time.
    async fn until(&mut self, until: impl Fn(&TurnEvent) -> bool) -> (Instant, TurnEvent) {
        let found = self.run(Duration::from_secs(20), until).await;
        found.expect("it happens in time")
    }

    async fn run(
        &mut self,
        limit: Duration,
        until: impl Fn(&TurnEvent) -> bool,
    ) -> Option<(Instant, TurnEvent)> {
        let end = Instant::now() + limit;
        loop {
            let event = tokio::select! {
                biased;
                () = sleep_until(self.mic) => {
                    self.frame();
                    continue;
                }
                event = self.conversation.next() => event.expect("it never ends"),
                () = sleep_until(end) => return None,
            };
            let now = Instant::now();
            match &event {
                TurnEvent::Pcm(pcm) => {
                    let length = Duration::from_micros(pcm.len() as u64 * 1000 / 24);
                    self.dry = self.dry.max(now) + length;
                }
                TurnEvent::Failed { stage, error, .. } => panic!("{stage:?}: {error}"),
                _ => {}
            }
            if until(&event) {
                return Some((now, event));
            }
        }
    }

    fn frame(&mut self) {
        self.mic += FRAME;
        let voiced = self.sound.len().min(SAMPLES);
        let mut frame: Vec<i16> = self.sound.drain(..voiced).collect();
        frame.extend(&hush(20)[voiced..]);
        self.conversation.push(&frame);
    }

    async fn shutdown(self) {
        drop(self.conversation);
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        for server in self.servers {
            server.shutdown().await;
        }
    }
}

fn is_sound(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::Pcm(_))
}

fn is_barged_in(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::BargedIn { .. })
}

#[derive(Default)]
struct Figures {
    /// From the user's last sample to the first sound.
    whole: Vec<Duration>,
    /// Of it, to where the recognizer's engine was told that this may be all.
    detection: Vec<Duration>,
    /// Of the rest, what is no engine's.
    own: Vec<Duration>,
    /// From the last sample to each moment of the time line.
    moments: [Vec<Duration>; 4],
}

fn percentile(of: &mut [Duration], percent: usize) -> Duration {
    of.sort();
    of[(of.len() * percent / 100).min(of.len() - 1)]
}

async fn measure(delays: Delays) -> Figures {
    let mut room = Room::new(delays).await;
    let mut figures = Figures::default();
    for turn in 0..TURNS {
        // The answer before has ended, and the last frame's phase is another one.
        room.run(ms(400), |_| false).await;
        let asked = room.ear.seen().whole;
        let (ear, told) = (room.ear.clone(), Instant::now);
        let detected = tokio::spawn(async move {
            ear.until(|seen| seen.whole > asked).await;
            told()
        });
        let last = room.say(600 + turn * 7 % 200);
        let (first, _) = room.until(is_sound).await;
        room.conversation.barge_in();
        let (_, TurnEvent::BargedIn { timeline, .. }) = room.until(is_barged_in).await else {
            unreachable!()
        };
        let detected = timeout(ms(1000), detected).await.unwrap().unwrap();
        // The client's time line begins where the recognizer says that the user ended.
        let shift = (first - last).saturating_sub(timeline.first_audio.unwrap());
        let moments = moments(&timeline).map(|moment| moment + shift);
        for (all, moment) in figures.moments.iter_mut().zip(moments) {
            all.push(moment);
        }
        let [_, first_token, first_piece, _] = moments;
        let clause = first_piece - first_token;
        let engines = delays.residue + delays.ttft + clause + delays.ttfb;
        figures.whole.push(first - last);
        figures.detection.push(detected - last);
        figures.own.push((first - detected).saturating_sub(engines));
    }
    room.shutdown().await;
    figures
}

/// Transcript, first token, first piece to the voice, silence confirmed.
fn moments(line: &Timeline) -> [Duration; 4] {
    let moments = [
        line.transcript,
        line.first_token,
        line.first_piece,
        line.confirmed,
    ];
    moments.map(Option::unwrap)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sound_comes_within_the_bar() {
    for (ttft, ttfb, itl) in [(50, 100, 0), (80, 150, 0), (50, 100, 10)] {
        let delays = Delays {
            residue: ms(60),
            ttft: ms(ttft),
            itl: ms(itl),
            ttfb: ms(ttfb),
        };
        let mut f = measure(delays).await;
        let (p50, p95) = (percentile(&mut f.whole, 50), percentile(&mut f.whole, 95));
        let (own50, own99) = (percentile(&mut f.own, 50), percentile(&mut f.own, 99));
        println!(
            "STT residue 60 / TTFT {ttft} / TTFB {ttfb} ms, a token every {itl} ms, {TURNS} turns: \
             last sample to first sound p50 {p50:.0?}, p95 {p95:.0?}; of it turn detection p50 \
             {:.0?}, p95 {:.0?}; the mesh's own share p50 {own50:.1?}, p99 {own99:.1?}",
            percentile(&mut f.detection, 50),
            percentile(&mut f.detection, 95),
        );
        let names = [
            "transcript",
            "first token",
            "first piece",
            "silence confirmed",
        ];
        for (name, all) in names.iter().zip(&mut f.moments) {
            println!("  {name} p50 {:.0?}", percentile(all, 50));
        }
        if !cfg!(debug_assertions) {
            assert!(own50 <= ms(20) && own99 <= ms(40));
            if (ttft, itl) == (50, 0) {
                assert!(p50 <= ms(450) && p95 <= ms(700));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barge_in_reaches_the_engine() {
    let delays = Delays {
        residue: ms(60),
        ttft: ms(50),
        itl: ms(5),
        ttfb: ms(100),
    };
    let mut room = Room::new(delays).await;
    let (mut left, mut closed, mut by_voice) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..10 {
        room.run(ms(400), |_| false).await;
        // Slow enough that its engine is at work.
        room.voice.change(|script| script.speed = Some(1.2));
        room.say(800);
        room.until(is_sound).await;
        room.run(ms(700), |_| false).await;
        let dropped = room.voice.seen().dropped;
        let (voice, began) = (room.voice.clone(), Instant::now());
        let engine = tokio::spawn(async move {
            voice.until(|seen| seen.dropped > dropped).await;
            Instant::now()
        });
        if turn % 2 == 0 {
            room.conversation.barge_in();
            left.push(room.dry.saturating_duration_since(began));
            room.until(is_barged_in).await;
            let at = timeout(ms(1000), engine).await.unwrap().unwrap();
            closed.push(at - began);
        } else {
            room.say(600);
            let (at, _) = room.until(is_barged_in).await;
            left.push(room.dry.saturating_duration_since(at));
            by_voice.push(at - began);
            timeout(ms(1000), engine).await.unwrap().unwrap();
            // What was said is answered.
            room.until(is_sound).await;
            room.conversation.barge_in();
        }
    }
    let (left, closed) = (percentile(&mut left, 99), percentile(&mut closed, 99));
    println!(
        "barge-in: at most {left:.0?} of sound left to play; the engine's stream closed within \
         {closed:.1?}; from the user's first sample p50 {:.0?}, at most {:.0?}",
        percentile(&mut by_voice, 50),
        percentile(&mut by_voice, 99),
    );
    assert!(left <= ms(60));
    if !cfg!(debug_assertions) {
        assert!(closed <= ms(100));
    }
    room.shutdown().await;
}
