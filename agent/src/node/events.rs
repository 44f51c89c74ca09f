//! What happens, as JSON objects for `GET /unamesh/v1/events`: `{"event": ..., "at_ms": ...}`
//! and what belongs to it. Nobody has to listen; a slow listener misses events and is told so.

use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::broadcast;
use unamesh_client::clock;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 256;

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Arc<Value>>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Tells the listeners that `event` happened; `fields` is a JSON object.
    pub fn emit(&self, event: &str, mut fields: Value) {
        if self.0.receiver_count() == 0 {
            return;
        }
        if let Some(object) = fields.as_object_mut() {
            object.insert("event".to_owned(), json!(event));
            object.insert("at_ms".to_owned(), json!(clock::wall().as_millis()));
        }
        // Fails only if the last listener went in this moment.
        let _ = self.0.send(Arc::new(fields));
    }

    /// Everything from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Value>> {
        self.0.subscribe()
    }
}
