//! A keep-alive HTTP/1.1 client that costs as little as a client can: one blocking socket, one
//! write a request, no task switch between the kernel and the clock. What it measures is the
//! server. It understands what our servers send (a length or chunks) and nothing else.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A server that says nothing for this long fails the benchmark.
const SILENCE: Duration = Duration::from_secs(30);
/// Head and body of one reply stay below.
const MAX_REPLY: usize = 16 * 1024 * 1024;
const READ: usize = 16 * 1024;

/// A connection.
pub struct Connection {
    stream: TcpStream,
    /// Bytes read and not yet used.
    buffer: Vec<u8>,
    /// How far `buffer` is used.
    at: usize,
    body: Framing,
}

/// How much of the body is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// No reply is being read.
    Idle,
    /// This many bytes.
    Length(usize),
    /// In chunks; this many bytes are left of the current one.
    Chunked(usize),
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let buffer = Vec::with_capacity(2 * READ);
        Ok(Connection {
            stream,
            buffer,
            at: 0,
            body: Framing::Idle,
        })
    }

    /// Sends a request made by [`request`] and reads the head of the reply: its status.
    ///
    /// # Errors
    /// The connection broke, or the reply is no HTTP/1.1.
    pub fn send(&mut self, request: &[u8]) -> io::Result<u16> {
        while self.piece()?.is_some() {}
        self.stream.write_all(request)?;
        let end = loop {
            let unread = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(end) = find(unread, b"\r\n\r\n") {
                break self.at + end;
            }
            self.fill()?;
        };
        let head = self.buffer.get(self.at..end).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| invalid("the head is not UTF-8"))?;
        let (status, body) = read_head(head)?;
        self.at = end + 4;
        self.body = body;
        Ok(status)
    }

    /// The next piece of the body, as it arrived; `None` at its end.
    ///
    /// # Errors
    /// The connection broke before the end.
    pub fn piece(&mut self) -> io::Result<Option<&[u8]>> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        if let Framing::Chunked(0) = self.body {
            match self.chunk_size()? {
                0 => {
                    self.line()?;
                    self.body = Framing::Idle;
                }
                size => self.body = Framing::Chunked(size),
            }
        }
        let left = match self.body {
            Framing::Idle | Framing::Length(0) => {
                self.body = Framing::Idle;
                return Ok(None);
            }
            Framing::Length(left) | Framing::Chunked(left) => left,
        };
        if self.at == self.buffer.len() {
            self.fill()?;
        }
        let size = left.min(self.buffer.len() - self.at);
        let start = self.at;
        self.at += size;
        self.body = match self.body {
            Framing::Chunked(_) if size == left => {
                self.line()?;
                Framing::Chunked(0)
            }
            Framing::Chunked(_) => Framing::Chunked(left - size),
            _ => Framing::Length(left - size),
        };
        Ok(self.buffer.get(start..start + size))
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// As [`Connection::piece`], or it is too large.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece()? {
            if all.len() + piece.len() > MAX_REPLY {
                return Err(invalid("the reply is too large"));
            }
            all.extend_from_slice(piece);
        }
        Ok(all)
    }

    fn chunk_size(&mut self) -> io::Result<usize> {
        let line = self.line()?;
        let line = self.buffer.get(line.0..line.1).unwrap_or_default();
        let text = std::str::from_utf8(line).unwrap_or_default();
        let size = text.split(';').next().unwrap_or_default().trim();
        usize::from_str_radix(size, 16).map_err(|_| invalid("bad chunk size"))
    }

    /// Takes a line; its range in the buffer, the end of line excluded.
    ///
    /// Never moves what was taken before: [`Connection::piece`] still points there.
    fn line(&mut self) -> io::Result<(usize, usize)> {
        loop {
            let unread = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(len) = find(unread, b"\r\n") {
                let start = self.at;
                self.at += len + 2;
                return Ok((start, start + len));
            }
            self.append()?;
        }
    }

    /// Makes room at the front, then reads more.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.append()
    }

    fn append(&mut self) -> io::Result<()> {
        if self.buffer.len() > MAX_REPLY {
            return Err(invalid("the reply is too large"));
        }
        let len = self.buffer.len();
        self.buffer.resize(len + READ, 0);
        let room = self.buffer.get_mut(len..).unwrap_or_default();
        let read = self.stream.read(room);
        self.buffer
            .truncate(len + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A request on one piece of memory, to be sent again and again. `token`: for the mesh API.
pub fn request(addr: SocketAddr, target: &str, token: Option<&str>, body: Option<&str>) -> Vec<u8> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let auth = token.map(|t| format!("authorization: Bearer {t}\r\n"));
    let auth = auth.unwrap_or_default();
    let body = body.unwrap_or_default();
    format!(
        "{method} {target} HTTP/1.1\r\nhost: {addr}\r\n{auth}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// One request on a connection of its own: its status and body.
///
/// # Errors
/// As [`Connection`]'s functions.
pub fn once(
    addr: SocketAddr,
    target: &str,
    token: Option<&str>,
    body: Option<&str>,
) -> io::Result<(u16, Vec<u8>)> {
    let mut connection = Connection::open(addr)?;
    let status = connection.send(&request(addr, target, token, body))?;
    Ok((status, connection.rest()?))
}

/// Where `needle` begins in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|w| w == needle)
}

fn read_head(head: &str) -> io::Result<(u16, Framing)> {
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| invalid("no status line"))?;
    let mut body = Framing::Length(0);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.trim().parse();
            body = Framing::Length(length.map_err(|_| invalid("bad content-length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            body = Framing::Chunked(0);
        }
    }
    Ok((status, body))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn replies_with_chunks_and_lengths_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for reply in [
                &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n"[..],
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
                b"HTTP/1.1 204 No Content\r\n\r\n",
            ] {
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                // One byte at a time: every boundary falls everywhere.
                for byte in reply {
                    stream.write_all(&[*byte]).unwrap();
                }
            }
        });
        let mut connection = Connection::open(addr).unwrap();
        let get = request(addr, "/", None, None);
        for (status, body) in [(200, &b"hello!"[..]), (404, b"no"), (204, b"")] {
            assert_eq!(connection.send(&get).unwrap(), status);
            assert_eq!(connection.rest().unwrap(), body);
        }
        server.join().unwrap();
    }
}
