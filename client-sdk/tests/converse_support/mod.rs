//! Peers whose engines are doubles with set delays, behind a transport double; and a room with a
//! user, a microphone and a loudspeaker. All of it lives on tokio's paused clock.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
use unamesh_client::client::MeshClient;
use unamesh_client::clock;
use unamesh_client::converse::{Conversation, ConverseConfig, TurnEvent};
use unamesh_client::transport::{
    BoxFuture, FrameStream, HearLink, LeaseLink, LinkError, Open, SpeakLink, Transport,
};
use unamesh_proto::speech::text::Splitter;
use unamesh_proto::speech::uplink::Datagram;
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::wire::{
    Accepted, Advert, Chunk, Done, EngineAdvert, EngineKind, ErrorCode, FinishReason, GenFrame,
    Grant, Hardware, Health, HearAccepted, HearFrame, HearRequest, ModelAdvert, ModelKind,
    NodeState, Partial, PathKind, Phase, Progress, Residency, Role, SignedAdvert, SilenceFor,
    Sound, SpeakFrame, SpeakRequest, SpeechAccepted, SpeechBegan, SpeechDone, SpokenMark, Stats,
    Token, Transcript, Usage, VoiceAdvert, WarmFrame, WarmRequest, Warmed, Warmth, WireError,
};
use unamesh_proto::{GenerationId, NodeId};

pub const FRAME: Duration = Duration::from_millis(20);
/// Samples (24 kHz) of a spoken character: 15 a second.
const PER_CHARACTER: usize = 1600;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the engines take, and what they do wrong.
#[derive(Clone, Debug)]
pub struct Engines {
    pub one_way: Duration,
    /// From the end of the sound to its transcript.
    pub residue: Duration,
    pub ttft: Duration,
    /// Between tokens.
    pub itl: Duration,
    pub ttfb: Duration,
    /// How much faster than the ear the voice is.
    pub speed: u32,
    /// What the user says, utterance by utterance.
    pub heard: Vec<&'static str>,
    /// The answers.
    pub answers: Vec<&'static str>,
    pub deaf: bool,
    pub thoughtless: bool,
    pub hoarse: bool,
    /// Until a model is warm; `None`: the peers know no leases.
    pub load: Option<Duration>,
    /// The first peer's voice dies after so many packets of the first speech.
    pub voice_dies_after: Option<usize>,
}

impl Default for Engines {
    fn default() -> Self {
        Engines {
            one_way: Duration::from_micros(300),
            residue: ms(60),
            ttft: ms(50),
            itl: ms(10),
            ttfb: ms(100),
            speed: 10,
            heard: vec!["What is a plant?"],
            answers: vec!["A plant is a living thing, and it eats light. It grows. That is all."],
            deaf: false,
            thoughtless: false,
            hoarse: false,
            load: None,
            voice_dies_after: None,
        }
    }
}

/// What the peers were asked.
#[derive(Debug, Default)]
pub struct Asked {
    pub prompts: Vec<String>,
    pub spoken: Vec<SpeakRequest>,
    pub hearings: usize,
    pub warmed: Vec<NodeId>,
    /// Leases that were opened, and those that ended.
    pub leases: Vec<(NodeId, WarmRequest)>,
    pub ended: Vec<NodeId>,
    /// Streams that the client dropped before their end, and when.
    pub dropped: Vec<(&'static str, Instant)>,
    heard: usize,
    answered: usize,
}

type Log = Arc<Mutex<Asked>>;

pub struct Doubles {
    engines: Engines,
    pub log: Log,
}

/// Frames that come at their time, and a beat until the engine has something to say.
struct Timed<F> {
    kind: &'static str,
    queue: BTreeMap<(Instant, u64), Result<F, LinkError>>,
    order: u64,
    beat: Option<(Instant, fn() -> F)>,
    sleep: Pin<Box<Sleep>>,
    ended: bool,
    log: Log,
}

impl<F> Timed<F> {
    fn new(kind: &'static str, log: &Log, beat: fn() -> F) -> Self {
        let now = Instant::now();
        Timed {
            kind,
            queue: BTreeMap::new(),
            order: 0,
            beat: Some((now + ms(50), beat)),
            sleep: Box::pin(sleep_until(now)),
            ended: false,
            log: log.clone(),
        }
    }

