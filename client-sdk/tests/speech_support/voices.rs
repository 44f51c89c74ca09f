//! An agent that speaks.

use super::{Agent, Fate, Running, lost};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use unamesh_client::audio::opus::{Encoder, Profile};
use unamesh_client::transport::{LinkError, SpeakLink};
use unamesh_proto::speech::speak::{PACKET, SAMPLES_PER_MS};
use unamesh_proto::timeouts::PROGRESS_EVERY;
use unamesh_proto::wire::{
    Grant, Phase, Progress, Sound, SpeakFrame, SpeakRequest, SpeechAccepted, SpeechDone, SpokenMark,
};

/// Samples of a character.
pub const CHAR: usize = 1200;
/// Characters of the longest text.
const MOST: usize = 200;

/// All that can be said: tones that change their course, so that no stretch is like another.
static ALL: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut phase = [0.0f64; 4];
    let sample = |n: usize| {
        let t = n as f64 / 24_000.0;
        let loud = 0.6 + 0.4 * (t * 9.0).sin() * (t * 2.3).cos();
        let mut sum = 0.0;
        for (k, phase) in (1..).zip(&mut phase) {
            let k = f64::from(k);
            let f = k * (140.0 + 50.0 * (t * (1.1 + 0.3 * k)).sin() + 20.0 * (t * 5.3 * k).cos());
            *phase += f / 24_000.0;
            sum += (phase.fract() * std::f64::consts::TAU).sin() / k;
        }
        (0.15 * loud * sum) as f32
    };
    (0..MOST * CHAR).map(sample).collect()
});

/// What the whole of `text` sounds like.
pub fn sound_of(text: &str) -> &'static [f32] {
    &ALL[..text.chars().count() * CHAR]
}

type Frames = mpsc::UnboundedSender<Result<SpeakFrame, LinkError>>;

pub struct Link {
    frames: mpsc::UnboundedReceiver<Result<SpeakFrame, LinkError>>,
    granted: watch::Sender<u32>,
}

impl Link {
    pub fn new(agent: Agent, fate: Arc<Fate>, request: Arc<SpeakRequest>) -> Self {
        let (tx, frames) = mpsc::unbounded_channel();
        let (granted, grants) = watch::channel(request.grant_ms);
        tokio::spawn(async move {
            let _running = Running::new(&fate);
            let speaker = Speaker {
                agent,
                fate: fate.clone(),
                frames: tx.clone(),
                grants,
            };
            tokio::select! {
                () = speaker.speak(&request) => {}
                () = lost(&fate) => drop(tx.send(Err(LinkError::Lost("it is gone".into())))),
                () = tx.closed() => {}
            }
        });
        Link { frames, granted }
    }
}

impl SpeakLink for Link {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>> {
        self.frames.poll_recv(cx)
    }

    fn grant(&mut self, grant: Grant) {
        self.granted.send_replace(grant.until_ms);
    }
}

struct Speaker {
    agent: Agent,
    fate: Arc<Fate>,
    frames: Frames,
    grants: watch::Receiver<u32>,
}

impl Speaker {
    async fn speak(mut self, request: &SpeakRequest) {
        let mut encoder = Encoder::new(Profile::Down).unwrap();
        let pre_skip = encoder.pre_skip() as u16;
        let same = request.voice.is_empty() || request.voice.eq_ignore_ascii_case(self.agent.voice);
        self.send(SpeakFrame::Accepted(SpeechAccepted {
            engine: 0,
            voice: self.agent.voice.into(),
            same_voice: same,
            pre_skip,
        }));
        let (mut at, mut seq) = (0, 0);
        for (from, to) in chunks(&request.text) {
            if from < request.from {
                continue;
            }
            self.send(SpeakFrame::Mark(SpokenMark { from, to, at }));
            self.wait(self.agent.first).await;
            let sound = &ALL[from as usize * CHAR..to as usize * CHAR];
            let mut packets = Vec::new();
            encoder.push(sound, |p| packets.push(p.to_vec())).unwrap();
            encoder.finish(|p| packets.push(p.to_vec())).unwrap();
            let began = Instant::now();
            for (n, opus) in (0u32..).zip(packets) {
                let pace = Duration::from_millis(20).div_f64(self.agent.speed) * n;
                self.wait_until(began + pace).await;
                let position = at + (u64::from(n) * PACKET).saturating_sub(pre_skip.into());
                self.granted(position).await;
                self.fate.speaks();
                self.send(SpeakFrame::Sound(Sound { seq, opus }));
                seq += 1;
            }
            at += sound.len() as u64;
        }
        let (frames, samples) = (seq, at);
        self.send(SpeakFrame::Done(SpeechDone { frames, samples }));
        std::future::pending().await
    }

    fn send(&self, frame: SpeakFrame) {
        if !self.fate.is_frozen() {
            // Nobody listens any more, perhaps.
            let _ = self.frames.send(Ok(frame));
        }
    }

    fn progress(&self) {
        let (phase, done, total) = (Phase::Generating, 0, 0);
        self.send(SpeakFrame::Progress(Progress { phase, done, total }));
    }

    async fn wait(&self, long: Duration) {
        self.wait_until(Instant::now() + long).await;
    }

    async fn wait_until(&self, due: Instant) {
        while tokio::time::timeout(PROGRESS_EVERY, tokio::time::sleep_until(due))
            .await
            .is_err()
        {
            self.progress();
        }
    }

    /// Until a packet that begins there may be sent.
    async fn granted(&mut self, position: u64) {
        let mut grants = self.grants.clone();
        loop {
            let may = grants.wait_for(|until| position < u64::from(*until) * SAMPLES_PER_MS);
            match tokio::time::timeout(PROGRESS_EVERY, may).await {
                Ok(_) => return,
                Err(_) => self.progress(),
            }
        }
    }
}

/// Each sentence is a chunk.
pub fn chunks(text: &str) -> Vec<(u32, u32)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut chunks, mut from) = (Vec::new(), 0);
    for at in 0..chars.len() {
        let last = at + 1 == chars.len();
        if last || chars[at] == ' ' && at > 0 && chars[at - 1] == '.' {
            chunks.push((from, at as u32 + 1));
            from = at as u32 + 1;
        }
    }
    chunks
}
