//! `unamesh join`: makes this machine a member of a mesh, or renews its certificate.

use super::args::JoinArgs;
use super::context::Context;
use super::error::CliError;
use super::output::{BOLD, DIM};
use crate::ca;
use crate::config::Config;
use serde_json::json;
use unamesh_client::identity::{Credentials, NodeKey};
use unamesh_client::invite::Invite;
use unamesh_client::join::{JoinError, join};
use unamesh_client::watch::save_seeds;
use unamesh_proto::wire::Role;

pub(super) async fn run(context: &Context, args: &JoinArgs) -> Result<(), CliError> {
    let invite: Invite = args.link.trim().parse().map_err(|error| {
        CliError::new("bad_link", format!("{error}"))
            .next("unamesh invite, on a machine of the mesh, and copy the whole link in quotes")
    })?;
    let config = Config::load(&context.sources(Vec::new())?)?;
    let name = args.name.clone().unwrap_or_else(|| config.node_name());
    let state = context.state()?;
    // A link of its own mesh renews a member's certificate. (Whoever holds the CA renews its
    // own by itself, and would lose its role by a link.)
    let renews =
        |existing: &Credentials| existing.mesh == invite.mesh && !state.file(ca::CA_DIR).exists();
    if let Ok(existing) = Credentials::load(state.path())
        && !renews(&existing)
    {
        let message = format!(
            "this machine is a member of the mesh {:?} already; another mesh needs its own --state DIR",
            existing.mesh_name
        );
        return Err(CliError::new("already_member", message).next(context.command("up")));
    }
    let identity =
        |e: unamesh_client::identity::IdentityError| CliError::new("identity", e.to_string());
    let key = NodeKey::load_or_create(&state.file("node.key")).map_err(identity)?;
    let (credentials, seeds) = join(&invite, key, &name).await.map_err(|e| refused(&e))?;
    credentials.save(state.path()).map_err(identity)?;
    // Multicast finds them too, where it works; so this is no reason to fail.
    let addrs: Vec<_> = seeds.iter().filter_map(|seed| seed.parse().ok()).collect();
    if let Err(error) = save_seeds(state.path(), &addrs) {
        context.out.note(&format!(
            "{DIM}(addresses of the mesh were not kept: {error}){DIM:#}\n"
        ));
    }
    report(context, &credentials, &seeds, &name)
}

fn report(
    context: &Context,
    credentials: &Credentials,
    seeds: &[String],
    name: &str,
) -> Result<(), CliError> {
    let serves = credentials.role.is_agent();
    let next = context.command(if serves { "up" } else { "chat" });
    if context.out.json {
        return context.out.value(&json!({
            "mesh": credentials.mesh.to_string(),
            "mesh_name": credentials.mesh_name,
            "node": credentials.node().to_string(),
            "name": name,
            "role": credentials.role,
            "seeds": seeds,
            "next": next,
        }));
    }
    let what = match credentials.role {
        Role::Client => "asks a model of the mesh: this machine is a client, and runs no agent.",
        _ => "starts this machine's agent.",
    };
    context.out.line(&format!(
        "{name} is now a member of {:?} {DIM}(node {}){DIM:#}.\n\n  {BOLD}{next}{BOLD:#}\n\n{what}",
        credentials.mesh_name,
        credentials.node().short(),
    ))
}

fn refused(error: &JoinError) -> CliError {
    let (code, next) = match error {
        JoinError::Unreachable { .. } | JoinError::Broken(_) => (
            "inviter_unreachable",
            "on the machine that printed the link: unamesh status",
        ),
        JoinError::Impostor(_) => ("impostor", "do not join; get the link again from its owner"),
        JoinError::Refused(_) => (
            "invite_refused",
            "unamesh invite, on a machine of the mesh, for a fresh link",
        ),
        _ => ("join_failed", "unamesh doctor"),
    };
    CliError::new(code, error.to_string()).next(next)
}
