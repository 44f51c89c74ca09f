//! Measured speeds of every (engine, model), kept over restarts.
//!
//! [`unamesh_proto::estimate::Speed`] does the arithmetic. This store keys it, bounds it,
//! and writes it down: at most every [`SAVE_EVERY`] and when the agent ends, never on the
//! path of a token.

use super::keep::keep_saved;
use super::{StateDir, StateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use unamesh_proto::estimate::Speed;
use unamesh_proto::wire::Stats;
use unamesh_proto::{Wall, limits};

const FILE: &str = "speeds.json";

/// New measurements are written down this often: losing a minute of them costs nothing,
/// waking a sleeping disk for each would.
pub const SAVE_EVERY: Duration = Duration::from_secs(60);

/// As many as adverts of four engine sets carry: models come and go, the store forgets the
/// one measured longest ago.
const MAX_ENTRIES: usize = 4 * limits::MAX_MODELS;

/// What was measured on this machine.
#[derive(Debug)]
pub struct SpeedStore {
    state: Option<StateDir>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By engine and model.
    entries: BTreeMap<(String, String), Entry>,
    changed: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Entry {
    speed: Speed,
    /// Wall clock of the last sample, milliseconds.
    at_ms: u64,
}

/// One entry as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Row {
    engine: String,
    model: String,
    #[serde(flatten)]
    entry: Entry,
}

impl SpeedStore {
    /// What `state` remembers; a damaged file is moved away and measuring starts afresh.
    pub fn load(state: &StateDir) -> Arc<Self> {
        let rows: Vec<Row> = state.read_or_fresh(FILE).unwrap_or_default();
        let entries = rows
            .into_iter()
            .map(|row| ((row.engine, row.model), row.entry))
            .collect();
        let mut inner = Inner {
            entries,
            changed: false,
        };
        inner.bound();
        Arc::new(SpeedStore {
            state: Some(state.clone()),
            inner: Mutex::new(inner),
        })
    }

    /// Measures, keeps nothing.
    pub fn in_memory() -> Arc<Self> {
        Arc::new(SpeedStore {
            state: None,
            inner: Mutex::default(),
        })
    }

    /// Adds samples to the entry of `model` on `engine` (its name, which outlives indices):
    /// `store.observe(engine, model, now, |s| s.observe_ttft(prompt_tokens, ttft, now))`.
    pub fn observe(&self, engine: &str, model: &str, now: Wall, add: impl FnOnce(&mut Speed)) {
        let mut inner = self.lock();
        let entry = inner
            .entries
            .entry((engine.to_owned(), model.to_owned()))
            .or_default();
        add(&mut entry.speed);
        entry.at_ms = now.as_millis();
        inner.changed = true;
        inner.bound();
    }

    /// What is known of `model` on `engine`; all zero if nothing is.
    pub fn stats(&self, engine: &str, model: &str, now: Wall) -> Stats {
        let inner = self.lock();
        let key = (engine.to_owned(), model.to_owned());
        inner
            .entries
            .get(&key)
            .map(|entry| entry.speed.stats(now))
            .unwrap_or_default()
    }

    /// Writes the measurements down, if there are new ones. Blocks on the disk.
    ///
    /// # Errors
    /// Nothing is lost while the agent runs; the next call tries again.
    pub fn save(&self) -> Result<(), StateError> {
        let Some(state) = &self.state else {
            return Ok(());
        };
        let bytes = {
            let mut inner = self.lock();
            if !std::mem::take(&mut inner.changed) {
                return Ok(());
            }
            let rows: Vec<Row> = inner
                .entries
                .iter()
                .map(|((engine, model), entry)| Row {
                    engine: engine.clone(),
                    model: model.clone(),
                    entry: entry.clone(),
                })
                .collect();
            serde_json::to_vec(&rows)
        };
        let path = state.file(FILE);
        let written = bytes
            .map_err(|e| StateError::Corrupt {
                path,
                reason: e.to_string(),
            })
            .and_then(|bytes| state.write(FILE, &bytes));
        if written.is_err() {
            self.lock().changed = true;
        }
        written
    }

    /// Saves every [`SAVE_EVERY`] until `stop`, then once more. The node owns the task.
    pub async fn keep_saved(self: Arc<Self>, stop: CancellationToken) {
        let save = move || self.save();
        keep_saved("measured speeds", SAVE_EVERY, save, stop).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves the map whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn bound(&mut self) {
        while self.entries.len() > MAX_ENTRIES {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, e)| e.at_ms)
                .map(|(k, _)| k.clone());
            let Some(oldest) = oldest else { break };
            self.entries.remove(&oldest);
        }
    }
}
