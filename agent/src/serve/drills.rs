//! Failing on purpose: what this agent serves to others plays a fault for a few seconds, so
//! that an owner can see whether anybody would notice (`unamesh drill`).
//!
//! | fault | what is played |
//! |---|---|
//! | freeze, cut | no record leaves and nothing new is answered; then all goes on |
//! | kill | the same, and at the end every connection is closed, as by a restart |
//! | hang | no token is taken from an engine; progress goes out |
//! | drain | the node pauses ([`super::Hooks::pause`]) |
//!
//! A killed process says no goodbye: to whoever waits for it, it is silence like the others,
//! and its engine's work ends when its clients give it up. QUIC itself goes on underneath: its
//! acknowledgements are no sign of life for an answer.
//!
//! Only an administrator of the mesh may ask for it, only where the owner allowed it
//! (`serve.drill`), and only for [`DRILL_MAX`]. The end is this agent's own timer: it does not
//! depend on who asked, and what is dropped ends too. This agent's own applications are not
//! concerned. What is served normally pays a relaxed load for each write and each event of an
//! engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use unamesh_client::transport::BoxFuture;
use unamesh_proto::timeouts::DRILL_MAX;
use unamesh_proto::wire::{Drill, ErrorCode, Fault, WireError};

/// What this agent plays. Shared by all that it serves.
#[derive(Debug)]
pub(super) struct Drills {
    allowed: bool,
    /// Nothing leaves.
    silent: AtomicBool,
    /// No token is made.
    hung: AtomicBool,
    playing: Mutex<Option<Fault>>,
    /// Changes at the end of each drill: how many there were.
    over: watch::Sender<u64>,
    /// The same for those after which connections end.
    killed: watch::Sender<u64>,
}

impl Drills {
    /// Plays nothing; `allowed`: may be asked to.
    pub fn new(allowed: bool) -> Arc<Self> {
        Arc::new(Drills {
            allowed,
            silent: AtomicBool::new(false),
            hung: AtomicBool::new(false),
            playing: Mutex::new(None),
            over: watch::Sender::new(0),
            killed: watch::Sender::new(0),
        })
    }

    /// Whether nothing may leave.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether no engine makes tokens.
    pub fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is played any more.
    pub async fn over(&self) {
        let mut over = self.over.subscribe();
        // Subscribed first: an end from here on is seen.
        while self.is_silent() || self.is_hung() {
            // The sender lives as long as we do.
            let _ = over.changed().await;
        }
    }

    /// Resolves at the end of the next played kill.
    pub fn kills(&self) -> watch::Receiver<u64> {
        self.killed.subscribe()
    }

    /// Begins to play; it is over when what is returned is dropped. `pause` has the node drain
    /// for a while, and come back by itself; false if it cannot.
    ///
    /// # Errors
    /// Not allowed, not possible, or something is played already; nothing was done.
    pub fn begin(
        self: &Arc<Self>,
        drill: Drill,
        pause: impl FnOnce(Duration) -> bool,
    ) -> Result<Playing, WireError> {
        let refuse = |code, message: String| Err(WireError::new(code, message));
        if !self.allowed {
            let message = "the owner of this machine has not allowed fire drills: set \
                           drill = true under [serve] in its configuration";
            return refuse(ErrorCode::Forbidden, message.to_owned());
        }
        let long = Duration::from_millis(u64::from(drill.for_ms));
        if long.is_zero() || long > DRILL_MAX {
            let most = DRILL_MAX.as_millis();
            let message = format!("a drill lasts 1 to {most} ms, not {}", drill.for_ms);
            return refuse(ErrorCode::Invalid, message);
        }
        let mut playing = self.playing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = *playing {
            let message = format!("this machine plays {fault} at the moment");
            return refuse(ErrorCode::Busy, message);
        }
        match drill.fault {
            Fault::Kill | Fault::Freeze | Fault::Cut => self.silent.store(true, Ordering::Relaxed),
            Fault::Hang => self.hung.store(true, Ordering::Relaxed),
            Fault::Drain if pause(long) => {}
            fault => {
                let message = format!("this machine cannot play {fault}");
                return refuse(ErrorCode::Unsupported, message);
            }
        }
        *playing = Some(drill.fault);
        Ok(Playing(Arc::clone(self)))
    }
}

