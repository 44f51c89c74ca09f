//! `unamesh talk`: a spoken conversation, with recordings or with the microphone; where there is
//! none, what is typed is answered aloud.
//!
//! A recording is a turn: it is sent at once and answered when it ends. With `--live` it comes as
//! a microphone's sound does, 20 ms at a time and silence behind it, and the agent that listens
//! finds where an utterance ends.

use super::args::TalkArgs;
use super::chart;
use super::chat::first_model;
use super::context::Context;
use super::error::CliError;
use super::live::Live;
use super::mesh::Mesh;
use super::output::{BOLD, DIM, printable};
use super::sound::answers::Answers;
use super::sound::device::Microphone;
use super::sound::{UP, recording};
use super::talking::{Heard, Talking};
use super::text::{Read, ms};
use super::voice::{Pieces, failed, lost};
use crate::gateway::voice::events::nobody_speaks;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use unamesh_proto::timeouts::AUDIO_FRAME;

/// Samples of [`AUDIO_FRAME`].
const FRAME: usize = UP as usize / 50;
/// Sound for a file need not wait for an ear: ten minutes of it, longer than any answer.
const FILE_AHEAD_MS: u64 = 600_000;
/// After a recording a live conversation goes on with silence for so long beyond what ends an
/// utterance: what was said last is noticed within it, or there was nothing.
const LIVE_TAIL: Duration = Duration::from_secs(3);
/// Silence that ends an utterance of `--live`: who reads a recording out does not hurry, and a
/// pause for breath is longer than the mesh's default.
const LIVE_SILENCE_MS: u16 = 600;

pub(super) async fn run(context: &Context, args: TalkArgs) -> Result<(), CliError> {
    let answers = Answers::new(context, args.output.as_deref())?;
    let mesh = Mesh::find(context).await?;
    let mut talk = Talk {
        context,
        args: &args,
        answers,
        live: Live::new(context.out),
        state: Turn::default(),
    };
    let held = tokio::select! {
        held = talk.hold(&mesh) => held,
        _ = tokio::signal::ctrl_c() => Err(CliError::interrupted()),
    };
    talk.live.clear();
    let written = talk.answers.end_turn().await.map(drop);
    mesh.close().await;
    held.and(written)
}

/// A conversation as the command shows it.
struct Talk<'a> {
    context: &'a Context,
    args: &'a TalkArgs,
    answers: Answers,
    live: Live,
    state: Turn,
}

/// What is known of the turn that runs.
#[derive(Default)]
struct Turn {
    /// `desk hears`, `tower thinks`, `attic speaks (joe)`.
    who: Vec<String>,
    /// Somebody spoke, and what was said is not known yet.
    heard: bool,
    /// What was said or typed is answered. An utterance may begin before the answer ends.
    answered: bool,
    /// Frames of silence since the sound was over, or since what was said last is known.
    quiet: u32,
    /// The first stage that failed.
    failed: Option<CliError>,
}

impl Turn {
    /// There is more to come.
    fn runs(&self) -> bool {
        self.heard || self.answered
    }

    /// An event; `stage`: of what failed.
    fn follow(&mut self, name: &str, stage: &str) {
        match (name, stage) {
            ("began", _) => self.heard = true,
            ("heard", _) => (self.heard, self.answered, self.quiet) = (false, true, 0),
            // Of an utterance that nobody could hear there is no turn; the others end.
            ("nothing_heard", _) | ("failed", "hear") => (self.heard, self.quiet) = (false, 0),
            // Another utterance may have begun.
            ("turn_done" | "barged_in", _) => self.answered = false,
            _ => {}
        }
    }
}

