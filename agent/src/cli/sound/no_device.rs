//! The speaker and the microphone of a build without the feature `sound`: there are none.

use super::super::error::CliError;

/// There is none.
pub enum Speaker {}

/// There is none.
pub enum Microphone {}

impl Speaker {
    /// Says so.
    ///
    /// # Errors
    /// Always.
    pub fn open() -> Result<Self, CliError> {
        Err(none("plays nothing"))
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn push(&mut self, _: &[i16]) -> Result<(), CliError> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn finish(&mut self) -> Result<(), CliError> {
        match *self {}
    }

    /// Never called.
    pub fn hush(&mut self) {
        match *self {}
    }
}

impl Microphone {
    /// Says so.
    ///
    /// # Errors
    /// Always.
    pub fn open() -> Result<Self, CliError> {
        Err(none("hears nothing"))
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn next(&mut self) -> Result<Vec<i16>, CliError> {
        match *self {}
    }
}

fn none(what: &str) -> CliError {
    let message = format!("this build {what} (a build with `--features sound` does)");
    CliError::new("no_sound", message)
}
