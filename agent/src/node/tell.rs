//! What happens to peers, for people: each event of the table as a line of the log and as an
//! event of the local API, with its reason and timing.

use super::events::Events;
use serde_json::{Value, json};
use std::time::Duration;
use tracing::{debug, info};
use unamesh_proto::NodeId;
use unamesh_proto::table::{Snapshot, TableEvent, Verdict};

/// Tells `event`. Names are looked up in `snapshots`, the newest first: who left is in an
/// older one only.
pub(super) fn tell(event: &TableEvent, snapshots: [Option<&Snapshot>; 2], events: &Events) {
    let name = |node: &NodeId| {
        let peers = snapshots.iter().flatten().filter_map(|s| s.get(node));
        peers
            .map(|p| p.advert.name.clone())
            .next()
            .unwrap_or_default()
    };
    let peer = |node: &NodeId| json!({ "node": node, "name": name(node) });
    let emit = |what: &str, node: &NodeId, more: Value| {
        let mut fields = peer(node);
        if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), more) {
            fields.extend(more);
        }
        events.emit(what, fields);
    };
    match event {
        TableEvent::Joined(node) => {
            info!(node = %node.short(), name = name(node), "peer_joined");
            emit("peer_joined", node, json!({}));
        }
        TableEvent::Left(node) => {
            info!(node = %node.short(), name = name(node), "peer_left");
            emit("peer_left", node, json!({}));
        }
        TableEvent::Forgotten(node) => {
            debug!(node = %node.short(), name = name(node), "peer_forgotten");
            emit("peer_forgotten", node, json!({}));
        }
        TableEvent::Suspect { node, silent } => {
            let silent_ms = millis(*silent);
            info!(node = %node.short(), name = name(node), silent_ms, "peer_suspect");
            emit("peer_suspect", node, json!({ "silent_ms": silent_ms }));
        }
        TableEvent::Vouched { node, by } => {
            info!(node = %node.short(), name = name(node), by = name(by), "peer_vouched");
            emit("peer_vouched", node, json!({ "by": peer(by) }));
        }
        TableEvent::Down {
            node,
            silent,
            verdict,
        } => {
            let (silent_ms, (cause, by)) = (millis(*silent), opinion(verdict));
            let names: Vec<String> = by.iter().map(name).collect();
            info!(
                node = %node.short(), name = name(node), silent_ms, cause,
                confirmed_by = names.join(","), "peer_down"
            );
            let by: Vec<Value> = by.iter().map(peer).collect();
            let more = json!({ "silent_ms": silent_ms, "cause": cause, "confirmed_by": by });
            emit("peer_down", node, more);
        }
        TableEvent::Back { node, after } => {
            let after_ms = millis(*after);
            info!(node = %node.short(), name = name(node), after_ms, "peer_back");
            emit("peer_back", node, json!({ "after_ms": after_ms }));
        }
        TableEvent::CutOff { peers } => {
            info!(peers, "cut_off");
            events.emit("cut_off", json!({ "peers": peers }));
        }
        TableEvent::Online { after } => {
            let after_ms = millis(*after);
            info!(after_ms, "online");
            events.emit("online", json!({ "after_ms": after_ms }));
        }
        // The question is not news; the answer will be. Twins are the verifier's to report.
        TableEvent::Doubt(_) | TableEvent::Twin(_) => {}
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A stable name for what others said, and who confirmed it.
fn opinion(verdict: &Verdict) -> (&'static str, &[NodeId]) {
    match verdict {
        Verdict::Confirmed(by) => ("confirmed", by),
        Verdict::NoAnswer => ("no_answer", &[]),
        Verdict::NobodyToAsk => ("nobody_to_ask", &[]),
    }
}
