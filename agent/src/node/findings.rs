//! What somebody must act on, for `unamesh doctor` and the log: raised once, shown until the
//! agent ends or the cause is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unamesh_client::clock;

/// What is wrong. One text a kind is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Another process runs with this node's key.
    TwinKey,
    /// Something could not be written to the state directory.
    State,
    /// Multicast DNS does not work.
    Mdns,
    /// Gossip does not work.
    Gossip,
    /// The advert was cut, since it would have been too large.
    AdvertCut,
    /// A GPU driver gives no figures.
    Gpu,
}

/// One entry of the list.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Entry {
    /// Which kind.
    pub kind: Finding,
    /// What is wrong and what to do.
    pub text: String,
    /// Milliseconds since 1970, when it was seen first.
    pub since_ms: u64,
}

/// The list. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<Mutex<BTreeMap<Finding, Entry>>>);

impl Findings {
    /// Notes `text`; logs it as an error the first time.
    pub fn raise(&self, kind: Finding, text: impl Into<String>) {
        let text = text.into();
        let mut entries = self.lock();
        let known = entries.get_mut(&kind);
        match known {
            Some(entry) => entry.text = text,
            None => {
                tracing::error!(?kind, "{text}");
                let since_ms = clock::wall().as_millis();
                entries.insert(
                    kind,
                    Entry {
                        kind,
                        text,
                        since_ms,
                    },
                );
            }
        }
    }

    /// The cause is gone.
    pub fn clear(&self, kind: Finding) {
        if self.lock().remove(&kind).is_some() {
            tracing::info!(?kind, "no longer so");
        }
    }

    /// All of them.
    pub fn list(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Finding, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
