//! A UDP relay on loopback that can be cut: the way a path dies, without a word.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Relays one client's datagrams. Cut when dropped.
pub struct Relay {
    /// Where the client dials.
    pub addr: SocketAddr,
    tasks: JoinSet<()>,
}

impl Relay {
    /// A path to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        far.connect(server).await.unwrap();
        let addr = near.local_addr().unwrap();
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
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..n], client).await;
                        }
                    }
                }
            }
        });
        Relay { addr, tasks }
    }

    /// From now on nothing passes, in either direction.
    pub fn cut(&mut self) {
        self.tasks.abort_all();
    }
}
