//! What happens, as JSON objects for `GET /unamesh/v1/events`: `{"event": ..., "at_ms": ...}`
//! and what belongs to it. Nobody has to listen; a slow listener misses events and is told so.
//!
//! [`EVENTS`] lists them all; the agent's README shows the same table, and a test holds the
//! names in the code to it. What the gateway's client does ([`Activity`]) is passed on by
//! [`pass_on`].

use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use unamesh_client::activity::Activity;
use unamesh_client::clock;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 256;

/// Every event: its name, its fields besides `event` and `at_ms`, and what it means.
pub const EVENTS: &[(&str, &str, &str)] = &[
    (
        "suspect",
        "request peer cause reason silent_ms",
        "a peer that answers is silent, stalls or leaves; a backup is sought",
    ),
    (
        "backup",
        "request peer after_ms hedge",
        "a backup was dispatched, the original is kept; `hedge`: the original may only look hung",
    ),
    (
        "peer_changed",
        "request from to seam gap_ms backup_ttft_ms cause reason",
        "another peer goes on with an answer",
    ),
    (
        "reattached",
        "request peer gap_ms",
        "the same generation goes on over a new connection",
    ),
    (
        "attempt_failed",
        "request peer engine cause reason",
        "an attempt at one engine is over without an answer",
    ),
    (
        "breaker",
        "peer engine state open_ms cause reason",
        "the breaker of an engine is now open (for `open_ms`), half_open (one request tries it) or \
         closed",
    ),
    (
        "hedge_in_vain",
        "request peer requests started refunded in_vain left",
        "a backup's original went on after all; with the numbers of all hedges",
    ),
    (
        "interrupted",
        "request tokens cause reason",
        "an answer broke off after `tokens`, and nobody could go on",
    ),
    (
        "incomplete",
        "request tokens cause reason",
        "a structured answer broke off after `tokens`; it must not be spliced",
    ),
    (
        "asked_again",
        "model tokens again",
        "an incomplete answer that its caller had not seen (it is not streamed) begins anew, for the \
         `again`th time",
    ),
    ("peer_joined", "node name", "a machine is new in the mesh"),
    ("peer_left", "node name", "a machine said goodbye"),
    (
        "peer_suspect",
        "node name silent_ms",
        "a machine is silent; it ranks last, and others are asked",
    ),
    (
        "peer_vouched",
        "node name by",
        "another machine reaches it: it goes on ranking last and is not taken for gone",
    ),
    (
        "peer_down",
        "node name silent_ms cause confirmed_by",
        "a machine counts as gone; `cause`: confirmed (by these peers), no_answer, nobody_to_ask",
    ),
    (
        "peer_back",
        "node name after_ms",
        "it is back, after so long a silence",
    ),
    (
        "peer_forgotten",
        "node name",
        "it was gone for so long that it left the table",
    ),
    (
        "cut_off",
        "peers",
        "all `peers` (so many) fell silent together: this machine is the one that is cut off",
    ),
    (
        "online",
        "after_ms",
        "one of them spoke, so long after `cut_off`",
    ),
    (
        "engines",
        "engines models",
        "an engine's health changed, or models came or went",
    ),
    ("invited", "role uses", "an invitation was opened"),
    (
        "draining",
        "why deadline_ms returns active asking",
        "this machine takes nothing new (`why`: signal, sleep, asked, battery, hot, drill); \
         `returns`: for a while, else it leaves; answers that run here, and that it asked for",
    ),
    ("returned", "", "it takes requests again"),
    (
        "sleeping",
        "active",
        "this machine is about to sleep; its answers move first",
    ),
    (
        "woke",
        "slept_ms noticed_by epoch",
        "this machine was asleep (told by its system, or noticed by its clocks)",
    ),
    (
        "twin_key",
        "node name",
        "two agents of the mesh run with the same key",
    ),
    (
        "lagged",
        "missed",
        "this listener was too slow and missed events",
    ),
];

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Arc<Value>>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Tells the listeners that `event`, one of [`EVENTS`], happened; `fields` is a JSON object.
    pub fn emit(&self, event: &str, mut fields: Value) {
        if self.0.receiver_count() == 0 {
            return;
        }
        if let Some(object) = fields.as_object_mut() {
            object.insert("event".to_owned(), json!(event));
            object.insert("at_ms".to_owned(), json!(clock::wall().as_millis()));
        }
        // Fails only if the last listener went in this moment.
        let _ = self.0.send(Arc::new(fields));
    }

    /// Everything from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Value>> {
        self.0.subscribe()
    }
}

/// Passes on what the client does, until `stop` or its end.
pub(super) async fn pass_on(
    mut activity: broadcast::Receiver<Activity>,
    events: Events,
    stop: CancellationToken,
) {
    loop {
        match stop.run_until_cancelled(activity.recv()).await {
            Some(Ok(activity)) => {
                let fields = serde_json::to_value(&activity).unwrap_or_default();
                let event = fields["event"].as_str().unwrap_or_default().to_owned();
                events.emit(&event, fields);
            }
            Some(Err(RecvError::Lagged(missed))) => {
                events.emit("lagged", json!({ "missed": missed }));
            }
            Some(Err(RecvError::Closed)) | None => return,
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
