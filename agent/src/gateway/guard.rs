//! Who may ask at all, checked before any route.
//!
//! A web page can make its visitor's browser send requests to 127.0.0.1. Three checks keep
//! it out: the `Host` must be this machine (a page that rebinds its own name to a loopback
//! address still sends its own name), an `Origin` must be of this machine too, and the mesh
//! API wants the token from the state directory. Callers from other machines need that token
//! for everything, unless the owner said `gateway.open`.

use super::GatewayState;
use super::error::{ApiError, INVALID};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use std::net::{IpAddr, SocketAddr};
use unamesh_proto::limits;

const BEARER: &str = "Bearer ";

/// Checks a request's head; `remote` is where its connection comes from.
///
/// # Errors
/// 400 without a host, 403 a foreign host or origin, 401 without the token where it is needed.
pub fn check(
    state: &GatewayState,
    uri: &Uri,
    headers: &HeaderMap,
    remote: IpAddr,
) -> Result<(), ApiError> {
    check_host(state, uri, headers)?;
    check_origin(state, headers)?;
    let local = remote.to_canonical().is_loopback();
    // Whoever can reach it may see that it is there, which is all that these two say.
    let public = state.open || matches!(uri.path(), "/" | "/health");
    if uri.path().starts_with("/unamesh/") || !(local || public) {
        check_token(state, headers)?;
    }
    Ok(())
}

fn check_host(state: &GatewayState, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = match headers.get(header::HOST) {
        Some(value) => value.to_str().unwrap_or_default(),
        None => uri.authority().map_or("", |a| a.as_str()),
    };
    if host.is_empty() {
        return Err(ApiError::invalid(
            "host_missing",
            "the request has no Host header",
        ));
    }
    if is_ours(state.listen, host_of(host)) {
        return Ok(());
    }
    Err(forbidden(
        "host_refused",
        format!(
            "this server answers for localhost and {} only, not for {:?}",
            state.listen,
            shorten(host)
        ),
    ))
}

fn check_origin(state: &GatewayState, headers: &HeaderMap) -> Result<(), ApiError> {
    if headers
        .get("sec-fetch-site")
        .is_some_and(|v| v == "cross-site")
    {
        return Err(forbidden(
            "origin_refused",
            "cross-site requests are refused",
        ));
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let text = origin.to_str().unwrap_or_default();
    let host = text.split_once("://").map_or("", |(_, rest)| host_of(rest));
    if !host.is_empty() && is_ours(state.listen, host) {
        return Ok(());
    }
    let message = format!("requests from web pages of {:?} are refused", shorten(text));
    Err(forbidden("origin_refused", message))
}

fn check_token(state: &GatewayState, headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    let token = given.and_then(|text| match text.split_at_checked(BEARER.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => Some(token),
        _ => None,
    });
    if token.is_some_and(|token| state.token.matches(token)) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNAUTHORIZED,
        INVALID,
        "token_required",
        "this needs `Authorization: Bearer TOKEN` with the token from the file admin.token in the agent's state directory",
    ))
}

/// The host without its port.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    authority
        .split_once(':')
        .map_or(authority, |(host, _)| host)
}

/// Whether a host names this machine. An address literal cannot be rebound, so on a gateway
/// that listens on every interface each literal is fine.
fn is_ours(listen: SocketAddr, host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let lower = name.to_ascii_lowercase();
    if lower == "localhost" || lower.ends_with(".localhost") {
        return true;
    }
    let Ok(ip) = lower.parse::<IpAddr>() else {
        return false;
    };
    let (ip, own) = (ip.to_canonical(), listen.ip().to_canonical());
    ip.is_loopback() || ip == own || own.is_unspecified()
}

fn forbidden(code: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, INVALID, code, message)
}

fn shorten(text: &str) -> String {
    text.chars().take(limits::MAX_NAME).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine() {
        let local: SocketAddr = "127.0.0.1:11400".parse().unwrap();
        for host in [
            "localhost",
            "LOCALHOST.",
            "app.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_ours(local, host), "{host}");
        }
        for host in [
            "evil.example",
            "192.168.1.5",
            "localhost.evil.example",
            "0.0.0.0",
            "",
        ] {
            assert!(!is_ours(local, host), "{host}");
        }
        let any: SocketAddr = "[::]:11400".parse().unwrap();
        assert!(is_ours(any, "192.168.1.5"));
        assert!(!is_ours(any, "evil.example"));
    }

    #[test]
    fn host_without_port() {
        assert_eq!(host_of("localhost:80"), "localhost");
        assert_eq!(host_of("[::1]:80"), "::1");
        assert_eq!(host_of("[::1"), "");
        assert_eq!(host_of("a"), "a");
    }
}
