//! `unamesh demo`: see [`crate::demo`].

use super::context::Context;
use super::error::CliError;
use crate::demo::{self, DemoArgs, DemoError};

pub(super) async fn run(context: &Context, args: &DemoArgs) -> Result<(), CliError> {
    demo::run(args, context.out)
        .await
        .map_err(|error| match error {
            DemoError::Output(error) => error,
            DemoError::Interrupted => CliError::interrupted(),
            DemoError::Starter(error) => CliError::new("starter", error.to_string()),
            DemoError::Late { .. } | DemoError::Agent { .. } => {
                CliError::new("demo", error.to_string()).next("unamesh doctor")
            }
            error => CliError::new("demo", error.to_string()),
        })
}
