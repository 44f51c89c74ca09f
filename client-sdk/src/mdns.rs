//! Finding the peers of the home network by multicast DNS (DNS-SD, RFC 6762 and 6763).
//!
//! What comes from here is a hint where a node may be, never that it is there or who it is:
//! presence and identity come from authenticated probes. So a lie costs a failed dial, and a
//! record that outlives its node (119 s after a crash) does no harm.
//!
//! The service is `<node id>._unamesh._udp.local.`; its TXT record holds `v` (version), `m`
//! (the mesh, shortened), `id` (node id), `n` (the node's name), `r` (its role) and `i` (a random
//! number of this start, by which a node knows its own echo from a twin with the same key). Instance
//! names are made of keys, so conflicts cannot happen and probing for them (0.8-1 s) is off:
//! a node is resolved within milliseconds of its start.
//!
//! The library reports a service several times (IPv4 and IPv6 apart, once an interface, again
//! when refreshed). A [`Hint`] goes out when the set of addresses has something new.

use crate::transport::BoxFuture;
use mdns_sd::{IfKind, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, trace};
use unamesh_proto::limits::{MAX_ADDRS, MAX_MDNS_NAME, MAX_PEERS};
use unamesh_proto::wire::Role;
use unamesh_proto::{MeshId, NodeId, timeouts};

/// The service type.
pub const SERVICE: &str = "_unamesh._udp.local.";
/// The version in the TXT record; records of another one are ignored.
const VERSION: &str = "1";

/// Multicast DNS does not work on this machine. Everything else does: give seeds instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("multicast DNS is not available ({0}): peers are found by their addresses in `seeds`")]
pub struct MdnsError(String);

impl From<mdns_sd::Error> for MdnsError {
    fn from(error: mdns_sd::Error) -> Self {
        MdnsError(error.to_string())
    }
}

/// Where a node of our mesh may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Who it claims to be. This node itself: another one announces itself under its key.
    pub node: NodeId,
    /// Data-plane addresses, at most [`MAX_ADDRS`]. IPv6 link-local ones carry their scope.
    pub addrs: Vec<SocketAddr>,
}

/// What a node announces.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Of which mesh.
    pub mesh: MeshId,
    /// Who.
    pub node: NodeId,
    /// For people; cut to [`MAX_MDNS_NAME`] bytes.
    pub name: String,
    /// As in the certificate.
    pub role: Role,
    /// Where the data plane listens, with the real port. An unspecified address stands for
    /// all of the machine's, and follows them as they change.
    pub listen: SocketAddr,
}

/// Announces this node while it lives. [`Announcer::goodbye`] takes it back and waits until
/// that is said; dropping it says so without waiting.
pub struct Announcer {
    daemon: Daemon,
    me: Start,
    mesh: MeshId,
}

/// One start of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    node: NodeId,
    /// Random, in hexadecimal digits.
    instance: String,
}

impl Start {
    fn of(node: NodeId) -> Self {
        Start {
            node,
            instance: format!("{:08x}", rand::random::<u32>()),
        }
    }
}

impl Announcer {
    /// Starts announcing.
    ///
    /// # Errors
    /// The machine has no multicast.
    pub fn start(announcement: &Announcement) -> Result<Self, MdnsError> {
        let daemon = Daemon(ServiceDaemon::new()?);
        let me = Start::of(announcement.node);
        daemon
            .0
            .register(service_info(announcement, &me.instance)?)?;
        Ok(Announcer {
            daemon,
            me,
            mesh: announcement.mesh,
        })
    }

    /// Announces changed facts (a new name or port) in place of the old ones.
    ///
    /// # Errors
    /// The daemon is gone or busy; the old announcement stands.
    pub fn update(&self, announcement: &Announcement) -> Result<(), MdnsError> {
        Ok(self
            .daemon
            .0
            .register(service_info(announcement, &self.me.instance)?)?)
    }

    /// Looks for the other nodes of the mesh, over the same sockets. Hints go to `tx`, which
    /// slows the browser down when it is full. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The daemon is gone or busy.
    pub fn browse(&self, tx: mpsc::Sender<Hint>) -> Result<Browser, MdnsError> {
        Browser::start(
            Daemon(self.daemon.0.clone()),
            false,
            self.mesh,
            Some(self.me.clone()),
            tx,
        )
    }

