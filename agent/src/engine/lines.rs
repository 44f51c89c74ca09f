//! Lines of a streamed answer: server-sent events or newline-delimited JSON.
//!
//! Bytes arrive cut anywhere, also within a character. A line is handed out only once its
//! newline is there, so half a character at a border is simply held; what is no UTF-8 within a
//! whole line is rubbish and a typed error. A line longer than
//! [`MAX_ENGINE_LINE`] is an error as soon as it is
//! that long, whether or not its end ever comes.

use super::http::{Body, HttpError};
use bytes::{Buf, BytesMut};
use std::ops::Range;
use std::task::{Context, Poll};
use unamesh_proto::limits::MAX_ENGINE_LINE;

/// Why no line could be read. The stream is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The connection broke.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A line without end.
    #[error("a line exceeds {MAX_ENGINE_LINE} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("a line is not UTF-8")]
    NotUtf8,
}

/// Cuts bytes into lines; knows of no socket.
#[derive(Default)]
pub struct LineBuffer {
    bytes: BytesMut,
    /// No newline before this offset.
    searched: usize,
    /// Handed out already, to be dropped at the next call.
    taken: usize,
}

impl LineBuffer {
    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.drop_taken();
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its line end, if there is one.
    ///
    /// # Errors
    /// [`LineError::TooLong`] or [`LineError::NotUtf8`].
    pub fn line(&mut self) -> Result<Option<&str>, LineError> {
        match self.find()? {
            Some(range) => self.text(range).map(Some),
            None => Ok(None),
        }
    }

    /// The stream is over: what remains is a last line without newline. JSON lines end with
    /// one, but a server that closes right after the last brace means no harm.
    ///
    /// # Errors
    /// [`LineError::NotUtf8`].
    pub fn rest(&mut self) -> Result<Option<&str>, LineError> {
        self.drop_taken();
        if self.bytes.is_empty() {
            return Ok(None);
        }
        self.taken = self.bytes.len();
        self.text(0..self.taken).map(Some)
    }

    fn find(&mut self) -> Result<Option<Range<usize>>, LineError> {
        self.drop_taken();
        match self.bytes[self.searched..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let end = self.searched + at;
                if end > MAX_ENGINE_LINE {
                    return Err(LineError::TooLong);
                }
                self.taken = end + 1;
                let without_cr = end - usize::from(end > 0 && self.bytes[end - 1] == b'\r');
                Ok(Some(0..without_cr))
            }
            None if self.bytes.len() > MAX_ENGINE_LINE => Err(LineError::TooLong),
            None => {
                self.searched = self.bytes.len();
                Ok(None)
            }
        }
    }

    fn text(&self, range: Range<usize>) -> Result<&str, LineError> {
        std::str::from_utf8(&self.bytes[range]).map_err(|_| LineError::NotUtf8)
    }

    fn drop_taken(&mut self) {
        if self.taken > 0 {
            self.bytes.advance(self.taken);
            self.taken = 0;
            self.searched = 0;
        }
    }
}

/// Lines of a body.
pub struct Lines {
    body: Body,
    buffer: LineBuffer,
    ended: bool,
}

impl Lines {
    /// Reads `body`.
    pub fn new(body: Body) -> Self {
        Lines {
            body,
            buffer: LineBuffer::default(),
            ended: false,
        }
    }

    /// The next line that is not empty; `None` at the end.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn next(&mut self) -> Result<Option<&str>, LineError> {
        loop {
            if let Some(range) = self.buffer.find()? {
                if range.is_empty() {
                    continue;
                }
                return self.buffer.text(range).map(Some);
            }
            if self.ended {
                return self.buffer.rest();
            }
            match self.body.next().await? {
                Some(bytes) => self.buffer.push(&bytes),
                None => self.ended = true,
            }
        }
    }

    /// Everything of meaning was read: takes in the end of the body if it has arrived already,
    /// so that the connection can be used again. Does not wait.
    pub fn finish(&mut self, cx: &mut Context<'_>) {
        while !self.ended {
            match self.body.poll_next(cx) {
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Ok(None) | Err(_)) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }
}

/// What a line of an event stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sse<'a> {
    /// A `data:` line. The servers here put an event into one line, so that it is a whole event.
    Data(&'a str),
    /// An `error:` line (older llama.cpp).
    Error(&'a str),
    /// A comment, or a field of no interest.
    Other,
}

/// Reads one line of an event stream.
pub fn sse(line: &str) -> Sse<'_> {
    let value = |rest: &'static str| {
        line.strip_prefix(rest)
            .map(|value| value.strip_prefix(' ').unwrap_or(value))
    };
    if let Some(data) = value("data:") {
        Sse::Data(data)
    } else if let Some(error) = value("error:") {
        Sse::Error(error)
    } else {
        Sse::Other
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Result<Vec<String>, LineError> {
        let mut buffer = LineBuffer::default();
        let mut out = Vec::new();
        for chunk in chunks {
            buffer.push(chunk);
            while let Some(line) = buffer.line()? {
                out.push(line.to_owned());
            }
        }
        if let Some(line) = buffer.rest()? {
            out.push(line.to_owned());
        }
        Ok(out)
    }

    #[test]
    fn half_a_character_is_held_at_every_cut() {
        let text = "data: {\"a\":\"日本🦊é\"}\r\n\ndata: ü\n";
        for cut in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(
                lines(&[a, b]).unwrap(),
                ["data: {\"a\":\"日本🦊é\"}", "", "data: ü"],
                "{cut}"
            );
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(lines(&bytes).unwrap().len(), 3);
    }

    #[test]
    fn rubbish_is_a_typed_error() {
        assert_eq!(lines(&[b"ok\n\xff\xfe\n"]), Err(LineError::NotUtf8));
        // Half a character before the newline, and at the very end.
        assert_eq!(
            lines(&[&"é".as_bytes()[..1], b"\n"]),
            Err(LineError::NotUtf8)
        );
        assert_eq!(lines(&[&"é".as_bytes()[..1]]), Err(LineError::NotUtf8));
    }

    #[test]
    fn an_endless_line_is_refused_at_the_limit() {
        let mut buffer = LineBuffer::default();
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..MAX_ENGINE_LINE / chunk.len() {
            buffer.push(&chunk);
            assert_eq!(buffer.line(), Ok(None));
        }
        buffer.push(b"x");
        assert_eq!(buffer.line(), Err(LineError::TooLong));
    }

    #[test]
    fn the_last_line_needs_no_newline() {
        assert_eq!(
            lines(&[b"{\"done\":false}\n{\"done\"", b":true}"]).unwrap(),
            ["{\"done\":false}", "{\"done\":true}"]
        );
    }

    #[test]
    fn event_stream_fields() {
        assert_eq!(sse("data: {}"), Sse::Data("{}"));
        assert_eq!(sse("data:{}"), Sse::Data("{}"));
        assert_eq!(sse("error: x"), Sse::Error("x"));
        assert_eq!(sse(": ping"), Sse::Other);
        assert_eq!(sse("event: message"), Sse::Other);
    }
}
