//! Speech over real agents and QUIC, with doubles for engines: what a listener hears when the
//! agent that speaks is killed or unplugged in the middle of a text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::{FutureExt, StreamExt};
use serve_support::peers::{peer, table, transport};
use serve_support::{Mesh, PATIENCE, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_agent::engine::Engine;
use unamesh_agent::serve::ServeConfig;
use unamesh_client::client::MeshClient;
use unamesh_client::speech::{Say, SayEvent, Speech};
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::Role;
use unamesh_tests::doubles::{PathDouble, VoiceDouble, VoiceScript};

/// Seven seconds.
const TEXT: &str = "Well then, dear friend, here is the first of it. This is the second sentence, \
    somewhat longer than others are. And that was all!";
const PER_SECOND: u64 = 24_000;

/// Two agents that speak alike, of which the first is asked first, and a client.
struct Voices {
    doubles: [VoiceDouble; 2],
    servers: [Option<Server>; 2],
    /// The only path to the first.
    path: PathDouble,
    client: MeshClient,
    _table: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
}

impl Voices {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let script = VoiceScript {
            first_delay: Duration::from_millis(100),
            ..VoiceScript::default()
        };
        let doubles = ["first", "second"].map(|name| VoiceDouble::new(name, script.clone()));
        let mut servers = Vec::new();
        for double in &doubles {
            let engines: Vec<Arc<dyn Engine>> = vec![Arc::new(double.clone())];
            let (config, member) = (ServeConfig::default(), mesh.member(Role::Agent));
            servers.push(Server::with(member, engines, config).await);
        }
        let path = PathDouble::to(servers[0].addr).await;
        let near = peer(&servers[0], &[path.addr], Duration::from_millis(1));
        let far = peer(&servers[1], &[servers[1].addr], Duration::from_millis(80));
        let table = watch::Sender::new(table(vec![near, far]));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let transport = transport(&mesh, &table, &tasks, &stop);
        let second = servers.pop();
        Voices {
            doubles,
            servers: [servers.pop(), second],
            path,
            client: MeshClient::over(table.subscribe(), transport),
            _table: table,
            stop,
        }
    }

    fn speak(&self) -> Speech {
        self.client.speak(Say {
            voice: "hum".to_owned(),
            other_voice: false,
            lead: Duration::from_millis(1500),
            ..Say::new(TEXT)
        })
    }

    async fn shutdown(self) {
        self.stop.cancel();
        for server in self.servers.into_iter().flatten() {
            server.shutdown().await;
        }
    }
}

#[derive(Default)]
struct Heard {
    sound: Vec<i16>,
    /// When sound was due and not there, after the first.
    silence: Vec<Duration>,
    changes: Vec<(String, Duration, Duration)>,
}

impl Heard {
    /// To the end. `at` is told the sample that is played.
    async fn all(mut speech: Speech, mut at: impl FnMut(u64)) -> Heard {
        let (mut heard, mut due) = (Heard::default(), Instant::now());
        loop {
            sleep_until(due).await;
            at(speech.played());
            let asked = Instant::now();
            let mut late = false;
            let pcm = loop {
                let event = match speech.next().now_or_never() {
                    Some(event) => event,
                    None => {
                        late = true;
                        timeout(PATIENCE, speech.next())
                            .await
                            .expect("an event in time")
                    }
                };
                match event.expect("a last event") {
                    SayEvent::Pcm(pcm) => break pcm,
                    SayEvent::PeerChanged {
                        reason, gap, lead, ..
                    } => heard.changes.push((reason, gap, lead)),
                    SayEvent::Done { samples } => {
                        assert_eq!(samples, heard.sound.len() as u64);
                        return heard;
                    }
                    SayEvent::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            };
            if late {
                due += asked.elapsed();
                if !heard.sound.is_empty() {
                    heard.silence.push(asked.elapsed());
                }
            }
            due += Duration::from_micros(pcm.len() as u64 * 1000 / 24);
            heard.sound.extend(pcm);
        }
    }

    /// It is `said`, everywhere and to the sample.
    fn assert_is(&self, said: &[i16]) {
        assert_eq!(self.sound.len(), said.len(), "lost or doubled");
        for (n, (a, b)) in said.chunks(2400).zip(self.sound.chunks(2400)).enumerate() {
            let square = |x: i16| f64::from(x) * f64::from(x);
            let noise: f64 = a
                .iter()
                .zip(b)
                .map(|(a, b)| square(a.saturating_sub(*b)))
                .sum();
            let power: f64 = a.iter().map(|a| square(*a)).sum();
            assert!(noise < 0.3 * power, "another sound at {} ms", n * 100);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_heard_as_it_was_said() {
    let voices = Voices::start().await;
    let heard = Heard::all(voices.speak(), |_| {}).await;
    heard.assert_is(&voices.doubles[0].spoken());
    assert!(heard.silence.is_empty(), "{:?}", heard.silence);
    voices.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_hides_an_agent_that_is_unplugged() {
    let voices = Voices::start().await;
    let reference = Heard::all(voices.speak(), |_| {}).await.sound;
    let said = voices.doubles[0].spoken();
    assert_eq!(reference.len(), said.len());
    let heard = Heard::all(voices.speak(), |played| {
        if played > 2 * PER_SECOND {
            voices.path.cut();
        }
    })
    .await;
    println!(
        "unplugged: {:?}, silence {:?}",
        heard.changes, heard.silence
    );
    heard.assert_is(&said);
    assert_eq!(heard.changes.len(), 1, "{:?}", heard.changes);
    assert!(heard.silence.is_empty(), "{:?}", heard.silence);
    voices.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_hides_an_agent_that_is_killed() {
    let mut voices = Voices::start().await;
    let said = {
        let _ = Heard::all(voices.speak(), |_| {}).await;
        voices.doubles[0].spoken()
    };
    let (speech, mut first) = (voices.speak(), voices.servers[0].take());
    let mut killed = None;
    let heard = Heard::all(speech, |played| {
        if played > 3 * PER_SECOND
            && let Some(server) = first.take()
        {
            killed = Some(Box::pin(server.crash()));
            // Its endpoint closes at once.
            let _ = killed.as_mut().map(FutureExt::now_or_never);
        }
    })
    .await;
    println!("killed: {:?}, silence {:?}", heard.changes, heard.silence);
    heard.assert_is(&said);
    assert_eq!(heard.changes.len(), 1, "{:?}", heard.changes);
    assert!(heard.silence.is_empty(), "{:?}", heard.silence);
    if let Some(killed) = killed {
        killed.await;
    }
    voices.shutdown().await;
}
