//! The spoken turn of a demo: a question is spoken, heard, answered aloud into a file, and the
//! agent that speaks is killed as soon as it is heard.
//!
//! The question is played as a microphone would bring it, in real time, so that the time line is
//! that of a person who asks. What was recorded is transcribed in the end and compared with what
//! the model wrote.

use super::mesh::Mesh;
use super::show::Show;
use super::{DemoArgs, DemoError, QUESTION};
use crate::cli::chart;
use crate::cli::output::{BAD, BOLD, DIM, GOOD, Out};
use crate::cli::sound::output::{Output, free_name};
use crate::cli::sound::{DOWN, UP};
use crate::cli::text::{Read, ms};
use crate::gateway::voice::events::timeline_json;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use unamesh_client::audio::pcm::{from_s16, to_s16};
use unamesh_client::audio::resample::Resampler;
use unamesh_client::client::MeshClient;
use unamesh_client::converse::{Conversation, ConverseConfig, Stage, TurnEvent};
use unamesh_client::speech::{Hear, HearEvent, Say, SayEvent};
use unamesh_proto::timeouts::AUDIO_FRAME;
use unamesh_proto::wire::Sampling;

/// The model's part; its words are spoken.
const SYSTEM: &str = "You are a friendly tutor. Answer in four short sentences.";
/// Samples of [`AUDIO_FRAME`] at 16 kHz.
const FRAME: usize = UP as usize / 50;
/// So much of the answer was heard when its speaker is killed: the next sentence is on its way.
const KILL_AT: Duration = Duration::from_millis(300);
/// The models of a machine that is busy otherwise are loaded within this.
const WARM_UP: Duration = Duration::from_secs(30);
/// A turn is over within this.
const PATIENCE: Duration = Duration::from_secs(180);

/// How it came out.
pub struct Report {
    facts: Value,
    heard: String,
    answer: String,
    /// What Whisper understood of the file.
    transcript: String,
    timeline: Value,
    file: PathBuf,
    length: Duration,
    killed: Option<String>,
    changes: Vec<Value>,
    who: Vec<String>,
}

/// Asks once.
pub async fn tell(args: &DemoArgs, mesh: &mut Mesh, show: &Show) -> Result<Report, DemoError> {
    show.peers(mesh)?;
    let question = args.questions.first().map_or(QUESTION, String::as_str);
    show.question(question, 0, 1)?;
    let (spoken, by) = speak(&mesh.client, question).await?;
    let seconds = spoken.len() as f64 / f64::from(DOWN);
    show.aside(&format!("{by} speaks the question: {seconds:.1} s"))?;

    let file = match &args.output {
        Some(file) => file.clone(),
        None => free_name(Path::new(""), "demo"),
    };
    let output = Output::new(&file, None).map_err(DemoError::Output)?;
    let mut turn = Turn::new(output, file);
    let mut conversation = mesh.client.converse(ConverseConfig {
        system: SYSTEM.to_owned(),
        sampling: Sampling {
            temperature: Some(0.0),
            max_tokens: Some(args.max_tokens),
            ..Sampling::default()
        },
        ..ConverseConfig::new(mesh.model())
    });
    ready(&mut conversation).await;
    let held = turn.hold(&mut conversation, resample(&spoken), mesh, show);
    let late = |_| DemoError::Late {
        what: "the answer to end".to_owned(),
        after: PATIENCE,
    };
    tokio::time::timeout(PATIENCE, held).await.map_err(late)??;
    drop(conversation);

    show.aside("what does Whisper understand of the file?")?;
    let transcript = transcribe(&mesh.client, &resample(&turn.pcm)).await?;
    let facts = mesh.facts();
    Ok(Report {
        facts: json!({"peers": facts.peers, "model": facts.model, "engine": facts.engine}),
        transcript,
        length: turn.output.duration(),
        heard: turn.heard,
        answer: turn.answer,
        timeline: turn.timeline,
        file: turn.file,
        killed: turn.killed,
        changes: turn.changes,
        who: turn.who,
    })
}

