//! Just enough of an HTTP client: one request a connection, JSON in, JSON or lines out. It can
//! reach into a network namespace, which no ordinary client can.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Where sockets are made.
#[derive(Clone, Debug)]
pub enum Net {
    /// Here.
    Host,
    /// In the network namespace with this name.
    Namespace(Arc<str>),
}

impl Net {
    /// Runs `make` there: on a thread that moves into the namespace. A socket belongs for ever to
    /// the namespace in which it was made, so it may leave with the result.
    ///
    /// # Errors
    /// What `make` or the system says.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Net::Namespace(name) = self else {
            return make();
        };
        let entered = || {
            enter(name)?;
            make()
        };
        std::thread::scope(|scope| scope.spawn(entered).join())
            .map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    }

    /// Connects to `addr` as it is seen from there.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        // Loopback: connects or is refused at once.
        let stream = self.inside(|| std::net::TcpStream::connect(addr))?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// Listens on a free loopback port there.
    ///
    /// # Errors
    /// What the system says.
    pub async fn listen(&self) -> io::Result<TcpListener> {
        let listener = self.inside(|| std::net::TcpListener::bind("127.0.0.1:0"))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }
}

/// Moves this thread into a namespace.
#[cfg(target_os = "linux")]
fn enter(name: &str) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let namespace = std::fs::File::open(std::path::Path::new("/run/netns").join(name))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn enter(_name: &str) -> io::Result<()> {
    Err(io::Error::other("network namespaces are Linux's"))
}

/// An HTTP server, as seen from somewhere.
#[derive(Clone, Debug)]
pub struct Server {
    /// From where.
    pub net: Net,
    /// Its address.
    pub addr: SocketAddr,
    /// Sent as a bearer token.
    pub token: Option<String>,
}

impl Server {
    /// Sends a request; a `body` makes it a POST.
    ///
    /// # Errors
    /// The reason in words if no response came. A response of any status is `Ok`.
    pub async fn send(&self, path: &str, body: Option<&Value>) -> Result<Reply, String> {
        let request = self.request(path, body).map_err(|e| e.to_string())?;
        let stream = self
            .net
            .connect(self.addr)
            .await
            .map_err(|e| format!("connect: {e}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The request's own result tells what went wrong.
            connection.await.ok();
        });
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| format!("{path}: {e}"))?;
        Ok(Reply {
            response,
            buffered: Vec::new(),
            _tasks: tasks,
        })
    }

    fn request(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> hyper::http::Result<Request<Full<Bytes>>> {
        let method = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.addr.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::from(body.map(Value::to_string).unwrap_or_default()))
    }

    /// The JSON that `path` answers with status 200.
    ///
    /// # Errors
    /// No answer, another status (with its body), no JSON.
    pub async fn json(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let reply = self.send(path, body).await?;
        let status = reply.status();
        let value = reply.json().await?;
        if status == 200 {
            Ok(value)
        } else {
            Err(format!("{path}: {status}: {value}"))
        }
    }
}

/// A response whose body is still to come. Dropping it closes the connection.
pub struct Reply {
    response: Response<Incoming>,
    buffered: Vec<u8>,
    _tasks: JoinSet<()>,
}

impl Reply {
    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header's value; empty if absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// The body broke off, or is no JSON.
    pub async fn json(self) -> Result<Value, String> {
        let body = self
            .response
            .into_body()
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        serde_json::from_slice(&body)
            .map_err(|e| format!("no JSON ({e}): {}", String::from_utf8_lossy(&body)))
    }

    /// The next line of the body that is not empty, without its end; `None` after the last.
    ///
    /// # Errors
    /// The body broke off.
    pub async fn line(&mut self) -> Result<Option<String>, String> {
        loop {
            while let Some(end) = self.buffered.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffered.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            match self.response.body_mut().frame().await {
                None if self.buffered.is_empty() => return Ok(None),
                None => self.buffered.push(b'\n'),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() {
                        self.buffered.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
