//! From file, environment and flags to one [`Config`].

use super::keys::{ENGINE_KEYS, KEYS};
use super::{Config, near};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A larger file is not a configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// Where settings come from; the later one wins.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; `None` = defaults.
    pub file: Option<PathBuf>,
    /// Variables, as of [`std::env::vars`]; only known `UNAMESH_*` names count.
    pub env: Vec<(String, String)>,
    /// `(key path, value)` of flags.
    pub flags: Vec<(String, String)>,
}

/// Why there is no configuration. Nothing was started; correct it and run again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {reason}; write one with `unamesh up --print-config > {}`", file.display(), file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It is no TOML, or a value has the wrong type.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}:{line}: unknown key `{key}`{}; `unamesh up --print-config` lists them all", file.display(), meant(near.as_deref()))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// The full path of the key.
        key: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// A flag names a key that does not exist.
    #[error("--set {key}: unknown key{}; `unamesh up --print-config` lists them all", meant(near.as_deref()))]
    UnknownFlag {
        /// As given.
        key: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// A value that cannot work.
    #[error("{origin}: {message}")]
    Value {
        /// The variable, flag, or file and key it stands in.
        origin: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

fn meant(near: Option<&str>) -> String {
    near.map(|key| format!(" (did you mean `{key}`?)"))
        .unwrap_or_default()
}

impl Config {
    /// Reads, overlays and checks.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut config = match &sources.file {
            Some(file) => Config::parse(&read(file)?, file)?,
            None => Config::default(),
        };
        let mut origins = Vec::new();
        for key in KEYS {
            let name = key.variable();
            if let Some((_, text)) = sources.env.iter().find(|(k, _)| *k == name) {
                (key.set)(&mut config, text).map_err(|message| ConfigError::Value {
                    origin: format!("{name}={text}"),
                    message,
                })?;
                origins.push((key.path, name));
            }
        }
        for (path, text) in &sources.flags {
            let key = KEYS.iter().find(|k| k.path == path).ok_or_else(|| {
                let near = near::nearest(path, KEYS.iter().map(|k| k.path)).map(str::to_owned);
                ConfigError::UnknownFlag {
                    key: path.clone(),
                    near,
                }
            })?;
            let origin = format!("--set {path}={text}");
            (key.set)(&mut config, text).map_err(|message| ConfigError::Value {
                origin: origin.clone(),
                message,
            })?;
            origins.push((key.path, origin));
        }
        config.check().map_err(|(key, message)| {
            let origin = match (origins.iter().rev().find(|(k, _)| *k == key), &sources.file) {
                (Some((_, origin)), _) => origin.clone(),
                (None, Some(file)) => format!("{}: {key}", file.display()),
                (None, None) => key,
            };
            ConfigError::Value { origin, message }
        })?;
        Ok(config)
    }

    /// Parses the text of `file` (the path is only for messages). Values are not checked
    /// beyond their types.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::UnknownKey`].
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
        let syntax = |e: toml::de::Error| {
            let (line, column) = position(text, e.span().map_or(0, |s| s.start));
            let message = e.message().trim().to_owned();
            ConfigError::Syntax {
                file: file.to_owned(),
                line,
                column,
                message,
            }
        };
        let table = DeTable::parse(text).map_err(syntax)?;
        if let Some(unknown) = unknown_key(table.get_ref()) {
            return Err(ConfigError::UnknownKey {
                file: file.to_owned(),
                line: position(text, unknown.at).0,
                key: unknown.key,
                near: unknown.near,
            });
        }
        toml::from_str(text).map_err(syntax)
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let fail = |reason: String| ConfigError::Read {
        file: file.to_owned(),
        reason,
    };
    let size = std::fs::metadata(file)
        .map_err(|e| fail(e.to_string()))?
        .len();
    if size > MAX_FILE {
        return Err(fail(format!(
            "{size} bytes are too many for a configuration"
        )));
    }
    std::fs::read_to_string(file).map_err(|e| fail(e.to_string()))
}

/// Line and column (from 1) of a byte offset.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

struct Unknown {
    key: String,
    at: usize,
    near: Option<String>,
}

/// The first key of a file that [`KEYS`] and [`ENGINE_KEYS`] do not list.
fn unknown_key(top: &DeTable<'_>) -> Option<Unknown> {
    let sections: Vec<&str> = KEYS.iter().map(|k| k.split().0).chain(["engine"]).collect();
    let keys_of = |section: &str| -> Vec<&'static str> {
        KEYS.iter()
            .map(|k| k.split())
            .filter(|(s, _)| *s == section)
            .map(|(_, k)| k)
            .collect()
    };
    for (key, value) in top {
        let name: &str = key.get_ref();
        let at = key.span().start;
        if name == "engine" {
            let names: Vec<&str> = ENGINE_KEYS.iter().map(|(name, ..)| *name).collect();
            // Anything else than tables is left to the deserializer, which names the type.
            let blocks = value
                .get_ref()
                .as_array()
                .into_iter()
                .flat_map(|a| a.iter());
            for table in blocks.filter_map(|block| block.get_ref().as_table()) {
                if let Some(unknown) = unknown_in(table, "engine", &names) {
                    return Some(unknown);
                }
            }
        } else if !name.is_empty() && sections.contains(&name) {
            if let DeValue::Table(table) = value.get_ref()
                && let Some(unknown) = unknown_in(table, name, &keys_of(name))
            {
                return Some(unknown);
            }
        } else if !keys_of("").contains(&name) {
            let known = keys_of("").into_iter().chain(sections.iter().copied());
            // A key in the wrong place: say where it belongs.
            let near = near::nearest(name, known.filter(|k| !k.is_empty())).or_else(|| {
                KEYS.iter()
                    .map(|k| k.path)
                    .find(|p| p.split('.').next_back() == Some(name))
            });
            return Some(Unknown {
                key: name.to_owned(),
                at,
                near: near.map(str::to_owned),
            });
        }
    }
    None
}

fn unknown_in(table: &DeTable<'_>, section: &str, known: &[&str]) -> Option<Unknown> {
    table.iter().find_map(|(key, _)| {
        let name: &str = key.get_ref();
        (!known.contains(&name)).then(|| Unknown {
            key: format!("{section}.{name}"),
            at: key.span().start,
            near: near::nearest(name, known.iter().copied()).map(|k| format!("{section}.{k}")),
        })
    })
}
