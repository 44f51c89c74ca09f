//! What a client does behind an answer: suspicions, backups, migrations, reattachments,
//! failures and breakers, as typed events for logs, consoles and tests.
//!
//! Every [`Activity`] is logged once (level info, the same fields) and sent to whoever called
//! [`MeshClient::activity`](crate::client::MeshClient::activity). They arise when something goes
//! wrong or changes, never per token, and hold no prompt and no answer. As JSON
//! ([`serde::Serialize`]) each is one flat object: `event` is the variant in snake_case, times
//! end in `_ms`, `cause` is the stable name of a [`Reason`] and `reason` its words.

use crate::client::PeerRef;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::fmt;
use std::time::Duration;
use tracing::info;
use unamesh_proto::breaker::State;
use unamesh_proto::hedge::Counts;
use unamesh_proto::session::{Reason, Seam};

/// Activities that a slow listener may be behind; then it misses the oldest and is told how
/// many. The sixteen streams of a machine that froze make some hundred at once.
pub const BACKLOG: usize = 256;

/// Names one request in activities and logs. Unique enough to tell the requests of a day apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RequestId(u32);

impl RequestId {
    /// A new one.
    pub(crate) fn random() -> Self {
        RequestId(rand::random())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that happened. Engines go by the names that their machines advertise.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activity {
    /// An answering peer is silent, stalls or says that it leaves: a backup is sought.
    Suspect {
        /// The request that waits.
        request: RequestId,
        /// Who is suspected.
        peer: PeerRef,
        /// Of what.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
        /// Since its last frame.
        #[serde(rename = "silent_ms", serialize_with = "ms")]
        silent: Duration,
    },
    /// A backup was dispatched beside the peer in trouble, which is kept.
    Backup {
        /// The request.
        request: RequestId,
        /// Who is asked.
        peer: PeerRef,
        /// After the last frame of the original.
        #[serde(rename = "after_ms", serialize_with = "ms")]
        after: Duration,
        /// The original may only look hung, so that two engines may work for nothing.
        hedge: bool,
    },
    /// Another peer goes on.
    PeerChanged {
        /// The request.
        request: RequestId,
        /// Who answered until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// How well the parts fit.
        seam: Seam,
        /// From the last token before to the first after.
        #[serde(rename = "gap_ms", serialize_with = "ms")]
        gap: Duration,
        /// Of it, from the backup's dispatch to its first token.
        #[serde(rename = "backup_ttft_ms", serialize_with = "ms")]
        backup_ttft: Duration,
        /// Why.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// The same generation goes on over a new connection: nothing was computed again.
    Reattached {
        /// The request.
        request: RequestId,
        /// Who answers, before and after.
        peer: PeerRef,
        /// From the last token before to the first after.
        #[serde(rename = "gap_ms", serialize_with = "ms")]
        gap: Duration,
    },
    /// An attempt at one engine is over without an answer.
    AttemptFailed {
        /// The request, which may go on elsewhere.
        request: RequestId,
        /// Whose.
        peer: PeerRef,
        /// Its engine.
        engine: String,
        /// Why.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// The breaker of an engine opened, closed, or lets one request try it.
    Breaker {
        /// Whose.
        peer: PeerRef,
        /// Its engine.
        engine: String,
        /// How it stands now.
        #[serde(flatten, serialize_with = "standing")]
        state: State,
        /// What is held against it; `None` once it is closed.
        #[serde(flatten, serialize_with = "words_if_any")]
        reason: Option<Reason>,
    },
    /// A hedge is over and its original went on: that was extra load.
    HedgeInVain {
        /// The request.
        request: RequestId,
        /// Who worked for nothing.
        peer: PeerRef,
        /// What came of all hedges so far.
        #[serde(flatten)]
        counts: Counts,
        /// Hedges that may start now.
        left: u32,
    },
    /// Another peer speaks on.
    SpeakerChanged {
        /// The text.
        request: RequestId,
        /// Who spoke until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// In the same voice.
        same_voice: bool,
        /// From the last sound received to the first of the other peer.
        #[serde(rename = "gap_ms", serialize_with = "ms")]
        gap: Duration,
        /// Sound that was there meanwhile.
        #[serde(rename = "lead_ms", serialize_with = "ms")]
        lead: Duration,
        /// Why.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// Another peer listens on.
    ListenerChanged {
        /// The utterance.
        request: RequestId,
        /// Who listened until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// Why.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// An answer broke off and nobody could go on.
    Interrupted {
        /// The request.
        request: RequestId,
        /// Tokens that were delivered.
        tokens: u32,
        /// The last reason.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// Structured output or a tool call broke off and must not be spliced.
    Incomplete {
        /// The request.
        request: RequestId,
        /// Tokens that were delivered.
        tokens: u32,
        /// The last reason.
        #[serde(flatten, serialize_with = "words")]
        reason: Reason,
    },
    /// An incomplete answer is asked for again, whole: its caller had seen nothing of it.
    AskedAgain {
        /// The model.
        model: String,
        /// Tokens of the answer before, which are dropped.
        tokens: u32,
        /// How often that makes.
        again: u32,
    },
}

impl Activity {
    /// Writes it to the log, with the fields that it has as JSON.
    pub(crate) fn log(&self) {
        match self {
            Activity::Suspect {
                request,
                peer,
                reason,
                silent,
            } => {
                info!(%request, peer = %peer.name, %reason, silent_ms = millis(*silent), "suspect");
            }
            Activity::Backup {
                request,
                peer,
                after,
                hedge,
            } => {
                info!(%request, peer = %peer.name, after_ms = millis(*after), hedge, "backup");
            }
            Activity::PeerChanged {
                request,
                from,
                to,
                seam,
                gap,
                backup_ttft,
                reason,
            } => info!(
                %request, from = %from.name, to = %to.name, ?seam, gap_ms = millis(*gap),
                backup_ttft_ms = millis(*backup_ttft), %reason, "peer_changed"
            ),
            Activity::Reattached { request, peer, gap } => {
                info!(%request, peer = %peer.name, gap_ms = millis(*gap), "reattached");
            }
            Activity::AttemptFailed {
                request,
                peer,
                engine,
                reason,
            } => info!(%request, peer = %peer.name, engine, %reason, "attempt_failed"),
            Activity::Breaker {
                peer,
                engine,
                state,
                reason,
            } => {
                let reason = reason.as_ref().map(tracing::field::display);
                info!(peer = %peer.name, engine, state = state.name(), reason, "breaker");
            }
            Activity::HedgeInVain {
                request,
                peer,
                counts,
                left,
            } => info!(
                %request, peer = %peer.name, requests = counts.requests, started = counts.started,
                in_vain = counts.in_vain, left, "hedge_in_vain"
            ),
            Activity::SpeakerChanged {
                request,
                from,
                to,
                same_voice,
                gap,
                lead,
                reason,
            } => info!(
                %request, from = %from.name, to = %to.name, same_voice, gap_ms = millis(*gap),
                lead_ms = millis(*lead), %reason, "speaker_changed"
            ),
            Activity::ListenerChanged {
                request,
                from,
                to,
                reason,
            } => info!(%request, from = %from.name, to = %to.name, %reason, "listener_changed"),
            Activity::Interrupted {
                request,
                tokens,
                reason,
            } => info!(%request, tokens, %reason, "interrupted"),
            Activity::Incomplete {
                request,
                tokens,
                reason,
            } => info!(%request, tokens, %reason, "incomplete"),
            Activity::AskedAgain {
                model,
                tokens,
                again,
            } => info!(model, tokens, again, "asked_again"),
        }
    }
}

/// In milliseconds with microseconds behind the point.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(millis(*time))
}

fn words<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("cause", reason.name())?;
    map.serialize_entry("reason", &reason.to_string())?;
    map.end()
}

fn words_if_any<S: Serializer>(why: &Option<Reason>, serializer: S) -> Result<S::Ok, S::Error> {
    match why {
        Some(why) => words(why, serializer),
        None => serializer.serialize_map(Some(0))?.end(),
    }
}

fn standing<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("state", state.name())?;
    if let State::Open(left) = state {
        map.serialize_entry("open_ms", &millis(*left))?;
    }
    map.end()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_proto::NodeId;
    use unamesh_proto::wire::ErrorCode;

    fn peer() -> PeerRef {
        PeerRef {
            node: NodeId([7; 32]),
            name: "tower".into(),
        }
    }

    #[test]
    fn each_is_one_flat_object() {
        let suspect = Activity::Suspect {
            request: RequestId(0xab),
            peer: peer(),
            reason: Reason::Silence,
            silent: Duration::from_micros(150_250),
        };
        assert_eq!(
            serde_json::to_value(&suspect).unwrap(),
            serde_json::json!({
                "event": "suspect", "request": "000000ab",
                "peer": {"node": NodeId([7; 32]), "name": "tower"},
                "cause": "silence", "reason": "it fell silent", "silent_ms": 150.25,
            })
        );
    }

    #[test]
    fn a_breaker_says_how_it_stands() {
        let breaker = |state, reason| {
            let (peer, engine) = (peer(), "llama".to_owned());
            let activity = Activity::Breaker {
                peer,
                engine,
                state,
                reason,
            };
            serde_json::to_value(activity).unwrap()
        };
        let reason = Reason::Refused(ErrorCode::EngineFailed);
        let open = breaker(State::Open(Duration::from_secs(2)), Some(reason));
        assert_eq!(
            (&open["state"], &open["open_ms"], &open["cause"]),
            (&"open".into(), &2000.0.into(), &"refused".into())
        );
        let closed = breaker(State::Closed, None);
        assert_eq!(
            (&closed["state"], closed.get("reason")),
            (&"closed".into(), None)
        );
    }
}
