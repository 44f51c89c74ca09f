//! The voice of the operating system, as the last resort: `say` on macOS, SAPI on Windows,
//! `espeak-ng` elsewhere.
//!
//! Each is a child process that gets the text on its standard input, never in a command line,
//! and gives a WAV. `espeak-ng` writes it to its standard output as it speaks; `say` and SAPI
//! write files only, which are read when they are done. A child dies with its stream.

use super::openai::advert;
use super::sounding::{Out, Reader, Source, run};
use super::speech::{SpeechCall, SpeechStream, Voice, check_voice};
use super::{Engine, EngineError, EngineInfo, EngineStream};
use std::ffi::OsString;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use unamesh_proto::limits::MAX_VOICES;
use unamesh_proto::timeouts::ENGINE_HEALTH;
use unamesh_proto::wire::{EngineKind, GenerateRequest, Health, ModelAdvert, ModelKind};

/// These are light on the machine.
const SLOTS: u16 = 4;
/// Words a minute at speed 1, which both programs call usual.
const WORDS_A_MINUTE: f32 = 175.0;
/// Bytes that are read at once.
const READ: usize = 16 * 1024;
/// The list of voices is read up to this.
const MAX_LIST: u64 = 1024 * 1024;

/// Voice, speed and file come by the environment, so that nothing is quoted into the script.
const SAPI: &str = "\
$ErrorActionPreference='Stop';\
[Console]::InputEncoding=[Text.Encoding]::UTF8;\
Add-Type -AssemblyName System.Speech;\
$s=New-Object System.Speech.Synthesis.SpeechSynthesizer;\
if($env:UNAMESH_VOICE){$s.SelectVoice($env:UNAMESH_VOICE)};\
$s.Rate=[int]$env:UNAMESH_RATE;\
$s.SetOutputToWaveFile($env:UNAMESH_FILE);\
$s.Speak([Console]::In.ReadToEnd());\
$s.Dispose()";
const SAPI_VOICES: &str = "\
Add-Type -AssemblyName System.Speech;\
(New-Object System.Speech.Synthesis.SpeechSynthesizer).GetInstalledVoices()|\
%{$_.VoiceInfo.Culture.Name+' '+$_.VoiceInfo.Name}";

/// Which program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Espeak,
    Say,
    Sapi,
}

/// An adapter to it.
pub struct System {
    name: String,
    program: Program,
    path: OsString,
    slots: u16,
    voices: Mutex<Vec<Voice>>,
}

impl System {
    /// The voice that this operating system has.
    pub fn of_this_machine(name: String, slots: Option<u16>) -> Self {
        let (program, path) = if cfg!(target_os = "macos") {
            (Program::Say, "/usr/bin/say")
        } else if cfg!(windows) {
            (Program::Sapi, "powershell.exe")
        } else {
            (Program::Espeak, "espeak-ng")
        };
        System {
            name,
            program,
            path: path.into(),
            slots: slots.unwrap_or(SLOTS),
            voices: Mutex::default(),
        }
    }

