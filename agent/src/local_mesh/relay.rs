//! What stands between the agents where a cable is to be cut: a UDP relay without root.
//!
//! Every agent advertises a *front* of the relay instead of its own address. What arrives
//! there from somebody goes on to the agent from a socket that stands for that somebody, and
//! back, so that neither side ever learns the other's true address:
//!
//! ```text
//!   a ───► front of b ─┐            ┌─ socket that stands for a ───► b
//!     ◄────────────────┴── thread ──┴──────────────────────────────◄
//! ```
//!
//! An agent that is cut off sends and gets nothing, without a word to anybody: no port is
//! closed, no error comes back, exactly as with a cable that is out. Its process goes on and
//! knows nothing of it, which a stopped process would not. Gossip has a socket of its own and
//! is not relayed: it carries no answer and is no sign of life.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often a thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Who talks to one front at most: the other agents, from a few addresses each.
const MAX_FLOWS: usize = 64;
/// The largest datagram.
const DATAGRAM: usize = 65_536;

/// A front for each agent. It ends with this value.
pub struct Relay {
    fronts: Vec<SocketAddr>,
    lines: Arc<Lines>,
    threads: Vec<JoinHandle<()>>,
}

struct Lines {
    /// Where the agents really are.
    agents: Vec<SocketAddr>,
    cut: Vec<AtomicBool>,
    over: AtomicBool,
}

impl Relay {
    /// Fronts for `agents`, in this order.
    ///
    /// # Errors
    /// No socket.
    pub fn start(agents: Vec<SocketAddr>) -> io::Result<Self> {
        let lines = Arc::new(Lines {
            cut: agents.iter().map(|_| AtomicBool::new(false)).collect(),
            agents,
            over: AtomicBool::new(false),
        });
        let mut relay = Relay {
            fronts: Vec::new(),
            lines: Arc::clone(&lines),
            threads: Vec::new(),
        };
        for (at, agent) in lines.agents.iter().enumerate() {
            let socket = Arc::new(open()?);
            relay.fronts.push(socket.local_addr()?);
            let (lines, agent) = (Arc::clone(&lines), *agent);
            let front = Front {
                lines,
                at,
                agent,
                socket,
            };
            relay.threads.push(thread::spawn(move || front.run()));
        }
        Ok(relay)
    }

    /// Where the agents are found.
    pub fn fronts(&self) -> &[SocketAddr] {
        &self.fronts
    }

    /// Cuts agent `at` off, or not any more.
    pub fn cut(&self, at: usize, off: bool) {
        if let Some(cut) = self.lines.cut.get(at) {
            cut.store(off, Ordering::Relaxed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.lines.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Lines {
    fn is_cut(&self, at: usize) -> bool {
        self.cut
            .get(at)
            .is_some_and(|cut| cut.load(Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

struct Front {
    lines: Arc<Lines>,
    at: usize,
    agent: SocketAddr,
    socket: Arc<UdpSocket>,
}

/// Somebody who talks to a front.
struct Flow {
    /// Stands for it.
    socket: Arc<UdpSocket>,
    /// Which agent it is, if it is one.
    from: Option<usize>,
    back: JoinHandle<()>,
}

impl Front {
    fn run(self) {
        let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
        let mut buffer = vec![0; DATAGRAM];
        while !self.lines.is_over() {
            // Nothing came in time, or the last datagram was refused.
            let Ok((length, sender)) = self.socket.recv_from(&mut buffer) else {
                continue;
            };
            if flows.len() < MAX_FLOWS
                && !flows.contains_key(&sender)
                && let Ok(flow) = self.flow(sender)
            {
                flows.insert(sender, flow);
            }
            if let Some(flow) = flows.get(&sender)
                && !self.is_cut(flow.from)
                && let Some(datagram) = buffer.get(..length)
            {
                // An agent that is not there takes nothing, and the sender hears nothing.
                let _ = flow.socket.send(datagram);
            }
        }
        for (_, flow) in flows {
            let _ = flow.back.join();
        }
    }

    fn is_cut(&self, from: Option<usize>) -> bool {
        self.lines.is_cut(self.at) || from.is_some_and(|from| self.lines.is_cut(from))
    }

    fn flow(&self, sender: SocketAddr) -> io::Result<Flow> {
        let socket = open()?;
        socket.connect(self.agent)?;
        let socket = Arc::new(socket);
        let from = self.lines.agents.iter().position(|agent| *agent == sender);
        let front = Front {
            lines: Arc::clone(&self.lines),
            at: self.at,
            agent: self.agent,
            socket: Arc::clone(&self.socket),
        };
        let agent = Arc::clone(&socket);
        let back = thread::spawn(move || {
            let mut buffer = vec![0; DATAGRAM];
            while !front.lines.is_over() {
                if let Ok(length) = agent.recv(&mut buffer)
                    && !front.is_cut(from)
                    && let Some(datagram) = buffer.get(..length)
                {
                    let _ = front.socket.send_to(datagram, sender);
                }
            }
        });
        Ok(Flow { socket, from, back })
    }
}

fn open() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_until_it_is_cut_and_again_when_it_is_mended() {
        let sockets = [open().unwrap(), open().unwrap()];
        let [a, b] = &sockets;
        let addrs = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        let relay = Relay::start(addrs).unwrap();
        let mut buffer = [0; 16];
        // Patient: the machine may be busy.
        for socket in &sockets {
            let patience = Some(Duration::from_secs(5));
            socket.set_read_timeout(patience).unwrap();
        }
        a.send_to(b"to b", relay.fronts()[1]).unwrap();
        let (length, from) = b.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"to b");
        assert_ne!(from, a.local_addr().unwrap());
        b.send_to(b"to a", from).unwrap();
        let (length, from_b) = a.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from_b),
            (&b"to a"[..], relay.fronts()[1])
        );

        for cut in [0, 1] {
            relay.cut(cut, true);
            a.send_to(b"lost", relay.fronts()[1]).unwrap();
            b.send_to(b"lost", from).unwrap();
            for socket in &sockets {
                socket.set_read_timeout(Some(LOOK)).unwrap();
                assert!(socket.recv_from(&mut buffer).is_err());
            }
            relay.cut(cut, false);
        }
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        a.send_to(b"again", relay.fronts()[1]).unwrap();
        // On a busy machine the relay may look at what was lost only now.
        while b.recv_from(&mut buffer).unwrap().0 != b"again".len() {}
    }
}
