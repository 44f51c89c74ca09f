//! `unamesh join`: makes this machine a member of a mesh.

use super::args::JoinArgs;
use super::context::Context;
use super::error::CliError;

pub(super) async fn run(_context: &Context, _args: &JoinArgs) -> Result<(), CliError> {
    Err(CliError::not_built("join"))
}
