//! Which engine of this machine takes a request.

use super::{Catalog, Registry};
use crate::engine::Engine;
use std::sync::Arc;
use unamesh_proto::rank::{distance, speech::has_voice};
use unamesh_proto::timeouts::ENGINE_POLL;
use unamesh_proto::wire::{ErrorCode, Health, ModelAdvert, ModelKind, VoiceAdvert, WireError};

/// Names that are shown instead of one that is not here.
const SHOWN: usize = 5;

/// An engine for a request.
#[derive(Clone)]
pub struct Picked {
    /// Takes the request.
    pub engine: Arc<dyn Engine>,
    /// Its index in the catalog.
    pub index: u16,
    /// The model as advertised.
    pub model: ModelAdvert,
}

/// An engine that speaks, and how.
#[derive(Clone)]
pub struct PickedSpeech {
    /// It.
    pub engine: Picked,
    /// The voice as it calls it; empty = its default, whose name it does not tell.
    pub voice: String,
}

impl Registry {
    /// The engine for `model`: number `engine`, or with `u16::MAX` the best that has it.
    ///
    /// # Errors
    /// `unknown_model` with the nearest names, or `engine_down`.
    pub fn pick(&self, model: &str, engine: u16) -> Result<Picked, WireError> {
        let catalog = self.catalog();
        let named =
            |m: &ModelAdvert| m.name == model || m.name.strip_suffix(":latest") == Some(model);
        self.best(&catalog, engine, named)
            .unwrap_or_else(|| Err(unknown_model(model, catalog.models.iter())))
    }

    /// The engine that speaks with `model` (empty = any) in `voice` (empty = its default),
    /// likewise. It has that voice, or lists none and is asked for it: a voice is never another
    /// one than was asked for.
    ///
    /// # Errors
    /// `unknown_model` with the nearest names of models, or with those of voices and the field
    /// `voice`; `engine_down`.
    pub fn pick_speech(
        &self,
        model: &str,
        voice: &str,
        engine: u16,
    ) -> Result<PickedSpeech, WireError> {
        let catalog = self.catalog();
        let named = |m: &ModelAdvert| {
            m.kind == ModelKind::Tts && (model.is_empty() || m.name.eq_ignore_ascii_case(model))
        };
        let fits = |m: &ModelAdvert| named(m) && catalog.voice(m.engine, voice).is_some();
        if let Some(picked) = self.best(&catalog, engine, fits) {
            let engine = picked?;
            let voice = catalog.voice(engine.index, voice).unwrap_or_default();
            return Ok(PickedSpeech { engine, voice });
        }
        let speaks = |m: &&ModelAdvert| named(m) && (engine == u16::MAX || m.engine == engine);
        Err(match catalog.models.iter().find(speaks) {
            Some(_) => unknown_voice(voice, &catalog.voices),
            None => {
                let all = catalog.models.iter();
                unknown_model(model, all.filter(|m| m.kind == ModelKind::Tts))
            }
        })
    }

    /// The engine that transcribes with `model` (empty = any), likewise.
    ///
    /// # Errors
    /// As [`Registry::pick`].
    pub fn pick_hearing(&self, model: &str, engine: u16) -> Result<Picked, WireError> {
        let catalog = self.catalog();
        let hears = |m: &ModelAdvert| m.kind == ModelKind::Stt;
        let named = |m: &ModelAdvert| model.is_empty() || m.name.eq_ignore_ascii_case(model);
        self.best(&catalog, engine, |m| hears(m) && named(m))
            .unwrap_or_else(|| {
                let all = catalog.models.iter();
                Err(unknown_model(model, all.filter(|m| hears(m))))
            })
    }

    /// The best model that `suits`, on engine number `engine` or any with `u16::MAX`: of the
    /// healthiest engine, the readiest. `None` if there is none.
    ///
    /// # Errors
    /// `engine_down`: those that suit are.
    fn best(
        &self,
        catalog: &Catalog,
        engine: u16,
        suits: impl Fn(&ModelAdvert) -> bool,
    ) -> Option<Result<Picked, WireError>> {
        let health = |m: &ModelAdvert| catalog.engines.get(usize::from(m.engine)).map(|e| e.health);
        let found = catalog
            .models
            .iter()
            .filter(|m| suits(m) && (engine == u16::MAX || m.engine == engine))
            .min_by_key(|m| (health(m).map_or(u8::MAX, preference), m.residency))?;
        let entries = self.lock();
        let entry = entries.get(usize::from(found.engine))?;
        if health(found) == Some(Health::Down) {
            let message = entry.why_down();
            let error = WireError::new(ErrorCode::EngineDown, message).retry_after(ENGINE_POLL);
            return Some(Err(error));
        }
        Some(Ok(Picked {
            engine: entry.engine(),
            index: found.engine,
            model: found.clone(),
        }))
    }
}

impl Catalog {
    /// What engine number `engine` calls the voice `asked`: as it was asked for where it lists
    /// none; its only one for the default. `None` if it has not got it.
    fn voice(&self, engine: u16, asked: &str) -> Option<String> {
        let mut own = self.voices.iter().filter(|v| v.engine == engine);
        let only = match (own.clone().next(), own.clone().nth(1)) {
            (None, _) => return Some(asked.to_owned()),
            (Some(only), None) => only.name.as_str(),
            _ => "",
        };
        if asked.is_empty() {
            return Some(only.to_owned());
        }
        if !has_voice(own.clone(), asked) {
            return None;
        }
        let listed = own.find(|v| v.name.eq_ignore_ascii_case(asked));
        Some(listed.map_or(asked, |v| &v.name).to_owned())
    }
}

/// Better health first.
fn preference(health: Health) -> u8 {
    match health {
        Health::Ok => 0,
        Health::Busy => 1,
        Health::Starting => 2,
        _ => 3,
    }
}

fn unknown_model<'a>(model: &str, models: impl Iterator<Item = &'a ModelAdvert>) -> WireError {
    let names = models.map(|m| m.name.as_str());
    let message = match near(model, names) {
        near if near.is_empty() => {
            format!("no model {model:?} here: no engine of this machine offers any")
        }
        near => format!("no model {model:?} here; near names: {near}"),
    };
    WireError::new(ErrorCode::UnknownModel, message).field("model")
}

fn unknown_voice(voice: &str, voices: &[VoiceAdvert]) -> WireError {
    let near = near(voice, voices.iter().map(|v| v.name.as_str()));
    let message = format!("no voice {voice:?} here; near names: {near}");
    WireError::new(ErrorCode::UnknownModel, message).field("voice")
}

/// The names that are nearest to `name`.
fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names.sort_by_cached_key(|other| distance(name, other));
    names.truncate(SHOWN);
    names.join(", ")
}
