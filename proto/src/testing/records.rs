//! Every record once small and once full, and one way to decode whichever kind comes: what the
//! wire tests, the mutation test and the fuzz targets share.

use super::{addr, advert_of, node};
use crate::ids::GenerationId;
use crate::wire::codec::{self, HEADER};
use crate::wire::*;

/// A record as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its kind.
    pub kind: u16,
    /// Its name in `PROTOCOL.md`.
    pub name: &'static str,
    /// The bound on its body in bytes.
    pub limit: usize,
    /// Header and body; empty if it does not encode, which a test asserts against.
    pub bytes: Vec<u8>,
}

impl Sample {
    /// The bytes after the header.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }
}

macro_rules! records {
    ($($record:ident: $($sample:expr),+;)+) => {
        /// Each record small, full and with what later versions appended, in the order of [`RECORDS`].
        pub fn samples() -> Vec<Sample> {
            let mut all = Vec::new();
            $(for record in [$($sample),+] {
                all.push(Sample {
                    kind: $record::KIND,
                    name: $record::NAME,
                    limit: $record::CLASS.limit(),
                    bytes: codec::to_vec::<$record>(&record).unwrap_or_default(),
                });
            })+
            all
        }

        /// Decodes `body` as the record of `kind` and encodes it again, header included;
        /// `None` for a kind of no record.
        pub fn recode(kind: u16, body: &[u8]) -> Option<Result<Vec<u8>, DecodeError>> {
            match kind {
                $($record::KIND => Some(codec::body::<$record>(body).and_then(|r| codec::to_vec(&r))),)+
                _ => None,
            }
        }

        /// Decodes `body` as the record of `kind`, and drops it; whether it was one.
        pub fn decodes(kind: u16, body: &[u8]) -> bool {
            match kind {
                $($record::KIND => codec::body::<$record>(body).is_ok(),)+
                _ => false,
            }
        }
    };
}