    fn at(&mut self, at: Instant, frame: F) {
        self.order += 1;
        self.queue.insert((at, self.order), Ok(frame));
    }

    fn lost(&mut self, at: Instant) {
        self.order += 1;
        let error = LinkError::Lost("killed".into());
        self.queue.insert((at, self.order), Err(error));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<F, LinkError>>> {
        loop {
            let first = self.queue.first_key_value().map(|((at, _), _)| *at);
            let beat = self.beat.map(|(at, _)| at);
            let Some(next) = first.into_iter().chain(beat).min() else {
                self.ended = true;
                return Poll::Ready(None);
            };
            if next > Instant::now() {
                self.sleep.as_mut().reset(next);
                if self.sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            if first == Some(next) {
                return Poll::Ready(self.queue.pop_first().map(|(_, frame)| frame));
            }
            if let Some((at, frame)) = &mut self.beat {
                *at += ms(50);
                return Poll::Ready(Some(Ok(frame())));
            }
        }
    }
}

impl<F> Drop for Timed<F> {
    fn drop(&mut self) {
        if !self.ended && !self.queue.is_empty() {
            let dropped = (self.kind, Instant::now());
            if let Ok(mut log) = self.log.lock() {
                log.dropped.push(dropped);
            }
        }
    }
}

fn progress(phase: Phase) -> Progress {
    Progress {
        phase,
        done: 0,
        total: 0,
    }
}

fn refusal() -> WireError {
    // As every peer would.
    WireError::new(ErrorCode::Invalid, "the double refuses")
}

// ----- thinking -----------------------------------------------------------------------------

struct Thinking(Timed<GenFrame>);

impl Thinking {
    fn new(engines: &Engines, log: &Log, prompt: &str) -> Self {
        let mut link = Timed::new("think", log, || {
            GenFrame::Progress(progress(Phase::Prefilling))
        });
        let soon = Instant::now() + 2 * engines.one_way;
        let mut asked = log.lock().unwrap();
        asked.prompts.push(prompt.to_owned());
        if engines.thoughtless {
            link.at(soon, GenFrame::Error(refusal()));
            link.beat = None;
            return Thinking(link);
        }
        let generation = GenerationId([1; 16]);
        link.at(
            soon,
            GenFrame::Accepted(Accepted {
                generation,
                engine: 0,
                digest: "d".into(),
                exact: true,
            }),
        );
        let answer = engines.answers[asked.answered % engines.answers.len()];
        asked.answered += 1;
        let mut at = soon + engines.ttft;
        let words: Vec<&str> = answer.split_inclusive(' ').collect();
        for (index, text) in (0u32..).zip(&words) {
            let chunk = Chunk {
                text: (*text).into(),
                ids: vec![index],
                tokens: 1,
            };
            let extra = String::new();
            link.at(
                at,
                GenFrame::Token(Token {
                    index,
                    chunk,
                    extra,
                }),
            );
            at += engines.itl;
        }
        let frames = words.len() as u32;
        link.at(
            at,
            GenFrame::Done(Done {
                finish: FinishReason::Stop,
                usage: Usage {
                    prompt_tokens: 1,
                    completion_tokens: frames,
                },
                frames,
            }),
        );
        Thinking(link)
    }
}

impl FrameStream for Thinking {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        let frame = self.0.poll(cx);
        if let Poll::Ready(Some(Ok(GenFrame::Token(_) | GenFrame::Done(_)))) = &frame {
            self.0.beat = None;
        }
        frame
    }
}

// ----- speaking -----------------------------------------------------------------------------

struct Speaking(Timed<SpeakFrame>);

impl Speaking {
    fn new(engines: &Engines, log: &Log, node: NodeId, request: &SpeakRequest) -> Self {
        let mut link = Timed::new("speak", log, || {
            SpeakFrame::Progress(progress(Phase::Generating))
        });
        let first = {
            let mut asked = log.lock().unwrap();
            asked.spoken.push(request.clone());
            asked.spoken.len() == 1
        };
        let soon = Instant::now() + 2 * engines.one_way;
        if engines.hoarse {
            link.at(soon, SpeakFrame::Error(refusal()));
            link.beat = None;
            return Speaking(link);
        }
        let mut encoder = Encoder::new(Profile::Down).unwrap();
        let voice = match request.voice.is_empty() {
            true => "anna".to_owned(),
            false => request.voice.clone(),
        };
        link.at(
            soon,
            SpeakFrame::Accepted(SpeechAccepted {
                engine: 2,
                same_voice: voice == "anna",
                voice,
                pre_skip: encoder.pre_skip() as u16,
            }),
        );
        let mut at = soon + engines.ttfb;
        let dies = engines.voice_dies_after.filter(|_| first && node == id(1));
        let (mut seq, mut start) = (0, 0);
        for (from, to) in chunks(&request.text, request.from) {
            let mark = SpokenMark {
                from,
                to,
                at: start,
            };
            link.at(at, SpeakFrame::Mark(mark));
            let samples = PER_CHARACTER * (to - from) as usize;
            let mut packets = Vec::new();
            encoder
                .push(&tone(samples, 24_000.0), |opus| packets.push(opus.to_vec()))
                .unwrap();
            encoder.finish(|opus| packets.push(opus.to_vec())).unwrap();
            for opus in packets {
                if dies == Some(seq as usize) {
                    link.lost(at + ms(5));
                    link.beat = None;
                    return Speaking(link);
                }
                link.at(at, SpeakFrame::Sound(Sound { seq, opus }));
                seq += 1;
                at += FRAME / engines.speed;
            }
            start += samples as u64;
        }
        let done = SpeechDone {
            frames: seq,
            samples: start,
        };
        link.at(at, SpeakFrame::Done(done));
        Speaking(link)
    }
}

impl SpeakLink for Speaking {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>> {
        let frame = self.0.poll(cx);
        if let Poll::Ready(Some(Ok(SpeakFrame::Sound(_)))) = &frame {
            self.0.beat = None;
        }
        frame
    }

