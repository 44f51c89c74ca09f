//! Transcription by upload: `POST /v1/audio/transcriptions`, `multipart/form-data`.
//!
//! The whole utterance is one WAV in one request, so it is collected until its end (at most
//! [`MAX_HEARD_SECONDS`]); a length must stand in the head, since the small servers read no
//! chunked uploads. Partial transcripts come as server-sent events from those that stream
//! (OpenAI's and speaches' deltas, vLLM's choices; faster-whisper-server's and older speaches'
//! segments, which are bare texts without a mark behind the last).
//!
//! whisper.cpp and faster-whisper take the model as `model` or `model_name`, ignore what they do
//! not know and tell words in `verbose_json`; vLLM knows `json` alone.

use super::hearing::{HearCall, HearEvent, HearStream, RATE, Sound, Word, write};
use super::http::{Body, Http};
use super::lines::{Lines, Sse, sse};
use super::refusal::{complaint, cut, refusal, rubbish, unreachable};
use super::{EngineError, MAX_ERROR_BODY};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::header::HeaderValue;
use serde_json::Value;
use unamesh_client::audio::wav::stream_header;
use unamesh_proto::limits::{MAX_ENGINE_BODY, MAX_HEARD_SECONDS};

/// What the server understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// OpenAI's: partial transcripts by events, plain `json` otherwise.
    OpenAi,
    /// whisper.cpp, faster-whisper: `verbose_json`, no events.
    Whisper,
}

/// Starts a transcription. Nothing is sent before the utterance has ended.
///
/// # Errors
/// The call's extra fields are none.
pub fn hear(
    engine: &str,
    http: &Http,
    api: Api,
    call: HearCall,
    sound: Sound,
) -> Result<HearStream, EngineError> {
    let form = Form::of(api, &call)?;
    let hearing = Hearing {
        engine: engine.to_owned(),
        model: call.model,
        http: http.clone(),
        state: State::Listening(sound, form),
    };
    Ok(stream::unfold(Box::new(hearing), |mut hearing| async move {
        let item = hearing.next().await?;
        Some((item, hearing))
    })
    .boxed())
}

struct Hearing {
    engine: String,
    model: String,
    http: Http,
    state: State,
}

enum State {
    Listening(Sound, Form),
    /// The answer streams.
    Reading(Lines, Said),
    Over,
}

/// What a streamed answer has said so far.
#[derive(Default)]
struct Said {
    text: String,
    /// In deltas, behind which there must be a mark.
    deltas: bool,
}

impl Said {
    /// Appends a segment, a part of the text that is whole by itself.
    fn segment(&mut self, text: &str) {
        let apart = |c: char| c.is_whitespace();
        if !self.text.is_empty() && !self.text.ends_with(apart) && !text.starts_with(apart) {
            self.text.push(' ');
        }
        self.text.push_str(text);
    }
}

impl Hearing {
    async fn next(&mut self) -> Option<Result<HearEvent, EngineError>> {
        let item = match std::mem::replace(&mut self.state, State::Over) {
            State::Listening(sound, form) => self.ask(sound, form).await,
            State::Reading(lines, said) => self.read(lines, said).await,
            State::Over => return None,
        };
        Some(item)
    }

    async fn ask(&mut self, mut sound: Sound, mut form: Form) -> Result<HearEvent, EngineError> {
        while let Some(samples) = sound.recv().await {
            form.sound(&samples)?;
        }
        if form.is_silent() {
            return Ok(HearEvent::bare(""));
        }
        let (kind, body) = form.finish();
        let reply = self
            .http
            .upload("/v1/audio/transcriptions", kind, body)
            .await;
        let reply = reply.map_err(|error| unreachable(&self.engine, error))?;
        if !reply.status.is_success() {
            let words = reply.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
            return Err(refusal(&self.engine, &self.model, reply.status, &words));
        }
        let events = |kind: &String| kind.starts_with("text/event-stream");
        if reply.content_type.as_ref().is_some_and(events) {
            self.state = State::Reading(Lines::new(reply.body), Said::default());
            return Ok(HearEvent::Progress);
        }
        self.whole(reply.body).await
    }

