//! Going on after a delivered text, at an engine that reads text and no token ids.
//!
//! What was delivered goes in as the beginning of the answer, and three things may go wrong:
//! - **It ends raggedly.** White space at its end is trimmed by many chat templates, and half a
//!   word makes other tokens than the whole. So such an end does not go in: the engine makes it
//!   *again*, and that is swallowed. If something else comes, the engine is asked once more,
//!   with all of the text: what was delivered stays, whatever follows.
//! - **The engine begins anew**, as after a turn of its own. Then its first words are those of
//!   the delivered text. That is a failure, never text, and is remembered.
//! - **Nobody knows** whether it can go on at all. A server of unknown make is tried out once
//!   (`openai.rs`); one that cannot go on declines, and the client asks another.
//!
//! Pieces are held until it is clear which of it is the case; that takes a piece or two.

use super::request::prefix_text;
use super::{EngineError, EngineEvent, EngineStream};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use unamesh_proto::limits::MAX_MODELS;
use unamesh_proto::wire::{Chunk, GenerateRequest, Sampling};

/// The longest end that is made again, in bytes. What has no white space for longer (Japanese,
/// a URL) is cut where it was delivered.
const MAX_AGAIN: usize = 48;
/// So much of the delivered text's own beginning is no chance any more...
const ANEW: usize = 32;
/// ...and less of it, if that is all there is; below, nothing can be told.
const ANEW_AT_LEAST: usize = 12;

/// Where an engine is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// What goes in.
    pub sent: String,
    /// What was delivered beyond it: comes first, and is swallowed.
    pub again: String,
    /// Tokens behind `sent`.
    pub sent_tokens: u32,
    /// Tokens behind `again`.
    pub again_tokens: u32,
}

impl Start {
    /// After all that was delivered.
    pub fn exact(prefix: &[Chunk]) -> Self {
        let text = prefix_text(prefix);
        let end = text.len();
        Start::at(prefix, text, end)
    }

    /// Before a ragged end.
    pub fn smooth(prefix: &[Chunk], sampling: &Sampling) -> Self {
        let text = prefix_text(prefix);
        let end = smooth_end(&text, is_greedy(sampling));
        Start::at(prefix, text, end)
    }

    fn at(prefix: &[Chunk], mut text: String, at: usize) -> Self {
        let again = text.split_off(at);
        let mut end = 0;
        let (mut sent_tokens, mut again_tokens) = (0_u32, 0_u32);
        for chunk in prefix {
            let begin = end;
            end += chunk.text.len();
            // Of a piece that reaches over `at` by white space alone, that will come with the
            // next word: it takes no token of its own.
            let over = chunk.text.get(at.saturating_sub(begin)..);
            let over_by_a_blank = begin < at && over.is_some_and(|o| o.trim().is_empty());
            let tokens = if end <= at || over_by_a_blank {
                &mut sent_tokens
            } else {
                &mut again_tokens
            };
            *tokens = tokens.saturating_add(chunk.tokens);
        }
        Start {
            sent: text,
            again,
            sent_tokens,
            again_tokens,
        }
    }
}

/// Only then does the same word surely come again.
fn is_greedy(sampling: &Sampling) -> bool {
    sampling.temperature == Some(0.0) || sampling.top_k == Some(1)
}

/// Where `text` ends smoothly: before white space at its end; before its last word, whole or
/// half, if that will come again.
fn smooth_end(text: &str, greedy: bool) -> usize {
    let words = text.trim_end();
    let end = if words.len() < text.len() {
        words.len()
    } else if greedy {
        let last = text.rfind(char::is_whitespace).unwrap_or(0);
        text[..last].trim_end().len()
    } else {
        text.len()
    };
    if text.len() - end > MAX_AGAIN {
        return text.len();
    }
    end
}

/// What was seen of each model of an engine: whether it goes on after a delivered text.
#[derive(Debug, Default)]
pub struct Seen(Mutex<BTreeMap<String, bool>>);

impl Seen {
    /// Of `model`; `None` = nothing yet.
    pub fn of(&self, model: &str) -> Option<bool> {
        self.lock().get(model).copied()
    }

