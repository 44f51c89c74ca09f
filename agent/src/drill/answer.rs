//! One answer while its agent fails, as an application sees it: by the arrival of its tokens.

use crate::local_mesh::LocalError;
use crate::local_mesh::agent::Door;
use crate::local_mesh::http::{self, Connection};
use serde_json::Value;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What is asked, and where.
#[derive(Clone, Debug)]
pub struct Question {
    /// The agent that is asked.
    pub door: Door,
    /// The request.
    pub body: Value,
    /// The node that is to begin the answer, if it can; else whoever ranks first.
    pub first: Option<String>,
}

/// The fault that comes while answers run. Shared by them.
#[derive(Debug, Default)]
pub struct Fault {
    /// When, and at which node.
    pub struck: OnceLock<(Instant, String)>,
}

/// How an answer went on at another agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heal {
    /// From the last token before to the first after.
    pub gap: Duration,
    /// From the fault to the first token after.
    pub outage: Duration,
    /// From the backup's dispatch to its first token, as the asked agent saw it.
    pub backup_ttft: Duration,
    /// `exact`, `continued`.
    pub seam: String,
    /// What was noticed.
    pub reason: String,
}

/// What came of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The name of the agent that began it; empty: none did.
    pub began: String,
    /// All of it.
    pub text: String,
    /// Its agent was the one that failed.
    pub hit: bool,
    /// Another agent went on.
    pub heal: Option<Heal>,
    /// Changes of the agent without a fault of ours.
    pub other_changes: usize,
    /// Pieces that are missing.
    pub lost: usize,
    /// Pieces that came again, or too late.
    pub doubled: usize,
    /// The text is that of an uninterrupted answer; `None` where there is none to compare with.
    pub identical: Option<bool>,
    /// It did not come to its end: why.
    pub failed: Option<String>,
    /// Between tokens, before the fault.
    pub usual: Vec<Duration>,
    /// The longest time between two tokens, from the fault on.
    pub largest: Duration,
}

impl Answer {
    /// Asks and reads the answer to its end; `watch` sees the number of tokens and the node
    /// after each.
    pub fn read(question: &Question, fault: &Fault, mut watch: impl FnMut(usize, &str)) -> Answer {
        let mut seen = Seen::new();
        if let Err(error) = seen.read(question, fault, &mut watch) {
            seen.answer.failed = Some(error.to_string());
        }
        seen.judge(fault)
    }

    /// The fault was not played after all: nothing here is its doing.
    pub fn untouched(&mut self) {
        self.other_changes += usize::from(self.heal.take().is_some());
        (self.hit, self.largest) = (false, Duration::ZERO);
    }

    /// Counts what is missing or doubled against `expected`, the uninterrupted text.
    pub fn compare(&mut self, expected: &str) {
        let (lost, doubled) = compare(&self.text, expected);
        // A request that failed is counted as that, and not token by token too.
        if self.failed.is_none() {
            self.lost = self.lost.max(lost);
        }
        self.doubled = self.doubled.max(doubled);
        self.identical = Some(self.text == expected);
    }
}

/// An answer that is being read.
struct Seen {
    answer: Answer,
    tokens: usize,
    /// Who answers.
    node: String,
    /// Index of the piece that should come next.
    next: u64,
    last: Option<Instant>,
    /// The change of the agent, until its first token is there.
    change: Option<Value>,
}

impl Seen {
    fn new() -> Self {
        Seen {
            answer: Answer::default(),
            tokens: 0,
            node: String::new(),
            next: 0,
            last: None,
            change: None,
        }
    }

    fn read(
        &mut self,
        question: &Question,
        fault: &Fault,
        watch: &mut impl FnMut(usize, &str),
    ) -> Result<(), LocalError> {
        let mut events = Events::start(question)?;
        while !self.event(&events.next()?, fault, watch)? {}
        Ok(())
    }

