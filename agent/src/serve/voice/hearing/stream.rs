//! Hearing for a client elsewhere, whose sound comes by the stream and by datagrams. What comes
//! while a frame is being written waits: the stream's in its window, a datagram in its box.

use super::super::super::drills::Hang;
use super::super::stream::Served;
use super::{Hearing, Mic};
use std::task::{Context, Poll};
use unamesh_proto::wire::{DecodeError, HearFrame, Record, UpSound, UtteranceEnd, codec};

/// An utterance, and the microphone that it comes from.
pub(in super::super::super) struct Remote {
    hearing: Hearing,
    mic: Mic,
}

impl Hearing {
    /// It is asked by another member, whose datagrams come to `mic`.
    pub fn for_another(mut self, mic: Mic) -> Remote {
        self.hang = Hang::of(self.service.drills());
        Remote { hearing: self, mic }
    }
}

impl Served for Remote {
    type Frame = HearFrame;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<HearFrame>> {
        while let Poll::Ready(datagram) = self.mic.poll_next(cx) {
            self.hearing.live(&datagram);
        }
        self.hearing.poll_next(cx)
    }

    fn said(&mut self, kind: u16, body: &[u8]) -> Result<(), DecodeError> {
        match kind {
            UpSound::KIND => {
                let UpSound { seq, opus } = codec::body(body)?;
                self.hearing.sound(seq, &opus);
            }
            UtteranceEnd::KIND => {
                let UtteranceEnd { frames } = codec::body(body)?;
                // What has arrived before the end counts before it.
                while let Some(datagram) = self.mic.try_next() {
                    self.hearing.live(&datagram);
                }
                self.hearing.end(frames);
            }
            kind => {
                let expected = UpSound::NAME;
                return Err(DecodeError::Unexpected { expected, kind });
            }
        }
        Ok(())
    }
}
