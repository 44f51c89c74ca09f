//! `unamesh transcribe`: what is said in a recording. The file is sent faster than it would play;
//! a pipe that is spoken into is heard as it comes.

use super::args::TranscribeArgs;
use super::context::Context;
use super::error::CliError;
use super::live::Live;
use super::mesh::Mesh;
use super::output::{DIM, WARN, printable};
use super::sound::recording::{self, RecordingError};
use super::text::{Read, ms};
use super::voice::{Listening, Pieces, failed, lost};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use unamesh_client::speech::Hear;

pub(super) async fn run(context: &Context, args: TranscribeArgs) -> Result<(), CliError> {
    let live = Arc::new(Live::new(context.out));
    let end = Arc::new(OnceLock::new());
    let warn = {
        let (live, end) = (Arc::clone(&live), Arc::clone(&end));
        move |error: RecordingError| {
            live.note(&format!("{WARN}[{error}]{WARN:#}"));
            // It has but one end.
            let _ = end.set(error);
        }
    };
    // A file that is not there is no reason to ask anybody.
    let pieces = recording::read(&args.input, args.raw, warn)?;
    let hear = Hear {
        model: args.model.clone().unwrap_or_default(),
        language: args.language.clone().unwrap_or_default(),
        prompt: args.prompt.clone().unwrap_or_default(),
        session: 0,
        partials: context.out.json || live.is_seen(),
        vad_ms: 0,
    };
    let mesh = Mesh::find(context).await?;
    let transcript = Transcript {
        context,
        live: &live,
        times: args.times,
        asked: Instant::now(),
    };
    let heard = tokio::select! {
        heard = transcript.all(&mesh, &hear, pieces) => heard,
        _ = tokio::signal::ctrl_c() => Err(CliError::interrupted()),
    };
    mesh.close().await;
    heard?;
    match end.get() {
        // The rest was asked for, too, and is missing.
        Some(RecordingError::TooLong) => Err(too_long(&args.input)),
        _ => Ok(()),
    }
}

fn too_long(input: &Path) -> CliError {
    let name = input.display();
    CliError::new("too_long", "the recording goes on: transcribe it in parts").next(format!(
        "ffmpeg -i {name} -f segment -segment_time 600 part-%02d.wav"
    ))
}

/// An utterance on its way.
struct Transcript<'a> {
    context: &'a Context,
    live: &'a Live,
    times: bool,
    asked: Instant,
}

impl Transcript<'_> {
    async fn all(&self, mesh: &Mesh, hear: &Hear, pieces: Pieces) -> Result<(), CliError> {
        self.live.show("asking the mesh ...");
        let mut listening = mesh.hear(hear, pieces).await?;
        self.listen(&mut listening).await
    }

    /// Until the one terminal event.
    async fn listen(&self, listening: &mut Listening) -> Result<(), CliError> {
        let out = &self.context.out;
        while let Some(event) = listening.next().await? {
            if out.json {
                out.line(&event.to_string())?;
            }
            match event.at("event").text() {
                "started" => {
                    let peer = printable(event.at("peer").at("name").text());
                    self.live.show(&format!("{peer} listens ..."));
                }
                "partial" => self.live.show(&printable(event.at("text").text())),
                "peer_changed" if !out.json => self.live.note(&changed(&event)),
                "final" if out.json => return Ok(()),
                "final" => return self.tell(&event),
                "failed" => return Err(failed(self.context, false, event.at("error"))),
                _ => {}
            }
        }
        Err(lost(self.context))
    }

    /// The transcript on standard output, and on a terminal what it took.
    fn tell(&self, event: &Value) -> Result<(), CliError> {
        self.live.clear();
        let out = &self.context.out;
        let text = printable(event.at("text").text());
        let words = event.at("words").items();
        if text.trim().is_empty() {
            out.note(&format!("{DIM}[no speech was heard]{DIM:#}\n"));
        } else if self.times && !words.is_empty() {
            out.print(&times(words))?;
        } else {
            if self.times {
                let note = "the engine tells no times of words";
                out.note(&format!("{WARN}[{note}]{WARN:#}\n"));
            }
            out.line(text.trim())?;
        }
        if self.live.is_seen() {
            let peer = printable(event.at("peer").at("name").text());
            let took = ms(self.asked.elapsed().as_secs_f64() * 1000.0);
            out.note(&format!("{DIM}[{peer}, {took}]{DIM:#}\n"));
        }
        Ok(())
    }
}

/// `  0.32   0.71  hello`, a line each.
fn times(words: &[Value]) -> String {
    let mut lines = String::new();
    for word in words {
        let at = |key: &str| word.at(key).number() as f64 / 1000.0;
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines,
            "{:7.2} {:7.2}  {}",
            at("start_ms"),
            at("end_ms"),
            printable(word.at("text").text()).trim()
        );
    }
    lines
}

/// `[desk -> attic: connection lost; it heard all of it again]`.
fn changed(event: &Value) -> String {
    let name = |side: &str| printable(event.at(side).at("name").text());
    format!(
        "{DIM}[{} -> {}: {}; it hears all of it again]{DIM:#}",
        name("from"),
        name("to"),
        printable(event.at("reason").text()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_word_a_line() {
        let words = [
            json!({"text": " Hello,", "start_ms": 320, "end_ms": 710}),
            json!({"text": "fox.", "start_ms": 61_000, "end_ms": 61_250}),
        ];
        assert_eq!(
            times(&words),
            "   0.32    0.71  Hello,\n  61.00   61.25  fox.\n"
        );
    }

    #[test]
    fn a_change_says_that_nothing_is_lost() {
        let event = json!({
            "from": {"name": "desk"}, "to": {"name": "attic"}, "reason": "it fell silent",
        });
        let plain = anstream::adapter::strip_str(&changed(&event)).to_string();
        assert_eq!(
            plain,
            "[desk -> attic: it fell silent; it hears all of it again]"
        );
    }
}
