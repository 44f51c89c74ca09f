//! Keeping the machine awake while it answers (`[power] keep_awake`).

use super::{KEEP_AWAKE_AFTER, Unavailable, os};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// While `active` is not 0, and [`KEEP_AWAKE_AFTER`] longer, the machine does not fall asleep
/// by itself. Runs until `stop`. Where the system refuses, that is said once.
pub async fn keep_awake(mut active: watch::Receiver<usize>, stop: CancellationToken) {
    let mut refused: Option<Unavailable> = None;
    let keeping = async {
        while active.wait_for(|active| *active > 0).await.is_ok() {
            let lock = os::Awake::take().await;
            match &lock {
                Ok(_) => debug!("kept awake"),
                Err(reason) if refused.as_ref() != Some(reason) => {
                    info!(%reason, "this machine may fall asleep while it answers");
                    refused = Some(reason.clone());
                }
                Err(_) => {}
            }
            idle(&mut active).await;
            drop(lock);
        }
    };
    stop.run_until_cancelled(keeping).await;
}

/// Resolves when nothing has run for [`KEEP_AWAKE_AFTER`].
async fn idle(active: &mut watch::Receiver<usize>) {
    while active.wait_for(|active| *active == 0).await.is_ok() {
        let again = active.wait_for(|active| *active > 0);
        if tokio::time::timeout(KEEP_AWAKE_AFTER, again).await.is_err() {
            return;
        }
    }
}
