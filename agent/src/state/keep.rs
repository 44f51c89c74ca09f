//! Writing things down now and then, and once more at the end.

use super::StateError;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Calls `save` (which blocks on the disk) every `every` until `stop`, then once more. A failure
/// is logged when it begins, not every time. The node owns the task.
pub(crate) async fn keep_saved(
    what: &'static str,
    every: Duration,
    save: impl Fn() -> Result<(), StateError> + Clone + Send + 'static,
    stop: CancellationToken,
) {
    let mut failing = false;
    loop {
        let ending = stop
            .run_until_cancelled(tokio::time::sleep(every))
            .await
            .is_none();
        let saved = tokio::task::spawn_blocking(save.clone()).await;
        if let Ok(Err(error)) = &saved
            && !failing
        {
            tracing::warn!(%error, "{what} are not being saved");
        }
        failing = matches!(saved, Ok(Err(_)));
        if ending {
            return;
        }
    }
}