records! {
    StreamHeader: StreamHeader { version: 0, kind: StreamKind::Probe },
        StreamHeader { version: VERSION, kind: StreamKind::Generate };
    WireError: WireError::new(ErrorCode::Draining, ""),
        WireError::new(ErrorCode::Busy, "all 4 slots are taken").field("model")
            .retry_after(crate::timeouts::BUSY_RETRY);
    Probe: Probe { nonce: 0, wall_ms: 0 },
        Probe { nonce: u64::MAX, wall_ms: super::WALL_MS };
    ProbeReply: ProbeReply { nonce: 1, wall_ms: 0, state: NodeState::Up },
        ProbeReply { nonce: u64::MAX, wall_ms: super::WALL_MS, state: NodeState::Draining };
    ProbeFor: ProbeFor { nonce: 0, node: node(0) }, ProbeFor { nonce: u64::MAX, node: node(9) };
    ProbedFor: ProbedFor { nonce: 0, reach: Reach::Stranger, rtt_us: 0 },
        ProbedFor { nonce: u64::MAX, reach: Reach::Reached, rtt_us: 850_000 };
    PeerUpdate: PeerUpdate { advert: signed(0, 0), rtt_us: 0, age_ms: 0 },
        PeerUpdate { advert: signed(40, 300), rtt_us: 850, age_ms: 70_000 };
    PeerGone: PeerGone { node: node(1), left: false }, PeerGone { node: node(2), left: true };
    SnapshotEnd: SnapshotEnd { peers: 0 }, SnapshotEnd { peers: 1000 };
    GenerateRequest: plain_request(), full_request();
    Accepted: Accepted {
            generation: GenerationId([0; 16]), engine: 0, digest: String::new(), exact: false,
        },
        Accepted {
            generation: GenerationId([7; 16]), engine: 3, digest: "sha256:abc".into(), exact: true,
        };
    Progress: Progress { phase: Phase::Queued, done: 0, total: 0 },
        Progress { phase: Phase::Prefilling, done: 512, total: 4096 };
    Token: Token { index: 0, chunk: Chunk::default(), extra: String::new() },
        Token { index: 65_536, chunk: chunk(), extra: r#"{"reasoning_content":"so"}"#.into() };
    Done: Done { finish: FinishReason::Stop, usage: Usage::default(), frames: 0 },
        Done {
            finish: FinishReason::ToolCalls,
            usage: Usage { prompt_tokens: 4000, completion_tokens: 250 },
            frames: 249,
        };
    Draining: Draining { deadline_ms: 0 }, Draining { deadline_ms: 60_000 };
    Attach: Attach { generation: GenerationId([0; 16]), have: 0 },
        Attach { generation: GenerationId([9; 16]), have: 70_000 };
    SignedAdvert: signed(0, 0), signed(40, 300);
    Advert: empty_advert(), full_advert();
    JoinRequest: join_request(""), join_request("Ada's phone");
    JoinAccepted: JoinAccepted {
            certificate: vec![], ca: vec![], role: Role::Client, mesh_name: String::new(),
            seeds: vec![],
        },
        JoinAccepted {
            certificate: vec![0x30; 40], ca: vec![0x31; 40], role: Role::Agent,
            mesh_name: "home".into(), seeds: vec!["10.0.0.1:11400".into(), "[fd00::1]:11400".into()],
        };
    Drill: Drill { fault: Fault::Kill, for_ms: 1 }, Drill { fault: Fault::Drain, for_ms: 10_000 };
    DrillStarted: DrillStarted { for_ms: 1 }, DrillStarted { for_ms: 10_000 };
    SpeakRequest: speak_request(), SpeakRequest {
            engine: 2, voice: "amy".into(), language: "en-US".into(),
            text: "Grüße. It is 3.14.".into(), speed_percent: 120,
            extra: r#"{"noise":0.6}"#.into(), session: 0x0123_4567_89ab_cdef, from: 7,
            grant_ms: 10_000, ..speak_request()
        },
        SpeakRequest { one_piece: Appended(true), ..speak_request() };
    Grant: Grant { until_ms: 0, played_ms: 0 }, Grant { until_ms: 70_000, played_ms: 60_000 };
    SpeechAccepted: SpeechAccepted {
            engine: 0, voice: String::new(), same_voice: false, pre_skip: 0,
        },
        SpeechAccepted { engine: 2, voice: "amy".into(), same_voice: true, pre_skip: 156 };
    SpokenMark: SpokenMark { from: 0, to: 0, at: 0 },
        SpokenMark { from: 300, to: 550, at: 1 << 33 };
    Sound: Sound { seq: 0, opus: vec![] }, Sound { seq: 70_000, opus: vec![0xab; 80] };
    SpeechDone: SpeechDone { frames: 0, samples: 0 },
        SpeechDone { frames: 70_000, samples: 33_599_800 };
    HearRequest: hear_request(), HearRequest {
            engine: 1, language: "de".into(), prompt: "UnaMesh, Piper".into(), session: u64::MAX,
            utterance: 70_000, partials: true, vad_ms: 600, ..hear_request()
        };
    UpSound: UpSound { seq: 0, opus: vec![] }, UpSound { seq: 44_999, opus: vec![0xcd; 60] };
    UtteranceEnd: UtteranceEnd { frames: 0 }, UtteranceEnd { frames: 45_000 };
    HearAccepted: HearAccepted { engine: 0, digest: String::new() },
        HearAccepted { engine: 1, digest: "sha256:abc".into() };
    Partial: Partial { text: String::new() }, Partial { text: "Grüße aus".into() };
    SpeechBegan: SpeechBegan { frame: 0 }, SpeechBegan { frame: 44_999 };
    SilenceFor: SilenceFor { ms: 0 }, SilenceFor { ms: 600 };
    Missing: Missing { from: 0, to: 1 }, Missing { from: 44_000, to: 45_000 };
    Transcript: transcript(), Transcript {
            text: "Grüße".into(), language: "de".into(), confidence: Some(0.9), frames: 45_000,
            words: vec![Word { text: "Grüße".into(), start_ms: 120, end_ms: 640 }],
        };
    WarmRequest: WarmRequest { session: 0, models: vec![] },
        WarmRequest { session: 7, models: vec![warm_model()] };
    Warmed: Warmed { at: 0, how: Warmth::Already }, Warmed { at: 3, how: Warmth::Failed };
}

fn speak_request() -> SpeakRequest {
    SpeakRequest {
        model: "m".to_owned(),
        engine: u16::MAX,
        voice: String::new(),
        language: String::new(),
        text: String::new(),
        speed_percent: 0,
        extra: String::new(),
        session: 0,
        from: 0,
        grant_ms: 0,
        one_piece: Appended(false),
    }
}

fn warm_model() -> WarmModel {
    WarmModel {
        kind: ModelKind::Tts,
        model: "piper".to_owned(),
        engine: 2,
        voice: "amy".to_owned(),
        language: "en-US".to_owned(),
    }
}

fn hear_request() -> HearRequest {
    HearRequest {
        model: "m".to_owned(),
        engine: u16::MAX,
        language: String::new(),
        prompt: String::new(),
        session: 0,
        utterance: 0,
        partials: false,
        vad_ms: 0,
    }
}

fn transcript() -> Transcript {
    Transcript {
        text: String::new(),
        language: String::new(),
        words: Vec::new(),
        confidence: None,
        frames: 0,
    }
}

fn chunk() -> Chunk {
    Chunk {
        text: " Grüße".to_owned(),
        ids: vec![1, 300, 128_000],
        tokens: 3,
    }
}

fn plain_request() -> GenerateRequest {
    GenerateRequest {
        model: "m".to_owned(),
        engine: u16::MAX,
        kind: InputKind::Text,
        input: String::new(),
        sampling: Sampling::default(),
        extra: String::new(),
        prefix: Vec::new(),
        session: 0,
    }
}

fn full_request() -> GenerateRequest {
    GenerateRequest {
        kind: InputKind::Chat,
        engine: 1,
        input: r#"[{"role":"user","content":"Why is the sky blue?"}]"#.to_owned(),
        sampling: Sampling {
            temperature: Some(0.7),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.05),
            seed: Some(-42),
            max_tokens: Some(512),
            stop: vec!["\n\n".to_owned(), "###".to_owned()],
            presence_penalty: Some(-1.0),
            frequency_penalty: Some(0.5),
            repeat_penalty: Some(1.1),
        },
        extra: r#"{"tools":[]}"#.to_owned(),
        prefix: vec![chunk(), Chunk::default(), chunk()],
        session: 0x0123_4567_89ab_cdef,
        ..plain_request()
    }
}