    fn grant(&mut self, _: Grant) {}
}

/// The characters of each chunk from `from` on.
fn chunks(text: &str, from: u32) -> Vec<(u32, u32)> {
    let mut splitter = Splitter::new();
    splitter.push(text);
    let all = std::iter::from_fn(|| splitter.finish());
    let ranges = all.map(|c| (c.range.start as u32, c.range.end as u32));
    ranges.filter(|(start, _)| *start >= from).collect()
}

/// A voice, as far as a detector of loudness is concerned.
fn tone(samples: usize, rate: f32) -> Vec<f32> {
    let wave = |n: usize| 0.3 * (n as f32 * 220.0 * std::f32::consts::TAU / rate).sin();
    (0..samples).map(wave).collect()
}

// ----- hearing ------------------------------------------------------------------------------

struct Hearing {
    link: Timed<HearFrame>,
    engines: Engines,
    request: HearRequest,
    frames: BTreeMap<u32, Vec<u8>>,
    next: u32,
    decoder: Decoder,
    run: u32,
    silent: u32,
    began: bool,
    speaks: bool,
    over: bool,
    text: &'static str,
    ready: Instant,
}

impl Hearing {
    fn new(engines: &Engines, log: &Log, request: HearRequest) -> Self {
        log.lock().unwrap().hearings += 1;
        let mut link = Timed::new("hear", log, || {
            HearFrame::Progress(progress(Phase::Prefilling))
        });
        let soon = Instant::now() + 2 * engines.one_way;
        match engines.deaf {
            true => link.beat = None,
            false => link.at(
                soon,
                HearFrame::Accepted(HearAccepted {
                    engine: 1,
                    digest: String::new(),
                }),
            ),
        }
        Hearing {
            link,
            engines: engines.clone(),
            request,
            frames: BTreeMap::new(),
            next: 0,
            decoder: Decoder::new(Profile::Up, 0).unwrap(),
            run: 0,
            silent: 0,
            began: false,
            speaks: false,
            over: false,
            text: "",
            ready: soon,
        }
    }

