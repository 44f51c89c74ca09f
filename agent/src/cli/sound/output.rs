//! Where speech goes: a file, or standard output.

use super::super::error::CliError;
use super::{DOWN, spoken};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use unamesh_client::audio::ogg::{self, OggError};
use unamesh_client::audio::opus::Profile;
use unamesh_client::audio::pcm::from_s16;
use unamesh_client::audio::wav;

/// How speech is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// 24 kHz, 16 bits, mono
    Wav,
    /// Opus in Ogg: a tenth of the size
    Ogg,
    /// The WAV's samples without its header: s16le, 24 kHz, mono
    Pcm,
}

impl Format {
    /// What a file's name asks for.
    pub fn of(path: &Path) -> Option<Format> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "wav" | "wave" => Format::Wav,
            "ogg" | "oga" | "opus" => Format::Ogg,
            "pcm" | "raw" | "s16" => Format::Pcm,
            _ => return None,
        })
    }
}

/// Speech on its way into a file or onto standard output. The file is made with the first sample,
/// so that an old one of the same name outlives a request that nobody answers.
pub struct Output {
    path: PathBuf,
    format: Format,
    writer: Option<Writer>,
    samples: u64,
}

enum Writer {
    Wav(Box<wav::Writer<BufWriter<File>>>),
    Ogg(Box<ogg::Writer<Box<dyn Write>>>),
    Bytes(Box<dyn Write>),
}

impl Output {
    /// To `path` (`-` = standard output), as `format` or as the name says, else as WAV.
    ///
    /// # Errors
    /// The name says something that cannot be written; sound on a terminal.
    pub fn new(path: &Path, format: Option<Format>) -> Result<Self, CliError> {
        let stdout = path == Path::new("-");
        if stdout && std::io::stdout().is_terminal() {
            return Err(CliError::new(
                "output",
                "a terminal cannot play sound: name a file, or pipe it into a player",
            )
            .next("unamesh say \"...\" -o out.wav")
            .next("unamesh say \"...\" -o - | aplay"));
        }
        let named = Format::of(path);
        if !stdout && format.is_none() && named.is_none() && path.extension().is_some() {
            let message = format!(
                "{}: speech is written as .wav, .ogg (Opus) or .pcm; --format chooses one for \
                 any other name",
                path.display()
            );
            return Err(CliError::new("output", message));
        }
        Ok(Output {
            path: path.to_owned(),
            format: format.or(named).unwrap_or(Format::Wav),
            writer: None,
            samples: 0,
        })
    }

    /// Appends samples (24 kHz).
    ///
    /// # Errors
    /// The file cannot be written, or the reader of standard output went away.
    pub fn push(&mut self, pcm: &[i16]) -> Result<(), CliError> {
        if self.writer.is_none() {
            let opened = self.open().map_err(|e| self.failed(e))?;
            self.writer = Some(opened);
        }
        let written = match &mut self.writer {
            Some(Writer::Wav(writer)) => writer.push(&floats(pcm)),
            Some(Writer::Ogg(writer)) => writer.push(&floats(pcm)).map_err(io_error),
            Some(Writer::Bytes(writer)) => write_pcm(writer.as_mut(), pcm),
            None => Ok(()),
        };
        written.map_err(|e| self.failed(e))?;
        self.samples += pcm.len() as u64;
        Ok(())
    }

    /// How much was written.
    pub fn duration(&self) -> Duration {
        spoken(self.samples)
    }

