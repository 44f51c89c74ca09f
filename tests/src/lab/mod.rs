//! Hosts on a switch, as network namespaces: own interfaces, own loopback, own ports, real
//! multicast between them. Needs root, `ip` and `nft`.
//!
//! ```text
//!   namespace of host 0             namespace of the switch
//!  +-------------------+          +-------------------------+
//!  | eth0 (TAP) =======|= cable ==|== p0-0 (TAP) --+        |
//!  | 10.77.0.1         |          |                | br0    |
//!  +-------------------+          |                |        |
//!   host 1: eth0 =========== cable ==== p0-1 ------+        |
//!  | eth1 ================== cable ==== p1-1 ------- br1    |
//!                                 +-------------------------+
//! ```
//!
//! The kernel of a test machine may not have netem, so a cable is a thread of ours
//! (`forward`), which does to each direction what an [`Impairment`] says: a cable that is cut
//! ([`Lab::cut`]), where nobody is told, weak Wi-Fi ([`Lab::impair`]). Partitions are rules of
//! the bridge ([`Lab::partition`]); an interface that is set down ([`Lab::unplug`]) and a new
//! address ([`Lab::readdress`]) are things that the host notices. A host is frozen by stopping
//! all processes in its namespace ([`Lab::freeze`]).
//!
//! Names carry the id of the test process, and everything hangs on the namespaces, so deleting
//! them deletes it all. A lab that a killed test left behind is removed by the next one.

mod forward;
mod processes;
mod tap;

use crate::http::Net;
use crate::impair::{Counts, Impairment, Way};
use forward::Forwarder;
use rustix::process::Signal;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Set to 1 to skip the tests that need a lab, where namespaces are not to be had.
pub const SKIP: &str = "UNAMESH_SKIP_LAB";

/// Namespaces begin with this, then comes the process id.
const PREFIX: &str = "umlab-";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A host's interface: a host alone means its first one, `(host, 1)` its second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host.
    pub host: usize,
    /// The network, 0 or 1.
    pub net: usize,
}

impl From<usize> for Port {
    fn from(host: usize) -> Self {
        Port { host, net: 0 }
    }
}

impl From<(usize, usize)> for Port {
    fn from((host, net): (usize, usize)) -> Self {
        Port { host, net }
    }
}

/// Hosts `0..n` with the addresses 10.77.0.1, 10.77.0.2, … on one bridge; some are on a second
/// one as well.
pub struct Lab {
    /// Before the namespaces in the order of fields: its devices go first.
    cables: Option<Forwarder>,
    /// In the order of the cables.
    ports: Vec<Port>,
    switch: Arc<str>,
    hosts: Vec<Arc<str>>,
}

impl Lab {
    /// Hosts on one switch, or `None` if [`SKIP`] is set.
    ///
    /// # Panics
    /// If namespaces cannot be made, with the reason and the way out.
    #[must_use]
    pub fn new(hosts: usize) -> Option<Self> {
        Self::with(hosts, &[], 0)
    }

    /// The same; the hosts of `second` have an interface on a second switch too, with the
    /// addresses 10.77.1.1, … The luck of all cables comes from `seed`.
    ///
    /// # Panics
    /// If namespaces cannot be made, with the reason and the way out.
    #[must_use]
    pub fn with(hosts: usize, second: &[usize], seed: u64) -> Option<Self> {
        if std::env::var(SKIP).is_ok_and(|value| value == "1") {
            eprintln!("SKIPPED: {SKIP}=1");
            return None;
        }
        sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = |part: &str| -> Arc<str> {
            format!("{PREFIX}{}-{number}{part}", std::process::id()).into()
        };
        let second = second.iter().map(|&host| Port { host, net: 1 });
        let mut lab = Self {
            cables: None,
            ports: (0..hosts).map(Port::from).chain(second).collect(),
            switch: name("s"),
            hosts: (0..hosts).map(|host| name(&format!("h{host}"))).collect(),
        };
        match lab.build() {
            Ok(cables) => lab.cables = Some(Forwarder::start(cables, seed)),
            Err(reason) => panic!(
                "no network namespaces here: {reason}\nThis test needs root, the packages \
                 iproute2 and nftables, and /dev/net/tun. To go without it: {SKIP}=1"
            ),
        }
        Some(lab)
    }

