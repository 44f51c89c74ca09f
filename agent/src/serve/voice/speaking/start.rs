//! The first sound over a long path: enough at once that no lost packet is heard.
//!
//! What follows a lost packet waits until that was sent again. Only the acknowledgement of a later
//! packet shows the loss, so that takes more than a round trip, and longer if later ones are lost
//! too. An engine that is quicker than speech soon has a lead over the ear that covers it. At the
//! beginning there is none: the ear begins with the first packets.
//!
//! So the first sound waits until there are [`ROUND_TRIPS`] of it, [`SPEECH_START`] at most, and
//! not for longer than [`WAIT`]. In a simulation of 2,000 utterances over 25 ms +- 5 ms each way
//! with 3 % of the packets lost in bursts of two, behind a prebuffer of 80 ms, 1 had a gap instead
//! of 48 at five times the speed of speech, and 14 instead of 110 at twice. It costs 40 and 100 ms
//! there, and nothing within a home: there, one packet is longer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use unamesh_client::audio::opus::Profile;
use unamesh_proto::timeouts::SPEECH_START;

/// Sound that goes at once, in round trips.
const ROUND_TRIPS: u32 = 6;
/// How long it is waited for, in round trips.
const WAIT: u32 = 2;

/// See the module's documentation. By default the first sound goes at once.
#[derive(Default)]
pub(super) struct Start {
    /// Samples.
    enough: u64,
    wait: Duration,
    /// Runs since there is sound.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Start {
    /// To a listener a round trip of `rtt` away.
    pub fn over(rtt: Duration) -> Self {
        let enough = (rtt * ROUND_TRIPS).min(SPEECH_START).as_micros();
        let enough = enough * u128::from(Profile::Down.rate()) / 1_000_000;
        Start {
            enough: u64::try_from(enough).unwrap_or(u64::MAX),
            wait: (rtt * WAIT).min(SPEECH_START),
            timer: None,
        }
    }

    /// Ready if the first sound may go, of which `made` samples are here and `granted` are asked
    /// for.
    pub fn poll(&mut self, made: u64, granted: u64, cx: &mut Context<'_>) -> Poll<()> {
        if made == 0 || made >= self.enough.min(granted) {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.wait)));
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;

    const MS: u64 = 24;

    fn goes(start: &mut Start, made: u64, granted: u64) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        start.poll(made, granted, &mut cx).is_ready()
    }

    #[tokio::test]
    async fn the_first_sound_waits_for_more_where_a_loss_would_be_heard() {
        let over = |ms| Start::over(Duration::from_millis(ms));
        let all = u64::MAX;
        assert!(goes(&mut Start::default(), 1, all));
        assert!(
            goes(&mut over(1), 20 * MS, all),
            "within a home a packet is enough"
        );
        let mut far = over(50);
        assert!(goes(&mut far, 0, all), "there is no sound");
        assert!(!goes(&mut far, 299 * MS, all));
        assert!(goes(&mut far, 200 * MS, 200 * MS), "more may not go");
        assert!(goes(&mut far, 300 * MS, all));
        assert!(goes(&mut over(2000), 300 * MS, all), "however far");
        // An engine that is too slow for it.
        let mut slow = over(10);
        poll_fn(|cx| slow.poll(20 * MS, all, cx)).await;
        assert!(goes(&mut slow, 40 * MS, all), "it has begun");
    }
}