    /// What a reader has to be told of samples without a header.
    pub fn raw(&self) -> Option<&'static str> {
        (self.format == Format::Pcm).then_some("raw, 24000 Hz mono s16le")
    }

    /// The file, if it is one and was begun.
    pub fn file(&self) -> Option<&Path> {
        (self.samples > 0 && !self.is_stdout()).then_some(&self.path)
    }

    /// Completes the file: lengths into its header, the last packet out. It is a good file also
    /// if the speech broke off.
    ///
    /// # Errors
    /// As [`Output::push`].
    pub fn finish(&mut self) -> Result<(), CliError> {
        let finished = match self.writer.take() {
            Some(Writer::Wav(writer)) => writer.finish(),
            Some(Writer::Ogg(writer)) => writer.finish().map(drop).map_err(io_error),
            Some(Writer::Bytes(mut writer)) => writer.flush(),
            None => Ok(()),
        };
        finished.map_err(|e| self.failed(e))
    }

    fn open(&self) -> std::io::Result<Writer> {
        if self.format == Format::Wav && !self.is_stdout() {
            let file = BufWriter::new(File::create(&self.path)?);
            return Ok(Writer::Wav(Box::new(wav::Writer::new(file, DOWN)?)));
        }
        let mut bytes: Box<dyn Write> = if self.is_stdout() {
            Box::new(std::io::stdout())
        } else {
            Box::new(BufWriter::new(File::create(&self.path)?))
        };
        Ok(match self.format {
            Format::Wav => {
                bytes.write_all(&wav::stream_header(DOWN))?;
                Writer::Bytes(bytes)
            }
            Format::Pcm => Writer::Bytes(bytes),
            // Its number tells it from other streams in one file; here it is alone.
            Format::Ogg => Writer::Ogg(Box::new(
                ogg::Writer::new(bytes, Profile::Down, 1).map_err(io_error)?,
            )),
        })
    }

    fn is_stdout(&self) -> bool {
        self.path == Path::new("-")
    }

    fn failed(&self, error: std::io::Error) -> CliError {
        match error.kind() {
            ErrorKind::BrokenPipe if self.is_stdout() => CliError::closed_pipe(),
            _ => {
                let message = format!("cannot write {}: {error}", self.path.display());
                CliError::new("output", message)
            }
        }
    }
}

fn floats(pcm: &[i16]) -> Vec<f32> {
    pcm.iter().copied().map(from_s16).collect()
}

fn write_pcm(writer: &mut dyn Write, pcm: &[i16]) -> std::io::Result<()> {
    let bytes: Vec<u8> = pcm.iter().flat_map(|s| s.to_le_bytes()).collect();
    writer.write_all(&bytes)?;
    // A player that reads along must not wait for a buffer to fill.
    writer.flush()
}

fn io_error(error: OggError) -> std::io::Error {
    match error {
        OggError::Write(error) => error,
        other => std::io::Error::other(other),
    }
}

/// The first of `say.wav`, `say-2.wav`, ... that is free in `folder`.
pub fn free_name(folder: &Path, stem: &str) -> PathBuf {
    let names = (2u32..).map(|n| format!("{stem}-{n}.wav"));
    let mut paths = std::iter::once(format!("{stem}.wav")).chain(names);
    let free = paths.find(|name| !folder.join(name).exists());
    folder.join(free.unwrap_or_else(|| format!("{stem}.wav")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::recording::Recording;
    use super::*;

    #[test]
    fn names_say_what_is_written() {
        for (name, format) in [
            ("a.wav", Some(Format::Wav)),
            ("a.OPUS", Some(Format::Ogg)),
            ("a.b/c.ogg", Some(Format::Ogg)),
            ("a.pcm", Some(Format::Pcm)),
            ("a.mp3", None),
            ("a", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
        let refused = Output::new(Path::new("a.mp3"), None).err().unwrap();
        assert!(refused.message.contains("--format"), "{refused:?}");
        assert!(Output::new(Path::new("a.mp3"), Some(Format::Ogg)).is_ok());
    }

    #[test]
    fn every_format_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        for (name, raw) in [("a.wav", None), ("a.ogg", None), ("a.pcm", Some(DOWN))] {
            let path = dir.path().join(name);
            let mut output = Output::new(&path, None).unwrap();
            assert!(!path.exists(), "no sample, no file");
            for _ in 0..50 {
                output.push(&[1000; 480]).unwrap();
            }
            assert_eq!(output.duration(), Duration::from_secs(1));
            output.finish().unwrap();
            assert_eq!(output.file(), Some(path.as_path()));
            let (mut recording, mut back) = (Recording::new(raw).unwrap(), Vec::new());
            recording
                .push(&std::fs::read(&path).unwrap(), &mut back)
                .unwrap();
            assert!(recording.finish(&mut back).unwrap().is_none(), "{name}");
            assert_eq!(back.len(), 16_000, "{name}");
        }
    }

    #[test]
    fn what_is_there_is_not_written_over_unasked() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_name(dir.path(), "say"), dir.path().join("say.wav"));
        std::fs::write(dir.path().join("say.wav"), "").unwrap();
        std::fs::write(dir.path().join("say-2.wav"), "").unwrap();
        assert_eq!(free_name(dir.path(), "say"), dir.path().join("say-3.wav"));
    }
}