    /// Speaks by a program that takes espeak-ng's arguments.
    #[cfg(test)]
    pub(super) fn espeak_at(name: String, path: OsString) -> Self {
        System {
            name,
            program: Program::Espeak,
            path,
            slots: SLOTS,
            voices: Mutex::default(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.stderr(Stdio::null()).kill_on_drop(true);
        command
    }

    fn start(&self, command: &mut Command) -> Result<Child, EngineError> {
        command.spawn().map_err(|error| EngineError::Down {
            engine: self.name.clone(),
            reason: format!("{}: {error}", self.path.to_string_lossy()),
        })
    }

    async fn list(&self) -> Result<Vec<Voice>, EngineError> {
        let args: &[&str] = match self.program {
            Program::Espeak => &["--voices"],
            Program::Say => &["-v", "?"],
            Program::Sapi => &["-NoProfile", "-NonInteractive", "-Command", SAPI_VOICES],
        };
        let mut child = self.start(&mut self.command(args))?;
        drop(child.stdin.take());
        let mut text = Vec::new();
        if let Some(out) = child.stdout.take() {
            let read = out.take(MAX_LIST).read_to_end(&mut text).await;
            read.map_err(|e| failed(&self.name, e))?;
        }
        let text = String::from_utf8_lossy(&text);
        let voices = text.lines().filter_map(|line| self.program.voice(line));
        let mut voices: Vec<Voice> = voices.take(MAX_VOICES).collect();
        voices.dedup();
        Ok(voices)
    }
}

impl Program {
    /// Reads one line of the list of voices.
    fn voice(self, line: &str) -> Option<Voice> {
        let mut words = line.split_whitespace();
        match self {
            // "Pty Language Age/Gender VoiceName ..."; it is chosen by its language.
            Program::Espeak => {
                words.next()?.parse::<u8>().ok()?;
                let language = words.next()?;
                Some(Voice::new(language, language))
            }
            // "Bad News            en_US    # The light you see ..."
            Program::Say => {
                let said = line.split_once(" #").map_or(line, |(said, _)| said).trim();
                let (name, language) = said.rsplit_once(char::is_whitespace)?;
                Some(Voice::new(name.trim(), language))
            }
            Program::Sapi => {
                let (language, name) = line.trim().split_once(' ')?;
                Some(Voice::new(name, language))
            }
        }
    }
}

#[async_trait::async_trait]
impl Engine for System {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> EngineKind {
        EngineKind::System
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        // Its voices do not change while the agent runs; a process every two seconds would be
        // heard in the fan.
        let known = self
            .voices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let voices = match known.is_empty() {
            false => known,
            true => match tokio::time::timeout(ENGINE_HEALTH, self.list()).await {
                Ok(listed) => listed?,
                Err(_) => {
                    return Err(EngineError::Busy {
                        engine: self.name.clone(),
                    });
                }
            },
        };
        self.voices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&voices);
        let model = match self.program {
            Program::Espeak => "espeak-ng",
            Program::Say => "say",
            Program::Sapi => "sapi",
        };
        Ok(EngineInfo {
            health: Health::Ok,
            slots: self.slots,
            models: vec![ModelAdvert {
                kind: ModelKind::Tts,
                ..advert(model.to_owned())
            }],
            voices,
            version: String::new(),
        })
    }

    async fn generate(&self, _: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        Err(self.cannot("text generation"))
    }

    async fn speak(&self, call: SpeechCall) -> Result<SpeechStream, EngineError> {
        call.check()?;
        {
            let known = self.voices.lock().unwrap_or_else(PoisonError::into_inner);
            check_voice(&self.name, &call.voice, &known)?;
        }
        // It would be read as an option.
        if call.voice.starts_with('-') {
            return Err(super::speech::unknown_voice(&self.name, &call.voice));
        }
        let speed = call.speed.unwrap_or(1.0).clamp(0.25, 4.0);
        let words = (WORDS_A_MINUTE * speed).round().to_string();
        let file = match self.program {
            Program::Espeak => None,
            _ => Some(file().map_err(|e| failed(&self.name, e))?),
        };
        let path = file.as_ref().map(|file| file.as_os_str());
        let mut command = match self.program {
            Program::Espeak => self.command(&["--stdin", "--stdout", "-s", &words]),
            Program::Say => {
                let mut command = self.command(&["-f", "-", "-r", &words]);
                command.args(["--file-format=WAVE", "--data-format=LEI16@22050", "-o"]);
                command.args(path);
                command
            }
            Program::Sapi => {
                let mut command =
                    self.command(&["-NoProfile", "-NonInteractive", "-Command", SAPI]);
                // -10 to 10, three times as fast at 10.
                let rate = (speed.ln() / 3f32.ln() * 10.0).round().clamp(-10.0, 10.0);
                command.env("UNAMESH_VOICE", &call.voice);
                command.env("UNAMESH_RATE", rate.to_string());
                command.envs(path.map(|path| ("UNAMESH_FILE", path)));
                command
            }
        };
        if !call.voice.is_empty() && self.program != Program::Sapi {
            command.args(["-v", &call.voice]);
        }
        let mut child = self.start(&mut command)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let text = call.text.clone();
        let speaking = Speaking {
            child,
            writing: Some(Box::pin(async move {
                let Some(mut stdin) = stdin else { return };
                // A program that does not read on says why by its status.
                let _ = stdin.write_all(text.as_bytes()).await;
            })),
            sound: stdout.map(|out| Box::pin(out) as Pin<Box<dyn AsyncRead + Send>>),
            file,
            buffer: vec![0; READ],
        };
        Ok(run(speaking, Reader::new(&self.name, &call, None)))
    }
}

/// A file that nobody else can read, gone when it is dropped.
fn file() -> std::io::Result<tempfile::TempPath> {
    let file = tempfile::Builder::new()
        .prefix("unamesh-")
        .suffix(".wav")
        .tempfile()?;
    Ok(file.into_temp_path())
}

fn failed(engine: &str, reason: impl ToString) -> EngineError {
    EngineError::Failed {
        engine: engine.to_owned(),
        reason: reason.to_string(),
    }
}

/// A child that speaks.
struct Speaking {
    child: Child,
    writing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    sound: Option<Pin<Box<dyn AsyncRead + Send>>>,
    /// Read once the child is done.
    file: Option<tempfile::TempPath>,
    buffer: Vec<u8>,
}

impl Source for Speaking {
    async fn more(&mut self, reader: &mut Reader, out: &mut Out) -> Result<bool, EngineError> {
        let Some(sound) = &mut self.sound else {
            return Ok(false);
        };
        let read = match &mut self.writing {
            // A large text and its sound go through small pipes at the same time.
            Some(writing) => tokio::select! {
                () = writing => {
                    self.writing = None;
                    return Ok(true);
                }
                read = sound.read(&mut self.buffer) => read,
            },
            None => sound.read(&mut self.buffer).await,
        };
        match read.map_err(|e| reader.failed(e))? {
            0 => self.next_sound(reader).await,
            _ if self.is_file_to_come() => Ok(true),
            read => reader.push(&self.buffer[..read], out).map(|()| true),
        }
    }
}

impl Speaking {
    /// What the child prints is no sound when it writes a file.
    fn is_file_to_come(&self) -> bool {
        self.file.is_some()
    }

