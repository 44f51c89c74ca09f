//! A UDP relay on loopback: a path that can be cut without a word, or works one way only.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// The first byte of a QUIC version 1 Retry (RFC 9000, section 17.2.5), lower half unused.
const RETRY: u8 = 0xf0;

/// Relays one client's datagrams. Cut when dropped.
pub struct Relay {
    /// Where the client dials.
    pub addr: SocketAddr,
    /// Retry packets that came back.
    pub retries: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Relay {
    /// A path to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        Self::start(server, true).await
    }

    /// A path to `server` on which nothing comes back.
    pub async fn one_way(server: SocketAddr) -> Self {
        Self::start(server, false).await
    }

    async fn start(server: SocketAddr, back: bool) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        far.connect(server).await.unwrap();
        let addr = near.local_addr().unwrap();
        let retries = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&retries);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((n, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send(&up[..n]).await;
                    }
                    Ok(n) = far.recv(&mut down) => {
                        let retry = down.first().is_some_and(|first| first & RETRY == RETRY);
                        seen.fetch_add(usize::from(retry), Ordering::Relaxed);
                        if let Some(client) = client.filter(|_| back) {
                            let _ = near.send_to(&down[..n], client).await;
                        }
                    }
                }
            }
        });
        Relay {
            addr,
            retries,
            tasks,
        }
    }

    /// From now on nothing passes, in either direction.
    pub fn cut(&mut self) {
        self.tasks.abort_all();
    }
}