fn signed(certificate: usize, payload: usize) -> SignedAdvert {
    SignedAdvert {
        certificate: vec![0x30; certificate],
        payload: vec![0x51; payload],
        signature: [0xab; 64],
    }
}

fn empty_advert() -> Advert {
    let mut advert = advert_of(node(0), 0, 0);
    (advert.name, advert.version) = (String::new(), String::new());
    (advert.addrs, advert.engines, advert.models) = (vec![], vec![], vec![]);
    advert.hardware = Hardware::default();
    advert
}

fn full_advert() -> Advert {
    let mut advert = advert_of(node(77), super::WALL_MS, 12);
    advert.addrs.push(Addr::new(addr(500)));
    advert.hardware.cpu = "AMD Ryzen 7 5800X".to_owned();
    advert.hardware.gpus = vec![Gpu {
        name: "NVIDIA GeForce RTX 3060".to_owned(),
        memory_total: 12_884_901_888,
        memory_free: 6_442_450_944,
        utilization: 35,
        temperature: 61,
        power_mw: 120_500,
    }];
    let voice = |name: &str| VoiceAdvert {
        engine: 0,
        name: name.to_owned(),
        language: "en-US".to_owned(),
    };
    advert.voices = vec![voice("joe"), voice("amy")];
    advert
}

fn join_request(name: &str) -> JoinRequest {
    JoinRequest {
        secret: [5; 32],
        public_key: node(3),
        proof: [6; 64],
        name: name.to_owned(),
    }
}
