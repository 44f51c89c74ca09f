//! An agent that listens.

use super::{Agent, Fate, Running, lost};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use unamesh_client::transport::{HearLink, LinkError};
use unamesh_proto::speech::uplink::Datagram;
use unamesh_proto::timeouts::PROGRESS_EVERY;
use unamesh_proto::wire::{
    HearAccepted, HearFrame, HearRequest, Missing, Partial, Phase, Progress, Transcript,
};

enum Up {
    Sound(u32, Vec<u8>),
    End(u32),
}

pub struct Link {
    frames: mpsc::UnboundedReceiver<Result<HearFrame, LinkError>>,
    up: mpsc::UnboundedSender<Up>,
    utterance: u32,
    loses: u64,
    datagrams: u64,
}

impl Link {
    pub fn new(agent: Agent, fate: Arc<Fate>, request: HearRequest) -> Self {
        let (tx, frames) = mpsc::unbounded_channel();
        let (up, heard) = mpsc::unbounded_channel();
        let (utterance, loses) = (request.utterance, agent.loses);
        tokio::spawn(async move {
            let _running = Running::new(&fate);
            tokio::select! {
                () = listen(&agent, &fate, heard, &tx) => {}
                () = lost(&fate) => drop(tx.send(Err(LinkError::Lost("it is gone".into())))),
                () = tx.closed() => {}
            }
        });
        Link {
            frames,
            up,
            utterance,
            loses,
            datagrams: 0,
        }
    }
}

impl HearLink for Link {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HearFrame, LinkError>>> {
        self.frames.poll_recv(cx)
    }

    fn sound(&mut self, seq: u32, opus: &[u8]) {
        let _ = self.up.send(Up::Sound(seq, opus.to_vec()));
    }

    fn live(&mut self, datagram: &[u8]) {
        self.datagrams += 1;
        let datagram = Datagram::parse(datagram).unwrap();
        assert_eq!(datagram.utterance(), self.utterance);
        // Bursts of three: more than the second copies repair.
        let lost = self.loses > 0 && self.datagrams % (3 * self.loses) < 3;
        for (seq, opus) in datagram.frames().filter(|_| !lost) {
            self.sound(seq, opus);
        }
    }

    fn end(&mut self, frames: u32) {
        let _ = self.up.send(Up::End(frames));
    }
}

/// The transcript of all these frames.
pub fn transcript(frames: &BTreeMap<u32, Vec<u8>>) -> String {
    let digest = frames.values().flatten().fold(0u64, |d, b| {
        d.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*b)
    });
    format!("{} frames, {digest:x}", frames.len())
}

type Frames = mpsc::UnboundedSender<Result<HearFrame, LinkError>>;

async fn listen(agent: &Agent, fate: &Fate, mut up: mpsc::UnboundedReceiver<Up>, tx: &Frames) {
    let send = |frame| {
        if !fate.is_frozen() {
            let _ = tx.send(Ok(frame));
        }
    };
    let digest = String::new();
    send(HearFrame::Accepted(HearAccepted { engine: 1, digest }));
    let (mut heard, mut end) = (BTreeMap::new(), None);
    let mut beat = tokio::time::interval(PROGRESS_EVERY);
    loop {
        let up = tokio::select! {
            up = up.recv() => Ok(up),
            _ = beat.tick() => Err(()),
        };
        match up {
            Ok(Some(Up::Sound(seq, opus))) => {
                let new = heard.insert(seq, opus).is_none();
                if new && heard.len() % 50 == 0 {
                    let text = format!("{} frames", heard.len());
                    send(HearFrame::Partial(Partial { text }));
                }
            }
            Ok(Some(Up::End(frames))) => {
                end = Some(frames);
                for from in (0..frames).filter(|n| !heard.contains_key(n)) {
                    send(HearFrame::Missing(Missing { from, to: from + 1 }));
                }
            }
            Ok(None) => return,
            Err(()) => {
                let (phase, done, total) = (Phase::Prefilling, 0, 0);
                send(HearFrame::Progress(Progress { phase, done, total }));
            }
        }
        if end.is_some_and(|frames| heard.len() == frames as usize) {
            break;
        }
    }
    tokio::time::sleep(agent.first).await;
    let (frames, text) = (heard.len() as u32, transcript(&heard));
    send(HearFrame::Final(Transcript {
        text,
        language: "en".into(),
        words: Vec::new(),
        confidence: None,
        frames,
    }));
    std::future::pending().await
}
