//! Dialing several addresses at once, "happy eyeballs" style (after RFC 8305).
//!
//! The addresses start in order of preference, [`timeouts::RACE_STEP`] apart, or at once when
//! the one before has failed. So a good first path is the only one tried, and a dead first
//! path costs one step, not its time-out. An address that is learned while the race is on runs
//! at once: those before it may be of a process that is no more. If the peer shows life anew, all
//! are dialed once more: what was sent before went to nobody, and the handshake's own next
//! repetition may be a second away.

use super::kind_rank;
use crate::endpoint::{CLOSE_NORMAL, link_error};
use crate::transport::{BoxFuture, LinkError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, Endpoint};
use std::collections::VecDeque;
use std::net::SocketAddr;
use tokio::time::Instant;
use unamesh_proto::timeouts;

type Dialed = (SocketAddr, Result<Connection, LinkError>);

/// Dials under way.
pub(crate) struct Race {
    endpoint: Endpoint,
    name: String,
    /// All that ever were in the race.
    known: Vec<SocketAddr>,
    waiting: VecDeque<SocketAddr>,
    running: FuturesUnordered<BoxFuture<Dialed>>,
    /// The ranks of those that run.
    ranks: Vec<u8>,
    next_start: Instant,
    /// When all addresses were started last.
    began: Instant,
    /// Paths of this rank or worse are of no interest any more.
    worst: u8,
}

impl Race {
    /// A race to the holder of the certificate `name` over `addrs`, best first.
    pub(crate) fn new(endpoint: &Endpoint, name: String, addrs: Vec<SocketAddr>) -> Self {
        Race {
            endpoint: endpoint.clone(),
            name,
            waiting: addrs.clone().into(),
            known: addrs,
            running: FuturesUnordered::new(),
            ranks: Vec::new(),
            next_start: Instant::now(),
            began: Instant::now(),
            worst: u8::MAX,
        }
    }

    /// More is known: addresses that are new to the race start at once.
    pub(crate) fn add(&mut self, addrs: Vec<SocketAddr>) {
        for addr in addrs {
            if !self.known.contains(&addr) && kind_rank(addr) < self.worst {
                self.known.push(addr);
                self.start(addr);
            }
        }
    }

    /// The peer shows life anew: unless an answer may still be on its way, all `addrs` start
    /// once more, at once and beside those that run.
    pub(crate) fn again(&mut self, addrs: Vec<SocketAddr>) {
        if self.began.elapsed() >= timeouts::INITIAL_RTT {
            self.began = Instant::now();
            self.known.clear();
            self.waiting.clear();
        }
        self.add(addrs);
    }

    /// A path won: from now on only better ones are of interest.
    pub(crate) fn only_better_than(&mut self, rank: u8) {
        self.worst = rank;
        self.waiting.retain(|addr| kind_rank(*addr) < rank);
    }

    /// The next path of interest that answered or failed; `None` when none is left. Dropping
    /// the race then gives up the others.
    pub(crate) async fn next(&mut self) -> Option<Dialed> {
        loop {
            if !self.ranks.iter().any(|rank| *rank < self.worst) && !self.start_next() {
                return None;
            }
            tokio::select! {
                Some((addr, dialed)) = self.running.next() => {
                    let rank = kind_rank(addr);
                    if let Some(at) = self.ranks.iter().position(|r| *r == rank) {
                        self.ranks.swap_remove(at);
                    }
                    if rank >= self.worst {
                        if let Ok(connection) = dialed {
                            connection.close(CLOSE_NORMAL, b"another path won");
                        }
                        continue;
                    }
                    if dialed.is_err() {
                        self.start_next();
                    }
                    return Some((addr, dialed));
                }
                () = tokio::time::sleep_until(self.next_start), if !self.waiting.is_empty() => {
                    self.start_next();
                }
            }
        }
    }

    fn start_next(&mut self) -> bool {
        let Some(addr) = self.waiting.pop_front() else {
            return false;
        };
        self.start(addr);
        true
    }

    fn start(&mut self, addr: SocketAddr) {
        self.ranks.push(kind_rank(addr));
        let (endpoint, name) = (self.endpoint.clone(), self.name.clone());
        self.running.push(Box::pin(async move {
            (addr, dial(&endpoint, &name, addr).await)
        }));
        self.next_start = Instant::now() + timeouts::RACE_STEP;
    }
}

/// Dials the holder of `name` at `addr`.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    name: &str,
    addr: SocketAddr,
) -> Result<Connection, LinkError> {
    let connecting = endpoint
        .connect(addr, name)
        .map_err(|e| LinkError::Lost(format!("cannot dial: {e}")))?;
    match tokio::time::timeout(timeouts::DIAL, connecting).await {
        Ok(connected) => connected.map_err(|e| link_error(&e)),
        Err(_) => Err(LinkError::Lost(format!(
            "no answer within {:?}",
            timeouts::DIAL
        ))),
    }
}
