//! Linux: systemd-logind over D-Bus, as any user may.
//!
//! A *delay* inhibitor is a file descriptor. While somebody holds one, logind announces a sleep
//! (`PrepareForSleep(true)`, a closed lid included) and waits until it is closed, for
//! `InhibitDelayMaxSec` (5 s) at most. So each announcement hands our descriptor to whoever
//! prepares for the sleep, and after the wake (`PrepareForSleep(false)`) a new one is taken.
//! A *block* inhibitor forbids sleep while it is open.
//!
//! Where there is no bus or no logind, that is said once, and asked again now and then: the
//! agent may have been started before them.

use super::{PowerEvent, RETRY_EVERY, Unavailable};
use futures_util::StreamExt;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedMatchRule};

const LOGIND: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// A healthy bus answers within milliseconds; a machine that boots may take its time.
const ANSWER: Duration = Duration::from_secs(5);
/// Signals that may wait; they come hours apart.
const SIGNALS: Option<NonZeroUsize> = NonZeroUsize::new(8);

/// logind waits until it is closed.
#[derive(Debug)]
pub(super) struct Hold {
    _inhibitor: OwnedFd,
}

/// logind lets the machine sleep when it is closed.
pub(super) struct Awake {
    _inhibitor: OwnedFd,
}

impl Awake {
    /// Asks logind for it.
    pub async fn take() -> Result<Awake, Unavailable> {
        let taken = async { inhibit(&connect().await?, "sleep:idle", "block").await };
        let inhibitor = taken.await.map_err(unavailable)?;
        Ok(Awake {
            _inhibitor: inhibitor,
        })
    }
}

/// Tells of sleep and wake until `stop`.
pub(super) async fn watch(events: mpsc::Sender<PowerEvent>, stop: CancellationToken) {
    let mut told = None;
    loop {
        let Some(ended) = stop.run_until_cancelled(follow(&events)).await else {
            return;
        };
        match ended.map_err(unavailable) {
            Ok(()) => return,
            Err(reason) if told.as_ref() != Some(&reason) => {
                info!(%reason, "no word of sleep before it happens: it is noticed afterwards");
                told = Some(reason);
            }
            Err(_) => {}
        }
        let pause = tokio::time::sleep(RETRY_EVERY);
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Follows one connection to the bus. Ends without an error when nobody listens any more.
async fn follow(events: &mpsc::Sender<PowerEvent>) -> zbus::Result<()> {
    let bus = connect().await?;
    // Listening comes first: nothing may be missed between the two.
    let sleep = rule(LOGIND, MANAGER, "PrepareForSleep")?.build()?;
    let owner = rule(BUS, BUS, "NameOwnerChanged")?
        .add_arg(LOGIND)
        .build()?;
    let mut sleeps = listen(&bus, sleep).await?;
    let mut owners = listen(&bus, owner).await?;
    let mut hold = Some(delay(&bus).await?);
    debug!("logind announces sleep to us");
    loop {
        tokio::select! {
            signal = sleeps.next() => {
                if signal.ok_or_else(gone)??.body().deserialize::<bool>()? {
                    let sleeping = PowerEvent::Sleeping(super::Hold { _os: hold.take() });
                    if events.send(sleeping).await.is_err() {
                        return Ok(());
                    }
                } else {
                    if events.send(PowerEvent::Woke).await.is_err() {
                        return Ok(());
                    }
                    hold = Some(delay(&bus).await?);
                }
            }
            signal = owners.next() => {
                // Restarted: it does not know our inhibitor.
                let signal: Message = signal.ok_or_else(gone)??;
                let (_, _, new) = signal.body().deserialize::<(String, String, String)>()?;
                hold = match new.as_str() {
                    "" => None,
                    _ => Some(delay(&bus).await?),
                };
            }
        }
    }
}

/// The system bus: `DBUS_SYSTEM_BUS_ADDRESS`, or where it usually is.
async fn connect() -> zbus::Result<Connection> {
    let connecting = zbus::connection::Builder::system()
        .method_timeout(ANSWER)
        .build();
    tokio::time::timeout(ANSWER, connecting)
        .await
        .unwrap_or_else(|_| Err(zbus::Error::Failure("the bus does not answer".to_owned())))
}

async fn listen(bus: &Connection, rule: MatchRule<'_>) -> zbus::Result<MessageStream> {
    MessageStream::for_match_rule(OwnedMatchRule::from(rule), bus, SIGNALS).await
}

fn rule(
    sender: &'static str,
    interface: &'static str,
    member: &'static str,
) -> zbus::Result<zbus::match_rule::Builder<'static>> {
    Ok(MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(sender)
        .interface(interface)
        .member(member))
}

async fn delay(bus: &Connection) -> zbus::Result<Hold> {
    let inhibitor = inhibit(bus, "sleep", "delay").await?;
    Ok(Hold {
        _inhibitor: inhibitor,
    })
}

async fn inhibit(bus: &Connection, what: &str, mode: &str) -> zbus::Result<OwnedFd> {
    let why = match mode {
        "delay" => "answers move to another machine first",
        _ => "it answers",
    };
    let arguments = (what, "UnaMesh", why, mode);
    let reply = bus
        .call_method(Some(LOGIND), PATH, Some(MANAGER), "Inhibit", &arguments)
        .await?;
    let inhibitor: zbus::OwnedFd = reply.body().deserialize()?;
    Ok(inhibitor.into())
}

fn gone() -> zbus::Error {
    zbus::Error::Failure("the bus is gone".to_owned())
}

fn unavailable(error: zbus::Error) -> Unavailable {
    Unavailable(format!("systemd-logind: {error}"))
}
