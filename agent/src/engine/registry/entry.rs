//! What is known of one engine, and what its latest word makes of it.

use super::tracked::Tracked;
use crate::engine::speech::Voice;
use crate::engine::{Engine, EngineError, EngineInfo};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use unamesh_proto::limits::MAX_NAME;
use unamesh_proto::wire::{EngineAdvert, Health, ModelAdvert, Residency, VoiceAdvert};

/// One engine.
pub struct Entry {
    /// It, with its generations counted.
    pub tracked: Arc<Tracked>,
    health: Health,
    slots: u16,
    models: Vec<ModelAdvert>,
    voices: Vec<Voice>,
    why: Option<EngineError>,
    /// Takes connections and does not answer since then.
    mute_since: Option<Instant>,
}

impl Entry {
    /// Nothing is known yet.
    pub fn new(tracked: Arc<Tracked>) -> Self {
        Entry {
            tracked,
            health: Health::Starting,
            slots: 1,
            models: Vec::new(),
            voices: Vec::new(),
            why: None,
            mute_since: None,
        }
    }

    /// For requests.
    pub fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.tracked) as Arc<dyn Engine>
    }

    /// How it fares.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes in its latest word: how it fares now, and whether it is wedged (mute for `wedged`).
    pub fn heard(
        &mut self,
        said: Result<EngineInfo, EngineError>,
        now: Instant,
        wedged: Duration,
    ) -> (Health, bool) {
        let ours = self.tracked.running();
        let mute = matches!(said, Err(EngineError::Busy { .. }));
        let next = match said {
            Ok(info) => {
                self.why = None;
                let health = match info.health {
                    // Full with our own requests: admission counts those, it is no news.
                    Health::Busy if ours >= u32::from(info.slots) => Health::Ok,
                    health => health,
                };
                self.slots = info.slots;
                self.take_models(info.models, health);
                // One that loads has not lost its voices.
                if health != Health::Starting || !info.voices.is_empty() {
                    self.voices = info.voices;
                    self.voices.retain(Voice::fits);
                }
                health
            }
            Err(EngineError::Busy { .. }) if ours > 0 => Health::Busy,
            Err(error) => {
                self.why = Some(error);
                // It may have lost what it had in memory.
                self.tracked.forget(|_| true);
                Health::Down
            }
        };
        self.log(next);
        self.health = next;
        (next, self.is_wedged(mute && ours == 0, now, wedged))
    }

    /// A loading engine names no models yet; those it had are the ones that it loads.
    fn take_models(&mut self, models: Vec<ModelAdvert>, health: Health) {
        if health == Health::Starting && models.is_empty() {
            for model in &mut self.models {
                model.residency = Residency::Loading;
            }
            return;
        }
        self.models = models;
        self.models
            .retain(|model| model.name.len() <= MAX_NAME && !model.name.is_empty());
    }

    fn is_wedged(&mut self, mute: bool, now: Instant, limit: Duration) -> bool {
        if !mute {
            self.mute_since = None;
            return false;
        }
        let since = *self.mute_since.get_or_insert(now);
        let wedged = now.duration_since(since) >= limit;
        if wedged {
            self.mute_since = Some(now);
        }
        wedged
    }

    fn log(&self, next: Health) {
        if next == self.health {
            return;
        }
        let engine = self.tracked.name();
        match (&self.why, next) {
            (Some(why), Health::Down) => tracing::warn!(engine, %why, "engine is down"),
            _ => tracing::info!(engine, health = %next, "engine"),
        }
    }

    /// For people.
    pub fn why_down(&self) -> String {
        let name = self.tracked.name();
        match &self.why {
            Some(EngineError::Busy { .. }) => {
                format!("{name} takes connections and does not answer: it hangs, restart it")
            }
            Some(error) => error.to_string(),
            None => format!("{name} was not asked yet"),
        }
    }

    /// For the catalog.
    pub fn advert(&self) -> EngineAdvert {
        EngineAdvert {
            name: self.tracked.name().to_owned(),
            kind: self.tracked.kind(),
            health: self.health,
            slots: self.slots,
            busy: 0,
            queue: 0,
        }
    }

    /// Its models, as of engine number `index`.
    pub fn models(&self, index: u16) -> impl Iterator<Item = ModelAdvert> {
        self.models.iter().map(move |model| ModelAdvert {
            engine: index,
            ..model.clone()
        })
    }

    /// Its voices, as of engine number `index`.
    pub fn voices(&self, index: u16) -> impl Iterator<Item = VoiceAdvert> {
        self.voices.iter().map(move |voice| VoiceAdvert {
            engine: index,
            name: voice.name.clone(),
            language: voice.language.clone(),
        })
    }
}
