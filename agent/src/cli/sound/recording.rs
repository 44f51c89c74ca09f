//! A recording as 16 kHz mono.
//!
//! What the bytes are is seen by their beginning, never by a file's name: `RIFF` is a WAV, `OggS`
//! an Ogg file. Raw PCM has no beginning, so that somebody has to say that it is raw; noise that
//! is transcribed as speech would be worse than an error.

use super::super::error::CliError;
use super::UP;
use std::io::Read;
use std::path::Path;
use tokio::sync::mpsc;
use unamesh_client::audio::ogg::{OggError, Reader};
use unamesh_client::audio::pcm::{Bytes, Format, FormatError, to_s16};
use unamesh_client::audio::resample::{RateError, Resampler};
use unamesh_client::audio::wav::{Parser, WavError};
use unamesh_proto::limits::MAX_HEARD_SECONDS;

/// Bytes that are read at once: a third of a second of studio sound, two of raw speech.
const PIECE: usize = 64 * 1024;
/// Decoded pieces that wait for the network.
const AHEAD: usize = 8;
/// Bytes that tell what a file is.
const MARK: usize = 12;

/// Why a recording cannot be read. What was decoded before stays good.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// No bytes came.
    #[error("there is nothing in it")]
    Empty,
    /// Some other kind of file.
    #[error("it is {0}; WAV, Ogg/Opus and raw PCM can be read")]
    Other(&'static str),
    /// A damaged WAV, or one of an unusual kind.
    #[error(transparent)]
    Wav(#[from] WavError),
    /// A damaged Ogg file, or one without Opus.
    #[error(transparent)]
    Ogg(#[from] OggError),
    /// A format that is none of speech.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// There is more of it than is transcribed at once; it was cut there.
    #[error("only its first {} minutes are transcribed, more is not possible at once", MAX_HEARD_SECONDS / 60)]
    TooLong,
    /// A rate that cannot be converted.
    #[error(transparent)]
    Rate(#[from] RateError),
}

/// The bytes of a recording in, 16 kHz mono out.
pub struct Recording {
    decoder: Decoder,
    resampler: Option<Resampler>,
    decoded: Vec<f32>,
    resampled: Vec<f32>,
}

enum Decoder {
    /// Too few bytes yet to tell.
    Unknown(Vec<u8>),
    Wav(Parser),
    /// Decodes to 16 kHz by itself.
    Ogg(Reader),
    Raw(Bytes),
}

impl Recording {
    /// A recording at its first byte. `raw` = 16-bit mono PCM at that rate.
    ///
    /// # Errors
    /// The rate is none of speech.
    pub fn new(raw: Option<u32>) -> Result<Self, RecordingError> {
        let decoder = match raw {
            Some(rate) => Decoder::Raw(Bytes::new(Format::s16(rate))?),
            None => Decoder::Unknown(Vec::new()),
        };
        Ok(Recording {
            decoder,
            resampler: raw.map(|rate| Resampler::new(rate, UP)).transpose()?,
            decoded: Vec::new(),
            resampled: Vec::new(),
        })
    }

    /// Takes the next bytes and appends the samples that they complete to `out`.
    ///
    /// # Errors
    /// They are no recording that can be read; what is in `out` is good.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<i16>) -> Result<(), RecordingError> {
        if let Decoder::Unknown(head) = &mut self.decoder {
            head.extend_from_slice(bytes);
            if head.len() < MARK {
                return Ok(());
            }
            let head = std::mem::take(head);
            self.decoder = decoder(&head)?;
            return self.decode(&head, out);
        }
        self.decode(bytes, out)
    }

    fn decode(&mut self, bytes: &[u8], out: &mut Vec<i16>) -> Result<(), RecordingError> {
        self.decoded.clear();
        let (result, rate) = match &mut self.decoder {
            Decoder::Unknown(_) => return Ok(()),
            Decoder::Raw(raw) => {
                raw.push(bytes, &mut self.decoded);
                (Ok(()), raw.format().rate)
            }
            Decoder::Ogg(reader) => {
                let result = reader.push(bytes, &mut self.decoded);
                (result.map_err(RecordingError::from), UP)
            }
            Decoder::Wav(parser) => {
                let result = parser.push(bytes, &mut self.decoded);
                let rate = parser.format().map_or(UP, |format| format.rate);
                (result.map_err(RecordingError::from), rate)
            }
        };
        if !self.decoded.is_empty() {
            let resampler = match &mut self.resampler {
                Some(resampler) => resampler,
                none => none.insert(Resampler::new(rate, UP)?),
            };
            resampler.push(&self.decoded, &mut self.resampled);
            self.hand_out(out);
        }
        result
    }

    /// Ends the recording and appends its rest to `out`. What it returns is wrong with its end
    /// alone: all that came before was handed out.
    ///
    /// # Errors
    /// There is no sound in it at all.
    pub fn finish(&mut self, out: &mut Vec<i16>) -> Result<Option<RecordingError>, RecordingError> {
        self.decoded.clear();
        let end: Result<(), RecordingError> = match &mut self.decoder {
            Decoder::Unknown(head) if head.is_empty() => return Err(RecordingError::Empty),
            Decoder::Unknown(head) => return Err(other(head)),
            Decoder::Raw(_) => Ok(()),
            Decoder::Ogg(reader) => {
                let ended = reader.finish(&mut self.decoded);
                ended.map_err(RecordingError::from)
            }
            Decoder::Wav(parser) => parser.finish().map_err(RecordingError::from),
        };
        if self.resampler.is_none() && !self.decoded.is_empty() {
            self.resampler = Some(Resampler::new(UP, UP)?);
        }
        let Some(resampler) = &mut self.resampler else {
            return Err(end.err().unwrap_or(RecordingError::Empty));
        };
        resampler.push(&self.decoded, &mut self.resampled);
        resampler.finish(&mut self.resampled);
        self.hand_out(out);
        Ok(end.err())
    }

    fn hand_out(&mut self, out: &mut Vec<i16>) {
        out.extend(self.resampled.drain(..).map(to_s16));
    }
}

/// What the first bytes are of.
fn decoder(head: &[u8]) -> Result<Decoder, RecordingError> {
    if head.starts_with(b"RIFF") {
        Ok(Decoder::Wav(Parser::new()))
    } else if head.starts_with(b"OggS") {
        Ok(Decoder::Ogg(Reader::new(UP)))
    } else {
        Err(other(head))
    }
}

/// By the marks of what people usually have.
fn other(head: &[u8]) -> RecordingError {
    RecordingError::Other(match head {
        [b'f', b'L', b'a', b'C', ..] => "a FLAC file",
        [b'I', b'D', b'3', ..] | [0xff, 0xe2..=0xff, ..] => "an MP3 file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an MP4 (M4A) file",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "a WebM or Matroska file",
        [b'F', b'O', b'R', b'M', ..] => "an AIFF file",
        _ => "no recording of a kind that can be told",
    })
}

/// Pieces of 16 kHz mono, read from `path` (`-` = standard input) in a thread of their own: as
/// fast as they are taken. What is wrong with the end alone is handed to `warn`.
pub fn read(
    path: &Path,
    raw: Option<u32>,
    warn: impl FnOnce(RecordingError) + Send + 'static,
) -> Result<mpsc::Receiver<Result<Vec<i16>, CliError>>, CliError> {
    let name = path.display().to_string();
    let refused = {
        let name = name.clone();
        move |e: RecordingError| refusal(&name, &e)
    };
    let recording = Recording::new(raw).map_err(&refused)?;
    let source: Box<dyn Read + Send> = if name == "-" {
        Box::new(std::io::stdin())
    } else {
        let file = std::fs::File::open(path)
            .map_err(|e| CliError::new("input", format!("cannot read {name}: {e}")))?;
        Box::new(file)
    };
    let (pieces, received) = mpsc::channel(AHEAD);
    // Detached: a read of standard input cannot be cancelled, and ends with the program.
    tokio::task::spawn_blocking(move || {
        let ended = pump(source, recording, &pieces, warn, &name, &refused);
        if let Err(error) = ended {
            // Without a receiver there is nobody left to tell.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    Ok(received)
}

fn pump(
    mut source: Box<dyn Read + Send>,
    mut recording: Recording,
    pieces: &mpsc::Sender<Result<Vec<i16>, CliError>>,
    warn: impl FnOnce(RecordingError),
    name: &str,
    refused: impl Fn(RecordingError) -> CliError,
) -> Result<(), CliError> {
    let mut buffer = vec![0; PIECE];
    let mut room = MAX_HEARD_SECONDS * UP as usize;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CliError::new("input", format!("cannot read {name}: {e}"))),
        };
        let mut samples = Vec::new();
        if room == 0 {
            warn(RecordingError::TooLong);
            return Ok(());
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        let pushed = recording.push(bytes, &mut samples);
        samples.truncate(room);
        room -= samples.len();
        if !samples.is_empty() && pieces.blocking_send(Ok(samples)).is_err() {
            return Ok(());
        }
        pushed.map_err(&refused)?;
    }
    let mut samples = Vec::new();
    if let Some(end) = recording.finish(&mut samples).map_err(&refused)? {
        warn(end);
    }
    // Without a receiver nobody wants it any more.
    let _ = pieces.blocking_send(Ok(samples));
    Ok(())
}

fn refusal(name: &str, error: &RecordingError) -> CliError {
    let shown = if name == "-" { "standard input" } else { name };
    let refused = CliError::new("input", format!("{shown}: {error}"));
    match error {
        RecordingError::Other("no recording of a kind that can be told") => refused
            .next(format!("unamesh transcribe --raw=RATE {name}"))
            .next(format!("ffmpeg -i {name} -ac 1 -ar 16000 speech.wav")),
        RecordingError::Other(_)
        | RecordingError::Rate(_)
        | RecordingError::Wav(WavError::Unsupported { .. })
        | RecordingError::Ogg(OggError::NoOpus) => {
            refused.next(format!("ffmpeg -i {name} -ac 1 -ar 16000 speech.wav"))
        }
        _ => refused,
    }
}

#[cfg(test)]
#[path = "recording_tests.rs"]
mod tests;
