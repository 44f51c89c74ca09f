//! A stand-in for systemd-logind on a bus of its own: it hands out inhibitors, tells when they
//! were closed, and announces sleep and wake when a test says so. Agents find it by
//! `DBUS_SYSTEM_BUS_ADDRESS`, as they find the real one. Nothing sleeps.
//!
//! Needs `dbus-daemon` (Debian: `dbus`).

use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A bus starts within this.
const START: Duration = Duration::from_secs(10);
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// An inhibitor that somebody took.
#[derive(Clone, Debug)]
pub struct Inhibitor {
    /// `sleep`, or `sleep:idle`.
    pub what: String,
    /// Who took it.
    pub who: String,
    /// `delay` or `block`.
    pub mode: String,
    /// When it was closed.
    pub released: Option<Instant>,
}

/// The double. Its bus ends when it is dropped.
pub struct FakeLogind {
    address: String,
    bus: zbus::Connection,
    inhibitors: watch::Sender<Vec<Inhibitor>>,
    _daemon: Child,
    _files: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl FakeLogind {
    /// Starts a bus and logind on it.
    pub async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let socket = files.path().join("bus");
        let config = files.path().join("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\
             <busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("no dbus-daemon here: apt-get install dbus");
        let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
        let address = lines.next_line().await.unwrap().expect("the bus ended");
        let inhibitors = watch::Sender::new(Vec::new());
        let (taken, open) = mpsc::unbounded_channel();
        let manager = Manager {
            inhibitors: inhibitors.clone(),
            taken,
        };
        let bus = zbus::connection::Builder::address(address.as_str())
            .serve_at(PATH, manager)
            .name("org.freedesktop.login1")
            .build();
        let bus = timeout(START, bus).await.expect("the bus is silent");
        let bus = bus.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(note_releases(open, inhibitors.clone()));
        Self {
            address,
            bus,
            inhibitors,
            _daemon: daemon,
            _files: files,
            _tasks: tasks,
        }
    }

    /// The command line in front of an agent that is to find this one.
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", self.address);
        vec!["env".to_owned(), address]
    }

    /// All inhibitors so far, oldest first.
    #[must_use]
    pub fn inhibitors(&self) -> Vec<Inhibitor> {
        self.inhibitors.borrow().clone()
    }

    /// How many inhibitors of `mode` are open.
    #[must_use]
    pub fn held(&self, mode: &str) -> usize {
        held(&self.inhibitors.borrow(), mode)
    }

    /// Waits until `count` inhibitors of `mode` are open.
    pub async fn until_held(&self, mode: &str, count: usize) {
        let mut inhibitors = self.inhibitors.subscribe();
        inhibitors
            .wait_for(|all| held(all, mode) == count)
            .await
            .unwrap();
    }

    /// Announces that the machine is about to sleep (true), or awake again (false).
    pub async fn prepare_for_sleep(&self, sleep: bool) {
        let to: Option<&str> = None;
        self.bus
            .emit_signal(to, PATH, MANAGER, "PrepareForSleep", &sleep)
            .await
            .unwrap();
    }
}

fn held(all: &[Inhibitor], mode: &str) -> usize {
    let open = all.iter().filter(|i| i.released.is_none());
    open.filter(|i| i.mode == mode).count()
}

/// Notes when the last holder has closed an inhibitor: its pipe ends then.
async fn note_releases(
    mut open: mpsc::UnboundedReceiver<(usize, pipe::Receiver)>,
    inhibitors: watch::Sender<Vec<Inhibitor>>,
) {
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            Some((index, mut end)) = open.recv() => {
                waiting.spawn(async move {
                    end.read_u8().await.ok();
                    index
                });
            }
            Some(ended) = waiting.join_next() => {
                let index = ended.unwrap();
                inhibitors.send_modify(|all| all[index].released = Some(Instant::now()));
            }
            else => return,
        }
    }
}

struct Manager {
    inhibitors: watch::Sender<Vec<Inhibitor>>,
    taken: mpsc::UnboundedSender<(usize, pipe::Receiver)>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    async fn inhibit(
        &self,
        what: String,
        who: String,
        _why: String,
        mode: String,
    ) -> zbus::fdo::Result<zbus::OwnedFd> {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        let mut index = 0;
        self.inhibitors.send_modify(|all| {
            index = all.len();
            all.push(Inhibitor {
                what,
                who,
                mode,
                released: None,
            });
        });
        self.taken.send((index, reader)).unwrap();
        Ok(std::os::fd::OwnedFd::from(writer).into())
    }
}
