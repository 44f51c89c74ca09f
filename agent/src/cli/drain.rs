//! `unamesh drain`: this machine hands over what it does and leaves; with `--for` it pauses.

use super::args::DrainArgs;
use super::context::Context;
use super::error::CliError;
use super::local::Local;
use super::text::{Read, span};
use serde_json::json;
use std::time::Duration;

pub(super) async fn run(context: &Context, args: &DrainArgs) -> Result<(), CliError> {
    let local = Local::find(context)?;
    let request = match args.pause {
        _ if args.stop => json!({"stop": true}),
        Some(pause) => json!({"for_ms": millis(pause)}),
        None => json!({"deadline_ms": millis(args.deadline)}),
    };
    let answer = local.post("drain", &request).await?;
    if context.out.json {
        return context.out.value(&answer);
    }
    let name = &local.info.name;
    context.out.line(&match args.pause {
        _ if args.stop && answer.at("state").text() == "up" => {
            format!("{name} takes requests again.")
        }
        _ if args.stop => format!(
            "{name} does not pause any more for you, and still takes nothing new: {}.",
            answer.at("draining").at("why").text()
        ),
        Some(pause) => format!(
            "{name} takes nothing new for {}. `unamesh drain --stop` ends that.",
            span(millis(pause))
        ),
        None => format!(
            "{name} takes nothing new, and leaves when its answers are done or after {} s.",
            args.deadline.as_secs_f32(),
        ),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
