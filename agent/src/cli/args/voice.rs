//! What can be typed about speech.

use crate::cli::sound::output::Format;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// `unamesh say`.
#[derive(Clone, Debug, Args)]
pub struct SayArgs {
    /// What to say; `-` or nothing: what is piped in
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
    /// Write it to a file: .wav, .ogg (Opus) or .pcm (raw s16le, 24 kHz, mono); `-` = a WAV on standard output
    /// [default: play it; in a build without the speaker say.wav]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// How to write it, whatever the file's name says
    #[arg(long, value_name = "FORMAT", value_enum, requires = "output")]
    pub format: Option<Format>,
    /// Who is to speak: `unamesh voices` lists all
    #[arg(long, short, value_name = "VOICE")]
    pub voice: Option<String>,
    /// If nobody has that voice, or nobody has it any more, let another go on
    #[arg(long, requires = "voice")]
    pub any_voice: bool,
    /// The model of the voice
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// The language, such as de or en-GB [default: the voice's]
    #[arg(long, value_name = "LANGUAGE")]
    pub language: Option<String>,
    /// 1.2 = a fifth faster than the voice does by itself
    #[arg(long, value_name = "NUMBER", value_parser = speed, allow_negative_numbers = true)]
    pub speed: Option<f32>,
}

/// `unamesh transcribe`.
#[derive(Clone, Debug, Args)]
pub struct TranscribeArgs {
    /// The recording: WAV or Ogg/Opus, told by its content; `-` = standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub input: PathBuf,
    /// It is raw PCM, 16 bits little-endian, mono, at this rate [default: 24000 Hz, as
    /// `say -o x.pcm` writes]
    #[arg(long, value_name = "RATE", num_args = 0..=1, require_equals = true, default_missing_value = "24000")]
    pub raw: Option<u32>,
    /// The model that listens
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// The language that is spoken, such as de [default: the engine finds out]
    #[arg(long, value_name = "LANGUAGE")]
    pub language: Option<String>,
    /// What was said before, or names that will come: helps with the spelling
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// One word a line with the seconds of its beginning and end
    #[arg(long)]
    pub times: bool,
}

/// `unamesh talk`.
#[derive(Clone, Debug, Args)]
pub struct TalkArgs {
    /// Recordings of what you say, a turn each; `-` = standard input [default: the
    /// microphone, and what is typed]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub inputs: Vec<PathBuf>,
    /// Write the answers, FILE, FILE-2, ...; `-` = a WAV on standard output
    /// [default: play them; in a build without the speaker answer.wav]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// The recordings come as a microphone's sound does, in real time: a pause ends an utterance
    #[arg(long, requires = "inputs")]
    pub live: bool,
    /// Milliseconds of silence that end what you say: more let you pause, fewer answer sooner
    /// [default: 300; with --live 600]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u16).range(100..=10_000))]
    pub silence: Option<u16>,
    /// The recordings are raw PCM, 16 bits little-endian, mono, at this rate [default: 24000 Hz,
    /// as `say -o x.pcm` writes]
    #[arg(long, value_name = "RATE", num_args = 0..=1, require_equals = true, default_missing_value = "24000")]
    pub raw: Option<u32>,
    /// The language model [default: the first that is loaded]
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// What the model is told before
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// End an answer after so many tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Who is to speak: `unamesh voices` lists all
    #[arg(long, value_name = "VOICE")]
    pub voice: Option<String>,
    /// The language that is spoken, such as de [default: the engines find out]
    #[arg(long, value_name = "LANGUAGE")]
    pub language: Option<String>,
    /// Show when each stage of a turn worked
    #[arg(long, short)]
    pub verbose: bool,
}

/// `unamesh voices`.
#[derive(Clone, Debug, Args)]
pub struct VoicesArgs {
    /// Only voices with this in their name, language or model
    pub filter: Option<String>,
}

fn speed(text: &str) -> Result<f32, String> {
    let expected = || "expected a number from 0.25 to 4".to_owned();
    let speed: f32 = text.parse().map_err(|_| expected())?;
    if (0.25..=4.0).contains(&speed) {
        Ok(speed)
    } else {
        Err(expected())
    }
}