    /// True with the last event.
    fn event(
        &mut self,
        event: &Value,
        fault: &Fault,
        watch: &mut impl FnMut(usize, &str),
    ) -> Result<bool, LocalError> {
        match event["event"].as_str().unwrap_or_default() {
            "started" => {
                self.node = text(&event["peer"], "node");
                self.answer.began = text(&event["peer"], "name");
            }
            "token" => {
                self.token(event, fault);
                watch(self.tokens, &self.node);
            }
            "peer_changed" => {
                self.node = text(&event["to"], "node");
                self.change = Some(event.clone());
            }
            "done" => return Ok(true),
            "failed" => return Err(LocalError::new("the answer broke off", event)),
            _ => {}
        }
        Ok(false)
    }

    fn token(&mut self, event: &Value, fault: &Fault) {
        let now = Instant::now();
        let struck = fault.struck.get();
        let gap = self.last.map(|last| now - last);
        match (gap, struck) {
            (Some(gap), Some(_)) => self.answer.largest = self.answer.largest.max(gap),
            (Some(gap), None) if self.change.is_none() => self.answer.usual.push(gap),
            _ => {}
        }
        if let Some(change) = self.change.take() {
            let ours = struck.filter(|(_, node)| *node == text(&change["from"], "node"));
            match (ours, &self.answer.heal) {
                (Some((at, _)), None) => {
                    let ttft = change["backup_ttft_ms"].as_f64().unwrap_or_default();
                    self.answer.heal = Some(Heal {
                        gap: gap.unwrap_or_default(),
                        outage: now - *at,
                        backup_ttft: Duration::from_secs_f64(ttft.max(0.0) / 1e3),
                        seam: text(&change, "seam"),
                        reason: text(&change, "reason"),
                    });
                }
                _ => self.answer.other_changes += 1,
            }
        }
        self.last = Some(now);
        self.tokens += 1;
        self.answer
            .text
            .push_str(event["text"].as_str().unwrap_or_default());
        let index = event["index"].as_u64().unwrap_or_default();
        self.answer.doubled += usize::from(index < self.next);
        self.answer.lost += usize::try_from(index.saturating_sub(self.next)).unwrap_or(usize::MAX);
        self.next = self.next.max(index + 1);
    }