    fn build(&self) -> Result<Vec<[File; 2]>, String> {
        let switch = &self.switch;
        sh(&format!("ip netns add {switch}"))?;
        for host in &self.hosts {
            sh(&format!(
                "ip netns add {host} && ip -n {host} link set lo up"
            ))?;
        }
        for net in 0..=self.ports.iter().map(|port| port.net).max().unwrap_or(0) {
            // Without snooping the bridge floods multicast, as a simple home switch does.
            sh(&format!(
                "ip -n {switch} link add br{net} type bridge mcast_snooping 0 && \
                 ip -n {switch} link set br{net} up"
            ))?;
        }
        self.ports.iter().map(|port| self.plug_in(*port)).collect()
    }

    /// Makes the interface of a host, the bridge's port for it, and the ends of their cable.
    fn plug_in(&self, port: Port) -> Result<[File; 2], String> {
        let Port { host, net } = port;
        let (space, switch) = (&self.hosts[host], &self.switch);
        let (near, far) = (format!("eth{net}"), port.name());
        let open = |net: &Net, name: &str| tap::open(net, name).map_err(|e| e.to_string());
        let ends = [
            open(&self.net(host), &near)?,
            open(&Net::Namespace(Arc::clone(switch)), &far)?,
        ];
        // The switch itself has no business on the network.
        sh(&format!(
            "ip netns exec {switch} sysctl -qw net.ipv6.conf.{far}.disable_ipv6=1 && \
             ip -n {switch} link set {far} master br{net} up"
        ))?;
        // Duplicate address detection would hold back the link-local address for 1.5 s, which a
        // machine that is already on the network has behind it.
        sh(&format!(
            "ip netns exec {space} sysctl -qw net.ipv6.conf.{near}.accept_dad=0 && \
             ip -n {space} link set {near} address 02:77:00:00:{net:02x}:{host:02x} && \
             ip -n {space} addr add {}/24 brd + dev {near} && \
             ip -n {space} link set {near} up",
            self.addr(port),
        ))?;
        Ok(ends)
    }

    /// How many hosts there are.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Where host `index` makes its sockets.
    #[must_use]
    pub fn net(&self, index: usize) -> Net {
        Net::Namespace(Arc::clone(&self.hosts[index]))
    }

    /// The address with which a port began.
    #[must_use]
    pub fn addr(&self, port: impl Into<Port>) -> Ipv4Addr {
        let Port { host, net } = port.into();
        let octet = |n: usize| u8::try_from(n).unwrap();
        Ipv4Addr::new(10, 77, octet(net), octet(host + 1))
    }

    fn cable(&self, port: Port) -> (&Forwarder, usize) {
        let number = self.ports.iter().position(|&other| other == port);
        let number = number.unwrap_or_else(|| panic!("there is no {port:?}"));
        (self.cables.as_ref().unwrap(), number)
    }

    /// From now on the packets of this cable have this happen to them, by direction.
    pub fn impair(&self, port: impl Into<Port>, way: Way, impairment: Impairment) {
        let (cables, number) = self.cable(port.into());
        cables.impair(number, way, impairment);
    }

    /// Begins or ends a blackhole: whatever goes this way is lost, and nobody is told.
    pub fn blackhole(&self, port: impl Into<Port>, way: Way, on: bool) {
        let (cables, number) = self.cable(port.into());
        cables.blackhole(number, way, on);
    }

    /// Cuts a cable: nothing gets in or out, nobody is told.
    pub fn cut(&self, port: impl Into<Port>) {
        self.blackhole(port, Way::Both, true);
    }

