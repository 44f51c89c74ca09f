//! Whether this node takes requests, and why not: the one place that decides.
//!
//! ```text
//!             pause(why) ►              ┌──────────┐  asleep() ►  ┌──────┐
//!   up ─────────────────────────────────► draining ├──────────────► left │
//!    ▲  ◄ resume(why): the last reason ─┤          ◄──┐           └──┬───┘
//!    │                                  └────┬─────┘  │ woke(), other│reasons
//!    └──────── woke() ◄──────────────────────┼────────┴──────────────┘
//!                          leave(why) ►      ▼ for good: the process ends
//! ```
//! There may be several reasons at the same time: asked for ten minutes, and the battery runs
//! low meanwhile. The node is up when none is left. A leave outweighs every pause and is never
//! taken back. While draining nothing new is taken and running answers are handed over
//! ([`Service::drain`]); the publisher tells the mesh.

use super::events::Events;
use crate::serve::Service;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use unamesh_client::client::MeshClient;
use unamesh_proto::wire::NodeState;

/// What running answers are told of a drain without an end (the battery is low): they have all
/// the time that they need.
const NO_HURRY: Duration = Duration::from_secs(3600);

/// Why a node takes nothing new. The first in this order is the one that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The process was told to end.
    Signal,
    /// The machine is about to sleep.
    Sleep,
    /// Its owner asked (`unamesh drain`).
    Asked,
    /// The battery is low.
    Battery,
    /// It is too hot.
    Hot,
    /// It plays a fire drill.
    Drill,
}

impl Why {
    /// Whether a pause for this ends at the time that was set for it. The others end with their
    /// reason.
    fn ends_in_time(self) -> bool {
        matches!(self, Why::Asked | Why::Drill)
    }
}

/// Where this node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// As advertised.
    pub state: NodeState,
    /// While draining.
    pub drain: Option<Draining>,
}

/// What there is to know of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The reason that counts.
    pub why: Why,
    /// When it ends; `None`: when the reason does.
    pub until: Option<Instant>,
    /// Afterwards the node is up again; else it leaves.
    pub returns: bool,
}

impl Draining {
    /// The time left; `None` without an end.
    pub fn left(&self) -> Option<Duration> {
        self.until
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// For the local API.
    pub fn json(&self) -> Value {
        json!({ "why": self.why, "left_ms": self.left().map(millis), "returns": self.returns })
    }
}

impl Phase {
    /// Takes requests.
    pub const UP: Phase = Phase {
        state: NodeState::Up,
        drain: None,
    };

    /// Whether the process ends after this.
    pub fn is_for_good(&self) -> bool {
        self.drain.is_some_and(|drain| !drain.returns)
    }
}

/// The reasons of now.
#[derive(Clone, Debug, Default)]
struct Reasons {
    leave: Option<(Why, Instant)>,
    pauses: BTreeMap<Why, Option<Instant>>,
    /// It has said goodbye, and sleeps or is about to.
    asleep: bool,
}

impl Reasons {
    fn phase(&self) -> Phase {
        let leave = self.leave.map(|(why, until)| (why, Some(until)));
        let pause = self.pauses.iter().next().map(|(why, until)| (*why, *until));
        let drain = leave.or(pause).map(|(why, until)| Draining {
            why,
            until,
            returns: leave.is_none(),
        });
        let state = match drain {
            None => NodeState::Up,
            Some(drain) if self.asleep && drain.returns => NodeState::Left,
            Some(_) => NodeState::Draining,
        };
        Phase { state, drain }
    }

    /// Which pause is over next, and when.
    fn next_end(&self) -> Option<(Instant, Why)> {
        let timed = self.pauses.iter().filter(|(why, _)| why.ends_in_time());
        timed
            .filter_map(|(why, until)| until.map(|at| (at, *why)))
            .min()
    }
}

/// This node's presence. Shared.
pub struct Presence {
    reasons: Mutex<Reasons>,
    phase: watch::Sender<Phase>,
    service: Arc<Service>,
    events: Events,
    /// Its own requests are at stake too.
    client: OnceLock<MeshClient>,
}

impl Presence {
    /// Up; what changes that goes to `service` and `events`.
    pub fn new(service: Arc<Service>, events: Events) -> Arc<Presence> {
        Arc::new(Presence {
            reasons: Mutex::default(),
            phase: watch::Sender::new(Phase::UP),
            service,
            events,
            client: OnceLock::new(),
        })
    }

    /// Whose requests are told of as `asking`.
    pub fn asks_through(&self, client: MeshClient) {
        // There is one client in an agent's life.
        let _ = self.client.set(client);
    }

    /// The phase of now and those to come.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The phase of now.
    pub fn now(&self) -> Phase {
        *self.phase.borrow()
    }

    /// From now on nothing new is taken, and the process ends when nothing runs any more or
    /// after `deadline`. False if it was leaving already; the earlier deadline counts.
    pub fn leave(&self, why: Why, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.change(|reasons| match &mut reasons.leave {
            Some((_, before)) => {
                *before = until.min(*before);
                false
            }
            none => {
                *none = Some((why, until));
                true
            }
        })
    }

