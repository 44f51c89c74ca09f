//! The streams of speech: what a receiver tells the agent meanwhile.

use super::transport::{Frame, QuicStream};
use crate::transport::{HearLink, LinkError, SpeakLink};
use bytes::Bytes;
use std::task::{Context, Poll};
use tracing::{debug, warn};
use unamesh_proto::speech::uplink::Datagram;
use unamesh_proto::wire::{
    DecodeError, Grant, HearFrame, Record, SpeakFrame, UpSound, UtteranceEnd,
};

impl Frame for SpeakFrame {
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        SpeakFrame::decode(kind, body)
    }

    fn is_terminal(&self) -> bool {
        SpeakFrame::is_terminal(self)
    }
}

impl Frame for HearFrame {
    fn decode(kind: u16, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        HearFrame::decode(kind, body)
    }

    fn is_terminal(&self) -> bool {
        HearFrame::is_terminal(self)
    }
}

impl<F: Frame> QuicStream<F> {
    /// Writes what was queued, after reading: whoever has sent its last frame may have stopped
    /// reading before, which is no failure. A path that is lost ends the reading too.
    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<F, LinkError>>> {
        let frame = self.poll_next(cx);
        if let Poll::Ready(Err(error)) = self.writer.poll_flush(cx) {
            debug!(%error, "the peer takes no more");
        }
        frame
    }

    fn queue<R: Record>(&mut self, record: &R) {
        // A frame and a grant always fit their class.
        if let Err(error) = self.writer.push(record) {
            warn!(%error, "not sent");
        }
    }
}

impl SpeakLink for QuicStream<SpeakFrame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SpeakFrame, LinkError>>> {
        self.poll_both(cx)
    }

    fn grant(&mut self, grant: Grant) {
        self.queue(&grant);
    }
}

impl HearLink for QuicStream<HearFrame> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HearFrame, LinkError>>> {
        self.poll_both(cx)
    }

    fn sound(&mut self, seq: u32, opus: &[u8]) {
        let opus = opus.to_vec();
        self.queue(&UpSound { seq, opus });
    }

    fn live(&mut self, datagram: &[u8]) {
        let fits = |most| datagram.len() <= most;
        if self.connection.max_datagram_size().is_some_and(fits) {
            // Fails only with the connection, which the stream tells.
            let _ = self
                .connection
                .send_datagram(Bytes::copy_from_slice(datagram));
            return;
        }
        let newest = Datagram::parse(datagram).ok();
        if let Some((seq, opus)) = newest.and_then(|d| d.frames().last()) {
            self.sound(seq, opus);
        }
    }

    fn end(&mut self, frames: u32) {
        self.queue(&UtteranceEnd { frames });
    }
}
