//! `unamesh doctor`.

use super::context::Context;
use super::error::CliError;

pub(super) async fn run(_context: &Context) -> Result<(), CliError> {
    Err(CliError::not_built("doctor"))
}
