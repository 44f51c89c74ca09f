//! A connection and the body that is read from it, driven by whoever reads.

use super::{HttpError, Inner, lock};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// One connection: the request side and the socket's driver, polled together.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    io: Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>,
    /// The driver has ended; it must not be polled again.
    over: bool,
}

impl Link {
    pub(super) fn new(
        sender: http1::SendRequest<Full<Bytes>>,
        io: http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
    ) -> Self {
        Link {
            sender,
            io: Box::pin(io),
            over: false,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over {
            self.over = self.io.as_mut().poll(cx).is_ready();
        }
    }

    /// Whether it lives and takes a request.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.over && self.sender.is_ready()
    }

    /// Sends a request; resolves with the head of its answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, HttpError> {
        let Link { sender, io, over } = self;
        let mut answer = pin!(sender.send_request(request));
        poll_fn(|cx| {
            if let Poll::Ready(done) = answer.as_mut().poll(cx) {
                return Poll::Ready(done.map_err(broken));
            }
            if !*over {
                *over = io.as_mut().poll(cx).is_ready();
            }
            match answer.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(done.map_err(broken)),
                Poll::Pending if *over => {
                    Poll::Ready(Err(HttpError::Broken("closed without an answer".into())))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// The body of an answer. Dropping it before its end closes the connection.
pub struct Body {
    incoming: Incoming,
    /// Gone once the body is read to its end and the connection went back.
    link: Option<Link>,
    home: Arc<Inner>,
}

impl Body {
    pub(super) fn new(incoming: Incoming, link: Link, home: Arc<Inner>) -> Self {
        Body {
            incoming,
            link: Some(link),
            home,
        }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`HttpError::Broken`]: the connection ended before the body did.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// [`HttpError::Broken`], or [`HttpError::TooLarge`] beyond `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, HttpError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > limit {
                return Err(HttpError::TooLarge(limit));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }

    /// As [`Body::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, HttpError>> {
        let mut driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Poll::Ready(Some(Err(e))) => {
                    self.link = None;
                    return Poll::Ready(Err(broken(e)));
                }
                Poll::Ready(None) => {
                    self.give_back(cx);
                    return Poll::Ready(Ok(None));
                }
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    driven = true;
                    match &mut self.link {
                        Some(link) => link.drive(cx),
                        None => return Poll::Ready(Ok(None)),
                    }
                }
            }
        }
    }

    fn give_back(&mut self, cx: &mut Context<'_>) {
        let Some(mut link) = self.link.take() else {
            return;
        };
        let mut idle = lock(&self.home.idle);
        if idle.len() < self.home.max_idle && link.is_usable(cx) {
            idle.push(link);
        }
    }
}

fn broken(error: hyper::Error) -> HttpError {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text = format!("{text}: {source}");
    }
    HttpError::Broken(text)
}
