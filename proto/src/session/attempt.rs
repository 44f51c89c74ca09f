//! One attempt: a stream at one peer.

use super::{Reason, Silence};
use crate::ids::{GenerationId, NodeId};
use crate::rank::Candidate;
use crate::stalls::{Observed, Sketch};
use crate::time::Mono;
use crate::wire::Phase;
use std::time::Duration;

/// Names an attempt within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u32);

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The stream is being opened.
    Dialing,
    /// The request is on its way or accepted; no token yet.
    Waiting,
    /// Tokens come.
    Producing,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub id: AttemptId,
    pub candidate: Candidate,
    /// Reattaches to a generation that runs there, instead of starting one.
    pub attach: bool,
    pub stage: Stage,
    /// The index that its next token must have.
    pub next: u32,
    pub opened: Mono,
    /// The last frame of any kind; `opened` until one came.
    pub heard: Mono,
    /// A frame came.
    pub alive: bool,
    /// The frame at hand has lain unread: `heard` and `advanced` are later than they should be.
    pub late: bool,
    heard_late: bool,
    advanced_late: bool,
    /// The last token, or progress that advanced.
    pub advanced: Mono,
    pub phase: Option<(Phase, u32)>,
    /// It stalls no earlier than after this, whatever its engine has shown.
    pub patience: Duration,
    pub generation: Option<GenerationId>,
    /// Its prefix went in as token ids.
    pub exact: bool,
    pub digest: String,
    /// It is silent or stalled.
    pub suspect: Option<Reason>,
    /// Its peer is leaving: it goes on until a backup produces.
    pub draining: bool,
    pub silence: Silence,
    /// It is a backup on suspicion, which the owner's budget paid for.
    pub hedge: bool,
    /// Of its prompt, the replayed prefix included.
    pub prompt_tokens: u32,
    /// Its engine has just read the same prompt: its first wait says nothing.
    pub cached: bool,
    /// As a backup: it says something else than what was delivered.
    pub differs: bool,
    /// The usual time between its tokens.
    pub itl: Duration,
    /// The longest stretch without an advance before the first token.
    longest: Duration,
    /// A part of it was not seen as it passed.
    unseen: bool,
    /// The same once the first token came, if it says something of the engine.
    first: Option<Duration>,
    /// Of the pieces before this one, where it is asked for piece after piece: the same.
    pieces: Sketch,
    /// How long the piece's sound lasts about; zero for text.
    sound: Duration,
    /// Of its pieces so far: the longest first wait, and the longest in parts of the sound.
    shown: Option<(Duration, f32)>,
    /// Between its tokens.
    gaps: Sketch,
}

impl Attempt {
    pub fn new(
        id: AttemptId,
        candidate: Candidate,
        next: u32,
        now: Mono,
        silence: Silence,
    ) -> Self {
        Attempt {
            id,
            itl: candidate.expected_itl,
            digest: candidate.digest.clone(),
            candidate,
            attach: false,
            stage: Stage::Dialing,
            next,
            opened: now,
            heard: now,
            alive: false,
            late: false,
            heard_late: false,
            advanced_late: false,
            advanced: now,
            phase: None,
            patience: Duration::ZERO,
            generation: None,
            exact: false,
            suspect: None,
            draining: false,
            silence,
            hedge: false,
            prompt_tokens: 0,
            cached: false,
            differs: false,
            longest: Duration::ZERO,
            unseen: false,
            first: None,
            pieces: Sketch::default(),
            sound: Duration::ZERO,
            shown: None,
            gaps: Sketch::default(),
        }
    }

    /// A backup should stand by.
    pub fn needs_backup(&self) -> bool {
        self.suspect.is_some() || self.draining
    }

    /// It was attached to a generation and has not given anything of it yet.
    pub fn reattaches(&self) -> bool {
        self.attach && self.stage != Stage::Producing
    }

    /// Why somebody else goes on in its place.
    pub fn trouble(&self) -> Reason {
        match &self.suspect {
            Some(reason) => reason.clone(),
            None if self.draining => Reason::Draining,
            None => Reason::Silence,
        }
    }

    /// Whether `other` may run beside it.
    pub fn may_have_beside(&self, other: &Candidate) -> bool {
        let stalls = self.suspect == Some(Reason::Stall) && !self.draining;
        self.node() != other.node || (stalls && self.candidate.engine != other.engine)
    }

    pub fn node(&self) -> NodeId {
        self.candidate.node
    }

