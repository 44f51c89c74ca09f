//! What is heard: the hearing that is open, and whether somebody speaks.

use super::MIC_SAMPLES_PER_MS;
use crate::time::Mono;
use crate::timeouts::{BARGE_IN, HEARING_IDLE, HEARING_RETRY, PREROLL};
use std::time::Duration;

/// See [`super`]. One hearing is open at most; the next opens with the next sound.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) number: u32,
    pub(super) open: bool,
    /// The caller said that its utterance is over.
    pub(super) ended: bool,
    opened: Mono,
    /// Samples that went into it.
    samples: u64,
    /// Somebody spoke in it.
    pub(super) began: bool,
    /// Somebody speaks since then.
    voice: Option<Mono>,
    /// When somebody spoke last.
    last: Option<Mono>,
    /// None is opened before: the one before failed.
    retry: Mono,
    /// The next hearing gets the sound from here on; none = all that is there.
    next_from: Option<Mono>,
}

impl Ear {
    pub(super) fn new(now: Mono) -> Self {
        Ear {
            number: 0,
            open: false,
            ended: false,
            opened: now,
            samples: 0,
            began: false,
            voice: None,
            last: None,
            retry: now,
            next_from: None,
        }
    }

    pub(super) fn may_open(&self, now: Mono) -> bool {
        !self.open && now >= self.retry
    }

    /// Opens the next; its number, and how much of the sound before now it gets.
    pub(super) fn open(&mut self, now: Mono) -> (u32, Duration) {
        let from = self.next_from.take();
        let (number, retry) = (self.number + 1, self.retry);
        *self = Ear {
            number,
            open: true,
            retry,
            ..Ear::new(now)
        };
        (number, from.map_or(Duration::MAX, |from| now.since(from)))
    }

    pub(super) fn pushed(&mut self, samples: usize) {
        if self.open && !self.ended {
            self.samples += samples as u64;
        }
    }

    /// Somebody speaks from there on; true if for the first time.
    pub(super) fn began(&mut self, at_ms: u32, now: Mono) -> bool {
        let ago = (self.samples / MIC_SAMPLES_PER_MS).saturating_sub(at_ms.into());
        self.voice = Some(now - Duration::from_millis(ago));
        !std::mem::replace(&mut self.began, true)
    }

    /// Nobody has spoken for so long; how long somebody did before.
    pub(super) fn silent(&mut self, silence: Duration, now: Mono) -> Duration {
        let last = now - silence;
        self.last = Some(last);
        self.voice
            .take()
            .map_or(Duration::ZERO, |since| last.since(since))
    }

    /// Somebody speaks, as far as is known.
    pub(super) fn is_voiced(&self) -> bool {
        self.voice.is_some()
    }

    /// Somebody has spoken, and is silent since.
    pub(super) fn is_paused(&self) -> bool {
        self.open && self.began && self.voice.is_none() && self.last.is_some()
    }

    /// When the voice, if it goes on, ends an answer.
    pub(super) fn barges(&self) -> Option<Mono> {
        self.voice.map(|since| since + BARGE_IN)
    }

    /// The caller said that the utterance is over.
    pub(super) fn end(&mut self, now: Mono) {
        self.ended = true;
        if self.last.is_none() || self.voice.take().is_some() {
            self.last = Some(now);
        }
    }

    /// Whatever voice there is means nothing, until it begins anew.
    pub(super) fn ignore_voice(&mut self) {
        self.voice = None;
    }

    /// When somebody spoke last; now, if that is not known.
    pub(super) fn last(&self, now: Mono) -> Mono {
        self.last.unwrap_or(now)
    }

    /// The utterance was transcribed.
    pub(super) fn finished(&mut self) {
        self.close();
        // All that the caller gave after its end; else what came since somebody spoke, with a
        // little of the silence left out.
        self.next_from = self.last.filter(|_| !self.ended).map(|last| last + PREROLL);
    }

    /// It was not.
    pub(super) fn failed(&mut self, now: Mono) {
        self.close();
        self.retry = now + HEARING_RETRY;
        self.next_from = (!self.ended).then(|| self.retry - PREROLL);
    }

    /// Nobody has spoken into it for so long that a new one is due.
    pub(super) fn stale(&self) -> Option<Mono> {
        (self.open && !self.began && !self.ended).then(|| self.opened + HEARING_IDLE)
    }

    pub(super) fn renew(&mut self, now: Mono) {
        self.close();
        self.next_from = Some(now - PREROLL);
    }

    fn close(&mut self) {
        self.open = false;
        self.voice = None;
    }
}
