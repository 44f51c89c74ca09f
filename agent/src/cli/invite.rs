//! `unamesh invite`: a link with which another machine can join.

use super::args::InviteArgs;
use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::output::{BOLD, DIM};
use super::text::{Read, count, span};
use serde_json::json;

pub(super) async fn run(context: &Context, args: &InviteArgs) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let body = json!({
        "role": args.role,
        "valid_for_s": args.valid_for.as_secs(),
        "uses": args.uses,
    });
    let answer = local.post("invite", &body).await?;
    if context.out.json {
        return context.out.value(&answer);
    }
    let link = answer.at("link").text();
    // In a pipe the link alone: `unamesh invite | ssh attic xargs unamesh join`.
    if !context.out.rich {
        return context.out.line(link);
    }
    let valid = span(u64::try_from(args.valid_for.as_millis()).unwrap_or(u64::MAX));
    context.out.line(&format!(
        "On the other machine:\n\n  {BOLD}unamesh join '{link}'{BOLD:#}\n\n\
         {DIM}Good for {valid} and {}, while this agent runs. Whoever has the link can join: \
         do not publish it.{DIM:#}",
        count(args.uses as usize, "machine"),
    ))
}
