//! The machine: one `match` on the input; what it calls stands below it.

use super::attempt::{Attempt, AttemptId, Stage};
use super::fresh::Fresh;
use super::handover::Handover;
use super::tried::Tried;
use super::{Config, Effect, Failure, How, Input, Note, Output, Reason, Silence};
use crate::ids::NodeId;
use crate::limits::{MAX_ATTEMPTS, MAX_PARALLEL_ATTEMPTS};
use crate::rank::Candidate;
use crate::time::Mono;
use crate::timeouts::WAIT_FOR_PEER;
use crate::wire::{Chunk, ErrorCode, WireError};
use std::collections::VecDeque;

/// The producer that was lost or suspected, until somebody goes on.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) from: NodeId,
    pub(super) digest: String,
    pub(super) model: String,
    pub(super) reason: Reason,
    pub(super) last_token: Mono,
}

/// One request; see the module's documentation.
#[derive(Debug)]
pub struct Session {
    pub(super) config: Config,
    pub(super) attempts: Vec<Attempt>,
    /// Whoever produced last.
    pub(super) current: Option<AttemptId>,
    pub(super) next_id: u32,
    /// Attempts that count against [`MAX_ATTEMPTS`].
    pub(super) spent: u32,
    pub(super) delivered: Vec<Chunk>,
    /// The last of it has no text: what it began is in no prefix.
    pub(super) half_made: bool,
    /// A tool call has begun: what follows belongs to it, and no other engine would make it so.
    pub(super) called: bool,
    /// Received from `current` but not yet emitted: text-less chunks, and everything while the
    /// producer hands over. Each with its `extra`.
    pub(super) held: Vec<(Chunk, String)>,
    pub(super) handover: Handover,
    pub(super) fresh: Fresh,
    pub(super) tried: Tried,
    pub(super) loss: Option<Loss>,
    pub(super) last_token: Mono,
    pub(super) last_reason: Option<Reason>,
    pub(super) last_refusal: Option<WireError>,
    /// What comes has lain unread.
    pub(super) late: bool,
    /// The time of the latest input.
    pub(super) now: Mono,
    /// A ranking was asked for.
    pub(super) ranking: bool,
    /// When the last one came.
    pub(super) last_rank: Mono,
    /// Nobody can go on at the moment; until when to wait.
    pub(super) waiting_until: Option<Mono>,
    /// A hedge is paid for and not dispatched yet.
    pub(super) granted: bool,
    /// When a hedge was asked for, while the answer is not yes.
    pub(super) asked: Option<Mono>,
    pub(super) started: bool,
    /// Of the latest producer's weights; empty = unknown.
    pub(super) digest: String,
    pub(super) ended: bool,
    pub(super) effects: VecDeque<Effect>,
}

impl Session {
    /// A session that asks for a ranking first.
    pub fn new(config: Config, now: Mono) -> Self {
        Session {
            config,
            attempts: Vec::with_capacity(MAX_PARALLEL_ATTEMPTS),
            current: None,
            next_id: 0,
            spent: 0,
            delivered: Vec::new(),
            half_made: false,
            called: false,
            held: Vec::new(),
            handover: Handover::default(),
            fresh: Fresh::default(),
            tried: Tried::default(),
            loss: None,
            last_token: now,
            last_reason: None,
            last_refusal: None,
            late: false,
            now,
            ranking: true,
            last_rank: now,
            waiting_until: None,
            granted: false,
            asked: None,
            started: false,
            digest: String::new(),
            ended: false,
            effects: VecDeque::from([Effect::Rank]),
        }
    }

    /// Takes in what happened. Inputs of attempts that were reset, and everything after the
    /// terminal event, are ignored.
    pub fn handle(&mut self, input: Input, now: Mono) {
        if self.ended {
            return;
        }
        self.now = now;
        match input {
            Input::Candidates(candidates) => self.candidates(candidates, now),
            Input::Opened(id) if self.is_fresh_path(id) => self.fresh_path_opened(now),
            Input::Opened(id) => {
                if let Some(a) = self.find(id) {
                    a.stage = Stage::Waiting;
                    a.heard = now;
                }
            }
            Input::Frame(id, frame) if self.is_fresh_path(id) => {
                self.fresh_path_answers(frame, now);
            }
            Input::Frame(id, frame) => self.frame(id, frame, now),
            Input::Closed(id, _) if self.is_fresh_path(id) => self.drop_fresh_path(),
            Input::Closed(id, closed) => self.closed(id, closed, now),
            Input::PeerGoing(node) => self.peer_going(node, now),
            Input::PeerDown(node) => self.peer_down(node, now),
            Input::Hedge => self.may_hedge(),
            Input::Late(late) => self.late = late,
            Input::Wake => self.wake(now),
            Input::Cancel => self.end(Output::Failed(Failure::Cancelled)),
            Input::Leave => self.leave(),
        }
    }

