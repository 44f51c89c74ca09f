//! `unamesh init`: starts a mesh with this machine as its first member.

use super::args::InitArgs;
use super::context::Context;
use super::error::CliError;
use super::output::{BOLD, DIM};
use crate::ca::{self, CaError};
use crate::config::Config;
use serde_json::json;
use unamesh_client::clock;
use unamesh_proto::limits;

pub(super) fn run(context: &Context, args: &InitArgs) -> Result<(), CliError> {
    let mesh = args.mesh.trim();
    if mesh.is_empty() || mesh.len() > limits::MAX_NAME || mesh.contains(char::is_control) {
        let message = format!(
            "the mesh's name must be printable and have 1 to {} bytes",
            limits::MAX_NAME
        );
        return Err(CliError::new("mesh_name", message).next(context.command("init home")));
    }
    let config = Config::load(&context.sources(Vec::new())?)?;
    let state = context.state()?;
    let name = config.node_name();
    let credentials = ca::init(state.path(), mesh, &name, clock::wall()).map_err(|error| {
        let paired = matches!(error, CaError::Paired(..) | CaError::Exists(_));
        let code = if paired { "already_member" } else { "ca" };
        CliError::new(code, error.to_string()).next(context.command("up"))
    })?;
    let up = context.command("up");
    if context.out.json {
        return context.out.value(&json!({
            "mesh": credentials.mesh.to_string(),
            "mesh_name": credentials.mesh_name,
            "node": credentials.node().to_string(),
            "name": name,
            "state": state.path(),
            "next": up,
        }));
    }
    context.out.line(&format!(
        "The mesh {mesh:?} is made, with {name} as its first member {DIM}({}){DIM:#}.\n\n  \
         {BOLD}{up}{BOLD:#}\n\nstarts this machine's agent; then `{}` lets other machines in.\n\
         {DIM}Keep a copy of {}: only who has it can let machines in.{DIM:#}",
        credentials.node().short(),
        context.command("invite"),
        state.file(ca::CA_DIR).display(),
    ))
}