    /// Takes the announcement back; resolves when that was said.
    pub async fn goodbye(self) {
        if let Ok(done) = self.daemon.0.shutdown() {
            // Late or not at all: the record runs out by itself, and nobody trusts it.
            let _ = tokio::time::timeout(timeouts::PROBE_TIMEOUT, done.recv_async()).await;
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.daemon.shutdown();
    }
}

/// Looks for the nodes of `mesh`; for a client, which announces nothing. Hints go to `tx`,
/// which slows the browser down when it is full. Must be called within a tokio runtime.
///
/// # Errors
/// The machine has no multicast.
pub fn browse(mesh: MeshId, tx: mpsc::Sender<Hint>) -> Result<Browser, MdnsError> {
    Browser::start(Daemon(ServiceDaemon::new()?), true, mesh, None, tx)
}

/// Looks for nodes while it lives. Ends by itself when the receiver of its hints is gone.
pub struct Browser {
    daemon: Daemon,
    owns_daemon: bool,
    foreign: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

impl Browser {
    fn start(
        daemon: Daemon,
        owns_daemon: bool,
        mesh: MeshId,
        me: Option<Start>,
        tx: mpsc::Sender<Hint>,
    ) -> Result<Self, MdnsError> {
        let events = daemon.0.browse(SERVICE)?;
        let foreign = Arc::new(AtomicU64::new(0));
        let mut seen = Seen {
            mesh,
            me,
            services: HashMap::new(),
            strangers: HashSet::new(),
            foreign: foreign.clone(),
        };
        let mut task = JoinSet::new();
        let listen: BoxFuture<()> = Box::pin(async move {
            while let Ok(event) = events.recv_async().await {
                if let Some(hint) = seen.event(event) {
                    trace!(node = %hint.node.short(), addrs = ?hint.addrs, "seen on the network");
                    if tx.send(hint).await.is_err() {
                        return;
                    }
                }
            }
        });
        task.spawn(listen);
        Ok(Browser {
            daemon,
            owns_daemon,
            foreign,
            _task: task,
        })
    }

    /// How many nodes of other meshes were seen, kept up to date.
    pub fn foreign(&self) -> Arc<AtomicU64> {
        self.foreign.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if self.owns_daemon {
            self.daemon.shutdown();
        } else {
            // Fails only if the daemon is gone, and the browsing with it.
            let _ = self.daemon.0.stop_browse(SERVICE);
        }
    }
}

/// The library's thread and its sockets.
struct Daemon(ServiceDaemon);

impl Daemon {
    /// Says goodbye for what is registered, and ends the thread.
    fn shutdown(&self) {
        // Fails only if it is gone already.
        let _ = self.0.shutdown();
    }
}

fn service_info(announcement: &Announcement, instance: &str) -> Result<ServiceInfo, MdnsError> {
    let id = announcement.node.to_string();
    let txt = [
        ("v", VERSION.to_owned()),
        ("m", announcement.mesh.short()),
        ("id", id.clone()),
        ("n", cut(&announcement.name, MAX_MDNS_NAME).to_owned()),
        ("r", announcement.role.name().to_owned()),
        ("i", instance.to_owned()),
    ];
    let (ip, port) = (announcement.listen.ip(), announcement.listen.port());
    let own = if ip.is_unspecified() {
        String::new()
    } else {
        ip.to_string()
    };
    let host = format!("{id}.local.");
    let mut info = ServiceInfo::new(SERVICE, &id, &host, own.as_str(), port, &txt[..])?;
    if ip.is_unspecified() {
        info = info.enable_addr_auto();
        if ip.is_ipv4() {
            info.set_interfaces(vec![IfKind::IPv4]);
        }
    }
    info.set_requires_probe(false);
    Ok(info)
}

/// The services of our mesh that were seen, and with which addresses.
struct Seen {
    mesh: MeshId,
    me: Option<Start>,
    services: HashMap<String, HashSet<SocketAddr>>,
    /// Services of other meshes, to count each once.
    strangers: HashSet<String>,
    foreign: Arc<AtomicU64>,
}

impl Seen {
    fn event(&mut self, event: ServiceEvent) -> Option<Hint> {
        match event {
            ServiceEvent::ServiceResolved(service) => self.resolved(&service),
            ServiceEvent::ServiceRemoved(_, fullname) => {
                self.services.remove(&fullname);
                None
            }
            _ => None,
        }
    }

