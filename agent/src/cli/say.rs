//! `unamesh say`: a text, spoken by whoever of the mesh can do it best. When another machine goes
//! on, a note in dim brackets on standard error says so; the sound has no gap there.

use super::args::SayArgs;
use super::context::Context;
use super::error::CliError;
use super::live::Live;
use super::mesh::Mesh;
use super::output::{DIM, WARN, printable};
use super::sound::device::Speaker;
use super::sound::output::{Output, free_name};
use super::sound::spoken;
use super::text::{Read, ms};
use super::voice::{Speaking, failed, lost, speak_body};
use crate::gateway::voice::events::pcm;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};
use unamesh_proto::limits;
use unamesh_proto::speech::text::is_spoken;

pub(super) async fn run(context: &Context, args: SayArgs) -> Result<(), CliError> {
    let text = text(&args)?;
    let body = speak_body(
        &text,
        [
            ("voice", args.voice.as_deref().map(Value::from)),
            ("model", args.model.as_deref().map(Value::from)),
            ("language", args.language.as_deref().map(Value::from)),
            ("speed", args.speed.map(Value::from)),
            // Who did not ask for a voice does not mind another one.
            (
                "other_voice",
                Some((args.any_voice || args.voice.is_none()).into()),
            ),
        ],
    );
    let mut saying = Saying {
        context,
        args: &args,
        voices: Value::Null,
        sink: Sink::of(context, &args)?,
        live: Live::new(context.out),
        asked: Instant::now(),
        first: None,
        samples: 0,
        who: String::new(),
    };
    let mesh = Mesh::find(context).await?;
    saying.asked = Instant::now();
    let said = tokio::select! {
        said = saying.all(&mesh, &body) => said,
        _ = tokio::signal::ctrl_c() => Err(CliError::interrupted()),
    };
    mesh.close().await;
    let written = saying.sink.finish().await;
    let ended = said.and(written);
    saying.tell(ended.is_ok())?;
    ended.map_err(|error| saying.with_part(error))
}

/// The words of the command line, or what is piped in.
fn text(args: &SayArgs) -> Result<String, CliError> {
    let words = args.text.join(" ");
    let piped = args.text.is_empty() || words == "-";
    let nothing = |why: &str| {
        CliError::new("input", format!("nothing to say{why}"))
            .next("unamesh say \"Hello.\"")
            .next("unamesh say - < story.txt")
    };
    let text = match piped {
        true if std::io::stdin().is_terminal() => return Err(nothing("")),
        true => {
            let mut text = String::new();
            // One byte more than fits: the mesh says what the limit is.
            std::io::stdin()
                .take(limits::MAX_SPEECH_TEXT as u64 + 1)
                .read_to_string(&mut text)
                .map_err(|e| CliError::new("input", format!("standard input: {e}")))?;
            text
        }
        false => words,
    };
    if text.trim().is_empty() {
        let source = if piped { "standard input" } else { "the text" };
        return Err(nothing(&format!(": {source} is empty")));
    }
    if !is_spoken(&text) {
        let why = ": the text has no letter or digit; emoji and marks are not spoken";
        return Err(nothing(why));
    }
    if text.len() > limits::MAX_SPEECH_TEXT {
        let message = format!(
            "the text is longer than {} kB, about half an hour of speech: say it in parts",
            limits::MAX_SPEECH_TEXT / 1024
        );
        return Err(CliError::new("input", message));
    }
    Ok(text)
}

/// Where the sound goes.
enum Sink {
    File(Output),
    /// The same; nobody named the file, but there is no speaker for this reason.
    Chosen(Output, String),
    Speaker(Box<Speaker>),
    /// Into the events of `--json`.
    Events,
}

impl Sink {
    fn of(context: &Context, args: &SayArgs) -> Result<Self, CliError> {
        match &args.output {
            Some(path) if context.out.json && path == Path::new("-") => Err(CliError::new(
                "output",
                "--json and -o - both want standard output: without -o the events carry the sound",
            )),
            Some(path) => Ok(Sink::File(Output::new(path, args.format)?)),
            None if context.out.json => Ok(Sink::Events),
            None => Sink::speaker(),
        }
    }

    /// The speaker; where there is none a file.
    fn speaker() -> Result<Self, CliError> {
        match Speaker::open() {
            Ok(speaker) => Ok(Sink::Speaker(Box::new(speaker))),
            Err(error) => {
                let file = free_name(Path::new(""), "say");
                Ok(Sink::Chosen(Output::new(&file, None)?, error.message))
            }
        }
    }

    async fn push(&mut self, pcm: &[i16]) -> Result<(), CliError> {
        match self {
            Sink::File(output) | Sink::Chosen(output, _) => output.push(pcm),
            Sink::Speaker(speaker) => speaker.push(pcm).await,
            Sink::Events => Ok(()),
        }
    }

