//! OpenAI-style servers of speech: `POST /v1/audio/speech` and `/v1/audio/transcriptions`.
//!
//! **Wav or pcm?** Some servers stream raw samples and make a WAV as a whole, others the other
//! way round, and raw samples say nothing of their rate. So WAV is asked for first: its header
//! tells the rate. If it came as a whole and at 24 kHz, which is what OpenAI's API calls `pcm`,
//! raw samples are asked for from then on, as long as they do come in pieces. A rate in the
//! `Content-Type` (`audio/pcm;rate=24000`) counts above all. What the caller asks for in
//! `extra` (`response_format`) is never changed.
//!
//! **Health** is `/health` where there is one: VibeVoice says `ok` there although its model
//! failed to load (`model_loaded` tells), and answers late while it speaks: busy, not dead.
//!
//! **Voices** are at `/v1/audio/voices` or `/voices` (the wrapper around Piper), as words or as
//! objects with `voice_id`, `id` or `name`.

use super::hearing::{HearCall, HearStream, Sound};
use super::http::{Http, HttpError, Reply};
use super::openai::advert;
use super::refusal::{refusal, unreachable};
use super::request::Object;
use super::sounding::{Reader, run};
use super::speech::{SpeechCall, SpeechStream, Voice, check_voice, refused};
use super::transcribe::{self, Api};
use super::{Engine, EngineError, EngineInfo, EngineStream, MAX_ERROR_BODY};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unamesh_client::audio::pcm::Format;
use unamesh_proto::limits::MAX_VOICES;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};

/// What OpenAI's API means by `pcm`.
const PCM: Format = Format::s16(24_000);
/// How many requests such a server runs at the same time when nobody says.
const SLOTS: u16 = 1;

/// What a model does, in `task` of a list of models.
pub const HEARS: &str = "automatic-speech-recognition";
/// Likewise.
pub const SPEAKS: &str = "text-to-speech";

/// What to ask a server for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A WAV.
    Wav,
    /// Raw samples, known to be 16-bit mono of 24 kHz.
    Pcm,
}

impl Asked {
    const fn word(self) -> &'static str {
        match self {
            Asked::Wav => "wav",
            Asked::Pcm => "pcm",
        }
    }
}

/// An adapter to a server of speech, transcriptions or both.
pub struct OpenAiSpeech {
    name: String,
    kind: EngineKind,
    http: Http,
    slots: u16,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    voices: Vec<Voice>,
    /// What to ask for, by model and voice.
    asked: BTreeMap<(String, String), Asked>,
}

impl OpenAiSpeech {
    /// An adapter named `name`; `kind` tells whether it speaks.
    pub fn new(name: String, kind: EngineKind, http: Http, slots: Option<u16>) -> Self {
        OpenAiSpeech {
            name,
            kind,
            http,
            slots: slots.unwrap_or(SLOTS),
            shared: Arc::default(),
        }
    }

    fn speaks(&self) -> bool {
        self.kind != EngineKind::Whisper
    }