    /// Mends it: it is again as impaired as before.
    pub fn mend(&self, port: impl Into<Port>) {
        self.blackhole(port, Way::Both, false);
    }

    /// What a cable carried and lost so far: out, in.
    #[must_use]
    pub fn counts(&self, port: impl Into<Port>) -> [Counts; 2] {
        let (cables, number) = self.cable(port.into());
        cables.counts(number)
    }

    /// The link of an interface goes down, which the host notices: it has no route any more.
    pub fn unplug(&self, port: impl Into<Port>) {
        self.ip(port.into(), "link set eth down");
    }

    /// And up again, with the address that it had.
    pub fn plug(&self, port: impl Into<Port>) {
        self.ip(port.into(), "link set eth up");
    }

    /// An interface gets another address, as from a DHCP server that forgot the old one.
    pub fn readdress(&self, port: impl Into<Port>, addr: Ipv4Addr) {
        let port = port.into();
        self.ip(port, "-4 addr flush dev eth");
        self.ip(port, &format!("addr add {addr}/24 brd + dev eth"));
    }

    /// Runs `ip` in the host's namespace; `eth` stands for the interface.
    fn ip(&self, Port { host, net }: Port, line: &str) {
        let line = line.replace("eth", &format!("eth{net}"));
        sh(&format!("ip -n {} {line}", self.hosts[host])).unwrap();
    }

    /// Hosts talk within their group only; who is in none talks to everybody. Replaces an
    /// earlier partition.
    pub fn partition(&self, groups: &[&[usize]]) {
        self.heal();
        let mut rules = String::from(
            "add table bridge partition\n\
             add chain bridge partition f { type filter hook forward priority 0; }\n",
        );
        for (index, group) in groups.iter().enumerate() {
            let others = groups
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            for other in others.flat_map(|(_, group)| *group) {
                rules += &format!(
                    "add rule bridge partition f iifname {} oifname {} drop\n",
                    self.names(group),
                    self.names(&[*other]),
                );
            }
        }
        let switch = &self.switch;
        sh(&format!("ip netns exec {switch} nft '{rules}'")).unwrap();
    }

    /// The names of all ports of these hosts, as a set of nft.
    fn names(&self, hosts: &[usize]) -> String {
        let ports = self.ports.iter().filter(|port| hosts.contains(&port.host));
        let names: Vec<String> = ports.map(Port::name).collect();
        format!("{{ {} }}", names.join(", "))
    }

    /// Ends a partition, if there is one.
    pub fn heal(&self) {
        let switch = &self.switch;
        // A table that is added first is there to be deleted.
        sh(&format!(
            "ip netns exec {switch} nft 'add table bridge partition; delete table bridge partition'"
        ))
        .unwrap();
    }

    /// Stops every process of a host: agents and the engines that they run.
    ///
    /// # Panics
    /// If the host has none.
    pub fn freeze(&self, host: usize) {
        self.signal(host, Signal::STOP);
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// If the host has none.
    pub fn thaw(&self, host: usize) {
        self.signal(host, Signal::CONT);
    }

    fn signal(&self, host: usize, signal: Signal) {
        let sent = processes::signal_all(&self.hosts[host], signal);
        assert!(sent > 0, "no process runs on host {host}");
    }
}

impl Port {
    /// The bridge's interface for it.
    fn name(&self) -> String {
        format!("p{}-{}", self.net, self.host)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Its files hold the devices, which would outlive their namespaces.
        drop(self.cables.take());
        for namespace in self.hosts.iter().chain([&self.switch]) {
            sh(&format!("ip netns del {namespace}")).ok();
        }
    }
}

/// Removes the namespaces of tests that no longer run.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if !Path::new("/proc").join(owner).exists() {
            sh(&format!("ip netns del {name}")).ok();
        }
    }
}

/// Runs a command line; its standard error if it fails.
fn sh(line: &str) -> Result<(), String> {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
