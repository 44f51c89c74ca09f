//! Which lost frames are asked for, and when.
//!
//! [`Jitter::lost`] tells each frame once of which both copies must be lost. Those behind the
//! first datagram are asked for at once. Those before it are on the stream already, since a
//! client sends there until it was accepted: its datagrams merely overtook them, as a rule. They
//! get [`JITTER_MAX`] to come by themselves; what is still not here was in datagrams that were
//! lost before any came.

use std::collections::VecDeque;
use std::ops::Range;
use unamesh_proto::Mono;
use unamesh_proto::jitter::Jitter;
use unamesh_proto::timeouts::JITTER_MAX;
use unamesh_proto::wire::Missing;

/// See the module's docs.
#[derive(Default)]
pub(super) struct Repairs {
    /// The first frame that came in a datagram.
    live: Option<u32>,
    /// Perhaps on their way: until when they are waited for.
    expected: VecDeque<(Mono, Range<u32>)>,
}

impl Repairs {
    /// A datagram with this frame came, kept or not.
    pub fn live(&mut self, frame: u32) {
        let first = self.live.get_or_insert(frame);
        *first = frame.min(*first);
    }

    /// The next question. Call it until there is none.
    pub fn next(&mut self, jitter: &mut Jitter, now: Mono) -> Option<Missing> {
        while let Some(lost) = jitter.lost() {
            if self.live.is_some_and(|live| live <= lost.start) {
                return Some(Missing {
                    from: lost.start,
                    to: lost.end,
                });
            }
            self.expected.push_back((now + JITTER_MAX, lost));
        }
        while let Some((until, lost)) = self.expected.front_mut()
            && *until <= now
        {
            let missing = |frame: &u32| jitter.frame(*frame).is_none();
            let from = lost.clone().find(missing).unwrap_or(lost.end);
            let to = (from..lost.end).find(|f| !missing(f)).unwrap_or(lost.end);
            lost.start = to;
            if to == lost.end {
                self.expected.pop_front();
            }
            if from < to {
                return Some(Missing { from, to });
            }
        }
        None
    }

    /// When the next question may be due.
    pub fn due(&self) -> Option<Mono> {
        self.expected.front().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Mono {
        Mono::from_micros(ms * 1000)
    }

    /// The first frames of the questions, and those behind the last.
    fn questions(repairs: &mut Repairs, jitter: &mut Jitter, now: Mono) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| repairs.next(jitter, now))
            .map(|missing| (missing.from, missing.to))
            .collect()
    }

    #[test]
    fn what_is_lost_of_the_datagrams_is_asked_for_at_once() {
        let (mut repairs, mut jitter) = (Repairs::default(), Jitter::new());
        for frame in [0, 1, 2, 6, 8] {
            repairs.live(frame);
            jitter.insert(frame, &[1], ms(0));
        }
        assert_eq!(questions(&mut repairs, &mut jitter, ms(0)), [(3, 6)]);
        assert_eq!(questions(&mut repairs, &mut jitter, ms(9000)), []);
        assert_eq!(repairs.due(), None);
    }

    #[test]
    fn what_is_on_the_stream_gets_its_time() {
        let (mut repairs, mut jitter) = (Repairs::default(), Jitter::new());
        // Accepted after frame 9; the first datagram was lost, and frames 0 to 3 are here.
        for frame in [11, 13] {
            repairs.live(frame);
            jitter.insert(frame, &[1], ms(5));
        }
        for frame in 0..4 {
            jitter.insert(frame, &[1], ms(6));
        }
        assert_eq!(questions(&mut repairs, &mut jitter, ms(6)), []);
        assert_eq!(repairs.due(), Some(ms(126)));
        for frame in [4, 6, 7, 8, 9] {
            jitter.insert(frame, &[1], ms(20));
        }
        assert_eq!(questions(&mut repairs, &mut jitter, ms(125)), []);
        assert_eq!(
            questions(&mut repairs, &mut jitter, ms(126)),
            [(5, 6), (10, 11)]
        );
        assert_eq!(repairs.due(), None);
    }
}
