//! What one request has tried, and when each may be asked again: engines, and peers.
//!
//! What an engine did is held against that engine: another one of the same machine may stand in.
//! What the path or the agent did is held against the peer with all its engines, so that a dead
//! machine is not asked once for each.

use crate::ids::NodeId;
use crate::rank::Candidate;
use crate::session::Reason;
use crate::time::Mono;
use crate::timeouts::BUSY_RETRY;
use crate::wire::{ErrorCode, WireError};
use std::time::Duration;

/// Before the first output, an engine that failed this often is not asked again: the caller
/// hears of it at once.
const MAX_FAILURES: u32 = 2;
/// With a broken answer in hand, an engine that failed twice is asked again after this; each
/// further failure doubles it.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Beyond the life of any session.
pub(crate) const NEVER: Mono = Mono::from_micros(u64::MAX);

/// What is known of an engine, or of a peer, that was tried.
#[derive(Debug)]
struct Entry {
    /// Without an engine: the peer itself.
    id: (NodeId, Option<u16>),
    failures: u32,
    /// Not asked again before this (busy, failed twice), or at all (no such model, context).
    out_until: Mono,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    entries: Vec<Entry>,
    /// The shortest `retry_after` of those that were busy.
    pub(crate) busy: Option<Duration>,
}

impl Tried {
    /// It failed.
    pub(crate) fn failed(&mut self, id: (NodeId, u16), reason: &Reason, now: Mono) {
        let entry = self.entry(id, reason.is_of_engine());
        entry.failures += 1;
        if let Some(doublings) = entry.failures.checked_sub(2) {
            entry.out_until = now + RETRY_PAUSE * (1 << doublings.min(4));
        }
    }

    /// It is not asked again.
    pub(crate) fn rule_out(&mut self, id: (NodeId, u16)) {
        self.entry(id, true).out_until = NEVER;
    }

    /// It refused, `begun` if something was delivered before. A refused reattachment (`attach`)
    /// says nothing of a new generation there.
    pub(crate) fn refused(
        &mut self,
        id: (NodeId, u16),
        error: &WireError,
        begun: bool,
        attach: bool,
        now: Mono,
    ) {
        if error.code == ErrorCode::Busy {
            let after = match error.retry_after_ms {
                0 => BUSY_RETRY,
                ms => Duration::from_millis(u64::from(ms)),
            };
            self.busy = Some(self.busy.map_or(after, |b| b.min(after)));
        }
        let out_until = match error.code {
            // Nothing is lost yet: the caller hears `busy` and decides.
            ErrorCode::Busy if !begun => NEVER,
            ErrorCode::Busy => now + self.busy.unwrap_or(BUSY_RETRY),
            // Of one that has just started, or restarts: it may have the model in a moment.
            ErrorCode::UnknownModel | ErrorCode::Draining if begun => now + BUSY_RETRY,
            code if code.is_failure() || attach => Mono::ZERO,
            _ => NEVER,
        };
        self.entry(id, error.code.is_of_engine()).out_until = out_until;
    }

    /// How often it failed; `None` if it must not be asked now.
    pub(crate) fn failures(&self, candidate: &Candidate, begun: bool, now: Mono) -> Option<u32> {
        let (node, engine) = (candidate.node, candidate.engine);
        let mut failures = 0;
        for entry in &self.entries {
            if entry.id == (node, None) || entry.id == (node, Some(engine)) {
                if now < entry.out_until {
                    return None;
                }
                failures += entry.failures;
            }
        }
        (begun || failures < MAX_FAILURES).then_some(failures)
    }

    /// The first time after `since` at which one may be asked again.
    pub(crate) fn next_retry(&self, since: Mono) -> Option<Mono> {
        let times = self.entries.iter().map(|e| e.out_until);
        times.filter(|at| *at > since).min()
    }

    fn entry(&mut self, (node, engine): (NodeId, u16), of_engine: bool) -> &mut Entry {
        let id = (node, of_engine.then_some(engine));
        let at = self.entries.iter().position(|e| e.id == id);
        let at = at.unwrap_or_else(|| {
            self.entries.push(Entry {
                id,
                failures: 0,
                out_until: Mono::ZERO,
            });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }
}
