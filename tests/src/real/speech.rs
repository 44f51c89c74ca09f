//! Real engines that speak and hear: those of the starter, and servers of other people by their
//! package names. All speak with the voice joe, each text the same to the sample, and hear with
//! Whisper tiny.en.

use super::environment;
use futures_util::StreamExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, mpsc};
use unamesh_agent::config::{EngineApi, EngineConfig};
use unamesh_agent::engine::hearing::{self, HearCall, HearEvent};
use unamesh_agent::engine::managed::State;
use unamesh_agent::engine::speech::{SpeechCall, SpeechEvent};
use unamesh_agent::engine::{Engine, EngineError};
use unamesh_agent::starter::voice::{STEADY, SpeechEngine, install_piper, install_whisper};
use unamesh_agent::starter::{Lines, RunningEngine, free_port};
use unamesh_client::audio::pcm::{from_s16, to_s16};
use unamesh_client::audio::resample::Resampler;

pub use unamesh_agent::starter::voice::{VOICE, WHISPER};

/// The servers of other people.
const PACKAGES: [&str; 4] = [
    "loudness-tts==0.1.1",
    "wyoming-piper==2.5.2",
    "wyoming-faster-whisper==3.8.1",
    "faster-whisper-server==0.0.3",
];

/// What Piper says and Whisper writes down again word for word: no numbers, names or homophones,
/// which it writes in its own way.
pub const SENTENCES: [&str; 20] = [
    "The weather is nice today and the sky is blue.",
    "Please close the window before you leave the house.",
    "My brother works in a small shop near the station.",
    "We will meet at the library after lunch.",
    "She opened the door and looked into the garden.",
    "I would like a cup of coffee with milk, please.",
    "The children are playing football in the park.",
    "Can you tell me where the nearest hospital is?",
    "He wrote a long letter to his old friend.",
    "They bought fresh bread and cheese at the market.",
    "Our teacher explained the question once again.",
    "The old bridge was built by local people.",
    "It has been raining since yesterday evening.",
    "The doctor told him to rest for a few days.",
    "You can find the answer at the end of the book.",
    "The river is deep, so be careful when you swim.",
    "I think that we should ask somebody for help.",
    "Winter is cold here, but summer is very warm.",
    "The computer on my desk is faster than yours.",
    "Thank you very much for your kind help.",
];

/// What may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Piper's own HTTP server, by the starter.
    Piper,
    /// The starter's Whisper.
    Whisper,
    /// faster-whisper-server, as packaged.
    PackagedWhisper,
    /// loudness-tts: Piper behind OpenAI's API of speech.
    Loudness,
    /// Piper behind the Wyoming protocol.
    WyomingPiper,
    /// Whisper behind the Wyoming protocol.
    WyomingWhisper,
}

/// Piper, as the starter installs it.
pub async fn piper() -> &'static SpeechEngine {
    static PIPER: OnceCell<SpeechEngine> = OnceCell::const_new();
    PIPER
        .get_or_init(async || install_piper(&Lines::default()).await.unwrap())
        .await
}

/// Piper as it speaks by itself, on `port`: each time another draw of melody and pace.
///
/// # Panics
/// If it cannot be installed or does not run.
pub async fn natural_piper(port: u16) -> RunningEngine {
    let entry = piper().await.entry("piper", port, &[]);
    let running = RunningEngine::of(&entry).await;
    running.unwrap_or_else(|error| panic!("natural Piper: {error}"))
}

/// Whisper, as the starter installs it.
pub async fn whisper() -> &'static SpeechEngine {
    static WHISPER: OnceCell<SpeechEngine> = OnceCell::const_new();
    WHISPER
        .get_or_init(async || install_whisper(&Lines::default()).await.unwrap())
        .await
}

/// The Python that has [`PACKAGES`]; made on first use, kept in the build directory.
async fn packages() -> &'static Path {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    PYTHON
        .get_or_init(async || environment("speech", &PACKAGES).await)
        .await
}

impl Server {
    /// Starts one on a free port and waits until it answers.
    ///
    /// # Panics
    /// If it cannot be installed or does not run.
    pub async fn start(self) -> RunningEngine {
        self.start_at(free_port().unwrap()).await
    }

