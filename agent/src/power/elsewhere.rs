//! Systems that tell nothing of sleep: the clocks do, afterwards.

use super::{PowerEvent, Unavailable};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Never made.
#[derive(Debug)]
pub(super) enum Hold {}

/// Never made.
pub(super) enum Awake {}

impl Awake {
    /// Always refused.
    pub async fn take() -> Result<Awake, Unavailable> {
        Err(Unavailable("not known how on this system".to_owned()))
    }
}

/// Tells nothing.
pub(super) async fn watch(_events: mpsc::Sender<PowerEvent>, _stop: CancellationToken) {}