/// The sound of a text, and who speaks it.
async fn speak(client: &MeshClient, text: &str) -> Result<(Vec<i16>, String), DemoError> {
    let (mut sound, mut by) = (Vec::new(), String::new());
    let mut speech = client.speak(Say::new(text));
    while let Some(event) = speech.next().await {
        match event {
            SayEvent::Started { peer, voice, .. } => by = format!("{} ({voice})", peer.name),
            SayEvent::Pcm(pcm) => sound.extend(pcm),
            SayEvent::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    if sound.is_empty() {
        return Err(DemoError::Voice("the question has no sound".to_owned()));
    }
    Ok((sound, by))
}

/// What is said in `pcm` (16 kHz).
async fn transcribe(client: &MeshClient, pcm: &[i16]) -> Result<String, DemoError> {
    let mut hearing = client.transcribe(Hear::default());
    hearing.push(pcm);
    hearing.end();
    while let Some(event) = hearing.next().await {
        match event {
            HearEvent::Final { text, .. } => return Ok(text.trim().to_owned()),
            HearEvent::Failed { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Err(DemoError::Voice("the transcript never came".to_owned()))
}

/// Until the models are warm; that takes no part in the turn.
async fn ready(conversation: &mut Conversation) {
    let warm = async {
        while let Some(event) = conversation.next().await {
            if matches!(event, TurnEvent::Ready) {
                return;
            }
        }
    };
    // Late or not, the turn shows how long it takes.
    let _ = tokio::time::timeout(WARM_UP, warm).await;
}

/// 24 kHz to 16 kHz.
fn resample(pcm: &[i16]) -> Vec<i16> {
    let floats: Vec<f32> = pcm.iter().copied().map(from_s16).collect();
    let mut out = Vec::new();
    // These two rates always fit.
    if let Ok(mut resampler) = Resampler::new(DOWN, UP) {
        resampler.push(&floats, &mut out);
        resampler.finish(&mut out);
    }
    out.into_iter().map(to_s16).collect()
}

/// The turn while it runs.
struct Turn {
    output: Output,
    file: PathBuf,
    /// All of the answer's sound.
    pcm: Vec<i16>,
    heard: String,
    answer: String,
    timeline: Value,
    speaker: String,
    first_sound: Option<Instant>,
    killed: Option<String>,
    changes: Vec<Value>,
    who: Vec<String>,
    ended: bool,
}

impl Turn {
    fn new(output: Output, file: PathBuf) -> Self {
        Turn {
            output,
            file,
            pcm: Vec::new(),
            heard: String::new(),
            answer: String::new(),
            timeline: Value::Null,
            speaker: String::new(),
            first_sound: None,
            killed: None,
            changes: Vec::new(),
            who: Vec::new(),
            ended: false,
        }
    }

    /// Plays `question` (16 kHz) and silence behind it until the turn is over.
    async fn hold(
        &mut self,
        conversation: &mut Conversation,
        question: Vec<i16>,
        mesh: &mut Mesh,
        show: &Show,
    ) -> Result<(), DemoError> {
        let mut question = VecDeque::from(question);
        let mut clock = tokio::time::interval(AUDIO_FRAME);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !self.ended {
            tokio::select! {
                event = conversation.next() => match event {
                    Some(event) => self.take(event, show)?,
                    None => return Err(DemoError::Voice("the conversation ended".to_owned())),
                },
                _ = clock.tick() => {
                    let samples = question.len().min(FRAME);
                    let mut frame: Vec<i16> = question.drain(..samples).collect();
                    frame.resize(FRAME, 0);
                    conversation.push(&frame);
                }
            }
            let due = self.first_sound.is_some_and(|at| at.elapsed() >= KILL_AT);
            if due && self.killed.is_none() && !self.ended {
                mesh.kill(&self.speaker);
                show.silenced(&self.speaker)?;
                self.killed = Some(self.speaker.clone());
            }
        }
        self.output.finish().map_err(DemoError::Output)
    }

    fn take(&mut self, event: TurnEvent, show: &Show) -> Result<(), DemoError> {
        match event {
            TurnEvent::Heard { text, peer } => {
                show.aside(&format!("{} hears: {}", peer.name, text.trim()))?;
                self.who.push(format!("{} hears", peer.name));
                self.heard = text.trim().to_owned();
            }
            TurnEvent::Thinking { peer } => self.who.push(format!("{} thinks", peer.name)),
            TurnEvent::Speaking { peer, .. } => {
                self.who.push(format!("{} speaks", peer.name));
                self.speaker = peer.name;
            }
            // It runs ahead of the voice: who speaks says nothing of who thinks.
            TurnEvent::Text { text } => show.piece(&text, false)?,
            TurnEvent::Pcm(pcm) => {
                self.first_sound.get_or_insert_with(Instant::now);
                self.output.push(&pcm).map_err(DemoError::Output)?;
                self.pcm.extend(pcm);
            }
            TurnEvent::PeerChanged {
                stage,
                from,
                to,
                same_voice,
                reason,
                gap,
            } => {
                if stage == Stage::Speak {
                    show.goes_on(&to.name)?;
                    self.speaker.clone_from(&to.name);
                }
                self.changes.push(json!({
                    "stage": stage, "from": from.name, "to": to.name, "same_voice": same_voice,
                    "reason": reason, "gap_ms": gap.as_secs_f64() * 1000.0,
                }));
            }
            TurnEvent::TurnDone {
                answer, timeline, ..
            } => {
                show.answered()?;
                self.answer = answer.trim().to_owned();
                self.timeline = timeline_json(&timeline);
                self.ended = true;
            }
            TurnEvent::NothingHeard => {
                return Err(DemoError::Voice(
                    "nothing was heard of the question".to_owned(),
                ));
            }
            TurnEvent::Failed { error, .. } => return Err(error.into()),
            _ => {}
        }
        Ok(())
    }
}

impl Report {
    /// For scripts.
    pub fn json(&self) -> Value {
        let (same, all) = common(&self.answer, &self.transcript);
        let mut json = self.facts.clone();
        let fields = json!({
            "heard": self.heard,
            "answer": self.answer,
            "transcript": self.transcript,
            "words": all,
            "words_understood": same,
            "file": self.file,
            "seconds": self.length.as_secs_f64(),
            "killed": self.killed,
            "changes": self.changes,
            "timeline": self.timeline,
        });
        if let (Value::Object(json), Value::Object(fields)) = (&mut json, fields) {
            json.extend(fields);
        }
        json
    }

    /// For people.
    pub fn text(&self, out: &Out) -> String {
        let bars = chart::bars(&self.timeline);
        let drawn = chart::chart(&bars, chart::until(&self.timeline), out);
        let first = self.timeline.at("first_audio_ms").float();
        let first = first.map_or_else(|| "never".to_owned(), ms);
        let (same, all) = common(&self.answer, &self.transcript);
        let style = if same == all { GOOD } else { BAD };
        let change = match (&self.killed, self.spoken_on()) {
            (None, _) => "the answer was over before anybody could be killed".to_owned(),
            (Some(killed), None) => format!(
                "{killed} was killed while it spoke; what it had begun was here, another spoke \
                 the rest"
            ),
            (Some(killed), Some(change)) => format!(
                "{killed} was killed while it spoke; {} spoke on ({}), {} after the last sound \
                 received",
                change.at("to").text(),
                match change.at("same_voice").as_bool() {
                    Some(true) => "the same voice",
                    _ => "another voice",
                },
                ms(change.at("gap_ms").float().unwrap_or_default()),
            ),
        };
        format!(
            "{DIM}\"{transcript}\"{DIM:#}\n\n\
             {BOLD}The turn, from the last word of the question:{BOLD:#}\n{drawn}\n\
             {first} to the first sound; {who}\n{change}\n\
             {style}{same} of {all} words of the answer are in {file} ({seconds:.1} s){style:#}\n\
             {DIM}{engine}{DIM:#}\n",
            transcript = self.transcript,
            who = self.who.join(", "),
            file = self.file.display(),
            seconds = self.length.as_secs_f64(),
            engine = self.facts.at("engine").text(),
        )
    }

    /// The change of the speaker.
    fn spoken_on(&self) -> Option<&Value> {
        self.changes
            .iter()
            .find(|c| c.at("stage").text() == "speak")
    }
}

/// How many words of `said` are in `heard`, in their order, and how many there are.
fn common(said: &str, heard: &str) -> (usize, usize) {
    let (said, heard) = (words(said), words(heard));
    // The longest common subsequence, one row at a time.
    let mut row = vec![0usize; heard.len() + 1];
    for word in &said {
        let mut diagonal = 0;
        for (at, other) in heard.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    (row.last().copied().unwrap_or_default(), said.len())
}

/// Lowercase, without marks.
fn words(text: &str) -> Vec<String> {
    let plain: String = text
        .chars()
        .filter(|c| !matches!(c, '\'' | '\u{2019}'))
        .map(|c| if c.is_alphanumeric() { c } else { ' ' })
        .collect();
    plain.split_whitespace().map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_were_understood() {
        assert_eq!(common("The fox's den.", "the foxs den"), (3, 3));
        assert_eq!(common("One two three four", "one three for"), (2, 4));
        assert_eq!(common("A b a b", "b a b a"), (3, 4));
        assert_eq!(common("", "noise"), (0, 0));
    }

    #[test]
    fn the_report_says_who_spoke_on() {
        let report = Report {
            facts: json!({"engine": "doubles"}),
            heard: "Hi.".into(),
            answer: "Hello there.".into(),
            transcript: "Hello there".into(),
            timeline: json!({"first_audio_ms": 420.0, "confirmed_ms": 300.0}),
            file: "demo.wav".into(),
            length: Duration::from_secs(2),
            killed: Some("laptop".into()),
            changes: vec![json!({
                "stage": "speak", "from": "laptop", "to": "tower", "same_voice": true,
                "gap_ms": 80.0,
            })],
            who: vec!["desk hears".into()],
        };
        let text = anstream::adapter::strip_str(&report.text(&Out::piped())).to_string();
        assert!(text.contains("tower spoke on (the same voice)"), "{text}");
        assert!(text.contains("2 of 2 words"), "{text}");
        assert_eq!(report.json()["words_understood"], 2);
        assert_eq!(report.json()["engine"], "doubles");
    }
}
