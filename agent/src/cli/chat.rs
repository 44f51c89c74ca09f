//! `unamesh chat`: a question, or a conversation. The answer is streamed; when it goes on
//! from another machine, a note in dim brackets on standard error says so.

use super::args::ChatArgs;
use super::context::Context;
use super::error::CliError;
use super::mesh::{Events, Mesh};
use super::output::{BOLD, DIM, printable};
use super::text::{Read, ms};
use super::why::near;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read as _};
use unamesh_proto::limits;
use unamesh_proto::rank::same_name;

pub(super) async fn run(context: &Context, mut args: ChatArgs) -> Result<(), CliError> {
    let mesh = Mesh::find(context).await?;
    let model = model(context, &mesh, &mut args).await?;
    let chat = Chat {
        context,
        mesh: &mesh,
        model,
        args: &args,
    };
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({"role": "system", "content": system}));
    }
    let ended = match &args.prompt {
        Some(prompt) => chat.once(&mut messages, prompt).await,
        None if is_piped() => chat.once(&mut messages, &read_all()?).await,
        None => chat.conversation(&mut messages).await,
    };
    mesh.close().await;
    ended
}

/// Which model is asked. One argument alone may be the question: `unamesh chat "why is the sky
/// blue?"`, `unamesh chat hi`.
async fn model(context: &Context, mesh: &Mesh, args: &mut ChatArgs) -> Result<String, CliError> {
    let Some(first) = args.model.take() else {
        return first_model(context, mesh).await;
    };
    if args.prompt.is_some() {
        return Ok(first);
    }
    let models = mesh.models().await?;
    let known: Vec<&str> = models
        .items()
        .iter()
        .map(|m| m.at("model").text())
        .collect();
    match First::read(&first, &known) {
        First::Model => return Ok(first),
        First::NoModel => {
            let near = near(&mesh.why(&first, 0).await?);
            let message = format!("no machine has a model {first:?}{near}");
            return Err(CliError::new("model_not_found", message).next(context.command("models")));
        }
        First::Question => {}
    }
    // What is piped in is the question after all, and the word a model that nobody has.
    if !first.contains(char::is_whitespace) && is_piped() {
        args.prompt = read_all().ok();
    }
    if args.prompt.is_some() {
        return Ok(first);
    }
    args.prompt = Some(first);
    first_model(context, mesh).await
}

/// What the first argument is, if it is the only one.
#[derive(Debug, PartialEq, Eq)]
enum First {
    Model,
    Question,
    /// It looks like a model and is none.
    NoModel,
}

impl First {
    /// Letters at the start of a known name that make a word look like a model.
    const ALIKE: usize = 3;

    fn read(text: &str, known: &[&str]) -> First {
        let alike = |name: &&str| {
            let (a, b) = (name.to_lowercase(), text.to_lowercase());
            let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y);
            same.count() >= Self::ALIKE
        };
        if known.iter().any(|name| same_name(name, text)) {
            First::Model
        } else if text.contains(char::is_whitespace) {
            First::Question
        } else if text.contains([':', '/']) || known.iter().any(alike) {
            First::NoModel
        } else {
            First::Question
        }
    }
}

fn is_piped() -> bool {
    !std::io::stdin().is_terminal()
}

/// The first language model that is loaded somewhere, else the first that could be.
pub(super) async fn first_model(context: &Context, mesh: &Mesh) -> Result<String, CliError> {
    let models = mesh.models().await?;
    let texts = || {
        models
            .items()
            .iter()
            .filter(|m| m.at("kind").text() == "llm")
    };
    let loaded = |m: &&Value| {
        m.at("peers")
            .items()
            .iter()
            .any(|p| matches!(p.at("residency").text(), "loaded" | "pinned"))
    };
    texts()
        .find(loaded)
        .or_else(|| texts().next())
        .map(|m| m.at("model").text().to_owned())
        .ok_or_else(|| {
            CliError::new("no_models", "no machine of the mesh has a language model")
                .next(context.command("doctor"))
        })
}

fn read_all() -> Result<String, CliError> {
    let limit = u64::try_from(limits::MAX_HTTP_BODY).unwrap_or(u64::MAX);
    let mut text = String::new();
    std::io::stdin()
        .take(limit)
        .read_to_string(&mut text)
        .map_err(|e| CliError::new("input", format!("standard input: {e}")))?;
    if text.trim().is_empty() {
        return Err(CliError::new(
            "input",
            "standard input is empty: nothing to ask",
        ));
    }
    Ok(text)
}

struct Chat<'a> {
    context: &'a Context,
    mesh: &'a Mesh,
    model: String,
    args: &'a ChatArgs,
}

