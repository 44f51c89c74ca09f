//! Which engines failed lately, and when they are asked again: a circuit breaker for each
//! engine, and one for each peer.
//!
//! ```text
//!            failure                      backoff over
//!   closed ───────────► open (ranks last) ─────────────► half-open (ranks as it should)
//!     ▲                  ▲                                 │ one request goes through
//!     │ success          │ failure: twice the backoff      ▼
//!     └──────────────────┴──────────────────────────────  trial (ranks last meanwhile)
//! ```
//!
//! - A stream that ended early or wrongly, was refused with a failure code, was given up, or
//!   lost against its backup while silent or stalled counts. Busy, a wrong request and a
//!   planned leave do not: they say nothing against the engine.
//! - The first failure opens: a home has few peers, and a second failed answer costs its caller
//!   more than a healthy engine's rest costs anybody. The backoff starts at
//!   [`BREAKER_MIN`], doubles with every failed trial up to
//!   [`BREAKER_MAX`], and is spread by a quarter each way, so that the
//!   clients of one engine do not try it in step.
//! - What the path or the agent did (lost, silent, unreachable) stands against the peer with all
//!   its engines: a dead machine is not tried once for each. What an engine did stands against
//!   that engine alone: another one of the machine may stand in.
//! - Failures of an open breaker change nothing: the sixteen streams that break with one
//!   machine are one failure.
//! - A failure that nothing followed is forgotten after [`BREAKER_FORGET`].
//! - A success closes. So does anything newer that proves the engine works, whoever asked it.
//! - An open breaker **ranks last, it is not left out**: with nobody else there it is asked,
//!   and the reason stands in its [`Candidate::reason`].
//!
//! The owner hands in every [`Note`] of its sessions, says when a request is dispatched, and
//! passes each ranking through [`Breakers::order`].

use crate::ids::NodeId;
use crate::limits::MAX_BREAKERS;
use crate::rank::Candidate;
use crate::session::{Note, Reason};
use crate::time::Mono;
use crate::timeouts::{BREAKER_FORGET, BREAKER_MAX, BREAKER_MIN, BREAKER_TRIAL};
use rand::Rng;
use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::time::Duration;

/// What may be asked of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing stands against it.
    Closed,
    /// It failed; ranked last for this long.
    Open(Duration),
    /// It failed, and one request may find out whether it works again.
    HalfOpen,
    /// That request runs.
    Trial,
}

impl State {
    /// Its stable name: a trial is `half_open` too.
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open(_) => "open",
            State::HalfOpen | State::Trial => "half_open",
        }
    }

    /// Of two that stand against an engine, the heavier counts.
    const fn weight(&self) -> (u8, Duration) {
        match self {
            State::Closed => (0, Duration::ZERO),
            State::HalfOpen => (1, Duration::ZERO),
            State::Trial => (2, Duration::ZERO),
            State::Open(left) => (3, *left),
        }
    }
}

/// How one breaker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whose engine.
    pub node: NodeId,
    /// Which of them: the one that was asked, of what stands against the whole peer.
    pub engine: u16,
    /// What may be asked of it.
    pub state: State,
    /// The failure that is held against it; `None` once it is closed.
    pub reason: Option<Reason>,
    /// How long ago that was.
    pub ago: Duration,
}

/// One that is not closed.
#[derive(Clone, Debug)]
struct Breaker {
    /// The engine that was asked last.
    engine: u16,
    /// Failed trials in a row.
    relapses: u32,
    failed_at: Mono,
    reason: Reason,
    /// Half-open from then on.
    until: Mono,
    /// A trial runs, at most until then.
    trial: Option<Mono>,
}

/// All breakers of one client; at most [`MAX_BREAKERS`] that are not closed.
#[derive(Clone, Debug, Default)]
pub struct Breakers {
    /// Without an engine: it stands against the peer.
    troubled: BTreeMap<(NodeId, Option<u16>), Breaker>,
}

impl Breakers {
    /// Takes in what a session found out. Returns the breaker that opened or closed by it.
    pub fn note(&mut self, note: &Note, rng: &mut impl Rng, now: Mono) -> Option<Standing> {
        match note {
            Note::Succeeded { node, engine, .. } => self.succeeded(*node, *engine),
            Note::AttemptFailed {
                node,
                engine,
                reason,
            } if counts(reason) => self.failed(*node, *engine, reason, rng, now),
            Note::AttemptFailed { node, engine, .. } => {
                self.answered(*node, *engine);
                None
            }
            _ => None,
        }
    }

    /// A request goes out to it: of a half-open one, this is the trial, whose breaker is
    /// returned.
    pub fn dispatched(&mut self, node: NodeId, engine: u16, now: Mono) -> Option<Standing> {
        if self.state(node, engine, now) != State::HalfOpen {
            return None;
        }
        let mut trial = None;
        for key in keys(node, engine) {
            if let Some(breaker) = self.troubled.get_mut(&key) {
                breaker.trial = Some(now + BREAKER_TRIAL);
                trial = Some(breaker.standing(node, now));
            }
        }
        trial
    }

