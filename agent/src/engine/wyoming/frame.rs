//! Wyoming's framing: a line of JSON, then as many bytes of data and payload as it says.

use serde_json::{Map, Value};
use unamesh_proto::limits::MAX_WYOMING_PART;

/// Bytes are no Wyoming, or too many. The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A header line, data or a payload that exceeds [`MAX_WYOMING_PART`].
    #[error("a part of an event exceeds {MAX_WYOMING_PART} bytes")]
    TooLong,
    /// Not what Wyoming says.
    #[error("sent an event that is not of the Wyoming protocol")]
    Rubbish,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// `audio-chunk`, `transcript`, ...
    pub kind: String,
    /// Its fields.
    pub data: Map<String, Value>,
    /// Bytes of sound.
    pub payload: Vec<u8>,
}

impl Frame {
    /// An event without payload.
    pub fn new(kind: &str, data: Value) -> Frame {
        Frame {
            kind: kind.to_owned(),
            data: match data {
                Value::Object(data) => data,
                _ => Map::new(),
            },
            payload: Vec::new(),
        }
    }

    /// A field that is text; empty if it is none.
    pub fn text(&self, name: &str) -> &str {
        self.data
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Appends it as it travels. Data stands in the header line, which all versions read.
    pub fn write(&self, out: &mut Vec<u8>) {
        let header = serde_json::json!({
            "type": self.kind,
            "data": self.data,
            "payload_length": self.payload.len(),
        });
        out.extend_from_slice(header.to_string().as_bytes());
        out.push(b'\n');
        out.extend_from_slice(&self.payload);
    }
}

/// Bytes in, frames out; knows of no socket.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// No newline before this offset.
    searched: usize,
    /// The header of the frame that is coming, and the lengths of its data and payload.
    header: Option<(Frame, usize, usize)>,
}

impl Frames {
    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.header.is_none() && !self.head()? {
            return Ok(None);
        }
        let Some((_, data, payload)) = self.header else {
            return Ok(None);
        };
        if self.bytes.len() < data + payload {
            return Ok(None);
        }
        let Some((mut frame, ..)) = self.header.take() else {
            return Ok(None);
        };
        if data > 0 {
            match serde_json::from_slice(&self.bytes[..data]) {
                Ok(Value::Object(more)) => frame.data.extend(more),
                _ => return Err(FrameError::Rubbish),
            }
        }
        frame.payload = self.bytes[data..data + payload].to_vec();
        self.bytes.drain(..data + payload);
        Ok(Some(frame))
    }

    /// Reads a header line, if a whole one is there.
    fn head(&mut self) -> Result<bool, FrameError> {
        let line = self.bytes[self.searched..].iter().position(|b| *b == b'\n');
        let Some(line) = line.map(|at| self.searched + at) else {
            self.searched = self.bytes.len();
            return match self.searched > MAX_WYOMING_PART {
                true => Err(FrameError::TooLong),
                false => Ok(false),
            };
        };
        if line > MAX_WYOMING_PART {
            return Err(FrameError::TooLong);
        }
        let header: Value =
            serde_json::from_slice(&self.bytes[..line]).map_err(|_| FrameError::Rubbish)?;
        let kind = header["type"].as_str().ok_or(FrameError::Rubbish)?;
        let length = |name: &str| match &header[name] {
            Value::Null => Ok(0),
            length => match length.as_u64().map(usize::try_from) {
                Some(Ok(length)) if length <= MAX_WYOMING_PART => Ok(length),
                Some(_) => Err(FrameError::TooLong),
                None => Err(FrameError::Rubbish),
            },
        };
        let lengths = (length("data_length")?, length("payload_length")?);
        let frame = Frame::new(kind, header["data"].clone());
        self.header = Some((frame, lengths.0, lengths.1));
        self.bytes.drain(..=line);
        self.searched = 0;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut one = Frame::new("audio-chunk", serde_json::json!({"rate": 22050}));
        one.payload = vec![10, 0, b'\n', 255];
        let mut bytes = Vec::new();
        one.write(&mut bytes);
        bytes.extend(b"{\"type\":\"info\",\"data\":{\"a\":1},\"data_length\":7}\n{\"b\":2}");
        for piece in 1..bytes.len() {
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            for bytes in bytes.chunks(piece) {
                frames.push(bytes);
                while let Some(frame) = frames.next().unwrap() {
                    got.push(frame);
                }
            }
            let two = Frame::new("info", serde_json::json!({"a": 1, "b": 2}));
            assert_eq!(got, [one.clone(), two]);
        }
    }

    #[test]
    fn hostile_frames_are_errors() {
        let of = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.push(bytes);
            frames.next()
        };
        assert_eq!(
            of(&vec![b'x'; MAX_WYOMING_PART + 1]),
            Err(FrameError::TooLong)
        );
        let huge = b"{\"type\":\"a\",\"payload_length\":99999999999}\n";
        assert_eq!(of(huge), Err(FrameError::TooLong));
        let negative = b"{\"type\":\"a\",\"data_length\":-1}\n";
        assert_eq!(of(negative), Err(FrameError::Rubbish));
        assert_eq!(of(b"{}\n"), Err(FrameError::Rubbish));
        assert_eq!(of(b"HTTP/1.1 400 Bad\r\n"), Err(FrameError::Rubbish));
        assert_eq!(
            of(b"{\"type\":\"a\",\"data_length\":2}\n[]"),
            Err(FrameError::Rubbish)
        );
    }
}