    async fn finish(&mut self) -> Result<(), CliError> {
        match self {
            Sink::File(output) | Sink::Chosen(output, _) => output.finish(),
            Sink::Speaker(speaker) => speaker.finish().await,
            Sink::Events => Ok(()),
        }
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Sink::File(output) | Sink::Chosen(output, _) => output.file(),
            _ => None,
        }
    }
}

/// A text on its way.
struct Saying<'a> {
    context: &'a Context,
    args: &'a SayArgs,
    /// Of the mesh, if a language is asked for.
    voices: Value,
    sink: Sink,
    live: Live,
    asked: Instant,
    /// Until the first sample.
    first: Option<Duration>,
    samples: u64,
    /// `joe on desk`.
    who: String,
}

impl Saying<'_> {
    async fn all(&mut self, mesh: &Mesh, body: &Value) -> Result<(), CliError> {
        self.live.show("asking the mesh ...");
        if self.args.language.is_some() {
            self.voices = mesh.voices().await?;
        }
        let mut speaking = mesh.speak(body).await?;
        self.listen(&mut speaking).await
    }

    /// Until the one terminal event.
    async fn listen(&mut self, speaking: &mut Speaking) -> Result<(), CliError> {
        let out = &self.context.out;
        while let Some(event) = speaking.next().await? {
            let name = event.at("event").text();
            if out.json && (name != "pcm" || matches!(self.sink, Sink::Events)) {
                out.line(&self.with_file(&event).to_string())?;
            }
            match name {
                "pcm" => {
                    let pcm = pcm(&event).unwrap_or_default();
                    self.first.get_or_insert(self.asked.elapsed());
                    self.samples += pcm.len() as u64;
                    self.sink.push(&pcm).await?;
                    self.live
                        .show(&format!("{}  {}", seconds(self.samples), self.who));
                }
                "started" => {
                    if let Some(otherwise) = otherwise(self.args, &self.voices, &event) {
                        self.live.note(&format!("{WARN}[{otherwise}]{WARN:#}"));
                    }
                    self.who = who(event.at("voice"), event.at("peer"));
                    self.live.show(&self.who);
                }
                "progress" => {
                    let waited = self.asked.elapsed().as_secs_f64();
                    let what = phase(event.at("phase").text());
                    self.live.show(&format!("{what} ... {waited:.1} s"));
                }
                "peer_changed" => {
                    self.who = who(event.at("voice"), event.at("to"));
                    if !out.json {
                        self.live.note(&changed(&event));
                    }
                }
                "done" => return Ok(()),
                "failed" => return Err(failed(self.context, true, event.at("error"))),
                _ => {}
            }
        }
        Err(lost(self.context))
    }

    /// The last event names the file that now is complete.
    fn with_file(&self, event: &Value) -> Value {
        let mut event = event.clone();
        if let (Some(file), "done") = (self.sink.file(), event.at("event").text()) {
            event["file"] = json!(file);
        }
        event
    }

    /// An error in the middle says what there is, and where.
    fn with_part(&self, mut error: CliError) -> CliError {
        if let (Some(file), false) = (self.sink.file(), error.silent) {
            let file = printable(&file.display().to_string());
            let part = format!("; the first {} are in {file}", seconds(self.samples));
            error.message.push_str(&part);
        }
        error
    }

    /// What came of it: on a terminal, and wherever the file's name was chosen here.
    fn tell(&self, complete: bool) -> Result<(), CliError> {
        self.live.clear();
        let out = &self.context.out;
        if out.json || self.samples == 0 {
            return Ok(());
        }
        let first = ms(self.first.unwrap_or_default().as_secs_f64() * 1000.0);
        let length = seconds(self.samples);
        let part = if complete { "" } else { " (not all of it)" };
        let place = match self.sink.file() {
            Some(file) => format!("{}: ", printable(&file.display().to_string())),
            None => String::new(),
        };
        let raw = match &self.sink {
            Sink::File(output) | Sink::Chosen(output, _) => output.raw(),
            _ => None,
        };
        if let (Some(raw), false) = (raw, self.live.is_seen()) {
            // Nothing in the file says so.
            out.note(&format!("{DIM}[{place}{raw}]{DIM:#}\n"));
        }
        let raw = raw.map(|raw| format!(" ({raw})")).unwrap_or_default();
        if self.live.is_seen() {
            out.note(&format!(
                "{place}{length} of speech{raw}{part}, {}; {DIM}first sound after {first}{DIM:#}\n",
                self.who
            ));
        }
        if let Sink::Chosen(output, reason) = &self.sink
            && let Some(file) = output.file()
        {
            out.note(&format!(
                "{DIM}It is in a file since {reason}; -o FILE names another.{DIM:#}\n"
            ));
            out.line(&file.display().to_string())?;
        }
        Ok(())
    }
}

