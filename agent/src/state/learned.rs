//! What this node's client learned of paths and engines, kept over restarts.
//!
//! [`unamesh_proto::learned::Learned`] is the record and its rules; here it is written down: every
//! [`SAVE_EVERY`] if there is something new, and when the agent ends.

use super::dir::MAX_FILE;
use super::keep::keep_saved;
use super::{StateDir, StateError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use unamesh_client::client::MeshClient;
use unamesh_proto::learned::Learned;

const FILE: &str = "learned.json";

/// What is new is written down this often: a crash costs five minutes of it, which the next few
/// answers show again.
pub const SAVE_EVERY: Duration = Duration::from_secs(300);

/// Gives `client` what `state` remembers, and writes down what it learns until `stop`. A damaged
/// file is moved away, and learning starts afresh.
pub async fn keep_learned(client: MeshClient, state: StateDir, stop: CancellationToken) {
    let from = state.clone();
    let read = tokio::task::spawn_blocking(move || from.read_or_fresh::<Learned>(FILE));
    if let Ok(Some(learned)) = read.await {
        client.recall(learned);
    }
    // What a failed write has not kept.
    let unsaved: Arc<Mutex<Option<Learned>>> = Arc::default();
    let save = move || {
        let mut unsaved = unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(learned) = client.learned() {
            *unsaved = Some(learned);
        }
        if let Some(learned) = unsaved.as_mut() {
            write(&state, learned)?;
            *unsaved = None;
        }
        Ok(())
    };
    keep_saved("learned stalls and silences", SAVE_EVERY, save, stop).await;
}

fn write(state: &StateDir, learned: &mut Learned) -> Result<(), StateError> {
    loop {
        let bytes = serde_json::to_vec(learned).map_err(|e| StateError::Corrupt {
            path: state.file(FILE),
            reason: e.to_string(),
        })?;
        // A reader would refuse a larger one. 256 models are a tenth of it, so this is rare.
        if bytes.len() as u64 <= MAX_FILE || !learned.shrink() {
            return state.write(FILE, &bytes);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_proto::Wall;
    use unamesh_proto::session::Silence;

    fn record() -> Learned {
        let paths = vec![(unamesh_proto::NodeId([1; 32]), Silence::default())];
        Learned::new(paths, Vec::new(), Wall::from_millis(7))
    }

    #[test]
    fn it_is_private_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        write(&state, &mut record()).unwrap();
        assert_eq!(state.read_or_fresh::<Learned>(FILE), Some(record()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(state.file(FILE)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_file_is_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write(FILE, b"{\"version\":1,\"pa").unwrap();
        assert_eq!(state.read_or_fresh::<Learned>(FILE), None);
        assert!(!state.file(FILE).exists());
        assert!(state.file("learned.json.damaged").exists());
    }
}
