//! What is heard: the hearing that is open, and whether somebody speaks.

use super::MIC_SAMPLES_PER_MS;
use crate::time::Mono;
use crate::timeouts::{BARGE_IN, HEARING_IDLE, HEARING_RETRY, PREROLL};
use std::time::Duration;

/// [`PREROLL`] in samples.
const PREROLL_SAMPLES: u64 = PREROLL.as_millis() as u64 * MIC_SAMPLES_PER_MS;

/// See [`super`]. One hearing is open at most; the next opens with the next sound, and gets all
/// that no transcript is of yet.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) number: u32,
    pub(super) open: bool,
    /// The caller said that its utterance is over.
    pub(super) ended: bool,
    opened: Mono,
    /// Samples that went into it.
    samples: u64,
    /// Samples that no transcript is of, those included.
    unheard: u64,
    /// Somebody spoke in it.
    pub(super) began: bool,
    /// Somebody speaks since then.
    voice: Option<Mono>,
    /// When somebody spoke last.
    last: Option<Mono>,
    /// None is opened before: the one before failed.
    retry: Mono,
}

impl Ear {
    pub(super) fn new(now: Mono) -> Self {
        Ear {
            number: 0,
            open: false,
            ended: false,
            opened: now,
            samples: 0,
            unheard: 0,
            began: false,
            voice: None,
            last: None,
            retry: now,
        }
    }

    /// So much more sound is there.
    pub(super) fn pushed(&mut self, samples: usize) {
        let samples = samples as u64;
        self.unheard += samples;
        if self.open && !self.ended {
            self.samples += samples;
        }
    }

    /// Opens the next if it is time; its number, and how many of the latest samples it gets.
    pub(super) fn open(&mut self, now: Mono) -> Option<(u32, u64)> {
        if self.open || self.unheard == 0 || now < self.retry {
            return None;
        }
        *self = Ear {
            number: self.number + 1,
            open: true,
            samples: self.unheard,
            unheard: self.unheard,
            ..Ear::new(now)
        };
        Some((self.number, self.unheard))
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

    /// The utterance was transcribed: so many of its samples.
    pub(super) fn finished(&mut self, samples: u64) {
        self.close();
        self.unheard -= samples.min(self.samples);
    }

    /// It was not, and is given up.
    pub(super) fn failed(&mut self, now: Mono) {
        self.close();
        self.unheard -= self.samples.saturating_sub(PREROLL_SAMPLES);
        self.retry = now + HEARING_RETRY;
    }

    /// When nobody has spoken into it for so long that a new one is due.
    pub(super) fn stale(&self) -> Option<Mono> {
        (self.open && !self.began && !self.ended).then(|| self.opened + HEARING_IDLE)
    }

    /// Gives up what nobody has spoken into.
    pub(super) fn renew(&mut self) {
        self.close();
        self.unheard = self.unheard.min(PREROLL_SAMPLES);
    }

    fn close(&mut self) {
        self.open = false;
        self.voice = None;
    }
}
