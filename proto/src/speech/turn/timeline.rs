//! When what happened in a turn.

use crate::time::Mono;
use crate::timeouts::SPECULATE;
use std::time::Duration;

/// When what happened in a turn, counted from the user's last speech sample (or from what was
/// typed, or from the end that the caller gave without a pause before it).
///
/// The last sample's time is what the recognizer's silence says: it may be late by the sound's way
/// to the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Timeline {
    /// The text that the answer is to was known.
    pub transcript: Option<Duration>,
    /// The language model was asked.
    pub thinking: Option<Duration>,
    /// The silence was confirmed: the user has finished.
    pub confirmed: Option<Duration>,
    /// The answer's first token came.
    pub first_token: Option<Duration>,
    /// The first piece went to the voice.
    pub first_piece: Option<Duration>,
    /// The first sound was handed out.
    pub first_audio: Option<Duration>,
    /// The last token came.
    pub thought: Option<Duration>,
    /// The last sound was played, or the answer was broken off.
    pub end: Option<Duration>,
}

/// Two stages that worked at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The language model began before the silence was confirmed.
    ThinkingBeforeTheEnd,
    /// The voice began before the silence was confirmed.
    SpeakingBeforeTheEnd,
    /// The first sound was heard before the last token came.
    SpeakingWhileThinking,
}

/// What the engines of a turn take by themselves: known of doubles.
#[derive(Clone, Copy, Debug)]
pub struct Engines {
    /// From the end of the sound to its transcript.
    pub residue: Duration,
    /// From the request to the first token.
    pub ttft: Duration,
    /// From the text to its first sound.
    pub ttfb: Duration,
    /// The silence after which an utterance is over.
    pub silence: Duration,
}

impl Timeline {
    /// Which stages worked at the same time.
    pub fn overlaps(&self) -> impl Iterator<Item = Overlap> {
        let before =
            |a: Option<Duration>, b: Option<Duration>| a.zip(b).is_some_and(|(a, b)| a < b);
        [
            (
                Overlap::ThinkingBeforeTheEnd,
                before(self.thinking, self.confirmed),
            ),
            (
                Overlap::SpeakingBeforeTheEnd,
                before(self.first_piece, self.confirmed),
            ),
            (
                Overlap::SpeakingWhileThinking,
                before(self.first_audio, self.thought),
            ),
        ]
        .into_iter()
        .filter_map(|(overlap, so)| so.then_some(overlap))
    }

    /// The mesh's own share of the time to the first sound: what is neither an engine's nor the
    /// wait for the silence. `None` if nothing was heard.
    ///
    /// The language model's way from its first token to the end of the first piece is an engine's
    /// time and taken from here.
    pub fn own(&self, engines: &Engines) -> Option<Duration> {
        let clause = self.first_piece?.saturating_sub(self.first_token?);
        let chain = engines.residue + engines.ttft + clause + engines.ttfb;
        // A guess runs beside the rest of the silence.
        let expected = match self.thinking < self.confirmed {
            true => engines.silence.max(SPECULATE + chain),
            false => engines.silence + chain,
        };
        Some(self.first_audio?.saturating_sub(expected))
    }
}

/// A time line while it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    origin: Mono,
    pub(super) line: Timeline,
}

impl Clock {
    pub(super) fn new(origin: Mono) -> Self {
        Clock {
            origin,
            line: Timeline::default(),
        }
    }

    /// Notes a moment, if it is the first of its kind.
    pub(super) fn first(&mut self, moment: fn(&mut Timeline) -> &mut Option<Duration>, now: Mono) {
        let since = now.since(self.origin);
        moment(&mut self.line).get_or_insert(since);
    }
}
