//! Requests that ask nothing of the connection, answered where their bytes are read.
//!
//! hyper answers whatever HTTP/1.1 allows. Nearly every call asks with one whole `GET` that has neither a body nor a
//! header that changes anything, for a number that is in memory: such a request is answered at once, with the same
//! bytes that hyper would write. Whatever is any different is hyper's, unread and uncounted.

use std::io::Write;
use std::time::{Duration, SystemTime};

use super::wire::Reply;

/// Most headers of such a request.
const MOST_HEADERS: usize = 16;

/// Headers that change nothing.
const IDLE: [&str; 4] = ["user-agent", "accept", "accept-encoding", "accept-language"];

/// Such a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plain<'a> {
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) host: Option<&'a str>,
}

/// The request that these bytes begin with, if it is such a one, and how long it is.
pub(super) fn plain(bytes: &[u8]) -> Option<(Plain<'_>, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = request.parse(bytes) else {
        return None;
    };
    let (Some("GET"), Some(1), Some(target)) = (request.method, request.version, request.path)
    else {
        return None;
    };
    if !target.starts_with('/') || !target.bytes().all(is_of_a_target) {
        return None;
    }
    let mut host = None;
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") && host.is_none() {
            host = Some(std::str::from_utf8(header.value).ok()?);
        } else if is("connection") && header.value.eq_ignore_ascii_case(b"keep-alive") {
        } else if !IDLE.iter().any(|name| is(name)) {
            return None;
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some((Plain { path, query, host }, length))
}

/// RFC 3986: what a path and a query are made of, whatever stands where. Fragments and anything else are hyper's.
fn is_of_a_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/?:@-._~!$&'()*+,;=%".contains(&byte)
}

/// The head of an answer, as hyper writes it.
pub(super) fn write_head(reply: &Reply, date: &mut Date, out: &mut Vec<u8>) {
    let code = reply.code;
    let reason = code.canonical_reason().unwrap_or_default();
    // Writing into memory does not fail.
    let _ = write!(
        out,
        "HTTP/1.1 {} {reason}\r\ncontent-type: {}\r\ncontent-length: {}\r\n",
        code.as_str(),
        reply.content_type(),
        reply.length(),
    );
    for (name, value) in reply.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(date.now());
    out.extend_from_slice(b"\r\n\r\n");
}

/// The value of `Date` (RFC 9110 section 6.6.1), written once a second.
#[derive(Debug)]
pub(super) struct Date {
    /// Seconds since 1970.
    second: Option<u64>,
    text: Vec<u8>,
}

impl Date {
    pub(super) fn new() -> Self {
        Self {
            second: None,
            text: Vec::new(),
        }
    }

    fn now(&mut self) -> &[u8] {
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let second = since.map_or(0, |since| since.as_secs());
        if self.second != Some(second) {
            self.second = Some(second);
            self.text.clear();
            let whole = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(second));
            // Writing into memory does not fail.
            let _ = write!(
                self.text,
                "{}",
                httpdate::HttpDate::from(whole.unwrap_or(now))
            );
        }
        &self.text
    }
}
