//! Frames to bytes that the network and the journal share.

use bytes::{Bytes, BytesMut};
use unamesh_proto::wire::{DecodeError, GenFrame};

/// Frames share allocations of this size: some hundred tokens each.
const BLOCK: usize = 8 * 1024;

/// Encodes frames into shared blocks: no allocation a frame.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// The codec writes to a `Vec`; it is reused.
    scratch: Vec<u8>,
    block: BytesMut,
}

impl Encoder {
    /// `frame` as its record.
    ///
    /// # Errors
    /// The frame exceeds its class.
    pub fn record(&mut self, frame: &GenFrame) -> Result<Bytes, DecodeError> {
        self.written(|out| frame.encode(out))
    }

    /// What `encode` appends.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn written(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), DecodeError>,
    ) -> Result<Bytes, DecodeError> {
        self.scratch.clear();
        encode(&mut self.scratch)?;
        if self.block.capacity() < self.scratch.len() {
            self.block = BytesMut::with_capacity(BLOCK.max(self.scratch.len()));
        }
        self.block.extend_from_slice(&self.scratch);
        Ok(self.block.split().freeze())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_proto::wire::{Chunk, Token, codec};

    #[test]
    fn records_of_any_size_come_out_whole() {
        let mut encoder = Encoder::default();
        let mut kept = Vec::new();
        for index in 0..2000_u32 {
            let text = "x".repeat((index as usize * 37) % 9000);
            let chunk = Chunk {
                text,
                ids: vec![index],
                tokens: 1,
            };
            let frame = GenFrame::Token(Token {
                index,
                chunk,
                extra: String::new(),
            });
            kept.push((encoder.record(&frame).unwrap(), frame));
        }
        for (bytes, frame) in kept {
            let (kind, body, rest) = codec::split(&bytes).unwrap().unwrap();
            assert!(rest.is_empty());
            assert_eq!(GenFrame::decode(kind, body).unwrap(), Some(frame));
        }
    }
}
