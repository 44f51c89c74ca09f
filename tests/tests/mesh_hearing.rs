//! Hearing over real agents and QUIC, with doubles for engines: what becomes of an utterance when
//! the agent that listens is killed or unplugged in its middle. A double's transcript tells of
//! every sample that it was given.

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
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use unamesh_agent::engine::Engine;
use unamesh_client::audio::opus::Profile;
use unamesh_client::speech::{Hear, HearEvent, Hearing};
use unamesh_proto::timeouts::AUDIO_FRAME;
use unamesh_tests::doubles::EarDouble;
use unamesh_tests::doubles::ear_double::EarScript;
use unamesh_tests::doubles::talk::{hush, talk};

/// Between the utterance's end and the transcript: a loss may come then too.
const RESIDUE: Duration = Duration::from_millis(150);

/// What befalls an agent.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Unplugged,
}
use Fault::{Killed, Unplugged};

/// The agents that fail, each at a frame of the utterance.
type Faults<'a> = &'a [(usize, usize, Fault)];

#[derive(Debug, Default)]
struct Told {
    text: String,
    by: Option<unamesh_proto::NodeId>,
    changes: usize,
}

impl Told {
    /// True if that was the last.
    fn take(&mut self, event: Option<HearEvent>) -> bool {
        match event.expect("a last event") {
            HearEvent::PeerChanged { .. } => self.changes += 1,
            HearEvent::Final { text, peer, .. } => {
                (self.text, self.by) = (text, Some(peer.node));
                return true;
            }
            HearEvent::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
        false
    }
}

/// A pause in it, so that a guess is made and given up.
fn utterance() -> Vec<i16> {
    [hush(100), talk(500, 120.0), hush(240), talk(460, 150.0)].concat()
}

async fn ears() -> (Vec<EarDouble>, Agents) {
    let script = EarScript {
        residue: RESIDUE,
        ..EarScript::default()
    };
    let ears = ["first", "second", "third"].map(|name| EarDouble::new(name, script.clone()));
    let engine = |ear: &EarDouble| Arc::new(ear.clone()) as Arc<dyn Engine>;
    let agents = Agents::start(ears.iter().map(engine).collect()).await;
    (ears.into(), agents)
}

/// Says the utterance as one speaks; `at` is told the frames that were said.
async fn transcribe(hearing: &mut Hearing, mut at: impl FnMut(usize)) -> Told {
    let (mut told, mut ticks) = (Told::default(), interval(AUDIO_FRAME));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for (n, frame) in utterance().chunks(Profile::Up.frame()).enumerate() {
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => break,
                event = hearing.next() => assert!(!told.take(event), "before the end"),
            }
        }
        at(n);
        hearing.push(frame);
    }
    at(usize::MAX);
    hearing.end();
    while !told.take(timeout(PATIENCE, hearing.next()).await.expect("in time")) {}
    told
}

/// Among three that listen; who was asked, and what was told.
async fn with(faults: Faults<'_>) -> (Vec<u64>, Told) {
    let (ears, mut agents) = ears().await;
    let mut hearing = agents.client.transcribe(Hear {
        partials: true,
        ..Hear::default()
    });
    let told = transcribe(&mut hearing, |frame| {
        for (agent, _, fault) in faults.iter().filter(|(_, at, _)| *at == frame) {
            match fault {
                Killed => agents.kill(*agent),
                Unplugged => agents.paths[*agent].cut(),
            }
        }
    })
    .await;
    drop(hearing);
    agents.shutdown().await;
    (ears.iter().map(|ear| ear.seen().asked).collect(), told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_loss_of_a_listener_changes_the_transcript() {
    let (asked, undisturbed) = with(&[]).await;
    assert!(asked[0] > 0 && asked[1..] == [0, 0], "{asked:?}");
    assert_eq!(undisturbed.changes, 0);
    let cases: [Faults<'_>; 6] = [
        &[(0, 12, Killed)],
        &[(0, 20, Unplugged)],
        &[(0, 40, Unplugged)],
        &[(0, 55, Killed)],
        // While the engine works on the whole.
        &[(0, usize::MAX, Killed)],
        // Whoever stands in, too.
        &[(0, 15, Killed), (1, 48, Unplugged)],
    ];
    for faults in cases {
        let (asked, told) = with(faults).await;
        println!("{faults:?}: {} changes, asked {asked:?}", told.changes);
        assert_eq!(told.text, undisturbed.text, "{faults:?}");
        // Who had told nothing yet when it was lost is no change to the caller.
        assert!(told.changes <= faults.len(), "{faults:?}: {told:?}");
        assert!(asked[faults.len()] > 0, "{faults:?}: {asked:?}");
    }
}
