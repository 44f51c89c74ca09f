//! The machine falls asleep and wakes.
//!
//! **Before:** the node drains, so that its answers move (make before break), says goodbye to
//! every peer, and lets go of the machine. Peers remember the goodbye: nothing of this epoch
//! makes the sleeper look alive again.
//!
//! **After:** every peer is a suspect until it speaks ([`Table::woke`]) and is dialed anew, since
//! the other ends of the old connections have given them up; a new epoch begins, whose first
//! advert carries the addresses of now; multicast DNS announces them; and the probes of all peers
//! tell within seconds who is still there. Nothing that runs is ended for it: the sleep may have
//! been called off, or the clock set.
//!
//! A sleep that nobody announced ends in the same wake: the clocks tell ([`Clocks`]). One that
//! was announced and did not come ends after [`STILL_AWAKE`].
//!
//! [`Table::woke`]: unamesh_proto::table::Table::woke

use super::events::Events;
use super::life::Life;
use super::presence::{Presence, Why, millis};
use super::table::{Input, TableHandle};
use crate::power::slept::{Clocks, LOOK_EVERY, SLEPT};
use crate::power::{Hold, PowerEvent, SLEEP_DRAIN};
use crate::serve::Service;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use unamesh_client::clock;
use unamesh_client::pool::Pool;
use unamesh_proto::timeouts::PROBE_TIMEOUT;
use unamesh_proto::wire::NodeState;

/// So long after its goodbye the process still runs: the sleep was called off, and nobody said
/// so. (Where the clock of timers goes on in a sleep, this is a wake like any other.)
const STILL_AWAKE: Duration = Duration::from_secs(30);
/// A wake that is told this soon after the last one is the same: the clocks were quicker than
/// the system.
const SAME_WAKE: Duration = Duration::from_secs(5);

/// What falls asleep and wakes.
pub(super) struct Sleeper {
    pub(super) presence: Arc<Presence>,
    pub(super) service: Arc<Service>,
    pub(super) life: Arc<Life>,
    pub(super) table: TableHandle,
    pub(super) pool: Arc<Pool>,
    pub(super) events: Events,
    /// The state of the word that every peer has heard.
    pub(super) said: watch::Receiver<NodeState>,
}

impl Sleeper {
    /// Acts on what `power` tells, until `stop`.
    pub(super) async fn run(
        mut self,
        mut power: mpsc::Receiver<PowerEvent>,
        stop: CancellationToken,
    ) {
        let mut clocks = Clocks::new(clock::mono(), clock::wall());
        let (mut asleep, mut woke_at) = (None::<Instant>, None::<Instant>);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                // Without anybody who tells, the clocks go on being compared.
                event = power.recv(), if !power.is_closed() || !power.is_empty() => event,
                () = tokio::time::sleep(LOOK_EVERY) => None,
            };
            let gap = clocks.gap(clock::mono(), clock::wall());
            let noticed_by = match &event {
                Some(PowerEvent::Woke) if asleep.is_some() => Some("system"),
                Some(PowerEvent::Woke) => {
                    let new = woke_at.is_none_or(|at| at.elapsed() >= SAME_WAKE);
                    new.then_some("system")
                }
                _ if gap >= SLEPT => Some("clocks"),
                _ if asleep.is_some_and(|at| at.elapsed() >= STILL_AWAKE) => Some("timer"),
                _ => None,
            };
            if let Some(noticed_by) = noticed_by {
                self.wake(gap, noticed_by);
                (asleep, woke_at) = (None, Some(Instant::now()));
            }
            match event {
                Some(PowerEvent::Sleeping(hold)) => {
                    self.fall_asleep(hold).await;
                    asleep = Some(Instant::now());
                }
                Some(PowerEvent::OnBattery { percent }) => {
                    info!(percent, "the battery is low");
                    self.presence.pause(Why::Battery, None);
                }
                Some(PowerEvent::Hot { celsius }) => {
                    info!(celsius, "this machine is hot");
                    self.presence.pause(Why::Hot, None);
                }
                Some(PowerEvent::OnMains) => {
                    self.presence.resume(Why::Battery);
                }
                Some(PowerEvent::Cool) => {
                    self.presence.resume(Why::Hot);
                }
                Some(PowerEvent::Woke) | None => {}
            }
        }
    }

    /// Returns when the machine may sleep; `hold` is let go then.
    async fn fall_asleep(&mut self, hold: Hold) {
        let began = Instant::now();
        let active = self.service.active();
        info!(active, "the machine is about to sleep");
        self.events.emit("sleeping", json!({ "active": active }));
        self.presence.pause(Why::Sleep, Some(SLEEP_DRAIN));
        // The applications of this machine sleep with it: their answers go on when it wakes.
        self.service.drained().await;
        self.presence.asleep();
        let heard = self.said.wait_for(|said| *said == NodeState::Left);
        if tokio::time::timeout(PROBE_TIMEOUT, heard).await.is_err() {
            warn!("not every peer has heard that this machine sleeps");
        }
        info!(took = ?began.elapsed(), left = self.service.active(), "ready to sleep");
        drop(hold);
    }

    fn wake(&self, slept: Duration, noticed_by: &str) {
        // In this order: whom a new connection reaches is no suspect any more, and the new
        // epoch's first word goes over new connections.
        self.table.tell(Input::Woke(clock::mono()));
        self.pool.reconnect();
        self.life.renew(clock::wall());
        let (epoch, slept_ms) = (self.life.epoch(), millis(slept));
        info!(slept_ms, noticed_by, epoch, "the machine woke: a new epoch");
        self.events.emit(
            "woke",
            json!({ "slept_ms": slept_ms, "noticed_by": noticed_by, "epoch": epoch }),
        );
        self.presence.woke();
    }
}