    /// It was seen to go on, or not to.
    pub fn note(&self, model: &str, goes_on: bool) {
        let mut seen = self.lock();
        if seen.len() < MAX_MODELS || seen.contains_key(model) {
            seen.insert(model.to_owned(), goes_on);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, bool>> {
        // A plain map: a panic elsewhere cannot leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an engine says that cannot go on in the middle of an answer.
pub fn declined(engine: &str) -> EngineError {
    EngineError::Unsupported {
        engine: engine.to_owned(),
        what: "going on in the middle of an answer".to_owned(),
    }
}

/// Asks the engine to go on.
pub type Open =
    Box<dyn Fn(Start) -> BoxFuture<'static, Result<EngineStream, EngineError>> + Send + Sync>;

/// Goes on after what was delivered, beginning at `start`.
///
/// # Errors
/// As `open`; [`EngineError::Unsupported`] if it was seen not to go on.
pub async fn resume(
    engine: &str,
    request: &GenerateRequest,
    start: Start,
    seen: Arc<Seen>,
    open: Open,
) -> Result<EngineStream, EngineError> {
    let delivered = prefix_text(&request.prefix);
    if delivered.is_empty() {
        return open(start).await;
    }
    if seen.of(&request.model) == Some(false) {
        return Err(declined(engine));
    }
    let stream = open(start.clone()).await?;
    let check = Check {
        engine: engine.to_owned(),
        model: request.model.clone(),
        exact: Start::exact(&request.prefix),
        delivered,
        start,
        seen,
        open,
        stream: Some(stream),
        announced: false,
        judged: false,
        came: String::new(),
        held: Vec::new(),
        swallowed: 0,
        out: VecDeque::new(),
    };
    let items = stream::unfold(Box::new(check), |mut check| async move {
        let item = check.next().await?;
        Some((item, check))
    });
    Ok(items.boxed())
}

/// A continuation whose first words are looked at.
struct Check {
    engine: String,
    model: String,
    delivered: String,
    start: Start,
    exact: Start,
    seen: Arc<Seen>,
    open: Open,
    /// `None` once it is over.
    stream: Option<EngineStream>,
    announced: bool,
    /// It goes on.
    judged: bool,
    /// The text that came so far.
    came: String,
    held: Vec<(Chunk, String)>,
    /// Tokens that were made again.
    swallowed: u32,
    out: VecDeque<EngineEvent>,
}

/// What the first words say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    GoesOn,
    /// Something else comes than what was delivered.
    Differs,
    BeginsAnew,
}

impl Check {
    async fn next(&mut self) -> Option<Result<EngineEvent, EngineError>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some(Ok(event));
            }
            let event = match self.stream.as_mut()?.next().await? {
                Ok(event) if self.judged => return Some(Ok(self.counted(event))),
                Ok(event) => self.judge(event).await,
                Err(error) => Err(error),
            };
            if let Err(error) = event {
                self.stream = None;
                return Some(Err(error));
            }
        }
    }

    /// Takes in an event while nothing is clear.
    async fn judge(&mut self, event: EngineEvent) -> Result<(), EngineError> {
        let end = match event {
            EngineEvent::Started { .. } if self.announced => return Ok(()),
            EngineEvent::Started { .. } | EngineEvent::Progress { .. } => {
                self.announced = true;
                self.out.push_back(event);
                return Ok(());
            }
            EngineEvent::Chunk { chunk, extra } => {
                if extra.contains("\"reasoning_content\"") {
                    return Err(self.begins_anew());
                }
                self.came.push_str(&chunk.text);
                self.held.push((chunk, extra));
                None
            }
            end @ EngineEvent::Done { .. } => Some(end),
        };
        match verdict(&self.came, &self.start, &self.delivered, end.is_some()) {
            Verdict::Wait => Ok(()),
            Verdict::GoesOn => {
                self.goes_on();
                let end = end.map(|end| self.counted(end));
                self.out.extend(end);
                Ok(())
            }
            Verdict::BeginsAnew => Err(self.begins_anew()),
            Verdict::Differs => {
                // The engine's slot is free before it is asked again.
                self.stream = None;
                self.came.clear();
                self.held.clear();
                self.start = self.exact.clone();
                self.stream = Some((self.open)(self.exact.clone()).await?);
                Ok(())
            }
        }
    }

    fn begins_anew(&self) -> EngineError {
        self.seen.note(&self.model, false);
        EngineError::Failed {
            engine: self.engine.clone(),
            reason: "began its answer anew instead of going on".to_owned(),
        }
    }

