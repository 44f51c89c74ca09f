//! Log lines of the agent, on standard error.
//!
//! Prompts, answers and keys never reach a log line (TRACE excepted), so no filter has to
//! keep them out here. A plain level is for our own crates; libraries say warnings only.

use super::error::CliError;
use crate::config::{LogConfig, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Our crates, as modules are named.
const OURS: [&str; 4] = [
    "unamesh_agent",
    "unamesh_client",
    "unamesh_proto",
    "unamesh",
];

/// Begins to log.
///
/// # Errors
/// The level is none.
pub(super) fn init(config: &LogConfig, plain: bool) -> Result<(), CliError> {
    let filter = filter(&config.level)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let ansi = std::io::stderr().is_terminal() && !plain && std::env::var_os("NO_COLOR").is_none();
    let started = match config.format {
        LogFormat::Text => registry
            .with(layer.compact().with_ansi(ansi).with_target(false))
            .try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    started.map_err(|e| CliError::new("log", e.to_string()))
}

fn filter(level: &str) -> Result<EnvFilter, CliError> {
    let wrong = |reason: String| {
        CliError::new("log_level", format!("log.level = {level:?}: {reason}"))
            .next("unamesh up --log info")
    };
    let directives = if level.contains(['=', ',']) {
        level.to_owned()
    } else {
        let level: tracing::level_filters::LevelFilter = level
            .parse()
            .map_err(|_| wrong("expected error, warn, info, debug, trace or off".to_owned()))?;
        let others = level.min(tracing::level_filters::LevelFilter::WARN);
        OURS.iter().fold(others.to_string(), |text, ours| {
            format!("{text},{ours}={level}")
        })
    };
    EnvFilter::try_new(directives).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::filter;

    #[test]
    fn a_level_is_for_our_crates() {
        let text = filter("debug").unwrap().to_string();
        assert!(
            text.contains("unamesh_agent=debug") && text.contains("warn"),
            "{text}"
        );
        let text = filter("error").unwrap().to_string();
        assert!(text.contains("error") && !text.contains("warn"), "{text}");
        filter("info,unamesh_client=trace").unwrap();
        assert!(
            filter("loud")
                .unwrap_err()
                .message
                .contains("expected error, warn")
        );
    }
}
