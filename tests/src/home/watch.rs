//! The events that an agent tells, kept.

use crate::cluster::Agent;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Listens to `GET /unamesh/v1/events` until dropped.
pub struct Watch {
    events: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Everything that `agent` tells from now on.
    ///
    /// # Panics
    /// If the agent does not answer.
    pub async fn start(agent: &Agent) -> Self {
        let mut reply = agent
            .gateway()
            .send("/unamesh/v1/events", None)
            .await
            .unwrap();
        assert_eq!(reply.status(), 200);
        let events = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&events);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Ends with the agent, too.
            while let Ok(Some(line)) = reply.line().await {
                if let Some(Ok(event)) = line.strip_prefix("data:").map(serde_json::from_str) {
                    kept.lock().unwrap().push(event);
                }
            }
        });
        Self {
            events,
            _tasks: tasks,
        }
    }

    /// What it was told so far, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap().clone()
    }

    /// How often it was told of `event`.
    #[must_use]
    pub fn count(&self, event: &str) -> usize {
        let events = self.events.lock().unwrap();
        events.iter().filter(|told| told["event"] == event).count()
    }
}
