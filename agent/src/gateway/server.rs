//! HTTP/1.1 connections: hyper directly below axum's router, so that each connection is a
//! task that we own, with a bound on their number, on how long a head may take and on how long
//! a client may leave its answer unread.

use super::error::ApiError;
use super::stall::Stalling;
use super::takeover::Takeover;
use super::{GatewayState, guard, router};
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use unamesh_proto::{limits, timeouts};

/// After a failed accept (no file descriptors left) wait this long instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `state.stop` is cancelled, then lets running answers end for at most
/// [`timeouts::SHUTDOWN`]. Returns when every connection's task has ended.
pub async fn serve(listener: TcpListener, state: GatewayState) {
    let permits = Arc::new(Semaphore::new(limits::MAX_HTTP_CONNECTIONS));
    let router = router(state.clone());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = state.stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else {
            break;
        };
        connections.spawn(connection(
            stream,
            remote,
            router.clone(),
            state.clone(),
            permit,
        ));
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(timeouts::SHUTDOWN, ended)
        .await
        .is_err()
    {
        tracing::warn!("connections of the gateway were still open at shutdown");
        connections.shutdown().await;
    }
}

/// The next connection; waits while all permits are out (the kernel's backlog holds callers).
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => return Some((stream, remote, permit)),
            Err(e) => {
                tracing::warn!(error = %e, "the gateway cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    router: Router,
    state: GatewayState,
    _permit: OwnedSemaphorePermit,
) {
    // A token must not wait for the acknowledgement of the one before.
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(error = %e, "no TCP_NODELAY");
    }
    let stream = Stalling::new(stream, timeouts::READER_STALL);
    let routes = TowerToHyperService::new(router);
    let stop = state.stop.clone();
    let takeover = Takeover::default();
    let offered = takeover.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(offered.clone());
        let verdict = guard::check(&state, request.uri(), request.headers(), remote.ip());
        respond(routes.clone(), request, verdict)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts::HTTP_HEAD)
        .max_headers(limits::MAX_HTTP_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        // Clients that hang up in the middle are everyday life.
        tracing::debug!(error = %e, %remote, "a gateway connection ended");
    }
    // What took the connection over goes on in its task, under its permit.
    takeover.run().await;
}

async fn respond(
    routes: TowerToHyperService<Router>,
    request: hyper::Request<Incoming>,
    verdict: Result<(), ApiError>,
) -> Result<Response, Infallible> {
    match verdict {
        Ok(()) => {
            hyper::service::Service::call(&routes, request.map(axum::body::Body::new) as Request)
                .await
        }
        Err(refused) => Ok(refused.into_response()),
    }
}
