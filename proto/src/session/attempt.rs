//! One attempt: a stream at one peer.

use super::{Reason, Silence};
use crate::ids::{GenerationId, NodeId};
use crate::rank::Candidate;
use crate::time::Mono;
use crate::wire::Phase;

/// Names an attempt within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u32);

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The stream is being opened.
    Dialing,
    /// The request is on its way or accepted; no token yet.
    Waiting,
    /// Tokens come.
    Producing,
}

#[derive(Debug)]
pub(super) struct Attempt {
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
    /// The last token, or progress that advanced.
    pub advanced: Mono,
    pub phase: Option<(Phase, u32)>,
    pub generation: Option<GenerationId>,
    /// Its prefix went in as token ids.
    pub exact: bool,
    pub digest: String,
    /// It is silent or stalled.
    pub suspect: Option<Reason>,
    /// Its peer is leaving: it goes on until a backup produces.
    pub draining: bool,
    pub silence: Silence,
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
            digest: candidate.digest.clone(),
            candidate,
            attach: false,
            stage: Stage::Dialing,
            next,
            opened: now,
            heard: now,
            alive: false,
            advanced: now,
            phase: None,
            generation: None,
            exact: false,
            suspect: None,
            draining: false,
            silence,
        }
    }

    /// A backup should stand by.
    pub fn needs_backup(&self) -> bool {
        self.suspect.is_some() || self.draining
    }

    /// Why somebody else goes on in its place.
    pub fn trouble(&self) -> Reason {
        match &self.suspect {
            Some(reason) => reason.clone(),
            None if self.draining => Reason::Draining,
            None => Reason::Silence,
        }
    }

    pub fn node(&self) -> NodeId {
        self.candidate.node
    }

    /// A frame came: the peer lives. Learns the path's lateness.
    pub fn hear(&mut self, now: Mono) {
        if self.alive {
            self.silence.observe(now.since(self.heard));
        }
        self.alive = true;
        if self.stage == Stage::Dialing {
            self.stage = Stage::Waiting;
        }
        self.heard = now;
    }

    /// Progress came; only a phase or count that changed is an advance.
    pub fn progress(&mut self, phase: Phase, done: u32, now: Mono) {
        if self.phase != Some((phase, done)) {
            self.phase = Some((phase, done));
            self.advanced = now;
        }
    }
}
