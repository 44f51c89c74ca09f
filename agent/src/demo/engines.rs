//! What computes in a demo.

use super::show::Show;
use super::{DemoArgs, DemoError};
use crate::config::{EngineApi, EngineConfig};
use crate::engine::adapter;
use crate::engine::detect::{Found, standard_ports};
use crate::starter::voice::{STEADY, SpeechEngine, VOICE, WHISPER, install_piper, install_whisper};
use crate::starter::{self, Starter};
use std::collections::BTreeSet;
use std::path::Path;
use unamesh_proto::wire::{EngineKind, ModelAdvert, ModelKind, Residency};

/// What the agents of a demo front.
pub struct Engines {
    text: Text,
    speech: Option<Speech>,
}

/// What makes text.
enum Text {
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

/// What speaks and hears: the first agent hears, the others speak, so that one of those may be
/// killed.
struct Speech {
    piper: SpeechEngine,
    whisper: SpeechEngine,
}

impl Engines {
    /// An engine that answers here and has a language model, else the starter engines, which
    /// are installed if need be; with `--voice` Piper and Whisper too.
    pub async fn choose(args: &DemoArgs, show: &Show) -> Result<Engines, DemoError> {
        let text = Text::choose(args, show).await?;
        let speech = if args.voice {
            let progress = show.progress();
            Some(Speech {
                piper: install_piper(&*progress).await?,
                whisper: install_whisper(&*progress).await?,
            })
        } else {
            None
        };
        Ok(Engines { text, speech })
    }

    /// The model to ask.
    pub fn model(&self) -> &str {
        match &self.text {
            Text::Starter { .. } => starter::MODEL,
            Text::Found { model, .. } => model,
        }
    }

    /// For the report.
    pub fn describe(&self) -> String {
        let text = match &self.text {
            Text::Starter { ubatch: 0, .. } => "llama.cpp, default micro-batch".to_owned(),
            Text::Starter { ubatch, .. } => format!("llama.cpp, micro-batch {ubatch}"),
            Text::Found { found, .. } => format!("{} at {}", found.kind, found.url),
        };
        match self.speech {
            Some(_) => format!("{text}; Whisper {WHISPER}; Piper {VOICE}"),
            None => text,
        }
    }

    /// The entries for the configuration of agent number `at`; their process ids will stand in
    /// files `*.pid` in `dir`.
    pub fn entries(&self, at: usize, dir: &Path) -> Result<Vec<EngineConfig>, DemoError> {
        let pid_file = |name: &str| dir.join(name).with_extension("pid");
        let mut entries = vec![self.text.entry(&pid_file("engine"))?];
        match &self.speech {
            Some(speech) if at == 0 => {
                let whisper = speech.whisper.clone().with_pid_file(&pid_file("whisper"));
                entries.push(whisper.entry("whisper", free_port()?, &[]));
            }
            Some(speech) => {
                let piper = speech.piper.clone().with_pid_file(&pid_file("piper"));
                entries.push(piper.entry("piper", free_port()?, &STEADY.map(str::to_owned)));
            }
            None => {}
        }
        Ok(entries)
    }
}

impl Text {
    async fn choose(args: &DemoArgs, show: &Show) -> Result<Text, DemoError> {
        if !args.starter {
            for found in standard_ports(&BTreeSet::new()).await {
                if let Some(model) = language_model(&found).await {
                    show.using(&found, &model)?;
                    return Ok(Text::Found { found, model });
                }
            }
        }
        let starter = starter::install(&*show.progress()).await?;
        Ok(Text::Starter {
            starter,
            ubatch: args.ubatch,
        })
    }

    fn entry(&self, pid_file: &Path) -> Result<EngineConfig, DemoError> {
        match self {
            Text::Starter { starter, ubatch } => {
                let pid_file = pid_file.display().to_string();
                let extra = ["--ubatch", &ubatch.to_string(), "--pid-file", &pid_file];
                Ok(starter.entry("starter", free_port()?, &extra.map(str::to_owned)))
            }
            Text::Found { found, .. } => Ok(EngineConfig {
                name: found.name.clone(),
                kind: api(found.kind),
                url: found.url.to_string(),
                ..EngineConfig::default()
            }),
        }
    }
}

fn free_port() -> Result<u16, DemoError> {
    starter::free_port().map_err(|error| DemoError::File {
        path: "127.0.0.1:0".into(),
        error,
    })
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