    fn judge(self, fault: &Fault) -> Answer {
        let victim = fault.struck.get().map(|(_, node)| node);
        let hit = self.answer.heal.is_some() || victim == Some(&self.node);
        Answer { hit, ..self.answer }
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// The events of an answer, from the mesh API.
struct Events {
    connection: Connection,
    unread: Vec<u8>,
}

impl Events {
    fn start(question: &Question) -> Result<Self, LocalError> {
        let Question { door, body, first } = question;
        let what = "generate";
        let mut connection = Connection::open(door.gateway).map_err(LocalError::during(what))?;
        let first = first.as_ref().map(|node| format!("?first={node}"));
        let target = format!("/unamesh/v1/generate{}", first.unwrap_or_default());
        let (token, body) = (Some(door.token.as_str()), body.to_string());
        let request = http::request(door.gateway, &target, token, Some(&body));
        match connection
            .send(&request)
            .map_err(LocalError::during(what))?
        {
            200 => Ok(Events {
                connection,
                unread: Vec::new(),
            }),
            status => Err(LocalError::new(what, format!("HTTP {status}"))),
        }
    }

    fn next(&mut self) -> Result<Value, LocalError> {
        let what = "generate";
        loop {
            if let Some(end) = http::find(&self.unread, b"\n") {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(LocalError::during(what));
            }
            match self.connection.piece().map_err(LocalError::during(what))? {
                Some(piece) => self.unread.extend_from_slice(piece),
                None => return Err(LocalError::new(what, "the events ended without a last one")),
            }
        }
    }
}

/// Words of the test engine's answer (`t0 t1 t2 ...`) that are missing, and that came too
/// often or out of order. A real model's text has none of these words and counts as whole; it
/// is compared as a whole.
fn compare(text: &str, expected: &str) -> (usize, usize) {
    let words = |text: &str| -> Vec<usize> {
        let words = text.split_ascii_whitespace();
        words
            .filter_map(|word| word.strip_prefix('t')?.parse().ok())
            .collect()
    };
    let (seen, expected) = (words(text), words(expected));
    let lost = expected.iter().filter(|word| !seen.contains(word)).count();
    let mut next = 0;
    let mut doubled = 0;
    for word in seen {
        doubled += usize::from(word < next);
        next = next.max(word + 1);
    }
    (lost, doubled)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lost_and_doubled_tokens_are_counted() {
        let expected = "t0 t1 t2 ";
        assert_eq!(compare("t0 t1 t2 ", expected), (0, 0));
        assert_eq!(compare("t0 t2 ", expected), (1, 0));
        assert_eq!(compare("t0 t1 t1 t2 ", expected), (0, 1));
        assert_eq!(compare("t1 t0 t2 ", expected), (0, 1));
        assert_eq!(compare("the sea", "the sea"), (0, 0));
    }

    fn read(events: &[Value], struck_after: usize, victim: &str) -> Answer {
        let (mut seen, fault) = (Seen::new(), Fault::default());
        for (at, event) in events.iter().enumerate() {
            if at == struck_after {
                let _ = fault.struck.set((Instant::now(), victim.to_owned()));
            }
            match seen.event(event, &fault, &mut |_, _| {}) {
                Ok(over) => assert_eq!(over, at + 1 == events.len()),
                Err(e) => seen.answer.failed = Some(e.to_string()),
            }
        }
        seen.judge(&fault)
    }

    fn token(index: u64) -> Value {
        json!({"event": "token", "index": index, "text": format!("t{index} ")})
    }

    fn started() -> Value {
        json!({"event": "started", "peer": {"node": "b"}})
    }

    fn change() -> Value {
        json!({"event": "peer_changed", "from": {"node": "b"}, "to": {"node": "c"},
               "seam": "exact", "backup_ttft_ms": 12.5, "reason": "it fell silent"})
    }

    #[test]
    fn a_fault_is_healed_where_the_one_that_failed_is_replaced() {
        let done = json!({"event": "done"});
        let events = [started(), token(0), token(1), change(), token(2), done];
        let answer = read(&events, 3, "b");
        let heal = answer.heal.clone().unwrap();
        assert_eq!(
            (heal.seam.as_str(), heal.reason.as_str()),
            ("exact", "it fell silent")
        );
        assert_eq!(heal.backup_ttft, Duration::from_micros(12_500));
        assert_eq!(
            (answer.lost, answer.doubled, answer.other_changes),
            (0, 0, 0)
        );
        assert_eq!(answer.usual.len(), 1);
        assert!(answer.hit && answer.failed.is_none() && heal.gap <= answer.largest);

        // Somebody else failed: the change is not ours, and no gap of the drill.
        let elsewhere = read(&events, 3, "d");
        assert!(elsewhere.heal.is_none() && !elsewhere.hit);
        assert_eq!(elsewhere.other_changes, 1);
    }

    #[test]
    fn what_is_missing_doubled_or_broken_off_shows() {
        let done = json!({"event": "done"});
        let events = [started(), token(0), token(2), token(2), done];
        let answer = read(&events, 9, "b");
        assert_eq!((answer.lost, answer.doubled), (1, 1));
        let failed = json!({"event": "failed", "error": {"code": "interrupted"}});
        let mut broken = read(&[started(), token(0), failed], 1, "b");
        assert!(broken.hit && broken.failed.clone().unwrap().contains("interrupted"));
        broken.compare("t0 t1 t2 ");
        assert_eq!((broken.lost, broken.identical), (0, Some(false)));
    }
}
