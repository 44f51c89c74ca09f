//! All engines of this machine: how they are, what they have, and which one takes a request.
//!
//! Each engine is asked by its own task, every [`ENGINE_POLL`] and at once when a generation on
//! it failed. What they say becomes one immutable [`Catalog`] on a `watch`, which changes only
//! when something changed that matters to others.
//!
//! An engine that takes the connection and does not answer in time is *busy* while a generation
//! of ours runs there (a synthesis or a long prefill may block its health check), and *down*
//! otherwise. An engine that was found keeps its index for the life of the process, also while
//! it is down, since adverts refer to it.

mod entry;
mod pick;
mod tracked;
mod wire;

pub use pick::{Picked, PickedSpeech};
pub use wire::wire_error;

use super::{Engine, adapter, detect};
use crate::state::SpeedStore;
use entry::Entry;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracked::Tracked;
use unamesh_client::clock;
use unamesh_proto::limits::{MAX_ENGINES, MAX_MODELS, MAX_VOICES};
use unamesh_proto::timeouts::{DETECT_EVERY, ENGINE_POLL, ENGINE_START_POLL, ENGINE_WEDGED};
use unamesh_proto::wire::{EngineAdvert, Health, ModelAdvert, Stats, VoiceAdvert};

/// What this machine offers. `busy` and `queue` of the engines are 0: admission knows them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// In the order of their indices.
    pub engines: Vec<EngineAdvert>,
    /// Of all engines, those of engines that are down included.
    pub models: Vec<ModelAdvert>,
    /// Likewise.
    pub voices: Vec<VoiceAdvert>,
}

/// What one generation showed of an engine's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Tokens of the prompt, the replayed prefix included.
    pub prompt_tokens: u32,
    /// Time to the first token of a model in memory.
    pub ttft: Option<Duration>,
    /// Time to the first token of a model that had to be loaded.
    pub load: Option<Duration>,
    /// Time between tokens.
    pub itl: Option<Duration>,
}

/// How often things happen; tests are faster.
#[derive(Clone, Copy, Debug)]
struct Pace {
    poll: Duration,
    starting: Duration,
    wedged: Duration,
}

const PACE: Pace = Pace {
    poll: ENGINE_POLL,
    starting: ENGINE_START_POLL,
    wedged: ENGINE_WEDGED,
};