    /// Those of `/v1/models`, or one by its usual name where there is no list.
    async fn models(&self) -> Result<Vec<ModelAdvert>, EngineError> {
        let (usual, kind) = match self.speaks() {
            true => ("tts-1", ModelKind::Tts),
            false => ("whisper-1", ModelKind::Stt),
        };
        let of = |model: &Value| {
            let name = model["id"].as_str()?.to_owned();
            let task = match model["task"].as_str() {
                Some(HEARS) => Some(ModelKind::Stt),
                Some(SPEAKS) => Some(ModelKind::Tts),
                _ => None,
            };
            let model = advert(name);
            let told = (model.kind != ModelKind::Llm).then_some(model.kind);
            let kind = task.or(told).unwrap_or(kind);
            Some(ModelAdvert { kind, ..model })
        };
        match self.http.get::<Value>("/v1/models", ENGINE_HEALTH).await {
            Ok(Ok(list)) if list["data"].is_array() => {
                let models = list["data"].as_array().into_iter().flatten();
                Ok(models.filter_map(of).collect())
            }
            Ok(Ok(_)) => Ok(vec![ModelAdvert {
                kind,
                ..advert(usual.to_owned())
            }]),
            Ok(Err((status, _))) if missing(status.as_u16()) => Ok(vec![ModelAdvert {
                kind,
                ..advert(usual.to_owned())
            }]),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }

    /// # Errors
    /// It says that it cannot work, or says nothing.
    async fn health(&self) -> Result<(), EngineError> {
        match self.http.get::<Value>("/health", ENGINE_HEALTH).await {
            Ok(Ok(health)) if health["model_loaded"] == false => Err(EngineError::Failed {
                engine: self.name.clone(),
                reason: "its model is not loaded".to_owned(),
            }),
            // What is no JSON is a page that says so in words.
            Ok(Ok(_)) | Err(HttpError::Rubbish(_)) => Ok(()),
            Ok(Err((status, _))) if missing(status.as_u16()) => Ok(()),
            Ok(Err((status, body))) => Err(refusal(&self.name, "", status, &body)),
            Err(error) => Err(unreachable(&self.name, error)),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

fn missing(status: u16) -> bool {
    matches!(status, 404 | 405 | 501)
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Each change leaves it whole.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Engine for OpenAiSpeech {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn local_port(&self) -> Option<u16> {
        self.http.local_port()
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.health().await?;
        let models = self.models().await?;
        let listed = match self.speaks() {
            true => voices(&self.http).await,
            false => Ok(Vec::new()),
        };
        // A list that is late is the one from before: without it any voice would do.
        let voices = listed.unwrap_or_else(|_| self.shared().voices.clone());
        self.shared().voices.clone_from(&voices);
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models,
            voices,
            version: String::new(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        if !self.speaks() {
            return Err(self.cannot("speech"));
        }
        let key = (call.model.clone(), call.voice.clone());
        let asked = {
            let shared = self.shared();
            check_voice(&self.name, &call.voice, &shared.voices)?;
            shared.asked.get(&key).copied()
        };
        let reply = ask(&self.name, &self.http, &call, asked.unwrap_or(Asked::Wav)).await?;
        let stream = read(&self.name, &call, asked.unwrap_or(Asked::Wav), reply);
        Ok(match (asked, stream) {
            (None, (stream, true)) => learn(stream, key, Arc::clone(&self.shared)),
            (Some(Asked::Pcm), (stream, true)) => {
                // It makes these as a whole too: the header is worth more.
                self.shared().asked.insert(key, Asked::Wav);
                stream
            }
            (_, (stream, _)) => stream,
        })
    }

    async fn hear(&self, call: HearCall, sound: Sound) -> Result<HearStream, EngineError> {
        let api = match self.speaks() {
            true => Api::OpenAi,
            false => Api::Whisper,
        };
        transcribe::hear(&self.name, &self.http, api, call, sound)
    }
}

/// Speaks at `/v1/audio/speech`.
///
/// # Errors
/// See [`EngineError`]; nothing was delivered.
pub async fn speak(
    engine: &str,
    http: &Http,
    call: &SpeechCall,
    asked: Asked,
) -> Result<SpeechStream, EngineError> {
    let reply = ask(engine, http, call, asked).await?;
    Ok(read(engine, call, asked, reply).0)
}

async fn ask(
    engine: &str,
    http: &Http,
    call: &SpeechCall,
    asked: Asked,
) -> Result<Reply, EngineError> {
    call.check()?;
    let extra = call.extra()?;
    let chosen = extra.contains_key("response_format");
    let mut body = Object::over(extra);
    body.set("input", &call.text)?;
    let model = if call.model.is_empty() {
        "tts-1"
    } else {
        &call.model
    };
    body.set("model", model)?;
    body.maybe("voice", (!call.voice.is_empty()).then_some(&call.voice))?;
    body.maybe(
        "language",
        (!call.language.is_empty()).then_some(&call.language),
    )?;
    body.maybe("speed", call.speed)?;
    if !chosen {
        body.set("response_format", asked.word())?;
    }
    let reply = http.stream("/v1/audio/speech", body.body()?).await;
    let reply = reply.map_err(|error| unreachable(engine, error))?;
    if reply.status.is_success() {
        return Ok(reply);
    }
    let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
    Err(refused(engine, call, reply.status, &words))
}

/// The speech in `reply`, and whether it was made as a whole.
fn read(engine: &str, call: &SpeechCall, asked: Asked, reply: Reply) -> (SpeechStream, bool) {
    let chosen = call.extra().ok();
    let chosen = chosen
        .as_ref()
        .and_then(|extra| extra.get("response_format"));
    let pcm = chosen.map_or(asked == Asked::Pcm, |format| format.get() == "\"pcm\"");
    let kind = reply.content_type.as_deref().unwrap_or_default();
    // Samples of a rate that nobody tells are OpenAI's; MP3 taken for them would be noise.
    let raw = raw_format(kind).or((pcm && !is_compressed(kind)).then_some(PCM));
    let reader = Reader::new(engine, call, raw);
    (run(reply.body, reader), reply.whole)
}

fn is_compressed(content_type: &str) -> bool {
    let kinds = ["mpeg", "mp3", "ogg", "opus", "flac", "aac", "webm"];
    kinds.iter().any(|kind| content_type.contains(kind))
}

/// `audio/pcm;rate=22050;channels=1`, `audio/L16; rate=...`.
fn raw_format(content_type: &str) -> Option<Format> {
    let lower = content_type.to_ascii_lowercase();
    let mut parts = lower.split(';').map(str::trim);
    if !matches!(parts.next()?, "audio/pcm" | "audio/l16" | "audio/x-pcm") {
        return None;
    }
    let mut format = Format::s16(0);
    for part in parts {
        match part.split_once('=') {
            Some(("rate", rate)) => format.rate = rate.trim_matches('"').parse().ok()?,
            Some(("channels", n)) => format.channels = n.trim_matches('"').parse().ok()?,
            _ => {}
        }
    }
    (format.rate > 0).then_some(format)
}

/// Notes by the rate of a WAV that was made as a whole what to ask for the next time.
fn learn(stream: SpeechStream, key: (String, String), shared: Arc<Mutex<Shared>>) -> SpeechStream {
    use super::speech::SpeechEvent;
    use futures_util::StreamExt;
    let mut key = Some(key);
    stream
        .inspect(move |event| {
            if let Ok(SpeechEvent::Format { rate }) = event
                && let Some(key) = key.take()
            {
                let asked = if *rate == PCM.rate {
                    Asked::Pcm
                } else {
                    Asked::Wav
                };
                let mut shared = lock(&shared);
                if shared.asked.len() < MAX_VOICES {
                    shared.asked.insert(key, asked);
                }
            }
        })
        .boxed()
}

/// The voices of a server, wherever and however it lists them; none if it lists none.
///
/// # Errors
/// It does not answer now.
pub async fn voices(http: &Http) -> Result<Vec<Voice>, HttpError> {
    let mut trouble = None;
    for path in ["/v1/audio/voices", "/voices"] {
        match http.get::<Value>(path, ENGINE_HEALTH).await {
            Ok(Ok(list)) => {
                if let Some(voices) = read_voices(&list) {
                    return Ok(voices);
                }
            }
            Ok(Err((status, _))) if status.is_server_error() && !missing(status.as_u16()) => {
                trouble = Some(HttpError::Broken(status.to_string()));
            }
            // There is no such path, or a page for people.
            Ok(Err(_)) | Err(HttpError::Rubbish(_)) => {}
            Err(error) => trouble = Some(error),
        }
    }
    trouble.map_or_else(|| Ok(Vec::new()), Err)
}

/// Reads `{"voices": [..]}`, `{"data": [..]}` or a bare array of words or objects.
pub fn read_voices(list: &Value) -> Option<Vec<Voice>> {
    let list = [&list["voices"], &list["data"], list];
    let voices = list.iter().find_map(|list| list.as_array())?;
    let one = |voice: &Value| {
        if let Some(name) = voice.as_str() {
            return Some(Voice::named(name));
        }
        let name = ["voice_id", "id", "name"]
            .iter()
            .find_map(|k| voice[*k].as_str())?;
        // loudness-tts writes the language out and its tag as `locale`.
        let language = ["locale", "language", "lang"]
            .iter()
            .find_map(|k| voice[*k].as_str());
        Some(language.map_or_else(|| Voice::named(name), |l| Voice::new(name, l)))
    };
    Some(voices.iter().filter_map(one).take(MAX_VOICES).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn voices_are_read_in_all_their_forms() {
        let names = |json: &str| {
            let voices = read_voices(&serde_json::from_str(json).unwrap()).unwrap();
            voices.into_iter().map(|v| v.name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(r#"{"voices":[{"voice_id":"Carter","name":"C"}]}"#),
            ["Carter"]
        );
        assert_eq!(names(r#"{"voices":["af_bella"]}"#), ["af_bella"]);
        assert_eq!(names(r#"[{"id":"joe"},{"x":1},7]"#), ["joe"]);
        assert_eq!(
            read_voices(&serde_json::json!({"en_US-joe-medium": {}})),
            None
        );
    }

    #[test]
    fn a_rate_is_read_from_the_content_type() {
        assert_eq!(
            raw_format("audio/pcm;rate=22050"),
            Some(Format::s16(22_050))
        );
        let stereo = raw_format("Audio/L16; rate=44100; channels=2").unwrap();
        assert_eq!((stereo.rate, stereo.channels), (44_100, 2));
        assert_eq!(raw_format("audio/pcm"), None);
        assert_eq!(raw_format("audio/wav;rate=8000"), None);
    }
}