    /// The next effect; to be drained after every input.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Wake`] is due; `None` once the session has ended.
    pub fn next_wake(&self) -> Option<Mono> {
        if self.ended {
            return None;
        }
        let attempts = self.attempts.iter().flat_map(|a| {
            let give_up = a.give_up_at().0;
            // A suspect has had its backup; what is left is giving it up.
            [
                if a.suspect.is_some() {
                    give_up
                } else {
                    a.suspect_at().0
                },
                give_up,
            ]
        });
        // Whoever was busy may be asked again; the ranking that follows asks only once each.
        let retry = self.next_retry().filter(|_| self.is_waiting());
        attempts
            .chain(self.waiting_until)
            .chain(retry)
            .chain(self.next_hedge())
            .chain(self.next_fresh_path())
            .chain(self.next_release())
            .min()
    }

    /// Nobody can go on or back up at the moment: news of the peer table are welcome.
    pub fn is_waiting(&self) -> bool {
        let wants_backup = self.wants_backup() && (self.granted || !self.would_hedge());
        !self.ended && (self.waiting_until.is_some() || wants_backup)
    }

    pub(super) fn next_retry(&self) -> Option<Mono> {
        self.tried.next_retry(self.last_rank)
    }

    /// A suspect goes on alone, and a backup would be of use.
    pub(super) fn wants_backup(&self) -> bool {
        self.may_go_on() && matches!(self.attempts.as_slice(), [only] if only.needs_backup())
    }

    /// Another engine may go on after what was delivered.
    pub(super) fn may_go_on(&self) -> bool {
        let free = self.config.spliceable && !self.half_made && !self.called;
        self.delivered.is_empty() || free
    }

    /// The terminal event has been emitted.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The digest of the weights that made what was delivered: a backup should have the same.
    pub fn digest(&self) -> Option<&str> {
        Some(self.digest.as_str()).filter(|d| !d.is_empty())
    }

    /// The pieces that were delivered.
    pub fn delivered(&self) -> &[Chunk] {
        &self.delivered
    }