/// What was asked for and is not: the voice, or a voice of the language.
fn otherwise(args: &SayArgs, voices: &Value, started: &Value) -> Option<String> {
    let speaks = started.at("voice").text();
    let shown = printable(speaks);
    if let Some(asked) = &args.voice
        && !speaks.is_empty()
        && !asked.eq_ignore_ascii_case(speaks)
    {
        return Some(format!("nobody has the voice {asked}: {shown} speaks"));
    }
    let asked = args.language.as_deref()?;
    let ours = |voice: &&Value| voice.at("voice").text() == speaks;
    let known = voices.items().iter().filter(ours);
    let languages: Vec<&str> = known.map(|voice| voice.at("language").text()).collect();
    let other = |known: &&str| !known.is_empty() && !same_language(known, asked);
    if languages.is_empty() || !languages.iter().all(other) {
        return None;
    }
    let languages = printable(&languages.join(", "));
    Some(format!(
        "no voice for {asked} was found: {shown} speaks {languages}"
    ))
}

/// `en-GB` is as good as `en_US` for who wants English.
fn same_language(one: &str, other: &str) -> bool {
    let primary = |tag: &str| {
        let end = tag.find(['-', '_']).unwrap_or(tag.len());
        tag.get(..end).unwrap_or(tag).to_ascii_lowercase()
    };
    primary(one) == primary(other)
}

/// What an engine does before its first sound.
fn phase(name: &str) -> &'static str {
    match name {
        "queued" => "waiting for a free engine",
        "loading" => "loading the voice",
        _ => "preparing the first words",
    }
}

/// `joe on desk`.
fn who(voice: &Value, peer: &Value) -> String {
    let peer = printable(peer.at("name").text());
    match printable(voice.text()) {
        voice if voice.is_empty() => peer,
        voice => format!("{voice} on {peer}"),
    }
}

/// `[desk -> attic: connection lost; the same voice, no gap]`.
fn changed(event: &Value) -> String {
    let name = |side: &str| printable(event.at(side).at("name").text());
    let voice = match event.at("same_voice").as_bool() {
        Some(true) => "the same voice".to_owned(),
        _ => format!("now {}", printable(event.at("voice").text())),
    };
    let gap = match event.at("gap_ms").float() {
        Some(gap) if gap > 0.0 => format!("gap {}", ms(gap)),
        _ => "no gap".to_owned(),
    };
    format!(
        "{DIM}[{} -> {}: {}; {voice}, {gap}]{DIM:#}",
        name("from"),
        name("to"),
        printable(event.at("reason").text()),
    )
}

/// `4.2 s`.
pub(super) fn seconds(samples: u64) -> String {
    format!("{:.1} s", spoken(samples).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_what_is_heard_of_it() {
        let event = |same, gap| {
            json!({
                "from": {"name": "desk"}, "to": {"name": "at\u{1b}tic"}, "voice": "amy",
                "same_voice": same, "reason": "connection lost", "gap_ms": gap, "lead_ms": 900.0,
            })
        };
        let plain = |event: &Value| anstream::adapter::strip_str(&changed(event)).to_string();
        assert_eq!(
            plain(&event(true, 0.0)),
            "[desk -> attic: connection lost; the same voice, no gap]"
        );
        assert_eq!(
            plain(&event(false, 143.2)),
            "[desk -> attic: connection lost; now amy, gap 143 ms]"
        );
    }

    #[test]
    fn another_language_or_voice_than_asked_is_told() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            say: SayArgs,
        }
        let args = |line: &str| <Line as clap::Parser>::parse_from(line.split(' ')).say;
        let voices = json!([
            {"voice": "amy", "language": "en_US"}, {"voice": "hum", "language": ""},
        ]);
        let told =
            |line: &str, voice: &str| otherwise(&args(line), &voices, &json!({"voice": voice}));
        let wrong = told("say Hallo --language de", "amy").unwrap_or_default();
        assert_eq!(wrong, "no voice for de was found: amy speaks en_US");
        assert_eq!(told("say Hi --language en-GB", "amy"), None);
        assert_eq!(told("say Hi --language de", "hum"), None, "it is not known");
        assert_eq!(told("say Hi", "amy"), None);
        assert!(told("say Hi --voice joe --any-voice", "amy").is_some());
        assert_eq!(told("say Hi --voice AMY", "amy"), None);
    }

    #[test]
    fn who_speaks() {
        let peer = json!({"name": "desk"});
        assert_eq!(who(&json!("joe"), &peer), "joe on desk");
        assert_eq!(who(&json!(""), &peer), "desk");
        assert_eq!(seconds(24_000 * 4 + 4_800), "4.2 s");
    }
}
