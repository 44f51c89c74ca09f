//! A path's double: a UDP relay on loopback with an [`Impairment`] in each direction, for tests
//! of one process and without root. It can be slow, lossy, narrow, cut without a word, or work
//! one way only.

use crate::impair::{Impairment, Line, Pipe, Way};
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The first byte of a QUIC version 1 Retry (RFC 9000, section 17.2.5), lower half unused.
const RETRY: u8 = 0xf0;

/// Larger than any datagram.
const MAX_DATAGRAM: usize = 65_536;

/// Relays one dialer's datagrams to one server. It ends when dropped.
pub struct PathDouble {
    /// Where the dialer dials.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    /// What the dialer sends, and what it receives.
    pipes: Mutex<[Pipe; 2]>,
    retries: AtomicUsize,
}

impl PathDouble {
    /// A path to `server` with nothing wrong.
    pub async fn to(server: SocketAddr) -> Self {
        Self::with(server, Impairment::default(), 0).await
    }

    /// A path to `server`, impaired both ways; its luck comes from `seed`.
    pub async fn with(server: SocketAddr, impairment: Impairment, seed: u64) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        far.connect(server).await.unwrap();
        let addr = near.local_addr().unwrap();
        let pipe = |seed| Pipe::new(Line::new(impairment, seed));
        let shared = Arc::new(Shared {
            pipes: Mutex::new([pipe(seed), pipe(!seed)]),
            retries: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(relay(near, far, Arc::clone(&shared)));
        Self {
            addr,
            shared,
            _tasks: tasks,
        }
    }

    /// Changes what happens to the datagrams from now on.
    pub fn impair(&self, way: Way, impairment: Impairment) {
        for pipe in &mut self.shared.lock()[way.range()] {
            pipe.line.set(impairment);
        }
    }

    /// Begins or ends a blackhole.
    pub fn blackhole(&self, way: Way, on: bool) {
        for pipe in &mut self.shared.lock()[way.range()] {
            pipe.blackhole(on);
        }
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.blackhole(Way::Both, true);
    }

    /// It works again, as impaired as before.
    pub fn mend(&self) {
        self.blackhole(Way::Both, false);
    }

    /// QUIC Retry packets that the server sent.
    #[must_use]
    pub fn retries(&self) -> usize {
        self.shared.retries.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, [Pipe; 2]> {
        self.pipes.lock().unwrap()
    }

    fn pop(&self, way: usize, now: Duration) -> Option<Vec<u8>> {
        self.lock()[way].pop(now)
    }
}

async fn relay(near: UdpSocket, far: UdpSocket, shared: Arc<Shared>) {
    let origin = Instant::now();
    let (mut up, mut down) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
    let mut dialer = None;
    loop {
        let due = shared.lock().iter().filter_map(Pipe::next).min();
        // A refusal of an earlier datagram (ICMP) is the server's affair, not the path's.
        tokio::select! {
            got = near.recv_from(&mut up) => if let Ok((size, from)) = got {
                dialer = Some(from);
                shared.lock()[0].push(origin.elapsed(), &up[..size]);
            },
            got = far.recv(&mut down) => if let Ok(size) = got {
                let retry = down.first().is_some_and(|first| first & RETRY == RETRY);
                shared.retries.fetch_add(usize::from(retry), Ordering::Relaxed);
                shared.lock()[1].push(origin.elapsed(), &down[..size]);
            },
            () = at(due.map(|due| origin + due)) => {}
        }
        while let Some(datagram) = shared.pop(0, origin.elapsed()) {
            far.send(&datagram).await.ok();
        }
        while let Some(datagram) = shared.pop(1, origin.elapsed()) {
            if let Some(dialer) = dialer {
                near.send_to(&datagram, dialer).await.ok();
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