    /// A frame came: the peer lives. Learns the path's lateness.
    pub fn hear(&mut self, now: Mono) {
        let was_late = std::mem::replace(&mut self.heard_late, self.late);
        if self.alive && !self.late && !was_late {
            self.silence.observe(now.since(self.heard));
        }
        self.alive = true;
        if self.stage == Stage::Dialing {
            self.stage = Stage::Waiting;
        }
        self.heard = now;
    }

    /// Progress came; only a phase or count that changed is an advance, and that a token was
    /// made is none once the token is here.
    pub fn progress(&mut self, phase: Phase, done: u32, now: Mono) {
        let news = match self.phase {
            Some((Phase::Generating, made)) if phase == Phase::Generating => done > made,
            known => known != Some((phase, done)),
        };
        if news {
            let (stretch, seen) = self.advance(now);
            if self.works() {
                self.longest = self.longest.max(stretch);
                self.unseen |= !seen;
            }
            self.phase = Some((phase, done));
        }
    }

    /// Its engine is asked for a piece of speech, whose sound lasts about so long: the wait for it
    /// is a first one again.
    pub fn asked(&mut self, sound: Duration, now: Mono) {
        if let Some(wait) = self.first.take() {
            self.pieces.record(wait);
            let part = wait.as_secs_f32() / self.sound.as_secs_f32().max(0.1);
            let (longest, parts) = self.shown.unwrap_or_default();
            self.shown = Some((longest.max(wait), parts.max(part)));
        }
        (self.stage, self.advanced, self.sound) = (Stage::Waiting, now, sound);
        (self.longest, self.unseen) = (Duration::ZERO, false);
    }

    /// How long its engine usually takes to a first token or sound, as far as is known: what its
    /// pieces of this stream took says more than its advert.
    pub fn expected_first(&self) -> Duration {
        match self.shown {
            Some((longest, part)) => longest.max(self.sound.mul_f32(part)),
            None => self.candidate.expected_ttft,
        }
    }

    /// It speaks, piece after piece.
    pub fn speaks(&self) -> bool {
        !self.sound.is_zero()
    }

    /// Its next piece came, of so many tokens.
    pub fn token(&mut self, tokens: u32, now: Mono) {
        let (stretch, seen) = self.advance(now);
        if self.stage == Stage::Producing {
            if seen {
                self.gaps.record(stretch);
                // As TCP smooths its round trip; the advert's figure is where it starts.
                self.itl = (self.itl * 7 + stretch) / 8;
            }
        } else if self.works() && seen && !self.unseen {
            self.first = Some(self.longest.max(stretch));
        }
        let made = match self.phase {
            Some((Phase::Generating, made)) => made,
            _ => 0,
        };
        self.phase = Some((Phase::Generating, made.saturating_add(tokens)));
        self.next += 1;
        self.stage = Stage::Producing;
    }

    /// It advances: how long after the last time, and whether both were seen as they came.
    fn advance(&mut self, now: Mono) -> (Duration, bool) {
        let stretch = now.since(std::mem::replace(&mut self.advanced, now));
        let was_late = std::mem::replace(&mut self.advanced_late, self.late);
        (stretch, !self.late && !was_late)
    }

    /// What it showed of its engine, up to `now`. Of one that is left as stalled the stretch
    /// that runs counts as the bound: how long it would have taken nobody knows.
    pub fn observed(&self, now: Mono) -> Option<Observed> {
        let (mut first, mut gaps) = (self.pieces.clone(), self.gaps.clone());
        self.first.into_iter().for_each(|wait| first.record(wait));
        if self.suspect == Some(Reason::Stall) && self.works() {
            let shown = now.since(self.advanced).min(self.stall_bound());
            if self.stage == Stage::Producing {
                gaps.record(shown);
            } else {
                first.record(self.longest.max(shown));
            }
        }
        // A reattached stream replays its journal: that is the network's speed.
        if self.cached {
            first = Sketch::default();
        }
        let shown = !self.attach && (first.samples() > 0 || gaps.samples() > 0);
        shown.then_some(Observed {
            prompt_tokens: self.prompt_tokens,
            first,
            gaps,
        })
    }

    /// How long it took to its first token.
    pub fn first_wait(&self) -> Option<Duration> {
        self.first
    }

    /// The engine is at work on it, for all that is known.
    fn works(&self) -> bool {
        !matches!(self.phase, Some((Phase::Queued | Phase::Loading, _)))
    }
}
