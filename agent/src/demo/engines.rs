//! What computes in a demo.

use super::show::Show;
use super::{DemoArgs, DemoError};
use crate::config::{EngineApi, EngineConfig};
use crate::engine::adapter;
use crate::engine::detect::{Found, standard_ports};
use crate::starter::{self, Starter};
use std::collections::BTreeSet;
use std::path::Path;
use unamesh_proto::wire::{EngineKind, ModelAdvert, ModelKind, Residency};

/// What the agents of a demo front.
pub enum Engines {
    /// Each its own starter engine.
    Starter {
        /// Where it is installed.
        starter: Starter,
        /// Its micro-batch; 0 = llama.cpp's default.
        ubatch: u32,
    },
    /// All the one that answered on a standard port. It belongs to somebody: it is not killed.
    Found {
        /// Where it is.
        found: Found,
        /// The model to ask.
        model: String,
    },
}

impl Engines {
    /// An engine that answers here and has a language model, else the starter engines, which
    /// are installed if need be.
    pub async fn choose(args: &DemoArgs, show: &Show) -> Result<Engines, DemoError> {
        if !args.starter {
            for found in standard_ports(&BTreeSet::new()).await {
                if let Some(model) = language_model(&found).await {
                    show.using(&found, &model)?;
                    return Ok(Engines::Found { found, model });
                }
            }
        }
        let starter = starter::install(&*show.progress()).await?;
        Ok(Engines::Starter {
            starter,
            ubatch: args.ubatch,
        })
    }

    /// The model to ask.
    pub fn model(&self) -> &str {
        match self {
            Engines::Starter { .. } => starter::MODEL,
            Engines::Found { model, .. } => model,
        }
    }

    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Engines::Starter { ubatch: 0, .. } => "llama.cpp, default micro-batch".to_owned(),
            Engines::Starter { ubatch, .. } => format!("llama.cpp, micro-batch {ubatch}"),
            Engines::Found { found, .. } => format!("{} at {}", found.kind, found.url),
        }
    }

    /// The entry for one agent's configuration; its process id will stand in `pid_file`.
    pub fn entry(&self, pid_file: &Path) -> Result<EngineConfig, DemoError> {
        match self {
            Engines::Starter { starter, ubatch } => {
                let port = starter::free_port().map_err(|error| DemoError::File {
                    path: "127.0.0.1:0".into(),
                    error,
                })?;
                let pid_file = pid_file.display().to_string();
                let extra = ["--ubatch", &ubatch.to_string(), "--pid-file", &pid_file];
                Ok(starter.entry("starter", port, &extra.map(str::to_owned)))
            }
            Engines::Found { found, .. } => Ok(EngineConfig {
                name: found.name.clone(),
                kind: api(found.kind),
                url: found.url.to_string(),
                ..EngineConfig::default()
            }),
        }
    }
}

fn api(kind: EngineKind) -> EngineApi {
    match kind {
        EngineKind::LlamaCpp => EngineApi::LlamaCpp,
        EngineKind::Ollama => EngineApi::Ollama,
        EngineKind::Vllm => EngineApi::Vllm,
        EngineKind::LmStudio => EngineApi::LmStudio,
        _ => EngineApi::OpenAi,
    }
}

/// The language model that answers soonest: one in memory, the smallest of those.
async fn language_model(found: &Found) -> Option<String> {
    let engine = adapter(&found.clone().into_spec()).ok()?;
    let info = engine.describe().await.ok()?;
    let in_memory = |m: &ModelAdvert| matches!(m.residency, Residency::Loaded | Residency::Pinned);
    let models = info.models.into_iter().filter(|m| m.kind == ModelKind::Llm);
    models
        .min_by_key(|m| (!in_memory(m), m.size))
        .map(|m| m.name)
}
