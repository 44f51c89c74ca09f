//! Three hosts on one switch, as network namespaces: own interfaces, own loopback, own ports,
//! real multicast between them. Needs root, `ip` and `nft`.
//!
//! Names carry the id of the test process, and everything hangs on the namespaces, so deleting
//! them deletes it all. A lab that a killed test left behind is removed by the next one.

use crate::http::Net;
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

/// Hosts `0..n` with the addresses 10.77.0.1, 10.77.0.2, … on one bridge.
pub struct Lab {
    switch: String,
    hosts: Vec<Arc<str>>,
}

impl Lab {
    /// Builds one, or tells (`None`) that [`SKIP`] is set.
    ///
    /// # Panics
    /// If namespaces cannot be made, with the reason and the way out.
    #[must_use]
    pub fn new(hosts: usize) -> Option<Self> {
        if std::env::var(SKIP).is_ok_and(|value| value == "1") {
            eprintln!("SKIPPED: {SKIP}=1");
            return None;
        }
        sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = |part: &str| format!("{PREFIX}{}-{number}{part}", std::process::id());
        let lab = Self {
            switch: name("s"),
            hosts: (0..hosts)
                .map(|host| name(&format!("h{host}")).into())
                .collect(),
        };
        if let Err(reason) = lab.build() {
            panic!(
                "no network namespaces here: {reason}\nThis test needs root and the packages \
                 iproute2 and nftables. To go without it: {SKIP}=1"
            );
        }
        Some(lab)
    }

    fn build(&self) -> Result<(), String> {
        let switch = &self.switch;
        sh(&format!("ip netns add {switch}"))?;
        // Without snooping the bridge floods multicast, as a simple home switch does.
        sh(&format!(
            "ip -n {switch} link add br0 type bridge mcast_snooping 0"
        ))?;
        sh(&format!("ip -n {switch} link set br0 up"))?;
        for (index, host) in self.hosts.iter().enumerate() {
            let addr = self.addr(index);
            sh(&format!("ip netns add {host}"))?;
            sh(&format!(
                "ip link add eth0 netns {host} type veth peer name p{index} netns {switch}"
            ))?;
            sh(&format!("ip -n {switch} link set p{index} master br0 up"))?;
            // Duplicate address detection would hold back the link-local address for 1.5 s,
            // which a machine that is already on the network has behind it.
            sh(&format!(
                "ip netns exec {host} sysctl -qw net.ipv6.conf.eth0.accept_dad=0"
            ))?;
            sh(&format!("ip -n {host} addr add {addr}/24 brd + dev eth0"))?;
            sh(&format!("ip -n {host} link set lo up"))?;
            sh(&format!("ip -n {host} link set eth0 up"))?;
        }
        Ok(())
    }

    /// Where host `index` makes its sockets.
    #[must_use]
    pub fn net(&self, index: usize) -> Net {
        Net::Namespace(Arc::clone(&self.hosts[index]))
    }

    /// Its address on the switch.
    #[must_use]
    pub fn addr(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(index + 1).unwrap())
    }

    /// Pulls the cable of host `index`: nothing gets in or out, nobody is told.
    pub fn unplug(&self, index: usize) {
        let switch = &self.switch;
        // Not `link set down`, which the host itself would notice.
        sh(&format!(
            "ip netns exec {switch} nft add table bridge cut{index}"
        ))
        .unwrap();
        for hook in [
            "input iifname",
            "forward iifname",
            "forward oifname",
            "output oifname",
        ] {
            let (chain, end) = hook.split_once(' ').unwrap();
            sh(&format!(
                "ip netns exec {switch} nft 'add chain bridge cut{index} {chain} \
                 {{ type filter hook {chain} priority 0; }}; \
                 add rule bridge cut{index} {chain} {end} p{index} drop'"
            ))
            .unwrap();
        }
    }

    /// Plugs it in again.
    pub fn plug(&self, index: usize) {
        sh(&format!(
            "ip netns exec {} nft delete table bridge cut{index}",
            self.switch
        ))
        .unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self
            .hosts
            .iter()
            .map(AsRef::as_ref)
            .chain([self.switch.as_str()])
        {
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
