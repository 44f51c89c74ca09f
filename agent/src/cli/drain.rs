//! `unamesh drain`: this machine finishes what it does and leaves.

use super::args::DrainArgs;
use super::context::Context;
use super::error::CliError;
use super::local::Local;
use serde_json::json;

pub(super) async fn run(context: &Context, args: &DrainArgs) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let deadline = u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX);
    let answer = local
        .post("drain", &json!({"deadline_ms": deadline}))
        .await?;
    if context.out.json {
        return context.out.value(&answer);
    }
    context.out.line(&format!(
        "{} takes nothing new, and leaves when its answers are done or after {} s.",
        local.info.name,
        args.deadline.as_secs_f32(),
    ))
}
