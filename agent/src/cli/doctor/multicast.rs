//! Multicast DNS, tried for real: announce a node of a mesh that does not exist, and listen
//! for it through sockets of our own.

use super::Finding;
use rand::Rng;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use unamesh_client::mdns::{self, Announcement, Announcer, MdnsError};
use unamesh_proto::wire::Role;
use unamesh_proto::{MeshId, NodeId};

/// An announcement is heard within milliseconds; lost ones are repeated after a second.
const WAIT: Duration = Duration::from_secs(3);

/// Adds a finding; whether multicast works (`None`: it is switched off).
pub(super) async fn check(enabled: bool, findings: &mut Vec<Finding>) -> Option<bool> {
    if !enabled {
        findings.push(Finding::fine(
            "multicast",
            "multicast DNS is switched off (mesh.mdns = false); seeds find the others",
        ));
        return None;
    }
    let finding = match heard().await {
        Ok(true) => Finding::fine(
            "multicast",
            "multicast DNS works (an announcement was sent and heard)",
        ),
        Ok(false) => filtered(
            "a multicast DNS announcement was sent and not heard: UDP port 5353 is filtered",
        ),
        Err(error) => filtered(&error.to_string()),
    };
    let works = finding.fix.is_empty();
    findings.push(finding);
    Some(works)
}

async fn heard() -> Result<bool, MdnsError> {
    let mut random = [0; 64];
    rand::rng().fill(&mut random);
    let (mesh, node) = random.split_at(32);
    let mesh = MeshId(mesh.try_into().unwrap_or_default());
    let node = NodeId(node.try_into().unwrap_or_default());
    let (tx, mut hints) = mpsc::channel(4);
    let _browser = mdns::browse(mesh, tx)?;
    let announcer = Announcer::start(&Announcement {
        mesh,
        node,
        name: "unamesh doctor".to_owned(),
        role: Role::Client,
        // The discard port: nobody dials it, and nobody knows this mesh.
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9)),
    })?;
    let heard = tokio::time::timeout(WAIT, async {
        while let Some(hint) = hints.recv().await {
            if hint.node == node {
                return true;
            }
        }
        false
    })
    .await;
    announcer.goodbye().await;
    Ok(heard.unwrap_or(false))
}

fn filtered(message: &str) -> Finding {
    let finding = Finding::warn("multicast", message);
    let finding = if cfg!(target_os = "linux") {
        finding
            .fix("sudo ufw allow 5353/udp")
            .fix("sudo firewall-cmd --permanent --add-service=mdns && sudo firewall-cmd --reload")
    } else if cfg!(target_os = "macos") {
        finding.fix("System Settings > Privacy & Security > Local Network: allow unamesh")
    } else {
        finding.fix("allow unamesh in the firewall for private networks")
    };
    finding.fix("name a machine instead: unamesh up --seed HOST:11400")
}
