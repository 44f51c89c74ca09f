//! Speech: texts that are spoken here, and speech that is heard.
//!
//! ```text
//!   SpeakRequest ─► checks, pick, seat ─► Speaking ◄─ chunks   what is said, and in which pieces
//!                                          │  ▲
//!                      Mark, Sound, Done ◄─┘  └─ track    samples to packets, and the grant
//! ```
//! - [`speaking`]: one text as its frames, whoever polls them.
//! - [`hearing`]: one utterance as its frames, and all that belongs to it.
//! - [`stream`]: either for a client elsewhere: frames out, its words in.

mod hearing;
mod speaking;
mod stream;

pub(super) use hearing::{Hearing, Mics};
pub(super) use speaking::Speaking;
pub(super) use stream::serve;

use super::Service;
use hearing::works_live;
use speaking::Chunks;
use std::sync::Arc;
use unamesh_client::transport::{HearLink, LinkError, SpeakLink};
use unamesh_proto::wire::{ErrorCode, HearRequest, SpeakRequest, WireError};

impl Service {
    /// Speaks `request` on an engine of this agent for this agent: the engine's stream is polled
    /// by whoever polls the frames, and dropping them cancels it.
    ///
    /// # Errors
    /// [`LinkError::Refused`], with the reason that a remote client would get; nothing was
    /// done.
    pub fn speak_local(
        self: &Arc<Self>,
        request: Arc<SpeakRequest>,
    ) -> Result<Box<dyn SpeakLink>, LinkError> {
        let speaking = self.admit_speech(request).map_err(LinkError::Refused)?;
        Ok(Box::new(speaking))
    }

    /// Takes a text in: everything that is checked before an engine is asked.
    ///
    /// # Errors
    /// Why not; nothing was done.
    pub(super) fn admit_speech(
        self: &Arc<Self>,
        request: Arc<SpeakRequest>,
    ) -> Result<Speaking, WireError> {
        self.refuse_if_leaving()?;
        request.check()?;
        let Some(chunks) = Chunks::of(&request) else {
            let message = format!("no piece of the text begins at character {}", request.from);
            return Err(WireError::new(ErrorCode::Invalid, message).field("from"));
        };
        let picked = self
            .registry()
            .pick_speech(&request.model, &request.voice, request.engine)?;
        let active = self.enter()?;
        let seat = self.admission().enter(picked.engine.index)?;
        Speaking::new(Arc::clone(self), request, chunks, picked, seat, active)
    }

    /// Hears `request` on an engine of this agent for this agent: the engine's stream is polled
    /// by whoever polls the frames, and dropping them cancels it.
    ///
    /// # Errors
    /// [`LinkError::Refused`], with the reason that a remote client would get; nothing was
    /// done.
    pub fn hear_local(
        self: &Arc<Self>,
        request: HearRequest,
    ) -> Result<Box<dyn HearLink>, LinkError> {
        let hearing = self.admit_hearing(request).map_err(LinkError::Refused)?;
        Ok(Box::new(hearing))
    }

    /// Takes an utterance in: everything that is checked before an engine is asked.
    ///
    /// # Errors
    /// Why not; nothing was done.
    pub(super) fn admit_hearing(
        self: &Arc<Self>,
        request: HearRequest,
    ) -> Result<Hearing, WireError> {
        self.refuse_if_leaving()?;
        request.check()?;
        let picked = self
            .registry()
            .pick_hearing(&request.model, request.engine)?;
        let active = self.enter()?;
        let seat = self.admission().enter(picked.index)?;
        // An engine that is free until it is asked only shows now that its queue is not full.
        let seat = works_live(picked.engine.kind()).then_some(seat);
        Hearing::new(Arc::clone(self), request, picked, seat, active)
    }
}