/// A fault that is being played; its end is this value's.
#[derive(Debug)]
pub(super) struct Playing(Arc<Drills>);

impl Drop for Playing {
    fn drop(&mut self) {
        let drills = &self.0;
        drills.silent.store(false, Ordering::Relaxed);
        drills.hung.store(false, Ordering::Relaxed);
        let mut playing = drills
            .playing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *playing == Some(Fault::Kill) {
            drills.killed.send_modify(|kills| *kills += 1);
        }
        *playing = None;
        drills.over.send_modify(|drills| *drills += 1);
    }
}

/// One stream's view of a hang that is played. The default plays along in none: it is for this
/// agent's own applications.
#[derive(Default)]
pub(super) struct Hang {
    drills: Option<Arc<Drills>>,
    /// Since when its engine plays dead, and until when.
    playing: Option<(Instant, BoxFuture<()>)>,
}

impl Hang {
    /// For a stream of somebody else, which plays along.
    pub fn of(drills: &Arc<Drills>) -> Self {
        Hang {
            drills: Some(Arc::clone(drills)),
            playing: None,
        }
    }

    /// Pending while the engine plays dead; then, once, how long it did. Zero as a rule.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        if self.playing.is_none()
            && let Some(drills) = self.drills.as_ref().filter(|drills| drills.is_hung())
        {
            let drills = Arc::clone(drills);
            let over: BoxFuture<()> = Box::pin(async move { drills.over().await });
            self.playing = Some((Instant::now(), over));
        }
        let Some((since, over)) = &mut self.playing else {
            return Poll::Ready(Duration::ZERO);
        };
        ready!(over.as_mut().poll(cx));
        let long = since.elapsed();
        self.playing = None;
        Poll::Ready(long)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drill(fault: Fault, for_ms: u32) -> Drill {
        Drill { fault, for_ms }
    }

    #[tokio::test]
    async fn it_begins_only_where_it_may_and_ends_with_its_guard() {
        let can = |_| true;
        let refused = |drills: &Arc<Drills>, d| drills.begin(d, can).err().map(|e| e.code);
        let closed = Drills::new(false);
        let kill = drill(Fault::Kill, 100);
        assert_eq!(refused(&closed, kill), Some(ErrorCode::Forbidden));
        assert!(!closed.is_silent());

        let drills = Drills::new(true);
        for (wrong, code) in [
            (drill(Fault::Kill, 0), ErrorCode::Invalid),
            (drill(Fault::Kill, 10_001), ErrorCode::Invalid),
            (drill(Fault::Unknown(9), 100), ErrorCode::Unsupported),
        ] {
            assert_eq!(refused(&drills, wrong), Some(code), "{wrong:?}");
        }
        assert!(drills.begin(drill(Fault::Drain, 100), |_| false).is_err());
        let mut kills = drills.kills();
        for fault in [
            Fault::Freeze,
            Fault::Cut,
            Fault::Hang,
            Fault::Drain,
            Fault::Kill,
        ] {
            let playing = drills.begin(drill(fault, 100), can).unwrap();
            let silent = matches!(fault, Fault::Kill | Fault::Freeze | Fault::Cut);
            assert_eq!(
                (drills.is_silent(), drills.is_hung()),
                (silent, fault == Fault::Hang)
            );
            assert_eq!(refused(&drills, kill), Some(ErrorCode::Busy));
            assert!(!kills.has_changed().unwrap());
            let mut over = Box::pin(drills.over());
            let waits = silent || fault == Fault::Hang;
            assert_eq!(futures_util::poll!(over.as_mut()).is_pending(), waits);
            drop(playing);
            if waits {
                over.await;
            }
            assert!(!drills.is_silent() && !drills.is_hung());
        }
        assert!(kills.borrow_and_update().eq(&1));
    }
}