    fn frame(&mut self, seq: u32, opus: &[u8]) {
        self.frames.insert(seq, opus.to_vec());
        while let Some(opus) = self.frames.remove(&self.next) {
            self.next += 1;
            let pcm = self.decoder.decode(&opus).unwrap();
            let power = pcm.iter().map(|s| s * s).sum::<f32>() / pcm.len() as f32;
            // A frame of which about half is voice counts as such.
            self.listen(power > 0.02);
        }
    }

    fn say(&mut self, at: Instant, frame: HearFrame) {
        self.link.at(at + self.engines.one_way, frame);
    }

    fn listen(&mut self, voiced: bool) {
        if self.over {
            return;
        }
        let now = Instant::now() + self.engines.one_way;
        if self.engines.deaf && voiced {
            self.over = true;
            return self.say(now, HearFrame::Error(refusal()));
        }
        if voiced {
            (self.run, self.silent) = (self.run + 1, 0);
            if self.run == 2 && !self.speaks {
                self.begin(now);
            }
            return;
        }
        (self.run, self.silent) = (0, self.silent + 1);
        let vad = u32::from(self.request.vad_ms);
        if !self.began || vad == 0 {
            return;
        }
        if self.silent * 20 == 160 {
            self.speaks = false;
            self.say(now, HearFrame::Silence(SilenceFor { ms: 160 }));
            self.ready = now + self.engines.residue;
            let text = self.text.to_owned();
            self.say(self.ready, HearFrame::Partial(Partial { text }));
        }
        if self.silent * 20 == vad.next_multiple_of(20) {
            self.finish(now.max(self.ready), self.next);
        }
    }

    fn begin(&mut self, now: Instant) {
        if !self.began {
            let mut asked = self.link.log.lock().unwrap();
            self.text = self.engines.heard[asked.heard % self.engines.heard.len()];
            asked.heard += 1;
        }
        (self.began, self.speaks) = (true, true);
        let frame = self.next - 2;
        self.say(now, HearFrame::Began(SpeechBegan { frame }));
    }

    fn finish(&mut self, at: Instant, frames: u32) {
        self.over = true;
        self.link.beat = None;
        let transcript = Transcript {
            text: self.text.into(),
            language: "en".into(),
            words: Vec::new(),
            confidence: None,
            frames,
        };
        self.say(at, HearFrame::Final(transcript));
    }
}

impl HearLink for Hearing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HearFrame, LinkError>>> {
        if self.engines.deaf && self.link.queue.is_empty() {
            return Poll::Pending;
        }
        self.link.poll(cx)
    }

    fn sound(&mut self, seq: u32, opus: &[u8]) {
        self.frame(seq, opus);
    }

    fn live(&mut self, datagram: &[u8]) {
        for (seq, opus) in Datagram::parse(datagram).unwrap().frames() {
            if seq >= self.next {
                self.frame(seq, opus);
            }
        }
    }

    fn end(&mut self, frames: u32) {
        if !self.over {
            let now = Instant::now() + self.engines.one_way;
            if !self.began {
                let mut asked = self.link.log.lock().unwrap();
                self.text = self.engines.heard[asked.heard % self.engines.heard.len()];
                asked.heard += 1;
            }
            self.finish(now + self.engines.residue, frames);
        }
    }
}

// ----- transport ----------------------------------------------------------------------------

impl Transport for Doubles {
    fn open(&self, _: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let Open::Generate(request) = open else {
            panic!("{open:?}")
        };
        let link = Thinking::new(&self.engines, &self.log, &request.input);
        Box::pin(async move { Ok(Box::new(link) as Box<dyn FrameStream>) })
    }

    fn speak(
        &self,
        node: NodeId,
        request: Arc<SpeakRequest>,
    ) -> BoxFuture<Result<Box<dyn SpeakLink>, LinkError>> {
        let link = Speaking::new(&self.engines, &self.log, node, &request);
        Box::pin(async move { Ok(Box::new(link) as Box<dyn SpeakLink>) })
    }

    fn hear(
        &self,
        _: NodeId,
        request: HearRequest,
    ) -> BoxFuture<Result<Box<dyn HearLink>, LinkError>> {
        let link = Hearing::new(&self.engines, &self.log, request);
        Box::pin(async move { Ok(Box::new(link) as Box<dyn HearLink>) })
    }