    /// A hint, if `service` is of our mesh, not our own echo, and at an address not seen before.
    fn resolved(&mut self, service: &ResolvedService) -> Option<Hint> {
        let text = |key| service.get_property_val_str(key);
        let fullname = service.get_fullname();
        if text("v") != Some(VERSION) || text("m") != Some(self.mesh.short().as_str()) {
            self.stranger(fullname, text("m"));
            return None;
        }
        let node: NodeId = text("id")?.parse().ok()?;
        let mine = self.me.as_ref().filter(|me| me.node == node);
        if mine.is_some_and(|me| text("i") == Some(me.instance.as_str())) {
            return None;
        }
        if !self.services.contains_key(fullname) && self.services.len() >= MAX_PEERS {
            debug!(node = %node.short(), "more services than a mesh may have: ignored");
            return None;
        }
        let port = service.get_port();
        let mut addrs: Vec<SocketAddr> = service
            .get_addresses()
            .iter()
            .filter_map(|ip| reachable(ip, port))
            .collect();
        // The library's order is a hash's; the same event must always make the same hint.
        addrs.sort_unstable();
        addrs.truncate(MAX_ADDRS);
        let now: HashSet<SocketAddr> = addrs.iter().copied().collect();
        let before = self
            .services
            .insert(fullname.to_owned(), now)
            .unwrap_or_default();
        let news = addrs.iter().any(|addr| !before.contains(addr));
        news.then_some(Hint { node, addrs })
    }

    fn stranger(&mut self, fullname: &str, mesh: Option<&str>) {
        if self.strangers.len() < MAX_PEERS && self.strangers.insert(fullname.to_owned()) {
            self.foreign.fetch_add(1, Ordering::Relaxed);
            debug!(
                service = fullname,
                mesh, "a node of another mesh, or of another version"
            );
        }
    }
}

fn reachable(ip: &ScopedIp, port: u16) -> Option<SocketAddr> {
    let scope = match ip {
        ScopedIp::V6(v6) => v6.scope_id().index,
        _ => 0,
    };
    socket_addr(ip.to_ip_addr(), scope, port)
}

/// The address to dial; `None` for a link-local one without the interface that it is on.
fn socket_addr(ip: IpAddr, scope: u32, port: u16) -> Option<SocketAddr> {
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            (scope != 0).then(|| SocketAddrV6::new(v6, port, 0, scope).into())
        }
        other => Some(SocketAddr::new(other, port)),
    }
}