    /// Lets go what is held, without what was made again.
    fn goes_on(&mut self) {
        self.judged = true;
        let mut again = self.start.again.len();
        for (mut chunk, extra) in self.held.drain(..) {
            let part = again.min(chunk.text.len());
            again -= part;
            if part > 0 && part == chunk.text.len() {
                self.swallowed = self.swallowed.saturating_add(chunk.tokens);
                continue;
            }
            if part > 0 {
                chunk.text.drain(..part);
                // They stand for what was swallowed as well.
                chunk.ids.clear();
            }
            self.out.push_back(EngineEvent::Chunk { chunk, extra });
        }
    }

    /// The usage without what was made again.
    fn counted(&self, event: EngineEvent) -> EngineEvent {
        match event {
            EngineEvent::Done { finish, mut usage } => {
                let made = &mut usage.completion_tokens;
                *made = made.saturating_sub(self.swallowed);
                EngineEvent::Done { finish, usage }
            }
            event => event,
        }
    }
}

fn verdict(came: &str, start: &Start, delivered: &str, ended: bool) -> Verdict {
    let again = start.again.as_str();
    let is_word = !again.trim().is_empty();
    let repeated = came.starts_with(again);
    if repeated && is_word {
        return Verdict::GoesOn;
    }
    let undecided = again.starts_with(came) && !repeated && !ended;
    if undecided && is_word {
        return Verdict::Wait;
    }
    if !start.sent.is_empty() {
        let (new, old) = (came.trim_start(), delivered.trim());
        let shared = new.bytes().zip(old.bytes()).take_while(|(a, b)| a == b);
        let shared = shared.count();
        let enough = ANEW.min(old.len());
        if shared >= enough && enough >= ANEW_AT_LEAST {
            return Verdict::BeginsAnew;
        }
        if shared == new.len() && old.len() >= ANEW_AT_LEAST && !ended {
            return Verdict::Wait;
        }
    }
    match (repeated, undecided) {
        (true, _) => Verdict::GoesOn,
        (false, true) => Verdict::Wait,
        (false, false) => Verdict::Differs,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::request::tests::request;
    use unamesh_proto::wire::{FinishReason, InputKind, Usage};

    fn chunk(text: &str) -> Chunk {
        Chunk {
            text: text.into(),
            ids: Vec::new(),
            tokens: 1,
        }
    }

    #[test]
    fn a_ragged_end_does_not_go_in() {
        let at = |text, greedy| &text[..smooth_end(text, greedy)];
        assert_eq!(at("The sea is dee", true), "The sea is");
        assert_eq!(at("The sea is dee", false), "The sea is dee");
        assert_eq!(at("The sea.\n\n", false), "The sea.");
        assert_eq!(at("The", true), "");
        assert_eq!(at(" \n", true), "");
        let japanese = "日本語には空白がないので長い文はそのまま続ける";
        assert_eq!(at(japanese, true), japanese);
    }

    #[test]
    fn tokens_are_shared_out() {
        let prefix = ["The", " se", "a", " is"].map(chunk);
        let start = Start::at(&prefix, "The sea is".into(), 3);
        assert_eq!(
            (start.sent.as_str(), start.again.as_str()),
            ("The", " sea is")
        );
        assert_eq!((start.sent_tokens, start.again_tokens), (1, 3));
        let start = Start::smooth(&["t4 ", "t5 "].map(chunk), &Sampling::default());
        assert_eq!((start.sent.as_str(), start.again.as_str()), ("t4 t5", " "));
        assert_eq!((start.sent_tokens, start.again_tokens), (2, 0));
        let start = Start::smooth(&["sea", ".", "\n\n"].map(chunk), &Sampling::default());
        assert_eq!((start.sent_tokens, start.again_tokens), (2, 1));
    }

    #[test]
    fn the_first_words_say_what_it_does() {
        let delivered = "The sea is wide and full";
        let prefix = [chunk(delivered)];
        let greedy = Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        };
        let start = Start::smooth(&prefix, &greedy);
        assert_eq!(start.again, " full");
        let says = |came, ended| verdict(came, &start, delivered, ended);
        assert_eq!(says("", false), Verdict::Wait);
        assert_eq!(says(" fu", false), Verdict::Wait);
        assert_eq!(says(" full of", false), Verdict::GoesOn);
        assert_eq!(says(" empty", false), Verdict::Differs);
        assert_eq!(says("", true), Verdict::Differs);
        assert_eq!(says("The sea", false), Verdict::Wait);
        assert_eq!(says("The sea was", false), Verdict::Differs);
        assert_eq!(
            says("\nThe sea is wide and full of", false),
            Verdict::BeginsAnew
        );

        let exact = Start::exact(&prefix);
        let says = |came, ended| verdict(came, &exact, delivered, ended);
        assert_eq!(says(" of", false), Verdict::GoesOn);
        assert_eq!(says("The", false), Verdict::Wait);
        assert_eq!(says("The", true), Verdict::GoesOn);
        assert_eq!(says("", true), Verdict::GoesOn);
        // With little delivered nothing can be told.
        let exact = Start::exact(&[chunk("ha")]);
        assert_eq!(verdict("ha", &exact, "ha", false), Verdict::GoesOn);
    }

    /// Runs a continuation on an engine that says `answers`, one for each time it is asked.
    async fn play(
        delivered: &[&str],
        answers: &[&[&str]],
    ) -> (Result<String, EngineError>, Vec<String>, Arc<Seen>, u32) {
        let mut asked = request(InputKind::Chat, "[]");
        asked.sampling.temperature = Some(0.0);
        asked.prefix = delivered.iter().map(|text| chunk(text)).collect();
        let said: Vec<Vec<String>> = answers
            .iter()
            .map(|a| a.iter().map(|t| (*t).to_owned()).collect())
            .collect();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&sent);
        let open: Open = Box::new(move |start: Start| {
            let mut log = log.lock().unwrap();
            let answer = said[log.len()].clone();
            log.push(start.sent);
            let made = u32::try_from(answer.len()).unwrap();
            let chunks = answer.into_iter().map(|text| EngineEvent::Chunk {
                chunk: chunk(&text),
                extra: String::new(),
            });
            let usage = Usage {
                prompt_tokens: 0,
                completion_tokens: made,
            };
            let finish = FinishReason::Stop;
            let end = EngineEvent::Done { finish, usage };
            let first = EngineEvent::Started { exact: false };
            let events: Vec<_> = [first].into_iter().chain(chunks).chain([end]).collect();
            Box::pin(async move { Ok(super::super::stream::ready(events)) })
        });
        let seen = Arc::new(Seen::default());
        let start = Start::smooth(&asked.prefix, &asked.sampling);
        let stream = resume("e", &asked, start, Arc::clone(&seen), open).await;
        let events: Vec<_> = stream.unwrap().collect().await;
        let (mut text, mut made, mut result) = (String::new(), 0, Ok(()));
        for event in events {
            match event {
                Ok(EngineEvent::Chunk { chunk, .. }) => text.push_str(&chunk.text),
                Ok(EngineEvent::Done { usage, .. }) => made = usage.completion_tokens,
                Ok(_) => {}
                Err(error) => result = Err(error),
            }
        }
        let sent = sent.lock().unwrap().clone();
        (result.map(|()| text), sent, seen, made)
    }

    #[tokio::test]
    async fn what_is_made_again_is_swallowed_and_not_counted() {
        let (text, sent, _, made) = play(&["The", " sea", " is"], &[&[" i", "s deep", "."]]).await;
        // Of three tokens one was swallowed; the one that holds both ends counts.
        assert_eq!((text.unwrap().as_str(), made), (" deep.", 2));
        assert_eq!(sent, ["The sea"]);
    }

    #[tokio::test]
    async fn if_something_else_comes_it_goes_on_after_all_of_it() {
        let answers: [&[&str]; 2] = [&[" was"], &[" wide"]];
        let (text, sent, _, _) = play(&["The", " sea", " is"], &answers).await;
        assert_eq!(text.unwrap(), " wide");
        assert_eq!(sent, ["The sea", "The sea is"]);
    }

    #[tokio::test]
    async fn an_engine_that_begins_anew_is_a_failure_and_remembered() {
        let delivered = ["The", " sea", " is", " wide", " and", " deep"];
        let anew = ["The", " sea", " is", " wide", " and", " deep", " and"];
        let (text, _, seen, _) = play(&delivered, &[&anew]).await;
        assert!(matches!(text, Err(EngineError::Failed { .. })), "{text:?}");
        assert_eq!(seen.of("m"), Some(false));
    }
}