impl Chat<'_> {
    /// One question, one answer.
    async fn once(&self, messages: &mut Vec<Value>, prompt: &str) -> Result<(), CliError> {
        messages.push(json!({"role": "user", "content": prompt}));
        tokio::select! {
            answer = self.answer(messages) => answer.map(drop),
            _ = tokio::signal::ctrl_c() => Err(CliError::interrupted()),
        }
    }

    /// Questions until the input ends. Ctrl-C stops an answer; at the prompt it ends.
    async fn conversation(&self, messages: &mut Vec<Value>) -> Result<(), CliError> {
        let out = &self.context.out;
        out.note(&format!(
            "{DIM}{} - Ctrl-C stops an answer, Ctrl-D ends{DIM:#}\n",
            self.model
        ));
        loop {
            out.note(&format!("{BOLD}> {BOLD:#}"));
            let line = tokio::select! {
                line = read_line() => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else {
                out.note("\n");
                return Ok(());
            };
            if line.trim().is_empty() {
                continue;
            }
            messages.push(json!({"role": "user", "content": line.trim()}));
            let answered = tokio::select! {
                answer = self.answer(messages) => Some(answer),
                _ = tokio::signal::ctrl_c() => None,
            };
            match answered {
                Some(Ok(text)) => messages.push(json!({"role": "assistant", "content": text})),
                Some(Err(error)) if error.silent => return Err(error),
                // The conversation goes on without what failed or was stopped.
                Some(Err(error)) => {
                    messages.pop();
                    out.error(&error);
                }
                None => {
                    messages.pop();
                    out.note(&format!("\n{DIM}[stopped]{DIM:#}\n"));
                }
            }
        }
    }

    /// Streams one answer and returns its text.
    async fn answer(&self, messages: &[Value]) -> Result<String, CliError> {
        let mut body = json!({"model": self.model, "messages": messages, "stream": true});
        let fields = [
            ("temperature", self.args.temperature.map(Value::from)),
            ("max_tokens", self.args.max_tokens.map(Value::from)),
            ("seed", self.args.seed.map(Value::from)),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        let mut events = self.mesh.generate(&body).await?;
        let mut text = String::new();
        let ended = self.stream(&mut events, &mut text).await;
        if !text.is_empty() && !text.ends_with('\n') && !self.context.out.json {
            self.context.out.print("\n")?;
        }
        ended.map(|()| text)
    }

    /// Until the one terminal event.
    async fn stream(&self, events: &mut Events, text: &mut String) -> Result<(), CliError> {
        let out = &self.context.out;
        while let Some(event) = events.next().await? {
            if out.json {
                out.line(&event.to_string())?;
            }
            match event.at("event").text() {
                "token" => {
                    let piece = event.at("text").text();
                    text.push_str(piece);
                    if !out.json {
                        out.print(&printable(piece))?;
                    }
                }
                "started" if self.args.verbose && !out.json => {
                    let peer = event.at("peer").at("name").text();
                    out.note(&format!(
                        "{DIM}[{}: {}]{DIM:#}\n",
                        printable(peer),
                        printable(event.at("why").text())
                    ));
                }
                "peer_changed" if !out.json => {
                    // Between the words on a terminal; elsewhere it is a line of its own.
                    let inline = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
                    let end = if inline { "" } else { "\n" };
                    out.note(&format!("{}{end}", seam(&event)));
                }
                "done" => return Ok(()),
                "failed" => return Err(self.failed(event.at("error"))),
                _ => {}
            }
        }
        Err(CliError::new(
            "agent_lost",
            "the agent on this machine went away in the middle",
        )
        .next(self.context.command("status")))
    }

    fn failed(&self, error: &Value) -> CliError {
        let code = error.at("code").text();
        let failed = CliError::new(code, error.at("message").text());
        match code {
            "unknown_model" | "model_not_found" => failed.next(self.context.command("models")),
            "no_peer" => failed.next(self.context.command(&format!("why {}", self.model))),
            _ => failed,
        }
    }
}

/// `[desk -> attic: exact seam, gap 143 ms]`.
fn seam(event: &Value) -> String {
    let gap = event.at("gap_ms").float().map(ms).unwrap_or_default();
    let name = |side: &str| printable(event.at(side).at("name").text());
    format!(
        "{DIM}[{} -> {}: {}; {} seam, gap {gap}]{DIM:#}",
        name("from"),
        name("to"),
        event.at("reason").text(),
        event.at("seam").text(),
    )
}

/// A line of standard input; `None` at its end.
pub(super) async fn read_line() -> Result<Option<String>, CliError> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .map(|n| (n > 0).then_some(line))
    });
    match read.await {
        Ok(Ok(line)) => Ok(line),
        Ok(Err(e)) => Err(CliError::new("input", format!("standard input: {e}"))),
        Err(e) => Err(CliError::new("input", e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_talk_to_the_terminal() {
        assert_eq!(
            printable("a\x1b[2Jb\u{9b}c\r\n\td\u{e9}\x07"),
            "a[2Jbc\n\td\u{e9}"
        );
    }

    #[test]
    fn one_word_is_a_question_unless_it_looks_like_a_model() {
        let known = ["smollm2", "mistral:latest", "org/tiny:q4"];
        for (text, is) in [
            ("smollm2", First::Model),
            ("mistral", First::Model),
            ("hi", First::Question),
            ("2+2?", First::Question),
            ("smollm2 is what?", First::Question),
            ("Smollm3", First::NoModel),
            ("mistrl", First::NoModel),
            ("qwen:7b", First::NoModel),
        ] {
            assert_eq!(First::read(text, &known), is, "{text}");
        }
        assert_eq!(First::read("hi", &[]), First::Question);
    }

    #[test]
    fn a_seam_names_both_sides() {
        let event = json!({
            "from": {"name": "desk"}, "to": {"name": "attic"}, "seam": "exact",
            "gap_ms": 143.2, "reason": "connection lost",
        });
        let text = anstream::adapter::strip_str(&seam(&event)).to_string();
        assert_eq!(
            text,
            "[desk -> attic: connection lost; exact seam, gap 143 ms]"
        );
    }
}
