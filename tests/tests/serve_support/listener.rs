//! A client that listens: the sound of a speak stream as an application hears it.

use super::{Answer, PATIENCE, open};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use unamesh_client::audio::opus::{Decoder, Profile};
use unamesh_client::audio::pcm::to_s16;
use unamesh_proto::speech::speak::{PACKET, SAMPLES_PER_MS};
use unamesh_proto::wire::{
    Appended, Grant, SpeakFrame, SpeakRequest, SpeechAccepted, SpeechDone, SpokenMark, StreamKind,
    WireError,
};

/// Asks for `text` with all the lead that it can take.
pub fn say(text: &str) -> SpeakRequest {
    SpeakRequest {
        model: String::new(),
        engine: u16::MAX,
        voice: String::new(),
        language: String::new(),
        text: text.to_owned(),
        speed_percent: 0,
        extra: String::new(),
        session: 0,
        from: 0,
        grant_ms: u32::MAX,
        one_piece: Appended(false),
    }
}

/// One speak stream and what came of it, checked against the protocol.
pub struct Listener {
    pub stream: Answer,
    pub accepted: Option<SpeechAccepted>,
    pub marks: Vec<SpokenMark>,
    pub packets: u32,
    /// Decoded; a chunk is cut to its length once that is known.
    pub pcm: Vec<i16>,
    /// Where it was granted, in samples.
    pub granted: u64,
    decoder: Option<Decoder>,
    /// Packets of the chunk.
    chunk: u64,
}

/// The end of a stream.
pub type End = Result<SpeechDone, WireError>;

impl Listener {
    pub async fn open(connection: &quinn::Connection, request: &SpeakRequest) -> Self {
        Listener {
            stream: open(connection, StreamKind::Speak, request).await,
            accepted: None,
            marks: Vec::new(),
            packets: 0,
            pcm: Vec::new(),
            granted: u64::from(request.grant_ms) * SAMPLES_PER_MS,
            decoder: None,
            chunk: 0,
        }
    }

    pub async fn grant(&mut self, until_ms: u32) {
        let played_ms = 0;
        self.granted = u64::from(until_ms) * SAMPLES_PER_MS;
        let grant = Grant {
            until_ms,
            played_ms,
        };
        // An agent that has said all reads no more.
        drop(self.stream.writer.write(&grant).await);
    }

    /// The next frame, taken in.
    pub async fn next(&mut self) -> SpeakFrame {
        let next = timeout(PATIENCE, self.stream.reader.next()).await;
        let (kind, body) = next
            .expect("a frame comes in time")
            .expect("the stream is in order")
            .expect("it does not end without a terminal frame");
        let frame = SpeakFrame::decode(kind, &body)
            .expect("it decodes")
            .expect("a known kind");
        match &frame {
            SpeakFrame::Accepted(accepted) => {
                assert!(self.accepted.is_none() && self.marks.is_empty());
                self.accepted = Some(accepted.clone());
            }
            SpeakFrame::Mark(mark) => {
                self.close_chunk(mark.at);
                let next = self.marks.last().map_or(mark.from, |last| last.to);
                assert!(
                    mark.from == next && mark.to > mark.from,
                    "{mark:?} after {next}"
                );
                self.marks.push(*mark);
                let pre_skip = self.accepted.as_ref().unwrap().pre_skip;
                self.decoder = Some(Decoder::new(Profile::Down, pre_skip.into()).unwrap());
                self.chunk = 0;
            }
            SpeakFrame::Sound(sound) => {
                assert_eq!(sound.seq, self.packets);
                let pre_skip = u64::from(self.accepted.as_ref().unwrap().pre_skip);
                let begins = (self.chunk * PACKET).saturating_sub(pre_skip);
                let begins = self.marks.last().unwrap().at + begins;
                assert!(begins < self.granted, "{begins} of {}", self.granted);
                (self.packets, self.chunk) = (self.packets + 1, self.chunk + 1);
                let decoder = self.decoder.as_mut().unwrap();
                let pcm = decoder.decode(&sound.opus).unwrap();
                self.pcm.extend(pcm.iter().copied().map(to_s16));
            }
            SpeakFrame::Done(done) => {
                self.close_chunk(done.samples);
                assert_eq!(done.frames, self.packets);
            }
            SpeakFrame::Progress(_) | SpeakFrame::Draining(_) | SpeakFrame::Error(_) => {}
        }
        frame
    }

    fn close_chunk(&mut self, at: u64) {
        let at = usize::try_from(at).unwrap();
        assert!(self.pcm.len() >= at, "{} samples of {at}", self.pcm.len());
        self.pcm.truncate(at);
        let Some(mark) = self.marks.last() else {
            return;
        };
        let samples = at as u64 - mark.at;
        let pre_skip = u64::from(self.accepted.as_ref().unwrap().pre_skip);
        let needed = match samples {
            0 => 0,
            n => (n + pre_skip).div_ceil(PACKET),
        };
        assert_eq!(self.chunk, needed, "packets of {samples} samples");
    }

    /// Listens to the end.
    pub async fn end(&mut self) -> End {
        loop {
            match self.next().await {
                SpeakFrame::Done(done) => return Ok(done),
                SpeakFrame::Error(error) => return Err(error),
                _ => {}
            }
        }
    }

    /// Listens until so many packets are here.
    pub async fn hear(&mut self, packets: u32) {
        while self.packets < packets {
            if let SpeakFrame::Error(error) = self.next().await {
                panic!("{error}");
            }
        }
    }

    /// Listens until nothing but progress has come for `quiet`.
    pub async fn hear_all(&mut self, quiet: Duration) {
        let mut news = Instant::now();
        while news.elapsed() < quiet {
            if !matches!(self.next().await, SpeakFrame::Progress(_)) {
                news = Instant::now();
            }
        }
    }
}

/// How far `heard` is from `said`, both of 24 kHz: the signal-to-noise ratio in dB, and the
/// shift in samples at which they are most alike.
pub fn compare(said: &[i16], heard: &[i16]) -> (f64, i32) {
    let at = |signal: &[i16], n: i64| {
        let sample = usize::try_from(n).ok().and_then(|n| signal.get(n));
        f64::from(sample.copied().unwrap_or(0))
    };
    let length = i64::try_from(said.len()).unwrap();
    let alike = |shift: i32| -> f64 {
        (0..length)
            .map(|n| at(said, n) * at(heard, n + i64::from(shift)))
            .sum()
    };
    let best = (-48..=48)
        .max_by(|a, b| alike(*a).total_cmp(&alike(*b)))
        .unwrap();
    let power = |value: f64| value * value;
    let signal: f64 = (0..length).map(|n| power(at(said, n))).sum();
    let noise: f64 = (0..length).map(|n| power(at(said, n) - at(heard, n))).sum();
    (10.0 * (signal / noise.max(1.0)).log10(), best)
}
