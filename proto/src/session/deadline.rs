//! When an attempt becomes suspect, and when it is given up.

use super::Reason;
use super::attempt::{Attempt, Stage};
use crate::time::Mono;
use crate::timeouts::{
    ATTACH_SUSPECT, DIAL, DIAL_SUSPECT, LOAD_MAX, SILENCE_GIVE_UP, STALL_GAP_MIN, STALL_GIVE_UP,
    STALL_MAX, STALL_MIN,
};
use crate::wire::Phase;
use std::time::Duration;

/// Beyond so many times the expected time a text's engine stalls, while too little was seen of
/// it: prompts differ in length by far more, but what is expected takes that in.
const TEXT_STALLS: u32 = 8;
/// The same for the first sound of a piece of speech. Pieces are a clause to
/// [`MAX_SPOKEN_CHUNK`](crate::limits::MAX_SPOKEN_CHUNK) characters, and the mean is of a
/// sentence: the longest takes an engine that hands out whole pieces three times as long.
const SPEECH_STALLS: u32 = 3;

impl Attempt {
    /// When it becomes suspect if nothing comes, and why.
    pub(crate) fn suspect_at(&self) -> (Mono, Reason) {
        match self.stage {
            Stage::Dialing if self.attach => (self.opened + ATTACH_SUSPECT, Reason::DialSlow),
            Stage::Dialing => (self.opened + DIAL_SUSPECT, Reason::DialSlow),
            _ => {
                let silent = self.heard + self.silence_bound();
                let stalled = self.advanced + self.stall_bound();
                if silent <= stalled {
                    (silent, Reason::Silence)
                } else {
                    (stalled, Reason::Stall)
                }
            }
        }
    }

    /// When it is given up if nothing comes, and why.
    pub(crate) fn give_up_at(&self) -> (Mono, Reason) {
        match self.stage {
            Stage::Dialing => (self.opened + DIAL, Reason::Unreachable),
            _ => {
                let silent = self.heard + SILENCE_GIVE_UP;
                let stalled = self.advanced + self.stall_bound().max(STALL_GIVE_UP);
                if silent <= stalled {
                    (silent, Reason::Silence)
                } else {
                    (stalled, Reason::Stall)
                }
            }
        }
    }

    /// The first frame takes a round trip that this path may not have shown yet.
    fn silence_bound(&self) -> Duration {
        let bound = self.silence.bound();
        if self.alive {
            bound
        } else {
            bound.max(DIAL_SUSPECT)
        }
    }

    /// What this client has seen one in a hundred exceed; until it has seen enough, eight times
    /// what the ranking expects and this stream shows (of speech three times), which is no longer
    /// an engine's usual jitter. A queue or a load that reports itself may take as long as a load
    /// takes.
    pub(crate) fn stall_bound(&self) -> Duration {
        let known = &self.candidate;
        let (learned, expected, least) = match (self.stage, self.phase) {
            (_, Some((Phase::Queued | Phase::Loading, _))) => return LOAD_MAX.max(self.patience),
            (Stage::Producing, _) => (known.learned.gap, self.itl, STALL_GAP_MIN),
            _ => (known.learned.first, self.expected_first(), STALL_MIN),
        };
        let bound = match learned {
            Some(longest) => longest.clamp(least, STALL_MAX),
            None => (expected * self.stalls()).clamp(STALL_MIN, STALL_MAX),
        };
        bound.max(self.patience)
    }

    fn stalls(&self) -> u32 {
        match self.speaks() && self.stage != Stage::Producing {
            true => SPEECH_STALLS,
            false => TEXT_STALLS,
        }
    }
}