    /// The peers of the running attempts.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.attempts.iter().map(Attempt::node)
    }

    // ----- candidates -------------------------------------------------------------------

    pub(super) fn candidates(&mut self, candidates: Vec<Candidate>, now: Mono) {
        self.last_rank = now;
        let welcome = std::mem::take(&mut self.ranking) || self.is_waiting();
        if !welcome || self.attempts.len() >= MAX_PARALLEL_ATTEMPTS {
            return;
        }
        match self.choose(candidates, now) {
            Some(candidate) => self.open(candidate, now),
            None if !self.attempts.is_empty() => {}
            None => self.nobody(now),
        }
    }

    /// The best candidate that is not at work, not out, and has failed least. A machine at work
    /// is no backup of itself, unless only its engine stalls and another one there may go on.
    pub(super) fn choose(&self, candidates: Vec<Candidate>, now: Mono) -> Option<Candidate> {
        let begun = !self.delivered.is_empty();
        let failures = |c: &Candidate| self.tried.failures(c, begun, now);
        candidates
            .into_iter()
            .filter(|c| !c.draining && self.attempts.iter().all(|a| a.may_have_beside(c)))
            .filter_map(|c| failures(&c).map(|f| (f, c)))
            // Stable: among equals the ranking's order stands.
            .min_by_key(|(f, _)| *f)
            .map(|(_, c)| c)
    }

    pub(super) fn open(&mut self, candidate: Candidate, now: Mono) {
        if self.spent >= MAX_ATTEMPTS {
            if self.attempts.is_empty() {
                self.give_up();
            }
            return;
        }
        self.waiting_until = None;
        let prefix = self.delivered.clone();
        let mut attempt = self.attempt(candidate, prefix.len(), now);
        attempt.hedge = std::mem::take(&mut self.granted);
        if let Some(original) = self.attempts.first() {
            let after = now.since(original.heard);
            self.effects.push_back(Effect::Note(Note::Backup {
                node: attempt.node(),
                after,
                hedge: attempt.hedge,
            }));
        }
        self.dispatch(attempt, How::Generate(prefix));
    }

    pub(super) fn dispatch(&mut self, attempt: Attempt, how: How) {
        self.effects.push_back(Effect::Open {
            attempt: attempt.id,
            node: attempt.node(),
            engine: attempt.candidate.engine,
            model: attempt.candidate.model.clone(),
            how,
        });
        self.attempts.push(attempt);
    }

    pub(super) fn attempt(&mut self, candidate: Candidate, next: usize, now: Mono) -> Attempt {
        self.spent += 1;
        let id = self.new_id();
        self.attempt_as(id, candidate, next, now)
    }

    pub(super) fn new_id(&mut self) -> AttemptId {
        let id = AttemptId(self.next_id);
        self.next_id += 1;
        id
    }

    pub(super) fn attempt_as(
        &self,
        id: AttemptId,
        candidate: Candidate,
        next: usize,
        now: Mono,
    ) -> Attempt {
        let learned = self
            .config
            .silence
            .iter()
            .find(|(n, _)| *n == candidate.node);
        let silence = learned.map_or_else(Silence::default, |(_, s)| *s);
        let next = u32::try_from(next).unwrap_or(u32::MAX);
        let mut attempt = Attempt::new(id, candidate, next, now, silence);
        let replayed: u32 = self.delivered.iter().map(|c| c.tokens).sum();
        attempt.prompt_tokens = self.config.prompt_tokens.saturating_add(replayed);
        attempt
    }

    /// No attempt runs and nobody can be asked.
    pub(super) fn nobody(&mut self, now: Mono) {
        if self.delivered.is_empty() && self.held.is_empty() {
            return self.give_up();
        }
        let until = *self.waiting_until.get_or_insert(now + WAIT_FOR_PEER);
        if now >= until {
            self.give_up();
        }
    }

    /// Ends with the failure that tells the caller most.
    pub(super) fn give_up(&mut self) {
        let reason = self.last_reason.clone().unwrap_or(Reason::Unreachable);
        let failure = if !self.delivered.is_empty() {
            Failure::Interrupted { reason }
        } else if let Some(retry_after) = self.tried.busy {
            Failure::Busy { retry_after }
        } else if let Some(refusal) = self.last_refusal.take() {
            Failure::Refused(refusal)
        } else {
            Failure::NoPeer
        };
        self.end(Output::Failed(failure));
    }

    /// Ends here although somebody could go on: nobody will be there to take it.
    fn leave(&mut self) {
        let reason = Reason::Leaving;
        let failure = if self.delivered.is_empty() {
            let message = "this machine is leaving the mesh: ask again in a moment";
            Failure::Refused(WireError::new(ErrorCode::Draining, message))
        } else if self.may_go_on() {
            Failure::Interrupted { reason }
        } else {
            Failure::Incomplete { reason }
        };
        self.end(Output::Failed(failure));
    }

    // ----- small parts ------------------------------------------------------------------

    pub(super) fn rank(&mut self) {
        if !std::mem::replace(&mut self.ranking, true) {
            self.effects.push_back(Effect::Rank);
        }
    }

    pub(super) fn find(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|a| a.id == id)
    }

    pub(super) fn drop_attempt(&mut self, id: AttemptId) {
        self.learn(id);
        self.attempts.retain(|a| a.id != id);
        self.drop_orphan();
    }

    /// Tells what an attempt that ends has shown of its path and its engine.
    pub(super) fn learn(&mut self, id: AttemptId) {
        let ended = self.attempts.iter().find(|a| a.id == id);
        let Some(a) = ended.filter(|a| a.alive) else {
            return;
        };
        let (node, silence) = (a.node(), a.silence);
        let observed = a.observed(self.now).map(|observed| Note::Observed {
            node,
            model: a.candidate.model.clone(),
            observed: Box::new(observed),
        });
        let notes = [Some(Note::Learned { node, silence }), observed];
        let notes = notes.into_iter().flatten().map(Effect::Note);
        self.effects.extend(notes);
    }

    /// Returns how many.
    pub(super) fn reset_others(&mut self, keep: AttemptId) -> u32 {
        let mut count = 0;
        while let Some(at) = self.attempts.iter().position(|a| a.id != keep) {
            self.learn(self.attempts[at].id);
            let other = self.attempts.remove(at);
            count += 1;
            self.effects.push_back(Effect::Reset(other.id));
            self.in_vain(&other);
            if let Some(reason) = other.suspect {
                // It let the caller wait until somebody else went on.
                self.effects.push_back(Effect::Note(Note::AttemptFailed {
                    node: other.candidate.node,
                    engine: other.candidate.engine,
                    reason,
                }));
            }
        }
        self.drop_orphan();
        count
    }

    pub(super) fn emit(&mut self, output: Output) {
        self.effects.push_back(Effect::Emit(output));
    }

    pub(super) fn end(&mut self, output: Output) {
        self.return_hedge();
        self.drop_fresh_path();
        while let Some(id) = self.attempts.first().map(|a| a.id) {
            self.learn(id);
            let attempt = self.attempts.remove(0);
            self.effects.push_back(Effect::Reset(id));
            self.in_vain(&attempt);
        }
        self.emit(output);
        self.ended = true;
    }
}
