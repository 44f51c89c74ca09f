//! What every command needs to know: where the state is, how to write, what to suggest.

use super::args::Global;
use super::error::CliError;
use super::output::Out;
use crate::config::Sources;
use crate::state::StateDir;
use std::path::PathBuf;

/// The configuration file's name in its directory.
const CONFIG: &str = "config.toml";

/// Of one call of the program.
#[derive(Clone, Debug)]
pub struct Context {
    /// How to write.
    pub out: Out,
    global: Global,
}

impl Context {
    /// From the flags.
    pub fn new(global: Global) -> Self {
        Context {
            out: Out::new(global.json, global.plain),
            global,
        }
    }

    /// The state directory's path: `--state`, else this user's.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn state_path(&self) -> Result<PathBuf, CliError> {
        match &self.global.state {
            Some(path) => Ok(path.clone()),
            None => Ok(StateDir::default_path()?),
        }
    }

    /// The state directory, made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn state(&self) -> Result<StateDir, CliError> {
        Ok(StateDir::open(&self.state_path()?)?)
    }

    /// The configuration's sources: `--config`, else `config.toml` in the state directory,
    /// else (with this user's own state directory) the one in the user's configuration
    /// directory; the environment; `flags`.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn sources(&self, flags: Vec<(String, String)>) -> Result<Sources, CliError> {
        let file = match &self.global.config {
            Some(file) => Some(file.clone()),
            None => {
                let beside = self.state_path()?.join(CONFIG);
                let of_user = directories::ProjectDirs::from("", "", "unamesh")
                    .filter(|_| self.global.state.is_none())
                    .map(|dirs| dirs.config_dir().join(CONFIG));
                [Some(beside), of_user]
                    .into_iter()
                    .flatten()
                    .find(|file| file.exists())
            }
        };
        // A variable that is no Unicode cannot be one of ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("UNAMESH_"))
            .collect();
        Ok(Sources { file, env, flags })
    }

    /// A command to suggest, with the flags that this call needed.
    pub fn command(&self, command: &str) -> String {
        let mut text = "unamesh".to_owned();
        for (flag, value) in [
            ("--state", &self.global.state),
            ("--config", &self.global.config),
        ] {
            if let Some(path) = value {
                text.push_str(&format!(" {flag} {}", quoted(&path.display().to_string())));
            }
        }
        format!("{text} {command}")
    }
}

/// For a shell.
fn quoted(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_keep_the_flags() {
        let global = Global {
            state: Some("/my state".into()),
            ..Global::default()
        };
        assert_eq!(
            Context::new(global).command("up"),
            "unamesh --state '/my state' up"
        );
        assert_eq!(Context::new(Global::default()).command("up"), "unamesh up");
    }
}
