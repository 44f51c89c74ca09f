//! Where this machine can be reached, for adverts, mDNS and invitations.

use std::net::{IpAddr, SocketAddr};
use unamesh_proto::limits::MAX_ADDRS;
use unamesh_proto::wire::{Addr, PathKind};

/// The addresses of this machine that others can dial when a socket is bound to `listen`:
/// the home's network first, then tailnets, then others; bridges of virtual machines and
/// containers last, since every machine has the same ones. Loopback only if there is nothing
/// else (a laptop without network still finds a second agent on itself). At most
/// [`MAX_ADDRS`].
pub fn own(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the network interfaces");
        Vec::new()
    });
    let mut found: Vec<(u8, IpAddr)> = interfaces
        .iter()
        .filter(|i| i.is_oper_up() || i.is_loopback())
        .map(|i| (i.name.as_str(), i.ip()))
        .filter(|(_, ip)| listen.is_ipv6() || ip.is_ipv4())
        .filter_map(|(name, ip)| rank(name, ip).map(|rank| (rank, ip)))
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    if found.iter().any(|(_, ip)| !ip.is_loopback()) {
        found.retain(|(_, ip)| !ip.is_loopback());
    }
    found
        .into_iter()
        .map(|(_, ip)| ip)
        .take(MAX_ADDRS)
        .collect()
}

/// As [`own`], with a port, as adverts carry it.
pub fn adverts(listen: IpAddr, port: u16) -> Vec<Addr> {
    own(listen)
        .into_iter()
        .map(|ip| Addr::new(SocketAddr::new(ip, port)))
        .collect()
}

/// Smaller is better; `None`: of no use to others.
fn rank(interface: &str, ip: IpAddr) -> Option<u8> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        // Its scope means nothing on another machine; mDNS finds it where it works.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => return None,
        IpAddr::V6(_) => false,
    };
    let bridge = [
        "docker", "br-", "virbr", "vmnet", "vboxnet", "cni", "podman", "lxc",
    ];
    let kind = Addr::new(SocketAddr::new(ip, 0)).kind;
    Some(match kind {
        PathKind::Loopback => 9,
        _ if bridge.iter().any(|prefix| interface.starts_with(prefix)) => 8,
        PathKind::Lan if link_local => 4,
        PathKind::Lan if ip.is_ipv4() => 0,
        PathKind::Lan => 1,
        PathKind::Tailnet => 2,
        _ => 3,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_home_comes_first_and_bridges_last() {
        let rank = |name: &str, ip: &str| rank(name, ip.parse().unwrap());
        let order = [
            rank("eth0", "192.168.1.4"),
            rank("eth0", "fd00::4"),
            rank("tailscale0", "100.101.2.3"),
            rank("eth0", "2001:db8::1"),
            rank("eth0", "169.254.3.4"),
            rank("docker0", "172.17.0.1"),
            rank("lo", "127.0.0.1"),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(rank("eth0", "fe80::1"), None);
    }

    #[test]
    fn a_bound_address_is_the_only_one() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(own(ip), [ip]);
        let all = own("::".parse().unwrap());
        assert!(!all.is_empty() && all.len() <= MAX_ADDRS);
    }
}
