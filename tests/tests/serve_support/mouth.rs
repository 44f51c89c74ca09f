//! A client that talks: the sound of an utterance as an application sends it, over any link.

use super::PATIENCE;
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
use unamesh_client::audio::pcm::{from_s16, to_s16};
use unamesh_client::transport::HearLink;
use unamesh_proto::limits::TAIL_FRAMES;
use unamesh_proto::speech::uplink::Outgoing;
use unamesh_proto::timeouts::AUDIO_FRAME;
use unamesh_proto::wire::{HearFrame, HearRequest, Progress, Transcript, WireError};
use unamesh_tests::doubles::ear_double::transcript;

/// Asks for an utterance that the client ends.
pub fn hear(utterance: u32) -> HearRequest {
    HearRequest {
        model: String::new(),
        engine: u16::MAX,
        language: "en".to_owned(),
        prompt: String::new(),
        session: 0,
        utterance,
        partials: true,
        vad_ms: 0,
    }
}

/// One transcribe stream and what came of it.
pub struct Mouth {
    pub link: Box<dyn HearLink>,
    pub sent: Outgoing,
    encoder: Encoder,
    accepted: bool,
    began: Instant,
    /// What was told and when, without progress.
    pub heard: Vec<(Duration, HearFrame)>,
    /// When each frame was said.
    pub said: Vec<Instant>,
    /// Frames that were asked for.
    pub missing: u32,
    pub progress: Vec<Progress>,
    /// The datagrams that are lost, by their newest frame.
    pub lose: fn(u32) -> bool,
    /// Frames that were said more than 10 ms late: the machine is too busy.
    pub slipped: u32,
    /// It answers no question.
    pub deaf: bool,
}

impl Mouth {
    pub fn new(link: Box<dyn HearLink>, utterance: u32) -> Self {
        Mouth {
            link,
            sent: Outgoing::new(utterance),
            encoder: Encoder::new(Profile::Up).unwrap(),
            accepted: false,
            began: Instant::now(),
            heard: Vec::new(),
            said: Vec::new(),
            missing: 0,
            progress: Vec::new(),
            lose: |_| false,
            slipped: 0,
            deaf: false,
        }
    }

    /// Sends `pcm`, as much of it as makes whole frames.
    pub fn say(&mut self, pcm: &[i16]) {
        let pcm: Vec<f32> = pcm.iter().copied().map(from_s16).collect();
        let mut packets = Vec::new();
        self.encoder
            .push(&pcm, |packet| packets.push(packet.to_vec()))
            .unwrap();
        let mut datagram = Vec::new();
        for packet in packets {
            let frame = self.sent.push(&packet).unwrap();
            self.said.push(Instant::now());
            if !self.accepted {
                self.link.sound(frame, &packet);
            } else if !(self.lose)(frame) {
                self.sent.datagram(frame, &mut datagram);
                self.link.live(&datagram);
            }
        }
    }

    /// Says `pcm` as fast as one speaks, and takes in what is told meanwhile.
    pub async fn talk(&mut self, pcm: &[i16]) {
        let mut ticks = interval(AUDIO_FRAME);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for frame in pcm.chunks(Profile::Up.frame()) {
            loop {
                tokio::select! {
                    biased;
                    due = ticks.tick() => {
                        self.slipped += u32::from(due.elapsed() > AUDIO_FRAME / 2);
                        break;
                    }
                    frame = self.next() => assert!(!frame.is_terminal(), "{frame:?}"),
                }
            }
            self.say(frame);
        }
    }

    /// Goes on like that until the last frame, or until `pcm` is said.
    pub async fn talk_on(&mut self, pcm: &[i16]) -> Option<Result<Transcript, WireError>> {
        let mut ticks = interval(AUDIO_FRAME);
        for frame in pcm.chunks(Profile::Up.frame()) {
            loop {
                tokio::select! {
                    biased;
                    _ = ticks.tick() => break,
                    frame = self.next() => match frame {
                        HearFrame::Final(transcript) => return Some(Ok(transcript)),
                        HearFrame::Error(error) => return Some(Err(error)),
                        _ => {}
                    },
                }
            }
            self.say(frame);
        }
        None
    }

    /// The utterance is over.
    pub fn end(&mut self) {
        let frames = self.sent.frames();
        if self.accepted {
            self.resend(frames.saturating_sub(TAIL_FRAMES), frames);
        }
        self.link.end(frames);
    }

    fn resend(&mut self, from: u32, to: u32) {
        for frame in from..to {
            let opus = self.sent.frame(frame).unwrap();
            self.link.sound(frame, opus);
        }
    }

    /// The next frame, taken in. Cancel-safe.
    pub async fn next(&mut self) -> HearFrame {
        let next = timeout(PATIENCE, poll_fn(|cx| self.link.poll_frame(cx))).await;
        let frame = next
            .expect("a frame comes in time")
            .expect("it does not end without a terminal frame")
            .expect("the stream is in order");
        match &frame {
            HearFrame::Accepted(_) => {
                assert!(self.heard.is_empty() && !self.accepted);
                self.accepted = true;
            }
            HearFrame::Missing(missing) => {
                self.missing += missing.to - missing.from;
                if !self.deaf {
                    self.resend(missing.from, missing.to);
                }
            }
            _ => {}
        }
        match &frame {
            HearFrame::Progress(progress) => self.progress.push(*progress),
            other => self.heard.push((self.began.elapsed(), other.clone())),
        }
        frame
    }

    /// Takes in until a frame is `wanted`.
    pub async fn until(&mut self, mut wanted: impl FnMut(&HearFrame) -> bool) -> HearFrame {
        loop {
            let frame = self.next().await;
            if wanted(&frame) {
                return frame;
            }
            assert!(!frame.is_terminal(), "{frame:?}");
        }
    }

    /// Takes in until it was accepted.
    pub async fn accepted(&mut self) {
        self.until(|frame| matches!(frame, HearFrame::Accepted(_)))
            .await;
    }

    /// Takes in what comes while something else happens.
    pub async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                outcome = timeout(PATIENCE, other.as_mut()) => return outcome.expect("in time"),
                frame = self.next() => assert!(!frame.is_terminal(), "{frame:?}"),
            }
        }
    }

    /// Takes in to the end, behind which nothing comes.
    pub async fn last(&mut self) -> Result<Transcript, WireError> {
        let last = self.until(HearFrame::is_terminal).await;
        let more = timeout(PATIENCE, poll_fn(|cx| self.link.poll_frame(cx))).await;
        assert!(more.expect("the end comes in time").is_none());
        match last {
            HearFrame::Final(transcript) => Ok(transcript),
            HearFrame::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// The partial transcripts so far.
    pub fn partials(&self) -> Vec<&str> {
        let frames = self.heard.iter().map(|(_, frame)| frame);
        let text = frames.map(|frame| match frame {
            HearFrame::Partial(partial) => Some(partial.text.as_str()),
            _ => None,
        });
        text.flatten().collect()
    }

    /// What the double makes of the frames `from..to`, if it hears them as they were said.
    pub fn transcript(&self, from: u32, to: u32) -> String {
        let mut decoder = Decoder::new(Profile::Up, 0).unwrap();
        let mut pcm = Vec::new();
        for frame in from..to {
            let sound = decoder.decode(self.sent.frame(frame).unwrap()).unwrap();
            pcm.extend(sound.iter().copied().map(to_s16));
        }
        transcript(&pcm)
    }

    /// Of everything.
    pub fn whole(&self) -> String {
        self.transcript(0, self.sent.frames())
    }
}
