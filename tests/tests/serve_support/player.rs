//! What plays speech on a real clock, as a sound card does: it begins once its prebuffer of sound
//! is here, plays on without waiting, and has run dry where a sample is here later than its turn.
//! Then it waits for as much again.

use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::audio::opus::Profile;
use unamesh_client::audio::pcm;

/// See the module's documentation. Times are those at which it is told of sound.
#[derive(Clone)]
pub struct Player {
    prebuffer: Duration,
    /// When the first sample was played, if it had played on ever since.
    began: Option<Instant>,
    /// Samples that came, and those of them before the last gap.
    here: u64,
    played: u64,
    /// How often it ran dry.
    pub gaps: u32,
    /// For how long in all, not counting what it waits then.
    pub dry: Duration,
}

impl Player {
    /// One that begins with so much sound.
    pub fn behind(prebuffer: Duration) -> Self {
        Player {
            prebuffer,
            began: None,
            here: 0,
            played: 0,
            gaps: 0,
            dry: Duration::ZERO,
        }
    }

    /// So many samples more are here.
    pub fn sound(&mut self, samples: usize) {
        let now = Instant::now();
        if let Some(began) = self.began
            && let late = now.saturating_duration_since(began + long(self.here))
            && !late.is_zero()
        {
            self.gaps += 1;
            self.dry += late;
            (self.began, self.played) = (None, self.here);
        }
        self.here += samples as u64;
        if self.began.is_none() && long(self.here - self.played) >= self.prebuffer {
            self.began = Some(now - long(self.played));
        }
    }

    /// When it has room for more than the prebuffer; at once before it begins.
    pub fn wants(&self) -> Instant {
        let now = Instant::now();
        self.began
            .map_or(now, |began| began + long(self.here) - self.prebuffer)
    }

    /// When it plays this sample, once it has begun.
    pub fn plays(&self, sample: u64) -> Option<Instant> {
        self.began.map(|began| began + long(sample))
    }

    /// Samples that came.
    pub fn here(&self) -> u64 {
        self.here
    }
}

fn long(samples: u64) -> Duration {
    pcm::duration(samples, Profile::Down.rate())
}