    /// The same on `port`.
    ///
    /// # Panics
    /// As above.
    pub async fn start_at(self, port: u16) -> RunningEngine {
        let entry = self.entry(port).await;
        let running = RunningEngine::of(&entry).await;
        running.unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// It as an entry of a configuration.
    pub async fn entry(self, port: u16) -> EngineConfig {
        let name = format!("{self:?}").to_lowercase();
        let (kind, scheme) = match self {
            Server::Piper => return piper().await.entry(&name, port, &STEADY.map(str::to_owned)),
            Server::Whisper => return whisper().await.entry(&name, port, &[]),
            Server::PackagedWhisper => (EngineApi::Whisper, "http"),
            Server::Loudness => (EngineApi::OpenAiSpeech, "http"),
            Server::WyomingPiper | Server::WyomingWhisper => (EngineApi::Wyoming, "tcp"),
        };
        let python = packages().await.display().to_string();
        let leash = piper().await.leash.display().to_string();
        let mut command = vec![python.clone(), leash, python];
        command.extend(self.arguments(port).await);
        EngineConfig {
            name,
            kind,
            url: format!("{scheme}://127.0.0.1:{port}"),
            command,
            // Threads that wait for each other in a loop are slower than one where others work too.
            env: [("OMP_NUM_THREADS".to_owned(), "1".to_owned())].into(),
            ..EngineConfig::default()
        }
    }

    async fn arguments(self, port: u16) -> Vec<String> {
        let (voice, model) = (&piper().await.model, &whisper().await.model);
        let folder = |file: &Path| file.parent().unwrap().display().to_string();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/loudness_server.py");
        let (script, uri) = (script.display(), format!("--uri tcp://127.0.0.1:{port}"));
        let line = match self {
            Server::PackagedWhisper => format!(
                "-m faster_whisper_server {} --host 127.0.0.1 --port {port}",
                model.display()
            ),
            Server::Loudness => format!("{script} {} --port {port}", voice.display()),
            Server::WyomingPiper => format!(
                "-m wyoming_piper {uri} --voice {VOICE} --data-dir {} --local-files-only {}",
                folder(voice),
                STEADY.join(" ")
            ),
            _ => format!(
                "-m wyoming_faster_whisper {uri} --model {} --data-dir {} --language en \
                 --stt-library faster-whisper --cpu-threads 1 --local-files-only",
                model.display(),
                folder(model)
            ),
        };
        line.split(' ').map(str::to_owned).collect()
    }
}

/// Speech that was received.
#[derive(Debug)]
pub struct Spoken {
    /// Samples a second.
    pub rate: u32,
    /// All of them.
    pub pcm: Vec<i16>,
    /// In how many pieces they came.
    pub pieces: usize,
    /// From the call to the first of them.
    pub first: Duration,
    /// To the end.
    pub took: Duration,
    /// How it ended.
    pub end: Result<u64, EngineError>,
}

/// Says `text` in the usual voice.
///
/// # Errors
/// The engine refused before any sound.
pub async fn say(engine: &dyn Engine, text: &str) -> Result<Spoken, EngineError> {
    let call = SpeechCall {
        text: text.to_owned(),
        ..SpeechCall::default()
    };
    say_as(engine, call, |_| {}).await
}

/// Makes `call`; `at` is told the samples so far after each piece.
///
/// # Errors
/// The engine refused before any sound.
///
/// # Panics
/// If the stream breaks its order.
pub async fn say_as(
    engine: &dyn Engine,
    call: SpeechCall,
    mut at: impl FnMut(usize),
) -> Result<Spoken, EngineError> {
    let start = Instant::now();
    let mut stream = engine.speak(call).await?;
    let mut spoken = Spoken {
        rate: 0,
        pcm: Vec::new(),
        pieces: 0,
        first: Duration::MAX,
        took: Duration::ZERO,
        end: Ok(0),
    };
    let mut ended = false;
    while let Some(event) = stream.next().await {
        assert!(!ended, "after the end: {event:?}");
        match event {
            Ok(SpeechEvent::Format { rate }) => spoken.rate = rate,
            Ok(SpeechEvent::Pcm(pcm)) => {
                assert!(spoken.rate > 0, "samples before their rate");
                spoken.first = spoken.first.min(start.elapsed());
                spoken.pieces += 1;
                spoken.pcm.extend(pcm);
                at(spoken.pcm.len());
            }
            Ok(SpeechEvent::Timing { .. }) => {}
            Ok(SpeechEvent::Done { samples }) => (spoken.end, ended) = (Ok(samples), true),
            Err(error) => (spoken.end, ended) = (Err(error), true),
        }
    }
    assert!(ended, "no end");
    spoken.took = start.elapsed();
    Ok(spoken)
}

/// A final transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// What was understood.
    pub text: String,
    /// In which language.
    pub language: String,
    /// 0..=1.
    pub confidence: Option<f32>,
    /// Its words with their times.
    pub words: Vec<hearing::Word>,
}

/// Transcribes `sound` of 16 kHz, sent in frames of 20 ms as fast as they are taken.
///
/// # Errors
/// The engine's.
///
/// # Panics
/// If there is no terminal item.
pub async fn hear(
    engine: &dyn Engine,
    call: HearCall,
    sound: &[i16],
) -> Result<Heard, EngineError> {
    let (send, receive) = mpsc::channel(8);
    let mut stream = engine.hear(call, receive).await?;
    let sending = async {
        for frame in sound.chunks(hearing::RATE as usize / 50) {
            if send.send(frame.to_vec()).await.is_err() {
                break;
            }
        }
        drop(send);
    };
    let reading = async {
        while let Some(event) = stream.next().await {
            if let HearEvent::Final {
                text,
                language,
                words,
                confidence,
            } = event?
            {
                return Ok(Heard {
                    text,
                    language,
                    confidence,
                    words,
                });
            }
        }
        panic!("no end")
    };
    tokio::join!(sending, reading).1
}

/// `pcm` of `rate` as engines hear it.
///
/// # Panics
/// If the rate is none of sound.
#[must_use]
pub fn for_hearing(pcm: &[i16], rate: u32) -> Vec<i16> {
    let samples: Vec<f32> = pcm.iter().copied().map(from_s16).collect();
    let resampled = resampled(&samples, rate, hearing::RATE);
    resampled.into_iter().map(to_s16).collect()
}

/// `samples` of the rate `from` at the rate `to`.
///
/// # Panics
/// If a rate is none of sound.
#[must_use]
pub fn resampled(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    let mut resampler = Resampler::new(from, to).unwrap();
    let mut out = Vec::new();
    resampler.push(samples, &mut out);
    resampler.finish(&mut out);
    out
}

/// The words of a text, without signs and capitals, which Whisper sets as it likes.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| {
        word.chars()
            .filter(|c| c.is_alphanumeric())
            .collect::<String>()
    };
    text.split_whitespace()
        .map(|word| plain(word).to_lowercase())
        .collect()
}

/// Kills the process that stands for `running`, and with it the engine; it will be started again.
///
/// # Panics
/// If it does not run.
pub fn kill(running: &RunningEngine) {
    use rustix::process::{Pid, Signal, kill_process};
    let (State::Up { pid } | State::Starting { pid, .. }) = running.engine.state() else {
        panic!("{:?}", running.engine.state());
    };
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}
