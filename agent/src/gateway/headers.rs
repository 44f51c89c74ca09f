//! The gateway's own headers: what it says of an answer beside it, and what a caller may ask.
//!
//! | header | of | says |
//! |---|---|---|
//! | `x-unamesh-peer`, `x-unamesh-node` | response | who began the answer |
//! | `x-unamesh-why` | response | why that one |
//! | `x-unamesh-seam` | response (not streamed), trailer | each change of machine: `from=a to=b seam=exact gap_ms=143.2`, by commas |
//! | `x-unamesh-peer` | trailer | who ended it |
//! | `x-unamesh-failover: other-model` | request | a model of another name may go on |
//!
//! A streamed answer ends with trailers for callers that say `TE: trailers`; every caller finds
//! the seams in it as comments.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use std::fmt::Write as _;
use unamesh_proto::limits;

/// Who answers.
pub const PEER: HeaderName = HeaderName::from_static("x-unamesh-peer");
/// Its node id.
pub const NODE: HeaderName = HeaderName::from_static("x-unamesh-node");
/// Why it was chosen.
pub const WHY: HeaderName = HeaderName::from_static("x-unamesh-why");
/// The changes of machine.
pub const SEAM: HeaderName = HeaderName::from_static("x-unamesh-seam");
/// Who may go on.
const FAILOVER: HeaderName = HeaderName::from_static("x-unamesh-failover");

/// Characters of a header that carries somebody else's text.
const MAX_HEADER: usize = limits::MAX_NAME * 2;

/// Whether a request allows a model of another name to go on with a broken answer.
///
/// # Errors
/// 400: a word that is not known.
pub fn other_model(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get(FAILOVER).map(HeaderValue::as_bytes) {
        None | Some(b"same-model") => Ok(false),
        Some(b"other-model") => Ok(true),
        Some(_) => {
            let message = format!("{FAILOVER} must be same-model or other-model");
            Err(ApiError::field(FAILOVER.as_str(), message))
        }
    }
}

/// Whether the caller reads trailers.
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let words = headers.get_all(header::TE).into_iter();
    words
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// Names and reasons come from other machines: what no header can hold is escaped.
pub fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let plain = |b: u8| b == b' ' || b.is_ascii_graphic();
    if value.len() <= MAX_HEADER && value.bytes().all(plain) {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
        return;
    }
    let mut line = String::with_capacity(MAX_HEADER);
    for c in value.chars().take(MAX_HEADER) {
        if c == ' ' || c.is_ascii_graphic() {
            line.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(line, "\\u{{{:x}}}", u32::from(c));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&line) {
        headers.insert(name, value);
    }
}
