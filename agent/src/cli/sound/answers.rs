//! Where the answers of a conversation go: a file for each turn, one stream, or the speaker.

use super::super::context::Context;
use super::super::error::CliError;
use super::device::Speaker;
use super::output::{Output, free_name};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The answers' way.
pub struct Answers(Way);

enum Way {
    /// The file of the first turn, how many were written, and the one that is.
    Files {
        first: PathBuf,
        /// Nobody gave that name.
        unnamed: bool,
        turns: usize,
        now: Option<Box<Output>>,
    },
    Stdout(Box<Output>),
    Speaker(Box<Speaker>),
}

/// An answer in its file.
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// How long it is.
    pub length: Duration,
}

impl Written {
    /// `answer.wav: 4.2 s`.
    pub fn text(&self) -> String {
        let seconds = self.length.as_secs_f64();
        format!("{}: {seconds:.1} s", self.path.display())
    }
}

impl Answers {
    /// Into files named after `path`, onto standard output if it is `-`; without one to the
    /// speaker, or where there is none into files.
    ///
    /// # Errors
    /// See [`Output::new`].
    pub fn new(context: &Context, path: Option<&Path>) -> Result<Self, CliError> {
        let files = |first: PathBuf, unnamed: bool| {
            // Looked at now: after the first turn it would be late.
            Output::new(&first, None).map(|_| {
                Answers(Way::Files {
                    first,
                    unnamed,
                    turns: 0,
                    now: None,
                })
            })
        };
        match path {
            Some(path) if path == Path::new("-") && context.out.json => Err(CliError::new(
                "output",
                "--json and -o - both want standard output",
            )),
            Some(path) if path == Path::new("-") => {
                Ok(Answers(Way::Stdout(Box::new(Output::new(path, None)?))))
            }
            Some(path) => files(path.to_owned(), false),
            None => match Speaker::open() {
                Ok(speaker) => Ok(Answers(Way::Speaker(Box::new(speaker)))),
                Err(_) => files(free_name(Path::new(""), "answer"), true),
            },
        }
    }

    /// Whether somebody listens along.
    pub fn are_played(&self) -> bool {
        !matches!(self.0, Way::Files { .. })
    }

    /// Whether they go into files whose names the user does not know yet.
    pub fn are_unnamed(&self) -> bool {
        matches!(self.0, Way::Files { unnamed: true, .. })
    }

    /// Whether standard output is theirs.
    pub fn are_on_stdout(&self) -> bool {
        matches!(self.0, Way::Stdout(_))
    }

    /// The next sound of an answer: 24 kHz, mono.
    ///
    /// # Errors
    /// It cannot be written or played.
    pub async fn push(&mut self, pcm: &[i16]) -> Result<(), CliError> {
        match &mut self.0 {
            Way::Stdout(output) => output.push(pcm),
            Way::Speaker(speaker) => speaker.push(pcm).await,
            Way::Files {
                first, turns, now, ..
            } => {
                let output = match now {
                    Some(output) => output,
                    None => {
                        *turns += 1;
                        let output = Output::new(&numbered(first, *turns), None)?;
                        now.insert(Box::new(output))
                    }
                };
                output.push(pcm)
            }
        }
    }

    /// The answer was broken off: what waits to be played is not played.
    pub fn hush(&mut self) {
        if let Way::Speaker(speaker) = &mut self.0 {
            speaker.hush();
        }
    }

    /// The turn is over: its file is complete, if it has one.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn end_turn(&mut self) -> Result<Option<Written>, CliError> {
        let Way::Files { now, .. } = &mut self.0 else {
            return Ok(None);
        };
        let Some(mut output) = now.take() else {
            return Ok(None);
        };
        output.finish()?;
        let length = output.duration();
        Ok(output.file().map(|path| Written {
            path: path.to_owned(),
            length,
        }))
    }
}

/// `answer.wav`, `answer-2.wav`, ...
fn numbered(first: &Path, turn: usize) -> PathBuf {
    if turn < 2 {
        return first.to_owned();
    }
    let stem = first.file_stem().unwrap_or_default().to_string_lossy();
    let name = match first.extension() {
        Some(extension) => format!("{stem}-{turn}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{turn}"),
    };
    first.with_file_name(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::args::Global;
    use super::*;

    #[tokio::test]
    async fn each_turn_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::new(Global::default());
        let first = dir.path().join("a.ogg");
        let mut answers = Answers::new(&context, Some(&first)).unwrap();
        assert!(answers.end_turn().await.unwrap().is_none(), "nothing said");
        for name in ["a.ogg", "a-2.ogg"] {
            answers.push(&[0; 24_000]).await.unwrap();
            answers.push(&[0; 2_400]).await.unwrap();
            let written = answers.end_turn().await.unwrap().unwrap();
            assert_eq!(written.path, dir.path().join(name));
            assert!(written.text().ends_with(": 1.1 s"), "{}", written.text());
        }
        let wrong = Answers::new(&context, Some(Path::new("a.mp3")));
        assert!(wrong.is_err(), "before anybody is asked");
    }
}