impl Talk<'_> {
    async fn hold(&mut self, mesh: &Mesh) -> Result<(), CliError> {
        // Told now: after the answer it would be late.
        if mesh.voices().await?.items().is_empty() {
            return Err(CliError::new("no_peer", nobody_speaks())
                .next(self.context.command("engines"))
                .next(self.context.command("chat")));
        }
        let model = match &self.args.model {
            Some(model) => model.clone(),
            None => first_model(self.context, mesh).await?,
        };
        let mut talking = mesh.converse(self.start(&model)).await?;
        if self.args.inputs.is_empty() {
            return self.conversation(&mut talking).await;
        }
        for input in &self.args.inputs {
            let pieces = self.read(input)?;
            if self.args.live {
                self.live(&mut talking, pieces).await?;
            } else {
                self.turn(&mut talking, pieces).await?;
            }
        }
        Ok(())
    }

    /// The command that opens the conversation.
    fn start(&self, model: &str) -> Value {
        let language = self.args.language.as_deref().unwrap_or_default();
        let mut start = json!({
            "model": model,
            "system": self.args.system.as_deref().unwrap_or_default(),
            "max_tokens": self.args.max_tokens,
            "hear": {"language": language},
            "voice": {
                "voice": self.args.voice.as_deref().unwrap_or_default(),
                "language": language,
            },
        });
        if let Some(silence) = self.silence() {
            start["silence_ms"] = json!(silence);
        }
        if !self.answers.are_played() && !self.args.live {
            start["ahead_ms"] = json!(FILE_AHEAD_MS);
        }
        start
    }

    /// Milliseconds of silence that end an utterance; 0: the recording's end does, `None`: what
    /// the mesh takes.
    fn silence(&self) -> Option<u16> {
        let recorded = !self.args.inputs.is_empty();
        match (self.args.silence, self.args.live) {
            (None, true) => Some(LIVE_SILENCE_MS),
            (None, false) => recorded.then_some(0),
            (asked, _) => asked,
        }
    }

    fn read(&self, input: &Path) -> Result<Pieces, CliError> {
        let out = self.context.out;
        let warn = move |end| out.note(&format!("{DIM}[{end}]{DIM:#}\n"));
        recording::read(input, self.args.raw, warn)
    }

    /// One recording, one turn.
    async fn turn(&mut self, talking: &mut Talking, pieces: Pieces) -> Result<(), CliError> {
        let mut pieces = Some(pieces);
        self.state = Turn {
            heard: true,
            ..Turn::default()
        };
        while self.state.runs() {
            let piece = async {
                match pieces.as_mut() {
                    Some(pieces) => pieces.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                heard = talking.next() => self.take(heard?).await?,
                piece = piece => match piece {
                    Some(piece) => talking.push(&piece?).await?,
                    None => {
                        talking.end().await?;
                        pieces = None;
                    }
                },
            }
        }
        self.state.failed.take().map_or(Ok(()), Err)
    }

    /// A recording as a microphone's sound; ends when it is over and nothing more comes of it.
    async fn live(&mut self, talking: &mut Talking, pieces: Pieces) -> Result<(), CliError> {
        let (mut pieces, mut queue) = (Some(pieces), VecDeque::new());
        let silence = Duration::from_millis(self.silence().unwrap_or_default().into());
        let tail = ((LIVE_TAIL + silence).as_millis() / AUDIO_FRAME.as_millis()) as u32;
        let mut clock = tokio::time::interval(AUDIO_FRAME);
        // A frame that is late is made up for: a microphone loses none.
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        self.state.quiet = 0;
        while pieces.is_some() || !queue.is_empty() || self.state.quiet < tail || self.state.runs()
        {
            let piece = async {
                match pieces.as_mut() {
                    Some(pieces) if queue.len() < UP as usize => pieces.recv().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                heard = talking.next() => self.take(heard?).await?,
                piece = piece => match piece {
                    Some(piece) => queue.extend(piece?),
                    None => pieces = None,
                },
                _ = clock.tick() => {
                    self.state.quiet = if queue.is_empty() { self.state.quiet + 1 } else { 0 };
                    let mut frame: Vec<i16> = queue.drain(..queue.len().min(FRAME)).collect();
                    frame.resize(FRAME, 0);
                    talking.push(&frame).await?;
                }
            }
        }
        self.state.failed.take().map_or(Ok(()), Err)
    }

    /// With the microphone, and with lines that are typed, until there are no more. A line is a
    /// turn, an empty one ends the answer.
    async fn conversation(&mut self, talking: &mut Talking) -> Result<(), CliError> {
        let mut microphone = match Microphone::open() {
            Ok(microphone) => Some(microphone),
            Err(error) => {
                self.live
                    .note(&format!("{DIM}{}: type{DIM:#}", error.message));
                None
            }
        };
        self.live.note(&format!(
            "{DIM}Enter alone stops an answer, Ctrl-D ends{DIM:#}"
        ));
        let (mut lines, mut more) = (lines(), true);
        while more || self.state.runs() {
            let sound = async {
                match microphone.as_mut() {
                    Some(microphone) => microphone.next().await,
                    None => std::future::pending().await,
                }
            };
            // The next line waits for the answer to the one before where nobody can hurry it.
            let free = !self.state.runs() || std::io::stdin().is_terminal();
            tokio::select! {
                heard = talking.next() => self.take(heard?).await?,
                sound = sound => talking.push(&sound?).await?,
                line = lines.recv(), if more && free => match line.as_deref().map(str::trim) {
                    None => more = false,
                    Some("") => talking.barge_in().await?,
                    Some(text) => {
                        self.state.answered = true;
                        talking.text(text).await?;
                    }
                },
            }
            if let Some(error) = self.state.failed.take() {
                self.context.out.error(&error);
            }
        }
        Ok(())
    }

    /// Shows an event, stores a sound.
    async fn take(&mut self, heard: Option<Heard>) -> Result<(), CliError> {
        let event = match heard {
            Some(Heard::Sound(pcm)) => return self.answers.push(&pcm).await,
            Some(Heard::Event(event)) => event,
            None => return Err(lost(self.context)),
        };
        let name = event.at("event").text();
        let ends = match name {
            "turn_done" | "barged_in" => true,
            // A murmur into an answer ends nothing of it.
            "nothing_heard" => !self.state.answered,
            _ => false,
        };
        if name == "barged_in" {
            self.answers.hush();
        }
        let file = if ends {
            self.answers.end_turn().await?
        } else {
            None
        };
        if self.context.out.json {
            let mut event = event.clone();
            if let Some(file) = &file {
                event["file"] = json!(file.path);
            }
            self.context.out.line(&event.to_string())?;
        }
        self.follow(name, &event);
        if !self.context.out.json {
            self.show(name, &event)?;
            if ends {
                self.sum_up(&event, file.map(|f| f.text()))?;
            }
        }
        if ends {
            self.state.who.clear();
        }
        Ok(())
    }

    /// What the events say of the turn.
    fn follow(&mut self, name: &str, event: &Value) {
        let state = &mut self.state;
        let stage = event.at("stage").text();
        state.follow(name, stage);
        let peer = |key: &str| printable(event.at(key).at("name").text());
        match name {
            "heard" => state.who.push(format!("{} hears", peer("peer"))),
            "thinking" => state.who.push(format!("{} thinks", peer("peer"))),
            "speaking" => {
                let voice = match printable(event.at("voice").text()) {
                    voice if voice.is_empty() => String::new(),
                    voice => format!(" ({voice})"),
                };
                state.who.push(format!("{} speaks{voice}", peer("peer")));
            }
            "failed" => {
                let error = failed(self.context, stage == "speak", event.at("error"));
                state.failed.get_or_insert(error);
            }
            _ => {}
        }
    }

    fn show(&self, name: &str, event: &Value) -> Result<(), CliError> {
        let text = || printable(event.at("text").text());
        match name {
            "partial" => self.live.show(&text()),
            "nothing_heard" => self
                .live
                .note(&format!("{DIM}[no words were heard]{DIM:#}")),
            "heard" => {
                self.live.clear();
                self.write(&format!("{BOLD}> {}{BOLD:#}\n", text()))?;
            }
            "text" => self.write(&text())?,
            "peer_changed" => self.live.note(&changed(event)),
            _ => {}
        }
        Ok(())
    }

    /// The end of a turn.
    fn sum_up(&self, event: &Value, file: Option<String>) -> Result<(), CliError> {
        let timeline = event.at("timeline");
        if timeline.is_null() {
            return Ok(());
        }
        self.write("\n")?;
        let first = timeline.at("first_audio_ms").float();
        let parts = [
            file,
            (!self.state.who.is_empty()).then(|| self.state.who.join(", ")),
            first.map(|first| format!("{} from the last word to the first sound", ms(first))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if self.live.is_seen() || self.args.verbose || self.answers.are_unnamed() {
            self.live
                .note(&format!("{DIM}[{}]{DIM:#}", parts.join("; ")));
        }
        if self.args.verbose {
            let bars = chart::bars(timeline);
            let drawn = chart::chart(&bars, chart::until(timeline), &self.context.out);
            self.live.note(drawn.trim_end());
        }
        Ok(())
    }

    /// The words: on standard output, unless the sound is there.
    fn write(&self, text: &str) -> Result<(), CliError> {
        if self.answers.are_on_stdout() {
            self.context.out.note(text);
            Ok(())
        } else {
            self.context.out.print(text)
        }
    }
}

/// `[desk -> attic: connection lost; speaking goes on]`.
fn changed(event: &Value) -> String {
    let name = |side: &str| printable(event.at(side).at("name").text());
    let stage = match event.at("stage").text() {
        "hear" => "hearing",
        "think" => "thinking",
        _ if event.at("same_voice").as_bool() == Some(true) => "the same voice",
        _ => "another voice",
    };
    let gap = match event.at("gap_ms").float() {
        Some(gap) if gap > 0.0 => format!(", gap {}", ms(gap)),
        _ => String::new(),
    };
    format!(
        "{DIM}[{} -> {}: {}; {stage} goes on{gap}]{DIM:#}",
        name("from"),
        name("to"),
        printable(event.at("reason").text()),
    )
}

/// Lines of standard input, as they are typed while something else goes on.
fn lines() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(1);
    // Detached: a read of standard input cannot be cancelled, and ends with the program.
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said into an answer, or after it, is waited for.
    #[test]
    fn the_end_of_an_answer_is_not_the_end_of_what_is_said_into_it() {
        for end in ["barged_in", "turn_done"] {
            let mut turn = Turn::default();
            for name in ["began", "heard", "speaking", "began", end] {
                turn.follow(name, "");
                assert!(turn.runs(), "{end}: after {name}");
            }
            turn.quiet = 100;
            turn.follow("heard", "");
            assert!(turn.runs() && turn.quiet == 0, "the tail begins anew");
            turn.follow("turn_done", "");
            assert!(!turn.runs());
        }
        let mut turn = Turn::default();
        for name in ["began", "heard", "began", "nothing_heard"] {
            turn.follow(name, "");
            assert!(turn.runs(), "a murmur ends no answer");
        }
        turn.follow("turn_done", "");
        turn.follow("began", "");
        turn.follow("failed", "speak");
        assert!(turn.runs());
        turn.follow("failed", "hear");
        assert!(!turn.runs());
    }

    #[test]
    fn a_change_says_what_goes_on() {
        let event = |stage: &str, gap: f64| {
            json!({
                "stage": stage, "from": {"name": "desk"}, "to": {"name": "attic"},
                "same_voice": true, "reason": "connection lost", "gap_ms": gap,
            })
        };
        let plain = |event: &Value| anstream::adapter::strip_str(&changed(event)).to_string();
        assert_eq!(
            plain(&event("speak", 0.0)),
            "[desk -> attic: connection lost; the same voice goes on]"
        );
        assert_eq!(
            plain(&event("think", 12.0)),
            "[desk -> attic: connection lost; thinking goes on, gap 12.0 ms]"
        );
    }
}