    async fn whole(&self, body: Body) -> Result<HearEvent, EngineError> {
        let body = body.collect(MAX_ENGINE_BODY).await;
        let body = body.map_err(|error| unreachable(&self.engine, error))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|e| rubbish(&self.engine, &e))?;
        self.transcript(&answer)
    }

    fn transcript(&self, answer: &Value) -> Result<HearEvent, EngineError> {
        let Some(text) = answer["text"].as_str() else {
            let error = answer.get("error").or_else(|| answer.get("detail"));
            return Err(match error {
                Some(error) => complaint(&self.engine, &self.model, error),
                None => self.failed("its answer holds no transcript"),
            });
        };
        let segments = answer["segments"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut words = Word::read_all(&answer["words"]);
        if words.is_empty() {
            words = segments
                .iter()
                .flat_map(|s| Word::read_all(&s["words"]))
                .collect();
        }
        let likely: Vec<f64> = segments
            .iter()
            .filter_map(|s| s["avg_logprob"].as_f64())
            .collect();
        let mean = likely.iter().sum::<f64>() / likely.len().max(1) as f64;
        Ok(HearEvent::Final {
            text: text.trim().to_owned(),
            language: answer["language"].as_str().unwrap_or_default().to_owned(),
            words,
            confidence: (!likely.is_empty()).then(|| mean.exp().clamp(0.0, 1.0) as f32),
        })
    }

    async fn read(&mut self, mut lines: Lines, mut said: Said) -> Result<HearEvent, EngineError> {
        loop {
            let line = lines.next().await.map_err(|e| cut(&self.engine, e))?;
            let data = match line.map(sse) {
                // Segments just end; a connection that breaks is an error by itself.
                None if !said.deltas && !said.text.is_empty() => {
                    return Ok(HearEvent::bare(&said.text));
                }
                // vLLM ends with `[DONE]`, others with an event that holds all; one that just
                // ends was cut off.
                None => return Err(super::stream::ended_early(&self.engine)),
                Some(Sse::Data("[DONE]")) => return Ok(HearEvent::bare(&said.text)),
                Some(Sse::Data(data)) => data,
                Some(_) => continue,
            };
            let event: Value = serde_json::from_str(data).map_err(|e| rubbish(&self.engine, &e))?;
            if let Some(error) = event.get("error") {
                return Err(complaint(&self.engine, &self.model, error));
            }
            let bare = event["text"].as_str().filter(|_| event["type"].is_null());
            // Behind deltas a text is all of it.
            if event["type"] == "transcript.text.done" || (bare.is_some() && said.deltas) {
                return self.transcript(&event);
            }
            let delta = event["delta"].as_str();
            let delta = delta.or_else(|| event["choices"][0]["delta"]["content"].as_str());
            match (
                bare.filter(|t| !t.is_empty()),
                delta.filter(|d| !d.is_empty()),
            ) {
                (Some(segment), _) => said.segment(segment),
                (None, Some(delta)) => {
                    said.text.push_str(delta);
                    said.deltas = true;
                }
                (None, None) => continue,
            }
            if said.text.len() > MAX_ENGINE_BODY {
                return Err(self.failed("its transcript has no end"));
            }
            let text = said.text.trim().to_owned();
            self.state = State::Reading(lines, said);
            return Ok(HearEvent::Partial { text });
        }
    }

    fn failed(&self, reason: &str) -> EngineError {
        EngineError::Failed {
            engine: self.engine.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// The body of an upload: fields, then the WAV as its last part.
struct Form {
    boundary: String,
    bytes: Vec<u8>,
    /// Where the WAV starts.
    wav: usize,
    heard: bool,
}

/// Where lengths stand in the WAV's head that [`stream_header`] makes: the second is its end.
const LENGTHS: [usize; 2] = [4, 40];
/// Bytes of that head.
const WAV_HEAD: usize = LENGTHS[1] + 4;

impl Form {
    fn of(api: Api, call: &HearCall) -> Result<Form, EngineError> {
        let mut form = Form {
            boundary: format!("unamesh-{:032x}", rand::random::<u128>()),
            bytes: Vec::new(),
            wav: 0,
            heard: false,
        };
        let extra = call.extra()?;
        for (name, value) in &extra {
            let value = value.get();
            let text = serde_json::from_str::<String>(value);
            form.field(name, text.as_deref().unwrap_or(value))?;
        }
        let model = if call.model.is_empty() {
            "whisper-1"
        } else {
            &call.model
        };
        let partials = call.partials && api == Api::OpenAi;
        let format = match api {
            Api::OpenAi => "json",
            Api::Whisper => "verbose_json",
        };
        let fields = [
            ("model", model),
            ("model_name", if api == Api::Whisper { model } else { "" }),
            ("language", call.bare_language()),
            ("prompt", &call.prompt),
            ("response_format", format),
            ("stream", if partials { "true" } else { "" }),
        ];
        for (name, value) in fields {
            if !value.is_empty() && !extra.contains_key(name) {
                form.field(name, value)?;
            }
        }
        form.part("name=\"file\"; filename=\"speech.wav\"\r\nContent-Type: audio/wav");
        form.wav = form.bytes.len();
        form.bytes.extend(stream_header(RATE));
        Ok(form)
    }

    fn part(&mut self, head: &str) {
        let head = format!(
            "--{}\r\nContent-Disposition: form-data; {head}\r\n\r\n",
            self.boundary
        );
        self.bytes.extend_from_slice(head.as_bytes());
    }

    fn field(&mut self, name: &str, value: &str) -> Result<(), EngineError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.[]".contains(&b);
        if !name.bytes().all(plain) {
            return Err(EngineError::Invalid {
                message: format!("extra: {name:?} cannot be the name of a form's field"),
                field: Some("extra".to_owned()),
            });
        }
        self.part(&format!("name=\"{name}\""));
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn sound(&mut self, samples: &[i16]) -> Result<(), EngineError> {
        let limit = MAX_HEARD_SECONDS * RATE as usize * 2 + WAV_HEAD;
        if self.bytes.len() - self.wav + samples.len() * 2 > limit {
            return Err(EngineError::Invalid {
                message: format!("an utterance of more than {MAX_HEARD_SECONDS} s"),
                field: None,
            });
        }
        self.heard |= samples.iter().any(|s| *s != 0);
        write(samples, &mut self.bytes);
        Ok(())
    }

    /// Nothing but zeros: a recognizer would make words up.
    fn is_silent(&self) -> bool {
        !self.heard
    }

    fn finish(mut self) -> (HeaderValue, Bytes) {
        // The head was made for a length that was not known; some readers believe it.
        let wav = self.bytes.len() - self.wav;
        for at in LENGTHS {
            let length = u32::try_from(wav - at - 4).unwrap_or(u32::MAX);
            let place = self.wav + at..self.wav + at + 4;
            self.bytes[place].copy_from_slice(&length.to_le_bytes());
        }
        let end = format!("\r\n--{}--\r\n", self.boundary);
        self.bytes.extend_from_slice(end.as_bytes());
        let kind = format!("multipart/form-data; boundary={}", self.boundary);
        let kind =
            HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static("multipart/form-data"));
        (kind, self.bytes.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_client::audio::wav::Parser;

    #[test]
    fn the_form_holds_a_whole_wav() {
        let call = HearCall {
            language: "en-US".into(),
            extra: r#"{"temperature":0,"x":"y"}"#.into(),
            ..HearCall::default()
        };
        let mut form = Form::of(Api::Whisper, &call).unwrap();
        form.sound(&[1, -2, 3]).unwrap();
        let start = form.wav;
        let (kind, body) = form.finish();
        let boundary = kind
            .to_str()
            .unwrap()
            .rsplit('=')
            .next()
            .unwrap()
            .to_owned();
        let head = String::from_utf8(body[..start].to_vec()).unwrap();
        for field in [
            "name=\"model_name\"\r\n\r\nwhisper-1\r\n",
            "name=\"language\"\r\n\r\nen\r\n",
            "name=\"temperature\"\r\n\r\n0\r\n",
            "name=\"x\"\r\n\r\ny\r\n",
            "name=\"response_format\"\r\n\r\nverbose_json\r\n",
        ] {
            assert!(head.contains(field), "{field} in {head}");
        }
        let tail = format!("\r\n--{boundary}--\r\n");
        assert!(body.ends_with(tail.as_bytes()));
        let (mut parser, mut out) = (Parser::new(), Vec::new());
        parser
            .push(&body[start..body.len() - tail.len()], &mut out)
            .unwrap();
        parser.finish().unwrap();
        assert_eq!((out.len(), parser.format().unwrap().rate), (3, RATE));
    }

    #[test]
    fn the_longest_utterance_fits_to_the_sample() {
        let mut form = Form::of(Api::OpenAi, &HearCall::default()).unwrap();
        let second = vec![1; RATE as usize];
        for _ in 0..MAX_HEARD_SECONDS {
            form.sound(&second).unwrap();
        }
        assert!(matches!(
            form.sound(&[1]),
            Err(EngineError::Invalid { message, .. }) if message.contains("900 s")
        ));
    }

    #[test]
    fn fields_cannot_break_the_form() {
        let call = HearCall {
            extra: r#"{"a\"\r\nb":1}"#.into(),
            ..HearCall::default()
        };
        assert!(matches!(
            Form::of(Api::OpenAi, &call),
            Err(EngineError::Invalid { .. })
        ));
    }
}
