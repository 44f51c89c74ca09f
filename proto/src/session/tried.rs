//! The engines that one request has tried, and when each may be asked again.

use crate::ids::NodeId;
use crate::rank::Candidate;
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

/// What is known of an engine that was tried.
#[derive(Debug)]
struct Engine {
    id: (NodeId, u16),
    failures: u32,
    /// Not asked again before this (busy, failed twice), or at all (no such model, context).
    out_until: Mono,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    engines: Vec<Engine>,
    /// The shortest `retry_after` of those that were busy.
    pub(crate) busy: Option<Duration>,
}

impl Tried {
    /// It failed.
    pub(crate) fn failed(&mut self, id: (NodeId, u16), now: Mono) {
        let engine = self.engine(id);
        engine.failures += 1;
        if let Some(doublings) = engine.failures.checked_sub(2) {
            engine.out_until = now + RETRY_PAUSE * (1 << doublings.min(4));
        }
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
        self.engine(id).out_until = out_until;
    }

    /// How often it failed; `None` if it must not be asked now.
    pub(crate) fn failures(&self, candidate: &Candidate, begun: bool, now: Mono) -> Option<u32> {
        let id = (candidate.node, candidate.engine);
        let Some(engine) = self.engines.iter().find(|e| e.id == id) else {
            return Some(0);
        };
        let fit = now >= engine.out_until && (begun || engine.failures < MAX_FAILURES);
        fit.then_some(engine.failures)
    }

    /// The first time after `since` at which one may be asked again.
    pub(crate) fn next_retry(&self, since: Mono) -> Option<Mono> {
        let times = self.engines.iter().map(|e| e.out_until);
        times.filter(|at| *at > since).min()
    }

    fn engine(&mut self, id: (NodeId, u16)) -> &mut Engine {
        let at = self.engines.iter().position(|e| e.id == id);
        let at = at.unwrap_or_else(|| {
            self.engines.push(Engine {
                id,
                failures: 0,
                out_until: Mono::ZERO,
            });
            self.engines.len() - 1
        });
        &mut self.engines[at]
    }
}