/// See the module's docs.
pub struct Registry {
    pace: Pace,
    entries: Mutex<Vec<Entry>>,
    catalog: watch::Sender<Arc<Catalog>>,
    speeds: Arc<SpeedStore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Registry {
    /// Watches `engines` (at most [`MAX_ENGINES`]) and, with `detect`, those that answer on the
    /// standard ports of this machine. Its tasks are tracked by `tasks` and end with `stop`.
    pub fn start(
        engines: Vec<Arc<dyn Engine>>,
        detect: bool,
        speeds: Arc<SpeedStore>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Registry> {
        Registry::start_at(PACE, engines, detect, speeds, tasks, stop)
    }

    fn start_at(
        pace: Pace,
        engines: Vec<Arc<dyn Engine>>,
        detect: bool,
        speeds: Arc<SpeedStore>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Registry> {
        let registry = Arc::new(Registry {
            pace,
            entries: Mutex::default(),
            catalog: watch::Sender::new(Arc::default()),
            speeds,
            tasks,
            stop,
        });
        for engine in engines {
            registry.add(engine);
        }
        registry.publish();
        if detect {
            let this = Arc::clone(&registry);
            registry.tasks.spawn(
                registry
                    .stop
                    .clone()
                    .run_until_cancelled_owned(this.detect()),
            );
        }
        registry
    }

    /// What this machine offers now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// Changes of it. A catalog whose measurements only grew older is no change.
    pub fn changes(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.subscribe()
    }

    /// Takes in what a generation of `model` on engine `index` showed.
    pub fn observe(&self, index: u16, model: &str, sample: Sample) {
        let Some(engine) = self.lock().get(usize::from(index)).map(Entry::engine) else {
            return;
        };
        let now = clock::wall();
        self.speeds.observe(engine.name(), model, now, |speed| {
            if let Some(ttft) = sample.ttft {
                speed.observe_ttft(sample.prompt_tokens, ttft, now);
            }
            if let Some(itl) = sample.itl {
                speed.observe_itl(itl, now);
            }
            if let Some(load) = sample.load {
                speed.observe_load(load, now);
            }
        });
        self.publish();
    }

    /// Since `model` on engine `index` has last spoken or transcribed; `None` if it never did, or
    /// its engine was down since.
    pub fn idle(&self, index: u16, model: &str) -> Option<Duration> {
        let entries = self.lock();
        let entry = entries.get(usize::from(index))?;
        entry.tracked.idle(model)
    }

    /// The model was unloaded: when it was used says nothing any more.
    pub fn forget_use(&self, index: u16, model: &str) {
        if let Some(entry) = self.lock().get(usize::from(index)) {
            entry.tracked.forget(|used| used == model);
        }
    }

    /// Why engines are down, by name; for people.
    pub fn complaints(&self) -> Vec<(String, String)> {
        let entries = self.lock();
        let down = entries
            .iter()
            .filter(|entry| entry.health() == Health::Down);
        down.map(|entry| (entry.engine().name().to_owned(), entry.why_down()))
            .collect()
    }

    fn add(self: &Arc<Self>, engine: Arc<dyn Engine>) {
        let index = {
            let mut entries = self.lock();
            if entries.len() >= MAX_ENGINES {
                tracing::warn!(
                    engine = engine.name(),
                    "ignored: more than {MAX_ENGINES} engines"
                );
                return;
            }
            entries.push(Entry::new(Tracked::new(engine)));
            entries.len() - 1
        };
        let this = Arc::clone(self);
        self.tasks.spawn(
            self.stop
                .clone()
                .run_until_cancelled_owned(this.watch(index)),
        );
    }

    /// Asks engine `index` for ever.
    async fn watch(self: Arc<Self>, index: usize) {
        let Some(tracked) = self
            .lock()
            .get(index)
            .map(|entry| Arc::clone(&entry.tracked))
        else {
            return;
        };
        loop {
            let said = tracked.describe().await;
            let (health, wedged) = {
                let mut entries = self.lock();
                let Some(entry) = entries.get_mut(index) else {
                    return;
                };
                entry.heard(said, Instant::now(), self.pace.wedged)
            };
            self.publish();
            if wedged {
                tracked.wedged();
            }
            let pause = match health {
                Health::Starting => self.pace.starting,
                _ => self.pace.poll,
            };
            // A failure wakes it at once, but not in a loop: what fails at once when asked
            // would keep a core busy.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tracked.failed() => {}
            }
        }
    }

    /// Looks for engines that nobody configured.
    async fn detect(self: Arc<Self>) {
        loop {
            let taken: BTreeSet<u16> = self
                .lock()
                .iter()
                .filter_map(|entry| entry.tracked.local_port())
                .collect();
            for found in detect::standard_ports(&taken).await {
                let (name, url) = (found.name.clone(), found.url.clone());
                match adapter(&found.into_spec()) {
                    Ok(engine) => {
                        tracing::info!(engine = name, %url, "found an engine");
                        self.add(engine);
                        self.publish();
                    }
                    Err(error) => tracing::debug!(engine = name, %error, "found and not usable"),
                }
            }
            tokio::time::sleep(DETECT_EVERY).await;
        }
    }

    fn publish(&self) {
        // Built under the watch's own lock, so that an older view never replaces a newer one.
        self.catalog.send_if_modified(|published| {
            let next = self.view();
            let changed = differs(published, &next);
            *published = Arc::new(next);
            changed
        });
    }

    fn view(&self) -> Catalog {
        let mut next = Catalog::default();
        for (index, entry) in self.lock().iter().enumerate() {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            next.engines.push(entry.advert());
            let room = MAX_MODELS.saturating_sub(next.models.len());
            next.models.extend(entry.models(index).take(room));
            let room = MAX_VOICES.saturating_sub(next.voices.len());
            next.voices.extend(entry.voices(index).take(room));
        }
        self.with_stats(next)
    }

    fn with_stats(&self, mut catalog: Catalog) -> Catalog {
        let now = clock::wall();
        for model in &mut catalog.models {
            if let Some(engine) = catalog.engines.get(usize::from(model.engine)) {
                model.stats = self.speeds.stats(&engine.name, &model.name, now);
            }
        }
        catalog
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Each change leaves the entries whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether others need to hear of it: all but small steps of what was measured.
fn differs(old: &Catalog, new: &Catalog) -> bool {
    let same_model = |(old, new): (&ModelAdvert, &ModelAdvert)| {
        let stats = old.stats;
        let mut plain = new.clone();
        plain.stats = stats;
        *old == plain && !speed_differs(&stats, &new.stats)
    };
    old.engines != new.engines
        || old.voices != new.voices
        || old.models.len() != new.models.len()
        || !old.models.iter().zip(&new.models).all(same_model)
}

fn speed_differs(old: &Stats, new: &Stats) -> bool {
    /// Ranking has a hysteresis of a fifth; half of that is worth a message.
    const STEP: f32 = 0.1;
    let moved = |a: f32, b: f32| (a - b).abs() > STEP * a.abs().max(b.abs());
    (old.samples == 0) != (new.samples == 0)
        || moved(old.ttft_ms, new.ttft_ms)
        || moved(old.ttft_per_ktok_ms, new.ttft_per_ktok_ms)
        || moved(old.itl_ms, new.itl_ms)
        || moved(old.load_ms, new.load_ms)
}

#[cfg(test)]
mod tests;