    /// Those that are not closed.
    pub fn standing(&self, now: Mono) -> impl Iterator<Item = Standing> + '_ {
        let all = self.troubled.iter();
        let held = all.filter(move |(_, b)| b.is_held(now));
        held.map(move |((node, _), b)| b.standing(*node, now))
    }

    /// What may be asked of it at `now`.
    pub fn state(&self, node: NodeId, engine: u16, now: Mono) -> State {
        let against = self.against(node, engine, now);
        let states = against.map(|b| b.state(now));
        states.max_by_key(State::weight).unwrap_or(State::Closed)
    }

    /// Whether a conversation may stay with an engine for its cache's sake: nothing stands
    /// against it.
    pub fn trusts(&self, node: NodeId, engine: u16, now: Mono) -> bool {
        self.state(node, engine, now) == State::Closed
    }

    /// What stands against the engine, or its peer.
    fn against(&self, node: NodeId, engine: u16, now: Mono) -> impl Iterator<Item = &Breaker> {
        let keys = keys(node, engine).into_iter();
        let all = keys.filter_map(|key| self.troubled.get(&key));
        all.filter(move |b| b.is_held(now))
    }

    /// Moves open breakers and those on trial behind the others, order kept, and says why.
    pub fn order<C: BorrowMut<Candidate>>(&self, ranked: &mut [C], now: Mono) {
        if self.troubled.is_empty() {
            return;
        }
        let last = |c: &C| {
            let c = c.borrow();
            let state = self.state(c.node, c.engine, now);
            matches!(state, State::Open(_) | State::Trial)
        };
        for candidate in ranked.iter_mut().map(BorrowMut::borrow_mut) {
            let against = self.against(candidate.node, candidate.engine, now);
            if let Some(breaker) = against.max_by_key(|b| b.state(now).weight()) {
                let words = breaker.words(now);
                candidate.reason = format!("{words}; {}", candidate.reason);
            }
        }
        ranked.sort_by_key(last);
    }

    fn failed(
        &mut self,
        node: NodeId,
        engine: u16,
        reason: &Reason,
        rng: &mut impl Rng,
        now: Mono,
    ) -> Option<Standing> {
        let key = (node, reason.is_of_engine().then_some(engine));
        let open = |b: &Breaker| matches!(b.state(now), State::Open(_));
        if self.troubled.get(&key).is_some_and(open) {
            return None;
        }
        let trials = self.against(node, engine, now).filter(|b| !open(b));
        let relapses = trials.map(|b| b.relapses.saturating_add(1)).max();
        let relapses = relapses.unwrap_or(0);
        if reason.is_of_engine() {
            // Its peer answers.
            self.troubled.remove(&(node, None));
        }
        let backoff = BREAKER_MIN
            .saturating_mul(1 << relapses.min(16))
            .min(BREAKER_MAX);
        let breaker = Breaker {
            engine,
            relapses,
            failed_at: now,
            reason: reason.clone(),
            until: now + backoff.mul_f64(rng.random_range(0.75..1.25)),
            trial: None,
        };
        let standing = breaker.standing(node, now);
        self.troubled.insert(key, breaker);
        self.make_room(now);
        Some(standing)
    }

    fn succeeded(&mut self, node: NodeId, engine: u16) -> Option<Standing> {
        let closed = keys(node, engine).map(|key| self.troubled.remove(&key));
        closed.into_iter().flatten().next()?;
        Some(Standing {
            node,
            engine,
            state: State::Closed,
            reason: None,
            ago: Duration::ZERO,
        })
    }

    /// It answered, but neither well nor badly (busy, leaving): whoever comes next may try.
    fn answered(&mut self, node: NodeId, engine: u16) {
        for key in keys(node, engine) {
            if let Some(breaker) = self.troubled.get_mut(&key) {
                breaker.trial = None;
            }
        }
    }

    /// Drops what is long past; over the limit also what failed longest ago.
    fn make_room(&mut self, now: Mono) {
        self.troubled.retain(|_, b| b.is_held(now));
        while self.troubled.len() > MAX_BREAKERS {
            let oldest = self.troubled.iter().min_by_key(|(_, b)| b.failed_at);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            self.troubled.remove(&oldest);
        }
    }
}

impl Breaker {
    fn standing(&self, node: NodeId, now: Mono) -> Standing {
        Standing {
            node,
            engine: self.engine,
            state: self.state(now),
            reason: Some(self.reason.clone()),
            ago: now.since(self.failed_at),
        }
    }

    /// What failed so long ago says nothing any more, tried again since or not.
    fn is_held(&self, now: Mono) -> bool {
        now.since(self.failed_at) < BREAKER_FORGET
    }

    fn state(&self, now: Mono) -> State {
        if now < self.until {
            State::Open(self.until.since(now))
        } else if self.trial.is_some_and(|lease| now < lease) {
            State::Trial
        } else {
            State::HalfOpen
        }
    }

    /// For people: what happened, and what follows.
    fn words(&self, now: Mono) -> String {
        let ago = now.since(self.failed_at).as_secs_f32();
        let reason = &self.reason;
        match self.state(now) {
            State::Open(left) => {
                let left = left.as_secs_f32();
                format!("failed {ago:.1} s ago ({reason}), last choice for {left:.1} s more")
            }
            State::Trial => format!("failed {ago:.1} s ago ({reason}), being tried again"),
            State::HalfOpen | State::Closed => {
                format!("failed {ago:.1} s ago ({reason}), may be tried again")
            }
        }
    }
}

/// Where what stands against an engine is: under its peer, and under itself.
fn keys(node: NodeId, engine: u16) -> [(NodeId, Option<u16>); 2] {
    [(node, None), (node, Some(engine))]
}

/// Whether an attempt that is over for this reason counts against its engine.
fn counts(reason: &Reason) -> bool {
    match reason {
        Reason::Refused(code) => code.is_failure(),
        Reason::Draining | Reason::Leaving => false,
        Reason::DialSlow
        | Reason::Unreachable
        | Reason::Silence
        | Reason::Stall
        | Reason::Lost
        | Reason::EndedEarly
        | Reason::Protocol => true,
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