    fn lease(
        &self,
        node: NodeId,
        request: WarmRequest,
    ) -> BoxFuture<Result<Box<dyn LeaseLink>, LinkError>> {
        let Some(load) = self.engines.load else {
            let error = WireError::new(ErrorCode::Unsupported, "no leases here");
            return Box::pin(std::future::ready(Err(LinkError::Refused(error))));
        };
        let lease = Lease {
            node,
            log: self.log.clone(),
            models: 0..request.models.len() as u16,
            loads: Box::pin(tokio::time::sleep(load)),
        };
        self.log.lock().unwrap().leases.push((node, request));
        Box::pin(async move { Ok(Box::new(lease) as Box<dyn LeaseLink>) })
    }

    fn warm(&self, nodes: &[NodeId]) {
        self.log.lock().unwrap().warmed = nodes.to_vec();
    }
}

struct Lease {
    node: NodeId,
    log: Log,
    models: std::ops::Range<u16>,
    loads: Pin<Box<Sleep>>,
}

impl LeaseLink for Lease {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WarmFrame, LinkError>>> {
        std::task::ready!(self.loads.as_mut().poll(cx));
        let Some(at) = self.models.next() else {
            return Poll::Pending;
        };
        let how = Warmth::Asked;
        Poll::Ready(Some(Ok(WarmFrame::Warmed(Warmed { at, how }))))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.log.lock().unwrap().ended.push(self.node);
    }
}

pub fn id(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// Two peers that can do everything, the first closer.
fn snapshot() -> Snapshot {
    let peers = [(1u8, 1), (2, 9)].map(|(n, rtt_ms)| {
        let engine = |name: &str, kind| EngineAdvert {
            name: name.into(),
            kind,
            health: Health::Ok,
            slots: 4,
            busy: 0,
            queue: 0,
        };
        let model = |engine, name: &str, kind| ModelAdvert {
            engine,
            name: name.into(),
            digest: "d".into(),
            family: String::new(),
            quantization: String::new(),
            size: 0,
            context: 4096,
            kind,
            residency: Residency::Loaded,
            load_eta_ms: 0,
            token_ids: true,
            stats: Stats {
                ttft_ms: 50.0,
                itl_ms: 10.0,
                samples: 5,
                ..Stats::default()
            },
        };
        let advert = Advert {
            node: id(n),
            name: format!("host{n}"),
            version: "1".into(),
            epoch: 1,
            seq: 1,
            wall_ms: clock::wall().as_millis(),
            state: NodeState::Up,
            drain_ms: 0,
            role: Role::Agent,
            addrs: Vec::new(),
            swarm_port: 0,
            hardware: Hardware::default(),
            engines: vec![
                engine("llm", EngineKind::OpenAi),
                engine("stt", EngineKind::Whisper),
                engine("tts", EngineKind::Piper),
            ],
            models: vec![
                model(0, "m", ModelKind::Llm),
                model(1, "whisper", ModelKind::Stt),
                model(2, "piper", ModelKind::Tts),
            ],
            voices: vec![VoiceAdvert {
                engine: 2,
                name: "anna".into(),
                language: "en".into(),
            }],
        };
        let path = Path {
            addr: ([127, 0, 0, 1], 1).into(),
            kind: PathKind::Loopback,
            rtt: Some(ms(rtt_ms)),
            ok_at: Some(clock::mono()),
        };
        Arc::new(Peer {
            advert: Arc::new(advert),
            signed: Arc::new(SignedAdvert {
                certificate: Vec::new(),
                payload: Vec::new(),
                signature: [0; 64],
            }),
            liveness: Liveness::Alive,
            paths: vec![path],
            heard: clock::mono(),
        })
    });
    Snapshot {
        version: 1,
        peers: peers.to_vec(),
        ..Snapshot::default()
    }
}

/// A user, a microphone and a loudspeaker around a conversation.
pub struct Room {
    pub conversation: Conversation,
    pub client: MeshClient,
    pub log: Log,
    pub events: Vec<(Instant, TurnEvent)>,
    /// The end of the microphone's next frame.
    mic: Instant,
    /// The user speaks from and until then.
    voice: (Instant, Instant),
    /// What was given out is played by then.
    pub dry: Instant,
    /// For so long the loudspeaker had nothing within an answer.
    pub gaps: Duration,
    speaking: bool,
    pub table: watch::Sender<Arc<Snapshot>>,
}

pub fn config() -> ConverseConfig {
    ConverseConfig {
        warm_up: false,
        system: "Be brief".into(),
        ..ConverseConfig::new("m")
    }
}

impl Room {
    pub fn new(engines: Engines, config: ConverseConfig) -> Room {
        let (table, seen) = watch::channel(Arc::new(snapshot()));
        let log = Log::default();
        let doubles = Doubles {
            engines,
            log: log.clone(),
        };
        let client = MeshClient::over(seen, Arc::new(doubles));
        let now = Instant::now();
        Room {
            conversation: client.converse(config),
            client,
            log,
            events: Vec::new(),
            mic: now + FRAME,
            voice: (now, now),
            dry: now,
            gaps: Duration::ZERO,
            speaking: false,
            table,
        }
    }

    /// The user speaks from now on for so long; when the last sample is.
    pub fn say(&mut self, length: Duration) -> Instant {
        let now = Instant::now();
        self.voice = (now, now + length);
        self.voice.1
    }

    /// The microphone's frame that ends now.
    fn frame(&self) -> Vec<i16> {
        let start = self.mic - FRAME;
        let tone = tone(320, 16_000.0);
        let sample = |n: usize| {
            let at = start + FRAME * n as u32 / 320;
            let voiced = at >= self.voice.0 && at < self.voice.1;
            if voiced {
                (tone[n] * 32_000.0) as i16
            } else {
                0
            }
        };
        (0..320).map(sample).collect()
    }

    /// Goes on until an event for which `until` holds, or so long; the event and its time.
    pub async fn run(
        &mut self,
        limit: Duration,
        until: impl Fn(&TurnEvent) -> bool,
    ) -> Option<(Instant, TurnEvent)> {
        let end = Instant::now() + limit;
        loop {
            let event = tokio::select! {
                biased;
                event = self.conversation.next() => event.unwrap(),
                () = sleep_until(self.mic) => {
                    let frame = self.frame();
                    self.mic += FRAME;
                    self.conversation.push(&frame);
                    continue;
                }
                () = sleep_until(end) => return None,
            };
            let now = Instant::now();
            self.play(&event, now);
            self.events.push((now, event.clone()));
            if until(&event) {
                return Some((now, event));
            }
        }
    }

    fn play(&mut self, event: &TurnEvent, now: Instant) {
        match event {
            TurnEvent::Pcm(pcm) => {
                if self.speaking {
                    self.gaps += now.saturating_duration_since(self.dry);
                }
                self.speaking = true;
                self.dry = self.dry.max(now) + Duration::from_micros(pcm.len() as u64 * 1000 / 24);
            }
            TurnEvent::TurnDone { .. } | TurnEvent::BargedIn { .. } => self.speaking = false,
            _ => {}
        }
    }

    pub async fn until(&mut self, until: impl Fn(&TurnEvent) -> bool) -> (Instant, TurnEvent) {
        let found = self.run(Duration::from_secs(60), until).await;
        found.unwrap_or_else(|| panic!("it did not happen: {:?}", self.told()))
    }

    /// The user says something, and is answered; the last sample's and the first sound's time.
    pub async fn ask(&mut self, length: Duration) -> (Instant, Instant) {
        let last = self.say(length);
        let (first, _) = self.until(is_sound).await;
        (last, first)
    }

    /// The events' names, sound left out.
    pub fn told(&self) -> Vec<String> {
        let others = self.events.iter().filter(|(_, e)| !is_sound(e));
        let name = |e: &TurnEvent| {
            let text = format!("{e:?}");
            let end = text.find([' ', '(', '{']).unwrap_or(text.len());
            text[..end].to_owned()
        };
        others.map(|(_, e)| name(e)).collect()
    }
}

pub fn is_sound(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::Pcm(_))
}

pub fn is_done(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::TurnDone { .. })
}
