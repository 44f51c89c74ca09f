//! Speech over bad paths and good ones, in real time.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod serve_support;

use serve_support::hearer::Home;
use serve_support::mouth::hear;
use std::sync::Arc;
use std::time::Duration;
use unamesh_proto::wire::HearRequest;
use unamesh_tests::doubles::ear_double::EarScript;
use unamesh_tests::doubles::talk::{hush, talk};
use unamesh_tests::impair::LOSSY;

/// 3 % of the packets lost in bursts of two, 25 ms and 5 more or less, in real time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_path_changes_no_word() {
    const TALKERS: u64 = 16;
    let figures = figures::collect();
    let home = Home::new(EarScript::default()).await;
    let home = Arc::new(home);
    let mut talkers = tokio::task::JoinSet::new();
    for seed in 0..TALKERS {
        let home = Arc::clone(&home);
        talkers.spawn(async move {
            let client = home.client(LOSSY, 100 + seed).await;
            let request = HearRequest {
                partials: false,
                ..hear(7)
            };
            let mut mouth = home.open(&client, request).await;
            mouth.accepted().await;
            let pitch = 90.0 + 5.0 * seed as f64;
            let sound = [hush(200), talk(4_600, pitch), hush(200)].concat();
            mouth.talk(&sound).await;
            mouth.end();
            let ended = tokio::time::Instant::now();
            let transcript = mouth.last().await.unwrap();
            assert_eq!(transcript.text, mouth.whole(), "talker {seed}");
            (ended.elapsed(), mouth.missing, mouth.slipped)
        });
    }
    let outcomes = talkers.join_all().await;
    home.idle().await;
    let (frames, disturbed, late) = figures.sum();
    let share = 100.0 * disturbed as f64 / frames as f64;
    let asked: u32 = outcomes.iter().map(|(_, missing, _)| missing).sum();
    let mut waits: Vec<Duration> = outcomes.iter().map(|(wait, ..)| *wait).collect();
    waits.sort_unstable();
    println!(
        "{TALKERS} utterances, {frames} frames: {share:.3} % late or lost in the live order \
         ({disturbed} concealed, of which {late} came later), {asked} asked for again; end to \
         transcript p50 {:?}, max {:?}",
        waits[waits.len() / 2],
        waits[waits.len() - 1],
    );
    let slipped: u32 = outcomes.iter().map(|(.., slipped)| slipped).sum();
    if share > 0.2 && u64::from(slipped) * 100 > frames {
        println!("the machine was too busy to tell: {slipped} frames were said late");
        return;
    }
    assert!(share <= 0.2, "{share} %");
}

/// What the agent's log tells of each utterance that ended: its frames and their fate.
mod figures {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    /// Of each of its utterances: five seconds.
    const FRAMES: u64 = 250;

    #[derive(Clone, Copy, Default)]
    struct Sums {
        frames: u64,
        concealed: u64,
        late: u64,
    }

    pub struct Figures {
        sums: Arc<Mutex<Sums>>,
    }

    /// Collects from now on, of all threads: for one test of this binary.
    pub fn collect() -> Figures {
        let sums = Arc::default();
        let collector = Collector(Arc::clone(&sums));
        tracing::subscriber::set_global_default(collector).unwrap();
        Figures { sums }
    }

    impl Figures {
        /// Frames, those that were concealed, and those of them that came later.
        pub fn sum(&self) -> (u64, u64, u64) {
            let sums = *self.sums.lock().unwrap();
            (sums.frames, sums.concealed, sums.late)
        }
    }

    struct Collector(Arc<Mutex<Sums>>);

    impl Subscriber for Collector {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_event() && metadata.target().ends_with("voice::hearing")
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut this = Sums::default();
            event.record(&mut this);
            // Other tests of this binary end utterances too, of other lengths.
            if this.frames == FRAMES {
                let mut sums = self.0.lock().unwrap();
                sums.frames += this.frames;
                sums.concealed += this.concealed;
                sums.late += this.late;
            }
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    impl Visit for Sums {
        fn record_u64(&mut self, field: &Field, value: u64) {
            match field.name() {
                "frames" => self.frames += value,
                "concealed" => self.concealed += value,
                "late" => self.late += value,
                _ => {}
            }
        }

        fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
    }
}