/// `text`, cut to at most `max` bytes at a character's edge.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;
    use crate::test_net::soon;
    use std::net::Ipv6Addr;

    fn announcement(mesh: MeshId, listen: &str) -> Announcement {
        Announcement {
            mesh,
            node: NodeKey::generate().id(),
            name: "desk".into(),
            role: Role::Agent,
            listen: listen.parse().unwrap(),
        }
    }

    fn resolved(announcement: &Announcement) -> ResolvedService {
        service_info(announcement, "i1")
            .unwrap()
            .as_resolved_service()
    }

    fn seen(mesh: MeshId, me: Option<Start>) -> Seen {
        Seen {
            mesh,
            me,
            services: HashMap::new(),
            strangers: HashSet::new(),
            foreign: Arc::default(),
        }
    }

    #[test]
    fn a_service_is_told_once_and_again_with_each_new_address() {
        let mesh = MeshId([1; 32]);
        let mut seen = seen(mesh, None);
        let mut it = announcement(mesh, "192.168.1.5:11400");
        let hint = seen.resolved(&resolved(&it)).unwrap();
        assert_eq!(
            hint,
            Hint {
                node: it.node,
                addrs: vec![it.listen]
            }
        );
        assert_eq!(seen.resolved(&resolved(&it)), None, "refreshed");
        it.listen.set_port(11401);
        assert_eq!(
            seen.resolved(&resolved(&it)).unwrap().addrs,
            [it.listen],
            "restarted"
        );
        let name = resolved(&it).fullname;
        assert_eq!(
            seen.event(ServiceEvent::ServiceRemoved(SERVICE.into(), name)),
            None
        );
        assert!(
            seen.resolved(&resolved(&it)).is_some(),
            "back after a goodbye"
        );
    }

    #[test]
    fn other_meshes_versions_rubbish_and_itself_are_ignored() {
        let (ours, theirs) = (MeshId([1; 32]), MeshId([2; 32]));
        let own = announcement(ours, "192.168.1.5:11400");
        let me = Start {
            node: own.node,
            instance: "i1".into(),
        };
        let mut seen = seen(ours, Some(me));
        assert_eq!(seen.resolved(&resolved(&own)), None, "itself");
        let foreign = announcement(theirs, "192.168.1.6:11400");
        assert_eq!(seen.resolved(&resolved(&foreign)), None, "another mesh");
        assert_eq!(seen.resolved(&resolved(&foreign)), None, "again");
        assert_eq!(seen.foreign.load(Ordering::Relaxed), 1, "counted once");
        for txt in [
            vec![
                ("v", "2".to_owned()),
                ("m", ours.short()),
                ("id", foreign.node.to_string()),
            ],
            vec![
                ("v", "1".to_owned()),
                ("m", ours.short()),
                ("id", "rubbish".to_owned()),
            ],
            vec![("v", "1".to_owned()), ("m", ours.short())],
            vec![],
        ] {
            let info = ServiceInfo::new(SERVICE, "x", "x.local.", "10.0.0.1", 1, &txt[..]).unwrap();
            assert_eq!(seen.resolved(&info.as_resolved_service()), None, "{txt:?}");
        }
        assert!(seen.services.is_empty());
    }

    #[test]
    fn a_twin_with_the_same_key_is_told() {
        let mesh = MeshId([1; 32]);
        let own = announcement(mesh, "192.168.1.5:11400");
        let mut seen = seen(
            mesh,
            Some(Start {
                node: own.node,
                instance: "another start".into(),
            }),
        );
        assert_eq!(seen.resolved(&resolved(&own)).unwrap().node, own.node);
    }

    #[test]
    fn a_flood_of_services_is_bounded() {
        let mesh = MeshId([1; 32]);
        let mut seen = seen(mesh, None);
        for i in 0..MAX_PEERS + 10 {
            let mut it = announcement(mesh, "10.0.0.1:1");
            it.node.0[..8].copy_from_slice(&(i as u64).to_be_bytes());
            seen.resolved(&resolved(&it));
        }
        assert_eq!(seen.services.len(), MAX_PEERS);
    }

    #[test]
    fn link_local_addresses_need_their_scope() {
        let link_local: Ipv6Addr = "fe80::1".parse().unwrap();
        assert_eq!(socket_addr(link_local.into(), 0, 9), None);
        let scoped = SocketAddrV6::new(link_local, 9, 0, 3);
        assert_eq!(socket_addr(link_local.into(), 3, 9), Some(scoped.into()));
        let ula: Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(
            socket_addr(ula.into(), 3, 9),
            Some(SocketAddr::new(ula.into(), 9))
        );
    }

    #[test]
    fn the_text_record_stays_small() {
        let mut it = announcement(MeshId([1; 32]), "10.0.0.1:1");
        it.name = "ü".repeat(500);
        let txt = resolved(&it).txt_properties;
        let size: usize = txt
            .iter()
            .map(|p| p.key().len() + p.val().map_or(0, <[u8]>::len) + 2)
            .sum();
        assert!(size < 256, "{size} bytes");
        assert_eq!(cut("aü", 2), "a");
    }

    #[tokio::test]
    async fn nodes_find_each_other_on_a_real_network() {
        let mut mesh = MeshId([0; 32]);
        rand::Rng::fill(&mut rand::rng(), &mut mesh.0);
        let (first, second) = (
            announcement(mesh, "0.0.0.0:4001"),
            announcement(mesh, "0.0.0.0:4002"),
        );
        let (tx, mut hints) = mpsc::channel(16);
        let own = Announcer::start(&first).unwrap();
        let _browser = own.browse(tx).unwrap();
        let (client_tx, mut client_hints) = mpsc::channel(16);
        let _client = browse(mesh, client_tx).unwrap();
        let other = Announcer::start(&second).unwrap();
        let hint = soon(hints.recv()).await.unwrap();
        assert_eq!(hint.node, second.node, "and not itself");
        assert!(!hint.addrs.is_empty() && hint.addrs.iter().all(|a| a.port() == 4002));
        // A client hears of both.
        let mut nodes = HashSet::new();
        while nodes.len() < 2 {
            nodes.insert(soon(client_hints.recv()).await.unwrap().node);
        }
        assert_eq!(nodes, HashSet::from([first.node, second.node]));
        soon(other.goodbye()).await;
    }
}
