//! One answer, as the client saw it, and what was done meanwhile.

use super::Home;
use crate::cluster::Generation;
use crate::measure::Samples;
use serde_json::Value;
use std::collections::VecDeque;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// An answer that has told nothing for this long hangs: longer than any wait that the session
/// machine may take for a peer to come.
pub const HANGS: Duration = Duration::from_secs(30);

type Act<'a> = Box<dyn FnOnce(usize) + Send + 'a>;

/// A question that is about to be asked.
#[must_use = "nothing is asked until it is awaited"]
pub struct Ask<'a> {
    home: &'a Home,
    host: usize,
    acts: VecDeque<(u64, Act<'a>)>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(home: &'a Home, host: usize) -> Self {
        Self {
            home,
            host,
            acts: VecDeque::new(),
        }
    }

    /// When `tokens` tokens are here, does `act`, which is told which host answers. Several are
    /// done in the order in which they were given.
    pub fn at_token(mut self, tokens: u64, act: impl FnOnce(usize) + Send + 'a) -> Self {
        self.acts.push_back((tokens, Box::new(act)));
        self
    }
}

impl<'a> IntoFuture for Ask<'a> {
    type Output = Answer;
    type IntoFuture = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.read())
    }
}

impl Ask<'_> {
    async fn read(mut self) -> Answer {
        let Home {
            cluster, script, ..
        } = self.home;
        let mut answer = Answer::new(script.answer());
        let agent = &cluster.agents[self.host];
        let mut generation = Generation::start(agent, &script.model, "Count.").await;
        loop {
            let Ok(next) = tokio::time::timeout(HANGS, generation.next()).await else {
                answer.end = End::Hung;
                return answer;
            };
            let Some(event) = next else {
                return answer;
            };
            answer.take(event, self.home);
            while let Some((_, act)) = self.acts.pop_front_if(|(at, _)| answer.tokens >= *at) {
                answer.acts.push(Acted {
                    at: Instant::now(),
                    changes: answer.changes.len(),
                });
                act(answer.peer());
            }
        }
    }
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Its stream ended without a terminal event: never right.
    None,
    /// It is complete.
    Done,
    /// It failed with this error.
    Failed(Value),
    /// It told nothing for [`HANGS`].
    Hung,
}

/// An answer as it arrived.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The text that it should have.
    pub expected: String,
    /// Tokens that arrived.
    pub tokens: u64,
    /// Tokens that came out of order, twice or late, in words.
    pub disorder: Vec<String>,
    /// The hosts that answered, in turn.
    pub peers: Vec<usize>,
    /// The `peer_changed` events.
    pub changes: Vec<Value>,
    /// How it ended.
    pub end: End,
    asked: Instant,
    arrivals: Vec<Arrival>,
    acts: Vec<Acted>,
}

/// Tokens that came together.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Instant,
    /// Changes of the peer before it.
    changes: usize,
}

/// Something that was done at a token.
#[derive(Clone, Copy, Debug)]
struct Acted {
    at: Instant,
    /// Changes of the peer before it.
    changes: usize,
}

impl Answer {
    fn new(expected: String) -> Self {
        Self {
            text: String::new(),
            expected,
            tokens: 0,
            disorder: Vec::new(),
            peers: Vec::new(),
            changes: Vec::new(),
            end: End::None,
            asked: Instant::now(),
            arrivals: Vec::new(),
            acts: Vec::new(),
        }
    }

    fn take(&mut self, event: Value, home: &Home) {
        match event["event"].as_str().unwrap_or_default() {
            "started" => self.peers.push(home.host_of(&event["peer"])),
            "token" => self.token(&event),
            "peer_changed" => {
                self.peers.push(home.host_of(&event["to"]));
                self.changes.push(event);
            }
            "done" => self.end = End::Done,
            "failed" => self.end = End::Failed(event["error"].clone()),
            _ => {}
        }
    }

    fn token(&mut self, event: &Value) {
        if event["index"] != self.tokens || self.end != End::None {
            let index = &event["index"];
            let wrong = format!("index {index} after {} tokens, {:?}", self.tokens, self.end);
            self.disorder.push(wrong);
        }
        self.tokens += event["tokens"].as_u64().unwrap_or_default();
        self.text += event["text"].as_str().unwrap_or_default();
        self.arrivals.push(Arrival {
            at: Instant::now(),
            changes: self.changes.len(),
        });
    }

    /// The host that answers, or answered last.
    ///
    /// # Panics
    /// If none did.
    #[must_use]
    pub fn peer(&self) -> usize {
        *self.peers.last().expect("a peer has begun to answer")
    }

    /// What is wrong with the tokens that came: lost, doubled, reordered, changed. `None`: all
    /// is right, though the answer may be cut short.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        if !self.disorder.is_empty() {
            return Some(self.disorder.join("; "));
        }
        let right = self.expected.starts_with(&self.text);
        (!right).then(|| format!("not the beginning of the answer: {:?}", self.text))
    }

    /// Every token once, in order, and a good end.
    ///
    /// # Panics
    /// If not.
    pub fn is_whole(&self) {
        assert_eq!(self.damage(), None, "{:?} {:?}", self.end, self.changes);
        assert_eq!(
            self.end,
            End::Done,
            "{} tokens, {:?}",
            self.tokens,
            self.changes
        );
        assert_eq!(self.text, self.expected, "{:?}", self.changes);
    }

    /// Whole, or it ended with an error that has a code; what came is undamaged either way.
    ///
    /// # Panics
    /// If not.
    pub fn ended_well(&self) {
        match &self.end {
            End::Failed(error) if error["code"].is_string() => assert_eq!(self.damage(), None),
            _ => self.is_whole(),
        }
    }

    /// From the question to the first token.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.arrivals.first()?.at - self.asked)
    }

    /// From the question to the last token.
    #[must_use]
    pub fn took(&self) -> Option<Duration> {
        Some(self.arrivals.last()?.at - self.asked)
    }

    /// From each token to the next.
    #[must_use]
    pub fn pauses(&self) -> Samples {
        let mut pauses = Samples::default();
        for pair in self.arrivals.windows(2) {
            pauses.push(pair[1].at - pair[0].at);
        }
        pauses
    }

    /// The change of the peer that followed the first act. (On a busy machine one may have come
    /// before.)
    fn change(&self) -> Option<(usize, &Value)> {
        let number = self.acts.first()?.changes;
        Some((number, self.changes.get(number)?))
    }

    /// Around the change of the peer that followed the first act: from the last token before it
    /// to the first one after. `None` if there was no change.
    #[must_use]
    pub fn gap(&self) -> Option<Duration> {
        let (number, _) = self.change()?;
        let next = self
            .arrivals
            .iter()
            .position(|token| token.changes > number)?;
        let before = self.arrivals[..next].last()?;
        Some(self.arrivals[next].at - before.at)
    }

    /// The gap, less what the backup itself took to its first token: the mesh's own share.
    #[must_use]
    pub fn beyond_backup(&self) -> Option<Duration> {
        let ttft = self.change()?.1["backup_ttft_ms"].as_f64()? / 1e3;
        Some(self.gap()?.saturating_sub(Duration::from_secs_f64(ttft)))
    }

    /// From the first act to the first token of the peer that went on.
    #[must_use]
    pub fn after_act(&self) -> Option<Duration> {
        let (number, _) = self.change()?;
        let next = self.arrivals.iter().find(|token| token.changes > number)?;
        Some(next.at - self.acts.first()?.at)
    }
}
