//! The generations that can be reattached to, by id.

use super::client::Client;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use unamesh_proto::wire::{ErrorCode, WireError};
use unamesh_proto::{GenerationId, NodeId};

/// Clients that wait to be attached to one generation. A client has one at a time; a second
/// is on its way only when it changes its mind.
const ATTACHING: usize = 2;

/// A client that wants the rest of a generation.
pub(super) struct Newcomer {
    /// Its stream.
    pub client: Client,
    /// Frames that it has.
    pub have: u32,
}

/// All generations with a client elsewhere. As many as there are active ones, at most, and
/// those that linger after their end.
#[derive(Default)]
pub(super) struct Generations {
    by_id: Mutex<HashMap<GenerationId, Entry>>,
}

struct Entry {
    owner: NodeId,
    attach: mpsc::Sender<Newcomer>,
}

impl Generations {
    /// None.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes `id` known as a generation of `owner`, until the registration is dropped.
    pub fn register(self: &Arc<Self>, id: GenerationId, owner: NodeId) -> Registration {
        let (attach, newcomers) = mpsc::channel(ATTACHING);
        self.lock().insert(id, Entry { owner, attach });
        Registration {
            generations: Arc::clone(self),
            id,
            newcomers,
        }
    }

    /// How many there are, those that linger included.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Hands `newcomer` over to the generation `id`.
    ///
    /// # Errors
    /// The newcomer back, with the reason. Somebody else's generation is as unknown as one
    /// that never was.
    pub fn attach(
        &self,
        id: GenerationId,
        from: NodeId,
        newcomer: Newcomer,
    ) -> Result<(), Box<(Newcomer, WireError)>> {
        let attach = match self.lock().get(&id) {
            Some(entry) if entry.owner == from => entry.attach.clone(),
            _ => return Err(Box::new((newcomer, unknown()))),
        };
        attach.try_send(newcomer).map_err(|e| match e {
            mpsc::error::TrySendError::Closed(newcomer) => Box::new((newcomer, unknown())),
            mpsc::error::TrySendError::Full(newcomer) => {
                let message = "this generation is being attached to already";
                Box::new((newcomer, WireError::new(ErrorCode::Limit, message)))
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GenerationId, Entry>> {
        // Each change is one insertion or removal: the map is whole whatever happened.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown() -> WireError {
    let message = "no such generation: it ended, or its grace time is over";
    WireError::new(ErrorCode::UnknownGeneration, message)
}

/// Keeps a generation known.
pub(super) struct Registration {
    generations: Arc<Generations>,
    id: GenerationId,
    /// Those who want to be attached.
    pub newcomers: mpsc::Receiver<Newcomer>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.generations.lock().remove(&self.id);
    }
}