    /// From now on nothing new is taken, for `long` or until [`Presence::resume`]. Only an
    /// owner's pause and a drill's end by themselves; to the others `long` is what running
    /// answers are told.
    pub fn pause(&self, why: Why, long: Option<Duration>) {
        let until = long.map(|long| Instant::now() + long);
        self.change(|reasons| {
            reasons.pauses.insert(why, until);
        });
    }

    /// Takes a pause back. False if there was none.
    pub fn resume(&self, why: Why) -> bool {
        self.change(|reasons| reasons.pauses.remove(&why).is_some())
    }

    /// Everything has moved, or had the time to: the node says goodbye until it wakes.
    pub fn asleep(&self) {
        self.change(|reasons| reasons.asleep = true);
    }

    /// The machine is awake again.
    pub fn woke(&self) {
        self.change(|reasons| {
            reasons.asleep = false;
            reasons.pauses.remove(&Why::Sleep);
        });
    }

    /// Ends pauses whose time has come. Runs until `stop`.
    pub async fn keep_time(self: Arc<Self>, stop: CancellationToken) {
        let mut phase = self.phase();
        let keeping = async {
            loop {
                phase.mark_unchanged();
                let end = self.lock(|reasons| reasons.next_end());
                let over = async {
                    match end {
                        Some((at, why)) => {
                            tokio::time::sleep_until(at).await;
                            why
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // We hold the sender.
                    _ = phase.changed() => {}
                    why = over => {
                        self.resume(why);
                    }
                }
            }
        };
        stop.run_until_cancelled(keeping).await;
    }

    fn change<T>(&self, change: impl FnOnce(&mut Reasons) -> T) -> T {
        self.lock(|reasons| {
            let result = change(reasons);
            // Within the lock, so that phases are published in the order of their reasons.
            let phase = reasons.phase();
            // The service first: who hears of a leave waits for it until its deadline.
            match phase.drain {
                Some(drain) => self.service.drain(drain.left().unwrap_or(NO_HURRY)),
                None => self.service.resume(),
            }
            let before = self.phase.send_replace(phase);
            self.tell(before, phase);
            result
        })
    }

    /// Tells people and programs of a new phase.
    fn tell(&self, before: Phase, phase: Phase) {
        match phase.drain {
            Some(drain) if before.drain != Some(drain) => {
                let (left, active) = (drain.left(), self.service.active());
                let asking = self.client.get().map_or(0, MeshClient::running);
                let (why, deadline_ms) = (json!(drain.why), left.map(millis));
                info!(
                    why = why.as_str(),
                    deadline_ms,
                    returns = drain.returns,
                    active,
                    asking,
                    "draining"
                );
                let fields = json!({
                    "why": why,
                    "deadline_ms": deadline_ms,
                    "returns": drain.returns,
                    "active": active,
                    "asking": asking,
                });
                self.events.emit("draining", fields);
            }
            None if before.drain.is_some() => {
                info!("takes requests again");
                self.events.emit("returned", json!({}));
            }
            _ => {}
        }
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Reasons) -> T) -> T {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut reasons)
    }
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(reasons: &Reasons) -> (NodeState, Option<(Why, bool)>) {
        let phase = reasons.phase();
        (phase.state, phase.drain.map(|d| (d.why, d.returns)))
    }

    #[test]
    fn the_weightiest_reason_is_told_and_the_last_one_ends_it() {
        let mut reasons = Reasons::default();
        assert_eq!(told(&reasons), (NodeState::Up, None));
        reasons.pauses.insert(Why::Battery, None);
        let (draining, left) = (NodeState::Draining, NodeState::Left);
        assert_eq!(told(&reasons), (draining, Some((Why::Battery, true))));
        reasons.pauses.insert(Why::Asked, Some(Instant::now()));
        assert_eq!(told(&reasons), (draining, Some((Why::Asked, true))));
        reasons.pauses.insert(Why::Sleep, Some(Instant::now()));
        assert_eq!(told(&reasons), (draining, Some((Why::Sleep, true))));
        reasons.asleep = true;
        assert_eq!(told(&reasons), (left, Some((Why::Sleep, true))));
        (reasons.asleep, _) = (false, reasons.pauses.remove(&Why::Sleep));
        reasons.pauses.remove(&Why::Asked);
        assert_eq!(told(&reasons), (draining, Some((Why::Battery, true))));
        reasons.pauses.remove(&Why::Battery);
        assert_eq!(told(&reasons), (NodeState::Up, None));
    }

    #[test]
    fn a_leave_is_for_good() {
        let mut reasons = Reasons::default();
        reasons.pauses.insert(Why::Sleep, None);
        reasons.asleep = true;
        reasons.leave = Some((Why::Signal, Instant::now()));
        assert_eq!(
            told(&reasons),
            (NodeState::Draining, Some((Why::Signal, false)))
        );
        assert!(reasons.phase().is_for_good());
    }

    #[test]
    fn only_an_owners_and_a_drills_pause_end_by_themselves() {
        let mut reasons = Reasons::default();
        let now = Instant::now();
        reasons.pauses.insert(Why::Sleep, Some(now));
        assert_eq!(reasons.next_end(), None);
        let later = now + Duration::from_secs(1);
        reasons.pauses.insert(Why::Asked, Some(later));
        assert_eq!(reasons.next_end(), Some((later, Why::Asked)));
        reasons.pauses.insert(Why::Drill, Some(now));
        assert_eq!(reasons.next_end(), Some((now, Why::Drill)));
    }
}