    /// The child has ended, or the file has.
    async fn next_sound(&mut self, reader: &Reader) -> Result<bool, EngineError> {
        self.sound = None;
        self.writing = None;
        let status = self.child.wait().await.map_err(|e| reader.failed(e))?;
        if !status.success() {
            return Err(reader.failed(format!("ended with {status}")));
        }
        let Some(path) = self.file.take() else {
            return Ok(false);
        };
        let file = tokio::fs::File::open(&path).await;
        // Open files outlive their names, except on Windows, where removal fails silently later.
        self.sound = Some(Box::pin(file.map_err(|e| reader.failed(e))?));
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_voices_are_read() {
        let espeak = " 5  en-gb          --/M      English_(Great_Britain) gmw/en  (en 2)";
        let voice = Program::Espeak.voice(espeak).unwrap();
        assert_eq!(
            (voice.name.as_str(), voice.language.as_str()),
            ("en-gb", "en-gb")
        );
        assert_eq!(
            Program::Espeak.voice("Pty Language  Age/Gender VoiceName"),
            None
        );
        let say = "Bad News            en_US    # The light you see";
        assert_eq!(
            Program::Say.voice(say),
            Some(Voice::new("Bad News", "en-US"))
        );
        let sapi = Program::Sapi.voice("en-US Microsoft Zira Desktop\r");
        assert_eq!(sapi, Some(Voice::new("Microsoft Zira Desktop", "en-US")));
    }
}
